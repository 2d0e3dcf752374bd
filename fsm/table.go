package fsm

import (
	"bytes"
	"cmp"
	"strings"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// object is a row of the one table: anything a read set can name. Rows are
// immutable once inserted.
type object struct {
	id      []byte // as rowID has it
	version Version
	// value is a proto.Message, or the count of those that are nothing else: there is
	// one or two of these for each key, and as messages they take thrice the memory.
	value any
}

// rowID orders rows by kind, then id. An id needs no terminator here: a row is
// only ever looked up whole, and ids that end in free text are alone in theirs.
func rowID(kind fsmpb.Kind, id []byte) []byte {
	b := make([]byte, 0, 1+len(id))
	b = append(b, byte(kind))
	return append(b, id...)
}

func (o *object) kind() fsmpb.Kind { return fsmpb.Kind(o.id[0]) }

// name is the row's id as read sets have it.
func (o *object) name() []byte { return o.id[1:] }

// message is the row as it is encoded.
func (o *object) message() proto.Message {
	n, ok := o.value.(uint32)
	if !ok {
		return o.value.(proto.Message)
	}
	id, _ := parseKeyID(o.name())
	if o.kind() == fsmpb.Kind_KIND_KEY_ALIASES {
		return &fsmpb.KeyAliases{Key: id.ID[:], Region: id.Region, Count: n, Version: o.version}
	}
	return &fsmpb.KeyGrants{Key: id.ID[:], Region: id.Region, Count: n, Version: o.version}
}

// table has every kind, so that checking a read set is one lookup an item whatever
// the kind, and what finds rows by something else than their ids. One that was
// published never changes: its clones do.
//
// The trees hold pointers, and compare what is behind them: an index costs a grant
// some ten bytes that way.
type table struct {
	rows     *btree.BTreeG[*object]
	target   *btree.BTreeG[*fsmpb.Alias] // aliases by the key they name
	grantee  *btree.BTreeG[*fsmpb.Grant] // grants by key and grantee
	retiring *btree.BTreeG[*fsmpb.Grant] // grants by the principal that may retire them
}

// degree makes nodes of 31 to 63 rows.
const degree = 32

func newTable() *table {
	return &table{
		rows:     btree.NewG(degree, func(a, b *object) bool { return bytes.Compare(a.id, b.id) < 0 }),
		target:   btree.NewG(degree, byTarget),
		grantee:  btree.NewG(degree, byGrantee),
		retiring: btree.NewG(degree, byRetiring),
	}
}

// clone is a table of the same rows that changes by itself. Nobody may use t
// meanwhile.
func (t *table) clone() *table {
	return &table{rows: t.rows.Clone(), target: t.target.Clone(), grantee: t.grantee.Clone(), retiring: t.retiring.Clone()}
}

func byTarget(a, b *fsmpb.Alias) bool {
	return cmp.Or(strings.Compare(a.Region, b.Region), bytes.Compare(a.Key, b.Key), strings.Compare(a.Name, b.Name)) < 0
}

func byGrantee(a, b *fsmpb.Grant) bool {
	return cmp.Or(strings.Compare(a.Region, b.Region), bytes.Compare(a.Key, b.Key), strings.Compare(a.Grantee, b.Grantee), bytes.Compare(a.Id, b.Id)) < 0
}

func byRetiring(a, b *fsmpb.Grant) bool {
	return cmp.Or(strings.Compare(a.Region, b.Region), strings.Compare(a.Retiring, b.Retiring), bytes.Compare(a.Key, b.Key), bytes.Compare(a.Id, b.Id)) < 0
}

// insert adds a row, or puts it in the place of the one with its id.
func (t *table) insert(o *object) {
	if was, ok := t.rows.ReplaceOrInsert(o); ok {
		t.unlist(was)
	}
	switch m := o.value.(type) {
	case *fsmpb.Alias:
		t.target.ReplaceOrInsert(m)
	case *fsmpb.Grant:
		t.grantee.ReplaceOrInsert(m)
		if m.Retiring != "" {
			t.retiring.ReplaceOrInsert(m)
		}
	}
}

func (t *table) remove(o *object) {
	t.rows.Delete(o)
	t.unlist(o)
}

// unlist removes a row from the indexes.
func (t *table) unlist(o *object) {
	switch m := o.value.(type) {
	case *fsmpb.Alias:
		t.target.Delete(m)
	case *fsmpb.Grant:
		t.grantee.Delete(m)
		if m.Retiring != "" {
			t.retiring.Delete(m)
		}
	}
}

func lookup(db *table, kind fsmpb.Kind, id []byte) *object {
	o, _ := db.rows.Get(&object{id: rowID(kind, id)})
	return o
}

func versionOf(db *table, kind fsmpb.Kind, id []byte) Version {
	if o := lookup(db, kind, id); o != nil {
		return o.version
	}
	return 0
}
