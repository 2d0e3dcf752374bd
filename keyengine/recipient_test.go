package keyengine

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/attesttest"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// recipientInfo returns the Recipient of a request, with an attestation document of now.
func (c *testCluster) recipientInfo() *kmsapi.RecipientInfo {
	return recipientWith(c.enclave.Document(c.Clock.Now()))
}

func recipientWith(document []byte) *kmsapi.RecipientInfo {
	return &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: new("RSAES_OAEP_SHA_256"), AttestationDocument: document}
}

func (c *testCluster) openEnvelope(envelope []byte) []byte {
	c.t.Helper()
	b, err := c.enclave.Open(envelope)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// Each operation with a Recipient encrypts its secrets for the enclave and returns none in
// the clear. The audit record names the enclave.
func TestRecipient(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withEnclave())
	id, _ := c.newKey()
	var plaintexts [][]byte
	check := func(name string, inClear, envelope []byte, material *string) []byte {
		t.Helper()
		if inClear != nil || material != nil || envelope == nil {
			t.Fatalf("%s returned plaintext %x, key material %v, ciphertext for the recipient %x", name, inClear, material, envelope)
		}
		got := c.openEnvelope(envelope)
		plaintexts = append(plaintexts, got)
		rec := c.lastRecord()
		shown := recordedRecipient(rec)
		if rec.EventName != name || rec.ErrorCode != "" || shown == nil {
			t.Fatalf("unexpected record of %s: %v", name, rec)
		}
		for field, want := range map[string]string{
			"attestationDocumentModuleId":           c.enclave.ModuleID,
			"attestationDocumentEnclaveImageDigest": hex.EncodeToString(c.enclave.PCRs[0]),
			"attestationDocumentEnclavePCR1":        hex.EncodeToString(c.enclave.PCRs[1]),
			"attestationDocumentEnclavePCR2":        hex.EncodeToString(c.enclave.PCRs[2]),
			"attestationDocumentEnclavePCR3":        strings.Repeat("0", 96),
			"attestationDocumentEnclavePCR4":        strings.Repeat("0", 96),
			"attestationDocumentEnclavePCR8":        strings.Repeat("0", 96),
		} {
			if shown[field] != want {
				t.Errorf("the record of %s has %s %q, want %q", name, field, shown[field], want)
			}
		}
		if len(shown) != 7 {
			t.Errorf("the record of %s has recipient %v, want 7 members", name, shown)
		}
		return got
	}

	secret := []byte("PLAINTEXT-CANARY-0123456789")
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: secret})
	dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, Recipient: c.recipientInfo()})
	if got := check("Decrypt", dec.Plaintext, dec.CiphertextForRecipient, dec.KeyMaterialId); !bytes.Equal(got, secret) {
		t.Errorf("Decrypt: the enclave got %q, want %q", got, secret)
	}

	k := must[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), Recipient: c.recipientInfo()})
	got := check("GenerateDataKey", k.Plaintext, k.CiphertextForRecipient, k.KeyMaterialId)
	if again := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: k.CiphertextBlob}); len(got) != 32 || !bytes.Equal(again.Plaintext, got) {
		t.Errorf("GenerateDataKey: the enclave got %x, the ciphertext decrypts to %x", got, again.Plaintext)
	}

	p := must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256"), Recipient: c.recipientInfo()})
	got = check("GenerateDataKeyPair", p.PrivateKeyPlaintext, p.CiphertextForRecipient, p.KeyMaterialId)
	if public, err := primitive.Public("ECC_NIST_P256", got); err != nil || !bytes.Equal(public, p.PublicKey) {
		t.Errorf("GenerateDataKeyPair: the enclave got a private key of another public key (%v)", err)
	}
	if again := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: p.PrivateKeyCiphertextBlob}); !bytes.Equal(again.Plaintext, got) {
		t.Error("GenerateDataKeyPair: the ciphertext decrypts to another private key than the enclave got")
	}

	b := must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1024)), Recipient: c.recipientInfo()})
	if got = check("GenerateRandom", b.Plaintext, b.CiphertextForRecipient, nil); len(got) != 1024 || bytes.Equal(got, make([]byte, 1024)) {
		t.Errorf("GenerateRandom: the enclave got %x, want 1024 random bytes", got)
	}

	agree := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("KEY_AGREEMENT")}).KeyMetadata.KeyId
	derive := &kmsapi.DeriveSharedSecretInput{KeyId: agree, KeyAgreementAlgorithm: new("ECDH"), PublicKey: p.PublicKey}
	want := must[kmsapi.DeriveSharedSecretOutput](c, "DeriveSharedSecret", derive).SharedSecret
	derive.Recipient = c.recipientInfo()
	s := must[kmsapi.DeriveSharedSecretOutput](c, "DeriveSharedSecret", derive)
	if got = check("DeriveSharedSecret", s.SharedSecret, s.CiphertextForRecipient, nil); !bytes.Equal(got, want) {
		t.Errorf("DeriveSharedSecret: the enclave got %x, want %x", got, want)
	}

	if slices.ContainsFunc(c.encodedRecords(), func(rec []byte) bool {
		return slices.ContainsFunc(plaintexts, func(p []byte) bool {
			return bytes.Contains(rec, p) || bytes.Contains(rec, []byte(base64.StdEncoding.EncodeToString(p)))
		})
	}) {
		t.Error("an audit record has a plaintext")
	}
	for _, rec := range c.encodedRecords() {
		if bytes.Contains(rec, c.enclave.SPKI()) {
			t.Error("an audit record has the attestation document")
		}
	}
}

