package fsm

import (
	"cmp"
	"reflect"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/snapfile"
)

// The registry has a row for each kind of object, with everything that the state
// machine knows about the kind; the rows are in kinds.go. Apply, the table, its
// indexes and snapshots use the row, and name no kind themselves.

// message is the protobuf message of a kind.
type message interface {
	comparable
	proto.Message
}

// spec is a row as kinds.go writes it. Fields that are nil or zero do not apply to
// the kind.
type spec[M message] struct {
	kind fsmpb.Kind

	// item returns the kind's message if the item of a snapshot holds one. The order of
	// kinds in a snapshot is that of their fields in fsmpb.SnapshotItem.
	item    func(*fsmpb.SnapshotItem) M
	version func(M) *Version

	// id returns the object's id, as it stands in read sets and in the table. It is valid
	// if its parts are well formed, which is required of objects in snapshots too.
	id func(M) (id []byte, valid bool)
	// name returns the text in the id. An object can be stored if it has 1 to maxName
	// bytes; snapshots may hold objects with other names.
	name    func(M) string
	maxName int
	// malformed is the rule that an object without a valid id or name breaks. If it
	// is empty, that is the owner's absent rule.
	malformed string

	// put returns the message of a change that creates or replaces an object.
	put func(*fsmpb.Change) M
	// rule returns the rule that replacing was by n breaks, or "" for none. was is nil
	// for a new object.
	rule func(a *applier, was, n M) string
	// early reports whether n breaks no rule but comes too early.
	early func(a *applier, was, n M) bool
	// making runs before n is stored.
	making func(a *applier, was, n M)
	// delete says how a change deletes an object.
	delete *deletion[M]

	// owner says which object this one belongs to. It is stored together with its owner
	// or later, and deleted with it.
	owner *owner[M]
	// absent is the rule that an object breaks if its owner, which would be of this
	// kind, does not exist.
	absent string
	// member says which set counts the objects of this kind.
	member *member[M]
	// tallies are further sets that count the objects of this kind, each of which may be
	// in several of them.
	tallies []tally[M]
	// count makes an object of a kind that counts others, and counted returns its count.
	// Such an object consists of its id and the count.
	count   func(id []byte, n uint32, v Version) M
	counted func(M) uint32

	// whole means that such objects belong to the whole cluster and to no account.
	whole bool
	// atInit means that such objects may come with the record that initialises the
	// cluster; before means that they may exist before that.
	atInit, before bool

	// compact makes an object that is inserted take less memory; see newObject.
	compact func(t *intern.Texts, db *table, o *object, m M)
	// indexes find objects by something other than their ids, and texts returns what else
	// [Having] finds an object by.
	indexes []*index[M]
	texts   func(M) []string
}

// deletion says how objects of a kind are deleted.
type deletion[M message] struct {
	// of returns the id of the object that a change deletes; see byID. set is false
	// if the change deletes no object of this kind.
	of func(*fsmpb.Change) (id []byte, valid, set bool)
	// malformed is the rule that an invalid id breaks.
	malformed string
	// missing is the rule that deleting an object that does not exist breaks. If it is
	// empty, that is a conflict.
	missing string
	// alone is the rule that a record breaks if it changes something else as well. If it
	// is empty, a record may do that.
	alone string
	// rule decides whether the object can be deleted now.
	rule func(a *applier, was M) Verdict
	// gone runs after the object, and everything that belongs to it, was deleted.
	gone func(a *applier, id []byte, was M)
}

// byID returns a deletion.of, given a function for the message in the change that
// names an object, and one for the id in that message.
func byID[D message](get func(*fsmpb.Change) D, id func(D) ([]byte, bool)) func(*fsmpb.Change) ([]byte, bool, bool) {
	return func(c *fsmpb.Change) ([]byte, bool, bool) {
		var none D
		d := get(c)
		if d == none {
			return nil, false, false
		}
		b, valid := id(d)
		return b, valid, true
	}
}

