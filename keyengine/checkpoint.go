package keyengine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// A checkpoint is due after so long, when there is anything new to sign, or
	// after so many records.
	checkpointEvery   = time.Second
	checkpointRecords = 16384
	// checkpointLook is how often records are counted.
	checkpointLook = 50 * time.Millisecond
)

// checkpointing is what the engine remembers of its checkpoints.
type checkpointing struct {
	mu     sync.Mutex // one at a time
	every  time.Duration
	signed atomic.Uint64 // entries that the newest one covers
}

// VerifierKey checks the audit log's checkpoints; see verify.Dir in auditlog/verify. It is
// empty before Init.
func (e *Engine) VerifierKey() string {
	if c, _ := e.replica.State().Cluster(); c != nil {
		return record.VerifierKey(c)
	}
	return ""
}

// runCheckpoints signs checkpoints until ctx ends, while the node is unsealed.
func (e *Engine) runCheckpoints(ctx context.Context) {
	tick := time.NewTicker(min(checkpointLook, e.checkpoint.every))
	defer tick.Stop()
	last, failed := time.Now(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if e.vault.Sealed() {
			continue
		}
		frontier, _ := e.replica.State().Audit()
		size := frontier.Size()
		if fresh := size - e.checkpoint.signed.Load(); fresh == 0 || (failed || fresh < checkpointRecords) && time.Since(last) < e.checkpoint.every {
			continue
		}
		last = time.Now()
		err := e.Checkpoint(ctx)
		failed = err != nil || e.checkpoint.signed.Load() < size
		if err != nil && !errors.Is(err, vault.ErrSealed) {
			e.log.Warn("signing an audit checkpoint", "size", size, "err", err)
		}
	}
}

// Checkpoint signs the audit log as far as this node has applied it, if that is
// further than before, and unless the disk is full. The entries are durable before the
// checkpoint is.
func (e *Engine) Checkpoint(ctx context.Context) error {
	e.checkpoint.mu.Lock()
	defer e.checkpoint.mu.Unlock()
	o, err := e.vault.Current()
	if err != nil {
		return err
	}
	s := e.replica.State()
	c, _ := s.Cluster()
	frontier, _ := s.Audit()
	if c == nil || frontier.Size() <= e.checkpoint.signed.Load() || ctx.Err() != nil {
		return ctx.Err()
	}
	if e.hasRoom() != nil {
		return nil // it is signed when there is room to write it
	}
	if err := e.cfg.Audit.Sync(); err != nil {
		return fmt.Errorf("syncing the audit log: %w", err)
	}
	note, err := o.SignCheckpoint(c, record.AuditOrigin(c), frontier)
	if err != nil {
		return err
	}
	if err := e.cfg.Audit.WriteCheckpoint(note); errors.Is(err, auditlog.ErrStaleCheckpoint) {
		// The state is still behind the log's last checkpoint after a restart, or
		// history is being fetched from other nodes: it is not time yet.
		return nil
	} else if err != nil {
		return fmt.Errorf("writing an audit checkpoint: %w", err)
	}
	e.checkpoint.signed.Store(frontier.Size())
	return nil
}

// Checkpointed is how many records this node's newest checkpoint covers.
func (e *Engine) Checkpointed() uint64 { return e.checkpoint.signed.Load() }
