package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// A snapshot is zstd over: the magic, then length-prefixed SnapshotItems. The
// same state always gives the same bytes.
const (
	snapshotMagic   = "conclave snapshot\x00\x01"
	maxSnapshotItem = 1 << 20
	// maxSegmentRoots bounds the header: 2^31 sealed segments are 10^14 records.
	maxHeader = 128 << 20
)

// snapshotKinds is the order of the tables in a snapshot.
var snapshotKinds = []fsmpb.Kind{
	fsmpb.Kind_KIND_CLUSTER, fsmpb.Kind_KIND_KEY, fsmpb.Kind_KIND_KEY_POLICY, fsmpb.Kind_KIND_KEY_TAGS,
	fsmpb.Kind_KIND_ALIAS, fsmpb.Kind_KIND_KEY_ALIASES, fsmpb.Kind_KIND_CREDENTIAL, fsmpb.Kind_KIND_TOMBSTONE,
	fsmpb.Kind_KIND_NODE, fsmpb.Kind_KIND_GRANT, fsmpb.Kind_KIND_KEY_GRANTS, fsmpb.Kind_KIND_KEY_STORE,
	fsmpb.Kind_KIND_KEY_STORES, fsmpb.Kind_KIND_STORE_KEYS,
}

// Snapshot implements raft.FSM. It copies nothing but the sessions and uses, in no
// order, as nothing is applied meanwhile: states are immutable.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.fault != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, f.fault)
	}
	s := &snapshot{state: f.Current(), audit: f.cfg.Audit, checks: slices.Clone(f.checks), uses: f.uses.all()}
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
}

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
	// One goroutine and a fixed level: the bytes must not depend on the machine.
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	out := snapshotWriter{w: bufio.NewWriterSize(z, 64<<10)}
	out.raw([]byte(snapshotMagic))
	frontier, err := s.state.frontier.MarshalBinary()
	if err != nil {
		return err
	}
	h := &fsmpb.SnapshotHeader{
		Schema: SchemaMax, Index: s.state.index, Time: s.state.time, StateHash: s.state.hash[:],
		AuditFrontier: frontier, Level: s.state.level, Voters: s.state.voters, ConfirmedTime: s.state.confirmed, Unconfirmed: s.state.unconfirmed,
	}
	for _, r := range s.state.roots {
		h.SegmentRoots = append(h.SegmentRoots, r[:])
	}
	for _, c := range s.checks {
		h.RecentHashes = append(h.RecentHashes, &fsmpb.StateCheck{Index: c.index, Hash: c.hash[:]})
	}
	out.item(h)
	for _, kind := range snapshotKinds {
		for m := range scan[proto.Message](s.state, kind, nil, nil) {
			out.item(m)
		}
	}
	for _, p := range s.sessions {
		out.item(p)
	}
	slices.SortFunc(s.uses, keyUse.compare)
	for _, u := range s.uses {
		out.item(u.proto(u.key))
	}
	out.item(&fsmpb.SnapshotEnd{Items: out.items})
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return errors.Join(out.err, z.Close())
}

type snapshotWriter struct {
	w     *bufio.Writer
	head  []byte
	buf   []byte
	items uint64
	err   error
}

