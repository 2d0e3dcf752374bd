package fsm

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// The registry has a row for each kind of object, which says everything that the
// machine knows of it; the rows are in kinds.go. Apply, the table, its indexes and
// snapshots ask the row, and name no kind themselves.

// message is the protobuf message of a kind.
type message interface {
	comparable
	proto.Message
}

// spec is a row as kinds.go has it. What is nil or zero does not apply to the kind.
type spec[M message] struct {
	kind fsmpb.Kind

	// item gets the kind's message from the item of a snapshot that holds it. Kinds are
	// in a snapshot in the order of the fields that they have in fsmpb.SnapshotItem.
	item    func(*fsmpb.SnapshotItem) M
	version func(M) *Version

	// id is the object's id as read sets and the table have it. It is valid if what it
	// is made of has the right form; what is in a snapshot is held to that as well.
	id func(M) (id []byte, valid bool)
	// name is the text in the id, of 1 to maxName bytes in what is stored from now on.
	name    func(M) string
	maxName int
	// malformed is the rule that an object without a valid id or name breaks. Without
	// it, the owner's absent rule says that.
	malformed string

	// put gets the message from a change that creates or replaces an object.
	put func(*fsmpb.Change) M
	// rule is the rule that n breaks in the place of was, which is nil for a new object;
	// "" for none.
	rule func(a *applier, was, n M) string
	// early tells that n is right, but not yet.
	early func(a *applier, was, n M) bool
	// making runs before n is stored.
	making func(a *applier, was, n M)
	// delete is how a change deletes an object.
	delete *deletion[M]

	// owner is the object that this one belongs to: it is stored with its owner or later,
	// and goes with it.
	owner *owner[M]
	// absent is the rule that whatever belongs to an object of this kind breaks if there
	// is no such object.
	absent string
	// member is the set that counts the objects of this kind.
	member *member[M]
	// count makes an object of a kind that counts, and counted is its count. Such a kind
	// is nothing else but its id and the count.
	count   func(id []byte, n uint32, v Version) M
	counted func(M) uint32

	// whole says that such objects are the whole cluster's, and of no account.
	whole bool
	// founding says that such objects may come with the record that founds the cluster;
	// before says that they may be there before that.
	founding, before bool

	// compact has the parts of an object that is inserted take less memory; see
	// texts.newObject.
	compact func(t *texts, db *table, o *object, m M)
	// indexes find objects by something else than their ids.
	indexes []*index[M]
}

// deletion is what deletes an object of a kind.
type deletion[M message] struct {
	// of is the id of the object that a change deletes; see byID. It is not set for a
	// change that deletes none of this kind.
	of func(*fsmpb.Change) (id []byte, valid, set bool)
	// malformed is the rule that an id breaks which is not valid.
	malformed string
	// missing is the rule that deleting what is not there breaks; without it, that is a
	// conflict.
	missing string
	// alone is the rule that a record breaks which changes something else as well; without
	// it, a record may.
	alone string
	// rule tells whether the object can be deleted now.
	rule func(a *applier, was M) Verdict
	// gone runs when everything of the object is deleted.
	gone func(a *applier, id []byte, was M)
}

// byID makes deletion.of of what gets the message that names an object, and its id.
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

// owner is what an object belongs to.
type owner[M message] struct {
	kind fsmpb.Kind
	// id is the owner's; without it, it is that of the object itself.
	id func(M) []byte
	// all are the objects that belong to one owner. Without it, there is one at the most,
	// with the owner's id. Those that all finds are deleted before their owner, and the
	// others after it.
	all func(db *table, owner []byte) []*object
}

// member has objects counted by one of another kind, whose version stands for the set
// in read sets.
type member[M message] struct {
	in fsmpb.Kind
	// set is the id of the set; false for an object that is in none.
	set      func(M) (id []byte, in bool)
	replaced replaced
	// last has the count follow what is deleted with the object, instead of going before
	// it. State hashes depend on the order.
	last bool
}

// replaced is what replacing an object means for its set.
type replaced uint8

const (
	// setStays: an object never changes its set, and which it is does not matter there.
	setStays replaced = iota
	// setTouched: the set gets a new version.
	setTouched
	// setLeft: the object leaves the old one's set and enters its own.
	setLeft
)

// row is a row as the machine uses it, whatever the message.
type row struct {
	kind    fsmpb.Kind
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

	set     func(proto.Message) (id []byte, in bool) // nil for none
	setKind fsmpb.Kind
	count   func(id []byte, n uint32, v Version) proto.Message
	counted func(proto.Message) uint32

	founding, before bool
	whole            bool

	compact func(t *texts, db *table, o *object)
	indexes []indexer
}

// change is what a field of fsmpb.Change does.
type change struct {
	row     *row // nil for a change of no object
	deletes bool
	alone   string // as deletion has it
	// set reports whether a change has the field, and subject is the id of its object.
	set     func(*fsmpb.Change) bool
	subject func(*fsmpb.Change) (id []byte, valid bool)
	check   func(a *applier, e *edit) (pending, Verdict)
}

var (
	// registry has each kind's row at its number, which is a byte in the ids of rows.
	registry [256]*row
	// snapshotRows are the rows in the order that they have in a snapshot.
	snapshotRows []*row
	// changes are all that there are.
	changes []*change
)

// In init, as the rows have functions that look into the registry.
func init() {
	changes = append(changes, confirmTime)
	for _, r := range kinds() {
		registry[r.kind] = r
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

// rowOf is the row of a kind; nil for one that there is not.
func rowOf(kind fsmpb.Kind) *row {
	if kind < 0 || int(kind) >= len(registry) {
		return nil
	}
	return registry[kind]
}

// rowOfItem is the row and the message of an item of a snapshot; nil for an item that
// is no object.
func rowOfItem(item *fsmpb.SnapshotItem) (*row, proto.Message) {
	for _, r := range snapshotRows {
		if m, ok := r.item(item); ok {
			return r, m
		}
	}
	return nil, nil
}

// changeOf is what a change does; nil for an empty one. Asking some twenty takes less
// than protobuf's reflection.
func changeOf(c *fsmpb.Change) *change {
	for _, one := range changes {
		if one.set(c) {
			return one
		}
	}
	return nil
}

// newRow makes a row of its description.
func newRow[M message](s spec[M]) *row {
	var none M
	r := &row{
		kind:     s.kind,
		absent:   s.absent,
		founding: s.founding,
		before:   s.before,
		whole:    s.whole,
		number:   itemFields[none.ProtoReflect().Descriptor().FullName()],
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
		r.compact = func(t *texts, db *table, o *object) { s.compact(t, db, o, o.value.(M)) }
	}
	if s.member != nil {
		r.setKind = s.member.in
		r.set = func(m proto.Message) ([]byte, bool) { return s.member.set(m.(M)) }
	}
	for _, x := range s.indexes {
		r.indexes = append(r.indexes, x)
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

// named reports whether the name in an object's id is one.
func (s *spec[M]) named(m M) bool {
	if s.name == nil {
		return true
	}
	n := len(s.name(m))
	return n > 0 && n <= s.maxName
}
