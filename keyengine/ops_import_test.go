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
	"github.com/conclavekms/conclave/keyengine/internal/keywrap"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (r *room) keyToImport(spec, usage string) (id, arn string) {
	r.t.Helper()
	m := must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage, Origin: new(kmsapi.OriginImported)}).KeyMetadata
	return *m.KeyId, *m.Arn
}

// wrapped are parameters for an import into a key, and material wrapped with them.
func (r *room) wrapped(id, wrapping, algorithm string, material []byte) *kmsapi.ImportKeyMaterialInput {
	r.t.Helper()
	p := must[kmsapi.GetParametersForImportOutput](r, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: &algorithm, WrappingKeySpec: &wrapping,
	})
	b, err := keywrap.Wrap(p.PublicKey, algorithm, material)
	if err != nil {
		r.t.Fatalf("wrapping: %v", err)
	}
	return &kmsapi.ImportKeyMaterialInput{KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: b, ExpirationModel: new(ops.ModelForever)}
}

// symmetric is an import of a 32-byte key made of one digit.
func (r *room) symmetric(id string, digit byte) *kmsapi.ImportKeyMaterialInput {
	r.t.Helper()
	return r.wrapped(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{digit}, 32))
}

func (r *room) imports(in *kmsapi.ImportKeyMaterialInput) string {
	r.t.Helper()
	out := must[kmsapi.ImportKeyMaterialOutput](r, "ImportKeyMaterial", in)
	if out.KeyMaterialId == nil {
		return ""
	}
	return *out.KeyMaterialId
}

func (r *room) refusesImport(in *kmsapi.ImportKeyMaterialInput, kind *kmsapi.Error, message string) {
	r.t.Helper()
	_, err := call[kmsapi.ImportKeyMaterialOutput](r, "ImportKeyMaterial", in)
	wantError(r.t, err, kind, message)
}

func (r *room) describe(id string) *kmsapi.KeyMetadata {
	r.t.Helper()
	return must[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata
}

func (r *room) wantState(id, state string) {
	r.t.Helper()
	if got := *r.describe(id).KeyState; got != state {
		r.t.Errorf("key is %s, want %s", got, state)
	}
}

func TestImportSymmetric(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	m := r.describe(id)
	if *m.KeyState != "PendingImport" || *m.Enabled || *m.Origin != "EXTERNAL" || m.ExpirationModel != nil || m.CurrentKeyMaterialId != nil {
		t.Errorf("new key: %+v", m)
	}
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	start := r.cluster.clock.Now()
	p := must[kmsapi.GetParametersForImportOutput](r, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_4096"),
	})
	if *p.KeyId != arn || !p.ParametersValidTo.Equal(start.Add(24*time.Hour)) || len(p.ImportToken) > 6144 {
		t.Errorf("parameters of %s, valid to %v, token of %d bytes", *p.KeyId, *p.ParametersValidTo, len(p.ImportToken))
	}
	in := r.symmetric(id, 1)
	until := start.Add(100 * ops.Day)
	in.ValidTo, in.ExpirationModel, in.KeyMaterialDescription = &until, nil, new("from the safe")
	// Another node than gave out the token takes it, that leads by now and has lost all
	// that it held in memory meanwhile.
	second := r.engines["n2"]
	if err := second.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if _, err := second.SubmitShare(t.Context(), testOperator, r.share); err != nil {
		t.Fatal(err)
	}
	r.cluster.leader = r.cluster.replica("n2")
	out, err := callAs[kmsapi.ImportKeyMaterialOutput](r, second, r.root, "ImportKeyMaterial", in)
	if err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(vault.KeyMaterialID(r.stored(id), bytes.Repeat([]byte{1}, 32)))
	if *out.KeyId != arn || *out.KeyMaterialId != want {
		t.Errorf("answer: %s, %s; want %s", *out.KeyId, *out.KeyMaterialId, want)
	}
	m = r.describe(id)
	if *m.KeyState != "Enabled" || !*m.Enabled || *m.ExpirationModel != ops.ModelExpires || !m.ValidTo.Equal(until) || *m.CurrentKeyMaterialId != want {
		t.Errorf("after the import: %+v", m)
	}
	if r.opens(r.seal(id, "hello"), "hello") != want {
		t.Error("not opened by the imported material")
	}
	r.refusesImport(in, kmsapi.ErrInvalidImportToken, "") // it works once
	if rec := r.lastRecord(); strings.Contains(rec.String(), string(in.EncryptedKeyMaterial)) || rec.ErrorCode != string(kmsapi.ErrInvalidImportToken.Code) {
		t.Errorf("record: %v", rec)
	}
}

