package keyengine

import (
	"bytes"
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/cloudflare/circl/kem"
	"github.com/cloudflare/circl/kem/mlkem/mlkem1024"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
	"github.com/cloudflare/circl/kem/mlkem/mlkem768"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vectors"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// kemSpecs are those of ML-KEM, with an implementation of each that is not the one
// in use, but for the smallest.
var kemSpecs = []struct {
	spec       string
	ciphertext int
	scheme     kem.Scheme
}{
	{"ML_KEM_512", 768, mlkem512.Scheme()},
	{"ML_KEM_768", 1088, mlkem768.Scheme()},
	{"ML_KEM_1024", 1568, mlkem1024.Scheme()},
}

const algorithmMLKEM = "ML_KEM"

func encapsulateInput(id string) *kmsapi.EncapsulateInput {
	return &kmsapi.EncapsulateInput{KeyId: &id, EncapsulationAlgorithm: new(algorithmMLKEM)}
}

func decapsulateInput(id string, ciphertext []byte) *kmsapi.DecapsulateInput {
	return &kmsapi.DecapsulateInput{KeyId: &id, SharedSecretCiphertextBlob: ciphertext, EncapsulationAlgorithm: new(algorithmMLKEM)}
}

func (r *room) encapsulates(id string) *kmsapi.EncapsulateOutput {
	r.t.Helper()
	return must[kmsapi.EncapsulateOutput](r, "Encapsulate", encapsulateInput(id))
}

func (r *room) decapsulates(id string, ciphertext []byte) []byte {
	r.t.Helper()
	return must[kmsapi.DecapsulateOutput](r, "Decapsulate", decapsulateInput(id, ciphertext)).SharedSecret
}

// outsideKey reads a public key from its SubjectPublicKeyInfo with other code.
func outsideKey(t testing.TB, scheme kem.Scheme, spki []byte) kem.PublicKey {
	t.Helper()
	var info struct {
		Algorithm struct{ OID asn1.ObjectIdentifier }
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		t.Fatalf("public key: %v, %d bytes left", err, len(rest))
	}
	key, err := scheme.UnmarshalBinaryPublicKey(info.Key.RightAlign())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestEncapsulate: what one node encapsulates another decapsulates; nothing of it is
// in the records.
func TestEncapsulate(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	for _, tt := range kemSpecs {
		id, arn := r.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		out := r.encapsulates(id)
		if *out.KeyId != arn || *out.EncapsulationAlgorithm != algorithmMLKEM || len(out.SharedSecret) != 32 || len(out.SharedSecretCiphertextBlob) != tt.ciphertext {
			t.Errorf("%s: answer of %s with %s, %d bytes, %d bytes", tt.spec, *out.KeyId, *out.EncapsulationAlgorithm, len(out.SharedSecret), len(out.SharedSecretCiphertextBlob))
		}
		made := r.lastRecord()
		again := r.encapsulates(id)
		if bytes.Equal(again.SharedSecret, out.SharedSecret) || bytes.Equal(again.SharedSecretCiphertextBlob, out.SharedSecretCiphertextBlob) {
			t.Errorf("%s: the same secret twice", tt.spec)
		}
		got, err := callAs[kmsapi.DecapsulateOutput](r, r.engines["n2"], r.root, "Decapsulate", decapsulateInput(id, out.SharedSecretCiphertextBlob))
		if err != nil || !bytes.Equal(got.SharedSecret, out.SharedSecret) || *got.KeyId != arn || *got.EncapsulationAlgorithm != algorithmMLKEM {
			t.Errorf("%s: decapsulated to %v, %v", tt.spec, got, err)
		}
		opened := r.lastRecord()
		for op, rec := range map[string]string{"Encapsulate": made.String(), "Decapsulate": opened.String()} {
			if !strings.Contains(rec, op) || !strings.Contains(rec, arn) || !strings.Contains(rec, "encapsulationAlgorithm") || !strings.Contains(rec, "keyMaterialId") {
				t.Errorf("record of %s: %s", op, rec)
			}
			for _, secret := range [][]byte{out.SharedSecret, out.SharedSecretCiphertextBlob} {
				if strings.Contains(rec, string(secret[:8])) {
					t.Errorf("the record of %s has what it may not", op)
				}
			}
		}
		if !made.ReadOnly || len(made.RequestParameters) != 2 || len(opened.RequestParameters) != 2 {
			t.Errorf("%s: parameters %v, %v", tt.spec, made.RequestParameters, opened.RequestParameters)
		}
	}
}

// TestEncapsulatedOutside: a secret that somebody made who has the public key only is
// found here, and one that was made here is found by whoever has the private key.
func TestEncapsulatedOutside(t *testing.T) {
	r := newRoom(t)
	symmetric, _ := r.newKey()
	for _, tt := range kemSpecs {
		id, _ := r.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		ciphertext, secret, err := tt.scheme.Encapsulate(outsideKey(t, tt.scheme, r.publicKey(id)))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.decapsulates(id, ciphertext); !bytes.Equal(got, secret) {
			t.Errorf("%s: decapsulated to %x, want %x", tt.spec, got, secret)
		}
		pair := must[kmsapi.GenerateDataKeyPairOutput](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec})
		seed := pair.PrivateKeyPlaintext[len(pair.PrivateKeyPlaintext)-64:]
		held := r.refilled(id, seed)
		if !bytes.Equal(r.publicKey(held), pair.PublicKey) {
			t.Errorf("%s: the seed gave another public key", tt.spec)
		}
		made := r.encapsulates(held)
		_, private := tt.scheme.DeriveKeyPair(seed)
		if got, err := tt.scheme.Decapsulate(private, made.SharedSecretCiphertextBlob); err != nil || !bytes.Equal(got, made.SharedSecret) {
			t.Errorf("%s: outside it is %x, want %x (%v)", tt.spec, got, made.SharedSecret, err)
		}
		// A ciphertext that is not genuine gives the secret that FIPS 203 says.
		made.SharedSecretCiphertextBlob[7] ^= 1
		want, err := tt.scheme.Decapsulate(private, made.SharedSecretCiphertextBlob)
		if got := r.decapsulates(held, made.SharedSecretCiphertextBlob); err != nil || !bytes.Equal(got, want) || bytes.Equal(got, made.SharedSecret) {
			t.Errorf("%s: a ciphertext that was changed gives %x, want %x (%v)", tt.spec, got, want, err)
		}
	}
}

// TestDecapsulateLength: only the length of a ciphertext can be wrong, and a dry run
// sees that too.
func TestDecapsulateLength(t *testing.T) {
	r := newRoom(t)
	r.manyRefusals()
	for _, tt := range kemSpecs {
		id, _ := r.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		for _, dry := range []*bool{nil, new(false), new(true)} {
			for _, size := range []int{1, tt.ciphertext - 1, tt.ciphertext + 1, 768, 1088, 1568, 6144} {
				in := decapsulateInput(id, make([]byte, size))
				in.DryRun = dry
				_, err := call[kmsapi.DecapsulateOutput](r, "Decapsulate", in)
				switch {
				case size != tt.ciphertext:
					wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
				case request.IsSet(dry):
					wantError(t, err, kmsapi.ErrDryRun, request.ErrDryRun.Message)
				case err != nil:
					t.Errorf("%s: %v", tt.spec, err)
				}
			}
			for _, size := range []int{0, 6145} {
				_, err := call[request.None](r, "Decapsulate", decapsulateInput(id, make([]byte, size)))
				wantError(t, err, kmsapi.ErrValidation, "…")
			}
		}
	}
}

// TestEncapsulateInRegions: a replica decapsulates what was encapsulated for the
// primary.
func TestEncapsulateInRegions(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	for _, tt := range kemSpecs {
		id := r.newMultiKey(kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageEncapsulate)}, secondRegion)
		out := r.encapsulates(id)
		got := mustIn[kmsapi.DecapsulateOutput](r, secondRegion, "Decapsulate", decapsulateInput(id, out.SharedSecretCiphertextBlob))
		if !bytes.Equal(got.SharedSecret, out.SharedSecret) || *got.KeyId != multiARN(secondRegion, id) {
			t.Errorf("%s: the replica %s gives another secret", tt.spec, *got.KeyId)
		}
		there := mustIn[kmsapi.EncapsulateOutput](r, secondRegion, "Encapsulate", encapsulateInput(id))
		if !bytes.Equal(r.decapsulates(id, there.SharedSecretCiphertextBlob), there.SharedSecret) {
			t.Errorf("%s: the primary gives another secret", tt.spec)
		}
	}
}

