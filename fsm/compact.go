package fsm

import (
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// texts interns strings: most keys have the same policy, spec, usage and Region. A string
// that it has forgotten is merely held twice. It is not safe for concurrent use.
type texts struct {
	known map[string]string
	size  int // of all
}

// maxTexts bounds the strings that texts remembers, in bytes. When there is no more
// room, it forgets all of them.
const maxTexts = 1 << 20

func newTexts() *texts { return &texts{known: make(map[string]string)} }

func (t *texts) share(all ...*string) {
	for _, s := range all {
		if *s == "" {
			continue
		}
		if known, ok := t.known[*s]; ok {
			*s = known
			continue
		}
		if t.size+len(*s) > maxTexts {
			clear(t.known)
			t.size = 0
		}
		t.known[*s] = *s
		t.size += len(*s)
	}
}

// newObject returns a row for a message that belongs to the state, in as few allocations as
// possible, since the garbage collector looks at each of them in every cycle. The fields
// that name the object become slices of the row's id, strings that other objects have too
// are shared with them, and so is the id of the key that an alias names.
func (t *texts) newObject(db *table, kind fsmpb.Kind, name []byte, version Version, msg proto.Message) *object {
	o := &object{id: rowID(kind, name), version: version, value: msg}
	switch r := registry[kind]; {
	case r.counted != nil:
		o.value = r.counted(msg)
	case r.compact != nil:
		r.compact(t, db, o)
	}
	return o
}

func compactKey(t *texts, _ *table, o *object, m *fsmpb.Key) {
	m.Id = o.last(len(m.Id), 0)
	t.share(&m.Region, &m.Spec, &m.Usage, &m.Origin, &m.PrimaryRegion, &m.KeyStore)
	for _, n := range m.Materials {
		join(&n.Id, &n.MaterialId, &n.Wrapped, &n.PublicKey)
	}
}

func compactAlias(t *texts, db *table, _ *object, m *fsmpb.Alias) {
	t.share(&m.Region)
	if id, ok := owning(m); ok {
		if k := lookup(db, fsmpb.Kind_KIND_KEY, id.Bytes()); k != nil {
			m.Key = k.last(len(m.Key), 0)
		}
	}
}

func compactGrant(t *texts, _ *table, o *object, m *fsmpb.Grant) {
	m.Id, m.Key = o.last(len(m.Id), 0), o.last(len(m.Key), len(m.Id))
	t.share(&m.Region, &m.Grantee, &m.Retiring, &m.Issuer, &m.SourceArn)
	for i := range m.Operations {
		t.share(&m.Operations[i])
	}
}

// last returns the n bytes of the id that come before its last before bytes. The
// slice has no spare capacity, so that appending to it copies.
func (o *object) last(n, before int) []byte {
	end := len(o.id) - before
	return o.id[end-n : end : end]
}

// join moves byte slices into one allocation.
func join(parts ...*[]byte) {
	n := 0
	for _, p := range parts {
		n += len(*p)
	}
	whole := make([]byte, 0, n)
	for _, p := range parts {
		if from := len(whole); len(*p) > 0 {
			whole = append(whole, *p...)
			*p = whole[from:len(whole):len(whole)]
		}
	}
}
