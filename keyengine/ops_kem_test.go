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

// kemSpecs are the specs of ML-KEM, each with an implementation that is not ours, except for the
// smallest.
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

func (c *testCluster) encapsulate(id string) *kmsapi.EncapsulateOutput {
	c.t.Helper()
	return must[kmsapi.EncapsulateOutput](c, "Encapsulate", encapsulateInput(id))
}

func (c *testCluster) decapsulate(id string, ciphertext []byte) []byte {
	c.t.Helper()
	return must[kmsapi.DecapsulateOutput](c, "Decapsulate", decapsulateInput(id, ciphertext)).SharedSecret
}

// parseKEMKey parses a public key without our code.
func parseKEMKey(t testing.TB, scheme kem.Scheme, spki []byte) kem.PublicKey {
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

// A secret that one node encapsulates is decapsulated by another, and is not in the audit records.
func TestEncapsulate(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	for _, tt := range kemSpecs {
		id, arn := c.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		out := c.encapsulate(id)
		if *out.KeyId != arn || *out.EncapsulationAlgorithm != algorithmMLKEM || len(out.SharedSecret) != 32 || len(out.SharedSecretCiphertextBlob) != tt.ciphertext {
			t.Errorf("%s: got key %s, algorithm %s, a secret of %d bytes, a ciphertext of %d bytes", tt.spec, *out.KeyId, *out.EncapsulationAlgorithm, len(out.SharedSecret), len(out.SharedSecretCiphertextBlob))
		}
		made := c.lastRecord()
		again := c.encapsulate(id)
		if bytes.Equal(again.SharedSecret, out.SharedSecret) || bytes.Equal(again.SharedSecretCiphertextBlob, out.SharedSecretCiphertextBlob) {
			t.Errorf("%s: Encapsulate returned the same secret or ciphertext twice", tt.spec)
		}
		got, err := callAs[kmsapi.DecapsulateOutput](c, c.engines["n2"], c.root, "Decapsulate", decapsulateInput(id, out.SharedSecretCiphertextBlob))
		if err != nil || !bytes.Equal(got.SharedSecret, out.SharedSecret) || *got.KeyId != arn || *got.EncapsulationAlgorithm != algorithmMLKEM {
			t.Errorf("%s: Decapsulate returned %v, error %v; want the same secret", tt.spec, got, err)
		}
		opened := c.lastRecord()
		for op, rec := range map[string]string{"Encapsulate": made.String(), "Decapsulate": opened.String()} {
			if !strings.Contains(rec, op) || !strings.Contains(rec, arn) || !strings.Contains(rec, "encapsulationAlgorithm") || !strings.Contains(rec, "keyMaterialId") {
				t.Errorf("unexpected record of %s: %s", op, rec)
			}
			for _, secret := range [][]byte{out.SharedSecret, out.SharedSecretCiphertextBlob} {
				if strings.Contains(rec, string(secret[:8])) {
					t.Errorf("the record of %s has the secret or the ciphertext", op)
				}
			}
		}
		if !made.ReadOnly || len(made.RequestParameters) != 2 || len(opened.RequestParameters) != 2 {
			t.Errorf("%s: got request parameters %v and %v", tt.spec, made.RequestParameters, opened.RequestParameters)
		}
	}
}

// A secret that other code encapsulates with the public key is decapsulated here, and other code
// decapsulates with the private key what was encapsulated here.
func TestEncapsulatedOutside(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	symmetric, _ := c.newKey()
	for _, tt := range kemSpecs {
		id, _ := c.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		ciphertext, secret, err := tt.scheme.Encapsulate(parseKEMKey(t, tt.scheme, c.publicKey(id)))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.decapsulate(id, ciphertext); !bytes.Equal(got, secret) {
			t.Errorf("%s: Decapsulate returned %x, want %x", tt.spec, got, secret)
		}
		pair := must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec})
		seed := pair.PrivateKeyPlaintext[len(pair.PrivateKeyPlaintext)-64:]
		held := c.copyKeyWithMaterial(id, seed)
		if !bytes.Equal(c.publicKey(held), pair.PublicKey) {
			t.Errorf("%s: the seed has another public key here", tt.spec)
		}
		made := c.encapsulate(held)
		_, private := tt.scheme.DeriveKeyPair(seed)
		if got, err := tt.scheme.Decapsulate(private, made.SharedSecretCiphertextBlob); err != nil || !bytes.Equal(got, made.SharedSecret) {
			t.Errorf("%s: other code decapsulates %x, want %x (%v)", tt.spec, got, made.SharedSecret, err)
		}
		// An altered ciphertext is decapsulated to another secret, as in FIPS 203.
		made.SharedSecretCiphertextBlob[7] ^= 1
		want, err := tt.scheme.Decapsulate(private, made.SharedSecretCiphertextBlob)
		if got := c.decapsulate(held, made.SharedSecretCiphertextBlob); err != nil || !bytes.Equal(got, want) || bytes.Equal(got, made.SharedSecret) {
			t.Errorf("%s: Decapsulate of an altered ciphertext returned %x, want %x (%v)", tt.spec, got, want, err)
		}
	}
}

