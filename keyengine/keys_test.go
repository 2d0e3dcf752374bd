package keyengine

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
)

// newKeyOf makes a key of a spec for a usage.
func (r *room) newKeyOf(spec, usage string) (id, arn string) {
	r.t.Helper()
	m := must[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata
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
		m := sameMaterial(k, given)
		if m == nil {
			m = proto.CloneOf(given)
			m.Pending = len(k.Materials) > 0
			k.Materials = append(k.Materials, m)
		}
		if err := r.first.vault.wrapAgain(k, m, b); err != nil {
			r.t.Fatalf("wrapping: %v", err)
		}
		k.State = fsmpb.KeyState_KEY_STATE_ENABLED
		r.cluster.change(putKeyChange(k))
	}
}

// wrapMaterial makes a material of a key of bytes, with its public half.
func (r *room) wrapMaterial(k *fsmpb.Key, b []byte) *fsmpb.Material {
	r.t.Helper()
	m, err := r.first.vault.givenMaterial(k, r.cluster.clock.Now().UnixNano(), bytes.Clone(b))
	if err == nil && k.Spec != specSymmetric {
		m.PublicKey, err = primitive.Public(k.Spec, b)
	}
	if err != nil {
		r.t.Fatalf("wrapping: %v", err)
	}
	return m
}

func (r *room) publicKey(id string) []byte {
	r.t.Helper()
	return must[GetPublicKeyOutput](r, "GetPublicKey", &GetPublicKeyInput{KeyId: &id}).PublicKey
}

// signInput and macInput are requests that keys of the table of key states take.
func (r *room) signInput(id string) *SignInput {
	return &SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: ptr("ECDSA_SHA_256")}
}

func (r *room) macInput(id string) *GenerateMacInput {
	return &GenerateMacInput{KeyId: &id, Message: []byte("m"), MacAlgorithm: ptr("HMAC_SHA_256")}
}

// manyRefusals lets the first node refuse more than one principal may cause.
func (r *room) manyRefusals() {
	r.first.limits = newLimits(Config{Clock: r.cluster.clock, RefusalBurst: 1 << 20})
}
