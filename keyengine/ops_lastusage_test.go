package keyengine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (c *testCluster) lastUsage(id string) *kmsapi.GetKeyLastUsageOutput {
	c.t.Helper()
	return must[kmsapi.GetKeyLastUsageOutput](c, "GetKeyLastUsage", &kmsapi.GetKeyLastUsageInput{KeyId: &id})
}

// usageInLastRecord returns what GetKeyLastUsage should say about the newest record.
func (c *testCluster) usageInLastRecord(operation string) *kmsapi.KeyLastUsageData {
	c.t.Helper()
	e := c.Audit.Last()
	at := time.Unix(0, e.Time).UTC()
	return &kmsapi.KeyLastUsageData{
		Operation: &operation, Timestamp: &at,
		CloudTrailEventId: new(record.UUID(auditlog.EventID(e.LeafHash()))), KmsRequestId: new(record.UUID(e.RequestID)),
	}
}

// GetKeyLastUsage counts every operation that AWS counts, when it succeeds, for each key that
// it used.
func TestKeyLastUsage(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	created := c.Clock.Now()
	c.Clock.Advance(time.Hour)
	made := c.Clock.Now()
	newKey := func(spec, usage string) string {
		t.Helper()
		return *must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata.KeyId
	}
	symmetric, other := newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	rsa, agree := newKey("RSA_2048", "ENCRYPT_DECRYPT"), newKey("ECC_NIST_P256", "KEY_AGREEMENT")
	signer, mac := newKey("ECC_NIST_P256", "SIGN_VERIFY"), newKey("HMAC_256", "GENERATE_VERIFY_MAC")
	kem := newKey("ML_KEM_512", "ENCAPSULATE_DECAPSULATE")
	encapsulated := c.encapsulate(kem).SharedSecretCiphertextBlob
	unused := newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	peer := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &agree}).PublicKey
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x")}).CiphertextBlob
	oaep := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &rsa, Plaintext: []byte("x"), EncryptionAlgorithm: new("RSAES_OAEP_SHA_256")}).CiphertextBlob
	signature := must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}).Signature
	tag := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}).Mac
	tests := []struct {
		op   string
		in   func(dry *bool) any
		keys []string
	}{
		{"Encrypt", func(dry *bool) any {
			return &kmsapi.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x"), DryRun: dry}
		}, []string{symmetric}},
		{"Encrypt", func(dry *bool) any {
			return &kmsapi.EncryptInput{KeyId: &rsa, Plaintext: []byte("x"), EncryptionAlgorithm: new("RSAES_OAEP_SHA_1"), DryRun: dry}
		}, []string{rsa}},
		{"Decrypt", func(dry *bool) any { return &kmsapi.DecryptInput{CiphertextBlob: blob, DryRun: dry} }, []string{symmetric}},
		{"Decrypt", func(dry *bool) any {
			return &kmsapi.DecryptInput{CiphertextBlob: oaep, KeyId: &rsa, EncryptionAlgorithm: new("RSAES_OAEP_SHA_256"), DryRun: dry}
		}, []string{rsa}},
		{"ReEncrypt", func(dry *bool) any {
			return &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &other, DryRun: dry}
		}, []string{symmetric, other}},
		{"GenerateDataKey", func(dry *bool) any {
			return &kmsapi.GenerateDataKeyInput{KeyId: &symmetric, KeySpec: new("AES_256"), DryRun: dry}
		}, []string{symmetric}},
		{"GenerateDataKeyWithoutPlaintext", func(dry *bool) any {
			return &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &symmetric, KeySpec: new("AES_256"), DryRun: dry}
		}, []string{symmetric}},
		{"GenerateDataKeyPair", func(dry *bool) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: new("ECC_NIST_P256"), DryRun: dry}
		}, []string{symmetric}},
		{"GenerateDataKeyPairWithoutPlaintext", func(dry *bool) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &symmetric, KeyPairSpec: new("ECC_NIST_P256"), DryRun: dry}
		}, []string{symmetric}},
		{"Sign", func(dry *bool) any {
			return &kmsapi.SignInput{KeyId: &signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256"), DryRun: dry}
		}, []string{signer}},
		{"Verify", func(dry *bool) any {
			return &kmsapi.VerifyInput{KeyId: &signer, Message: []byte("m"), Signature: signature, SigningAlgorithm: new("ECDSA_SHA_256"), DryRun: dry}
		}, []string{signer}},
		{"GenerateMac", func(dry *bool) any {
			return &kmsapi.GenerateMacInput{KeyId: &mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256"), DryRun: dry}
		}, []string{mac}},
		{"VerifyMac", func(dry *bool) any {
			return &kmsapi.VerifyMacInput{KeyId: &mac, Message: []byte("m"), Mac: tag, MacAlgorithm: new("HMAC_SHA_256"), DryRun: dry}
		}, []string{mac}},
		{"DeriveSharedSecret", func(dry *bool) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: &agree, KeyAgreementAlgorithm: new("ECDH"), PublicKey: peer, DryRun: dry}
		}, []string{agree}},
		{"Encapsulate", func(dry *bool) any {
			return &kmsapi.EncapsulateInput{KeyId: &kem, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: dry}
		}, []string{kem}},
		{"Decapsulate", func(dry *bool) any {
			return &kmsapi.DecapsulateInput{KeyId: &kem, SharedSecretCiphertextBlob: encapsulated, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: dry}
		}, []string{kem}},
	}
	arn := func(id string) *string { return new(multiARN(testRegion, id)) }
	covered := map[string]bool{}
	for _, tt := range tests {
		covered[tt.op] = true
		t.Run(tt.op, func(t *testing.T) {
			c.Clock.Advance(time.Minute)
			if _, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in(nil)); err != nil {
				t.Fatal(err)
			}
			used := c.usageInLastRecord(tt.op)
			c.Clock.Advance(time.Minute)
			_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in(new(true)))
			wantError(t, err, kmsapi.ErrDryRun, request.ErrDryRun.Message)
			stranger := c.newUser(aliceARN)
			_, err = c.engine.Do(t.Context(), c.caller(stranger), OperationNamed(KMS, tt.op), tt.in(nil))
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
			for _, id := range tt.keys {
				want := &kmsapi.GetKeyLastUsageOutput{KeyId: arn(id), KeyLastUsage: used, TrackingStartDate: &made, KeyCreationDate: &made}
				if d := cmp.Diff(want, c.lastUsage(id)); d != "" {
					t.Errorf("last usage (-want +got):\n%s", d)
				}
			}
		})
	}
	for name := range request.UseNumber {
		if !covered[name] {
			t.Errorf("%s counts as a use but is not tested", name)
		}
	}

	// Failures and other operations do not count.
	want := c.lastUsage(symmetric).KeyLastUsage
	c.Clock.Advance(time.Minute)
	failures := []struct {
		op   string
		in   any
		kind *kmsapi.Error
	}{
		{"Decrypt", &kmsapi.DecryptInput{CiphertextBlob: append([]byte{}, append(blob[:len(blob)-1:len(blob)-1], blob[len(blob)-1]^1)...)}, kmsapi.ErrInvalidCiphertext},
		{"Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &other}, kmsapi.ErrIncorrectKey},
		{"ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &signer}, kmsapi.ErrInvalidKeyUsage},
		{"Verify", &kmsapi.VerifyInput{KeyId: &signer, Message: []byte("other"), Signature: signature, SigningAlgorithm: new("ECDSA_SHA_256")}, kmsapi.ErrInvalidSignatureValue},
		{"VerifyMac", &kmsapi.VerifyMacInput{KeyId: &mac, Message: []byte("other"), Mac: tag, MacAlgorithm: new("HMAC_SHA_256")}, kmsapi.ErrInvalidMac},
		{"Decapsulate", decapsulateInput(kem, encapsulated[1:]), kmsapi.ErrInvalidCiphertext},
	}
	wantSigner, wantMac := c.lastUsage(signer).KeyLastUsage, c.lastUsage(mac).KeyLastUsage
	for _, f := range failures {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, f.op), f.in)
		wantError(t, err, f.kind, "…")
	}
	must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &symmetric})
	must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &signer})
	for id, want := range map[string]*kmsapi.KeyLastUsageData{symmetric: want, signer: wantSigner, mac: wantMac} {
		if d := cmp.Diff(want, c.lastUsage(id).KeyLastUsage); d != "" {
			t.Errorf("last usage after failures (-want +got):\n%s", d)
		}
	}
	none := &kmsapi.GetKeyLastUsageOutput{KeyId: arn(unused), KeyLastUsage: &kmsapi.KeyLastUsageData{}, TrackingStartDate: &made, KeyCreationDate: &made}
	if d := cmp.Diff(none, c.lastUsage(unused)); d != "" {
		t.Errorf("last usage of an unused key (-want +got):\n%s", d)
	}
	if !created.Before(made) {
		t.Error("the key was not created after the cluster")
	}
	_, err := call[kmsapi.GetKeyLastUsageOutput](c, "GetKeyLastUsage", &kmsapi.GetKeyLastUsageInput{KeyId: new("alias/x")})
	wantError(t, err, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")
}