// TestImportEachSpec imports keys that were made elsewhere, and uses them.
func TestImportEachSpec(t *testing.T) {
	r := newRoom(t)
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
			r.t = t
			id, _ := r.keyToImport(tt.spec, tt.usage)
			material, err := primitive.Generate(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			r.refusesImport(r.wrapped(id, tt.wrapping, tt.algorithm, material[1:]), kmsapi.ErrIncorrectKeyMaterial, "")
			if got := r.imports(r.wrapped(id, tt.wrapping, tt.algorithm, material)); got != "" {
				t.Errorf("KeyMaterialId %s for a key that is not symmetric", got)
			}
			r.wantState(id, "Enabled")
			if tt.usage == kmsapi.UsageMac {
				alg := primitive.MacAlgorithms(tt.spec)[0]
				want, err := primitive.Mac(tt.spec, material, alg, []byte("m"))
				out := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, MacAlgorithm: &alg, Message: []byte("m")})
				if err != nil || !bytes.Equal(out.Mac, want) {
					t.Errorf("MAC is %x, want %x (%v)", out.Mac, want, err)
				}
			} else {
				want, err := primitive.Public(tt.spec, material)
				out := must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id})
				if err != nil || !bytes.Equal(out.PublicKey, want) {
					t.Errorf("the public key is another one (%v)", err)
				}
			}
			if tt.usage == kmsapi.UsageSign {
				alg := primitive.SigningAlgorithms(tt.spec)[0]
				sig := must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: &alg}).Signature
				public, _ := primitive.Public(tt.spec, material)
				if err := primitive.Verify(tt.spec, public, alg, primitive.Raw, []byte("m"), sig); err != nil {
					t.Errorf("its signature: %v", err)
				}
			}
			// Only the same again, also once it was deleted.
			other, err := primitive.Generate(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			r.refusesImport(r.wrapped(id, tt.wrapping, tt.algorithm, other), kmsapi.ErrIncorrectKeyMaterial, "")
			if out := must[kmsapi.DeleteImportedKeyMaterialOutput](r, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id}); out.KeyMaterialId != nil {
				t.Errorf("deleted %s", *out.KeyMaterialId)
			}
			r.wantState(id, "PendingImport")
			r.refusesImport(r.wrapped(id, tt.wrapping, tt.algorithm, other), kmsapi.ErrIncorrectKeyMaterial, "")
			r.imports(r.wrapped(id, tt.wrapping, tt.algorithm, material))
			r.wantState(id, "Enabled")
			in := r.wrapped(id, tt.wrapping, tt.algorithm, material)
			in.ImportType = new(ops.ImportExisting)
			r.refusesImport(in, kmsapi.ErrUnsupported, "…")
		})
	}
}

func TestImportErrors(t *testing.T) {
	r := newRoom(t)
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	other, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	ours, oursARN := r.newKey()
	good, again := r.symmetric(id, 1), r.symmetric(id, 2)
	now := r.cluster.clock.Now()
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
		{"31 bytes", r.wrapped(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{1}, 31)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"33 bytes", r.wrapped(id, "RSA_2048", "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{1}, 33)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"zeros", r.wrapped(id, "RSA_2048", "RSAES_OAEP_SHA_256", make([]byte, 32)), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"existing, where there is none", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.ImportType = new(ops.ImportExisting) }), kmsapi.ErrIncorrectKeyMaterial, ""},
		{"a material by a wrong id", variant(func(in *kmsapi.ImportKeyMaterialInput) { in.KeyMaterialId = new(strings.Repeat("a", 64)) }), kmsapi.ErrIncorrectKeyMaterial, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			r.refusesImport(tt.in, tt.kind, tt.message)
		})
	}
	r.t = t
	if k := r.stored(id); len(k.Materials) != 0 || len(k.UsedTokens) != 0 {
		t.Errorf("refusals left %d materials and %d used tokens", len(k.Materials), len(k.UsedTokens))
	}
	r.imports(good)

	must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	r.refusesImport(again, kmsapi.ErrInvalidState, arn+" is pending deletion.")
}

