package keyengine

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
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
		return verifierKey(c)
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
		if e.vault.sealed() {
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
		if err != nil && !errors.Is(err, errSealed) {
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
	o, err := e.vault.current()
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
	note, err := o.signCheckpoint(c, frontier)
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

// signCheckpoint signs with the cluster's audit key, which is unwrapped for the
// moment.
func (o *opened) signCheckpoint(c *fsmpb.Cluster, f auditlog.Frontier) ([]byte, error) {
	seed, err := o.ring.Unwrap(c.AuditKeyGeneration, keymat.PurposeAuditSigning, auditKeyBinding(c), c.WrappedAuditKey)
	if err != nil {
		return nil, fmt.Errorf("audit signing key: %w", gone(err))
	}
	defer seed.Destroy()
	var note []byte
	err = seed.With(func(b []byte) error {
		if len(b) != ed25519.SeedSize {
			return fmt.Errorf("audit signing key has %d bytes", len(b))
		}
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		note, err = auditlog.SignCheckpoint(auditOrigin(c), key, f)
		return err
	})
	return note, gone(err)
}

// Checkpointed is how many records this node's newest checkpoint covers.
func (e *Engine) Checkpointed() uint64 { return e.checkpoint.signed.Load() }
