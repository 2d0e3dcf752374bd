package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// applier holds the state while entries change it: what ApplyBatch begins from
// one published State and ends in the next.
type applier struct {
	f     *FSM
	state State  // the fields beside the table, as they become
	db    *table // reads; its own clone once there is a change
	write bool
	index uint64 // of the entry being applied
	sum   hash.Hash
	buf   []byte
	num   []byte // fold's, whose callers use buf
	// versions are those that were looked up since the last change, by rowID: the
	// records of an entry read much the same.
	versions map[string]Version
	entries  []auditlog.Entry
	leaves   []auditlog.Hash // of entries
	events   Events
}

func (f *FSM) begin() *applier {
	s := *f.current.Load()
	return &applier{f: f, state: s, db: s.db, sum: sha256.New()}
}

// writable clones the table at the first change: most entries make none. Every
// change to the table comes through here.
func (a *applier) writable() *table {
	clear(a.versions)
	if !a.write {
		a.db, a.write = a.f.db.clone(), true
	}
	return a.db
}

// finish keeps the changes and returns the next state.
func (a *applier) finish() *State {
	s := a.state
	if a.write {
		a.f.db, s.db = a.db, a.db.clone()
	}
	return &s
}

// entry applies one Raft entry. An error stops the machine.
func (a *applier) entry(l *raft.Log) (*Result, error) {
	if l.Type == raft.LogConfiguration {
		a.configuration(l.Data)
		return &Result{Index: l.Index}, nil
	}
	e, err := decodeEntry(l.Data)
	if err != nil {
		return nil, err
	}
	a.index = l.Index
	if err := a.compare(e.check); err != nil {
		return nil, err
	}
	a.state.advance(e.clock)
	a.state.index = l.Index

	a.sum.Reset()
	a.sum.Write(a.state.hash[:])
	a.fold(a.index, uint64(a.state.time))
	res := &Result{Index: l.Index}
	switch c := e.command.(type) {
	case []wireBatch:
		res.Batches = make([]BatchResult, len(c))
		for i := range c {
			res.Batches[i] = a.batch(&c[i])
		}
	case *fsmpb.RegisterNode:
		res.Registered = a.registerNode(c)
	case nil: // carries only a clock: a barrier
	}
	a.sum.Sum(a.state.hash[:0])
	if l.Index%StateCheckEvery == 0 {
		a.f.remember(check{index: l.Index, hash: a.state.hash})
	}
	return res, nil
}

// fold adds numbers to the rolling hash.
func (a *applier) fold(ns ...uint64) {
	for _, n := range ns {
		a.num = binary.BigEndian.AppendUint64(a.num[:0], n)
		a.sum.Write(a.num)
	}
}

// configuration follows the voters, whose clocks make a majority.
func (a *applier) configuration(data []byte) {
	var voters []string
	for _, s := range raft.DecodeConfiguration(data).Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, string(s.ID))
		}
	}
	slices.Sort(voters)
	a.state.voters = voters
}

// compare holds this node's hash against the leader's.
func (a *applier) compare(c *fsmpb.StateCheck) error {
	if c == nil {
		return nil
	}
	for _, own := range a.f.checks {
		if own.index == c.Index && !bytes.Equal(own.hash[:], c.Hash) {
			return fmt.Errorf("%w: at Raft index %d", ErrDiverged, c.Index)
		}
	}
	return nil
}

// batch applies one node's batch, once.
func (a *applier) batch(b *wireBatch) BatchResult {
	s := a.f.sessions[string(b.node)]
	if s == nil || s.incarnation != b.incarnation {
		return BatchResult{Status: BatchFenced, Index: a.index}
	}
	if b.watermark > s.watermark {
		s.watermark = b.watermark
	}
	if done, ok := s.batches[b.seq]; ok {
		return BatchResult{Status: BatchRepeated, Index: done.index, Verdicts: done.verdicts}
	}
	if b.seq < s.settledBelow {
		return BatchResult{Status: BatchFenced, Index: a.index}
	}
	a.entries = slices.Grow(a.entries, len(b.records))
	a.leaves = slices.Grow(a.leaves, len(b.records))
	verdicts := make([]Verdict, len(b.records))
	for i := range b.records {
		verdicts[i] = a.record(&b.records[i])
	}
	a.fold(b.incarnation, b.seq, uint64(len(verdicts)))
	a.sum.Write(verdictBytes(verdicts))
	s.batches[b.seq] = applied{index: a.index, verdicts: verdicts}
	s.settle(b.settledBelow)
	return BatchResult{Status: BatchApplied, Index: a.index, Verdicts: verdicts}
}

