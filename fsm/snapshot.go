package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"slices"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/clustertime"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// A snapshot is the magic and then length-prefixed SnapshotItems, compressed with
// zstd. The same state always gives the same bytes. The snapshots of two nodes at the
// same index differ at most in what the nodes observed of unsigned clocks, which is
// an item of its own.
const (
	snapshotMagic   = "conclave snapshot\x00\x01"
	maxSnapshotItem = 1 << 20
	// maxHeader bounds the header, which has a hash of 32 bytes for each full
	// segment of the audit log.
	maxHeader = 128 << 20
)

// Snapshot implements raft.FSM. It copies only the sessions, checks and uses.
// States are immutable, so they need no copy. Uses are sorted later, as nothing is
// applied while this runs.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.fault != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, f.fault)
	}
	s := &snapshot{state: f.Current(), audit: f.cfg.Audit, checks: slices.Clone(f.checks), uses: f.uses.all()}
	if c, _ := s.state.Cluster(); c != nil {
		s.attest = f.attest(s.state)
	}
	for node, session := range f.sessions {
		s.sessions = append(s.sessions, session.proto(node))
	}
	slices.SortFunc(s.sessions, func(a, b *fsmpb.Session) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return s, nil
}

type snapshot struct {
	state    *State
	sessions []*fsmpb.Session
	checks   []check
	uses     []keyUse
	audit    AuditLog
	attest   func(digest [32]byte) (*fsmpb.Attestation, error) // nil before init
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

func (s *snapshot) write(w io.Writer) error {
	// One goroutine and a fixed level, so that the bytes do not depend on the machine.
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	out := &snapshotWriter{w: bufio.NewWriterSize(z, 64<<10)}
	out.raw([]byte(snapshotMagic))
	digest := s.state.writeTo(out)
	for _, p := range s.sessions {
		out.item(p)
	}
	slices.SortFunc(s.uses, keyUse.compare)
	for _, u := range s.uses {
		out.item(u.proto(u.key))
	}
	checks := &fsmpb.StateChecks{}
	for _, c := range s.checks {
		checks.Checks = append(checks.Checks, &fsmpb.StateCheck{Index: c.index, Hash: c.hash[:]})
	}
	out.item(checks)
	if o := s.state.evidence.Observation(); o != nil {
		out.item(o)
	}
	if s.attest != nil && out.err == nil {
		a, err := s.attest(digest)
		if err != nil {
			return errors.Join(fmt.Errorf("attesting the state at Raft index %d: %w", s.state.index, err), z.Close())
		}
		out.item(a)
	}
	out.item(&fsmpb.SnapshotEnd{Items: out.items})
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return errors.Join(out.err, z.Close())
}

// writeTo writes the header and the rows of the state. It returns the digest of
// what it wrote, which is the same on all nodes for the same index.
func (s *State) writeTo(out *snapshotWriter) [32]byte {
	out.sum = sha256.New()
	out.item(headerOf(s))
	for _, r := range snapshotRows {
		for m := range scan[proto.Message](s, r.kind, nil, nil) {
			out.field(r.number, m)
		}
	}
	var digest [32]byte
	out.sum.Sum(digest[:0])
	out.sum = nil
	return digest
}

// headerOf returns the first item of a snapshot.
func headerOf(s *State) *fsmpb.SnapshotHeader {
	frontier, _ := s.frontier.MarshalBinary() // never fails
	h := &fsmpb.SnapshotHeader{
		Schema: wire.SchemaMax, Index: s.index, Time: s.time, StateHash: s.hash[:], AuditFrontier: frontier,
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
func (s *State) Digest() [32]byte { return s.writeTo(&snapshotWriter{w: bufio.NewWriter(io.Discard)}) }

type snapshotWriter struct {
	w     *bufio.Writer
	sum   hash.Hash // of the attested items, while those are written
	head  []byte
	buf   []byte
	items uint64
	err   error
}

func (w *snapshotWriter) raw(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
	if w.sum != nil {
		w.sum.Write(b)
	}
}

// item writes the SnapshotItem that holds m.
func (w *snapshotWriter) item(m proto.Message) {
	name := m.ProtoReflect().Descriptor().FullName()
	field, ok := itemFields[name]
	if !ok {
		panic(fmt.Sprintf("%s is not part of a snapshot", name))
	}
	w.field(field, m)
}

// field writes a SnapshotItem that holds m in the given field: the tag of the field, the
// length of m, and m.
func (w *snapshotWriter) field(field protowire.Number, m proto.Message) {
	w.buf = wire.Marshal(w.buf[:0], m)
	w.head = protowire.AppendTag(append(w.head[:0], 0, 0, 0, 0), field, protowire.BytesType)
	w.head = protowire.AppendVarint(w.head, uint64(len(w.buf)))
	binary.BigEndian.PutUint32(w.head, uint32(len(w.head)-4+len(w.buf)))
	w.raw(w.head)
	w.raw(w.buf)
	if w.items++; w.items%yieldEvery == 0 {
		runtime.Gosched()
	}
}

// yieldEvery is how many items are written before the goroutine yields, which is every
// millisecond or two. A snapshot can be hundreds of thousands of items, and nobody waits
// for it. Left alone, the scheduler would let it run for 10 ms at a time while requests
// wait. A goroutine that yields goes behind all that are ready to run.
const yieldEvery = 128

// itemFields are the fields of SnapshotItem, by the message that each holds.
var itemFields = func() map[protoreflect.FullName]protowire.Number {
	fields := (&fsmpb.SnapshotItem{}).ProtoReflect().Descriptor().Fields()
	numbers := make(map[protoreflect.FullName]protowire.Number, fields.Len())
	for i := range fields.Len() {
		numbers[fields.Get(i).Message().FullName()] = fields.Get(i).Number()
	}
	return numbers
}()

// Restore implements raft.FSM. Nothing changes unless the whole snapshot can be
// read: it is decoded beside the current state and then replaces it.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	n, err := readSnapshot(r)
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
	f.uses.replace(n.uses)
	n.state.uses = f.uses
	f.recent.clear()
	f.recent.add([]*State{&n.state})
	f.current.Store(&n.state)
	if f.cfg.OnApply != nil {
		f.cfg.OnApply(&n.state, Events{Restored: true})
	}
	return nil
}

type restored struct {
	state    State
	db       *table
	texts    *texts
	sessions map[string]*session
	checks   []check
	uses     []*fsmpb.KeyUse
	sum      hash.Hash // of the items that are attested
	account  []byte    // encoded as at the beginning of ids; nil until the cluster's record was read
	attested *fsmpb.Attestation
}

func newRestored() *restored {
	return &restored{db: newTable(), texts: newTexts(), sessions: make(map[string]*session), sum: sha256.New()}
}

// openSnapshot opens a snapshot for reading at its first item.
func openSnapshot(r io.Reader) (in *bufio.Reader, close func(), err error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, nil, err
	}
	in = bufio.NewReaderSize(z, 64<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != snapshotMagic {
		z.Close()
		return nil, nil, fmt.Errorf("%w: not a snapshot, or damaged", ErrUnreadable)
	}
	return in, z.Close, nil
}

func readSnapshot(r io.Reader) (*restored, error) {
	in, close, err := openSnapshot(r)
	if err != nil {
		return nil, err
	}
	defer close()
	n := newRestored()
	limit := maxHeader
	buf := make([]byte, 64<<10)
	for items := uint64(0); ; items++ {
		item, raw, err := readItem(in, limit, buf)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", items, err)
		}
		if end := item.GetEnd(); end != nil {
			if end.Items != items {
				return nil, fmt.Errorf("%w: %d items of %d", ErrUnreadable, items, end.Items)
			}
			if _, err := in.ReadByte(); err != io.EOF {
				return nil, fmt.Errorf("%w: data after the end", ErrUnreadable)
			}
			return n, nil
		}
		if (item.GetHeader() != nil) != (items == 0) {
			return nil, fmt.Errorf("%w: header out of place", ErrUnreadable)
		}
		if err := n.add(item); err != nil {
			return nil, fmt.Errorf("item %d: %w", items, err)
		}
		if attests(item) {
			var size [4]byte
			binary.BigEndian.PutUint32(size[:], uint32(len(raw)))
			n.sum.Write(size[:])
			n.sum.Write(raw)
		}
		limit = maxSnapshotItem
	}
}

// readItem reads an item of at most limit bytes, using buf if the item fits. The
// bytes that it returns are valid until the next call with that buffer.
func readItem(in io.Reader, limit int, buf []byte) (*fsmpb.SnapshotItem, []byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return nil, nil, fmt.Errorf("%w: cut short: %w", ErrUnreadable, err)
	}
	size := binary.BigEndian.Uint32(n[:])
	if int64(size) > int64(limit) {
		return nil, nil, fmt.Errorf("%w: %d bytes", ErrUnreadable, size)
	}
	if int64(size) > int64(len(buf)) {
		buf = make([]byte, size)
	}
	b := buf[:size]
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, nil, fmt.Errorf("%w: cut short: %w", ErrUnreadable, err)
	}
	var item fsmpb.SnapshotItem
	if err := proto.Unmarshal(b, &item); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err := wire.Known(item.ProtoReflect()); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return &item, b, nil
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
		n.sessions[m.Session.Node] = sessionOf(m.Session)
		return nil
	case *fsmpb.SnapshotItem_KeyUse:
		if k, ok := owning(m.KeyUse); !ok || !n.ours(k.Bytes()) {
			return fmt.Errorf("%w: use of a key with a wrong id", ErrUnreadable)
		}
		n.uses = append(n.uses, m.KeyUse)
		return nil
	case *fsmpb.SnapshotItem_StateChecks:
		return n.stateChecks(m.StateChecks)
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
	if h.Schema < wire.SchemaMin || h.Schema > wire.SchemaMax {
		return fmt.Errorf("%w: schema %d, this binary knows %d to %d", ErrUnreadable, h.Schema, wire.SchemaMin, wire.SchemaMax)
	}
	if err := wire.CheckGroup(h.Group); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if h.Level < wire.SchemaMin || h.Level > wire.SchemaMax {
		return fmt.Errorf("%w: level %d, this binary knows %d to %d", ErrUnreadable, h.Level, wire.SchemaMin, wire.SchemaMax)
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

func (n *restored) stateChecks(m *fsmpb.StateChecks) error {
	for _, c := range m.Checks {
		if len(c.Hash) != len(check{}.hash) {
			return fmt.Errorf("%w: state hash", ErrUnreadable)
		}
		n.checks = append(n.checks, check{index: c.Index, hash: [32]byte(c.Hash)})
	}
	return nil
}

// ours reports whether an id begins with the account of the cluster. The cluster's
// record comes first in a snapshot, so the account is known.
func (n *restored) ours(id []byte) bool { return n.account != nil && bytes.HasPrefix(id, n.account) }

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
	n.db.insert(n.texts.newObject(n.db, r.kind, id, version, m))
	return nil
}
