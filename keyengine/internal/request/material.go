package request

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

// There tells whether a material is there at a cluster time: imported ones can be
// deleted and can expire.
func There(m *fsmpb.Material, at int64) bool {
	return len(m.Wrapped) > 0 && (m.ValidTo == 0 || at < m.ValidTo)
}

// Complete tells whether a key has all the material that it needs to work.
func Complete(k *fsmpb.Key, at int64) bool {
	return CurrentMaterial(k) != nil && !slices.ContainsFunc(k.Materials, func(m *fsmpb.Material) bool {
		return !m.Pending && !There(m, at)
	})
}

// asOf is a key as it is at the state's time. Material is gone from the moment on
// that it expires; that it is destroyed too, which the leader sees to, may take a
// little longer. What is derived from material that has yet to expire holds until
// then.
func asOf(ev *Evaluation, k *fsmpb.Key) *fsmpb.Key {
	if k == nil || k.Origin != kmsapi.OriginImported {
		return k
	}
	now := ev.State.Time()
	for _, m := range k.Materials {
		if There(m, now) {
			ev.Within(0, m.ValidTo)
		}
	}
	if !SwitchedOn(k.State) || Complete(k, now) {
		return k
	}
	k = proto.CloneOf(k)
	AwaitImport(k)
	return k
}

// SwitchedOn tells whether a key has the one of the two states that its owner
// chooses between.
func SwitchedOn(s fsmpb.KeyState) bool {
	return s == fsmpb.KeyState_KEY_STATE_ENABLED || s == fsmpb.KeyState_KEY_STATE_DISABLED
}

// AwaitImport has a key that lacks material wait for it. One that is to be deleted
// stays so.
func AwaitImport(k *fsmpb.Key) {
	if SwitchedOn(k.State) {
		k.DisabledBeforeImport = k.State == fsmpb.KeyState_KEY_STATE_DISABLED
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	}
}

// EndImport has a key that waited for material work again, unless it was disabled.
func EndImport(k *fsmpb.Key, at int64) {
	if k.State != fsmpb.KeyState_KEY_STATE_PENDING_IMPORT || !Complete(k, at) {
		return
	}
	k.State = fsmpb.KeyState_KEY_STATE_ENABLED
	if k.DisabledBeforeImport {
		k.State = fsmpb.KeyState_KEY_STATE_DISABLED
	}
	k.DisabledBeforeImport = false
}

// PendingMaterial is the imported material that the next rotation makes current;
// nil when there is none.
func PendingMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range k.Materials {
		if m.Pending {
			return m
		}
	}
	return nil
}

// Expires is the earliest time at which a material of a key expires; 0 for never.
func Expires(k *fsmpb.Key) (at int64) {
	for _, m := range k.Materials {
		if len(m.Wrapped) > 0 && m.ValidTo != 0 && (at == 0 || m.ValidTo < at) {
			at = m.ValidTo
		}
	}
	return at
}

// Replica tells whether a key is a multi-Region key that follows a primary.
func Replica(k *fsmpb.Key) bool { return k.MultiRegion && k.PrimaryRegion != k.Region }

// CurrentMaterial is the material that encrypts; nil for a key that has none yet.
// Imported material that was deleted since is still the current one.
func CurrentMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range slices.Backward(k.Materials) {
		if !m.Pending {
			return m
		}
	}
	return nil
}

// MaterialOf is the version of a key's material with that id; nil if it has none.
func MaterialOf(k *fsmpb.Key, id []byte) *fsmpb.Material {
	for _, m := range k.Materials {
		if bytes.Equal(m.Id, id) {
			return m
		}
	}
	return nil
}

// MaterialID is the KeyMaterialId of a material.
func MaterialID(m *fsmpb.Material) *string { return new(hexOf(m.MaterialId)) }

// ShownMaterial is the KeyMaterialId that answers show: symmetric keys' only.
func ShownMaterial(t *Target, m *fsmpb.Material) *string {
	if t.Key.Spec != kmsapi.SpecSymmetric || t.Key.KeyStore != "" || m == nil {
		return nil
	}
	return MaterialID(m)
}