// owner says which object an object belongs to.
type owner[M message] struct {
	kind fsmpb.Kind
	// id returns the owner's id. If it is nil, that is the id of the object itself.
	id func(M) []byte
	// all returns the objects that belong to one owner. If it is nil, there is at most
	// one, with the owner's id. Objects that all returns are deleted before their owner,
	// and the others after it.
	all func(db *table, owner []byte) []*object
}

// member says which object of another kind counts objects. The version of that object
// stands for the whole set in read sets.
type member[M message] struct {
	in fsmpb.Kind
	// set returns the id of the set; in is false for an object that is in none.
	set      func(M) (id []byte, in bool)
	replaced replaced
	// last means that the count changes after everything that is deleted with the
	// object, instead of before. State hashes depend on the order.
	last bool
}

// tally says which objects of another kind count objects that may be in several sets. The
// versions of those sets change when an object enters or leaves them.
type tally[M message] struct {
	in fsmpb.Kind
	// sets returns the ids of the sets, in any order and any number of times; none for
	// nil.
	sets func(M) (ids [][]byte)
}

// replaced says what replacing an object means for its set.
type replaced uint8

const (
	// setStays: an object never moves to another set, and replacing it does not change
	// the set.
	setStays replaced = iota
	// setTouched: the set gets a new version.
	setTouched
	// setLeft: the object leaves the set of the one that it replaces and enters its own.
	setLeft
)

// row is a row as the state machine uses it, independent of the type of the message.
type row struct {
	kind    fsmpb.Kind
	message reflect.Type
	number  protowire.Number // of its field in fsmpb.SnapshotItem
	item    func(*fsmpb.SnapshotItem) (proto.Message, bool)
	version func(proto.Message) *Version
	id      func(proto.Message) (id []byte, valid bool)
	named   func(proto.Message) bool // whether its name has the right length

	put, delete *change // nil if none does

	owner  fsmpb.Kind // 0 for none
	all    func(db *table, owner []byte) []*object
	owns   []*row // by kind
	absent string

	tallies []rowTally
	set     func(proto.Message) (id []byte, in bool) // nil for none
	setKind fsmpb.Kind
	count   func(id []byte, n uint32, v Version) proto.Message
	counted func(proto.Message) uint32

	atInit, before bool
	whole          bool

	compact func(t *intern.Texts, db *table, o *object)
	indexes []indexer
	texts   func(proto.Message) []string // nil for none
}

// rowTally is a tally, independent of the type of the message.
type rowTally struct {
	in fsmpb.Kind
	// sets returns the ids of the sets that an object is in, in ascending order and each once.
	sets func(proto.Message) []string
}

// change is what a field of fsmpb.Change does.
type change struct {
	row     *row // nil for a change that concerns no object
	deletes bool
	alone   string // see deletion
	// set reports whether a change has the field, and subject returns the id of its object.
	set     func(*fsmpb.Change) bool
	subject func(*fsmpb.Change) (id []byte, valid bool)
	check   func(a *applier, e *edit) (pending, Verdict)
}

var (
	// registry has the row of each kind at the kind's number, which is one byte in
	// the ids of rows.
	registry [256]*row
	// kindOf has the kind of each type of message.
	kindOf = make(map[reflect.Type]fsmpb.Kind)
	// snapshotRows are the rows in the order of a snapshot.
	snapshotRows []*row
	// changes are all changes that a record can make.
	changes []*change
)

// The rows refer to functions that use the registry, so they cannot be its initial value.
func init() {
	changes = append(changes, confirmTime, raiseLevel)
	for _, r := range slices.Concat(kinds(), iamKinds()) {
		registry[r.kind], kindOf[r.message] = r, r.kind
		snapshotRows = append(snapshotRows, r)
		for _, c := range []*change{r.put, r.delete} {
			if c != nil {
				changes = append(changes, c)
			}
		}
	}
	for _, r := range registry {
		if r != nil && r.owner != 0 {
			registry[r.owner].owns = append(registry[r.owner].owns, r)
		}
	}
	slices.SortFunc(snapshotRows, func(a, b *row) int { return cmp.Compare(a.number, b.number) })
}

