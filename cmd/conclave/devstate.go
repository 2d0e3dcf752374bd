package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

const (
	devSecretsFile = "dev-secrets.json"
	devInfoFile    = "dev.json"
)

// devSecrets is what opens a development server again. Anywhere else the shares
// are with custodians, and the secret with its user.
type devSecrets struct {
	Warning string `json:"warning"`

	Account         string   `json:"account"`
	Region          string   `json:"region"`
	Regions         []string `json:"regions,omitempty"` // all, when there are several
	CACert          string   `json:"ca_cert"`
	CAKey           string   `json:"ca_key"`
	AccessKeyID     string   `json:"access_key_id,omitempty"`
	SecretAccessKey string   `json:"secret_access_key,omitempty"`
	Shares          []string `json:"shares,omitempty"`
	VerifierKey     string   `json:"verifier_key,omitempty"`
}

// allRegions that the server serves, the default one first, the others ascending
// as the cluster has them.
func (s *devSecrets) allRegions() []string {
	if len(s.Regions) == 0 {
		return []string{s.Region}
	}
	return append([]string{s.Region}, slices.Sorted(slices.Values(s.Regions[1:]))...)
}

// loadDevSecrets returns nil when there are none yet.
func loadDevSecrets(dir string) (*devSecrets, error) {
	name := filepath.Join(dir, devSecretsFile)
	raw, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(devSecrets)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func (s *devSecrets) save(dir string) error {
	s.Warning = "for development only: this file opens the server and all its keys"
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, devSecretsFile), append(raw, '\n'))
}

// devInfo is what clients of a running development server need.
type devInfo struct {
	PID             int    `json:"pid"`
	TLS             bool   `json:"tls"`
	AWS             string `json:"aws"`
	GRPC            string `json:"grpc"`
	Ops             string `json:"ops"`
	Region          string `json:"region"`
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
	CA              string `json:"ca,omitempty"`
	Cert            string `json:"cert,omitempty"`
	Key             string `json:"key,omitempty"`
}

// devInfoDir is where the newest development server of this user is found. Others
// can write to the directory above it, so it is looked at before it is used.
func devInfoDir() (string, error) {
	dir := filepath.Join(os.TempDir(), "conclave-"+strconv.Itoa(os.Getuid()))
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		dir = filepath.Join(run, "conclave")
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, ownDir(dir)
}

// ownDir refuses a directory that somebody else could read or replace.
func ownDir(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to somebody else; it would have your keys", dir)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to others (mode %04o); chmod 700 it", dir, fi.Mode().Perm())
	}
	return nil
}

// devAnnouncement is what a server told of itself, to take back when it stops.
type devAnnouncement struct {
	pid   int
	files []string
}

// announce writes what `conclave env` reads: for this user, and with --data in
// that directory too.
func announce(info *devInfo, dir string, temporary bool) (*devAnnouncement, error) {
	raw, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return nil, err
	}
	user, err := devInfoDir()
	if err != nil {
		return nil, err
	}
	dirs := []string{user}
	if !temporary {
		dirs = append(dirs, dir)
	}
	a := &devAnnouncement{pid: info.PID}
	for _, dir := range dirs {
		name := filepath.Join(dir, devInfoFile)
		if err := writeFile(name, append(raw, '\n')); err != nil {
			return nil, errors.Join(err, a.withdraw())
		}
		a.files = append(a.files, name)
	}
	return a, nil
}

// withdraw removes what another server has not replaced.
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