// TestImportTokenAltered: not one bit of a token can be changed.
func TestImportTokenAltered(t *testing.T) {
	r := newRoom(t)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := r.symmetric(id, 1)
	v := r.first.vault
	for i := range in.ImportToken {
		b := bytes.Clone(in.ImportToken)
		b[i] ^= 1 << (i % 8)
		if _, _, err := v.OpenImportToken(b); err != error(kmsapi.ErrInvalidImportToken) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for n := range in.ImportToken {
		if _, _, err := v.OpenImportToken(in.ImportToken[:n]); err != error(kmsapi.ErrInvalidImportToken) {
			t.Fatalf("%d bytes of it: %v", n, err)
		}
	}
	tok, secret, err := v.OpenImportToken(in.ImportToken)
	if err != nil || tok.Key != r.keyID(id) {
		t.Fatalf("the token itself: %v, %v", tok, err)
	}
	secret.Destroy()
}

// TestImportTokenExpires: by cluster time, also between evaluation and commit; then
// the key forgets those that it used.
func TestImportTokenExpires(t *testing.T) {
	r := newRoom(t)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	first, second := r.symmetric(id, 1), r.symmetric(id, 1)
	r.imports(first)
	r.cluster.advance(24*time.Hour - time.Nanosecond)
	var once bool
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if !once {
			once = true
			r.cluster.advance(time.Nanosecond)
		}
	}
	r.refusesImport(second, kmsapi.ErrExpiredImportToken, "")
	r.cluster.replica("n1").before = nil
	r.refusesImport(first, kmsapi.ErrExpiredImportToken, "")
	third := r.symmetric(id, 1)
	r.imports(third)
	if k := r.stored(id); len(k.UsedTokens) != 1 {
		t.Errorf("remembers %d tokens, of which one can be used", len(k.UsedTokens))
	}
	r.mangle(id, func(k *fsmpb.Key) {
		for i := range ops.MaxUsedTokens - 1 {
			k.UsedTokens = append(k.UsedTokens, &fsmpb.UsedToken{Id: bytes.Repeat([]byte{byte(i)}, 16), Expires: r.cluster.clock.Now().Add(ops.Day).UnixNano()})
		}
	})
	r.refusesImport(r.symmetric(id, 1), kmsapi.ErrLimitExceeded, "…")
}

// TestImportTokenTwiceAtOnce: of two imports with one token, on two nodes, one wins.
func TestImportTokenTwiceAtOnce(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := r.symmetric(id, 1)
	var second error
	var once bool
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if !once {
			once = true
			_, second = callAs[kmsapi.ImportKeyMaterialOutput](r, r.engines["n2"], r.root, "ImportKeyMaterial", in)
		}
	}
	r.refusesImport(in, kmsapi.ErrInvalidImportToken, "")
	if second != nil {
		t.Errorf("the one that was first: %v", second)
	}
}

func TestParametersForImportRefused(t *testing.T) {
	r := newRoom(t)
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
		id, _ := r.keyToImport(tt.spec, tt.usage)
		_, err := call[kmsapi.GetParametersForImportOutput](r, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
			KeyId: &id, WrappingAlgorithm: &tt.algorithm, WrappingKeySpec: &tt.wrapping,
		})
		wantError(t, err, kmsapi.ErrUnsupported, "…")
	}
}