// KindOf returns the kind whose objects are messages of type M.
func KindOf[M message]() fsmpb.Kind { return kindOf[reflect.TypeFor[M]()] }

// rowOf returns the row of a kind; nil for an unknown one.
func rowOf(kind fsmpb.Kind) *row {
	if kind < 0 || int(kind) >= len(registry) {
		return nil
	}
	return registry[kind]
}

// rowOfItem returns the row and the message of an item of a snapshot; nil for an item
// that is not an object.
func rowOfItem(item *fsmpb.SnapshotItem) (*row, proto.Message) {
	for _, r := range snapshotRows {
		if m, ok := r.item(item); ok {
			return r, m
		}
	}
	return nil, nil
}

// changeOf returns the kind of a change; nil for an empty one. Asking all of some
// twenty takes less time than protobuf's reflection.
func changeOf(c *fsmpb.Change) *change {
	for _, one := range changes {
		if one.set(c) {
			return one
		}
	}
	return nil
}

// newRow makes a row from its specification.
func newRow[M message](s spec[M]) *row {
	var none M
	r := &row{
		kind:    s.kind,
		absent:  s.absent,
		atInit:  s.atInit,
		before:  s.before,
		whole:   s.whole,
		message: reflect.TypeFor[M](),
		number:  snapfile.FieldOf(none),
		item: func(i *fsmpb.SnapshotItem) (proto.Message, bool) {
			m := s.item(i)
			return m, m != none
		},
		version: func(m proto.Message) *Version { return s.version(m.(M)) },
		id:      func(m proto.Message) ([]byte, bool) { return s.id(m.(M)) },
		named:   func(m proto.Message) bool { return s.named(m.(M)) },
	}
	if s.owner != nil {
		r.owner, r.all = s.owner.kind, s.owner.all
	}
	if s.count != nil {
		r.count = func(id []byte, n uint32, v Version) proto.Message { return s.count(id, n, v) }
		r.counted = func(m proto.Message) uint32 { return s.counted(m.(M)) }
	}
	if s.compact != nil {
		r.compact = func(t *intern.Texts, db *table, o *object) { s.compact(t, db, o, o.value.(M)) }
	}
	if s.member != nil {
		r.setKind = s.member.in
		r.set = func(m proto.Message) ([]byte, bool) { return s.member.set(m.(M)) }
	}
	for _, t := range s.tallies {
		r.tallies = append(r.tallies, rowTally{t.in, func(m proto.Message) (ids []string) {
			for _, id := range t.sets(m.(M)) {
				ids = append(ids, string(id))
			}
			slices.Sort(ids)
			return slices.Compact(ids)
		}})
	}
	for _, x := range s.indexes {
		r.indexes = append(r.indexes, x)
	}
	if s.texts != nil {
		r.texts = func(m proto.Message) []string { return s.texts(m.(M)) }
	}
	if s.put != nil {
		r.put = &change{
			row:     r,
			set:     func(c *fsmpb.Change) bool { return s.put(c) != none },
			subject: func(c *fsmpb.Change) ([]byte, bool) { return s.id(s.put(c)) },
			check:   s.checkPut,
		}
	}
	if d := s.delete; d != nil {
		r.delete = &change{
			row: r, deletes: true, alone: d.alone,
			set: func(c *fsmpb.Change) bool {
				_, _, set := d.of(c)
				return set
			},
			subject: func(c *fsmpb.Change) ([]byte, bool) {
				id, valid, _ := d.of(c)
				return id, valid
			},
			check: s.checkDelete,
		}
	}
	return r
}

// named reports whether the name in an object's id has a valid length.
func (s *spec[M]) named(m M) bool {
	if s.name == nil {
		return true
	}
	n := len(s.name(m))
	return n > 0 && n <= s.maxName
}
