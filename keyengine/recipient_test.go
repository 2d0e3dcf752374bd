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

// enclaveRoom is a room whose nodes trust the root of an enclave.
type enclaveRoom struct {
	*room
	enclave *attesttest.Enclave
}

func newEnclaveRoom(t *testing.T, nodes ...string) *enclaveRoom {
	t.Helper()
	r := &enclaveRoom{room: newRoom(t, nodes...)}
	var err error
	if r.enclave, err = attesttest.NewEnclave(r.cluster.clock.Now()); err != nil {
		t.Fatal(err)
	}
	roots, err := ParseAttestationRoots(r.enclave.Root().PEM())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range r.engines {
		e.services.AttestationRoots = roots
	}
	return r
}

// recipient is a request's, with a document that is made now.
func (r *enclaveRoom) recipient() *kmsapi.RecipientInfo {
	return recipientWith(r.enclave.Document(r.cluster.clock.Now()))
}

func recipientWith(document []byte) *kmsapi.RecipientInfo {
	return &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: new("RSAES_OAEP_SHA_256"), AttestationDocument: document}
}

func (r *enclaveRoom) opened(envelope []byte) []byte {
	r.t.Helper()
	b, err := r.enclave.Open(envelope)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// TestRecipient: each operation gives the enclave what it gives others in the
// clear, and nothing in the clear; the record says to whom.
func TestRecipient(t *testing.T) {
	r := newEnclaveRoom(t)
	id, _ := r.newKey()
	var plaintexts [][]byte
	check := func(name string, inClear, envelope []byte, material *string) []byte {
		t.Helper()
		if inClear != nil || material != nil || envelope == nil {
			t.Fatalf("%s gave plaintext %x, key material %v, envelope %x", name, inClear, material, envelope)
		}
		got := r.opened(envelope)
		plaintexts = append(plaintexts, got)
		rec := r.lastRecord()
		shown := recordedRecipient(rec)
		if rec.EventName != name || rec.ErrorCode != "" || shown == nil {
			t.Fatalf("%s left the record %v", name, rec)
		}
		for field, want := range map[string]string{
			"attestationDocumentModuleId":           r.enclave.ModuleID,
			"attestationDocumentEnclaveImageDigest": hex.EncodeToString(r.enclave.PCRs[0]),
			"attestationDocumentEnclavePCR1":        hex.EncodeToString(r.enclave.PCRs[1]),
			"attestationDocumentEnclavePCR2":        hex.EncodeToString(r.enclave.PCRs[2]),
			"attestationDocumentEnclavePCR3":        strings.Repeat("0", 96),
			"attestationDocumentEnclavePCR4":        strings.Repeat("0", 96),
			"attestationDocumentEnclavePCR8":        strings.Repeat("0", 96),
		} {
			if shown[field] != want {
				t.Errorf("%s's record has %s %q, want %q", name, field, shown[field], want)
			}
		}
		if len(shown) != 7 {
			t.Errorf("%s's record shows %v", name, shown)
		}
		return got
	}

	secret := []byte("PLAINTEXT-CANARY-0123456789")
	enc := must[kmsapi.EncryptOutput](r.room, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: secret})
	dec := must[kmsapi.DecryptOutput](r.room, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, Recipient: r.recipient()})
	if got := check("Decrypt", dec.Plaintext, dec.CiphertextForRecipient, dec.KeyMaterialId); !bytes.Equal(got, secret) {
		t.Errorf("Decrypt gave the enclave %q", got)
	}

	k := must[kmsapi.GenerateDataKeyOutput](r.room, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), Recipient: r.recipient()})
	got := check("GenerateDataKey", k.Plaintext, k.CiphertextForRecipient, k.KeyMaterialId)
	if again := must[kmsapi.DecryptOutput](r.room, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: k.CiphertextBlob}); len(got) != 32 || !bytes.Equal(again.Plaintext, got) {
		t.Errorf("GenerateDataKey gave the enclave %x, which decrypts to %x", got, again.Plaintext)
	}

	p := must[kmsapi.GenerateDataKeyPairOutput](r.room, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256"), Recipient: r.recipient()})
	got = check("GenerateDataKeyPair", p.PrivateKeyPlaintext, p.CiphertextForRecipient, p.KeyMaterialId)
	if public, err := primitive.Public("ECC_NIST_P256", got); err != nil || !bytes.Equal(public, p.PublicKey) {
		t.Errorf("GenerateDataKeyPair gave the enclave another key: %v", err)
	}
	if again := must[kmsapi.DecryptOutput](r.room, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: p.PrivateKeyCiphertextBlob}); !bytes.Equal(again.Plaintext, got) {
		t.Error("GenerateDataKeyPair encrypted another key than it gave the enclave")
	}

	b := must[kmsapi.GenerateRandomOutput](r.room, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1024)), Recipient: r.recipient()})
	if got = check("GenerateRandom", b.Plaintext, b.CiphertextForRecipient, nil); len(got) != 1024 || bytes.Equal(got, make([]byte, 1024)) {
		t.Errorf("GenerateRandom gave the enclave %x", got)
	}

	agree := must[kmsapi.CreateKeyOutput](r.room, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("KEY_AGREEMENT")}).KeyMetadata.KeyId
	derive := &kmsapi.DeriveSharedSecretInput{KeyId: agree, KeyAgreementAlgorithm: new("ECDH"), PublicKey: p.PublicKey}
	want := must[kmsapi.DeriveSharedSecretOutput](r.room, "DeriveSharedSecret", derive).SharedSecret
	derive.Recipient = r.recipient()
	s := must[kmsapi.DeriveSharedSecretOutput](r.room, "DeriveSharedSecret", derive)
	if got = check("DeriveSharedSecret", s.SharedSecret, s.CiphertextForRecipient, nil); !bytes.Equal(got, want) {
		t.Errorf("DeriveSharedSecret gave the enclave %x, want %x", got, want)
	}

	if slices.ContainsFunc(r.records(), func(rec []byte) bool {
		return slices.ContainsFunc(plaintexts, func(p []byte) bool {
			return bytes.Contains(rec, p) || bytes.Contains(rec, []byte(base64.StdEncoding.EncodeToString(p)))
		})
	}) {
		t.Error("a record holds a plaintext")
	}
	for _, rec := range r.records() {
		if bytes.Contains(rec, r.enclave.SPKI()) {
			t.Error("a record holds the document")
		}
	}
}

