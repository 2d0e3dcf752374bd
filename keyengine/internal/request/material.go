package request

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The availability of a key's materials. Once a material has been current, it belongs to
// the key for good: without it the key could not decrypt its own ciphertexts, so the key is
// usable only while all such materials are there.

// There reports whether a material is present at a cluster time. Imported material can be
// deleted and can expire.
func There(m *fsmpb.Material, at int64) bool {
	return len(m.Wrapped) > 0 && (m.ValidTo == 0 || at < m.ValidTo)
}

// Complete reports whether a key has all the material that it needs.
func Complete(k *fsmpb.Key, at int64) bool {
	return CurrentMaterial(k) != nil && !slices.ContainsFunc(k.Materials, func(m *fsmpb.Material) bool {
		return !m.Pending && !There(m, at)
	})
}

// asOf returns a key as of the state's time. Material is unavailable from the moment that
// it expires; the leader destroys it somewhat later. An outcome that depends on material
// which is going to expire is valid only until then.
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

// SwitchedOn reports whether a key is enabled or disabled, and not in one of the other
// states.
func SwitchedOn(s fsmpb.KeyState) bool {
	return s == fsmpb.KeyState_KEY_STATE_ENABLED || s == fsmpb.KeyState_KEY_STATE_DISABLED
}

// AwaitImport puts a key that lacks material in the state PendingImport, unless it is to be
// deleted.
func AwaitImport(k *fsmpb.Key) {
	if SwitchedOn(k.State) {
		k.DisabledBeforeImport = k.State == fsmpb.KeyState_KEY_STATE_DISABLED
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	}
}

// EndImport restores the state of a key that has its material again: it is enabled unless
// it was disabled before.
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

// PendingMaterial returns the imported material that the next rotation will make current,
// or nil.
func PendingMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range k.Materials {
		if m.Pending {
			return m
		}
	}
	return nil
}

// Expires returns the earliest time at which a material of the key expires, or 0.
func Expires(k *fsmpb.Key) (at int64) {
	for _, m := range k.Materials {
		if len(m.Wrapped) > 0 && m.ValidTo != 0 && (at == 0 || m.ValidTo < at) {
			at = m.ValidTo
		}
	}
	return at
}

// Replica reports whether a key is a multi-Region replica key.
func Replica(k *fsmpb.Key) bool { return k.MultiRegion && k.PrimaryRegion != k.Region }

// CurrentMaterial returns the material that encrypts, or nil if the key has none yet. It
// may be an imported material that was deleted since.
func CurrentMaterial(k *fsmpb.Key) *fsmpb.Material {
	for _, m := range slices.Backward(k.Materials) {
		if !m.Pending {
			return m
		}
	}
	return nil
}

// MaterialOf returns the key's material with the given id, or nil.
func MaterialOf(k *fsmpb.Key, id []byte) *fsmpb.Material {
	for _, m := range k.Materials {
		if bytes.Equal(m.Id, id) {
			return m
		}
	}
	return nil
}

// MaterialID returns the KeyMaterialId of a material.
func MaterialID(m *fsmpb.Material) *string { return new(hexOf(m.MaterialId)) }

// ShownMaterial returns the KeyMaterialId for answers, which only symmetric keys have.
func ShownMaterial(t *Target, m *fsmpb.Material) *string {
	if t.Key.Spec != kmsapi.SpecSymmetric || t.Key.KeyStore != "" || m == nil {
		return nil
	}
	return MaterialID(m)
}
