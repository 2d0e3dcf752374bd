package fsm

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

// pending is a change that was checked and can be made.
type pending func()

// changes makes all of a record's changes, or none: each is checked before the
// first is made. The checks are the rules that hold whatever the proposer read;
// everything else is left to the read set.
func (a *applier) changes(r *wire.Record) Verdict {
	if len(r.Changes) == 0 {
		return Accepted
	}
	a.edits = a.edits[:0]
	for _, c := range r.Changes {
		a.edits = append(a.edits, a.edit(c))
	}
	defer func() { clear(a.edits); a.edits = a.edits[:0] }()
	if a.broken = a.checkSubjects(r); a.broken != "" {
		return Invalid
	}
	todo := make([]pending, 0, len(a.edits))
	for i := range a.edits {
		e := &a.edits[i]
		if e.does == nil {
			a.broken = "a change is empty"
			return Invalid
		}
		p, v := e.does.check(a, e)
		if v != Accepted {
			return v
		}
		todo = append(todo, p)
	}
	for _, p := range todo {
		p()
	}
	return Accepted
}

// edit is a change of the record being applied, together with the object that it changes.
type edit struct {
	*fsmpb.Change
	does  *change // nil for an empty one
	id    []byte
	valid bool
	was   *object // the object with that id before the change; nil for none
}

func (a *applier) edit(c *fsmpb.Change) edit {
	e := edit{Change: c, does: changeOf(c)}
	if e.does != nil && e.does.row != nil {
		e.id, e.valid = e.does.subject(c)
		e.was = lookup(a.db, e.does.row.kind, e.id)
	}
	return e
}

// confirmTime concerns no object.
var confirmTime = &change{
	set: func(c *fsmpb.Change) bool { return c.GetConfirmTime() != nil },
	check: func(a *applier, e *edit) (pending, Verdict) {
		until := e.GetConfirmTime().Until
		return func() { a.state.confirmed = max(a.state.confirmed, until) }, Accepted
	},
}

// raiseLevel concerns no object either. An entry has the schema of the level that something
// in it raises to, so a release that does not know that level stops at the entry, and one
// that does never sees a higher level than it knows.
var raiseLevel = &change{
	set: func(c *fsmpb.Change) bool { return c.GetRaiseLevel() != nil },
	check: func(a *applier, e *edit) (pending, Verdict) {
		to := e.GetRaiseLevel().Level
		if to < a.state.level || to > a.schema {
			return a.refuse("it sets the feature level to one that is lower than before, or newer than its entry")
		}
		// The proposer asked the nodes themselves. A node that went back to an older release
		// since then has registered again, or has yet to do so before it can propose anything.
		for _, voter := range a.state.voters {
			o := lookup(a.db, fsmpb.Kind_KIND_NODE, []byte(voter))
			if o == nil || !level.RangeOf(o.value.(*fsmpb.RegisterNode)).Has(to) {
				return a.refuse("it raises the feature level, and a voter has not registered a release that knows it")
			}
		}
		return func() {
			if to > a.state.level {
				a.state.level = to
				a.hash.Numbers(uint64(to))
				// For read sets without kinds that are now new; see State.Readable.
				a.put(fsmpb.Kind_KIND_CLUSTER, nil, proto.CloneOf(a.cluster()))
			}
		}, Accepted
	},
}

