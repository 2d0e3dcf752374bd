package keyengine

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keywrap"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// importRequest gets parameters for an import into a key and returns a request to import the
// material.
func (c *testCluster) importRequest(id, wrapping, algorithm string, material []byte) *kmsapi.ImportKeyMaterialInput {
	c.t.Helper()
	p := must[kmsapi.GetParametersForImportOutput](c, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: &algorithm, WrappingKeySpec: &wrapping,
	})
	b, err := keywrap.Wrap(p.PublicKey, algorithm, material)
	if err != nil {
		c.t.Fatalf("wrapping: %v", err)
	}
	return &kmsapi.ImportKeyMaterialInput{KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: b, ExpirationModel: new(ops.ModelForever)}
}

// symmetricImport returns a request to import a 32-byte key of equal bytes.
func (c *testCluster) symmetricImport(id string, digit byte) *kmsapi.ImportKeyMaterialInput {
	c.t.Helper()
	return c.importRequest(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{digit}, 32))
}

func (c *testCluster) importMaterial(in *kmsapi.ImportKeyMaterialInput) string {
	c.t.Helper()
	out := must[kmsapi.ImportKeyMaterialOutput](c, "ImportKeyMaterial", in)
	if out.KeyMaterialId == nil {
		return ""
	}
	return *out.KeyMaterialId
}

func (c *testCluster) wantImportError(in *kmsapi.ImportKeyMaterialInput, kind *kmsapi.Error, message string) {
	c.t.Helper()
	_, err := call[kmsapi.ImportKeyMaterialOutput](c, "ImportKeyMaterial", in)
	wantError(c.t, err, kind, message)
}

func TestImportSymmetric(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	m := c.describe(id)
	if *m.KeyState != "PendingImport" || *m.Enabled || *m.Origin != "EXTERNAL" || m.ExpirationModel != nil || m.CurrentKeyMaterialId != nil {
		t.Errorf("unexpected metadata of a key without material: %+v", m)
	}
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	start := c.Clock.Now()
	p := must[kmsapi.GetParametersForImportOutput](c, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_4096"),
	})
	if *p.KeyId != arn || !p.ParametersValidTo.Equal(start.Add(24*time.Hour)) || len(p.ImportToken) > 6144 {
		t.Errorf("got parameters of %s, valid to %v, with a token of %d bytes", *p.KeyId, *p.ParametersValidTo, len(p.ImportToken))
	}
	in := c.symmetricImport(id, 1)
	until := start.Add(100 * ops.Day)
	in.ValidTo, in.ExpirationModel, in.KeyMaterialDescription = &until, nil, new("from the safe")
	// The token is also valid on another node, which leads by now and was sealed meanwhile,
	// so that it has lost everything that it had in memory.
	second := c.engines["n2"]
	if err := second.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if _, err := second.SubmitShare(t.Context(), enginetest.Operator, c.initResult.Shares[0]); err != nil {
		t.Fatal(err)
	}
	c.Leader = c.Replica("n2")
	out, err := callAs[kmsapi.ImportKeyMaterialOutput](c, second, c.root, "ImportKeyMaterial", in)
	if err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(vault.KeyMaterialID(c.storedKey(id), bytes.Repeat([]byte{1}, 32)))
	if *out.KeyId != arn || *out.KeyMaterialId != want {
		t.Errorf("ImportKeyMaterial returned key %s, material %s; want %s, %s", *out.KeyId, *out.KeyMaterialId, arn, want)
	}
	m = c.describe(id)
	if *m.KeyState != "Enabled" || !*m.Enabled || *m.ExpirationModel != ops.ModelExpires || !m.ValidTo.Equal(until) || *m.CurrentKeyMaterialId != want {
		t.Errorf("unexpected metadata after the import: %+v", m)
	}
	if c.wantDecrypt(c.encrypt(id, "hello"), "hello") != want {
		t.Error("Decrypt did not use the imported material")
	}
	c.wantImportError(in, kmsapi.ErrInvalidImportToken, "") // it works once
	if rec := c.lastRecord(); strings.Contains(rec.String(), string(in.EncryptedKeyMaterial)) || rec.ErrorCode != string(kmsapi.ErrInvalidImportToken.Code) {
		t.Errorf("unexpected record of an import that was refused: %v", rec)
	}
}

