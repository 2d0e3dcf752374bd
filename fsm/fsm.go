// Package fsm is the replicated state machine of Conclave: what every node
// agrees on, and the rule by which each Raft entry changes it.
//
// Apply is a pure function of the state and the entry. It reads no clock, no
// randomness and no network, evaluates no policy and decrypts no secret; if an
// outcome needs any of these, the proposer put the result into the entry. Apply
// compares versions, which are integers, and stores what it is given. Two nodes
// that applied the same entries hold the same bytes, and check that they do.
//
// An entry that cannot be read in full stops the node: going on without it would
// let two nodes disagree about what a client was promised.
package fsm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/recent"
	"github.com/conclavekms/conclave/fsm/session"
	"github.com/conclavekms/conclave/fsm/statehash"
	"github.com/conclavekms/conclave/fsm/wire"
)

var (
	// ErrUnreadable is returned for an entry or snapshot that this binary cannot
	// read in full.
	ErrUnreadable = wire.ErrUnreadable
	// ErrDiverged means that this node's state differs from the leader's.
	ErrDiverged = statehash.ErrDiverged
	// ErrStopped is returned for every entry after a fault stopped the machine.
	ErrStopped = errors.New("state machine stopped")
)

// AuditLog stores accepted records outside the state. *auditlog.Log is one.
type AuditLog interface {
	// Append stores entries in order with their leaf hashes. It skips those whose
	// index it has.
	Append([]auditlog.Entry, []auditlog.Hash) error
	// Restore tells the log that the state covers f.Size() entries.
	Restore(f auditlog.Frontier, segmentRoots []auditlog.Hash) error
	// Sync makes everything appended durable.
	Sync() error
}

// Events tells caches what they must follow.
type Events struct {
	// Destroyed lists keys that lost key material.
	Destroyed []KeyID
	// Refused lists records that broke a rule. They changed nothing.
	Refused []Refusal
	// BreakGlass lists new access keys of break-glass ceremonies.
	BreakGlass []*fsmpb.Credential
	// Restored means that the state was replaced by that of a snapshot:
	// anything may have changed.
	Restored bool
}

// Config configures a state machine.
type Config struct {
	Audit AuditLog
	// Attest gets an unsealed node's signature for a state, which every snapshot of
	// an initialised cluster carries; see [fsmpb.Attestation]. It is called on the
	// apply goroutine and must not block. The function that it returns is called
	// once, with the state's digest, when the snapshot is written, and may wait. If
	// Attest is nil, snapshots of an initialised cluster fail.
	Attest func(*State) func(digest [32]byte) (*fsmpb.Attestation, error)
	// OnApply is called after each published state, in order, on the apply
	// goroutine. It must not block.
	OnApply func(*State, Events)
	// Known are the schemas that the machine reads: those of this release, unless a test
	// lets it be an older one.
	Known level.Range
	// OnFault is called once, when the machine stops for good: an unreadable
	// entry, a diverged state, or an audit log that cannot be written.
	OnFault func(error)
}

// FSM implements raft.BatchingFSM. Everything but Current runs on Raft's
// goroutines, one at a time.
type FSM struct {
	cfg      Config
	db       *table // the current state's rows; never published, as cloning requires
	current  atomic.Pointer[State]
	sessions session.Sessions
	checks   statehash.Checks
	uses     *uses
	texts    *intern.Texts
	// recent has the newest states, one for each entry, including entries that were applied
	// together: which ones are applied together differs from node to node.
	recent   recent.Values[State]
	verified origin.Verified
	restored bool // cfg.Audit was told where the state begins
	fault    error
}

var _ raft.BatchingFSM = (*FSM)(nil)

// New returns a machine in its first state.
func New(cfg Config) *FSM {
	f := &FSM{cfg: cfg, db: newTable(), sessions: session.None(), uses: newUses(), texts: intern.NewTexts()}
	if cfg.Known == (level.Range{}) {
		cfg.Known = level.Known
	}
	f.current.Store(&State{db: f.db.clone(), known: cfg.Known, level: level.Oldest, uses: f.uses})
	return f
}

// Current returns the newest published state.
func (f *FSM) Current() *State { return f.current.Load() }

