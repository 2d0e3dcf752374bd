package fsm

import (
	"bytes"
	"cmp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/trees"
)

// object is a row of the table: anything that a read set can name. Rows are
// immutable once inserted.
type object struct {
	id      []byte // see rowID
	version Version
	// value is a proto.Message, or the count for a kind that only counts: there are
	// one or two such objects for each key, and as messages they would take three
	// times the memory.
	value any
}

// rowID returns the key by which rows are ordered: by kind, then by id. Free text in an id
// needs no terminator, since it only ever comes last and rows are looked up by whole ids.
func rowID(kind fsmpb.Kind, id []byte) []byte {
	b := make([]byte, 0, 1+len(id))
	b = append(b, byte(kind))
	return append(b, id...)
}

func (o *object) kind() fsmpb.Kind { return fsmpb.Kind(o.id[0]) }

// name returns the row's id as it stands in read sets.
func (o *object) name() []byte { return o.id[1:] }

// message returns the message by which the row is encoded.
func (o *object) message() proto.Message {
	if n, ok := o.value.(uint32); ok {
		return registry[o.id[0]].count(o.name(), n, o.version)
	}
	return o.value.(proto.Message)
}

// table has the objects of all kinds, so that checking a read set takes one lookup
// for each item, and the indexes that find rows by something other than their ids.
// A table that was published never changes, but its clones may.
type table struct {
	rows  *btree.BTreeG[*object]
	trees []trees.Tree // of the indexes, at their places
	// texts has rows by the texts that they are found by; see spec.
	texts *trees.Listing[*object]
	// serial is the table's own; see State.Objects.
	serial uint64
}

// serials counts the tables of this process.
var serials atomic.Uint64

// degree makes nodes of 31 to 63 rows.
const degree = 32

func newTable() *table {
	t := &table{
		rows:  btree.NewG(degree, func(a, b *object) bool { return bytes.Compare(a.id, b.id) < 0 }),
		trees: make([]trees.Tree, len(indexes)),
		texts: trees.New(func(o *object) []byte { return o.id }), serial: serials.Add(1),
	}
	for i, x := range indexes {
		t.trees[i] = x.empty()
	}
	return t
}

// clone returns a copy of the table that can be changed independently. It is
// not safe for use concurrent with any other use of t.
func (t *table) clone() *table {
	c := &table{rows: t.rows.Clone(), trees: make([]trees.Tree, len(t.trees)), texts: t.texts.Clone(), serial: serials.Add(1)}
	for i, x := range t.trees {
		c.trees[i] = x.Clone()
	}
	return c
}

// index finds objects of a kind by something other than their ids.
//
// Its trees hold pointers to the messages and compare those, so that an index
// takes some ten bytes for a grant.
type index[M message] struct {
	place int // in a table's trees
	less  func(a, b M) bool
	holds func(M) bool // nil for all
	// probes are messages that find compares others with.
	probes sync.Pool
}

// indexer is an index of any kind of object.
type indexer interface {
	empty() trees.Tree
	of(t *table) trees.Tree
	has(m proto.Message) bool
}

// indexes are all indexes of a table.
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

func (x *index[M]) empty() trees.Tree { return trees.NewOf(x.less) }

func (x *index[M]) of(t *table) trees.Tree { return t.trees[x.place] }

func (x *index[M]) has(m proto.Message) bool { return x.holds == nil || x.holds(m.(M)) }

// in returns the index of a table.
func (x *index[M]) in(t *table) *btree.BTreeG[M] { return t.trees[x.place].(trees.Of[M]).BTreeG }

// find returns the message that is neither less nor greater than one with the fields that set
// sets, or nil. Each call must set the same fields.
func (x *index[M]) find(t *table, set func(M)) M {
	p, ok := x.probes.Get().(M)
	if !ok {
		var none M
		p = none.ProtoReflect().New().Interface().(M)
	}
	set(p)
	m, _ := x.in(t).Get(p)
	x.probes.Put(p)
	return m
}

// insert adds a row, or replaces the one with its id.
func (t *table) insert(o *object) {
	if was, ok := t.rows.ReplaceOrInsert(o); ok {
		t.unlist(was)
	}
	for _, x := range registry[o.id[0]].indexes {
		if m := o.value.(proto.Message); x.has(m) {
			x.of(t).Insert(m)
		}
	}
	t.texts.Insert(o, textsOf(o))
}

func (t *table) remove(o *object) {
	t.rows.Delete(o)
	t.unlist(o)
}

// unlist removes a row from the indexes.
func (t *table) unlist(o *object) {
	for _, x := range registry[o.id[0]].indexes {
		if m := o.value.(proto.Message); x.has(m) {
			x.of(t).Remove(m)
		}
	}
	t.texts.Remove(o, textsOf(o))
}

// textsOf returns the texts that a row is found by.
func textsOf(o *object) []string {
	if texts := registry[o.id[0]].texts; texts != nil {
		return texts(o.value.(proto.Message))
	}
	return nil
}

// probes are objects that lookups compare rows with. Each request makes several lookups, and
// what one allocates would take longer to collect than the lookup itself.
var probes = sync.Pool{New: func() any { return new(object) }}

func lookup(db *table, kind fsmpb.Kind, id []byte) *object {
	p := probes.Get().(*object)
	p.id = append(append(p.id[:0], byte(kind)), id...)
	o, _ := db.rows.Get(p)
	probes.Put(p)
	return o
}

func versionOf(db *table, kind fsmpb.Kind, id []byte) Version {
	if o := lookup(db, kind, id); o != nil {
		return o.version
	}
	return 0
}
