package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// privateSnapshots is Raft's store of snapshots with files that nobody else may
// read: Raft makes them as the process's umask has it.
type privateSnapshots struct {
	raft.SnapshotStore
	path string
}

// Create implements raft.SnapshotStore. Nothing is in the files yet.
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

// makePrivate takes everybody else's permissions off a directory and what is in it.
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
