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

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const fipsChild = "CONCLAVE_TEST_FIPS_CHILD"

// In FIPS mode, keys of specs that the validated module lacks are neither created nor used, also if
// they exist already, and dry runs say so. Other keys work.
func TestFIPS(t *testing.T) {
	t.Parallel()
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
	c := newTestCluster(t)
	symmetric, _ := c.newKey()
	for _, tt := range signingSpecs {
		if tt.spec == "RSA_3072" || tt.spec == "RSA_4096" {
			continue // as RSA_2048, and slow to make
		}
		foreign := tt.spec == "ECC_SECG_P256K1" || strings.HasPrefix(tt.spec, "ML_DSA")
		if !foreign {
			id, _ := c.newKeyOf(tt.spec, kmsapi.UsageSign)
			if err := c.verify(id, tt.algorithms[0], "RAW", []byte("m"), c.sign(id, tt.algorithms[0], "RAW", []byte("m"))); err != nil {
				t.Errorf("%s: verifying a signature: %v", tt.spec, err)
			}
			continue
		}
		_, err := call[request.None](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageSign)})
		wantError(t, err, kmsapi.ErrUnsupported, refusal)
		id := c.keyMadeOutsideFIPS(tt.spec, kmsapi.UsageSign)
		for _, dry := range []bool{false, true} {
			_, err = call[request.None](c, "Sign", &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: &tt.algorithms[0], DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](c, "Verify", &kmsapi.VerifyInput{KeyId: &id, Message: []byte("m"), Signature: []byte("s"), SigningAlgorithm: &tt.algorithms[0], DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			if tt.spec == "ECC_SECG_P256K1" {
				_, err = call[request.None](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec, DryRun: &dry})
				wantError(t, err, kmsapi.ErrUnsupported, refusal)
			}
		}
	}
	for _, tt := range kemSpecs {
		if tt.spec != "ML_KEM_512" {
			id, _ := c.newKeyOf(tt.spec, kmsapi.UsageEncapsulate)
			out := c.encapsulate(id)
			if !bytes.Equal(c.decapsulate(id, out.SharedSecretCiphertextBlob), out.SharedSecret) {
				t.Errorf("%s: Decapsulate returned another secret than Encapsulate", tt.spec)
			}
			must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec})
			continue
		}
		_, err := call[request.None](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: new(kmsapi.UsageEncapsulate)})
		wantError(t, err, kmsapi.ErrUnsupported, refusal)
		id := c.keyMadeOutsideFIPS(tt.spec, kmsapi.UsageEncapsulate)
		for _, dry := range []bool{false, true} {
			_, err = call[request.None](c, "Encapsulate", &kmsapi.EncapsulateInput{KeyId: &id, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](c, "Decapsulate", &kmsapi.DecapsulateInput{KeyId: &id, SharedSecretCiphertextBlob: make([]byte, tt.ciphertext), EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
			_, err = call[request.None](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: &tt.spec, DryRun: &dry})
			wantError(t, err, kmsapi.ErrUnsupported, refusal)
		}
	}
}

// keyMadeOutsideFIPS puts a key of a spec into the state that cannot be created in FIPS mode.
// It has the material of a key of another spec.
func (c *testCluster) keyMadeOutsideFIPS(spec, usage string) string {
	c.t.Helper()
	other, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	id := c.keyID(other)
	k := proto.CloneOf(c.storedKey(other))
	id.ID[0] ^= 0xff
	k.Id, k.Spec, k.Usage = id.ID[:], spec, usage
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}, defaultPolicyChange(k))
	return request.FormatKeyID(id.ID, false)
}
