package keyengine

import (
	"bytes"
	"crypto/rand"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// newKeyOf makes a key of a spec for a usage.
func (r *room) newKeyOf(spec, usage string) (id, arn string) {
	r.t.Helper()
	m := must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata
	return *m.KeyId, *m.Arn
}

// give puts material into a key for imported material, in each Region that has the
// key, as if it had been imported.
func (r *room) give(id string, b []byte) {
	r.t.Helper()
	var given *fsmpb.Material
	for _, region := range threeRegions() {
		was := r.keyIn(region, id)
		if was == nil {
			continue
		}
		k := cloneOf(was)
		if given == nil {
			given = r.wrapMaterial(k, b)
		}
		m := ops.SameMaterial(k, given)
		if m == nil {
			m = proto.CloneOf(given)
			m.Pending = len(k.Materials) > 0
			k.Materials = append(k.Materials, m)
		}
		if known := ops.SameMaterial(was, given); known == nil || len(known.Wrapped) == 0 {
			if err := r.first.vault.WrapAgain(k, m, b); err != nil {
				r.t.Fatalf("wrapping: %v", err)
			}
		}
		k.State = fsmpb.KeyState_KEY_STATE_ENABLED
		r.cluster.change(putKeyChange(k))
	}
}

// another makes a key like one that there is, but for what edit changes.
func (r *room) another(id string, edit func(*fsmpb.Key)) string {
	r.t.Helper()
	k := cloneOf(r.stored(id))
	k.Id = make([]byte, 16)
	rand.Read(k.Id)
	edit(k)
	r.cluster.change(putKeyChange(k), defaultPolicyChange(k))
	return request.FormatKeyID([16]byte(k.Id), k.MultiRegion)
}

// refilled makes a key like one that was made here, of other material, for kinds of
// keys that cannot be imported.
func (r *room) refilled(id string, b []byte) string {
	r.t.Helper()
	return r.another(id, func(k *fsmpb.Key) {
		m := r.wrapMaterial(k, b)
		if err := r.first.vault.WrapAgain(k, m, b); err != nil {
			r.t.Fatalf("wrapping: %v", err)
		}
		k.Materials = []*fsmpb.Material{m}
	})
}

// wrapMaterial makes a material of a key of bytes, with its public half.
func (r *room) wrapMaterial(k *fsmpb.Key, b []byte) *fsmpb.Material {
	r.t.Helper()
	m, err := r.first.vault.GivenMaterial(k, r.cluster.clock.Now().UnixNano(), bytes.Clone(b))
	if err == nil && k.Spec != kmsapi.SpecSymmetric {
		m.PublicKey, err = primitive.Public(k.Spec, b)
	}
	if err != nil {
		r.t.Fatalf("wrapping: %v", err)
	}
	return m
}

func (r *room) publicKey(id string) []byte {
	r.t.Helper()
	return must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id}).PublicKey
}

// signInput and macInput are requests that keys of the table of key states take.
func (r *room) signInput(id string) *kmsapi.SignInput {
	return &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}
}

func (r *room) macInput(id string) *kmsapi.GenerateMacInput {
	return &kmsapi.GenerateMacInput{KeyId: &id, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}
}

// manyRefusals lets the first node refuse more than one principal may cause.
func (r *room) manyRefusals() {
	r.first.limits = newLimits(Config{Clock: r.cluster.clock, RefusalBurst: 1 << 20})
}
