package ops

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/keywrap"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// ImportTokenLife is how long parameters for an import are valid.
	ImportTokenLife = 24 * time.Hour
	// ImportTokenAhead is how far the clock that this is counted from may be ahead of
	// cluster time, which lags by up to half a minute on an idle cluster.
	ImportTokenAhead = time.Minute
	// maxValidTo is the maximum time until material expires.
	maxValidTo = 365 * Day
	// MaxUsedTokens is the maximum number of used tokens that a key remembers, and so the
	// number of imports in 24 hours.
	MaxUsedTokens = 100

	ImportNew      = "NEW_KEY_MATERIAL"
	ImportExisting = "EXISTING_KEY_MATERIAL"

	wrapRSA2048 = "RSA_2048"
	wrapSM2     = "SM2"
)

// originOf returns the origin of a key to be created.
func originOf(in *kmsapi.CreateKeyInput) string {
	if in.Origin != nil {
		return *in.Origin
	}
	return kmsapi.OriginKMS
}

// Importable refuses key specs whose material cannot be imported. AWS documents that for
// ML-DSA, and does not list ML-KEM among the specs that can be.
func Importable(spec string) error {
	if strings.HasPrefix(spec, "ML_") {
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "KeySpec %s is not supported for Origin %s.", spec, kmsapi.OriginImported)
	}
	return nil
}

// firstMaterial creates a new key's material, or sets the state of a key that needs an
// import.
func firstMaterial(ev *request.Evaluation, k *fsmpb.Key) error {
	if k.Origin == kmsapi.OriginImported {
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
		return nil
	}
	m, err := makeMaterial(ev, k)
	if err != nil {
		return err
	}
	k.Materials = []*fsmpb.Material{m}
	return nil
}

// imported returns the key of an operation on imported material.
func imported(ev *request.Evaluation, keyID string) (*request.Target, error) {
	t, err := ev.Managed(keyID)
	if err != nil {
		return nil, err
	}
	if t.Key.Origin != kmsapi.OriginImported {
		return nil, request.WrongOrigin(t)
	}
	return t, nil
}

func getParametersForImport(ev *request.Evaluation, in *kmsapi.GetParametersForImportInput) (*kmsapi.GetParametersForImportOutput, error) {
	t, err := imported(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := wraps(t.Key.Spec, *in.WrappingKeySpec, *in.WrappingAlgorithm); err != nil {
		return nil, err
	}
	pkcs8, err := ev.Once(func() ([]byte, error) {
		pkcs8, _, err := keywrap.NewWrappingKey(*in.WrappingKeySpec)
		return pkcs8, err
	})
	if err != nil {
		return nil, err
	}
	defer clear(pkcs8)
	public, err := primitive.Public(*in.WrappingKeySpec, pkcs8)
	if err != nil {
		return nil, err
	}
	// A node whose clock is ahead must not extend the life of tokens.
	from := min(FromNow(ev).UnixNano(), ev.State.Time()+int64(ImportTokenAhead))
	token := &vault.ImportToken{Key: t.ID, Algorithm: *in.WrappingAlgorithm, Expires: from + int64(ImportTokenLife)}
	_, _ = rand.Read(token.ID[:]) // never fails: crypto/rand ends the process instead
	sealed, err := ev.Vault.SealImportToken(token, pkcs8)
	if err != nil {
		return nil, err
	}
	return &kmsapi.GetParametersForImportOutput{
		KeyId: &t.ARN, ImportToken: sealed, PublicKey: public, ParametersValidTo: TimeOf(token.Expires),
	}, nil
}

// wraps checks that the material of a key spec can be wrapped with the algorithm and the
// wrapping key. RSA alone can encrypt only short material.
func wraps(spec, wrapping, algorithm string) error {
	short := strings.HasPrefix(algorithm, "RSAES_OAEP_")
	curve, rsa := strings.HasPrefix(spec, "ECC_"), strings.HasPrefix(spec, "RSA_")
	switch {
	case wrapping == wrapSM2:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "WrappingKeySpec %s is not supported in this Region.", wrapping)
	case !slices.Contains(keywrap.Algorithms(), algorithm):
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "WrappingAlgorithm %s is not supported.", algorithm)
	case short && rsa, !short && !rsa && !curve, short && spec == "ECC_NIST_P521" && wrapping == wrapRSA2048:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "WrappingAlgorithm %s with WrappingKeySpec %s is not supported for KeySpec %s.", algorithm, wrapping, spec)
	}
	return nil
}

