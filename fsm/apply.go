package fsm

import (
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/clustertime"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/session"
	"github.com/conclavekms/conclave/fsm/statehash"
	"github.com/conclavekms/conclave/fsm/wire"
)

// applier holds the state while entries change it: ApplyBatch begins it from
// one published State and ends it with the next.
type applier struct {
	f      *FSM
	state  State  // the fields beside the table, as changed so far
	db     *table // reads; its own clone once there is a change
	write  bool
	index  uint64 // of the entry being applied
	schema uint32 // of the entry being applied
	hash   statehash.Rolling
	buf    []byte // version's
	// versions caches the versions looked up since the last change, by rowID: the
	// records of an entry read much the same objects.
	versions map[string]Version
	// held is the read set of the newest record whose read set held, until there is a
	// change. Records by one caller with one key read the same objects in the same order.
	held    []wire.Read
	entries []auditlog.Entry
	leaves  []auditlog.Hash // of entries
	events  Events
	account []byte   // of the cluster, encoded as at the beginning of ids; nil before init
	wall    int64    // the leader's clock in the entry being applied
	node    string   // the proposer of the batch being applied
	edits   []edit   // of the record being applied
	broken  string   // the rule that it breaks
	between []*State // after each entry but the last
}

func (f *FSM) begin() *applier {
	s := *f.current.Load()
	return &applier{f: f, state: s, db: s.db, hash: statehash.NewRolling()}
}

// writable returns a table that may be changed, cloning it at the first change,
// since most entries make none. Every change to the table goes through it.
func (a *applier) writable() *table {
	clear(a.versions)
	a.held = nil
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

// keep remembers the state as it is between two entries.
func (a *applier) keep() {
	s := a.state
	if a.write {
		s.db = a.db.clone()
	}
	a.between = append(a.between, &s)
}

// entry applies one Raft entry. An error stops the machine.
func (a *applier) entry(l *raft.Log) (*Result, error) {
	if l.Type == raft.LogConfiguration {
		a.state.voters = votersOf(l.Data)
		// Set for every entry, so that a snapshot's index is that of the newest
		// entry it covers.
		a.state.index = l.Index
		return &Result{Index: l.Index}, nil
	}
	a.index = l.Index
	c := a.cluster()
	a.account = accountOf(c)
	e, err := wire.Decode(l.Data)
	if err == nil {
		err = a.state.readable(e.Schema)
	}
	if err != nil {
		if c == nil || a.f.verified.Encoded(c, l.Data) {
			return nil, err
		}
		// A leader can put anything into the log. An entry that no unsealed node signed has
		// no effect, so one that cannot be read does not mean that this binary is too old.
		e = &wire.Entry{}
	}
	signed := c != nil && a.f.verified.Entry(c, e)
	if signed {
		// Without the signature, any leader could stop all nodes with a wrong hash.
		if err := a.f.checks.Compare(e.Check); err != nil {
			return nil, err
		}
	}
	a.wall, a.schema = e.Clock.GetWall(), e.Schema
	a.state.index = l.Index
	trust := clustertime.Trust{Voters: a.state.voters, Confirmed: a.state.confirmed}
	switch {
	case c == nil:
		a.state.time = a.state.evidence.Begin(e.Clock, trust)
	case signed:
		a.state.time = a.state.evidence.Signed(a.state.time, e.Clock, trust)
	default:
		a.state.evidence.Unsigned(e.Clock, trust)
		// The state hash leaves the entry out: a leader may give other nodes a
		// different entry at this index, and neither has an effect.
		return unsignedResult(e, l.Index), nil
	}

	a.hash.Begin(a.state.hash)
	a.hash.Numbers(a.index, uint64(a.state.time))
	res := &Result{Index: l.Index}
	switch c := e.Command.(type) {
	case []wire.Batch:
		res.Batches = make([]BatchResult, len(c))
		for i := range c {
			res.Batches[i] = a.batch(&c[i], signed)
		}
	case *fsmpb.RegisterNode:
		res.Registered = a.registerNode(c)
	case nil: // carries only a clock: a barrier
	}
	a.hash.End(&a.state.hash)
	a.f.checks.Note(l.Index, a.state.hash)
	return res, nil
}

// unsignedResult is the answer to an entry that had no effect because nobody signed it.
func unsignedResult(e *wire.Entry, index uint64) *Result {
	res := &Result{Index: index}
	switch c := e.Command.(type) {
	case []wire.Batch:
		res.Batches = make([]BatchResult, len(c))
		for i := range c {
			res.Batches[i] = BatchResult{Status: BatchUnsigned, Index: index}
		}
	case *fsmpb.RegisterNode:
		res.Unsigned = true
	}
	return res
}

// cluster returns the cluster's record, or nil before init.
func (a *applier) cluster() *fsmpb.Cluster {
	if o := lookup(a.db, fsmpb.Kind_KIND_CLUSTER, nil); o != nil {
		return o.value.(*fsmpb.Cluster)
	}
	return nil
}

// votersOf returns the voters of a Raft configuration, a majority of whose
// clocks can move cluster time.
func votersOf(data []byte) (voters []string) {
	for _, s := range raft.DecodeConfiguration(data).Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, string(s.ID))
		}
	}
	slices.Sort(voters)
	return voters
}

