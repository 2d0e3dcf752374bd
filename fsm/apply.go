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
	var e fsmpb.Entry
	if err := decodeEntry(l.Data, &e); err != nil {
		return nil, err
	}
	a.index = l.Index
	if err := a.compare(e.StateCheck); err != nil {
		return nil, err
	}
	a.state.advance(e.Clock)
	a.state.index = l.Index

	a.sum.Reset()
	a.sum.Write(a.state.hash[:])
	a.fold(a.index, uint64(a.state.time))
	res := &Result{Index: l.Index}
	switch c := e.Command.(type) {
	case *fsmpb.Entry_Batches:
		res.Batches = make([]BatchResult, len(c.Batches.Batches))
		for i, b := range c.Batches.Batches {
			res.Batches[i] = a.batch(b)
		}
	case *fsmpb.Entry_RegisterNode:
		res.Registered = a.registerNode(c.RegisterNode)
	case nil: // carries only a clock: a barrier
	default:
		return nil, fmt.Errorf("%w: command %T", ErrUnreadable, c)
	}
	a.sum.Sum(a.state.hash[:0])
	if l.Index%StateCheckEvery == 0 {
		a.f.remember(check{index: l.Index, hash: a.state.hash})
	}
	return res, nil
}

// fold adds numbers to the rolling hash.
func (a *applier) fold(ns ...uint64) {
	var b [8]byte
	for _, n := range ns {
		binary.BigEndian.PutUint64(b[:], n)
		a.sum.Write(b[:])
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
func (a *applier) batch(b *fsmpb.Batch) BatchResult {
	s := a.f.sessions[b.Node]
	if s == nil || s.incarnation != b.Incarnation {
		return BatchResult{Status: BatchFenced, Index: a.index}
	}
	if b.Watermark > s.watermark {
		s.watermark = b.Watermark
	}
	if done, ok := s.batches[b.Seq]; ok {
		return BatchResult{Status: BatchRepeated, Index: done.index, Verdicts: done.verdicts}
	}
	if b.Seq < s.settledBelow {
		return BatchResult{Status: BatchFenced, Index: a.index}
	}
	verdicts := make([]Verdict, len(b.Records))
	for i, r := range b.Records {
		verdicts[i] = a.record(r)
	}
	a.fold(b.Incarnation, b.Seq, uint64(len(verdicts)))
	a.sum.Write(verdictBytes(verdicts))
	s.batches[b.Seq] = applied{index: a.index, verdicts: verdicts}
	s.settle(b.SettledBelow)
	return BatchResult{Status: BatchApplied, Index: a.index, Verdicts: verdicts}
}

// record decides and, if everything that the record read still holds, makes its
// changes and its leaf of the audit tree: all of it or nothing.
func (a *applier) record(r *fsmpb.Record) Verdict {
	if !validRecord(r) {
		return Invalid
	}
	if r.NotBefore != 0 && a.state.time < r.NotBefore {
		return Early
	}
	if r.NotAfter != 0 && a.state.time >= r.NotAfter {
		return Late
	}
	for _, read := range r.Reads {
		if a.version(read.Kind, read.Id) != read.Version {
			return Conflict
		}
	}
	if v := a.changes(r.Changes); v != Accepted {
		return v
	}
	e := auditlog.Entry{
		Index:      a.state.frontier.Size(),
		RaftIndex:  a.index,
		Time:       a.state.time,
		RequestID:  [16]byte(r.RequestId),
		Generation: r.Generation,
		Salt:       [16]byte(r.Salt),
		Commitment: auditlog.Hash(r.Commitment),
		Body:       r.Body,
	}
	leaf := e.LeafHash()
	a.sum.Write(leaf[:])
	a.f.uses.note(r, use{time: a.state.time, requestID: e.RequestID, eventID: auditlog.EventID(leaf)})
	a.state.frontier.Append(leaf)
	if a.state.frontier.Size()%auditlog.SegmentSize == 0 {
		// Appending within a shared backing array would show through older states.
		a.state.roots = append(slices.Clip(a.state.roots), a.state.frontier.SegmentRoot())
	}
	a.entries, a.leaves = append(a.entries, e), append(a.leaves, leaf)
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

func validRecord(r *fsmpb.Record) bool {
	if len(r.RequestId) != 16 || len(r.Salt) != 16 || len(r.Commitment) != auditlog.HashSize ||
		len(r.Body) == 0 || len(r.Body) > auditlog.MaxBody ||
		len(r.Reads) > maxReads || len(r.Changes) > maxChanges || len(r.Uses) > maxUses {
		return false
	}
	for _, read := range r.Reads {
		if _, known := fsmpb.Kind_name[int32(read.Kind)]; !known || read.Kind == fsmpb.Kind_KIND_UNSPECIFIED {
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
