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
	// returnKeyFile has the node's return keys, unless Config.ReturnKeyFile is set.
	returnKeyFile = "return.key"
)

// nodeFile is the content of the identity file of a data directory.
type nodeFile struct {
	Format int    `json:"format"`
	Node   string `json:"node"`
	// Incarnation is increased at each start of the node.
	Incarnation uint64 `json:"incarnation"`
	// Joined lists the Raft groups whose state is in the directory.
	Joined []uint32 `json:"joined"`
	// Lineage is that of the state if it was restored from a backup, in hexadecimal.
	Lineage string `json:"lineage,omitempty"`
}

// groupsDir contains one directory for each Raft group, named by the group's number. Files
// that belong to the node as a whole are outside of it.
const groupsDir = "groups"

// GroupDir returns the directory, inside the data directory, of the Raft group that this
// process serves.
func GroupDir(data string) string {
	return filepath.Join(data, groupsDir, strconv.FormatUint(uint64(wire.Group), 10))
}

// CheckDataDir returns ErrDataDir for a data directory that was written by an unreleased
// version without groups, or that has the data of another group. It is called before
// anything is written there. An empty or missing directory is accepted.
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

// dataDir is the node's open data directory.
type dataDir struct {
	path string
	file nodeFile
}

// openDataDir opens or creates the directory and starts the node's next incarnation, which
// is on disk before the node uses it. Incarnations are derived from the time of the start,
// so that a node whose disk was restored from an older copy does not use an incarnation
// twice: its batches would be taken for those of the earlier start.
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
	var err error
	d := &dataDir{path: path}
	d.file, err = readNodeFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.file = nodeFile{Format: identityFormat, Node: node}
	case err != nil:
		return nil, err
	}
	if d.file.Node != node {
		return nil, fmt.Errorf("%w: %s is of node %q, and this is node %q", ErrDataDir, path, d.file.Node, node)
	}
	d.file.Incarnation = max(d.file.Incarnation+1, uint64(max(now.UnixNano(), 0)))
	return d, d.save()
}

// hasJoined reports whether the directory has, or had, Raft state.
func (d *dataDir) hasJoined() bool { return slices.Contains(d.file.Joined, wire.Group) }

// joined records that the directory has Raft state.
func (d *dataDir) joined() error {
	if d.hasJoined() {
		return nil
	}
	d.file.Joined = append(d.file.Joined, wire.Group)
	return d.save()
}

// save replaces the identity file atomically: after a crash it is either the old or the new
// one.
func (d *dataDir) save() error {
	b, err := json.MarshalIndent(d.file, "", "  ")
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(d.path, identityFile), append(b, '\n'))
}

// DataDirOwner returns the id of the node that a data directory is of, and the lineage of
// its state if that was restored from a backup. Both are empty for a directory that is
// empty or missing. Nothing in the directory is changed, so a node may be using it.
func DataDirOwner(data string) (node, lineage string, err error) {
	f, err := readNodeFile(data)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	return f.Node, f.Lineage, err
}

// readNodeFile reads the identity file of a data directory. Its error is fs.ErrNotExist if there
// is none, and wraps ErrDataDir if this binary cannot use it.
func readNodeFile(path string) (f nodeFile, err error) {
	b, err := os.ReadFile(filepath.Join(path, identityFile))
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("%w: %s: %w", ErrDataDir, identityFile, err)
	}
	if f.Format != identityFormat {
		return f, fmt.Errorf("%w: %s has format %d, this binary knows %d", ErrDataDir, identityFile, f.Format, identityFormat)
	}
	for _, g := range f.Joined {
		if err := wire.CheckGroup(g); err != nil {
			return f, fmt.Errorf("%w: %s: %w", ErrDataDir, identityFile, err)
		}
	}
	return f, nil
}