// Keys of each spec that can be imported are imported and used.
func TestImportEachSpec(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	const hybrid, direct = "RSA_AES_KEY_WRAP_SHA_256", "RSAES_OAEP_SHA_256"
	tests := []struct{ spec, usage, wrapping, algorithm string }{
		{"RSA_2048", kmsapi.UsageEncrypt, "RSA_2048", hybrid},
		{"RSA_4096", kmsapi.UsageSign, "RSA_2048", "RSA_AES_KEY_WRAP_SHA_1"},
		{"ECC_NIST_P256", kmsapi.UsageSign, "RSA_2048", direct},
		{"ECC_NIST_P384", kmsapi.UsageAgree, "RSA_2048", "RSAES_OAEP_SHA_1"},
		{"ECC_NIST_P521", kmsapi.UsageSign, "RSA_3072", direct},
		{"ECC_SECG_P256K1", kmsapi.UsageSign, "RSA_2048", hybrid},
		{"ECC_NIST_EDWARDS25519", kmsapi.UsageSign, "RSA_2048", hybrid},
		{"HMAC_224", kmsapi.UsageMac, "RSA_2048", direct},
		{"HMAC_256", kmsapi.UsageMac, "RSA_2048", direct},
		{"HMAC_384", kmsapi.UsageMac, "RSA_2048", direct},
		{"HMAC_512", kmsapi.UsageMac, "RSA_2048", direct},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			c.t = t
			id, _ := c.newKeyForImport(tt.spec, tt.usage)
			material, err := primitive.Generate(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			c.wantImportError(c.importRequest(id, tt.wrapping, tt.algorithm, material[1:]), kmsapi.ErrIncorrectKeyMaterial, "")
			if got := c.importMaterial(c.importRequest(id, tt.wrapping, tt.algorithm, material)); got != "" {
				t.Errorf("got KeyMaterialId %s for a key that is not symmetric, want none", got)
			}
			c.wantKeyState(id, "Enabled")
			if tt.usage == kmsapi.UsageMac {
				alg := primitive.MacAlgorithms(tt.spec)[0]
				want, err := primitive.Mac(tt.spec, material, alg, []byte("m"))
				out := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, MacAlgorithm: &alg, Message: []byte("m")})
				if err != nil || !bytes.Equal(out.Mac, want) {
					t.Errorf("got MAC %x, want %x (%v)", out.Mac, want, err)
				}
			} else {
				want, err := primitive.Public(tt.spec, material)
				out := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id})
				if err != nil || !bytes.Equal(out.PublicKey, want) {
					t.Errorf("GetPublicKey returned another public key than that of the material (%v)", err)
				}
			}
			if tt.usage == kmsapi.UsageSign {
				alg := primitive.SigningAlgorithms(tt.spec)[0]
				sig := must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: &alg}).Signature
				public, _ := primitive.Public(tt.spec, material)
				if err := primitive.Verify(tt.spec, public, alg, primitive.Raw, []byte("m"), sig); err != nil {
					t.Errorf("verifying a signature with the imported key: %v", err)
				}
			}
			// Only the same material can be imported again, also after it was deleted.
			other, err := primitive.Generate(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			c.wantImportError(c.importRequest(id, tt.wrapping, tt.algorithm, other), kmsapi.ErrIncorrectKeyMaterial, "")
			if out := must[kmsapi.DeleteImportedKeyMaterialOutput](c, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id}); out.KeyMaterialId != nil {
				t.Errorf("DeleteImportedKeyMaterial returned material %s, want none", *out.KeyMaterialId)
			}
			c.wantKeyState(id, "PendingImport")
			c.wantImportError(c.importRequest(id, tt.wrapping, tt.algorithm, other), kmsapi.ErrIncorrectKeyMaterial, "")
			c.importMaterial(c.importRequest(id, tt.wrapping, tt.algorithm, material))
			c.wantKeyState(id, "Enabled")
			in := c.importRequest(id, tt.wrapping, tt.algorithm, material)
			in.ImportType = new(ops.ImportExisting)
			c.wantImportError(in, kmsapi.ErrUnsupported, "…")
		})
	}
}

func TestImportErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	other, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	ours, oursARN := c.newKey()
	good, again := c.symmetricImport(id, 1), c.symmetricImport(id, 2)
	now := c.Clock.Now()
	variant := func(edit func(*kmsapi.ImportKeyMaterialInput)) *kmsapi.ImportKeyMaterialInput {
		in := *good
		in.ImportToken, in.EncryptedKeyMaterial = bytes.Clone(in.ImportToken), bytes.Clone(in.EncryptedKeyMaterial)
		edit(&in)
		return &in
	}
	tests := []struct {
		name    string
		in      *kmsapi.ImportKeyMaterialInput
		kind    *kmsapi.Error
		message string
	}{
		{"no date", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ExpirationModel = nil }), kmsapi.ErrValidation,
			"A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},
		{"date of what does not expire", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ValidTo = new(now.Add(ops.Day)) }), kmsapi.ErrValidation,
			"A validTo date cannot be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE"},
		{"date now", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ExpirationModel, in.ValidTo = nil, &now }), kmsapi.ErrValidation, "…"},
		{"date far ahead", variant(func(in *kmsapi.ImportKeyMaterialInput) {
			in.ExpirationModel, in.ValidTo = nil, new(now.Add(365*ops.Day+time.Second))
		}), kmsapi.ErrValidation, "…"},
		{"date beyond all clocks", variant(func(in *kmsapi.ImportKeyMaterialInput) {
			in.ExpirationModel, in.ValidTo = nil, new(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
		}), kmsapi.ErrValidation, "…"},
		{"new, but which", variant(func(in *kmsapi.ImportKeyMaterialInput) {
			in.ImportType, in.KeyMaterialId = new(ops.ImportNew), new(strings.Repeat("a", 64))
		}), kmsapi.ErrValidation, "…"},
		{"rules between members before the key", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ExpirationModel, in.KeyId = nil, new("nothing") }), kmsapi.ErrValidation, "…"},
		{"key of other origin", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.KeyId = &ours }), kmsapi.ErrUnsupported, oursARN + " origin is AWS_KMS which is not valid for this operation."},
		{"token of another key", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.KeyId = &other }), kmsapi.ErrInvalidImportToken, ""},
		{"no token", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ImportToken = []byte("x") }), kmsapi.ErrInvalidImportToken, ""},
		{"a longer token", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ImportToken = append(in.ImportToken, 0) }), kmsapi.ErrInvalidImportToken, ""},
		{"another token's material", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.EncryptedKeyMaterial = again.EncryptedKeyMaterial }), kmsapi.ErrInvalidCiphertext, ""},
		{"altered material", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.EncryptedKeyMaterial[9] ^= 1 }), kmsapi.ErrInvalidCiphertext, ""},
		{"31 bytes", c.importRequest(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{1}, 31)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"33 bytes", c.importRequest(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{1}, 33)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"zeros", c.importRequest(id, "RSA_2048", "RSAES_OAEP_SHA_256", make([]byte, 32)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"existing, where there is none", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ImportType = new(ops.ImportExisting) }), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"a material by a wrong id", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.KeyMaterialId = new(strings.Repeat("a", 64)) }), kmsapi.ErrIncorrectKeyMaterial, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			c.wantImportError(tt.in, tt.kind, tt.message)
		})
	}
	c.t = t
	if k := c.storedKey(id); len(k.Materials) != 0 || len(k.UsedTokens) != 0 {
		t.Errorf("after refused imports the key has %d materials and %d used tokens, want none", len(k.Materials), len(k.UsedTokens))
	}
	c.importMaterial(good)

	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	c.wantImportError(again, kmsapi.ErrInvalidState, arn+" is pending deletion.")
}

// An import token of which a bit is changed, or that is cut, is refused.
func TestImportTokenAltered(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := c.symmetricImport(id, 1)
	v := c.engine.vault
	for i := range in.ImportToken {
		b := bytes.Clone(in.ImportToken)
		b[i] ^= 1 << (i % 8)
		if _, _, err := v.OpenImportToken(b); err != error(kmsapi.ErrInvalidImportToken) {
			t.Fatalf("with byte %d changed: got error %v, want InvalidImportTokenException", i, err)
		}
	}
	for n := range in.ImportToken {
		if _, _, err := v.OpenImportToken(in.ImportToken[:n]); err != error(kmsapi.ErrInvalidImportToken) {
			t.Fatalf("cut to %d bytes: got error %v, want InvalidImportTokenException", n, err)
		}
	}
	tok, secret, err := v.OpenImportToken(in.ImportToken)
	if err != nil || tok.Key != c.keyID(id) {
		t.Fatalf("OpenImportToken returned %v, error %v, want key %v", tok, err, c.keyID(id))
	}
	secret.Destroy()
}

