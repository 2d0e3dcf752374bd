package keyengine

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// What a key's materials say about the key. Materials are permanently a key's once
// they were current: from then on the key works only while all of them are there,
// as it could not open its own ciphertexts otherwise.

// there tells whether a material is there at a cluster time: imported ones can be
// deleted and can expire.
func there(m *fsmpb.Material, at int64) bool {
	return len(m.Wrapped) > 0 && (m.ValidTo == 0 || at < m.ValidTo)
}

// complete tells whether a key has all the material that it needs to work.
func complete(k *fsmpb.Key, at int64) bool {
	return currentMaterial(k) != nil && !slices.ContainsFunc(k.Materials, func(m *fsmpb.Material) bool {
		return !m.Pending && !there(m, at)
	})
}

// asOf is a key as it is at the state's time. Material is gone from the moment on
// that it expires; that it is destroyed too, which the leader sees to, may take a
// little longer. What is derived from material that has yet to expire holds until
// then.
func asOf(ev *eval, k *fsmpb.Key) *fsmpb.Key {
	if k == nil || k.Origin != kmsapi.OriginImported {
		return k
	}
	now := ev.state.Time()
	for _, m := range k.Materials {
		if there(m, now) {
			ev.within(0, m.ValidTo)
		}
	}
	if !switchedOn(k.State) || complete(k, now) {
		return k
	}
	k = proto.CloneOf(k)
	awaitImport(k)
	return k
}

// switchedOn tells whether a key has the one of the two states that its owner
// chooses between.
func switchedOn(s fsmpb.KeyState) bool {
	return s == fsmpb.KeyState_KEY_STATE_ENABLED || s == fsmpb.KeyState_KEY_STATE_DISABLED
}

// awaitImport has a key that lacks material wait for it. One that is to be deleted
// stays so.
func awaitImport(k *fsmpb.Key) {
	if switchedOn(k.State) {
		k.DisabledBeforeImport = k.State == fsmpb.KeyState_KEY_STATE_DISABLED
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	}
}

// endImport has a key that waited for material work again, unless it was disabled.
func endImport(k *fsmpb.Key, at int64) {
	if k.State != fsmpb.KeyState_KEY_STATE_PENDING_IMPORT || !complete(k, at) {
		return
	}
	k.State = fsmpb.KeyState_KEY_STATE_ENABLED
	if k.DisabledBeforeImport {
		k.State = fsmpb.KeyState_KEY_STATE_DISABLED
	}
	k.DisabledBeforeImport = false
}

// pendingMaterial is the imported material that the next rotation makes current;
// nil when there is none.
func pendingMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range k.Materials {
		if m.Pending {
			return m
		}
	}
	return nil
}

// expires is the earliest time at which a material of a key expires; 0 for never.
func expires(k *fsmpb.Key) (at int64) {
	for _, m := range k.Materials {
		if len(m.Wrapped) > 0 && m.ValidTo != 0 && (at == 0 || m.ValidTo < at) {
			at = m.ValidTo
		}
	}
	return at
}

// replica tells whether a key is a multi-Region key that follows a primary.
func replica(k *fsmpb.Key) bool { return k.MultiRegion && k.PrimaryRegion != k.Region }

// currentMaterial is the material that encrypts; nil for a key that has none yet.
// Imported material that was deleted since is still the current one.
func currentMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range slices.Backward(k.Materials) {
		if !m.Pending {
			return m
		}
	}
	return nil
}

// materialOf is the version of a key's material with that id; nil if it has none.
func materialOf(k *fsmpb.Key, id []byte) *fsmpb.Material {
	for _, m := range k.Materials {
		if bytes.Equal(m.Id, id) {
			return m
		}
	}
	return nil
}

// materialID is the KeyMaterialId of a material.
func materialID(m *fsmpb.Material) *string { return new(hexOf(m.MaterialId)) }

// shownMaterial is the KeyMaterialId that answers show: symmetric keys' only.
func shownMaterial(t *target, m *fsmpb.Material) *string {
	if t.key.Spec != kmsapi.SpecSymmetric || t.key.KeyStore != "" || m == nil {
		return nil
	}
	return materialID(m)
}