// Each key of a multi-Region set has its own last usage, which all nodes see.
func TestKeyLastUsageByRegion(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	mustIn[kmsapi.EncryptOutput](c, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	used := c.usageInLastRecord("Encrypt")
	if got := c.lastUsage(id).KeyLastUsage; got.Operation != nil {
		t.Errorf("the primary key was used with %s, want no use", *got.Operation)
	}
	caller := c.caller(c.root)
	caller.Region = secondRegion
	out, err := c.engines["n2"].Do(t.Context(), caller, OperationNamed(KMS, "GetKeyLastUsage"), &kmsapi.GetKeyLastUsageInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(used, out.(*kmsapi.GetKeyLastUsageOutput).KeyLastUsage); d != "" {
		t.Errorf("the replica's last usage on another node (-want +got):\n%s", d)
	}
}

// The use of a key that is older than the cluster is tracked since the cluster was initialised.
func TestKeyOlderThanItsCluster(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	k := proto.CloneOf(c.keyIn(testRegion, id))
	k.Created -= int64(time.Hour)
	fresh := randomID()
	k.Id = fresh[:]
	c.Change(putKeyChange(k), defaultPolicyChange(k))
	got := c.lastUsage(record.UUID(fresh))
	cluster, _ := c.State().Cluster()
	if !got.TrackingStartDate.Equal(time.Unix(0, cluster.Created)) || !got.KeyCreationDate.Equal(time.Unix(0, k.Created)) {
		t.Errorf("got tracking since %v, creation at %v; want %v and %v", got.TrackingStartDate, got.KeyCreationDate, time.Unix(0, cluster.Created), time.Unix(0, k.Created))
	}
}