// An import token expires by cluster time, also between evaluation and commit. Then the key forgets
// that it was used.
func TestImportTokenExpires(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	first, second := c.symmetricImport(id, 1), c.symmetricImport(id, 1)
	c.importMaterial(first)
	c.Advance(24*time.Hour - time.Nanosecond)
	var once bool
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			c.Advance(time.Nanosecond)
		}
	}
	c.wantImportError(second, kmsapi.ErrExpiredImportToken, "")
	c.Replica("n1").BeforeCommit = nil
	c.wantImportError(first, kmsapi.ErrExpiredImportToken, "")
	third := c.symmetricImport(id, 1)
	c.importMaterial(third)
	if k := c.storedKey(id); len(k.UsedTokens) != 1 {
		t.Errorf("the key remembers %d used tokens, want only the one that has not expired", len(k.UsedTokens))
	}
	c.modifyKey(id, func(k *fsmpb.Key) {
		for i := range ops.MaxUsedTokens - 1 {
			k.UsedTokens = append(k.UsedTokens, &fsmpb.UsedToken{Id: bytes.Repeat([]byte{byte(i)}, 16), Expires: c.Clock.Now().Add(ops.Day).UnixNano()})
		}
	})
	c.wantImportError(c.symmetricImport(id, 1), kmsapi.ErrLimitExceeded, "…")
}

// Of two imports with the same token, on two nodes, one succeeds.
func TestImportTokenTwiceAtOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := c.symmetricImport(id, 1)
	var second error
	var once bool
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			_, second = callAs[kmsapi.ImportKeyMaterialOutput](c, c.engines["n2"], c.root, "ImportKeyMaterial", in)
		}
	}
	c.wantImportError(in, kmsapi.ErrInvalidImportToken, "")
	if second != nil {
		t.Errorf("the import that was committed first: %v", second)
	}
}

func TestParametersForImportRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	tests := []struct {
		spec, usage, wrapping, algorithm string
	}{
		{"SYMMETRIC_DEFAULT", kmsapi.UsageEncrypt, "RSA_2048", "RSAES_PKCS1_V1_5"},
		{"SYMMETRIC_DEFAULT", kmsapi.UsageEncrypt, "RSA_2048", "SM2PKE"},
		{"SYMMETRIC_DEFAULT", kmsapi.UsageEncrypt, "SM2", "RSAES_OAEP_SHA_256"},
		{"SYMMETRIC_DEFAULT", kmsapi.UsageEncrypt, "RSA_2048", "RSA_AES_KEY_WRAP_SHA_256"},
		{"HMAC_256", kmsapi.UsageMac, "RSA_2048", "RSA_AES_KEY_WRAP_SHA_256"},
		{"RSA_2048", kmsapi.UsageSign, "RSA_4096", "RSAES_OAEP_SHA_256"},
		{"ECC_NIST_P521", kmsapi.UsageSign, "RSA_2048", "RSAES_OAEP_SHA_1"},
	}
	for _, tt := range tests {
		id, _ := c.newKeyForImport(tt.spec, tt.usage)
		_, err := call[kmsapi.GetParametersForImportOutput](c, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
			KeyId: &id, WrappingAlgorithm: &tt.algorithm, WrappingKeySpec: &tt.wrapping,
		})
		wantError(t, err, kmsapi.ErrUnsupported, "…")
	}
}

