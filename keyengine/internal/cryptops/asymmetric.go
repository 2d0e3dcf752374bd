package cryptops

import (
	"errors"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	messageRaw = "RAW"
	// AlgorithmECDH is the only key agreement algorithm.
	AlgorithmECDH = "ECDH"
)

// Sign implements the operation Sign.
func Sign(ev *request.Evaluation, in *kmsapi.SignInput) (*kmsapi.SignOutput, error) {
	t, err := useToSign(ev, *in.KeyId, *in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	var signature []byte
	err = withCurrent(ev, t, func(material []byte) (err error) {
		signature, err = primitive.Sign(t.Key.Spec, material, *in.SigningAlgorithm, messageType(in.MessageType), in.Message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kmsapi.SignOutput{KeyId: &t.ARN, Signature: signature, SigningAlgorithm: in.SigningAlgorithm}, nil
}

// Verify implements the operation Verify. It needs only the public key and unwraps nothing.
func Verify(ev *request.Evaluation, in *kmsapi.VerifyInput) (*kmsapi.VerifyOutput, error) {
	t, err := useToSign(ev, *in.KeyId, *in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	m := request.CurrentMaterial(t.Key)
	ev.Used(t, m)
	err = primitive.Verify(t.Key.Spec, m.PublicKey, *in.SigningAlgorithm, messageType(in.MessageType), in.Message, in.Signature)
	if errors.Is(err, primitive.ErrSignature) {
		return nil, kmsapi.ErrInvalidSignatureValue
	}
	if err != nil {
		return nil, err
	}
	return &kmsapi.VerifyOutput{KeyId: &t.ARN, SignatureValid: new(true), SigningAlgorithm: in.SigningAlgorithm}, nil
}

// useToSign finds a key to sign or verify with, and checks the message for the algorithm.
func useToSign(ev *request.Evaluation, keyID, algorithm string, kind *string, message []byte, tokens []string) (*request.Target, error) {
	if err := request.CheckTokens(ev, tokens); err != nil {
		return nil, err
	}
	t, err := useKey(ev, keyID, ev.Op.Action(), nil, kmsapi.UsageSign, algorithm)
	if err != nil {
		return nil, err
	}
	switch err := primitive.CheckMessage(algorithm, messageType(kind), message); {
	case errors.Is(err, primitive.ErrDigestLength):
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Digest is invalid length for algorithm %s.", algorithm)
	case errors.Is(err, primitive.ErrMessageType):
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Message type %s is incompatible with %s.", messageType(kind), refusedMessage(t.Key.Spec, algorithm))
	case err != nil:
		return nil, err
	}
	return t, RefusedByFIPS(primitive.Available(t.Key.Spec))
}

// refusedMessage returns what the message type does not fit, for AWS's message: the spec of
// an ML-DSA key, the algorithm otherwise.
func refusedMessage(spec, algorithm string) string {
	if strings.HasPrefix(spec, "ML_DSA_") {
		return "key spec " + spec
	}
	return "algorithm " + algorithm
}

func messageType(given *string) string {
	if given == nil {
		return messageRaw
	}
	return *given
}

// GenerateMac implements the operation GenerateMac.
func GenerateMac(ev *request.Evaluation, in *kmsapi.GenerateMacInput) (*kmsapi.GenerateMacOutput, error) {
	t, err := useForMac(ev, *in.KeyId, *in.MacAlgorithm, in.GrantTokens, in.DryRun)
	if err != nil {
		return nil, err
	}
	var mac []byte
	err = withCurrent(ev, t, func(material []byte) (err error) {
		mac, err = primitive.Mac(t.Key.Spec, material, *in.MacAlgorithm, in.Message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kmsapi.GenerateMacOutput{Mac: mac, MacAlgorithm: in.MacAlgorithm, KeyId: &t.ARN}, nil
}

// VerifyMac implements the operation VerifyMac.
func VerifyMac(ev *request.Evaluation, in *kmsapi.VerifyMacInput) (*kmsapi.VerifyMacOutput, error) {
	t, err := useForMac(ev, *in.KeyId, *in.MacAlgorithm, in.GrantTokens, in.DryRun)
	if err != nil {
		return nil, err
	}
	err = withCurrent(ev, t, func(material []byte) error {
		return primitive.VerifyMac(t.Key.Spec, material, *in.MacAlgorithm, in.Message, in.Mac)
	})
	if errors.Is(err, primitive.ErrMac) {
		return nil, kmsapi.ErrInvalidMac
	}
	if err != nil {
		return nil, err
	}
	return &kmsapi.VerifyMacOutput{KeyId: &t.ARN, MacValid: new(true), MacAlgorithm: in.MacAlgorithm}, nil
}

func useForMac(ev *request.Evaluation, keyID, algorithm string, tokens []string, dryRun *bool) (*request.Target, error) {
	if err := request.CheckTokens(ev, tokens); err != nil {
		return nil, err
	}
	t, err := useKey(ev, keyID, ev.Op.Action(), nil, kmsapi.UsageMac, algorithm)
	if err != nil {
		return nil, err
	}
	if request.IsSet(dryRun) {
		return nil, request.ErrDryRun
	}
	return t, nil
}

// DeriveSharedSecret implements the operation DeriveSharedSecret.
func DeriveSharedSecret(ev *request.Evaluation, in *kmsapi.DeriveSharedSecretInput) (*kmsapi.DeriveSharedSecretOutput, error) {
	to, err := RecipientOf(ev, in.Recipient)
	if err != nil {
		return nil, err
	}
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	t, err := useKey(ev, *in.KeyId, ev.Op.Action(), nil, kmsapi.UsageAgree, *in.KeyAgreementAlgorithm)
	if err != nil {
		return nil, err
	}
	if err := primitive.CheckPeer(t.Key.Spec, in.PublicKey); err != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "PublicKey is not a public key in DER on the curve of %s.", t.Key.Spec)
	}
	if err := AttestTo(ev, to); err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	var secret []byte
	err = withCurrent(ev, t, func(material []byte) (err error) {
		secret, err = primitive.SharedSecret(t.Key.Spec, material, in.PublicKey)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &kmsapi.DeriveSharedSecretOutput{KeyId: &t.ARN, KeyAgreementAlgorithm: in.KeyAgreementAlgorithm, KeyOrigin: &t.Key.Origin}
	out.SharedSecret, out.CiphertextForRecipient, err = to.Deliver(ev.Secret(secret))
	return out, err
}

// GenerateDataKeyPair implements the operation GenerateDataKeyPair.
func GenerateDataKeyPair(ev *request.Evaluation, in *kmsapi.GenerateDataKeyPairInput) (*kmsapi.GenerateDataKeyPairOutput, error) {
	to, err := RecipientOf(ev, in.Recipient)
	if err != nil {
		return nil, err
	}
	out, err := dataKeyPair(ev, *in.KeyId, *in.KeyPairSpec, in.EncryptionContext, in.GrantTokens, in.DryRun, to)
	if err != nil {
		return nil, err
	}
	out.PrivateKeyPlaintext, out.CiphertextForRecipient, err = to.Deliver(out.PrivateKeyPlaintext)
	if to != nil {
		out.KeyMaterialId = nil
	}
	return out, err
}

// GenerateDataKeyPairWithoutPlaintext implements the operation of that name.
func GenerateDataKeyPairWithoutPlaintext(ev *request.Evaluation, in *kmsapi.GenerateDataKeyPairWithoutPlaintextInput) (*kmsapi.GenerateDataKeyPairWithoutPlaintextOutput, error) {
	p, err := dataKeyPair(ev, *in.KeyId, *in.KeyPairSpec, in.EncryptionContext, in.GrantTokens, in.DryRun, nil)
	if err != nil {
		return nil, err
	}
	clear(p.PrivateKeyPlaintext)
	return &kmsapi.GenerateDataKeyPairWithoutPlaintextOutput{
		PrivateKeyCiphertextBlob: p.PrivateKeyCiphertextBlob, PublicKey: p.PublicKey, KeyId: p.KeyId,
		KeyPairSpec: p.KeyPairSpec, KeyMaterialId: p.KeyMaterialId,
	}, nil
}

func dataKeyPair(ev *request.Evaluation, keyID, spec string, context map[string]string, tokens []string, dryRun *bool, to *recipient) (*kmsapi.GenerateDataKeyPairOutput, error) {
	if err := request.CheckTokens(ev, tokens); err != nil {
		return nil, err
	}
	t, err := forDataKeys(ev, keyID, context)
	if err != nil {
		return nil, err
	}
	if t.Key.KeyStore != "" {
		return nil, request.WrongOrigin(t)
	}
	if spec == kmsapi.SpecSM2 {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "KeyPairSpec %s is not supported in this Region.", spec)
	}
	if err := primitive.Available(spec); err != nil {
		return nil, RefusedByFIPS(err)
	}
	if err := AttestTo(ev, to); err != nil {
		return nil, err
	}
	if request.IsSet(dryRun) {
		return nil, request.ErrDryRun
	}
	material, err := ev.Once(func() ([]byte, error) { return primitive.Generate(spec) })
	if err != nil {
		return nil, err
	}
	defer clear(material)
	public, err := primitive.Public(spec, material)
	if err != nil {
		return nil, err
	}
	private, err := primitive.PrivateKey(spec, material)
	if err != nil {
		return nil, err
	}
	ev.Secret(private)
	blob, m, err := seal(ev, t, private, context)
	if err != nil {
		return nil, err
	}
	return &kmsapi.GenerateDataKeyPairOutput{
		PrivateKeyCiphertextBlob: blob, PrivateKeyPlaintext: private, PublicKey: public, KeyId: &t.ARN, KeyPairSpec: &spec,
		KeyMaterialId: request.MaterialID(m),
	}, nil
}

// withCurrent calls use with the current material of a key.
func withCurrent(ev *request.Evaluation, t *request.Target, use func(material []byte) error) error {
	m := request.CurrentMaterial(t.Key)
	if m == nil {
		return errors.New("key " + t.ID.String() + " has no material")
	}
	ev.Used(t, m)
	return RefusedByFIPS(ev.Vault.WithMaterial(t.Key, m, use))
}

// RefusedByFIPS translates the error of an algorithm that is not available in FIPS mode for
// the caller.
func RefusedByFIPS(err error) error {
	if errors.Is(err, primitive.ErrFIPS) {
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "This cluster runs in FIPS mode, which does not have this key spec.")
	}
	return err
}

// Algorithms returns the algorithms of a key, according to its spec and usage.
func Algorithms(k *fsmpb.Key) []string {
	switch {
	case k.Spec == kmsapi.SpecSymmetric:
		return []string{kmsapi.AlgorithmSymmetric}
	case k.Usage == kmsapi.UsageEncrypt:
		return primitive.EncryptionAlgorithms(k.Spec)
	case k.Usage == kmsapi.UsageSign:
		return primitive.SigningAlgorithms(k.Spec)
	case k.Usage == kmsapi.UsageMac:
		return primitive.MacAlgorithms(k.Spec)
	case k.Usage == kmsapi.UsageAgree:
		return primitive.KeyAgreementAlgorithms(k.Spec)
	case k.Usage == kmsapi.UsageEncapsulate:
		return primitive.EncapsulationAlgorithms(k.Spec)
	}
	return nil
}

// useKey finds a key for a usage. In AWS's order, it checks that the caller may use it, in
// the request's encryption context if there is one, that the key's usage and then its state
// permit it, and that the key supports the algorithm.
func useKey(ev *request.Evaluation, keyID, action string, context map[string]string, usage, algorithm string) (*request.Target, error) {
	t, err := ev.Authorised(keyID, request.AnyForm, action, context)
	if err != nil {
		return nil, err
	}
	return t, fit(ev, t, usage, algorithm)
}

func fit(ev *request.Evaluation, t *request.Target, usage, algorithm string) error {
	if err := ready(ev, t, usage); err != nil {
		return err
	}
	if !slices.Contains(Algorithms(t.Key), algorithm) {
		return kmsapi.Errorf(kmsapi.ErrInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", algorithm, t.Key.Spec)
	}
	return nil
}

// ready checks that a key has the usage and that its state permits its use. The usage comes
// first because it never changes.
func ready(ev *request.Evaluation, t *request.Target, usage string) error {
	if t.Key.Usage != usage {
		return kmsapi.Errorf(kmsapi.ErrInvalidKeyUsage, "%s key usage is %s which is not valid for %s.", t.ARN, t.Key.Usage, ev.Op.Name)
	}
	if err := request.Available(ev, t); err != nil {
		return err
	}
	return ev.Op.States.Check(t.ARN, t.Key.State)
}

// forDataKeys finds a symmetric key that encrypts data keys.
func forDataKeys(ev *request.Evaluation, keyID string, context map[string]string) (*request.Target, error) {
	t, err := ev.Authorised(keyID, request.AnyForm, ev.Op.Action(), context)
	if err != nil {
		return nil, err
	}
	if err := ready(ev, t, kmsapi.UsageEncrypt); err != nil {
		return nil, err
	}
	if t.Key.Spec != kmsapi.SpecSymmetric {
		return nil, kmsapi.Errorf(kmsapi.ErrInvalidKeyUsage, "You cannot generate a data key with an asymmetric CMK")
	}
	return t, nil
}
