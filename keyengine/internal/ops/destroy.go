package ops

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// Destroy removes the imported materials that gone chooses. What tells a material
// again stays, as nothing else may be imported in its place; putDestroyed forgets
// what never came to be used.
func Destroy(k *fsmpb.Key, gone func(*fsmpb.Material) bool) {
	for _, m := range k.Materials {
		if gone(m) {
			m.Generation, m.Wrapped, m.ValidTo = 0, nil, 0
			if !m.Pending {
				request.AwaitImport(k)
			}
		}
	}
}

// PutDestroyed changes t's key to k, some of whose material was destroyed. One that
// waited for a rotation is forgotten, by the whole set, when the last key of the set
// that had it has it no more.
func PutDestroyed(ev *request.Evaluation, t *request.Target, k *fsmpb.Key) error {
	members := MembersOf(ev, t)
	k.Materials = slices.DeleteFunc(k.Materials, func(m *fsmpb.Material) bool {
		return m.Pending && len(m.Wrapped) == 0 && !slices.ContainsFunc(members, func(o *request.Target) bool {
			return o.ID != t.ID && holds(o.Key, m)
		})
	})
	return PutMembers(ev, k, members)
}

// holds tells whether a key has the bytes of a material of its set.
func holds(k *fsmpb.Key, m *fsmpb.Material) bool {
	n := request.MaterialOf(k, m.Id)
	return n != nil && len(n.Wrapped) > 0
}
