package cluster

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/snapfile"
)

// snapshotStore is Raft's snapshot store. It accepts a snapshot of another node only after
// it has read all of it and verified its attestation: when Raft restores a snapshot, it has
// already thrown away what the node had before.
type snapshotStore struct {
	raft.SnapshotStore
	state func() *fsm.State
	// note is called with each snapshot that was stored.
	note func(*raft.SnapshotMeta)
}

// latestSnapshot is the metadata of the snapshot that reaches furthest; nil if there is none.
type latestSnapshot struct {
	atomic.Pointer[raft.SnapshotMeta]
}

// note records a snapshot that is stored. Raft can take one while it receives one that reaches
// further, and be done with it after that.
func (s *latestSnapshot) note(m *raft.SnapshotMeta) {
	for {
		was := s.Load()
		if was != nil && was.Index >= m.Index || s.CompareAndSwap(was, m) {
			return
		}
	}
}

// errSnapshotIndex is returned for a snapshot whose content has another index than its
// metadata.
var errSnapshotIndex = errors.New("snapshot does not reach the Raft index that it is said to reach")

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, configIndex, t)
	if err != nil {
		return nil, err
	}
	meta := &raft.SnapshotMeta{Index: index, Term: term, Configuration: c, ConfigurationIndex: configIndex}
	return &snapshotSink{SnapshotSink: sink, store: s, meta: meta}, nil
}

// Open implements raft.SnapshotStore. It verifies the index in the metadata, because Raft
// trusts it and skips log entries up to it.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	index, err := snapfile.Index(r)
	err = errors.Join(err, r.Close())
	if err == nil && index != meta.Index {
		err = fmt.Errorf("%w: %d in its file, %d beside it", errSnapshotIndex, index, meta.Index)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return s.SnapshotStore.Open(id)
}

// snapshotSink receives one snapshot. One of another node is verified while it is written.
type snapshotSink struct {
	raft.SnapshotSink
	store *snapshotStore
	meta  *raft.SnapshotMeta
	own   bool
	check *io.PipeWriter
	found chan error
}

// Write implements io.Writer.
func (s *snapshotSink) Write(b []byte) (int, error) {
	if s.own {
		return s.SnapshotSink.Write(b)
	}
	if s.check == nil {
		var r *io.PipeReader
		r, s.check = io.Pipe()
		s.found = make(chan error, 1)
		go func() {
			err := fsm.CheckSnapshot(r, s.store.state(), s.meta.Index)
			r.CloseWithError(err)
			s.found <- err
		}()
	}
	if _, err := s.check.Write(b); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return 0, fmt.Errorf("snapshot from another node: %w", err)
	}
	return s.SnapshotSink.Write(b)
}

// Close implements io.Closer. The snapshot is valid from here on.
func (s *snapshotSink) Close() error {
	if !s.own {
		if err := s.verdict(nil); err != nil {
			return errors.Join(fmt.Errorf("snapshot from another node: %w", err), s.SnapshotSink.Cancel())
		}
	}
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	s.store.note(s.meta)
	return nil
}

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error {
	if s.check != nil {
		_ = s.verdict(io.ErrUnexpectedEOF)
	}
	return s.SnapshotSink.Cancel()
}

// verdict ends the verification with the given error and returns its result.
func (s *snapshotSink) verdict(end error) error {
	if s.check == nil {
		return fmt.Errorf("%w: empty", fsm.ErrUnreadable)
	}
	_ = s.check.CloseWithError(end)
	err := <-s.found
	s.found <- err // Raft may call Cancel after a failed Close
	return err
}

// watchLog takes a snapshot when the log has grown by the configured number of bytes, and
// records in the identity file that the disk has Raft state.
func (n *Node) watchLog() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.life.Context().Done():
			return
		}
		r := n.raft.Load()
		if r == nil || n.life.Fenced() != nil {
			continue
		}
		if r.LastIndex() > 0 {
			if err := n.dir.joined(); err != nil {
				n.life.Fence(fmt.Errorf("%w: %w", ErrStorage, err))
				continue
			}
		}
		if grown := n.store.Appended(); grown >= n.cfg.SnapshotBytes {
			if err := n.raftEnd.Await(n.life.Context(), r.Snapshot()); err != nil {
				n.log.Warn("snapshot by size", "err", err)
				continue
			}
			n.store.AdjustAppended(-grown)
		}
	}
}