// batch applies one node's batch, once. A batch that no unsealed node signed can
// only initialise the cluster.
func (a *applier) batch(b *wire.Batch, signed bool) BatchResult {
	if !signed && (a.cluster() != nil || !initialises(b)) {
		return BatchResult{Status: BatchUnsigned, Index: a.index}
	}
	switch standing, was := a.f.sessions.Find(b); standing {
	case session.Fenced:
		return BatchResult{Status: BatchFenced, Index: a.index}
	case session.Repeated:
		return BatchResult{Status: BatchRepeated, Index: was.Index, Verdicts: Verdicts(was.Verdicts), First: was.First}
	}
	a.entries = slices.Grow(a.entries, len(b.Records))
	a.leaves = slices.Grow(a.leaves, len(b.Records))
	verdicts, first := make([]Verdict, len(b.Records)), a.state.frontier.Size()
	a.node = string(b.Node)
	for i := range b.Records {
		if verdicts[i] = a.record(&b.Records[i]); verdicts[i] == Invalid {
			a.refused(&b.Records[i])
		}
	}
	a.hash.Numbers(b.Incarnation, b.Seq, uint64(len(verdicts)))
	answer := session.Answer{Index: a.index, Verdicts: verdictBytes(verdicts)}
	a.hash.Bytes(answer.Verdicts)
	if a.state.level >= firstRecordLevel {
		answer.First = &first
	}
	a.f.sessions.Applied(b, answer, level.LimitsAt(a.state.level).Unsettled)
	return BatchResult{Status: BatchApplied, Index: a.index, Verdicts: verdicts, First: &first}
}

// firstRecordLevel is the feature level from which sessions remember where a batch's records
// are in the audit log.
const firstRecordLevel = 2

// initialises reports whether a batch is a barrier, without a record, or consists
// of the one record that initialises a cluster: the cluster's record and the
// credentials of the account's root user. Neither is signed, as until then there
// is no key to sign with and nothing to protect.
func initialises(b *wire.Batch) bool {
	if len(b.Records) == 0 {
		return true
	}
	if len(b.Records) > 1 {
		return false
	}
	for i, c := range b.Records[0].Changes {
		does := changeOf(c)
		if does == nil || does.row == nil || does.deletes || does.row.kind != fsmpb.Kind_KIND_CLUSTER && (i == 0 || !does.row.atInit) {
			return false
		}
	}
	return len(b.Records[0].Changes) > 0
}

