package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/durable"
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
	// Joined says that there is Raft state beside this file.
	Joined bool `json:"joined"`
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
	d.file.Incarnation = max(d.file.Incarnation+1, uint64(max(now.UnixNano(), 0)))
	return d, d.save()
}

// joined records that the directory has Raft state.
func (d *dataDir) joined() error {
	if d.file.Joined {
		return nil
	}
	d.file.Joined = true
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
