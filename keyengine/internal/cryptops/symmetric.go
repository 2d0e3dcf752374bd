package cryptops

import (
	"crypto/rand"
	"errors"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Encrypt implements the operation Encrypt.
func Encrypt(ev *request.Evaluation, in *kmsapi.EncryptInput) (*kmsapi.EncryptOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	algorithm := algorithmOr(in.EncryptionAlgorithm)
	t, err := useKey(ev, *in.KeyId, ev.Op.Action(), in.EncryptionContext, kmsapi.UsageEncrypt, algorithm)
	if err != nil {
		return nil, err
	}
	if err := fits(t, algorithm, len(in.Plaintext), in.EncryptionContext); err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	blob, _, err := encrypt(ev, t, algorithm, in.Plaintext, in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	return &kmsapi.EncryptOutput{CiphertextBlob: blob, KeyId: &t.ARN, EncryptionAlgorithm: &algorithm}, nil
}

// Decrypt implements the operation Decrypt.
func Decrypt(ev *request.Evaluation, in *kmsapi.DecryptInput) (*kmsapi.DecryptOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	to, err := RecipientOf(ev, in.Recipient)
	if err != nil {
		return nil, err
	}
	c := ciphertext{
		blob: in.CiphertextBlob, context: in.EncryptionContext, to: to,
		keyMember: "KeyId", keyID: in.KeyId, algorithm: in.EncryptionAlgorithm,
		ignored: request.IsSet(in.DryRun) && slices.Contains(in.DryRunModifiers, kmsapi.IgnoreCiphertext),
	}
	t, plaintext, m, err := openCiphertext(ev, c, ev.Op.Action())
	if err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		clear(plaintext)
		return nil, request.ErrDryRun
	}
	out := &kmsapi.DecryptOutput{KeyId: &t.ARN, EncryptionAlgorithm: new(algorithmOr(in.EncryptionAlgorithm))}
	if out.Plaintext, out.CiphertextForRecipient, err = to.Deliver(ev.Secret(plaintext)); err != nil {
		return nil, err
	}
	if to == nil {
		out.KeyMaterialId = request.ShownMaterial(t, m)
	}
	return out, nil
}

// ReEncrypt implements the operation ReEncrypt. It decrypts before it looks at the
// destination key.
func ReEncrypt(ev *request.Evaluation, in *kmsapi.ReEncryptInput) (*kmsapi.ReEncryptOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	c := ciphertext{
		blob: in.CiphertextBlob, context: in.SourceEncryptionContext,
		keyMember: "SourceKeyId", keyID: in.SourceKeyId, algorithm: in.SourceEncryptionAlgorithm,
		ignored: request.IsSet(in.DryRun) && slices.Contains(in.DryRunModifiers, kmsapi.IgnoreCiphertext),
	}
	from, plaintext, m, err := openCiphertext(ev, c, ActionReEncryptFrom)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	algorithm := algorithmOr(in.DestinationEncryptionAlgorithm)
	to, err := useKey(ev, *in.DestinationKeyId, ActionReEncryptTo, in.DestinationEncryptionContext, kmsapi.UsageEncrypt, algorithm)
	if err != nil {
		return nil, err
	}
	if err := fits(to, algorithm, len(plaintext), in.DestinationEncryptionContext); err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	blob, n, err := encrypt(ev, to, algorithm, plaintext, in.DestinationEncryptionContext)
	if err != nil {
		return nil, err
	}
	return &kmsapi.ReEncryptOutput{
		CiphertextBlob: blob, SourceKeyId: &from.ARN, KeyId: &to.ARN,
		SourceEncryptionAlgorithm: new(algorithmOr(in.SourceEncryptionAlgorithm)), DestinationEncryptionAlgorithm: &algorithm,
		SourceKeyMaterialId: request.ShownMaterial(from, m), DestinationKeyMaterialId: request.ShownMaterial(to, n),
	}, nil
}

const (
	ActionReEncryptFrom = "kms:ReEncryptFrom"
	ActionReEncryptTo   = "kms:ReEncryptTo"
)

// GenerateDataKey implements the operation GenerateDataKey.
func GenerateDataKey(ev *request.Evaluation, in *kmsapi.GenerateDataKeyInput) (*kmsapi.GenerateDataKeyOutput, error) {
	to, err := RecipientOf(ev, in.Recipient)
	if err != nil {
		return nil, err
	}
	out, err := dataKey(ev, *in.KeyId, in.KeySpec, in.NumberOfBytes, in.EncryptionContext, in.GrantTokens, in.DryRun, to)
	if err != nil {
		return nil, err
	}
	if to != nil {
		out.KeyMaterialId = nil
	}
	out.Plaintext, out.CiphertextForRecipient, err = to.Deliver(out.Plaintext)
	return out, err
}

// GenerateDataKeyWithoutPlaintext implements the operation of that name.
func GenerateDataKeyWithoutPlaintext(ev *request.Evaluation, in *kmsapi.GenerateDataKeyWithoutPlaintextInput) (*kmsapi.GenerateDataKeyWithoutPlaintextOutput, error) {
	k, err := dataKey(ev, *in.KeyId, in.KeySpec, in.NumberOfBytes, in.EncryptionContext, in.GrantTokens, in.DryRun, nil)
	if err != nil {
		return nil, err
	}
	clear(k.Plaintext)
	return &kmsapi.GenerateDataKeyWithoutPlaintextOutput{CiphertextBlob: k.CiphertextBlob, KeyId: k.KeyId, KeyMaterialId: k.KeyMaterialId}, nil
}

func dataKey(ev *request.Evaluation, keyID string, spec *string, size *int32, context map[string]string, tokens []string, dryRun *bool, to *recipient) (*kmsapi.GenerateDataKeyOutput, error) {
	if err := request.CheckTokens(ev, tokens); err != nil {
		return nil, err
	}
	if (spec == nil) == (size == nil) {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Please specify either number of bytes or key spec.")
	}
	n := 16 // AES_128
	switch {
	case size != nil:
		n = int(*size)
	case *spec == kmsapi.DataKeyAES256:
		n = 32
	}
	t, err := forDataKeys(ev, keyID, context)
	if err != nil {
		return nil, err
	}
	if err := AttestTo(ev, to); err != nil {
		return nil, err
	}
	if request.IsSet(dryRun) {
		return nil, request.ErrDryRun
	}
	plaintext, err := newDataKey(ev, t, n)
	if err != nil {
		return nil, err
	}
	blob, m, err := seal(ev, t, plaintext, context)
	if err != nil {
		return nil, err
	}
	return &kmsapi.GenerateDataKeyOutput{CiphertextBlob: blob, Plaintext: plaintext, KeyId: &t.ARN, KeyMaterialId: request.ShownMaterial(t, m)}, nil
}

// newDataKey generates a data key. If a key store encrypts it, the data key is kept between
// evaluations of the request, like the store's answer, which belongs to it.
func newDataKey(ev *request.Evaluation, t *request.Target, n int) ([]byte, error) {
	random := func() ([]byte, error) {
		b := make([]byte, n)
		_, err := rand.Read(b)
		return b, err
	}
	if t.Key.KeyStore != "" {
		b, err := ev.Once(random)
		return ev.Secret(b), err
	}
	b, err := random()
	return ev.Secret(b), err
}

// GenerateRandom implements the operation GenerateRandom.
func GenerateRandom(ev *request.Evaluation, in *kmsapi.GenerateRandomInput) (*kmsapi.GenerateRandomOutput, error) {
	to, err := RecipientOf(ev, in.Recipient)
	if err != nil {
		return nil, err
	}
	if in.NumberOfBytes == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "NumberOfBytes is required.")
	}
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	if in.CustomKeyStoreId != nil {
		return generateRandomInStore(ev, *in.CustomKeyStoreId, int(*in.NumberOfBytes), to)
	}
	if err := AttestTo(ev, to); err != nil {
		return nil, err
	}
	b := ev.Secret(make([]byte, *in.NumberOfBytes))
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	out := &kmsapi.GenerateRandomOutput{}
	out.Plaintext, out.CiphertextForRecipient, err = to.Deliver(b)
	return out, err
}

