package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// privateSnapshots is Raft's snapshot store with files that only their owner can read. Raft
// itself creates them with the permissions that the umask of the process allows.
type privateSnapshots struct {
	raft.SnapshotStore
	path string
}

// Create implements raft.SnapshotStore. The files are still empty when their permissions
// are changed.
func (s privateSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, configIndex, t)
	if err != nil {
		return nil, err
	}
	if err := makePrivate(filepath.Join(s.path, sink.ID()+".tmp")); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return sink, nil
}

// makePrivate removes the permissions of group and others from a directory and its
// contents.
func makePrivate(path string) error {
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o700)
		case d.Type().IsRegular():
			return os.Chmod(path, 0o600)
		}
		return nil
	})
}
