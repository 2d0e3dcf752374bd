package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/durable"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	identityFile   = "node.json"
	identityFormat = 1
)

// nodeFile is what the data directory says of itself.
type nodeFile struct {
	Format int    `json:"format"`
	Node   string `json:"node"`
	// Incarnation is higher with each start of the node.
	Incarnation uint64 `json:"incarnation"`
	// Joined are the Raft groups of which there is state in the directory.
	Joined []uint32 `json:"joined"`
}

// groupsDir is where a data directory has what belongs to a Raft group, in a directory with
// the group's number. What belongs to the node stands outside of it.
const groupsDir = "groups"

// GroupDir is where a data directory has what belongs to the Raft group that this process
// serves.
func GroupDir(data string) string {
	return filepath.Join(data, groupsDir, strconv.FormatUint(uint64(wire.Group), 10))
}

// CheckDataDir refuses, with ErrDataDir, a data directory that an unreleased version without
// groups wrote, and one with another group's data, before anything is made in it. One that
// is empty, or not there, is good.
func CheckDataDir(data string) error {
	for _, old := range []string{"raft", "audit"} {
		if _, err := os.Lstat(filepath.Join(data, old)); err == nil {
			return fmt.Errorf("%w: %s has %s outside of %s: an unreleased version wrote it, which this one does not read; begin with an empty directory",
				ErrDataDir, data, old, groupsDir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	there, err := os.ReadDir(filepath.Join(data, groupsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range there {
		if own := filepath.Base(GroupDir(data)); e.Name() != own {
			return fmt.Errorf("%w: %s has %s, and this node serves group %s alone: start the version that made it",
				ErrDataDir, filepath.Join(data, groupsDir), e.Name(), own)
		}
	}
	return nil
}

// dataDir is the node's directory.
type dataDir struct {
	path string
	file nodeFile
}

// openDataDir opens or makes the directory and opens the node's next
// incarnation, which is on disk before anything can be said in its name. The
// time of the start is in it, so that a disk that went back does not make the
// node use an incarnation again: its batches would be taken for those of then.
func openDataDir(path, node string, now time.Time) (*dataDir, error) {
	if err := CheckDataDir(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return nil, err
	}
	d := &dataDir{path: path}
	b, err := os.ReadFile(filepath.Join(path, identityFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.file = nodeFile{Format: identityFormat, Node: node}
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(b, &d.file); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDataDir, identityFile, err)
		}
	}
	if d.file.Format != identityFormat {
		return nil, fmt.Errorf("%w: %s has format %d, this binary knows %d", ErrDataDir, identityFile, d.file.Format, identityFormat)
	}
	if d.file.Node != node {
		return nil, fmt.Errorf("%w: %s is of node %q, and this is node %q", ErrDataDir, path, d.file.Node, node)
	}
	for _, g := range d.file.Joined {
		if err := wire.CheckGroup(g); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDataDir, identityFile, err)
		}
	}
	d.file.Incarnation = max(d.file.Incarnation+1, uint64(max(now.UnixNano(), 0)))
	return d, d.save()
}

// hasJoined reports whether there is, or was, Raft state in the directory.
func (d *dataDir) hasJoined() bool { return slices.Contains(d.file.Joined, wire.Group) }

// joined records that the directory has Raft state.
func (d *dataDir) joined() error {
	if d.hasJoined() {
		return nil
	}
	d.file.Joined = append(d.file.Joined, wire.Group)
	return d.save()
}

// save replaces the identity file: either the old or the new one survives.
func (d *dataDir) save() error {
	b, err := json.MarshalIndent(d.file, "", "  ")
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(d.path, identityFile), append(b, '\n'))
}