// records are all audit records in the clear.
func (r *enclaveRoom) records() [][]byte {
	r.t.Helper()
	var list [][]byte
	for _, e := range r.cluster.audit.entries {
		if string(e.Body) != "behind" {
			b, err := auditlog.EncodeRecord(r.open(e))
			if err != nil {
				r.t.Fatal(err)
			}
			list = append(list, b)
		}
	}
	return list
}

// recordedRecipient is what a record says of the enclave; nil for nothing.
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

// TestRecipientRefused: what a request for an enclave is refused for, by each
// operation, with a record that says nothing of an enclave that was not verified.
func TestRecipientRefused(t *testing.T) {
	r := newEnclaveRoom(t)
	now := r.cluster.clock.Now()
	id, _ := r.newKey()
	agree := must[kmsapi.CreateKeyOutput](r.room, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("KEY_AGREEMENT")}).KeyMetadata.KeyId
	peer := must[kmsapi.GetPublicKeyOutput](r.room, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: agree}).PublicKey
	blob := must[kmsapi.EncryptOutput](r.room, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	other, err := attesttest.NewEnclave(now)
	if err != nil {
		t.Fatal(err)
	}
	flipped := r.enclave.Document(now)
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
				{"no algorithm", &kmsapi.RecipientInfo{AttestationDocument: r.enclave.Document(now)}, "1 validation error detected: Value null at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must not be null"},
				{"no document", &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: algorithm}, "1 validation error detected: Value null at 'recipient.attestationDocument' failed to satisfy constraint: Member must not be null"},
				{"garbage", recipientWith([]byte("garbage")), cannot + "it is malformed."},
				{"changed", recipientWith(flipped), cannot + "its signature is wrong."},
				{"another root", recipientWith(other.Document(now)), cannot + "its certificate does not chain to a trusted root, or is not valid now."},
				{"old", recipientWith(r.enclave.Document(now.Add(-5 * time.Minute))), cannot + "it has expired."},
				{"of the future", recipientWith(r.enclave.Document(now.Add(2 * time.Minute))), cannot + "its timestamp is in the future."},
				{"no key", recipientWith(r.enclave.Chain.Sign(attesttest.Encode(r.enclave.Payload(now).Without("public_key")))), cannot + "it has no public key."},
			} {
				_, err := call[request.None](r.room, name, in(tt.to, nil))
				wantError(t, err, kmsapi.ErrValidation, tt.message)
				if rec := r.lastRecord(); rec.EventName != name || rec.ErrorCode != "ValidationException" || recordedRecipient(rec) != nil {
					t.Errorf("%s: %s left the record %v", tt.name, name, rec)
				}
			}
			if name == "GenerateRandom" {
				return // has no dry run
			}
			_, err := call[request.None](r.room, name, in(recipientWith(flipped), new(true)))
			wantError(t, err, kmsapi.ErrValidation, cannot+"its signature is wrong.")
			_, err = call[request.None](r.room, name, in(r.recipient(), new(true)))
			wantError(t, err, kmsapi.ErrDryRun, "…")
			if rec := r.lastRecord(); recordedRecipient(rec) == nil {
				t.Errorf("the record of a dry run of %s does not name the enclave: %v", name, rec)
			}
		})
	}

	// Whoever is not allowed, and keys that cannot be used, come first.
	alice := r.user(aliceARN)
	for name, in := range operations {
		_, err := callAs[request.None](r.room, r.first, alice, name, in(recipientWith([]byte("garbage")), nil))
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	must[request.None](r.room, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	_, err = call[request.None](r.room, "GenerateDataKey", operations["GenerateDataKey"](recipientWith([]byte("garbage")), nil))
	wantError(t, err, kmsapi.ErrDisabled, "…")
}

// TestRecipientExpires: a document that is good when the request is evaluated, but
// not any more when its record is applied, gets no answer.
func TestRecipientExpires(t *testing.T) {
	r := newEnclaveRoom(t)
	recipient := r.recipient()
	r.cluster.advance(5*time.Minute - time.Second)
	in := &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32)), Recipient: recipient}
	must[kmsapi.GenerateRandomOutput](r.room, "GenerateRandom", in)
	replica, held := r.cluster.replica("n1"), false
	replica.before = func(*fsmpb.Record) {
		if !held {
			held = true
			r.cluster.advance(2 * time.Second)
		}
	}
	_, err := call[kmsapi.GenerateRandomOutput](r.room, "GenerateRandom", in)
	wantError(t, err, kmsapi.ErrValidation, "The attestation document cannot be used: it has expired.")
	if !held {
		t.Error("the record was not held")
	}
}