// encodedRecords returns all audit records in the clear.
func (c *testCluster) encodedRecords() [][]byte {
	c.t.Helper()
	var list [][]byte
	for _, rec := range nodeOf(c.engine).Records() {
		b, err := auditlog.EncodeRecord(rec)
		if err != nil {
			c.t.Fatal(err)
		}
		list = append(list, b)
	}
	return list
}

// recordedRecipient returns the enclave that a record names, or nil.
func recordedRecipient(rec *auditpb.Record) map[string]string {
	for _, f := range rec.Additional {
		if f.Name == "recipient" {
			shown := make(map[string]string)
			for _, p := range f.GetMap().GetPairs() {
				shown[p.Key] = p.Value
			}
			return shown
		}
	}
	return nil
}

// Each operation refuses invalid attestation documents, and the audit record then names no enclave.
func TestRecipientRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withEnclave())
	now := c.Clock.Now()
	id, _ := c.newKey()
	agree := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("KEY_AGREEMENT")}).KeyMetadata.KeyId
	peer := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: agree}).PublicKey
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	other, err := attesttest.NewEnclave(now)
	if err != nil {
		t.Fatal(err)
	}
	flipped := c.enclave.Document(now)
	flipped[len(flipped)-1] ^= 1
	algorithm := new("RSAES_OAEP_SHA_256")
	const cannot = "The attestation document cannot be used: "
	operations := map[string]func(*kmsapi.RecipientInfo, *bool) any{
		"Decrypt": func(to *kmsapi.RecipientInfo, dry *bool) any {
			return &kmsapi.DecryptInput{CiphertextBlob: blob, Recipient: to, DryRun: dry}
		},
		"GenerateDataKey": func(to *kmsapi.RecipientInfo, dry *bool) any {
			return &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_128"), Recipient: to, DryRun: dry}
		},
		"GenerateDataKeyPair": func(to *kmsapi.RecipientInfo, dry *bool) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256"), Recipient: to, DryRun: dry}
		},
		"DeriveSharedSecret": func(to *kmsapi.RecipientInfo, dry *bool) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: agree, KeyAgreementAlgorithm: new("ECDH"), PublicKey: peer, Recipient: to, DryRun: dry}
		},
		"GenerateRandom": func(to *kmsapi.RecipientInfo, _ *bool) any {
			return &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1)), Recipient: to}
		},
	}
	for name, in := range operations {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				name    string
				to      *kmsapi.RecipientInfo
				message string
			}{
				{"nothing", &kmsapi.RecipientInfo{}, "1 validation error detected: Value null at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must not be null"},
				{"no algorithm", &kmsapi.RecipientInfo{AttestationDocument: c.enclave.Document(now)}, "1 validation error detected: Value null at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must not be null"},
				{"no document", &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: algorithm}, "1 validation error detected: Value null at 'recipient.attestationDocument' failed to satisfy constraint: Member must not be null"},
				{"garbage", recipientWith([]byte("garbage")), cannot + "it is malformed."},
				{"changed", recipientWith(flipped), cannot + "its signature is wrong."},
				{"another root", recipientWith(other.Document(now)), cannot + "its certificate does not chain to a trusted root, or is not valid now."},
				{"old", recipientWith(c.enclave.Document(now.Add(-5 * time.Minute))), cannot + "it has expired."},
				{"of the future", recipientWith(c.enclave.Document(now.Add(2 * time.Minute))), cannot + "its timestamp is in the future."},
				{"no key", recipientWith(c.enclave.Chain.Sign(attesttest.Encode(c.enclave.Payload(now).Without("public_key")))), cannot + "it has no public key."},
			} {
				_, err := call[request.None](c, name, in(tt.to, nil))
				wantError(t, err, kmsapi.ErrValidation, tt.message)
				if rec := c.lastRecord(); rec.EventName != name || rec.ErrorCode != "ValidationException" || recordedRecipient(rec) != nil {
					t.Errorf("%s: unexpected record of %s: %v", tt.name, name, rec)
				}
			}
			if name == "GenerateRandom" {
				return // has no dry run
			}
			_, err := call[request.None](c, name, in(recipientWith(flipped), new(true)))
			wantError(t, err, kmsapi.ErrValidation, cannot+"its signature is wrong.")
			_, err = call[request.None](c, name, in(c.recipientInfo(), new(true)))
			wantError(t, err, kmsapi.ErrDryRun, "…")
			if rec := c.lastRecord(); recordedRecipient(rec) == nil {
				t.Errorf("the record of a dry run of %s does not name the enclave: %v", name, rec)
			}
		})
	}

	// Permission and the key's state are checked before the attestation document.
	alice := c.newUser(aliceARN)
	for name, in := range operations {
		_, err := callAs[request.None](c, c.engine, alice, name, in(recipientWith([]byte("garbage")), nil))
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	_, err = call[request.None](c, "GenerateDataKey", operations["GenerateDataKey"](recipientWith([]byte("garbage")), nil))
	wantError(t, err, kmsapi.ErrDisabled, "…")
}

