package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/clustertime"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/session"
	"github.com/conclavekms/conclave/fsm/snapfile"
	"github.com/conclavekms/conclave/fsm/statehash"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The snapshots of two nodes at the same index differ at most in what the nodes observed of
// unsigned clocks, which is an item of its own. Package snapfile has their format.

// Snapshot implements raft.FSM. It copies only the sessions, checks and uses.
// States are immutable, so they need no copy. Uses are sorted later, as nothing is
// applied while this runs.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.fault != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, f.fault)
	}
	s := &snapshot{state: f.Current(), audit: f.cfg.Audit, sessions: f.sessions.Proto(), checks: f.checks.Proto(), uses: f.uses.all(), credentials: f.uses.allOfCredentials()}
	if c, _ := s.state.Cluster(); c != nil {
		s.attest = f.attest(s.state)
	}
	return s, nil
}

type snapshot struct {
	state       *State
	sessions    []*fsmpb.Session
	checks      *fsmpb.StateChecks
	uses        []keyUse
	credentials []*fsmpb.CredentialUse
	audit       AuditLog
	attest      func(digest [32]byte) (*fsmpb.Attestation, error) // nil before init
}

// Index is the Raft index of the newest command that the snapshot covers.
func (s *snapshot) Index() uint64 { return s.state.index }

// Persist implements raft.FSMSnapshot. The audit entries that the snapshot
// covers are made durable before it completes, because Raft may then drop the
// only other copy that this node has.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.write(sink)
	if err == nil {
		err = s.audit.Sync()
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

func (s *snapshot) write(to io.Writer) error {
	out, err := snapfile.NewWriter(to)
	if err != nil {
		return err
	}
	writeState(out, s.state)
	digest := out.Digest()
	for _, p := range s.sessions {
		out.Item(p)
	}
	slices.SortFunc(s.uses, keyUse.compare)
	for _, u := range s.uses {
		out.Item(u.proto(u.key))
	}
	slices.SortFunc(s.credentials, compareCredentialUses)
	for _, c := range s.credentials {
		out.Item(c)
	}
	out.Item(s.checks)
	if o := s.state.evidence.Observation(); o != nil {
		out.Item(o)
	}
	if s.attest != nil && out.Err() == nil {
		a, err := s.attest(digest)
		if err != nil {
			return out.Abandon(fmt.Errorf("attesting the state at Raft index %d: %w", s.state.index, err))
		}
		out.Item(a)
	}
	return out.Close()
}

// writeState writes the header and the rows of a state: the attested items, which are the
// same on all nodes for the same index.
func writeState(out *snapfile.Writer, s *State) {
	out.Item(headerOf(s))
	for _, r := range snapshotRows {
		for m := range scan[proto.Message](s, r.kind, nil, nil) {
			out.Field(r.number, m)
		}
	}
}

// headerOf returns the first item of a snapshot.
func headerOf(s *State) *fsmpb.SnapshotHeader {
	frontier, _ := s.frontier.MarshalBinary() // never fails
	h := &fsmpb.SnapshotHeader{
		Schema: s.level, Index: s.index, Time: s.time, StateHash: s.hash[:], AuditFrontier: frontier,
		Level: s.level, Voters: s.voters, ConfirmedTime: s.confirmed, Group: wire.Group,
	}
	s.evidence.AddTo(h)
	for _, r := range s.roots {
		h.SegmentRoots = append(h.SegmentRoots, r[:])
	}
	return h
}

// Digest returns the digest of the state's header and rows, which an
// [fsmpb.Attestation] signs. It takes about as long as writing a snapshot.
func (s *State) Digest() [32]byte {
	return snapfile.Digest(func(out *snapfile.Writer) { writeState(out, s) })
}

// Restore implements raft.FSM. Nothing changes unless the whole snapshot can be
// read: it is decoded beside the current state and then replaces it.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	n, err := readSnapshot(r, f.Current().known)
	if err == nil {
		err = n.verify(f.Current())
	}
	if err != nil {
		return fmt.Errorf("restoring a snapshot: %w", err)
	}
	if err := f.cfg.Audit.Restore(n.state.frontier, n.state.roots); err != nil {
		return fmt.Errorf("restoring a snapshot: audit log: %w", err)
	}
	f.restored = true
	f.db, f.texts, f.sessions, f.checks = n.db, n.texts, n.sessions, n.checks
	n.state.db = n.db.clone()
	f.uses.replace(n.uses, n.credentials)
	n.state.uses = f.uses
	f.recent.Replace(&n.state)
	f.current.Store(&n.state)
	if f.cfg.OnApply != nil {
		f.cfg.OnApply(&n.state, Events{Restored: true})
	}
	return nil
}

type restored struct {
	state       State
	db          *table
	texts       *intern.Texts
	sessions    session.Sessions
	checks      statehash.Checks
	uses        []*fsmpb.KeyUse
	credentials []*fsmpb.CredentialUse
	account     []byte           // encoded as at the beginning of ids; nil until the cluster's record was read
	others      map[Account]bool // other accounts that objects belong to
	digest      [32]byte         // that attested is to sign
	attested    *fsmpb.Attestation
}

