package keyengine

import (
	"errors"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
)

const (
	messageRaw    = "RAW"
	algorithmECDH = "ECDH"
)

func sign(ev *eval, in *SignInput) (*SignOutput, error) {
	t, err := ev.useToSign(*in.KeyId, *in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	var signature []byte
	err = ev.withCurrent(t, func(material []byte) (err error) {
		signature, err = primitive.Sign(t.key.Spec, material, *in.SigningAlgorithm, messageType(in.MessageType), in.Message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &SignOutput{KeyId: &t.arn, Signature: signature, SigningAlgorithm: in.SigningAlgorithm}, nil
}

// verify needs the public key only, so that it never unwraps anything.
func verify(ev *eval, in *VerifyInput) (*VerifyOutput, error) {
	t, err := ev.useToSign(*in.KeyId, *in.SigningAlgorithm, in.MessageType, in.Message, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	m := currentMaterial(t.key)
	ev.use(t, m)
	err = primitive.Verify(t.key.Spec, m.PublicKey, *in.SigningAlgorithm, messageType(in.MessageType), in.Message, in.Signature)
	if errors.Is(err, primitive.ErrSignature) {
		return nil, ErrInvalidSignatureValue
	}
	if err != nil {
		return nil, err
	}
	return &VerifyOutput{KeyId: &t.arn, SignatureValid: ptr(true), SigningAlgorithm: in.SigningAlgorithm}, nil
}

// useToSign finds a key to sign or verify with, and checks the message against the
// algorithm.
func (ev *eval) useToSign(keyID, algorithm string, kind *string, message []byte, tokens []string) (*target, error) {
	if err := ev.checkTokens(tokens); err != nil {
		return nil, err
	}
	t, err := ev.useKey(keyID, ev.op.action(), nil, usageSign, algorithm)
	if err != nil {
		return nil, err
	}
	switch err := primitive.CheckMessage(algorithm, messageType(kind), message); {
	case errors.Is(err, primitive.ErrDigestLength):
		return nil, fault(ErrValidation, "Digest is invalid length for algorithm %s.", algorithm)
	case errors.Is(err, primitive.ErrMessageType):
		return nil, fault(ErrValidation, "MessageType %s is not valid for algorithm %s.", messageType(kind), algorithm)
	case err != nil:
		return nil, err
	}
	return t, refusedByFIPS(primitive.Available(t.key.Spec))
}

func messageType(given *string) string {
	if given == nil {
		return messageRaw
	}
	return *given
}

func getPublicKey(ev *eval, in *GetPublicKeyInput) (*GetPublicKeyOutput, error) {
	if err := ev.checkTokens(in.GrantTokens); err != nil {
		return nil, err
	}
	t, err := ev.authorised(*in.KeyId, anyForm, ev.op.action(), nil)
	if err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	m := currentMaterial(t.key)
	if m == nil || m.PublicKey == nil {
		return nil, fault(ErrUnsupported, "%s is not an asymmetric KMS key.", t.arn)
	}
	d := ev.ownMetadata(t)
	return &GetPublicKeyOutput{
		KeyId: &t.arn, PublicKey: m.PublicKey, CustomerMasterKeySpec: d.CustomerMasterKeySpec, KeySpec: d.KeySpec, KeyUsage: d.KeyUsage,
		EncryptionAlgorithms: d.EncryptionAlgorithms, SigningAlgorithms: d.SigningAlgorithms, KeyAgreementAlgorithms: d.KeyAgreementAlgorithms,
	}, nil
}

func generateMac(ev *eval, in *GenerateMacInput) (*GenerateMacOutput, error) {
	t, err := ev.useForMac(*in.KeyId, *in.MacAlgorithm, in.GrantTokens, in.DryRun)
	if err != nil {
		return nil, err
	}
	var mac []byte
	err = ev.withCurrent(t, func(material []byte) (err error) {
		mac, err = primitive.Mac(t.key.Spec, material, *in.MacAlgorithm, in.Message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &GenerateMacOutput{Mac: mac, MacAlgorithm: in.MacAlgorithm, KeyId: &t.arn}, nil
}

func verifyMac(ev *eval, in *VerifyMacInput) (*VerifyMacOutput, error) {
	t, err := ev.useForMac(*in.KeyId, *in.MacAlgorithm, in.GrantTokens, in.DryRun)
	if err != nil {
		return nil, err
	}
	err = ev.withCurrent(t, func(material []byte) error {
		return primitive.VerifyMac(t.key.Spec, material, *in.MacAlgorithm, in.Message, in.Mac)
	})
	if errors.Is(err, primitive.ErrMac) {
		return nil, ErrInvalidMac
	}
	if err != nil {
		return nil, err
	}
	return &VerifyMacOutput{KeyId: &t.arn, MacValid: ptr(true), MacAlgorithm: in.MacAlgorithm}, nil
}

func (ev *eval) useForMac(keyID, algorithm string, tokens []string, dryRun *bool) (*target, error) {
	if err := ev.checkTokens(tokens); err != nil {
		return nil, err
	}
	t, err := ev.useKey(keyID, ev.op.action(), nil, usageMac, algorithm)
	if err != nil {
		return nil, err
	}
	if isSet(dryRun) {
		return nil, errDryRun
	}
	return t, nil
}

func deriveSharedSecret(ev *eval, in *DeriveSharedSecretInput) (*DeriveSharedSecretOutput, error) {
	to, err := ev.recipient(in.Recipient)
	if err != nil {
		return nil, err
	}
	if err := ev.checkTokens(in.GrantTokens); err != nil {
		return nil, err
	}
	t, err := ev.useKey(*in.KeyId, ev.op.action(), nil, usageAgree, *in.KeyAgreementAlgorithm)
	if err != nil {
		return nil, err
	}
	if err := primitive.CheckPeer(t.key.Spec, in.PublicKey); err != nil {
		return nil, ErrValidation // AWS sends no message
	}
	if err := ev.attest(to); err != nil {
		return nil, err
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	var secret []byte
	err = ev.withCurrent(t, func(material []byte) (err error) {
		secret, err = primitive.SharedSecret(t.key.Spec, material, in.PublicKey)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &DeriveSharedSecretOutput{KeyId: &t.arn, KeyAgreementAlgorithm: in.KeyAgreementAlgorithm, KeyOrigin: &t.key.Origin}
	out.SharedSecret, out.CiphertextForRecipient, err = to.deliver(ev.secret(secret))
	return out, err
}

func generateDataKeyPair(ev *eval, in *GenerateDataKeyPairInput) (*GenerateDataKeyPairOutput, error) {
	to, err := ev.recipient(in.Recipient)
	if err != nil {
		return nil, err
	}
	out, err := ev.dataKeyPair(*in.KeyId, *in.KeyPairSpec, in.EncryptionContext, in.GrantTokens, in.DryRun, to)
	if err != nil {
		return nil, err
	}
	out.PrivateKeyPlaintext, out.CiphertextForRecipient, err = to.deliver(out.PrivateKeyPlaintext)
	if to != nil {
		out.KeyMaterialId = nil
	}
	return out, err
}

func generateDataKeyPairWithoutPlaintext(ev *eval, in *GenerateDataKeyPairWithoutPlaintextInput) (*GenerateDataKeyPairWithoutPlaintextOutput, error) {
	p, err := ev.dataKeyPair(*in.KeyId, *in.KeyPairSpec, in.EncryptionContext, in.GrantTokens, in.DryRun, nil)
	if err != nil {
		return nil, err
	}
	clear(p.PrivateKeyPlaintext)
	return &GenerateDataKeyPairWithoutPlaintextOutput{
		PrivateKeyCiphertextBlob: p.PrivateKeyCiphertextBlob, PublicKey: p.PublicKey, KeyId: p.KeyId,
		KeyPairSpec: p.KeyPairSpec, KeyMaterialId: p.KeyMaterialId,
	}, nil
}

func (ev *eval) dataKeyPair(keyID, spec string, context map[string]string, tokens []string, dryRun *bool, to *recipient) (*GenerateDataKeyPairOutput, error) {
	if err := ev.checkTokens(tokens); err != nil {
		return nil, err
	}
	t, err := ev.useKey(keyID, ev.op.action(), context, usageEncrypt, algSymmetric)
	if err != nil {
		return nil, err
	}
	if t.key.KeyStore != "" {
		return nil, wrongOrigin(t)
	}
	if spec == specSM2 {
		return nil, fault(ErrUnsupported, "KeyPairSpec %s is not supported in this Region.", spec)
	}
	if err := primitive.Available(spec); err != nil {
		return nil, refusedByFIPS(err)
	}
	if err := ev.attest(to); err != nil {
		return nil, err
	}
	if isSet(dryRun) {
		return nil, errDryRun
	}
	private, err := ev.once(func() ([]byte, error) { return primitive.Generate(spec) })
	if err != nil {
		return nil, err
	}
	ev.secret(private)
	public, err := primitive.Public(spec, private)
	if err != nil {
		return nil, err
	}
	blob, m, err := ev.seal(t, private, context)
	if err != nil {
		return nil, err
	}
	return &GenerateDataKeyPairOutput{
		PrivateKeyCiphertextBlob: blob, PrivateKeyPlaintext: private, PublicKey: public, KeyId: &t.arn, KeyPairSpec: &spec,
		KeyMaterialId: materialID(m),
	}, nil
}

// use notes which material of which key the answer is made with.
func (ev *eval) use(t *target, m *fsmpb.Material) {
	ev.materials = append(ev.materials, m)
	ev.used(t)
}

// withCurrent lends the newest material of a key.
func (ev *eval) withCurrent(t *target, use func(material []byte) error) error {
	m := currentMaterial(t.key)
	if m == nil {
		return errors.New("key " + t.id.String() + " has no material")
	}
	ev.use(t, m)
	return refusedByFIPS(ev.engine.vault.withMaterial(t.key, m, use))
}

// refusedByFIPS tells the caller of algorithms that FIPS mode does not have.
func refusedByFIPS(err error) error {
	if errors.Is(err, primitive.ErrFIPS) {
		return fault(ErrUnsupported, "This cluster runs in FIPS mode, which does not have this key spec.")
	}
	return err
}

// algorithms are what a key can do: those of its spec for its usage.
func algorithms(k *fsmpb.Key) []string {
	switch {
	case k.Spec == specSymmetric:
		return []string{algSymmetric}
	case k.Usage == usageEncrypt:
		return primitive.EncryptionAlgorithms(k.Spec)
	case k.Usage == usageSign:
		return primitive.SigningAlgorithms(k.Spec)
	case k.Usage == usageMac:
		return primitive.MacAlgorithms(k.Spec)
	case k.Usage == usageAgree:
		return primitive.KeyAgreementAlgorithms(k.Spec)
	}
	return nil
}

// useKey finds a key for a usage, and checks in AWS's order that the caller may,
// in the request's encryption context if it has one, that the key's state and usage
// allow it, and that it knows the algorithm.
func (ev *eval) useKey(keyID, action string, context map[string]string, usage, algorithm string) (*target, error) {
	t, err := ev.authorised(keyID, anyForm, action, context)
	if err != nil {
		return nil, err
	}
	return t, ev.fit(t, usage, algorithm)
}

func (ev *eval) fit(t *target, usage, algorithm string) error {
	if err := ev.available(t); err != nil {
		return err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return err
	}
	if t.key.Usage != usage {
		return fault(ErrInvalidKeyUsage, "%s key usage is %s which is not valid for %s.", t.arn, t.key.Usage, ev.op.Name)
	}
	if !slices.Contains(algorithms(t.key), algorithm) {
		return fault(ErrInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", algorithm, t.key.Spec)
	}
	return nil
}