func (w *snapshotWriter) raw(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

// item writes the SnapshotItem that holds m: the tag of m's field, m's length and m.
func (w *snapshotWriter) item(m proto.Message) {
	name := m.ProtoReflect().Descriptor().FullName()
	field, ok := itemFields[name]
	if !ok {
		panic(fmt.Sprintf("%s is not part of a snapshot", name))
	}
	w.buf = marshal(w.buf[:0], m)
	w.head = protowire.AppendTag(append(w.head[:0], 0, 0, 0, 0), field, protowire.BytesType)
	w.head = protowire.AppendVarint(w.head, uint64(len(w.buf)))
	binary.BigEndian.PutUint32(w.head, uint32(len(w.head)-4+len(w.buf)))
	w.raw(w.head)
	w.raw(w.buf)
	if w.items++; w.items%yieldEvery == 0 {
		runtime.Gosched()
	}
}

// yieldEvery is how many items are written, in a millisecond or two, before others
// get the processor. A snapshot is some hundred thousand items of work that nobody
// waits for, and the scheduler by itself would let it have 10 ms at a time, which
// requests wait for. Who yields goes behind all that is ready to run.
const yieldEvery = 128

// itemFields are the fields of SnapshotItem by the messages that they hold.
var itemFields = func() map[protoreflect.FullName]protowire.Number {
	fields := (&fsmpb.SnapshotItem{}).ProtoReflect().Descriptor().Fields()
	numbers := make(map[protoreflect.FullName]protowire.Number, fields.Len())
	for i := range fields.Len() {
		numbers[fields.Get(i).Message().FullName()] = fields.Get(i).Number()
	}
	return numbers
}()

// Restore implements raft.FSM. Nothing changes unless the whole snapshot reads
// well: it is decoded beside the state and then takes its place.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	n, err := readSnapshot(r)
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
}

func newRestored() *restored {
	return &restored{db: newTable(), texts: newTexts(), sessions: make(map[string]*session)}
}

func readSnapshot(r io.Reader) (*restored, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 64<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != snapshotMagic {
		return nil, fmt.Errorf("%w: not a snapshot, or damaged", ErrUnreadable)
	}
	n := newRestored()
	limit := maxHeader
	buf := make([]byte, 64<<10)
	for items := uint64(0); ; items++ {
		item, err := readItem(in, limit, buf)
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
		limit = maxSnapshotItem
	}
}

// readItem reads an item of at most limit bytes, by way of buf if it fits.
func readItem(in io.Reader, limit int, buf []byte) (*fsmpb.SnapshotItem, error) {
	var n [4]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return nil, fmt.Errorf("%w: cut short: %w", ErrUnreadable, err)
	}
	size := binary.BigEndian.Uint32(n[:])
	if int64(size) > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnreadable, size)
	}
	if int64(size) > int64(len(buf)) {
		buf = make([]byte, size)
	}
	b := buf[:size]
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, fmt.Errorf("%w: cut short: %w", ErrUnreadable, err)
	}
	var item fsmpb.SnapshotItem
	if err := proto.Unmarshal(b, &item); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err := known(item.ProtoReflect()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return &item, nil
}