// TestEncapsulateByGrant: a grant allows the one operation that it names.
func TestEncapsulateByGrant(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKeyOf("ML_KEM_768", kmsapi.UsageEncapsulate)
	alice := r.user(aliceARN)
	ciphertext := r.encapsulates(id).SharedSecretCiphertextBlob
	ask := map[string]any{"Encapsulate": encapsulateInput(id), "Decapsulate": decapsulateInput(id, ciphertext)}
	for granted := range ask {
		grant := r.createGrant(id, aliceARN, granted)
		for op, in := range ask {
			_, err := r.first.Do(t.Context(), r.caller(alice), OperationNamed(op), in)
			if op == granted {
				if err != nil {
					t.Errorf("%s, with a grant of it: %v", op, err)
				}
				continue
			}
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
		}
		must[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId})
	}
}

// TestSharedSecretsAreWiped: a secret whose record was not committed is gone.
func TestSharedSecretsAreWiped(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKeyOf("ML_KEM_512", kmsapi.UsageEncapsulate)
	ciphertext := r.encapsulates(id).SharedSecretCiphertextBlob
	for op, in := range map[string]any{"Encapsulate": encapsulateInput(id), "Decapsulate": decapsulateInput(id, ciphertext)} {
		ev := request.Evaluate(t.Context(), r.first.services, r.cluster.state(), r.caller(r.root), OperationNamed(op), in)
		var secret []byte
		switch out := ev.Out.(type) {
		case *kmsapi.EncapsulateOutput:
			secret = out.SharedSecret
		case *kmsapi.DecapsulateOutput:
			secret = out.SharedSecret
		}
		if len(secret) != 32 || bytes.Equal(secret, make([]byte, 32)) {
			t.Fatalf("%s: %x, %v", op, secret, ev.Err)
		}
		if out, err := r.first.finish(t.Context(), ev, fsm.Decision{Verdict: fsm.Conflict}, r.first.events.Settle(t.Context(), fsm.Decision{Verdict: fsm.Conflict}, nil)); err == nil || out != nil {
			t.Errorf("%s: got %v, %v", op, out, err)
		}
		if !bytes.Equal(secret, make([]byte, 32)) {
			t.Errorf("%s: the secret was not wiped", op)
		}
	}
}

// TestVectorsMLKEM: Wycheproof's vectors through the engine.
func TestVectorsMLKEM(t *testing.T) {
	for _, tt := range kemSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			r := newRoom(t)
			r.manyRefusals()
			like, _ := r.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
			var n tally
			for _, g := range vectors.Wycheproof(t, "mlkem_"+strings.TrimPrefix(tt.spec, "ML_KEM_")) {
				for _, v := range g.Tests {
					if len(v.Seed) != 64 || len(v.C) == 0 {
						n.left++ // seeds and ciphertexts that no request and no key can have
						continue
					}
					id := r.refilled(like, v.Seed)
					out, err := call[kmsapi.DecapsulateOutput](r, "Decapsulate", decapsulateInput(id, v.C))
					n.judge(t, v, err, kmsapi.ErrInvalidCiphertext)
					if err == nil && !bytes.Equal(out.SharedSecret, v.K) {
						t.Errorf("vector %d (%s): %x, want %x", v.TcID, v.Comment, out.SharedSecret, v.K)
					}
					if !bytes.HasSuffix(r.publicKey(id), v.EK) {
						t.Errorf("vector %d: another public key", v.TcID)
					}
				}
			}
			n.report(t)
		})
	}
}
