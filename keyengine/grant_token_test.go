package keyengine

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (r *room) createGrant(key, grantee string, operations ...string) *kmsapi.CreateGrantOutput {
	r.t.Helper()
	return must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &grantee, Operations: operations})
}

// TestGrantTokens: a token is known on every node, after a restart and under newer
// generations of the keyring; nothing that differs from it in one bit is.
func TestGrantTokens(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	out := r.createGrant(id, aliceARN, "Encrypt")
	token := *out.GrantToken
	reads := func(e *Engine, token string) error {
		key, grant, err := e.vault.GrantOfToken(token)
		if err == nil && (key != r.keyID(id) || string(grant[:]) != string(bytesOfGrant(*out.GrantId))) {
			t.Errorf("the token names %v, %x", key, grant)
		}
		return err
	}
	n2 := r.engines["n2"]
	for name, e := range r.engines {
		if err := reads(e, token); err != nil {
			t.Errorf("on %s: %v", name, err)
		}
	}
	raw, err := base64.StdEncoding.DecodeString(token)
	if err != nil || strings.Contains(token, *out.GrantId) {
		t.Fatalf("token %s: %v", token, err)
	}
	encode := base64.StdEncoding.EncodeToString
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if err := reads(r.first, encode(raw)); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
				t.Errorf("byte %d, bit %d flipped: %v", i, bit, err)
			}
			raw[i] ^= 1 << bit
		}
		if err := reads(r.first, encode(raw[:i])); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	for i := range token {
		for _, c := range []string{"A", "_", "\n", "\r", "", "=", "é"} {
			if s := token[:i] + c + token[i+1:]; s != token && !errors.Is(reads(r.first, s), kmsapi.ErrInvalidGrantToken) {
				t.Errorf("%q in place of character %d is taken", c, i)
			}
		}
	}
	o, err := r.first.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	session, err := o.SignSession(&vault.Session{Credential: "x"})
	if err != nil {
		t.Fatal(err)
	}
	second := *r.createGrant(id, aliceARN, "Encrypt").GrantToken
	stranger := newRoom(t)
	theirs, _ := stranger.newKey()
	for name, s := range map[string]string{
		"empty": "", "made up": "token", "with a newline": token + "\n", "with a byte more": encode(append(raw[:len(raw):len(raw)], 0)),
		"URL-safe": base64.RawURLEncoding.EncodeToString(raw), "twice": token + token, "session token": session,
		"halves of two": encode(raw)[:40] + second[40:], "long": strings.Repeat("A", 8192), "of another cluster": *stranger.createGrant(theirs, aliceARN, "Encrypt").GrantToken,
	} {
		if err := reads(r.first, s); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("%s: %v", name, err)
		}
		if s == "" {
			continue
		}
		_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), GrantTokens: []string{token, s}})
		wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
		_, err = call[request.None](r, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: &s})
		wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	}

	// Bits that base64 has to spare at the end, in Regions of other lengths.
	padded, err := r.first.vault.GrantToken(fsm.KeyID{Account: testAccountNumber, Region: "eu-west-100"}, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	body, ok := strings.CutSuffix(padded, "==")
	if _, _, err := r.first.vault.GrantOfToken(padded); !ok || err != nil {
		t.Fatalf("token %s: %v", padded, err)
	}
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		s := body[:len(body)-1] + string(c) + "=="
		if _, _, err := r.first.vault.GrantOfToken(s); s != padded && !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("%s is taken for %s", s, padded)
		}
	}

	// A node that was restarted.
	n2.vault.Seal()
	if err := reads(n2, token); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("on a sealed node: %v", err)
	}
	if _, err := n2.vault.GrantToken(r.keyID(id), [32]byte{}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("a sealed node makes a token: %v", err)
	}
	if _, err := n2.SubmitShare(t.Context(), ceremony.Operator{Name: "root"}, r.share); err != nil {
		t.Fatal(err)
	}
	if err := reads(n2, token); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// TestGrantTokenOfAnotherRegion: tokens are good in their own Region only.
func TestGrantTokenOfAnotherRegion(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	there := mustIn[kmsapi.CreateGrantOutput](r, secondRegion, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}})
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), GrantTokens: []string{*there.GrantToken}})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	_, err = call[request.None](r, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: there.GrantToken})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	mustIn[request.None](r, secondRegion, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: there.GrantToken})
}

