package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/fsm"
)

// Stopped is the data directory of a node that does not run. While it is open, no node can
// start from it. Nothing is stored there, except that Raft's journal is moved to its log as
// at each start of a node.
type Stopped struct {
	node      nodeFile
	store     *raftlog.Store
	snapshots raft.SnapshotStore
	extent    Extent
}

// Extent says how far the Raft log of a node reaches.
type Extent struct {
	Node string
	// Lineage is that of the directory, in hexadecimal; "" if it was never restored.
	Lineage string
	// Term is the newest term that the node has seen.
	Term uint64
	// LastIndex and LastTerm are those of the newest entry. It is not known whether it was
	// committed.
	LastIndex, LastTerm uint64
	// SnapshotIndex is the newest entry in the newest snapshot; 0 without one.
	SnapshotIndex uint64
	// Members are those of the newest Raft configuration, and ConfigurationIndex its index.
	Members            []Member
	ConfigurationIndex uint64
}

// ErrRunning is returned for the data directory of a node that runs.
var ErrRunning = errors.New("a node is running from this data directory: stop it first")

// OpenStopped opens the data directory of a node that does not run. The caller must call
// Close.
func OpenStopped(data string) (_ *Stopped, err error) {
	if err := CheckDataDir(data); err != nil {
		return nil, err
	}
	s := &Stopped{}
	switch s.node, err = readNodeFile(data); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s is not the data directory of a node: it has no %s", ErrDataDir, data, identityFile)
	case err != nil:
		return nil, err
	}
	path := filepath.Join(GroupDir(data), "raft")
	if _, err := os.Lstat(filepath.Join(path, "raft.db")); err != nil {
		return nil, fmt.Errorf("%w: there is no Raft log: %w", ErrDataDir, err)
	}
	// An error of the disk is returned by the call that it concerns.
	s.store, err = raftlog.Open(path, time.Minute, raftlog.Hooks{}, nil, func(error) {})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, ErrRunning
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.store.Close())
		}
	}()
	files, err := raft.NewFileSnapshotStoreWithLogger(path, 3, raftlogger.New(slog.New(slog.DiscardHandler), "snapshot"))
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	s.snapshots = &snapshotStore{SnapshotStore: privateSnapshots{files, filepath.Join(path, "snapshots")}}
	if err := raftlog.Guard(s.measure); err != nil { // Raft's decoder of configurations panics
		return nil, err
	}
	return s, nil
}

// Close closes the directory.
func (s *Stopped) Close() error { return s.store.Close() }

// Extent returns how far the log reaches.
func (s *Stopped) Extent() Extent { return s.extent }

// measure determines the extent.
func (s *Stopped) measure() error {
	e := Extent{Node: s.node.Node, Lineage: s.node.Lineage}
	var err error
	if e.Term, err = s.store.GetUint64([]byte("CurrentTerm")); err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	var members raft.Configuration
	meta, err := s.newest()
	if err != nil {
		return err
	}
	if meta != nil {
		e.LastIndex, e.LastTerm, e.SnapshotIndex = meta.Index, meta.Term, meta.Index
		members, e.ConfigurationIndex = meta.Configuration, meta.ConfigurationIndex
	}
	err = s.entries(context.Background(), e.SnapshotIndex, func(l *raft.Log) error {
		e.LastIndex, e.LastTerm = l.Index, l.Term
		if l.Type == raft.LogConfiguration {
			members, e.ConfigurationIndex = raft.DecodeConfiguration(l.Data), l.Index
		}
		return nil
	})
	if err != nil {
		return err
	}
	if e.LastIndex == 0 {
		return fmt.Errorf("%w: it has no Raft state", ErrDataDir)
	}
	for _, m := range members.Servers {
		e.Members = append(e.Members, Member{ID: string(m.ID), PeerAddress: string(m.Address), Voter: m.Suffrage == raft.Voter, Self: string(m.ID) == e.Node})
	}
	s.extent = e
	return nil
}

// newest returns the newest snapshot; nil if there is none.
func (s *Stopped) newest() (*raft.SnapshotMeta, error) {
	list, err := s.snapshots.List()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// entries calls f with each entry after an index, in order.
func (s *Stopped) entries(ctx context.Context, after uint64, f func(*raft.Log) error) error {
	first, err := s.store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.store.LastIndex()
	if err != nil {
		return err
	}
	if last > after && first > after+1 {
		return fmt.Errorf("%w: entries %d to %d are neither in the log nor in a snapshot", ErrDataDir, after+1, first-1)
	}
	for i := after + 1; i <= last; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := new(raft.Log)
		if err := s.store.GetLog(i, l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if err := f(l); err != nil {
			return err
		}
	}
	return nil
}

// replayBatch is how many entries are applied at once.
const replayBatch = 256

// Replay returns a state machine with everything that is on the disk, whether it is known to
// be committed or not. The machine verifies snapshots and entries like that of a running
// node. If there is no audit log in cfg, records are not stored.
func (s *Stopped) Replay(ctx context.Context, cfg fsm.Config) (*fsm.FSM, error) {
	if cfg.Audit == nil {
		cfg.Audit = unstored{}
	}
	m := fsm.New(cfg)
	meta, err := s.newest()
	if err != nil {
		return nil, err
	}
	if meta != nil {
		_, from, err := s.snapshots.Open(meta.ID)
		if err != nil {
			return nil, err
		}
		if err := m.Restore(from); err != nil { // closes it
			return nil, err
		}
	}
	var batch []*raft.Log
	flush := func() error {
		for _, answer := range m.ApplyBatch(batch) {
			if err, failed := answer.(error); failed {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	err = s.entries(ctx, s.extent.SnapshotIndex, func(l *raft.Log) error {
		if l.Type != raft.LogCommand && l.Type != raft.LogConfiguration {
			return nil // Raft keeps these from state machines
		}
		if batch = append(batch, l); len(batch) < replayBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	return m, err
}

// unstored is the audit log of a state machine whose records are not stored.
type unstored struct{}

// Append implements fsm.AuditLog.
func (unstored) Append([]auditlog.Entry, []auditlog.Hash) error { return nil }

// Restore implements fsm.AuditLog.
func (unstored) Restore(auditlog.Frontier, []auditlog.Hash) error { return nil }

// Sync implements fsm.AuditLog.
func (unstored) Sync() error { return nil }
