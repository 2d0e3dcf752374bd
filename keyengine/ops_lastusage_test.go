package keyengine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (r *room) lastUsage(id string) *kmsapi.GetKeyLastUsageOutput {
	r.t.Helper()
	return must[kmsapi.GetKeyLastUsageOutput](r, "GetKeyLastUsage", &kmsapi.GetKeyLastUsageInput{KeyId: &id})
}

// usageOfRecord is what GetKeyLastUsage says of the newest record.
func (r *room) usageOfRecord(operation string) *kmsapi.KeyLastUsageData {
	r.t.Helper()
	r.cluster.audit.mu.Lock()
	e := r.cluster.audit.entries[len(r.cluster.audit.entries)-1]
	r.cluster.audit.mu.Unlock()
	at := time.Unix(0, e.Time).UTC()
	return &kmsapi.KeyLastUsageData{
		Operation: &operation, Timestamp: &at,
		CloudTrailEventId: new(record.UUID(auditlog.EventID(e.LeafHash()))), KmsRequestId: new(record.UUID(e.RequestID)),
	}
}

// TestKeyLastUsage: every operation that AWS counts is counted when it succeeds,
// for each key that it used, and at no other time.
func TestKeyLastUsage(t *testing.T) {
	r := newRoom(t)
	created := r.cluster.clock.Now()
	r.cluster.clock.advance(time.Hour)
	made := r.cluster.clock.Now()
	newKey := func(spec, usage string) string {
		t.Helper()
		return *must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata.KeyId
	}
	symmetric, other := newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	rsa, agree := newKey("RSA_2048", "ENCRYPT_DECRYPT"), newKey("ECC_NIST_P256", "KEY_AGREEMENT")
	signer, mac := newKey("ECC_NIST_P256", "SIGN_VERIFY"), newKey("HMAC_256", "GENERATE_VERIFY_MAC")
	kem := newKey("ML_KEM_512", "ENCAPSULATE_DECAPSULATE")
	encapsulated := r.encapsulates(kem).SharedSecretCiphertextBlob
	unused := newKey("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	peer := must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &agree}).PublicKey
	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x")}).CiphertextBlob
	oaep := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &rsa, Plaintext: []byte("x"), EncryptionAlgorithm: new("RSAES_OAEP_SHA_256")}).CiphertextBlob
	signature := must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}).Signature
	tag := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}).Mac
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
			r.cluster.clock.advance(time.Minute)
			if _, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in(nil)); err != nil {
				t.Fatal(err)
			}
			used := r.usageOfRecord(tt.op)
			r.cluster.clock.advance(time.Minute)
			_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in(new(true)))
			wantError(t, err, kmsapi.ErrDryRun, request.ErrDryRun.Message)
			stranger := r.user(aliceARN)
			_, err = r.first.Do(t.Context(), r.caller(stranger), OperationNamed(tt.op), tt.in(nil))
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
			for _, id := range tt.keys {
				want := &kmsapi.GetKeyLastUsageOutput{KeyId: arn(id), KeyLastUsage: used, TrackingStartDate: &made, KeyCreationDate: &made}
				if d := cmp.Diff(want, r.lastUsage(id)); d != "" {
					t.Errorf("last usage (-want +got):\n%s", d)
				}
			}
		})
	}
	for name := range request.UseNumber {
		if !covered[name] {
			t.Errorf("%s is counted and not tested", name)
		}
	}

	// Failures and everything else are no use.
	want := r.lastUsage(symmetric).KeyLastUsage
	r.cluster.clock.advance(time.Minute)
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
	wantSigner, wantMac := r.lastUsage(signer).KeyLastUsage, r.lastUsage(mac).KeyLastUsage
	for _, f := range failures {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(f.op), f.in)
		wantError(t, err, f.kind, "…")
	}
	must[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &symmetric})
	must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &signer})
	for id, want := range map[string]*kmsapi.KeyLastUsageData{symmetric: want, signer: wantSigner, mac: wantMac} {
		if d := cmp.Diff(want, r.lastUsage(id).KeyLastUsage); d != "" {
			t.Errorf("a failure counts as a use (-want +got):\n%s", d)
		}
	}
	none := &kmsapi.GetKeyLastUsageOutput{KeyId: arn(unused), KeyLastUsage: &kmsapi.KeyLastUsageData{}, TrackingStartDate: &made, KeyCreationDate: &made}
	if d := cmp.Diff(none, r.lastUsage(unused)); d != "" {
		t.Errorf("unused key (-want +got):\n%s", d)
	}
	if !created.Before(made) {
		t.Error("the key is as old as the cluster")
	}
	_, err := call[kmsapi.GetKeyLastUsageOutput](r, "GetKeyLastUsage", &kmsapi.GetKeyLastUsageInput{KeyId: new("alias/x")})
	wantError(t, err, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")
}

// TestKeyLastUsageByRegion: each key of a set has its own, and other nodes see it.
func TestKeyLastUsageByRegion(t *testing.T) {
	r := newRoomIn(t, threeRegions(), "n1", "n2")
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	mustIn[kmsapi.EncryptOutput](r, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	used := r.usageOfRecord("Encrypt")
	if got := r.lastUsage(id).KeyLastUsage; got.Operation != nil {
		t.Errorf("the primary was used with %s", *got.Operation)
	}
	c := r.caller(r.root)
	c.Region = secondRegion
	out, err := r.engines["n2"].Do(t.Context(), c, OperationNamed("GetKeyLastUsage"), &kmsapi.GetKeyLastUsageInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(used, out.(*kmsapi.GetKeyLastUsageOutput).KeyLastUsage); d != "" {
		t.Errorf("the replica's last usage on another node (-want +got):\n%s", d)
	}
}

// TestKeyOlderThanItsCluster: no use was seen before the cluster was there.
func TestKeyOlderThanItsCluster(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	k := cloneOf(r.keyIn(testRegion, id))
	k.Created -= int64(time.Hour)
	fresh := randomID()
	k.Id = fresh[:]
	r.cluster.change(putKeyChange(k), defaultPolicyChange(k))
	got := r.lastUsage(record.UUID(fresh))
	c, _ := r.cluster.state().Cluster()
	if !got.TrackingStartDate.Equal(time.Unix(0, c.Created)) || !got.KeyCreationDate.Equal(time.Unix(0, k.Created)) {
		t.Errorf("tracked since %v, made at %v", got.TrackingStartDate, got.KeyCreationDate)
	}
}