// TestGrantTokensEverywhere: every operation that takes tokens refuses made-up ones,
// takes genuine ones, of whatever key, and passes over those of grants that are gone.
func TestGrantTokensEverywhere(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	newKey := func(spec, usage string) *string {
		return must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata.KeyId
	}
	signer, mac, agree := newKey("ECC_NIST_P256", kmsapi.UsageSign), newKey("HMAC_256", kmsapi.UsageMac), newKey("ECC_NIST_P256", kmsapi.UsageAgree)
	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	signature := must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}).Signature
	tag := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}).Mac
	kem := newKey("ML_KEM_768", kmsapi.UsageEncapsulate)
	peer := must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: agree}).PublicKey
	inputs := map[string]any{
		"CreateGrant":                         &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}},
		"Decrypt":                             &kmsapi.DecryptInput{CiphertextBlob: blob},
		"DeriveSharedSecret":                  &kmsapi.DeriveSharedSecretInput{KeyId: agree, PublicKey: peer, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH)},
		"Decapsulate":                         decapsulateInput(*kem, r.encapsulates(*kem).SharedSecretCiphertextBlob),
		"DescribeKey":                         &kmsapi.DescribeKeyInput{KeyId: &id},
		"Encapsulate":                         encapsulateInput(*kem),
		"Encrypt":                             &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")},
		"GenerateDataKey":                     &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256)},
		"GenerateDataKeyPair":                 &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"GenerateDataKeyPairWithoutPlaintext": &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"GenerateDataKeyWithoutPlaintext":     &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256)},
		"GenerateMac":                         &kmsapi.GenerateMacInput{KeyId: mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")},
		"GetPublicKey":                        &kmsapi.GetPublicKeyInput{KeyId: signer},
		"ReEncrypt":                           &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &id},
		"Sign":                                &kmsapi.SignInput{KeyId: signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")},
		"Verify":                              &kmsapi.VerifyInput{KeyId: signer, Message: []byte("m"), Signature: signature, SigningAlgorithm: new("ECDSA_SHA_256")},
		"VerifyMac":                           &kmsapi.VerifyMacInput{KeyId: mac, Message: []byte("m"), Mac: tag, MacAlgorithm: new("HMAC_SHA_256")},
	}
	other, _ := r.newKey()
	gone := r.createGrant(other, aliceARN, "Encrypt")
	must[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &other, GrantId: gone.GrantId})
	there := r.createGrant(other, aliceARN, "Encrypt")
	for _, op := range Operations() {
		f, takes := reflect.TypeOf(op.NewInput()).Elem().FieldByName("GrantTokens")
		in := inputs[op.Name]
		if takes != (in != nil) {
			t.Errorf("%s takes tokens: %v; the test has it: %v", op.Name, takes, in != nil)
		}
		if in == nil {
			continue
		}
		for _, tt := range []struct {
			name   string
			tokens []string
			want   *kmsapi.Error
		}{
			{"genuine", []string{*there.GrantToken, *gone.GrantToken}, nil},
			{"made up", []string{"dG9rZW4="}, kmsapi.ErrInvalidGrantToken},
			{"one made up", []string{*there.GrantToken, *gone.GrantToken, "x"}, kmsapi.ErrInvalidGrantToken},
		} {
			reflect.ValueOf(in).Elem().FieldByIndex(f.Index).Set(reflect.ValueOf(tt.tokens))
			_, err := r.first.Do(t.Context(), r.caller(r.root), op, in)
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s, %s: %v, want %v", op.Name, tt.name, err, tt.want)
			}
		}
	}
	// A genuine token allows nothing by itself.
	bob := r.user("arn:aws:iam::" + testAccount + ":user/bob")
	_, err := callAs[kmsapi.EncryptOutput](r, r.first, bob, "Encrypt", &kmsapi.EncryptInput{KeyId: &other, Plaintext: []byte("x"), GrantTokens: []string{*there.GrantToken}})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	// Retiring by a token of what is gone says so.
	_, err = call[request.None](r, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: gone.GrantToken})
	wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*gone.GrantId+" not found")
	// A token cannot be made to name more than it does: key and grant are bound.
	key, grant, err := r.first.vault.GrantOfToken(*there.GrantToken)
	if want := (fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: r.keyID(other).ID}); err != nil || key != want || string(grant[:]) != string(bytesOfGrant(*there.GrantId)) {
		t.Errorf("the token names %v, %x: %v", key, grant, err)
	}
}