// TestDeleteImportedMaterial: the key and its ciphertexts are dead until the same
// material comes back.
func TestDeleteImportedMaterial(t *testing.T) {
	r := newRoom(t)
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	remove := func(material *string) *kmsapi.DeleteImportedKeyMaterialOutput {
		t.Helper()
		return must[kmsapi.DeleteImportedKeyMaterialOutput](r, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: material})
	}
	if out := remove(nil); out.KeyMaterialId != nil || *out.KeyId != arn {
		t.Errorf("of a key without material: %+v", out)
	}
	material := r.imports(r.symmetric(id, 1))
	blob := r.seal(id, "x")
	r.opens(blob, "x")
	if out := remove(nil); *out.KeyMaterialId != material {
		t.Errorf("deleted %s", *out.KeyMaterialId)
	}
	if n := r.first.vault.CachedKeys(); n != 0 {
		t.Errorf("%d materials are still in the cache", n)
	}
	m := r.describe(id)
	if *m.KeyState != "PendingImport" || m.ExpirationModel != nil || m.ValidTo != nil || *m.CurrentKeyMaterialId != material {
		t.Errorf("metadata: %+v", m)
	}
	if k := r.stored(id); len(k.Materials[0].Wrapped) != 0 {
		t.Error("the material is still in the state")
	}
	_, err := call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	_, version := r.cluster.state().Key(r.keyID(id))
	remove(&material)
	if _, v := r.cluster.state().Key(r.keyID(id)); v != version {
		t.Error("deleting what is deleted changed the key")
	}
	_, err = call[kmsapi.DeleteImportedKeyMaterialOutput](r, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: new(strings.Repeat("a", 64))})
	wantError(t, err, kmsapi.ErrNotFound, "…")
	for _, op := range []string{"EnableKey", "DisableKey"} {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), map[string]any{"EnableKey": &kmsapi.EnableKeyInput{KeyId: &id}, "DisableKey": &kmsapi.DisableKeyInput{KeyId: &id}}[op])
		wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	}
	r.refusesImport(r.symmetric(id, 2), kmsapi.ErrIncorrectKeyMaterial, "")
	again := r.symmetric(id, 1)
	again.KeyMaterialId = &material
	if got := r.imports(again); got != material {
		t.Errorf("the same material is %s", got)
	}
	r.opens(blob, "x")

	// A key that was disabled is so afterwards, too.
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	remove(nil)
	r.wantState(id, "PendingImport")
	r.imports(r.symmetric(id, 1))
	r.wantState(id, "Disabled")
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	// What is pending deletion stays so; when that is cancelled, it waits.
	must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	remove(nil)
	r.wantState(id, "PendingDeletion")
	must[kmsapi.CancelKeyDeletionOutput](r, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	r.wantState(id, "PendingImport")
	r.imports(r.symmetric(id, 1))
	r.wantState(id, "Disabled")
}

// TestImportAndRotate: new material waits until the key is rotated on demand, and
// the old one is needed as before.
func TestImportAndRotate(t *testing.T) {
	r := newRoom(t)
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	one := r.imports(r.symmetric(id, 1))
	blob := r.seal(id, "one")
	rotate := func() error {
		_, err := call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
		return err
	}
	nothing := "No available key material pending rotation for the key: " + arn + "."
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	known := r.symmetric(id, 1)
	known.ImportType = new(ops.ImportNew)
	r.refusesImport(known, kmsapi.ErrIncorrectKeyMaterial, "")
	r.refusesImport(r.symmetric(id, 2), kmsapi.ErrIncorrectKeyMaterial, "") // existing is the default now
	fresh := func(digit byte) *kmsapi.ImportKeyMaterialInput {
		in := r.symmetric(id, digit)
		in.ImportType = new(ops.ImportNew)
		return in
	}
	second := fresh(2)
	second.KeyMaterialDescription = new("second")
	two := r.imports(second)
	if r.current(id) != one {
		t.Error("new material is current before the rotation")
	}
	three := hex.EncodeToString(vault.KeyMaterialID(r.stored(id), bytes.Repeat([]byte{3}, 32)))
	r.refusesImport(fresh(3), kmsapi.ErrInvalidState, fmt.Sprintf("New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.", three, arn, two))
	show := func(include *string) string {
		var lines []string
		for _, e := range must[kmsapi.ListKeyRotationsOutput](r, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: include}).Rotations {
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
		t.Errorf("materials: %s", got)
	}
	if got := show(nil); got != "" {
		t.Errorf("rotations: %s", got)
	}
	// What is not the key's yet can be taken back.
	must[kmsapi.DeleteImportedKeyMaterialOutput](r, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: &two})
	r.wantState(id, "Enabled")
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	r.imports(fresh(2))
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	if r.current(id) != two || r.opens(blob, "one") != one || r.opens(r.seal(id, "two"), "two") != two {
		t.Error("after the rotation not the right material is used")
	}
	if got := show(nil); got != "two CURRENT IMPORTED ON_DEMAND" {
		t.Errorf("rotations: %s", got)
	}
	wantError(t, rotate(), kmsapi.ErrInvalidState, nothing)
	// All of them are needed.
	must[kmsapi.DeleteImportedKeyMaterialOutput](r, "DeleteImportedKeyMaterial", &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id, KeyMaterialId: &one})
	r.wantState(id, "PendingImport")
	if got := show(new(ops.AllMaterial)); got != "one NON_CURRENT PENDING_IMPORT, two CURRENT IMPORTED ON_DEMAND" {
		t.Errorf("materials: %s", got)
	}
	r.imports(r.symmetric(id, 1))
	r.wantState(id, "Enabled")
	r.opens(blob, "one")
	if k := r.stored(id); k.RotationsOnDemand != 1 {
		t.Errorf("%d rotations on demand", k.RotationsOnDemand)
	}
}