// After DeleteImportedKeyMaterial the key and its ciphertexts cannot be used until the same
// material is imported again.
func TestDeleteImportedMaterial(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	remove := func(material *string) *kmsapi.DeleteImportedKeyMaterialOutput {
		t.Helper()
		return must[kmsapi.DeleteImportedKeyMaterialOutput](c, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: material})
	}
	if out := remove(nil); out.KeyMaterialId != nil || *out.KeyId != arn {
		t.Errorf("DeleteImportedKeyMaterial of a key without material returned %+v", out)
	}
	material := c.importMaterial(c.symmetricImport(id, 1))
	blob := c.encrypt(id, "x")
	c.wantDecrypt(blob, "x")
	if out := remove(nil); *out.KeyMaterialId != material {
		t.Errorf("DeleteImportedKeyMaterial returned material %s", *out.KeyMaterialId)
	}
	if n := c.engine.vault.CachedKeys(); n != 0 {
		t.Errorf("%d materials are cached after the deletion, want 0", n)
	}
	m := c.describe(id)
	if *m.KeyState != "PendingImport" || m.ExpirationModel != nil || m.ValidTo != nil || *m.CurrentKeyMaterialId != material {
		t.Errorf("unexpected metadata after the deletion: %+v", m)
	}
	if k := c.storedKey(id); len(k.Materials[0].Wrapped) != 0 {
		t.Error("the state has the deleted material")
	}
	_, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	_, version := c.State().Key(c.keyID(id))
	remove(&material)
	if _, v := c.State().Key(c.keyID(id)); v != version {
		t.Error("deleting deleted material changed the key")
	}
	_, err = call[kmsapi.DeleteImportedKeyMaterialOutput](c, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: new(strings.Repeat("a", 64))})
	wantError(t, err, kmsapi.ErrNotFound, "…")
	for _, op := range []string{"EnableKey", "DisableKey"} {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), map[string]any{"EnableKey": &kmsapi.EnableKeyInput{KeyId: &id}, "DisableKey": &kmsapi.DisableKeyInput{KeyId: &id}}[op])
		wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	}
	c.wantImportError(c.symmetricImport(id, 2), kmsapi.ErrIncorrectKeyMaterial, "")
	again := c.symmetricImport(id, 1)
	again.KeyMaterialId = &material
	if got := c.importMaterial(again); got != material {
		t.Errorf("importing the same material again returned material %s", got)
	}
	c.wantDecrypt(blob, "x")

	// A key that was disabled is disabled again after the import.
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	remove(nil)
	c.wantKeyState(id, "PendingImport")
	c.importMaterial(c.symmetricImport(id, 1))
	c.wantKeyState(id, "Disabled")
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	// A key that is pending deletion stays so. When the deletion is cancelled, the key is
	// pending import.
	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	remove(nil)
	c.wantKeyState(id, "PendingDeletion")
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	c.wantKeyState(id, "PendingImport")
	c.importMaterial(c.symmetricImport(id, 1))
	c.wantKeyState(id, "Disabled")
}