// record decides and, if everything that the record read still holds, makes its
// changes and its leaf of the audit tree: all of it or nothing.
func (a *applier) record(r *wireRecord) Verdict {
	if !validRecord(r) {
		return Invalid
	}
	if r.notBefore != 0 && a.state.time < r.notBefore {
		return Early
	}
	if r.notAfter != 0 && a.state.time >= r.notAfter {
		return Late
	}
	for _, read := range r.reads {
		if a.version(read.kind, read.id) != read.version {
			return Conflict
		}
	}
	if v := a.changes(r.changes); v != Accepted {
		return v
	}
	e := auditlog.Entry{
		Index:      a.state.frontier.Size(),
		RaftIndex:  a.index,
		Time:       a.state.time,
		RequestID:  [16]byte(r.requestID),
		Generation: r.generation,
		Salt:       [16]byte(r.salt),
		Commitment: auditlog.Hash(r.commitment),
		Body:       r.body,
	}
	leaf := e.LeafHash()
	a.entries, a.leaves = append(a.entries, e), append(a.leaves, leaf)
	a.sum.Write(a.leaves[len(a.leaves)-1][:])
	a.f.uses.note(r, use{time: a.state.time, requestID: e.RequestID, eventID: auditlog.EventID(leaf)})
	a.state.frontier.Append(leaf)
	if (e.Index+1)%auditlog.SegmentSize == 0 {
		// Appending within a shared backing array would show through older states.
		a.state.roots = append(slices.Clip(a.state.roots), a.state.frontier.SegmentRoot())
	}
	return Accepted
}

// version is versionOf, as the table stands now.
func (a *applier) version(kind fsmpb.Kind, id []byte) Version {
	a.buf = append(append(a.buf[:0], byte(kind)), id...)
	if v, ok := a.versions[string(a.buf)]; ok {
		return v
	}
	v := versionOf(a.db, kind, id)
	if a.versions == nil || len(a.versions) >= maxVersions {
		a.versions = make(map[string]Version)
	}
	a.versions[string(a.buf)] = v
	return v
}

const (
	maxReads   = 64
	maxChanges = 16
	maxUses    = 4
	// maxVersions bounds what an applier remembers of a table.
	maxVersions = 1024
)

func validRecord(r *wireRecord) bool {
	if len(r.requestID) != 16 || len(r.salt) != 16 || len(r.commitment) != auditlog.HashSize ||
		len(r.body) == 0 || len(r.body) > auditlog.MaxBody ||
		len(r.reads) > maxReads || len(r.changes) > maxChanges || len(r.uses) > maxUses {
		return false
	}
	for _, read := range r.reads {
		if _, known := fsmpb.Kind_name[int32(read.kind)]; !known || read.kind == fsmpb.Kind_KIND_UNSPECIFIED {
			return false
		}
	}
	return true
}

// registerNode opens a node's incarnation.
func (a *applier) registerNode(n *fsmpb.RegisterNode) bool {
	if n.Node == "" || len(n.Node) > 255 {
		return false
	}
	s := a.f.sessions[n.Node]
	if s != nil && n.Incarnation <= s.incarnation {
		return false
	}
	watermark := n.Watermark
	if s != nil {
		watermark = max(watermark, s.watermark)
	}
	a.f.sessions[n.Node] = &session{incarnation: n.Incarnation, watermark: watermark, batches: make(map[uint64]applied)}
	a.put(fsmpb.Kind_KIND_NODE, []byte(n.Node), proto.CloneOf(n))
	return true
}

// Watermark is the newest Raft index that the cluster knows node's disk to hold,
// and whether it knows the node at all. It must be called on the apply goroutine.
func (f *FSM) Watermark(node string) (uint64, bool) {
	s := f.sessions[node]
	if s == nil {
		return 0, false
	}
	return s.watermark, true
}