// Result is the answer to the proposer of an entry.
type Result struct {
	Index uint64
	// Batches answers each batch of the entry, in order.
	Batches []BatchResult
	// Registered answers a RegisterNode. It is false if a newer incarnation exists.
	Registered bool
	// Unsigned means that a RegisterNode had no effect, because no unsealed leader
	// signed the entry.
	Unsigned bool
}

// BatchStatus is what happened to a batch.
type BatchStatus uint8

const (
	// BatchApplied: the batch was applied by this entry.
	BatchApplied BatchStatus = iota + 1
	// BatchRepeated: the batch was applied before; the verdicts are those given then.
	BatchRepeated
	// BatchFenced: the batch was not applied and never will be. The node's incarnation is
	// not the registered one, or the node said before that it had the answer to this batch.
	BatchFenced
	// BatchUnsigned: the batch was not applied, because no unsealed leader signed the entry.
	BatchUnsigned
)

// BatchResult is the answer to one batch.
type BatchResult struct {
	Status BatchStatus
	// Index is the entry that applied the batch.
	Index uint64
	// Verdicts has one for each record.
	Verdicts []Verdict
	// First is the size of the audit log before the batch, if that was applied. It is nil for
	// one that was applied before, at feature level 1.
	First *uint64
}

// Verdict is the outcome of one record.
type Verdict uint8

const (
	// Accepted: everything that the record read still held. Its changes are
	// made and it is in the audit log.
	Accepted Verdict = iota + 1
	// Conflict: something that the record read had changed; nothing happened.
	Conflict
	// Early or Late: cluster time was outside the interval in which the outcome
	// holds; nothing happened.
	Early
	Late
	// Invalid: the record breaks a rule that no honest proposer breaks; nothing happened.
	Invalid
)

func (v Verdict) String() string {
	switch v {
	case Accepted:
		return "accepted"
	case Conflict:
		return "conflict"
	case Early:
		return "early"
	case Late:
		return "late"
	case Invalid:
		return "invalid"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// Verdicts converts the bytes that carry verdicts on the wire.
func Verdicts(b []byte) []Verdict {
	v := make([]Verdict, len(b))
	for i := range b {
		v[i] = Verdict(b[i])
	}
	return v
}

func verdictBytes(v []Verdict) []byte {
	b := make([]byte, len(v))
	for i := range v {
		b[i] = byte(v[i])
	}
	return b
}

// Apply implements raft.FSM.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. It applies the entries in order and publishes one
// state. Each answer is a *Result, or an error once the machine has stopped.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	done := 0
	if f.fault == nil {
		var fault error
		a := f.begin()
		for ; done < len(logs) && fault == nil; done++ {
			var res *Result
			if res, fault = a.entry(logs[done]); fault != nil {
				fault = fmt.Errorf("applying Raft entry %d: %w", logs[done].Index, fault)
				break
			}
			answers[done] = res
			if done < len(logs)-1 {
				a.keep()
			}
		}
		// The entries before one that cannot be applied remain in force.
		if err := f.publish(a); err != nil {
			fault, done = err, 0
		}
		if fault != nil {
			f.fault = fault
			if f.cfg.OnFault != nil {
				f.cfg.OnFault(fault)
			}
		}
	}
	for i := done; i < len(logs); i++ {
		answers[i] = fmt.Errorf("%w: %w", ErrStopped, f.fault)
	}
	return answers
}

// publish stores the audit entries and then makes the state visible, so that
// nobody sees an outcome whose record the audit log did not accept.
func (f *FSM) publish(a *applier) error {
	if err := f.appendAudit(a.entries, a.leaves); err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	s := a.finish()
	f.recent.Add(append(a.between, s))
	f.current.Store(s)
	if f.cfg.OnApply != nil {
		f.cfg.OnApply(s, a.events)
	}
	return nil
}

func (f *FSM) appendAudit(entries []auditlog.Entry, leaves []auditlog.Hash) error {
	if !f.restored {
		if err := f.cfg.Audit.Restore(auditlog.Frontier{}, nil); err != nil {
			return err
		}
		f.restored = true
	}
	if len(entries) == 0 {
		return nil
	}
	return f.cfg.Audit.Append(entries, leaves)
}

// LatestCheck returns the newest state hash that nodes compare, for the leader to
// propose; nil for none. It must be called on the apply goroutine, that is, from OnApply.
func (f *FSM) LatestCheck() *fsmpb.StateCheck { return f.checks.Latest() }