// A ciphertext of the wrong size is refused, also in a dry run.
func TestDecapsulateLength(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	for _, tt := range kemSpecs {
		id, _ := c.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
		for _, dry := range []*bool{nil, new(false), new(true)} {
			for _, size := range []int{1, tt.ciphertext - 1, tt.ciphertext + 1, 768, 1088, 1568, 6144} {
				in := decapsulateInput(id, make([]byte, size))
				in.DryRun = dry
				_, err := call[kmsapi.DecapsulateOutput](c, "Decapsulate", in)
				switch {
				case size != tt.ciphertext:
					wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
				case request.IsSet(dry):
					wantError(t, err, kmsapi.ErrDryRun, request.ErrDryRun.Message)
				case err != nil:
					t.Errorf("%s: ciphertext of the right size: %v", tt.spec, err)
				}
			}
			for _, size := range []int{0, 6145} {
				_, err := call[request.None](c, "Decapsulate", decapsulateInput(id, make([]byte, size)))
				wantError(t, err, kmsapi.ErrValidation, "…")
			}
		}
	}
}

// A replica decapsulates what was encapsulated with the primary key, and vice versa.
func TestEncapsulateInRegions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	for _, tt := range kemSpecs {
		id := c.newMultiKey(kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageEncapsulate)}, secondRegion)
		out := c.encapsulate(id)
		got := mustIn[kmsapi.DecapsulateOutput](c, secondRegion, "Decapsulate", decapsulateInput(id, out.SharedSecretCiphertextBlob))
		if !bytes.Equal(got.SharedSecret, out.SharedSecret) || *got.KeyId != multiARN(secondRegion, id) {
			t.Errorf("%s: the replica %s decapsulates another secret", tt.spec, *got.KeyId)
		}
		there := mustIn[kmsapi.EncapsulateOutput](c, secondRegion, "Encapsulate", encapsulateInput(id))
		if !bytes.Equal(c.decapsulate(id, there.SharedSecretCiphertextBlob), there.SharedSecret) {
			t.Errorf("%s: the primary key decapsulates another secret", tt.spec)
		}
	}
}

// A grant allows only the operation that it names.
func TestEncapsulateByGrant(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("ML_KEM_768", kmsapi.UsageEncapsulate)
	alice := c.newUser(aliceARN)
	ciphertext := c.encapsulate(id).SharedSecretCiphertextBlob
	ask := map[string]any{"Encapsulate": encapsulateInput(id), "Decapsulate": decapsulateInput(id, ciphertext)}
	for granted := range ask {
		grant := c.createGrant(id, aliceARN, granted)
		for op, in := range ask {
			_, err := c.engine.Do(t.Context(), c.caller(alice), OperationNamed(KMS, op), in)
			if op == granted {
				if err != nil {
					t.Errorf("%s with a grant of it: %v", op, err)
				}
				continue
			}
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
		}
		must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId})
	}
}

// A secret whose record was not committed is wiped.
func TestSharedSecretsAreWiped(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("ML_KEM_512", kmsapi.UsageEncapsulate)
	ciphertext := c.encapsulate(id).SharedSecretCiphertextBlob
	for op, in := range map[string]any{"Encapsulate": encapsulateInput(id), "Decapsulate": decapsulateInput(id, ciphertext)} {
		ev := request.Evaluate(t.Context(), c.engine.services, c.State(), c.caller(c.root), OperationNamed(KMS, op), in)
		var secret []byte
		switch out := ev.Out.(type) {
		case *kmsapi.EncapsulateOutput:
			secret = out.SharedSecret
		case *kmsapi.DecapsulateOutput:
			secret = out.SharedSecret
		}
		if len(secret) != 32 || bytes.Equal(secret, make([]byte, 32)) {
			t.Fatalf("%s: got secret %x, error %v", op, secret, ev.Err)
		}
		if out, err := c.engine.finish(t.Context(), ev, fsm.Decision{Verdict: fsm.Conflict}, c.engine.events.Settle(t.Context(), fsm.Decision{Verdict: fsm.Conflict}, nil)); err == nil || out != nil {
			t.Errorf("%s: got answer %v, error %v; want an error", op, out, err)
		}
		if !bytes.Equal(secret, make([]byte, 32)) {
			t.Errorf("%s: the secret was not wiped", op)
		}
	}
}

// TestVectorsMLKEM tests Decapsulate with the vectors of Wycheproof.
func TestVectorsMLKEM(t *testing.T) {
	t.Parallel()
	for _, tt := range kemSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.allowManyRefusals()
			like, _ := c.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
			var n tally
			for _, g := range vectors.Wycheproof(t, "mlkem_"+strings.TrimPrefix(tt.spec, "ML_KEM_")) {
				for _, v := range g.Tests {
					if len(v.Seed) != 64 || len(v.C) == 0 {
						n.left++ // seeds and ciphertexts that no request and no key can have
						continue
					}
					id := c.copyKeyWithMaterial(like, v.Seed)
					out, err := call[kmsapi.DecapsulateOutput](c, "Decapsulate", decapsulateInput(id, v.C))
					n.judge(t, v, err, kmsapi.ErrInvalidCiphertext)
					if err == nil && !bytes.Equal(out.SharedSecret, v.K) {
						t.Errorf("vector %d (%s): got secret %x, want %x", v.TcID, v.Comment, out.SharedSecret, v.K)
					}
					if !bytes.HasSuffix(c.publicKey(id), v.EK) {
						t.Errorf("vector %d: got another public key", v.TcID)
					}
				}
			}
			n.report(t)
		})
	}
}