func importKeyMaterial(ev *request.Evaluation, in *kmsapi.ImportKeyMaterialInput) (*kmsapi.ImportKeyMaterialOutput, error) {
	validTo, err := validTo(ev, in)
	if err != nil {
		return nil, err
	}
	if in.KeyMaterialId != nil && in.ImportType != nil && *in.ImportType == ImportNew {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "KeyMaterialId cannot be specified with the ImportType %s.", ImportNew)
	}
	t, err := imported(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if t.Key.Spec != kmsapi.SpecSymmetric && (in.ImportType != nil || in.KeyMaterialDescription != nil || in.KeyMaterialId != nil) {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "ImportType, KeyMaterialDescription and KeyMaterialId are supported for symmetric encryption keys only.")
	}
	token, material, err := unwrapImport(ev, t, in.ImportToken, in.EncryptedKeyMaterial)
	if err != nil {
		return nil, err
	}
	defer clear(material)
	if err := soundMaterial(t.Key.Spec, material); err != nil {
		return nil, err
	}
	k := proto.CloneOf(t.Key)
	if err := useToken(ev, k, token); err != nil {
		return nil, err
	}
	m, err := place(ev, t, k, in, material)
	if err != nil {
		return nil, err
	}
	m.ValidTo = validTo
	if in.KeyMaterialDescription != nil {
		m.Description = *in.KeyMaterialDescription
	}
	request.EndImport(k, ev.State.Time())
	// New material is added to all keys of the set. Each key must import its bytes itself.
	if err := PutMembers(ev, k, MembersOf(ev, t)); err != nil {
		return nil, err
	}
	return &kmsapi.ImportKeyMaterialOutput{KeyId: &t.ARN, KeyMaterialId: request.ShownMaterial(t, m)}, nil
}

func recordImport(out *kmsapi.ImportKeyMaterialOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return materialElements(out.KeyId, out.KeyMaterialId)
}

func recordDeleteMaterial(out *kmsapi.DeleteImportedKeyMaterialOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return materialElements(out.KeyId, out.KeyMaterialId)
}

func materialElements(keyID, id *string) []*auditpb.Field {
	fields := []*auditpb.Field{auditfield.Text("keyId", *keyID)}
	if id != nil {
		fields = append(fields, auditfield.Text("keyMaterialId", *id))
	}
	return fields
}

// validTo returns when imported material expires, or 0 for never. If that is past when the
// import is recorded, the record is rejected.
func validTo(ev *request.Evaluation, in *kmsapi.ImportKeyMaterialInput) (int64, error) {
	if in.ExpirationModel != nil && *in.ExpirationModel == ModelForever {
		if in.ValidTo != nil {
			return 0, kmsapi.Errorf(kmsapi.ErrValidation, "A validTo date cannot be set if the ExpirationModel is %s", ModelForever)
		}
		return 0, nil
	}
	if in.ValidTo == nil {
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "A validTo date must be set if the ExpirationModel is %s", ModelExpires)
	}
	now := ev.Now()
	if !in.ValidTo.After(now) || in.ValidTo.After(now.Add(maxValidTo)) {
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "The validTo date must be in the future and at most 365 days from now")
	}
	at := in.ValidTo.UnixNano()
	ev.Within(0, at)
	return at, nil
}

// unwrapImport decrypts the token of an import and the material. It reports a token as
// expired only if it is genuine.
func unwrapImport(ev *request.Evaluation, t *request.Target, token, wrapped []byte) (*vault.ImportToken, []byte, error) {
	tok, pkcs8, err := ev.Vault.OpenImportToken(token)
	if err != nil {
		return nil, nil, err
	}
	defer pkcs8.Destroy()
	if tok.Key != t.ID {
		return nil, nil, kmsapi.ErrInvalidImportToken
	}
	if ev.State.Time() >= tok.Expires {
		return nil, nil, kmsapi.ErrExpiredImportToken
	}
	ev.Within(0, tok.Expires)
	for _, u := range t.Key.UsedTokens {
		if bytes.Equal(u.Id, tok.ID[:]) {
			return nil, nil, kmsapi.ErrInvalidImportToken
		}
	}
	var material []byte
	err = pkcs8.With(func(b []byte) (err error) {
		material, err = keywrap.Unwrap(b, tok.Algorithm, wrapped)
		return err
	})
	switch {
	case errors.Is(err, keywrap.ErrUnwrap):
		return nil, nil, kmsapi.ErrInvalidCiphertext
	case err != nil:
		return nil, nil, vault.Gone(err)
	}
	return tok, material, nil
}

// soundMaterial checks that material is a valid key of the spec.
func soundMaterial(spec string, material []byte) error {
	if !slices.ContainsFunc(material, func(b byte) bool { return b != 0 }) {
		return kmsapi.ErrIncorrectKeyMaterial // all zeros
	}
	if spec == kmsapi.SpecSymmetric {
		if len(material) != keymat.KeySize {
			return kmsapi.ErrIncorrectKeyMaterial
		}
		return nil
	}
	err := primitive.Check(spec, material)
	if errors.Is(err, primitive.ErrMaterial) {
		return kmsapi.ErrIncorrectKeyMaterial
	}
	return cryptops.RefusedByFIPS(err)
}

