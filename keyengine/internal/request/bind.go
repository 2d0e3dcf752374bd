package request

import (
	"cmp"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/policy"
)

// MaxBindings is the number of users, roles and sessions that a policy may name. Each is read
// by the requests that store or show the policy.
const MaxBindings = 100

// Bind finds out who is meant by the names in a new policy that takes the place of one with
// the bindings replaced. What says so is added to the read set. If a principal does not exist,
// Bind returns it as invalid. A unique id is accepted only if it is one that the replaced
// policy shows, as that of somebody who was deleted.
func Bind(ev *Evaluation, doc *policy.Document, replaced []*fsmpb.Binding) (bindings []*fsmpb.Binding, invalid *policy.Principal) {
	for _, p := range append(doc.Principals(), doc.Providers()...) {
		if p.ID != "" {
			if !binding.Deleted(ev.State, p.ARN, replaced, ev.Note) {
				return nil, &p
			}
			bindings = append(bindings, &fsmpb.Binding{Name: p.ARN, Id: p.ID})
			continue
		}
		id, ok := binding.Find(ev.State, p, ev.Note)
		if !ok {
			return nil, &p
		}
		if id != "" {
			who, err := policy.ParseUniqueID(id)
			if err != nil {
				return nil, &p
			}
			bindings = append(bindings, &fsmpb.Binding{Name: p.ARN, Id: who.ID})
		}
	}
	slices.SortFunc(bindings, func(a, b *fsmpb.Binding) int { return cmp.Compare(a.Name, b.Name) })
	return bindings, nil
}

// Exists reports whether a principal that a policy or a grant names exists, and adds what
// says so to the read set. Of sessions, only the role has to exist.
func Exists(ev *Evaluation, p policy.Principal) bool {
	_, ok := binding.Find(ev.State, p, ev.Note)
	return ok
}