// expiring imports material that expires after some time.
func (r *room) expiring(id string, digit byte, after time.Duration) int64 {
	r.t.Helper()
	in := r.symmetric(id, digit)
	at := r.cluster.clock.Now().Add(after)
	in.ExpirationModel, in.ValidTo = new(ops.ModelExpires), &at
	r.imports(in)
	return at.UnixNano()
}

// TestExpiryBoundsUse: no answer is made with material that has expired by cluster
// time, although it was there when the answer was made and nobody destroyed it yet.
func TestExpiryBoundsUse(t *testing.T) {
	r := newRoom(t)
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	at := r.expiring(id, 1, time.Hour)
	blob := r.seal(id, "x")
	requests := map[string]any{
		"Decrypt": &kmsapi.DecryptInput{CiphertextBlob: blob}, "Encrypt": &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")},
		"GenerateDataKey": &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")},
	}
	replica := r.cluster.replica("n1")
	for op, in := range requests {
		var bound int64
		replica.before = func(rec *fsmpb.Record) { bound = rec.NotAfter }
		if _, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), in); err != nil || bound != at {
			t.Errorf("%s: bound %d, want %d; %v", op, bound, at, err)
		}
	}
	replica.before = nil
	r.cluster.advance(time.Hour - time.Nanosecond)
	r.opens(blob, "x")
	once := false
	replica.before = func(*fsmpb.Record) {
		if !once {
			once = true
			r.cluster.advance(time.Nanosecond)
		}
	}
	_, err := call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	replica.before = nil
	for op, in := range requests {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), in)
		wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending import.")
	}
	r.wantState(id, "PendingImport")
	// A change of the key meanwhile neither revives it nor swallows the event.
	must[request.None](r, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("x")})
	scheduleOf(r.first).Round(t.Context(), time.Now())
	if n := r.recorded("DeleteExpiredKeyMaterial"); n != 1 {
		t.Errorf("%d records of expiry", n)
	}
	r.imports(r.symmetric(id, 1))
	r.wantState(id, "Enabled")
	r.opens(blob, "x")
}

// passes has time pass between the evaluation and the commit of the next record.
func (r *room) passes(d time.Duration) {
	once := false
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if !once {
			once = true
			r.cluster.advance(d)
		}
	}
	r.t.Cleanup(func() { r.cluster.replica("n1").before = nil })
}

// TestImportOfWhatExpires: material must not have expired by the time that its import
// is recorded.
func TestImportOfWhatExpires(t *testing.T) {
	r := newRoom(t)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	in := r.symmetric(id, 1)
	in.ExpirationModel, in.ValidTo = nil, new(r.cluster.clock.Now().Add(time.Second))
	r.passes(time.Second)
	r.refusesImport(in, kmsapi.ErrValidation, "…")
}