// checkPut checks that an object can be created, or replace the one with its id.
func (s *spec[M]) checkPut(a *applier, e *edit) (pending, Verdict) {
	id, n := e.id, s.put(e.Change)
	if s.malformed != "" && !(e.valid && s.named(n)) {
		return a.refuse(s.malformed)
	}
	var was, none M
	if e.was != nil {
		was = e.was.value.(M)
	}
	if s.rule != nil {
		if broken := s.rule(a, was, n); broken != "" {
			return a.refuse(broken)
		}
	}
	if s.owner != nil {
		to := id
		if s.owner.id != nil {
			to = s.owner.id(n)
		}
		if !e.valid || !a.stands(s.owner.kind, to) {
			return a.refuse(registry[s.owner.kind].absent)
		}
	}
	if s.early != nil && s.early(a, was, n) {
		return nil, Early
	}
	return func() {
		if s.making != nil {
			s.making(a, was, n)
		}
		enlisted := was != none && s.member != nil
		if enlisted && s.member.replaced == setLeft {
			a.enlist(s.kind, was, -1)
		}
		a.put(s.kind, id, proto.CloneOf(n))
		switch {
		case enlisted && s.member.replaced == setStays:
		case enlisted && s.member.replaced == setTouched:
			a.enlist(s.kind, n, 0)
		default:
			a.enlist(s.kind, n, 1)
		}
		retally(a, registry[s.kind], was, n)
	}, Accepted
}

// checkDelete checks that an object can be deleted together with everything that
// belongs to it.
func (s *spec[M]) checkDelete(a *applier, e *edit) (pending, Verdict) {
	id, o := e.id, e.was
	if !e.valid {
		return a.refuse(s.delete.malformed)
	}
	if o == nil && s.delete.missing != "" {
		return a.refuse(s.delete.missing)
	}
	if o == nil {
		return nil, Conflict
	}
	was := o.value.(M)
	if s.delete.rule != nil {
		if v := s.delete.rule(a, was); v != Accepted {
			return nil, v
		}
	}
	last := s.member != nil && s.member.last
	return func() {
		owns := registry[s.kind].owns
		for _, r := range owns {
			if r.all == nil {
				continue
			}
			for _, m := range r.all(a.db, id) {
				a.remove(m)
			}
		}
		a.remove(o)
		if !last {
			a.enlist(s.kind, was, -1)
		}
		for _, r := range owns {
			if r.all != nil {
				continue
			}
			if m := lookup(a.db, r.kind, id); m != nil {
				a.remove(m)
			}
		}
		if last {
			a.enlist(s.kind, was, -1)
		}
		var none M
		retally(a, registry[s.kind], was, none)
		if s.delete.gone != nil {
			s.delete.gone(a, id, was)
		}
	}, Accepted
}

// retally moves an object from the sets in which it was to those in which it is now. was
// or is may be a nil message. Sets that it stays in are not touched.
func retally(a *applier, r *row, was, is proto.Message) {
	for _, t := range r.tallies {
		before, after := t.sets(was), t.sets(is)
		for _, id := range before {
			if _, stays := slices.BinarySearch(after, id); !stays {
				addTo(a, t.in, []byte(id), -1)
			}
		}
		for _, id := range after {
			if _, stayed := slices.BinarySearch(before, id); !stayed {
				addTo(a, t.in, []byte(id), 1)
			}
		}
	}
}

// addTo adds by to the count of a set.
func addTo(a *applier, kind fsmpb.Kind, set []byte, by int) {
	n := uint32(int(a.count(kind, set)) + by)
	a.put(kind, set, registry[kind].count(set, n, 0))
}

// enlist adds by to the count of the set that an object is in, if it is in one.
func (a *applier) enlist(kind fsmpb.Kind, m proto.Message, by int) {
	r := registry[kind]
	if r.set == nil {
		return
	}
	if set, in := r.set(m); in {
		addTo(a, r.setKind, set, by)
	}
}

// count returns the count of a set.
func (a *applier) count(kind fsmpb.Kind, set []byte) uint32 {
	if o := lookup(a.db, kind, set); o != nil {
		return o.value.(uint32)
	}
	return 0
}

// put stores msg and sets its version. From then on msg belongs to the state.
func (a *applier) put(kind fsmpb.Kind, id []byte, msg proto.Message) {
	*registry[kind].version(msg) = a.index
	a.hash.Object(kind, id, msg)
	db := a.writable()
	db.insert(newObject(a.f.texts, db, kind, id, a.index, msg))
}

func (a *applier) remove(o *object) {
	a.hash.Object(o.kind(), o.name(), nil)
	a.writable().remove(o)
}
