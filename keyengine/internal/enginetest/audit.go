package enginetest

import (
	"bytes"
	"slices"
	"sync"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
)

// An AuditLog is an audit log in memory.
type AuditLog struct {
	mu          sync.Mutex
	entries     []auditlog.Entry
	changed     chan struct{}
	synced      int
	checkpoints [][]byte
}

var _ fsm.AuditLog = (*AuditLog)(nil)

func newAuditLog() *AuditLog { return &AuditLog{changed: make(chan struct{})} }

// Append adds entries.
func (a *AuditLog) Append(entries []auditlog.Entry, _ []auditlog.Hash) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		e.Body = bytes.Clone(e.Body)
		a.entries = append(a.entries, e)
	}
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

// Restore does nothing: no snapshot is restored in these tests.
func (a *AuditLog) Restore(auditlog.Frontier, []auditlog.Hash) error { return nil }

// Sync notes that all entries are durable.
func (a *AuditLog) Sync() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.synced = len(a.entries)
	return nil
}

// Read returns at most limit entries, beginning with the index from.
func (a *AuditLog) Read(from uint64, limit, _ int) ([]auditlog.Entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if from >= uint64(len(a.entries)) {
		return nil, nil
	}
	part := a.entries[from:]
	return slices.Clone(part[:min(limit, len(part))]), nil
}

// Size returns the number of entries.
func (a *AuditLog) Size() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return uint64(len(a.entries))
}

// Changed returns a channel that is closed when entries are added.
func (a *AuditLog) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Marks, Remember and Forget do nothing: the entries are not in files.
func (a *AuditLog) Marks(uint64) ([]int64, error) { return nil, nil }

// Remember does nothing.
func (a *AuditLog) Remember(uint64, []int64) {}

// Forget does nothing.
func (a *AuditLog) Forget(uint64) {}

// WriteCheckpoint keeps a checkpoint.
func (a *AuditLog) WriteCheckpoint(note []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checkpoints = append(a.checkpoints, bytes.Clone(note))
	return nil
}

// Checkpoint returns the newest checkpoint; nil if there is none.
func (a *AuditLog) Checkpoint() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.checkpoints) == 0 {
		return nil
	}
	return a.checkpoints[len(a.checkpoints)-1]
}

// ProveInclusion fails: this log has no tree.
func (a *AuditLog) ProveInclusion(index, size uint64) ([]auditlog.Hash, error) {
	return nil, auditlog.ErrMissing
}

// ProveConsistency fails: this log has no tree.
func (a *AuditLog) ProveConsistency(old, size uint64) ([]auditlog.Hash, error) {
	return nil, auditlog.ErrMissing
}

// Entries returns all entries. Their bodies are shared with the log.
func (a *AuditLog) Entries() []auditlog.Entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.entries)
}

// Last returns the newest entry.
func (a *AuditLog) Last() auditlog.Entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entries[len(a.entries)-1]
}

// Checkpoints returns all checkpoints and the number of entries that are durable.
func (a *AuditLog) Checkpoints() (notes [][]byte, synced int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.checkpoints), a.synced
}