// TestRecipientByLeader: the leader executes the request of a node that cannot.
func TestRecipientByLeader(t *testing.T) {
	r := newEnclaveRoom(t, "n1", "n2")
	id, _ := r.newKey()
	clash := r.cluster.replica("n2")
	clash.before = func(*fsmpb.Record) { r.mangle(id, func(k *fsmpb.Key) { k.Description += "x" }) }
	k, err := callAs[kmsapi.GenerateDataKeyOutput](r.room, r.engines["n2"], r.root, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), Recipient: r.recipient()})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.opened(k.CiphertextForRecipient); len(got) != 32 || k.Plaintext != nil {
		t.Errorf("got %x, and %x in the clear", got, k.Plaintext)
	}
	if clash.forwarded == 0 {
		t.Error("the request was not forwarded")
	}
}

// TestRecipientWipes: once an envelope is made, the plaintext is gone; and without
// a verified document nothing is delivered.
func TestRecipientWipes(t *testing.T) {
	r := newEnclaveRoom(t)
	ev := &request.Evaluation{Ctx: context.Background(), Services: r.first.services, State: r.cluster.state()}
	to, err := cryptops.RecipientOf(ev, r.recipient())
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("secret")
	if plain, envelope, err := to.Deliver(secret); err == nil || plain != nil || envelope != nil || !bytes.Equal(secret, make([]byte, 6)) {
		t.Errorf("unverified: %x, %x, %v; the plaintext is %q", plain, envelope, err, secret)
	}
	if err := cryptops.AttestTo(ev, to); err != nil {
		t.Fatal(err)
	}
	secret = []byte("secret")
	plain, envelope, err := to.Deliver(secret)
	if err != nil || plain != nil || !bytes.Equal(secret, make([]byte, 6)) {
		t.Errorf("verified: %x, %v; the plaintext is %q", plain, err, secret)
	}
	if got := r.opened(envelope); string(got) != "secret" {
		t.Errorf("the envelope holds %q", got)
	}
}
