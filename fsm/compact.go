package fsm

import (
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
)

// newObject returns a row for a message that belongs to the state, in as few allocations as
// possible, since the garbage collector looks at each of them in every cycle. The fields
// that name the object become slices of the row's id, strings that other objects have too
// are shared with them, and so is the id of the key that an alias names.
func newObject(t *intern.Texts, db *table, kind fsmpb.Kind, name []byte, version Version, msg proto.Message) *object {
	o := &object{id: rowID(kind, name), version: version, value: msg}
	switch r := registry[kind]; {
	case r.counted != nil:
		o.value = r.counted(msg)
	case r.compact != nil:
		r.compact(t, db, o)
	}
	return o
}

func compactKey(t *intern.Texts, _ *table, o *object, m *fsmpb.Key) {
	m.Id = o.last(len(m.Id), 0)
	t.Share(&m.Region, &m.Spec, &m.Usage, &m.Origin, &m.PrimaryRegion, &m.KeyStore)
	for _, n := range m.Materials {
		intern.Join(&n.Id, &n.MaterialId, &n.Wrapped, &n.PublicKey)
	}
}

func compactAlias(t *intern.Texts, db *table, _ *object, m *fsmpb.Alias) {
	t.Share(&m.Region)
	if id, ok := owning(m); ok {
		if k := lookup(db, fsmpb.Kind_KIND_KEY, id.Bytes()); k != nil {
			m.Key = k.last(len(m.Key), 0)
		}
	}
}

func compactGrant(t *intern.Texts, _ *table, o *object, m *fsmpb.Grant) {
	m.Id, m.Key = o.last(len(m.Id), 0), o.last(len(m.Key), len(m.Id))
	t.Share(&m.Region, &m.Grantee, &m.Retiring, &m.Issuer, &m.SourceArn)
	for i := range m.Operations {
		t.Share(&m.Operations[i])
	}
}

func shareBindings(t *intern.Texts, list []*fsmpb.Binding) {
	for _, b := range list {
		t.Share(&b.Name, &b.Id)
	}
}

// last returns the n bytes of the id that come before its last before bytes. The
// slice has no spare capacity, so that appending to it copies.
func (o *object) last(n, before int) []byte {
	end := len(o.id) - before
	return o.id[end-n : end : end]
}
