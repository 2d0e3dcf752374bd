package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// check reads the tree of the Raft log in a file, and returns ErrCorrupt if a page of it is not
// what it has to be, such as one of zeros after a disk has lost a write. bbolt looks at all pages
// when it opens a file to write to it, but on a goroutine of its own, where its panics end the
// process and nobody is told which file it is. The values of the entries have checksums, which
// are verified when they are read.
func check(path string, timeout time.Duration) error {
	if info, err := os.Stat(path); errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // it is about to be made
	} else if err != nil {
		return err
	}
	// A reference beyond the end of the file is a fault of the memory that it is mapped to.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	err := Guard(func() error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: timeout})
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
				var last []byte
				err := b.ForEach(func(k, _ []byte) error {
					if last != nil && bytes.Compare(k, last) <= 0 {
						return fmt.Errorf("%w: the keys of %q are out of order", ErrCorrupt, name)
					}
					last = k
					return nil
				})
				return err
			})
		})
	})
	for _, damage := range []error{bbolterrors.ErrInvalid, bbolterrors.ErrChecksum, bbolterrors.ErrVersionMismatch} {
		if errors.Is(err, damage) {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%s is damaged: %w", path, err)
	}
	return err
}
