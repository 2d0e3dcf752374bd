package keyengine

import (
	"bytes"
	"context"
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const fipsChild = "CONCLAVE_TEST_FIPS_CHILD"

// TestFIPS: in FIPS mode, keys of specs that the validated module lacks are neither
// made nor used, also those that were made before, and a dry run says so; the others
// work.
func TestFIPS(t *testing.T) {
	if os.Getenv(fipsChild) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, self, "-test.v", "-test.run=^TestFIPS$")
		cmd.Env = append(os.Environ(), fipsChild+"=1", "GODEBUG=fips140=on")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestFIPS") {
			t.Fatalf("in FIPS mode: %v\n%s", err, out)
		}
		return
	}
	if !fips140.Enabled() {
		t.Fatal("GODEBUG=fips140=on has no effect")
	}
	const refusal = "This cluster runs in FIPS mode, which does not have this key spec."
	r := newRoom(t)
	symmetric, _ := r.newKey()
	for _, tt := range signingSpecs {
		if tt.spec == "RSA_3072" || tt.spec == "RSA_4096" {
			continue // as RSA_2048, and slow to make
		}
		foreign := tt.spec == "ECC_SECG_P256K1" || strings.HasPrefix(tt.spec, "ML_DSA")
		if !foreign {
			id, _ := r.newKeyOf(tt.spec, kmsapi.UsageSign)
			if err := r.verifies(id, tt.algorithms[0], "RAW", []byte("m"), r.signs(id, tt.algorithms[0], "RAW", []byte("m"))); err != nil {
				t.Errorf("%s: %v", tt.spec, err)
			}
			continue
		}
		_, err := call[request.None](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageSign)})
		wantError(t, err, kmsapi.ErrUnsupported, refusal)
		id := r.madeBefore(tt.spec, kmsapi.UsageSign)
		for _, dry := range []bool{false, true} {
			_, err = call[request.None](r, "Sign", &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: &tt.algorithms[0], DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](r, "Verify", &kmsapi.VerifyInput{KeyId: &id, Message: []byte("m"), Signature: []byte("s"), SigningAlgorithm: &tt.algorithms[0], DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			if tt.spec == "ECC_SECG_P256K1" {
				_, err = call[request.None](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec, DryRun: &dry})
				wantError(t, err, kmsapi.ErrUnsupported, refusal)
			}
		}
	}
	for _, tt := range kemSpecs {
		if tt.spec != "ML_KEM_512" {
			id, _ := r.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
			out := r.encapsulates(id)
			if !bytes.Equal(r.decapsulates(id, out.SharedSecretCiphertextBlob), out.SharedSecret) {
				t.Errorf("%s: another secret", tt.spec)
			}
			must[kmsapi.GenerateDataKeyPairOutput](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec})
			continue
		}
		_, err := call[request.None](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageEncapsulate)})
		wantError(t, err, kmsapi.ErrUnsupported, refusal)
		id := r.madeBefore(tt.spec, kmsapi.UsageEncapsulate)
		for _, dry := range []bool{false, true} {
			_, err = call[request.None](r, "Encapsulate", &kmsapi.EncapsulateInput{KeyId: &id, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](r, "Decapsulate", &kmsapi.DecapsulateInput{KeyId: &id, SharedSecretCiphertextBlob: make([]byte, tt.ciphertext), EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec, DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
		}
	}
}

// madeBefore is a key of a spec that this mode does not make: another one, whose
// copy in the state has the spec and usage.
func (r *room) madeBefore(spec, usage string) string {
	r.t.Helper()
	other, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	id := r.keyID(other)
	k := cloneOf(r.stored(other))
	id.ID[0] ^= 0xff
	k.Id, k.Spec, k.Usage = id.ID[:], spec, usage
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}, defaultPolicyChange(k))
	return request.FormatKeyID(id.ID, false)
}