// add takes one item over.
func (n *restored) add(item *fsmpb.SnapshotItem) error {
	key := func(kind fsmpb.Kind, region string, key []byte, version Version, m proto.Message) error {
		id, ok := keyID(region, key)
		if !ok {
			return fmt.Errorf("%w: %v with a wrong key id", ErrUnreadable, kind)
		}
		return n.insert(kind, id.Bytes(), version, m)
	}
	switch m := item.Item.(type) {
	case *fsmpb.SnapshotItem_Header:
		return n.header(m.Header)
	case *fsmpb.SnapshotItem_Cluster:
		return n.insert(fsmpb.Kind_KIND_CLUSTER, nil, m.Cluster.Version, m.Cluster)
	case *fsmpb.SnapshotItem_Key:
		return key(fsmpb.Kind_KIND_KEY, m.Key.Region, m.Key.Id, m.Key.Version, m.Key)
	case *fsmpb.SnapshotItem_KeyPolicy:
		return key(fsmpb.Kind_KIND_KEY_POLICY, m.KeyPolicy.Region, m.KeyPolicy.Key, m.KeyPolicy.Version, m.KeyPolicy)
	case *fsmpb.SnapshotItem_KeyTags:
		return key(fsmpb.Kind_KIND_KEY_TAGS, m.KeyTags.Region, m.KeyTags.Key, m.KeyTags.Version, m.KeyTags)
	case *fsmpb.SnapshotItem_Alias:
		if _, ok := keyID(m.Alias.Region, m.Alias.Key); !ok {
			return fmt.Errorf("%w: alias with a wrong key id", ErrUnreadable)
		}
		return n.insert(fsmpb.Kind_KIND_ALIAS, AliasID(m.Alias.Region, m.Alias.Name), m.Alias.Version, m.Alias)
	case *fsmpb.SnapshotItem_KeyAliases:
		return key(fsmpb.Kind_KIND_KEY_ALIASES, m.KeyAliases.Region, m.KeyAliases.Key, m.KeyAliases.Version, m.KeyAliases)
	case *fsmpb.SnapshotItem_Credential:
		return n.insert(fsmpb.Kind_KIND_CREDENTIAL, []byte(m.Credential.Id), m.Credential.Version, m.Credential)
	case *fsmpb.SnapshotItem_Tombstone:
		return key(fsmpb.Kind_KIND_TOMBSTONE, m.Tombstone.Region, m.Tombstone.Key, m.Tombstone.Version, m.Tombstone)
	case *fsmpb.SnapshotItem_Node:
		return n.insert(fsmpb.Kind_KIND_NODE, []byte(m.Node.Node), m.Node.Version, m.Node)
	case *fsmpb.SnapshotItem_Session:
		n.sessions[m.Session.Node] = sessionOf(m.Session)
		return nil
	case *fsmpb.SnapshotItem_Grant:
		id, ok := keyID(m.Grant.Region, m.Grant.Key)
		if !ok || len(m.Grant.Id) != 32 {
			return fmt.Errorf("%w: grant with a wrong id", ErrUnreadable)
		}
		return n.insert(fsmpb.Kind_KIND_GRANT, GrantID(id, m.Grant.Id), m.Grant.Version, m.Grant)
	case *fsmpb.SnapshotItem_KeyGrants:
		return key(fsmpb.Kind_KIND_KEY_GRANTS, m.KeyGrants.Region, m.KeyGrants.Key, m.KeyGrants.Version, m.KeyGrants)
	case *fsmpb.SnapshotItem_KeyStore:
		return n.insert(fsmpb.Kind_KIND_KEY_STORE, []byte(m.KeyStore.Id), m.KeyStore.Version, m.KeyStore)
	case *fsmpb.SnapshotItem_KeyStores:
		return n.insert(fsmpb.Kind_KIND_KEY_STORES, nil, m.KeyStores.Version, m.KeyStores)
	case *fsmpb.SnapshotItem_StoreKeys:
		return n.insert(fsmpb.Kind_KIND_STORE_KEYS, []byte(m.StoreKeys.Store), m.StoreKeys.Version, m.StoreKeys)
	case *fsmpb.SnapshotItem_KeyUse:
		if _, ok := keyID(m.KeyUse.Region, m.KeyUse.Key); !ok {
			return fmt.Errorf("%w: use of a key with a wrong id", ErrUnreadable)
		}
		n.uses = append(n.uses, m.KeyUse)
		return nil
	}
	return fmt.Errorf("%w: empty item", ErrUnreadable)
}

func (n *restored) header(h *fsmpb.SnapshotHeader) error {
	if h.Schema < SchemaMin || h.Schema > SchemaMax {
		return fmt.Errorf("%w: schema %d, this binary knows %d to %d", ErrUnreadable, h.Schema, SchemaMin, SchemaMax)
	}
	if len(h.StateHash) != len(n.state.hash) {
		return fmt.Errorf("%w: state hash", ErrUnreadable)
	}
	n.state.index, n.state.time, n.state.level = h.Index, h.Time, h.Level
	n.state.voters, n.state.confirmed, n.state.unconfirmed = h.Voters, h.ConfirmedTime, h.Unconfirmed
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
	for _, c := range h.RecentHashes {
		if len(c.Hash) != len(check{}.hash) {
			return fmt.Errorf("%w: state hash", ErrUnreadable)
		}
		n.checks = append(n.checks, check{index: c.Index, hash: [32]byte(c.Hash)})
	}
	return nil
}

func (n *restored) insert(kind fsmpb.Kind, id []byte, version Version, m proto.Message) error {
	if version == 0 {
		return fmt.Errorf("%w: %v without a version", ErrUnreadable, kind)
	}
	n.db.insert(n.texts.newObject(n.db, kind, id, version, m))
	return nil
}