// algorithmOr returns the encryption algorithm of a request, or AWS's default.
func algorithmOr(given *string) string {
	if given == nil {
		return kmsapi.AlgorithmSymmetric
	}
	return *given
}

// fits checks that an asymmetric key can encrypt a plaintext of that size, and that there
// is no encryption context.
func fits(t *request.Target, algorithm string, size int, context map[string]string) error {
	if algorithm == kmsapi.AlgorithmSymmetric {
		return nil
	}
	if len(context) > 0 {
		return kmsapi.Errorf(kmsapi.ErrValidation, "EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.")
	}
	if most := primitive.MaxPlaintext(t.Key.Spec, algorithm); size > most {
		return kmsapi.Errorf(kmsapi.ErrValidation, "Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, t.Key.Spec, most)
	}
	return nil
}

// encrypt encrypts under the current material of a key, with its public key if it is
// asymmetric.
func encrypt(ev *request.Evaluation, t *request.Target, algorithm string, plaintext []byte, context map[string]string) ([]byte, *fsmpb.Material, error) {
	if algorithm == kmsapi.AlgorithmSymmetric {
		return seal(ev, t, plaintext, context)
	}
	m := request.CurrentMaterial(t.Key)
	ev.Used(t, m)
	blob, err := primitive.EncryptRSA(t.Key.Spec, m.PublicKey, algorithm, plaintext)
	return blob, m, err
}

// seal encrypts under the current material of a symmetric key.
func seal(ev *request.Evaluation, t *request.Target, plaintext []byte, context map[string]string) ([]byte, *fsmpb.Material, error) {
	m := request.CurrentMaterial(t.Key)
	if m == nil {
		return nil, nil, errors.New("key " + t.ID.String() + " has no material")
	}
	ev.Used(t, m)
	if t.Key.KeyStore != "" {
		blob, err := sealOuter(ev, t, m, plaintext, context)
		return blob, m, err
	}
	h := header(ev, t, m)
	var blob []byte
	err := ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
		blob, err = keymat.SealMessage(material, h, plaintext, context)
		return err
	})
	return blob, m, err
}