// record decides about a record. If everything that it read still holds, its changes are
// made and its leaf is added to the audit tree; otherwise nothing happens.
func (a *applier) record(r *wire.Record) Verdict {
	if !validRecord(r, level.LimitsAt(a.state.level)) {
		a.broken = "the record is malformed"
		return Invalid
	}
	if err := level.Allows(a.state.level, r.Levels().Needed); err != nil {
		a.broken = err.Error()
		return Invalid
	}
	if r.NotBefore != 0 && a.state.time < r.NotBefore {
		return Early
	}
	if r.NotAfter != 0 && a.state.time >= r.NotAfter {
		return Late
	}
	if a.account == nil {
		a.account = accountToBe(r)
		// If the record initialised it. What held for an account to be holds no longer.
		defer func() { a.account, a.held = accountOf(a.cluster()), nil }()
	}
	for i := range r.Reads {
		read := &r.Reads[i]
		if read.Kind == fsmpb.Kind_KIND_KEY_USE {
			if a.f.uses.version(read.ID) != read.Version {
				return Conflict
			}
			continue
		}
		if i < len(a.held) && a.held[i].Equal(read) {
			continue
		}
		if read.Version != 0 && a.foreign(read.Kind, read.ID) {
			a.broken = "it names an account that does not exist"
			return Invalid
		}
		if a.version(read.Kind, read.ID) != read.Version {
			return Conflict
		}
	}
	a.held = r.Reads
	if v := a.changes(r); v != Accepted {
		return v
	}
	e := auditlog.Entry{
		Index:      a.state.frontier.Size(),
		RaftIndex:  a.index,
		Time:       a.state.time,
		RequestID:  [16]byte(r.RequestID),
		Generation: r.Generation,
		Salt:       [16]byte(r.Salt),
		Commitment: auditlog.Hash(r.Commitment),
		Body:       r.Body,
	}
	leaf := e.LeafHash()
	a.entries, a.leaves = append(a.entries, e), append(a.leaves, leaf)
	a.hash.Bytes(a.leaves[len(a.leaves)-1][:])
	a.f.uses.note(a.db, r, use{time: a.state.time, requestID: e.RequestID, eventID: auditlog.EventID(leaf)})
	a.state.frontier.Append(leaf)
	if (e.Index+1)%auditlog.SegmentSize == 0 {
		// Older states share the backing array, which must not be appended to.
		a.state.roots = append(slices.Clip(a.state.roots), a.state.frontier.SegmentRoot())
	}
	return Accepted
}

// refused adds a record that broke a rule to the events.
func (a *applier) refused(r *wire.Record) {
	refusal := Refusal{Node: a.node, Rule: a.broken}
	copy(refusal.RequestID[:], r.RequestID)
	a.events.Refused = append(a.events.Refused, refusal)
}

// version returns the current version of an object, from the cache where possible.
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

// maxVersions bounds the cache of versions.
const maxVersions = 1024

func validRecord(r *wire.Record, most *level.Limits) bool {
	if len(r.RequestID) != 16 || len(r.Salt) != 16 || len(r.Commitment) != auditlog.HashSize ||
		len(r.Body) == 0 || len(r.Body) > most.Body ||
		len(r.Reads) > most.Reads || len(r.Changes) > most.Changes || len(r.Uses) > most.Uses {
		return false
	}
	for _, read := range r.Reads {
		if rowOf(read.Kind) == nil && read.Kind != fsmpb.Kind_KIND_KEY_USE {
			return false
		}
	}
	return true
}

// registerNode begins a node's incarnation.
func (a *applier) registerNode(n *fsmpb.RegisterNode) bool {
	if !registry[fsmpb.Kind_KIND_NODE].named(n) || !a.f.sessions.Register(n) {
		return false
	}
	a.put(fsmpb.Kind_KIND_NODE, []byte(n.Node), proto.CloneOf(n))
	return true
}

// Watermark returns the newest Raft index that the node's disk is known to hold,
// and whether the node is known at all. It must be called on the apply goroutine.
func (f *FSM) Watermark(node string) (uint64, bool) { return f.sessions.Watermark(node) }
