package ops

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// Destroy removes the bytes of the imported materials for which gone returns true. The rest
// of a material stays, because only the same bytes may be imported in its place.
// PutDestroyed forgets materials that were never current.
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

// PutDestroyed changes t's key to k after Destroy. A material that was waiting for a
// rotation is forgotten by all keys of the set once no other key of the set has it.
func PutDestroyed(ev *request.Evaluation, t *request.Target, k *fsmpb.Key) error {
	members := MembersOf(ev, t)
	k.Materials = slices.DeleteFunc(k.Materials, func(m *fsmpb.Material) bool {
		return m.Pending && len(m.Wrapped) == 0 && !slices.ContainsFunc(members, func(o *request.Target) bool {
			return o.ID != t.ID && holds(o.Key, m)
		})
	})
	return PutMembers(ev, k, members)
}

// holds reports whether a key has the bytes of a material of its set.
func holds(k *fsmpb.Key, m *fsmpb.Material) bool {
	n := request.MaterialOf(k, m.Id)
	return n != nil && len(n.Wrapped) > 0
}
