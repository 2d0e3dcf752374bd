package keyengine

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// destroy removes the imported materials that gone chooses. What tells a material
// again stays, as nothing else may be imported in its place; putDestroyed forgets
// what never came to be used.
func destroy(k *fsmpb.Key, gone func(*fsmpb.Material) bool) {
	for _, m := range k.Materials {
		if gone(m) {
			m.Generation, m.Wrapped, m.ValidTo = 0, nil, 0
			if !m.Pending {
				awaitImport(k)
			}
		}
	}
}

// putDestroyed changes t's key to k, some of whose material was destroyed. One that
// waited for a rotation is forgotten, by the whole set, when the last key of the set
// that had it has it no more.
func putDestroyed(ev *eval, t *target, k *fsmpb.Key) error {
	members := membersOf(ev, t)
	k.Materials = slices.DeleteFunc(k.Materials, func(m *fsmpb.Material) bool {
		return m.Pending && len(m.Wrapped) == 0 && !slices.ContainsFunc(members, func(o *target) bool {
			return o.id != t.id && holds(o.key, m)
		})
	})
	return putMembers(ev, k, members)
}

// holds tells whether a key has the bytes of a material of its set.
func holds(k *fsmpb.Key, m *fsmpb.Material) bool {
	n := materialOf(k, m.Id)
	return n != nil && len(n.Wrapped) > 0
}