// ciphertext is a ciphertext to decrypt, with the members of the request that concern it.
type ciphertext struct {
	blob      []byte
	context   map[string]string
	keyMember string // name of the member with keyID
	keyID     *string
	algorithm *string
	ignored   bool       // a dry run without the ciphertext
	to        *recipient // recipient of the plaintext
}

// openCiphertext decrypts a ciphertext. The ciphertext names its key; a key in the request
// only restricts which one it may be. All invalid ciphertexts lead to the same error. A dry
// run decrypts too, as it could not tell otherwise whether the request would succeed.
func openCiphertext(ev *request.Evaluation, c ciphertext, action string) (*request.Target, []byte, *fsmpb.Material, error) {
	if c.blob == nil && !c.ignored {
		return nil, nil, nil, kmsapi.MissingMember("ciphertextBlob")
	}
	if c.keyID == nil && c.ignored {
		return nil, nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "%s is required when the ciphertext is ignored.", c.keyMember)
	}
	if c.keyID == nil && c.algorithm != nil && *c.algorithm != kmsapi.AlgorithmSymmetric {
		return nil, nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "%s is required with the algorithm %s.", c.keyMember, *c.algorithm)
	}
	h, err := parseHeader(c.blob)
	ours := err == nil && h.Cell == keymat.CellOf(ev.Cluster().Id)
	var t *request.Target
	if c.keyID != nil {
		t, err = ev.Authorised(*c.keyID, request.AnyForm, action, c.context)
		switch {
		case err != nil || c.ignored:
		case ours && h.Key != t.ID.ID:
			err = kmsapi.Errorf(kmsapi.ErrIncorrectKey, "The key ID in the request does not identify a CMK that can perform this operation.")
		case !ours && algorithmOr(c.algorithm) == kmsapi.AlgorithmSymmetric:
			// Without an algorithm, a ciphertext of an RSA key cannot be told from an
			// invalid one. Refuse it before the key's usage and state are checked.
			err = kmsapi.ErrInvalidCiphertext
		}
	} else if ours {
		t, err = ciphertextKey(ev, h.Key, action, c.context)
	} else {
		err = kmsapi.ErrInvalidCiphertext
	}
	if err == nil {
		ev.Source = t
		err = fit(ev, t, kmsapi.UsageEncrypt, algorithmOr(c.algorithm))
	}
	if err == nil {
		err = fits(t, algorithmOr(c.algorithm), 0, c.context)
	}
	if err == nil {
		err = AttestTo(ev, c.to)
	}
	switch {
	case err != nil:
		return nil, nil, nil, err
	case c.ignored:
		return t, nil, nil, nil
	case t.Key.Spec != kmsapi.SpecSymmetric:
		return openRSA(ev, t, c)
	case !ours:
		return nil, nil, nil, kmsapi.ErrInvalidCiphertext
	}
	for _, m := range t.Key.Materials {
		if [16]byte(m.Id) == h.Version {
			plaintext, err := open(ev, t, m, c)
			return t, plaintext, m, err
		}
	}
	return nil, nil, nil, kmsapi.ErrInvalidCiphertext
}