// A document that expires between evaluation and commit is refused.
func TestRecipientExpires(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withEnclave())
	recipient := c.recipientInfo()
	c.Advance(5*time.Minute - time.Second)
	in := &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32)), Recipient: recipient}
	must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", in)
	replica, held := c.Replica("n1"), false
	replica.BeforeCommit = func(*fsmpb.Record) {
		if !held {
			held = true
			c.Advance(2 * time.Second)
		}
	}
	_, err := call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", in)
	wantError(t, err, kmsapi.ErrValidation, "The attestation document cannot be used: it has expired.")
	if !held {
		t.Error("the record was not committed")
	}
}

// A forwarded request has its Recipient.
func TestRecipientByLeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withEnclave())
	id, _ := c.newKey()
	clash := c.Replica("n2")
	clash.BeforeCommit = func(*fsmpb.Record) { c.modifyKey(id, func(k *fsmpb.Key) { k.Description += "x" }) }
	k, err := callAs[kmsapi.GenerateDataKeyOutput](c, c.engines["n2"], c.root, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), Recipient: c.recipientInfo()})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.openEnvelope(k.CiphertextForRecipient); len(got) != 32 || k.Plaintext != nil {
		t.Errorf("the enclave got %x, and the caller %x in the clear", got, k.Plaintext)
	}
	if clash.Forwarded.Load() == 0 {
		t.Error("the request was not forwarded")
	}
}

// Deliver wipes the plaintext, and returns an error if the document was not verified.
func TestRecipientWipes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withEnclave())
	ev := &request.Evaluation{Ctx: context.Background(), Services: c.engine.services, State: c.State()}
	to, err := cryptops.RecipientOf(ev, c.recipientInfo())
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("secret")
	if plain, envelope, err := to.Deliver(secret); err == nil || plain != nil || envelope != nil || !bytes.Equal(secret, make([]byte, 6)) {
		t.Errorf("without a verified document: Deliver returned %x, %x, error %v, and left plaintext %q", plain, envelope, err, secret)
	}
	if err := cryptops.AttestTo(ev, to); err != nil {
		t.Fatal(err)
	}
	secret = []byte("secret")
	plain, envelope, err := to.Deliver(secret)
	if err != nil || plain != nil || !bytes.Equal(secret, make([]byte, 6)) {
		t.Errorf("with a verified document: Deliver returned %x, error %v, and left plaintext %q", plain, err, secret)
	}
	if got := c.openEnvelope(envelope); string(got) != "secret" {
		t.Errorf("the enclave got %q, want secret", got)
	}
}