// New material is pending until the key is rotated on demand, and older material is still needed
// afterwards.
func TestImportAndRotate(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	one := c.importMaterial(c.symmetricImport(id, 1))
	blob := c.encrypt(id, "one")
	rotate := func() error {
		_, err := call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
		return err
	}
	nothing := "No available key material pending rotation for the key: " + arn + "."
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	known := c.symmetricImport(id, 1)
	known.ImportType = new(ops.ImportNew)
	c.wantImportError(known, kmsapi.ErrIncorrectKeyMaterial, "")
	c.wantImportError(c.symmetricImport(id, 2), kmsapi.ErrIncorrectKeyMaterial, "") // existing is the default now
	fresh := func(digit byte) *kmsapi.ImportKeyMaterialInput {
		in := c.symmetricImport(id, digit)
		in.ImportType = new(ops.ImportNew)
		return in
	}
	second := fresh(2)
	second.KeyMaterialDescription = new("second")
	two := c.importMaterial(second)
	if c.currentMaterialID(id) != one {
		t.Error("new material is the current one before the rotation")
	}
	three := hex.EncodeToString(vault.KeyMaterialID(c.storedKey(id), bytes.Repeat([]byte{3}, 32)))
	c.wantImportError(fresh(3), kmsapi.ErrInvalidState, fmt.Sprintf("New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.", three, arn, two))
	show := func(include *string) string {
		var lines []string
		for _, e := range must[kmsapi.ListKeyRotationsOutput](c, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: include}).Rotations {
			line := map[string]string{one: "one", two: "two"}[*e.KeyMaterialId] + " " + *e.KeyMaterialState + " " + *e.ImportState
			if e.KeyMaterialDescription != nil {
				line += " " + *e.KeyMaterialDescription
			}
			if e.RotationType != nil {
				line += " " + *e.RotationType
			}
			lines = append(lines, line)
		}
		return strings.Join(lines, ", ")
	}
	if got := show(new(ops.AllMaterial)); got != "one CURRENT IMPORTED, two PENDING_ROTATION IMPORTED second" {
		t.Errorf("got materials %s", got)
	}
	if got := show(nil); got != "" {
		t.Errorf("got rotations %s, want none", got)
	}
	// Pending material can be deleted without effect on the key.
	must[kmsapi.DeleteImportedKeyMaterialOutput](c, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: &two})
	c.wantKeyState(id, "Enabled")
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	c.importMaterial(fresh(2))
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	if c.currentMaterialID(id) != two || c.wantDecrypt(blob, "one") != one || c.wantDecrypt(c.encrypt(id, "two"), "two") != two {
		t.Error("after the rotation, Encrypt or Decrypt did not use the right material")
	}
	if got := show(nil); got != "two CURRENT IMPORTED ON_DEMAND" {
		t.Errorf("got rotations %s", got)
	}
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	// The key cannot be used if any of its materials is missing.
	must[kmsapi.DeleteImportedKeyMaterialOutput](c, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: &one})
	c.wantKeyState(id, "PendingImport")
	if got := show(new(ops.AllMaterial)); got != "one NON_CURRENT PENDING_IMPORT, two CURRENT IMPORTED ON_DEMAND" {
		t.Errorf("got materials %s", got)
	}
	c.importMaterial(c.symmetricImport(id, 1))
	c.wantKeyState(id, "Enabled")
	c.wantDecrypt(blob, "one")
	if k := c.storedKey(id); k.RotationsOnDemand != 1 {
		t.Errorf("got %d rotations on demand, want 1", k.RotationsOnDemand)
	}
}

// importExpiring imports material that expires after some time, and returns when.
func (c *testCluster) importExpiring(id string, digit byte, after time.Duration) int64 {
	c.t.Helper()
	in := c.symmetricImport(id, digit)
	at := c.Clock.Now().Add(after)
	in.ExpirationModel, in.ValidTo = new(ops.ModelExpires), &at
	c.importMaterial(in)
	return at.UnixNano()
}

// No answer is given that used material which has expired by cluster time, although the
// material was still there when the request was evaluated and is not destroyed yet.
func TestExpiryBoundsUse(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	at := c.importExpiring(id, 1, time.Hour)
	blob := c.encrypt(id, "x")
	requests := map[string]any{
		"Decrypt": &kmsapi.DecryptInput{CiphertextBlob: blob}, "Encrypt": &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")},
		"GenerateDataKey": &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")},
	}
	replica := c.Replica("n1")
	for op, in := range requests {
		var bound int64
		replica.BeforeCommit = func(rec *fsmpb.Record) { bound = rec.NotAfter }
		if _, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in); err != nil || bound != at {
			t.Errorf("%s: the record has NotAfter %d, want %d (%v)", op, bound, at, err)
		}
	}
	replica.BeforeCommit = nil
	c.Advance(time.Hour - time.Nanosecond)
	c.wantDecrypt(blob, "x")
	once := false
	replica.BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			c.Advance(time.Nanosecond)
		}
	}
	_, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	replica.BeforeCommit = nil
	for op, in := range requests {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in)
		wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	}
	c.wantKeyState(id, "PendingImport")
	// A change of the key after the expiry does not bring the material back, and the expiry
	// is still recorded.
	must[request.None](c, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("x")})
	newSchedule(c.engine).Round(t.Context(), time.Now())
	if n := c.countRecords("DeleteExpiredKeyMaterial"); n != 1 {
		t.Errorf("got %d records of the expiry, want 1", n)
	}
	c.importMaterial(c.symmetricImport(id, 1))
	c.wantKeyState(id, "Enabled")
	c.wantDecrypt(blob, "x")
}

// advanceBeforeCommit has the given time pass between the evaluation and the commit of the next
// record.
func (c *testCluster) advanceBeforeCommit(d time.Duration) {
	once := false
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			c.Advance(d)
		}
	}
	c.t.Cleanup(func() { c.Replica("n1").BeforeCommit = nil })
}