// openRSA decrypts what was encrypted with an asymmetric key's public key.
func openRSA(ev *request.Evaluation, t *request.Target, c ciphertext) (*request.Target, []byte, *fsmpb.Material, error) {
	var plaintext []byte
	err := withCurrent(ev, t, func(material []byte) (err error) {
		plaintext, err = primitive.DecryptRSA(t.Key.Spec, material, *c.algorithm, c.blob)
		return err
	})
	if errors.Is(err, primitive.ErrCiphertext) {
		err = kmsapi.ErrInvalidCiphertext
	}
	return t, plaintext, request.CurrentMaterial(t.Key), err
}

// ciphertextKey finds the key that a ciphertext names. The caller cannot distinguish a
// deleted key from one that it may not use.
func ciphertextKey(ev *request.Evaluation, id [16]byte, action string, context map[string]string) (*request.Target, error) {
	t, known, err := request.KeyOfCiphertext(ev, id)
	switch {
	case err != nil:
		return nil, err
	case !known:
		return nil, kmsapi.ErrInvalidCiphertext // there never was such a key, so this is not a ciphertext
	case t.Key == nil:
		return nil, ev.ForbiddenCiphertext(action)
	}
	err = ev.Authorise(t, action, context)
	if errors.Is(err, kmsapi.ErrAccessDenied) {
		err = ev.ForbiddenCiphertext(action)
	}
	return t, err
}

func open(ev *request.Evaluation, t *request.Target, m *fsmpb.Material, c ciphertext) ([]byte, error) {
	ev.Used(t, m)
	var plaintext []byte
	var err error
	if t.Key.KeyStore != "" {
		// Accept no other form: the store has seen the inner message, which could be
		// decrypted here without the store.
		plaintext, err = openOuter(ev, t, m, c.blob, c.context)
	} else {
		err = ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
			plaintext, err = keymat.OpenMessage(material, c.blob, c.context)
			return err
		})
	}
	if errors.Is(err, keymat.ErrCiphertext) {
		err = kmsapi.ErrInvalidCiphertext
	}
	return plaintext, err
}

// parseHeader reads which key a ciphertext belongs to. Whether the ciphertext has the right
// form for the key is checked when it is decrypted.
func parseHeader(blob []byte) (keymat.Header, error) {
	if h, err := keymat.ParseHeader(blob); err == nil {
		return h, nil
	}
	return keymat.ParseOuterHeader(blob)
}
