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

// createGrant makes a grant to a user or a role, which it makes too if it does not exist.
func (c *testCluster) createGrant(key, grantee string, operations ...string) *kmsapi.CreateGrantOutput {
	c.t.Helper()
	c.exist(grantee)
	return must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &grantee, Operations: operations})
}

// A grant token is valid on every node, after a restart and under newer generations of the
// keyring. A token that differs in one bit is not.
func TestGrantTokens(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.exist(aliceARN)
	id, _ := c.newKey()
	out := c.createGrant(id, aliceARN, "Encrypt")
	token := *out.GrantToken
	reads := func(e *Engine, token string) error {
		key, grant, err := e.vault.GrantOfToken(token)
		if err == nil && (key != c.keyID(id) || string(grant[:]) != string(bytesOfGrant(*out.GrantId))) {
			t.Errorf("the token is for key %v, grant %x", key, grant)
		}
		return err
	}
	n2 := c.engines["n2"]
	for name, e := range c.engines {
		if err := reads(e, token); err != nil {
			t.Errorf("GrantOfToken on %s: %v", name, err)
		}
	}
	raw, err := base64.StdEncoding.DecodeString(token)
	if err != nil || strings.Contains(token, *out.GrantId) {
		t.Fatalf("got token %s (%v), want base64 without the grant's id", token, err)
	}
	encode := base64.StdEncoding.EncodeToString
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if err := reads(c.engine, encode(raw)); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
				t.Errorf("with bit %d of byte %d flipped: got error %v, want InvalidGrantTokenException", bit, i, err)
			}
			raw[i] ^= 1 << bit
		}
		if err := reads(c.engine, encode(raw[:i])); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("cut to %d bytes: got error %v, want InvalidGrantTokenException", i, err)
		}
	}
	for i := range token {
		for _, char := range []string{"A", "_", "\n", "\r", "", "=", "é"} {
			if s := token[:i] + char + token[i+1:]; s != token && !errors.Is(reads(c.engine, s), kmsapi.ErrInvalidGrantToken) {
				t.Errorf("a token with %q at character %d is accepted", char, i)
			}
		}
	}
	o, err := c.engine.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	session, err := o.SignSession(&vault.Session{Credential: "x"})
	if err != nil {
		t.Fatal(err)
	}
	second := *c.createGrant(id, aliceARN, "Encrypt").GrantToken
	stranger := newTestCluster(t)
	theirs, _ := stranger.newKey()
	for name, s := range map[string]string{
		"empty": "", "made up": "token", "with a newline": token + "\n", "with a byte more": encode(append(raw[:len(raw):len(raw)], 0)),
		"URL-safe": base64.RawURLEncoding.EncodeToString(raw), "twice": token + token, "session token": session,
		"halves of two": encode(raw)[:40] + second[40:], "long": strings.Repeat("A", 8192), "of another cluster": *stranger.createGrant(theirs, aliceARN, "Encrypt").GrantToken,
	} {
		if err := reads(c.engine, s); !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("%s: got error %v, want InvalidGrantTokenException", name, err)
		}
		if s == "" {
			continue
		}
		_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), GrantTokens: []string{token, s}})
		wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
		_, err = call[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: &s})
		wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	}

	// With the unused bits at the end of the base64 text set, in a Region with a name of another
	// length.
	padded, err := c.engine.vault.GrantToken(fsm.KeyID{Account: testAccountNumber, Region: "eu-west-100"}, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	body, ok := strings.CutSuffix(padded, "==")
	if _, _, err := c.engine.vault.GrantOfToken(padded); !ok || err != nil {
		t.Fatalf("got token %s (%v), want one with padding", padded, err)
	}
	for _, char := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		s := body[:len(body)-1] + string(char) + "=="
		if _, _, err := c.engine.vault.GrantOfToken(s); s != padded && !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
			t.Errorf("%s is accepted for %s", s, padded)
		}
	}

	// After a restart.
	n2.vault.Seal()
	if err := reads(n2, token); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("GrantOfToken on a sealed node: got error %v", err)
	}
	if _, err := n2.vault.GrantToken(c.keyID(id), [32]byte{}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("GrantToken on a sealed node: got error %v", err)
	}
	if _, err := n2.SubmitShare(t.Context(), ceremony.Operator{Name: "root"}, c.initResult.Shares[0]); err != nil {
		t.Fatal(err)
	}
	if err := reads(n2, token); err != nil {
		t.Errorf("GrantOfToken after a restart: %v", err)
	}
}

// A grant token is valid only in its own Region.
func TestGrantTokenOfAnotherRegion(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	c.exist(aliceARN)
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	there := mustIn[kmsapi.CreateGrantOutput](c, secondRegion, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}})
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), GrantTokens: []string{*there.GrantToken}})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	_, err = call[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: there.GrantToken})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	mustIn[request.None](c, secondRegion, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: there.GrantToken})
}

// TestGrantTokensEverywhere checks that every operation with grant tokens refuses forged ones,
// accepts genuine ones, also of other keys, and ignores those of grants that no longer exist.
func TestGrantTokensEverywhere(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, _ := c.newKey()
	newKey := func(spec, usage string) *string {
		return must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata.KeyId
	}
	signer, mac, agree := newKey("ECC_NIST_P256", kmsapi.UsageSign), newKey("HMAC_256", kmsapi.UsageMac), newKey("ECC_NIST_P256", kmsapi.UsageAgree)
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	signature := must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: signer, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}).Signature
	tag := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}).Mac
	kem := newKey("ML_KEM_768", kmsapi.UsageEncapsulate)
	peer := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: agree}).PublicKey
	inputs := map[string]any{
		"CreateGrant":                         &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}},
		"Decrypt":                             &kmsapi.DecryptInput{CiphertextBlob: blob},
		"DeriveSharedSecret":                  &kmsapi.DeriveSharedSecretInput{KeyId: agree, PublicKey: peer, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH)},
		"Decapsulate":                         decapsulateInput(*kem, c.encapsulate(*kem).SharedSecretCiphertextBlob),
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
	other, _ := c.newKey()
	gone := c.createGrant(other, aliceARN, "Encrypt")
	must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &other, GrantId: gone.GrantId})
	there := c.createGrant(other, aliceARN, "Encrypt")
	for _, op := range Operations() {
		f, takes := reflect.TypeOf(op.NewInput()).Elem().FieldByName("GrantTokens")
		in := inputs[op.Name]
		if takes != (in != nil) {
			t.Errorf("%s takes grant tokens: %v; the test has an input for it: %v", op.Name, takes, in != nil)
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
			_, err := c.engine.Do(t.Context(), c.caller(c.root), op, in)
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s, %s: got error %v, want %v", op.Name, tt.name, err, tt.want)
			}
		}
	}
	// A genuine token of a grant to somebody else allows nothing.
	bob := c.newUser("arn:aws:iam::" + testAccount + ":user/bob")
	_, err := callAs[kmsapi.EncryptOutput](c, c.engine, bob, "Encrypt", &kmsapi.EncryptInput{KeyId: &other, Plaintext: []byte("x"), GrantTokens: []string{*there.GrantToken}})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	// RetireGrant reports that the grant of a token does not exist.
	_, err = call[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: gone.GrantToken})
	wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*gone.GrantId+" not found")
	// The token has the key and the grant.
	key, grant, err := c.engine.vault.GrantOfToken(*there.GrantToken)
	if want := (fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: c.keyID(other).ID}); err != nil || key != want || string(grant[:]) != string(bytesOfGrant(*there.GrantId)) {
		t.Errorf("the token is for key %v, grant %x (%v)", key, grant, err)
	}
}