// useToken adds a token to the key's used tokens and drops those that have expired.
func useToken(ev *request.Evaluation, k *fsmpb.Key, t *vault.ImportToken) error {
	now := ev.State.Time()
	k.UsedTokens = slices.DeleteFunc(k.UsedTokens, func(u *fsmpb.UsedToken) bool { return u.Expires <= now })
	if len(k.UsedTokens) >= MaxUsedTokens {
		return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "Key material can be imported into a KMS key %d times in 24 hours.", MaxUsedTokens)
	}
	k.UsedTokens = append(k.UsedTokens, &fsmpb.UsedToken{Id: t.ID[:], Expires: t.Expires})
	return nil
}

// place returns the key's material that the imported bytes belong to, and sets its wrapped
// bytes if they are missing. If a new material is allowed, it adds one.
func place(ev *request.Evaluation, t *request.Target, k *fsmpb.Key, in *kmsapi.ImportKeyMaterialInput, b []byte) (*fsmpb.Material, error) {
	given, err := wrapImported(ev, k, b)
	if err != nil {
		return nil, err
	}
	known := SameMaterial(k, given)
	fresh := len(k.Materials) == 0
	if in.ImportType != nil {
		fresh = *in.ImportType == ImportNew
	}
	switch {
	case fresh && (known != nil || request.Replica(k)), !fresh && known == nil,
		in.KeyMaterialId != nil && (known == nil || hex.EncodeToString(known.MaterialId) != *in.KeyMaterialId):
		return nil, kmsapi.ErrIncorrectKeyMaterial
	case fresh:
		return given, addMaterial(t, k, given)
	case len(known.Wrapped) == 0:
		// Keep the id that existing ciphertexts name.
		err = ev.Vault.WrapAgain(k, known, b)
	}
	return known, err
}

// wrapImported returns a new material with the bytes, which it leaves unchanged.
func wrapImported(ev *request.Evaluation, k *fsmpb.Key, b []byte) (*fsmpb.Material, error) {
	now := ev.Now().UnixNano()
	if k.Spec == kmsapi.SpecSymmetric {
		return ev.Vault.GivenMaterial(k, now, bytes.Clone(b))
	}
	return wrapPrivate(ev, k, now, bytes.Clone(b))
}

// SameMaterial returns the key's material that is the same as other, or nil. Asymmetric
// keys are compared by public key, as a private key has several encodings.
func SameMaterial(k *fsmpb.Key, other *fsmpb.Material) *fsmpb.Material {
	for _, m := range k.Materials {
		if other.PublicKey != nil && bytes.Equal(m.PublicKey, other.PublicKey) ||
			other.PublicKey == nil && bytes.Equal(m.MaterialId, other.MaterialId) {
			return m
		}
	}
	return nil
}

// addMaterial adds a new material to a key, as the current one if it is the first, and for
// the next rotation otherwise.
func addMaterial(t *request.Target, k *fsmpb.Key, m *fsmpb.Material) error {
	if p := request.PendingMaterial(k); p != nil {
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.",
			*request.MaterialID(m), t.ARN, *request.MaterialID(p))
	}
	if len(k.Materials) > 0 && k.Spec != kmsapi.SpecSymmetric {
		return kmsapi.ErrIncorrectKeyMaterial
	}
	m.Pending = len(k.Materials) > 0
	k.Materials = append(k.Materials, m)
	return nil
}

// deleteImportedKeyMaterial destroys a material at once: no answer uses it after the record
// is committed.
func deleteImportedKeyMaterial(ev *request.Evaluation, in *kmsapi.DeleteImportedKeyMaterialInput) (*kmsapi.DeleteImportedKeyMaterialOutput, error) {
	t, err := imported(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if in.KeyMaterialId != nil && t.Key.Spec != kmsapi.SpecSymmetric {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "KeyMaterialId is supported for symmetric encryption keys only.")
	}
	k := proto.CloneOf(t.Key)
	m := request.CurrentMaterial(k)
	if in.KeyMaterialId != nil {
		i := slices.IndexFunc(k.Materials, func(m *fsmpb.Material) bool { return *request.MaterialID(m) == *in.KeyMaterialId })
		if i < 0 {
			return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Key material '%s' does not exist in KMS key %s", *in.KeyMaterialId, t.ARN)
		}
		m = k.Materials[i]
	}
	out := &kmsapi.DeleteImportedKeyMaterialOutput{KeyId: &t.ARN, KeyMaterialId: request.ShownMaterial(t, m)}
	if m != nil && len(m.Wrapped) > 0 {
		Destroy(k, func(o *fsmpb.Material) bool { return o == m })
		return out, PutDestroyed(ev, t, k)
	}
	return out, nil
}
