package request

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
)

// foundRules are the policies that were found in a state, and everything that says which they
// are. They are the same in every state with the same objects.
type foundRules struct {
	objects uint64 // of the state; see fsm.State.Objects
	rules   *ownRules
	reads   []found
}

// found is an item of a read set.
type found struct {
	kind    fsmpb.Kind
	id      []byte
	version fsm.Version
}

// maxOwners limits the number of users and roles whose policies are remembered. Each takes less
// than a KiB.
const maxOwners = 4096

// ownerOf returns the user or role that has all policies of a caller; nil for a caller who has
// others, such as the policies of a session, or none at all.
func ownerOf(who *iam.Entity) entity {
	switch {
	case who.Session.GetPolicy() != "" || len(who.Session.GetPolicies()) > 0:
		return nil
	case who.User != nil:
		return who.User
	case who.Role != nil:
		return who.Role
	}
	return nil
}

// rememberedRules is rulesOf for the caller, whose policies are all those of owner. If the state
// has the same objects as the one in which they were found last, it only adds the same items to
// the read set.
func rememberedRules(ev *Evaluation, owner entity) (*ownRules, error) {
	objects := ev.State.Objects()
	if f, ok := ev.Policies.owners.Get(owner); ok && f.objects == objects {
		for i := range f.reads {
			ev.Note(f.reads[i].kind, f.reads[i].id, f.reads[i].version)
		}
		return f.rules, nil
	}
	// The read set is set aside: it may have some of the items already, and those belong to
	// what is remembered all the same.
	before := ev.Reads
	ev.Reads = nil
	rules, err := rulesOf(ev, &ev.who)
	mine := ev.Reads
	ev.Reads = before
	f := &foundRules{objects: objects, rules: rules, reads: make([]found, 0, len(mine))}
	for _, r := range mine {
		f.reads = append(f.reads, found{r.Kind, r.Id, r.Version})
		ev.Note(r.Kind, r.Id, r.Version)
	}
	if err == nil {
		ev.Policies.owners.Put(owner, f)
	}
	return rules, err
}
