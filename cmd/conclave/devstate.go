package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

const (
	devInfoFile = "dev.json" // in the server's own directory
	devInfoGlob = "dev-*.json"
)

// devInfo is what clients need to use a running development server.
type devInfo struct {
	PID             int       `json:"pid"`
	Data            string    `json:"data"`
	TLS             bool      `json:"tls"`
	AWS             string    `json:"aws"`
	GRPC            string    `json:"grpc"`
	Ops             string    `json:"ops"`
	Region          string    `json:"region"`
	AccessKeyID     string    `json:"access_key_id"`
	SecretAccessKey string    `json:"secret_access_key"`
	CA              string    `json:"ca,omitempty"`
	Cert            string    `json:"cert,omitempty"`
	Key             string    `json:"key,omitempty"`
	Users           []devUser `json:"users,omitempty"` // besides root
}

// devInfoDir returns the directory in which this user's development servers are
// announced. Others can write to its parent directory, so it is checked before
// it is used.
func devInfoDir() (string, error) {
	dir := filepath.Join(os.TempDir(), "conclave-"+strconv.Itoa(os.Getuid()))
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		dir = filepath.Join(run, "conclave")
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, files.OwnDir(dir)
}

// devAnnouncement has the files by which a server announced itself, to be
// removed when it stops.
type devAnnouncement struct {
	pid   int
	files []string
}

// announce writes the file that `conclave env` reads, in the directory for this
// user and, with --data, in that directory too.
func announce(info *devInfo, dir string, temporary bool) (*devAnnouncement, error) {
	raw, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return nil, err
	}
	user, err := devInfoDir()
	if err != nil {
		return nil, err
	}
	names := []string{filepath.Join(user, fmt.Sprintf("dev-%d.json", info.PID))}
	if !temporary {
		names = append(names, filepath.Join(dir, devInfoFile))
	}
	a := &devAnnouncement{pid: info.PID}
	for _, name := range names {
		if err := files.Write(name, append(raw, '\n')); err != nil {
			return nil, errors.Join(err, a.withdraw())
		}
		a.files = append(a.files, name)
	}
	return a, nil
}

// announced returns the announced development servers of this user. It removes
// the announcements of servers that no longer run.
func announced() ([]*devInfo, error) {
	dir, err := devInfoDir()
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, devInfoGlob))
	if err != nil {
		return nil, err
	}
	var all []*devInfo
	for _, name := range names {
		info, err := readDevInfo(name)
		switch {
		case errors.Is(err, os.ErrNotExist): // it has just ended
		case err != nil:
			return nil, err
		case !info.runs():
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		default:
			all = append(all, info)
		}
	}
	return all, nil
}

// runs reports whether there is a process with the server's id.
func (i *devInfo) runs() bool {
	return i.PID > 0 && !errors.Is(syscall.Kill(i.PID, 0), syscall.ESRCH)
}

// withdraw removes the announcement, unless another server has replaced it.
func (a *devAnnouncement) withdraw() error {
	var errs []error
	for _, name := range a.files {
		info, err := readDevInfo(name)
		if errors.Is(err, os.ErrNotExist) || err == nil && info.PID != a.pid {
			continue
		}
		errs = append(errs, os.Remove(name))
	}
	return errors.Join(errs...)
}

func readDevInfo(name string) (*devInfo, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	info := new(devInfo)
	if err := json.Unmarshal(raw, info); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return info, nil
}