// Material must not have expired by the time that its import is committed.
func TestImportOfWhatExpires(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := c.symmetricImport(id, 1)
	in.ExpirationModel, in.ValidTo = nil, new(c.Clock.Now().Add(time.Second))
	c.advanceBeforeCommit(time.Second)
	c.wantImportError(in, kmsapi.ErrValidation, "…")
}

// RotateKeyOnDemand does not make material current that has expired.
func TestRotateToWhatExpires(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	c.importMaterial(c.symmetricImport(id, 1))
	in := c.symmetricImport(id, 2)
	in.ImportType, in.ExpirationModel, in.ValidTo = new(ops.ImportNew), nil, new(c.Clock.Now().Add(time.Hour))
	c.importMaterial(in)
	c.Advance(time.Hour - time.Second)
	c.advanceBeforeCommit(time.Second)
	_, err := call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrInvalidState, "No available key material pending rotation for the key: "+arn+".")
	c.wantKeyState(id, "Enabled")
}

// Expired material is destroyed once, and not early, although two nodes take it for expired.
func TestDueExpiryOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, arn := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	c.importExpiring(id, 1, 100*ops.Day)
	c.encrypt(id, "x")
	setClock(c.engines["n2"], enginetest.NewClock(c.Clock.Now().Add(200*ops.Day))) // ahead
	d1, d2, now := newSchedule(c.engines["n1"]), newSchedule(c.engines["n2"]), time.Now()
	there := func() bool { return len(c.storedKey(id).Materials[0].Wrapped) > 0 }
	for range 5 {
		now = now.Add(schedule.LookMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	c.Advance(100*ops.Day - time.Second)
	now = now.Add(schedule.RetryMax)
	d2.Round(t.Context(), now)
	if !there() {
		t.Fatal("the material was destroyed early")
	}
	c.wantKeyState(id, "Enabled")
	c.Advance(time.Second)
	c.Replica("n2").FallBehind()
	now = now.Add(schedule.RetryMax)
	d1.Round(t.Context(), now)
	if there() {
		t.Fatal("the material was not destroyed when it expired")
	}
	if n := c.engine.vault.CachedKeys(); n != 0 {
		t.Errorf("%d materials are cached after the expiry, want 0", n)
	}
	d2.Round(t.Context(), now)
	c.Replica("n2").CatchUp()
	for range 3 {
		now = now.Add(schedule.RetryMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	if n := c.countRecords("DeleteExpiredKeyMaterial"); n != 1 {
		t.Errorf("got %d records of the expiry, want 1", n)
	}
	rec := c.lastRecord()
	if rec.EventType != "AwsServiceEvent" || rec.ServiceEventDetails[0].GetText() != arn ||
		!slices.Equal(rec.ServiceEventDetails[1].GetList().GetItems(), []string{*c.describe(id).CurrentKeyMaterialId}) {
		t.Errorf("unexpected record of the expiry: %v", rec)
	}
}

// DescribeKey shows the earliest expiry of several materials. Pending material expires
// without effect on the key, and an import sets the expiry anew.
func TestExpiryOfSeveral(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	late := c.importExpiring(id, 1, 10*ops.Day)
	pending := c.symmetricImport(id, 2)
	soon := c.Clock.Now().Add(ops.Day)
	pending.ImportType, pending.ExpirationModel, pending.ValidTo = new(ops.ImportNew), nil, &soon
	c.importMaterial(pending)
	if m := c.describe(id); !m.ValidTo.Equal(soon) {
		t.Errorf("got ValidTo %v, want the earliest, %v", m.ValidTo, soon)
	}
	c.Advance(ops.Day)
	d, now := newSchedule(c.engine), time.Now()
	d.Round(t.Context(), now)
	if k := c.storedKey(id); len(k.Materials) != 1 {
		t.Errorf("got %d materials after the pending one expired, want 1", len(k.Materials))
	}
	if m := c.describe(id); *m.KeyState != "Enabled" || m.ValidTo.UnixNano() != late {
		t.Errorf("the key is %s, valid to %v; want Enabled, %v", *m.KeyState, m.ValidTo, time.Unix(0, late))
	}
	c.importMaterial(c.symmetricImport(id, 1))
	if m := c.describe(id); *m.ExpirationModel != ops.ModelForever || m.ValidTo != nil {
		t.Errorf("the key has expiration model %s, valid to %v; want none", *m.ExpirationModel, m.ValidTo)
	}
	c.Advance(20 * ops.Day)
	d.Round(t.Context(), now.Add(schedule.LookMax))
	c.wantKeyState(id, "Enabled")
}

// The same material is imported into each key of a multi-Region set separately. The set can
// be rotated when all keys have the new material.
func TestImportIntoReplicas(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	name := c.newMultiKey(kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginImported)})
	second := fsm.KeyID{Account: testAccountNumber, Region: secondRegion, ID: c.keyID(name).ID}
	into := func(region string, digit byte, kind *string) error {
		t.Helper()
		p, err := callIn[kmsapi.GetParametersForImportOutput](c, region, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
			KeyId: &name, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048"),
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := keywrap.Wrap(p.PublicKey, "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{digit}, 32))
		if err != nil {
			t.Fatal(err)
		}
		_, err = callIn[kmsapi.ImportKeyMaterialOutput](c, region, "ImportKeyMaterial", &kmsapi.ImportKeyMaterialInput{
			KeyId: &name, ImportToken: p.ImportToken, EncryptedKeyMaterial: b, ExpirationModel: new(ops.ModelForever), ImportType: kind,
		})
		return err
	}
	if err := into(testRegion, 1, nil); err != nil {
		t.Fatal(err)
	}
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &name, ReplicaRegion: new(secondRegion)})
	wantError(t, into(secondRegion, 2, nil), kmsapi.ErrIncorrectKeyMaterial, "")
	wantError(t, into(secondRegion, 2, new(ops.ImportNew)), kmsapi.ErrIncorrectKeyMaterial, "")
	if err := into(secondRegion, 1, nil); err != nil {
		t.Fatal(err)
	}
	crosses := func() {
		t.Helper()
		blob := c.encrypt(name, "x")
		if out, err := callIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}); err != nil || string(out.Plaintext) != "x" {
			t.Errorf("Decrypt with the replica returned %v, error %v; want x", out, err)
		}
	}
	crosses()
	if err := into(testRegion, 2, new(ops.ImportNew)); err != nil {
		t.Fatal(err)
	}
	pending := func() string {
		t.Helper()
		list := must[kmsapi.ListKeyRotationsOutput](c, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &name, IncludeKeyMaterial: new(ops.AllMaterial)}).Rotations
		return *list[1].KeyMaterialState
	}
	if got := pending(); got != "PENDING_MULTI_REGION_IMPORT_AND_ROTATION" {
		t.Errorf("the new material is %s, want PENDING_MULTI_REGION_IMPORT_AND_ROTATION", got)
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	wantError(t, err, kmsapi.ErrInvalidState, "…")
	if err := into(secondRegion, 2, new(ops.ImportExisting)); err != nil {
		t.Fatal(err)
	}
	if got := pending(); got != "PENDING_ROTATION" {
		t.Errorf("the new material is %s, want PENDING_ROTATION", got)
	}
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	crosses()
	if k, _ := c.State().Key(second); request.PendingMaterial(k) != nil || len(k.Materials) != 2 {
		t.Errorf("the replica has %d materials, want 2 and none pending", len(k.Materials))
	}
}

func FuzzOpenToken(f *testing.F) {
	c := newTestCluster(f)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	good := c.symmetricImport(id, 1).ImportToken
	f.Add(good)
	f.Add(good[:47])
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, secret, err := c.engine.vault.OpenImportToken(b)
		if err != error(kmsapi.ErrInvalidImportToken) && !bytes.Equal(b, good) {
			t.Errorf("OpenImportToken of a made-up token: got error %v, want InvalidImportTokenException", err)
		}
		if secret != nil {
			secret.Destroy()
		}
	})
}

// Import tokens expire by cluster time, also if the clock of the node that made them is ahead.
func TestImportTokenOfAClockThatIsAhead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	right := c.engine.clock
	setClock(c.engine, enginetest.NewClock(c.Clock.Now().Add(25*time.Hour)))
	in := c.symmetricImport(id, 1)
	setClock(c.engine, right)
	c.Advance(ops.ImportTokenLife + ops.ImportTokenAhead)
	c.wantImportError(in, kmsapi.ErrExpiredImportToken, "")
}
