package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

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

// Snapshot implements raft.FSM. It copies nothing but the sessions: states are
// immutable.
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
	uses     []*fsmpb.KeyUse // by key
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
	out.item(&fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Header{Header: h}})
	for _, kind := range snapshotKinds {
		for m := range scan[proto.Message](s.state, kind, nil, nil) {
			out.item(itemOf(m))
		}
	}
	for _, p := range s.sessions {
		out.item(itemOf(p))
	}
	for _, u := range s.uses {
		out.item(itemOf(u))
	}
	out.item(&fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_End{End: &fsmpb.SnapshotEnd{Items: out.items}}})
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return errors.Join(out.err, z.Close())
}

type snapshotWriter struct {
	w     *bufio.Writer
	buf   []byte
	items uint64
	err   error
}

func (w *snapshotWriter) raw(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

func (w *snapshotWriter) item(m *fsmpb.SnapshotItem) {
	w.buf = marshal(w.buf[:0], m)
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(w.buf)))
	w.raw(n[:])
	w.raw(w.buf)
	w.items++
}

func itemOf(m proto.Message) *fsmpb.SnapshotItem {
	switch m := m.(type) {
	case *fsmpb.Cluster:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Cluster{Cluster: m}}
	case *fsmpb.Key:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Key{Key: m}}
	case *fsmpb.KeyPolicy:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyPolicy{KeyPolicy: m}}
	case *fsmpb.KeyTags:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyTags{KeyTags: m}}
	case *fsmpb.Alias:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Alias{Alias: m}}
	case *fsmpb.KeyAliases:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyAliases{KeyAliases: m}}
	case *fsmpb.Credential:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Credential{Credential: m}}
	case *fsmpb.Tombstone:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Tombstone{Tombstone: m}}
	case *fsmpb.RegisterNode:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Node{Node: m}}
	case *fsmpb.Session:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Session{Session: m}}
	case *fsmpb.Grant:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Grant{Grant: m}}
	case *fsmpb.KeyGrants:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyGrants{KeyGrants: m}}
	case *fsmpb.KeyStore:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyStore{KeyStore: m}}
	case *fsmpb.KeyStores:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyStores{KeyStores: m}}
	case *fsmpb.StoreKeys:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_StoreKeys{StoreKeys: m}}
	case *fsmpb.KeyUse:
		return &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_KeyUse{KeyUse: m}}
	}
	panic(fmt.Sprintf("%T is not part of a snapshot", m))
}

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
	for items := uint64(0); ; items++ {
		item, err := readItem(in, limit)
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

func readItem(in io.Reader, limit int) (*fsmpb.SnapshotItem, error) {
	var n [4]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return nil, fmt.Errorf("%w: cut short: %w", ErrUnreadable, err)
	}
	size := binary.BigEndian.Uint32(n[:])
	if int64(size) > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnreadable, size)
	}
	b := make([]byte, size)
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