func newRestored() *restored {
	return &restored{state: State{known: level.Known}, db: newTable(), texts: intern.NewTexts(), sessions: session.None(), others: make(map[Account]bool)}
}

// readSnapshot reads a snapshot as a release does that knows the given schemas.
func readSnapshot(r io.Reader, known level.Range) (*restored, error) {
	in, err := snapfile.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	n := newRestored()
	n.state.known = known
	for items := 0; ; items++ {
		item, err := in.Next()
		if err == io.EOF {
			if a, ok := n.orphan(); ok {
				return nil, fmt.Errorf("%w: objects of the account %v, which does not exist", ErrUnreadable, a)
			}
			n.digest = in.Digest()
			return n, nil
		}
		if err != nil {
			return nil, err
		}
		if err := n.add(item); err != nil {
			return nil, fmt.Errorf("item %d: %w", items, err)
		}
	}
}

// add adds one item.
func (n *restored) add(item *fsmpb.SnapshotItem) error {
	if r, m := rowOfItem(item); r != nil {
		return n.insert(r, m)
	}
	switch m := item.Item.(type) {
	case *fsmpb.SnapshotItem_Header:
		return n.header(m.Header)
	case *fsmpb.SnapshotItem_Session:
		n.sessions.Add(m.Session)
		return nil
	case *fsmpb.SnapshotItem_KeyUse:
		if k, ok := owning(m.KeyUse); !ok || !n.ours(k.Bytes()) {
			return fmt.Errorf("%w: use of a key with a wrong id", ErrUnreadable)
		}
		n.uses = append(n.uses, m.KeyUse)
		return nil
	case *fsmpb.SnapshotItem_CredentialUse:
		if id, ok := ofAccount(CredentialID, m.CredentialUse); !ok || !n.ours(id) {
			return fmt.Errorf("%w: use of a credential with a wrong id", ErrUnreadable)
		}
		n.credentials = append(n.credentials, m.CredentialUse)
		return nil
	case *fsmpb.SnapshotItem_StateChecks:
		return n.checks.Add(m.StateChecks)
	case *fsmpb.SnapshotItem_Observation:
		if !n.state.evidence.TakeObservation(m.Observation) {
			return fmt.Errorf("%w: observed time", ErrUnreadable)
		}
		return nil
	case *fsmpb.SnapshotItem_Attestation:
		if n.attested != nil {
			return fmt.Errorf("%w: two attestations", ErrUnreadable)
		}
		n.attested = m.Attestation
		return nil
	}
	return fmt.Errorf("%w: empty item", ErrUnreadable)
}

func (n *restored) header(h *fsmpb.SnapshotHeader) error {
	if err := n.state.readable(h.Schema); err != nil {
		return err
	}
	if err := wire.CheckGroup(h.Group); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if h.Level != h.Schema {
		return fmt.Errorf("%w: schema %d at level %d", ErrUnreadable, h.Schema, h.Level)
	}
	if len(h.StateHash) != len(n.state.hash) {
		return fmt.Errorf("%w: state hash", ErrUnreadable)
	}
	n.state.index, n.state.time, n.state.level = h.Index, h.Time, h.Level
	n.state.voters, n.state.confirmed = h.Voters, h.ConfirmedTime
	n.state.evidence = clustertime.FromHeader(h)
	copy(n.state.hash[:], h.StateHash)
	if err := n.state.frontier.UnmarshalBinary(h.AuditFrontier); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if uint64(len(h.SegmentRoots)) != n.state.frontier.Size()/auditlog.SegmentSize {
		return fmt.Errorf("%w: %d segment roots for %d audit records", ErrUnreadable, len(h.SegmentRoots), n.state.frontier.Size())
	}
	for _, r := range h.SegmentRoots {
		if len(r) != auditlog.HashSize {
			return fmt.Errorf("%w: segment root", ErrUnreadable)
		}
		n.state.roots = append(n.state.roots, auditlog.Hash(r))
	}
	return nil
}

// ours reports whether an id begins with an account that can exist. The cluster's record
// comes first in a snapshot, so its account is known; the others come later and are looked
// for at the end.
func (n *restored) ours(id []byte) bool {
	if n.account == nil || bytes.HasPrefix(id, n.account) {
		return n.account != nil
	}
	a, _, ok := CutAccount(id)
	if ok {
		n.others[a] = true
	}
	return ok
}

// orphan returns an account that objects belong to and that does not exist.
func (n *restored) orphan() (Account, bool) {
	for _, a := range slices.Sorted(maps.Keys(n.others)) {
		if lookup(n.db, fsmpb.Kind_KIND_ACCOUNT, AccountID(a)) == nil {
			return a, true
		}
	}
	return 0, false
}

func (n *restored) insert(r *row, m proto.Message) error {
	id, valid := r.id(m)
	if !valid || !r.whole && !n.ours(id) {
		return fmt.Errorf("%w: %v with a wrong id", ErrUnreadable, r.kind)
	}
	version := *r.version(m)
	if version == 0 {
		return fmt.Errorf("%w: %v without a version", ErrUnreadable, r.kind)
	}
	if c, ok := m.(*fsmpb.Cluster); ok {
		n.account = accountOf(c)
	}
	n.db.insert(newObject(n.texts, n.db, r.kind, id, version, m))
	return nil
}
