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
	// A checkpoint is due checkpointEvery after the last one if there are new records, or
	// as soon as there are checkpointRecords of them.
	checkpointEvery   = time.Second
	checkpointRecords = 16384
	// checkpointLook is how often new records are counted.
	checkpointLook = 50 * time.Millisecond
)

// checkpointing is the state of the engine's checkpoints.
type checkpointing struct {
	mu     sync.Mutex // held while a checkpoint is signed
	every  time.Duration
	signed atomic.Uint64 // number of entries that the newest checkpoint covers
}

// VerifierKey returns the key that verifies the audit log's checkpoints; see verify.Dir in
// auditlog/verify. It is empty before Init.
func (e *Engine) VerifierKey() string {
	if c, _ := e.replica.State().Cluster(); c != nil {
		return record.VerifierKey(c)
	}
	return ""
}

// MLDSAVerifierKey returns the ML-DSA-44 key that verifies the second signature of the audit
// log's checkpoints. It is empty before Init and on a sealed node, which cannot derive it.
func (p proofs) MLDSAVerifierKey() string {
	e := p.e
	c, _ := e.replica.State().Cluster()
	o, err := e.vault.Current()
	if err != nil || c == nil {
		return ""
	}
	key, err := vault.MLDSAAuditKey(o, c, record.AuditOrigin(c))
	if err != nil {
		return "" // it was sealed meanwhile
	}
	return key
}

// runCheckpoints signs checkpoints while the node is unsealed, until ctx ends.
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
			e.log.Warn("signing an audit checkpoint failed", "size", size, "err", err)
		}
	}
}

// Checkpoint signs the audit log up to the last entry that this node has applied. It does
// nothing if the previous checkpoint covers as much, or if the disk is full. The entries
// are synced to disk before the checkpoint is written.
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
		return nil // signed later, when there is room to write it
	}
	if err := e.cfg.Audit.Sync(); err != nil {
		return fmt.Errorf("syncing the audit log: %w", err)
	}
	note, err := o.SignCheckpoint(c, record.AuditOrigin(c), frontier)
	if err != nil {
		return err
	}
	if err := e.cfg.Audit.WriteCheckpoint(note); errors.Is(err, auditlog.ErrStaleCheckpoint) {
		// After a restart the state can be behind the log's last checkpoint, and this node
		// may still be fetching history from other nodes. A later attempt will succeed.
		return nil
	} else if err != nil {
		return fmt.Errorf("writing an audit checkpoint: %w", err)
	}
	e.checkpoint.signed.Store(frontier.Size())
	return nil
}

// cosignedQuestion asks the leader, in place of a forwarded request, for the newest cosigned
// checkpoint. Neither it nor the answer is encrypted: the answer is public, and the witnesses'
// signatures are verified. A leader of the release before would not understand it, and may be
// there until cosignedLevel.
const (
	cosignedQuestion = "the newest cosigned checkpoint"
	cosignedLevel    = 2
)

// askCosigned returns the leader's newest cosigned checkpoint; nil if there is none.
func (p proofs) askCosigned(ctx context.Context) ([]byte, error) {
	r := p.e.replica
	if r.State().Level() < cosignedLevel {
		return nil, nil
	}
	return r.ExecuteOnLeader(ctx, []byte(cosignedQuestion))
}

// PublishedCheckpoint returns the checkpoint of the audit log that is shown to others; nil if
// there is none. See auditwitness.Service.Published.
func (p proofs) PublishedCheckpoint() []byte { return p.e.Witnesses.Published() }

// Checkpointed returns the number of records that this node's newest checkpoint covers.
func (e *Engine) Checkpointed() uint64 { return e.checkpoint.signed.Load() }
