package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// WriteCheckpoint stores a checkpoint durably. It returns ErrStaleCheckpoint for
// one that is older than the stored one or covers entries that are not durable
// here: call Sync first. It returns ErrDiverged for one that contradicts the
// tree or the stored checkpoint. Neither changes anything. The caller has to
// verify the signature.
func (l *Log) WriteCheckpoint(msg []byte) error {
	c, err := checkpoint.Decode(msg)
	if err != nil {
		return err
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	failed, durable, old, v := l.failed, l.durable, l.checkpoint, l.content.tree.view()
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	if bytes.Equal(msg, old) {
		return nil
	}
	if old != nil {
		o, err := checkpoint.Decode(old)
		switch {
		case err != nil:
			return err
		case c.Origin != o.Origin:
			return fmt.Errorf("%w: its origin is %q, the log's %q", ErrStaleCheckpoint, c.Origin, o.Origin)
		case c.Size < o.Size:
			return fmt.Errorf("%w: it covers %d entries, the stored one %d", ErrStaleCheckpoint, c.Size, o.Size)
		}
	}
	if c.Size > durable {
		return fmt.Errorf("%w: it covers %d entries, of which %d are durable here", ErrStaleCheckpoint, c.Size, durable)
	}
	if err := v.check(c); err != nil {
		return err
	}
	if err := l.dir.put(layout.CheckpointFile, msg, true); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(fmt.Errorf("writing the checkpoint: %w", err))
	}
	l.mu.Lock()
	l.checkpoint = bytes.Clone(msg)
	l.mu.Unlock()
	return nil
}

// check compares the tree with a checkpoint that it covers.
func (v *treeView) check(c checkpoint.Checkpoint) error {
	f, err := v.at(c.Size)
	if err != nil {
		return err
	}
	if f.Root() != c.Root {
		return fmt.Errorf("%w: the checkpoint of %d entries has another root", ErrDiverged, c.Size)
	}
	return nil
}

// Checkpoint returns the newest stored checkpoint; nil if there is none.
func (l *Log) Checkpoint() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.checkpoint)
}

// loadCheckpoint reads the stored checkpoint. A tree that does not match it is
// damaged. A checkpoint covers only durable entries, so if some are missing, the
// durable mark is missing too: somebody removed it so that peers fill them in.
func (d *directory) loadCheckpoint(v *treeView) ([]byte, error) {
	b, err := d.read(layout.CheckpointFile, layout.MaxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := checkpoint.Decode(b)
	switch {
	case err != nil:
	case c.Size > v.tree.size:
		d.logger.Warn("the audit checkpoint covers entries that are missing here", "entries", v.tree.size, "checkpoint", c.Size)
	default:
		err = v.check(c)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, layout.CheckpointFile, err)
	}
	return b, nil
}