// TestRotateToWhatExpires: nor does a rotation make material current that has.
func TestRotateToWhatExpires(t *testing.T) {
	r := newRoom(t)
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	r.imports(r.symmetric(id, 1))
	in := r.symmetric(id, 2)
	in.ImportType, in.ExpirationModel, in.ValidTo = new(ops.ImportNew), nil, new(r.cluster.clock.Now().Add(time.Hour))
	r.imports(in)
	r.cluster.advance(time.Hour - time.Second)
	r.passes(time.Second)
	_, err := call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrInvalidState, "No available key material pending rotation for the key: "+arn+".")
	r.wantState(id, "Enabled")
}

// TestDueExpiryOnce: expired material is destroyed once, never early, whichever
// nodes lead meanwhile.
func TestDueExpiryOnce(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, arn := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	r.expiring(id, 1, 100*ops.Day)
	r.seal(id, "x")
	setClock(r.engines["n2"], &fakeClock{now: r.cluster.clock.Now().Add(200 * ops.Day)}) // ahead
	d1, d2, now := scheduleOf(r.engines["n1"]), scheduleOf(r.engines["n2"]), time.Now()
	there := func() bool { return len(r.stored(id).Materials[0].Wrapped) > 0 }
	for range 5 {
		now = now.Add(schedule.LookMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	r.cluster.advance(100*ops.Day - time.Second)
	now = now.Add(schedule.RetryMax)
	d2.Round(t.Context(), now)
	if !there() {
		t.Fatal("destroyed early")
	}
	r.wantState(id, "Enabled")
	r.cluster.advance(time.Second)
	r.cluster.replica("n2").freeze()
	now = now.Add(schedule.RetryMax)
	d1.Round(t.Context(), now)
	if there() {
		t.Fatal("not destroyed")
	}
	if n := r.first.vault.CachedKeys(); n != 0 {
		t.Errorf("%d materials are still in the cache", n)
	}
	d2.Round(t.Context(), now)
	r.cluster.replica("n2").thaw()
	for range 3 {
		now = now.Add(schedule.RetryMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	if n := r.recorded("DeleteExpiredKeyMaterial"); n != 1 {
		t.Errorf("%d records of expiry", n)
	}
	rec := r.lastRecord()
	if rec.EventType != "AwsServiceEvent" || rec.ServiceEventDetails[0].GetText() != arn ||
		!slices.Equal(rec.ServiceEventDetails[1].GetList().GetItems(), []string{*r.describe(id).CurrentKeyMaterialId}) {
		t.Errorf("record: %v", rec)
	}
}

// TestExpiryOfSeveral: metadata shows the earliest; what is pending expires without
// the key; an import sets it anew.
func TestExpiryOfSeveral(t *testing.T) {
	r := newRoom(t)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	late := r.expiring(id, 1, 10*ops.Day)
	pending := r.symmetric(id, 2)
	soon := r.cluster.clock.Now().Add(ops.Day)
	pending.ImportType, pending.ExpirationModel, pending.ValidTo = new(ops.ImportNew), nil, &soon
	r.imports(pending)
	if m := r.describe(id); !m.ValidTo.Equal(soon) {
		t.Errorf("ValidTo is %v, want the earliest, %v", m.ValidTo, soon)
	}
	r.cluster.advance(ops.Day)
	d, now := scheduleOf(r.first), time.Now()
	d.Round(t.Context(), now)
	if k := r.stored(id); len(k.Materials) != 1 {
		t.Errorf("%d materials after the pending one expired", len(k.Materials))
	}
	if m := r.describe(id); *m.KeyState != "Enabled" || m.ValidTo.UnixNano() != late {
		t.Errorf("%s, valid to %v", *m.KeyState, m.ValidTo)
	}
	r.imports(r.symmetric(id, 1))
	if m := r.describe(id); *m.ExpirationModel != ops.ModelForever || m.ValidTo != nil {
		t.Errorf("%s, valid to %v", *m.ExpirationModel, m.ValidTo)
	}
	r.cluster.advance(20 * ops.Day)
	d.Round(t.Context(), now.Add(schedule.LookMax))
	r.wantState(id, "Enabled")
}

// TestImportIntoReplicas: each key of a multi-Region set gets its own import of the
// same material, and rotates when all have the next.
func TestImportIntoReplicas(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	name := r.newMultiKey(kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginImported)})
	second := fsm.KeyID{Account: testAccountNumber, Region: secondRegion, ID: r.keyID(name).ID}
	into := func(region string, digit byte, kind *string) error {
		t.Helper()
		p, err := callIn[kmsapi.GetParametersForImportOutput](r, region, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
			KeyId: &name, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048"),
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := keywrap.Wrap(p.PublicKey, "RSAES_OAEP_SHA_256", bytes.Repeat([]byte{digit}, 32))
		if err != nil {
			t.Fatal(err)
		}
		_, err = callIn[kmsapi.ImportKeyMaterialOutput](r, region, "ImportKeyMaterial", &kmsapi.ImportKeyMaterialInput{
			KeyId: &name, ImportToken: p.ImportToken, EncryptedKeyMaterial: b, ExpirationModel: new(ops.ModelForever), ImportType: kind,
		})
		return err
	}
	if err := into(testRegion, 1, nil); err != nil {
		t.Fatal(err)
	}
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &name, ReplicaRegion: new(secondRegion)})
	wantError(t, into(secondRegion, 2, nil), kmsapi.ErrIncorrectKeyMaterial, "")
	wantError(t, into(secondRegion, 2, new(ops.ImportNew)), kmsapi.ErrIncorrectKeyMaterial, "")
	if err := into(secondRegion, 1, nil); err != nil {
		t.Fatal(err)
	}
	crosses := func() {
		t.Helper()
		blob := r.seal(name, "x")
		if out, err := callIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}); err != nil || string(out.Plaintext) != "x" {
			t.Errorf("the replica gives %v, %v", out, err)
		}
	}
	crosses()
	if err := into(testRegion, 2, new(ops.ImportNew)); err != nil {
		t.Fatal(err)
	}
	pending := func() string {
		t.Helper()
		list := must[kmsapi.ListKeyRotationsOutput](r, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &name, IncludeKeyMaterial: new(ops.AllMaterial)}).Rotations
		return *list[1].KeyMaterialState
	}
	if got := pending(); got != "PENDING_MULTI_REGION_IMPORT_AND_ROTATION" {
		t.Errorf("the new material is %s", got)
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	wantError(t, err, kmsapi.ErrInvalidState, "…")
	if err := into(secondRegion, 2, new(ops.ImportExisting)); err != nil {
		t.Fatal(err)
	}
	if got := pending(); got != "PENDING_ROTATION" {
		t.Errorf("the new material is %s", got)
	}
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	crosses()
	if k, _ := r.cluster.state().Key(second); request.PendingMaterial(k) != nil || len(k.Materials) != 2 {
		t.Errorf("the replica has %d materials", len(k.Materials))
	}
}

func FuzzOpenToken(f *testing.F) {
	r := newRoom(f)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	good := r.symmetric(id, 1).ImportToken
	f.Add(good)
	f.Add(good[:47])
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, secret, err := r.first.vault.OpenImportToken(b)
		if err != error(kmsapi.ErrInvalidImportToken) && !bytes.Equal(b, good) {
			t.Errorf("a token that was not given out: %v", err)
		}
		if secret != nil {
			secret.Destroy()
		}
	})
}

// TestImportTokenOfAClockThatIsAhead: the life of a token is counted in cluster time,
// whatever the node's clock says.
func TestImportTokenOfAClockThatIsAhead(t *testing.T) {
	r := newRoom(t)
	id, _ := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	right := r.first.clock
	setClock(r.first, &fakeClock{now: r.cluster.clock.Now().Add(25 * time.Hour)})
	in := r.symmetric(id, 1)
	setClock(r.first, right)
	r.cluster.advance(ops.ImportTokenLife + ops.ImportTokenAhead)
	r.refusesImport(in, kmsapi.ErrExpiredImportToken, "")
}
