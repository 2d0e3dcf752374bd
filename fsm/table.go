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
	// value is a proto.Message, or the count of those that are nothing else: there are
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
	if n, ok := o.value.(uint32); ok {
		return registry[o.id[0]].count(o.name(), n, o.version)
	}
	return o.value.(proto.Message)
}

// table has every kind, so that checking a read set is one lookup an item whatever
// the kind, and what finds rows by something else than their ids. One that was
// published never changes: its clones do.
type table struct {
	rows  *btree.BTreeG[*object]
	trees []tree // of the indexes, at their places
}

// degree makes nodes of 31 to 63 rows.
const degree = 32

func newTable() *table {
	t := &table{
		rows:  btree.NewG(degree, func(a, b *object) bool { return bytes.Compare(a.id, b.id) < 0 }),
		trees: make([]tree, len(indexes)),
	}
	for i, x := range indexes {
		t.trees[i] = x.empty()
	}
	return t
}

// clone is a table of the same rows that changes by itself. Nobody may use t
// meanwhile.
func (t *table) clone() *table {
	c := &table{rows: t.rows.Clone(), trees: make([]tree, len(t.trees))}
	for i, x := range t.trees {
		c.trees[i] = x.clone()
	}
	return c
}

// index finds objects of a kind by something else than their ids.
//
// Its trees hold pointers, and compare what is behind them: an index costs a grant
// some ten bytes that way.
type index[M message] struct {
	place int // in a table's trees
	less  func(a, b M) bool
	holds func(M) bool // nil for all
}

// indexer is an index of whatever kind.
type indexer interface {
	empty() tree
	of(t *table) tree
	has(m proto.Message) bool
}

// tree is an index of one table.
type tree interface {
	clone() tree
	insert(proto.Message)
	remove(proto.Message)
}

// indexes are all that there are.
var indexes []indexer

var (
	// byTarget has aliases by the key that they name.
	byTarget = newIndex(func(a, b *fsmpb.Alias) bool {
		return cmp.Or(cmp.Compare(a.Account, b.Account), strings.Compare(a.Region, b.Region), bytes.Compare(a.Key, b.Key), strings.Compare(a.Name, b.Name)) < 0
	}, nil)
	// byGrantee has grants by key and grantee.
	byGrantee = newIndex(func(a, b *fsmpb.Grant) bool {
		return cmp.Or(cmp.Compare(a.Account, b.Account), strings.Compare(a.Region, b.Region), bytes.Compare(a.Key, b.Key), strings.Compare(a.Grantee, b.Grantee), bytes.Compare(a.Id, b.Id)) < 0
	}, nil)
	// byRetiring has grants by the principal that may retire them.
	byRetiring = newIndex(func(a, b *fsmpb.Grant) bool {
		return cmp.Or(cmp.Compare(a.Account, b.Account), strings.Compare(a.Region, b.Region), strings.Compare(a.Retiring, b.Retiring), bytes.Compare(a.Key, b.Key), bytes.Compare(a.Id, b.Id)) < 0
	}, func(g *fsmpb.Grant) bool { return g.Retiring != "" })
)

func newIndex[M message](less func(a, b M) bool, holds func(M) bool) *index[M] {
	x := &index[M]{place: len(indexes), less: less, holds: holds}
	indexes = append(indexes, x)
	return x
}

func (x *index[M]) empty() tree { return treeOf[M]{btree.NewG(degree, x.less)} }

func (x *index[M]) of(t *table) tree { return t.trees[x.place] }

func (x *index[M]) has(m proto.Message) bool { return x.holds == nil || x.holds(m.(M)) }

// in is the index of a table.
func (x *index[M]) in(t *table) *btree.BTreeG[M] { return t.trees[x.place].(treeOf[M]).BTreeG }

// treeOf is a pointer, which an interface holds without memory of its own.
type treeOf[M message] struct{ *btree.BTreeG[M] }

func (t treeOf[M]) clone() tree { return treeOf[M]{t.BTreeG.Clone()} }

func (t treeOf[M]) insert(m proto.Message) { t.ReplaceOrInsert(m.(M)) }

func (t treeOf[M]) remove(m proto.Message) { t.Delete(m.(M)) }

// insert adds a row, or puts it in the place of the one with its id.
func (t *table) insert(o *object) {
	if was, ok := t.rows.ReplaceOrInsert(o); ok {
		t.unlist(was)
	}
	for _, x := range registry[o.id[0]].indexes {
		if m := o.value.(proto.Message); x.has(m) {
			x.of(t).insert(m)
		}
	}
}

func (t *table) remove(o *object) {
	t.rows.Delete(o)
	t.unlist(o)
}

// unlist removes a row from the indexes.
func (t *table) unlist(o *object) {
	for _, x := range registry[o.id[0]].indexes {
		if m := o.value.(proto.Message); x.has(m) {
			x.of(t).remove(m)
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
