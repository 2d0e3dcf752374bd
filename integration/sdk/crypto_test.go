package sdk

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
)

// The rows of sdkOperations that are cryptography. What they give is checked by
// the standard library wherever it can.

func sdkEncrypt(r *sdkRound) {
	key := r.symmetric()
	out := call(r, (*kms.Client).Encrypt, &kms.EncryptInput{KeyId: key, Plaintext: []byte("text"), EncryptionContext: map[string]string{"a": "1"}})
	is(r, "the key's ARN", *out.KeyId, *r.describe(key).Arn)
	refused(r, "InvalidCiphertextException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob})
	dec := call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: map[string]string{"a": "1"}})
	is(r, "plaintext", string(dec.Plaintext), "text")
}

func sdkDecrypt(r *sdkRound) {
	key := r.key(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt)
	public, _ := r.public(key).(*rsa.PublicKey)
	blob, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, []byte("from outside"), nil)
	if err != nil {
		r.Fatal(err)
	}
	in := &kms.DecryptInput{KeyId: key, CiphertextBlob: blob, EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256}
	is(r, "plaintext", string(call(r, (*kms.Client).Decrypt, in).Plaintext), "from outside")
	in.CiphertextBlob = flipped(blob)
	refused(r, "InvalidCiphertextException", (*kms.Client).Decrypt, in)

	blob = r.encrypt(r.symmetric(), "from inside")
	r.decrypts(blob, "from inside")
	refused(r, "IncorrectKeyException", (*kms.Client).Decrypt, &kms.DecryptInput{KeyId: r.symmetric(), CiphertextBlob: blob})
}

// flipped is b with its last bit flipped.
func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func sdkReEncrypt(r *sdkRound) {
	from, to := r.symmetric(), r.symmetric()
	out := call(r, (*kms.Client).ReEncrypt, &kms.ReEncryptInput{CiphertextBlob: r.encrypt(from, "moved"), DestinationKeyId: to})
	is(r, "source", *out.SourceKeyId, *r.describe(from).Arn)
	is(r, "destination", *out.KeyId, *r.describe(to).Arn)
	call(r, (*kms.Client).DisableKey, &kms.DisableKeyInput{KeyId: from})
	r.decrypts(out.CiphertextBlob, "moved")
}

func sdkGenerateDataKey(r *sdkRound) {
	key := r.symmetric()
	for _, in := range []*kms.GenerateDataKeyInput{
		{KeyId: key, KeySpec: types.DataKeySpecAes256}, {KeyId: key, KeySpec: types.DataKeySpecAes128}, {KeyId: key, NumberOfBytes: aws.Int32(64)},
	} {
		out := call(r, (*kms.Client).GenerateDataKey, in)
		r.decrypts(out.CiphertextBlob, string(out.Plaintext))
	}
}

func sdkGenerateDataKeyWithoutPlaintext(r *sdkRound) {
	out := call(r, (*kms.Client).GenerateDataKeyWithoutPlaintext, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: r.symmetric(), KeySpec: types.DataKeySpecAes256})
	is(r, "bytes", len(call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob}).Plaintext), 32)
}

// pair checks that a private key, in PKCS #8, belongs to a public key.
func (r *sdkRound) pair(private, public []byte) {
	r.Helper()
	k, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		r.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.(crypto.Signer).Public())
	if err != nil {
		r.Fatal(err)
	}
	if !bytes.Equal(der, public) {
		r.Error("the two halves are of different keys")
	}
}

func sdkGenerateDataKeyPair(r *sdkRound) {
	key := r.symmetric()
	for _, spec := range []types.DataKeyPairSpec{types.DataKeyPairSpecEccNistP256, types.DataKeyPairSpecRsa2048, types.DataKeyPairSpecEccNistEdwards25519} {
		out := call(r, (*kms.Client).GenerateDataKeyPair, &kms.GenerateDataKeyPairInput{KeyId: key, KeyPairSpec: spec})
		r.pair(out.PrivateKeyPlaintext, out.PublicKey)
		r.decrypts(out.PrivateKeyCiphertextBlob, string(out.PrivateKeyPlaintext))
	}
}

func sdkGenerateDataKeyPairWithoutPlaintext(r *sdkRound) {
	out := call(r, (*kms.Client).GenerateDataKeyPairWithoutPlaintext, &kms.GenerateDataKeyPairWithoutPlaintextInput{
		KeyId: r.symmetric(), KeyPairSpec: types.DataKeyPairSpecEccNistP384,
	})
	r.pair(call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob}).Plaintext, out.PublicKey)
}

func sdkGenerateRandom(r *sdkRound) {
	one, two := call(r, (*kms.Client).GenerateRandom, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(32)}), call(r, (*kms.Client).GenerateRandom, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(32)})
	if len(one.Plaintext) != 32 || bytes.Equal(one.Plaintext, two.Plaintext) {
		r.Errorf("%d bytes; the same as before: %t", len(one.Plaintext), bytes.Equal(one.Plaintext, two.Plaintext))
	}
}

// public is a key's public half.
func (r *sdkRound) public(key *string) crypto.PublicKey {
	r.Helper()
	k, err := x509.ParsePKIXPublicKey(call(r, (*kms.Client).GetPublicKey, &kms.GetPublicKeyInput{KeyId: key}).PublicKey)
	if err != nil {
		r.Fatal(err)
	}
	return k
}

// signatures are ways to sign, with what the standard library says of a signature.
// It knows neither secp256k1 nor ML-DSA: there, Verify has to do.
var signatures = []struct {
	spec      types.KeySpec
	algorithm types.SigningAlgorithmSpec
	verify    func(public crypto.PublicKey, message, signature []byte) bool
}{
	{types.KeySpecRsa2048, types.SigningAlgorithmSpecRsassaPkcs1V15Sha256, func(public crypto.PublicKey, message, signature []byte) bool {
		digest := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, digest[:], signature) == nil
	}},
	{types.KeySpecRsa2048, types.SigningAlgorithmSpecRsassaPssSha256, func(public crypto.PublicKey, message, signature []byte) bool {
		digest := sha256.Sum256(message)
		return rsa.VerifyPSS(public.(*rsa.PublicKey), crypto.SHA256, digest[:], signature, nil) == nil
	}},
	{types.KeySpecEccNistP256, types.SigningAlgorithmSpecEcdsaSha256, func(public crypto.PublicKey, message, signature []byte) bool {
		digest := sha256.Sum256(message)
		return ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], signature)
	}},
	{types.KeySpecEccNistEdwards25519, types.SigningAlgorithmSpecEd25519Sha512, func(public crypto.PublicKey, message, signature []byte) bool {
		return ed25519.Verify(public.(ed25519.PublicKey), message, signature)
	}},
	{types.KeySpecEccSecgP256k1, types.SigningAlgorithmSpecEcdsaSha256, nil},
	{types.KeySpecMlDsa44, types.SigningAlgorithmSpecMlDsaShake256, nil},
}

func sdkSign(r *sdkRound) {
	message := []byte("signed")
	for _, s := range signatures {
		key := r.key(s.spec, types.KeyUsageTypeSignVerify)
		out := call(r, (*kms.Client).Sign, &kms.SignInput{KeyId: key, Message: message, SigningAlgorithm: s.algorithm})
		is(r, "algorithm", out.SigningAlgorithm, s.algorithm)
		if s.verify == nil {
			is(r, "what Verify says", call(r, (*kms.Client).Verify, &kms.VerifyInput{KeyId: key, Message: message, Signature: out.Signature, SigningAlgorithm: s.algorithm}).SignatureValid, true)
		} else if !s.verify(r.public(key), message, out.Signature) {
			r.Errorf("%s: the signature is wrong", s.algorithm)
		}
	}
}

func sdkVerify(r *sdkRound) {
	message := []byte("signed")
	digest := sha256.Sum256(message)
	key := r.key(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	signature := call(r, (*kms.Client).Sign, &kms.SignInput{KeyId: key, Message: digest[:], MessageType: types.MessageTypeDigest, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256}).Signature
	in := &kms.VerifyInput{KeyId: key, Message: message, MessageType: types.MessageTypeRaw, Signature: signature, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256}
	is(r, "what Verify says", call(r, (*kms.Client).Verify, in).SignatureValid, true)
	in.Message = []byte("another")
	refused(r, "KMSInvalidSignatureException", (*kms.Client).Verify, in)
}

func sdkGetPublicKey(r *sdkRound) {
	key := r.key(types.KeySpecEccNistP384, types.KeyUsageTypeSignVerify)
	out := call(r, (*kms.Client).GetPublicKey, &kms.GetPublicKeyInput{KeyId: key})
	is(r, "spec", out.KeySpec, types.KeySpecEccNistP384)
	is(r, "algorithms", out.SigningAlgorithms, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha384})
	if k, ok := r.public(key).(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P384() {
		r.Errorf("the public key is a %T", k)
	}
	refused(r, "UnsupportedOperationException", (*kms.Client).GetPublicKey, &kms.GetPublicKeyInput{KeyId: r.symmetric()})
}

func sdkGenerateMac(r *sdkRound) {
	key, raw := r.importedMaterial(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac)
	out := call(r, (*kms.Client).GenerateMac, &kms.GenerateMacInput{KeyId: key, Message: []byte("message"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256})
	h := hmac.New(sha256.New, raw)
	h.Write([]byte("message"))
	if !hmac.Equal(out.Mac, h.Sum(nil)) {
		r.Error("it is not the HMAC under the material that was imported")
	}
}

func sdkVerifyMac(r *sdkRound) {
	key := r.key(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac)
	mac := call(r, (*kms.Client).GenerateMac, &kms.GenerateMacInput{KeyId: key, Message: []byte("message"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256}).Mac
	in := &kms.VerifyMacInput{KeyId: key, Message: []byte("message"), Mac: mac, MacAlgorithm: types.MacAlgorithmSpecHmacSha256}
	is(r, "what VerifyMac says", call(r, (*kms.Client).VerifyMac, in).MacValid, true)
	in.Mac = flipped(mac)
	refused(r, "KMSInvalidMacException", (*kms.Client).VerifyMac, in)
}

func sdkDeriveSharedSecret(r *sdkRound) {
	key := r.key(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement)
	mine, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(mine.PublicKey())
	if err != nil {
		r.Fatal(err)
	}
	out := call(r, (*kms.Client).DeriveSharedSecret, &kms.DeriveSharedSecretInput{KeyId: key, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: der})
	theirs, err := r.public(key).(*ecdsa.PublicKey).ECDH()
	if err != nil {
		r.Fatal(err)
	}
	want, err := mine.ECDH(theirs)
	if err != nil {
		r.Fatal(err)
	}
	if !bytes.Equal(out.SharedSecret, want) {
		r.Error("the two sides have different secrets")
	}
}

// external makes a key that waits for its material.
func (r *sdkRound) external(spec types.KeySpec, usage types.KeyUsageType) *string {
	r.Helper()
	return call(r, (*kms.Client).CreateKey, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Origin: types.OriginTypeExternal}).KeyMetadata.KeyId
}

// imports imports material into a key.
func (r *sdkRound) imports(key *string, material []byte) {
	r.Helper()
	p := call(r, (*kms.Client).GetParametersForImport, &kms.GetParametersForImportInput{
		KeyId: key, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048,
	})
	public, err := x509.ParsePKIXPublicKey(p.PublicKey)
	if err != nil {
		r.Fatal(err)
	}
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	if err != nil {
		r.Fatal(err)
	}
	in := &kms.ImportKeyMaterialInput{KeyId: key, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped, ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire}
	call(r, (*kms.Client).ImportKeyMaterial, in)
}

// importedMaterial makes a key of material from outside.
func (r *sdkRound) importedMaterial(spec types.KeySpec, usage types.KeyUsageType) (key *string, material []byte) {
	r.Helper()
	material = make([]byte, 32)
	rand.Read(material)
	key = r.external(spec, usage)
	r.imports(key, material)
	return key, material
}

func sdkGetParametersForImport(r *sdkRound) {
	key := r.external("", "")
	in := &kms.GetParametersForImportInput{KeyId: key, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa3072}
	out := call(r, (*kms.Client).GetParametersForImport, in)
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		r.Fatal(err)
	}
	is(r, "bits of the wrapping key", public.(*rsa.PublicKey).N.BitLen(), 3072)
	if len(out.ImportToken) == 0 || out.ParametersValidTo == nil {
		r.Errorf("the token has %d bytes and is good until %v", len(out.ImportToken), out.ParametersValidTo)
	}
}

func sdkImportKeyMaterial(r *sdkRound) {
	key, _ := r.importedMaterial("", "")
	is(r, "state", r.describe(key).KeyState, types.KeyStateEnabled)
	r.decrypts(r.encrypt(key, "under material from outside"), "under material from outside")
}

func sdkDeleteImportedKeyMaterial(r *sdkRound) {
	key, material := r.importedMaterial("", "")
	blob := r.encrypt(key, "kept")
	call(r, (*kms.Client).DeleteImportedKeyMaterial, &kms.DeleteImportedKeyMaterialInput{KeyId: key})
	is(r, "state", r.describe(key).KeyState, types.KeyStatePendingImport)
	for range r.c.Nodes {
		refused(r, "KMSInvalidStateException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	}
	r.imports(key, material)
	r.decrypts(blob, "kept")
}

// kemSpecs are those of ML-KEM, with how somebody who has the public key only, in
// the form of RFC 9935, encapsulates.
var kemSpecs = map[types.KeySpec]func(public []byte) (secret, ciphertext []byte, err error){
	types.KeySpecMlKem512: func(public []byte) (secret, ciphertext []byte, err error) {
		key, err := mlkem512.Scheme().UnmarshalBinaryPublicKey(public)
		if err != nil {
			return nil, nil, err
		}
		ciphertext, secret, err = mlkem512.Scheme().Encapsulate(key)
		return secret, ciphertext, err
	},
	types.KeySpecMlKem768: func(public []byte) (secret, ciphertext []byte, err error) {
		key, err := mlkem.NewEncapsulationKey768(public)
		if err != nil {
			return nil, nil, err
		}
		secret, ciphertext = key.Encapsulate()
		return secret, ciphertext, nil
	},
	types.KeySpecMlKem1024: func(public []byte) (secret, ciphertext []byte, err error) {
		key, err := mlkem.NewEncapsulationKey1024(public)
		if err != nil {
			return nil, nil, err
		}
		secret, ciphertext = key.Encapsulate()
		return secret, ciphertext, nil
	},
}

const kemAlgorithm = types.EncapsulationAlgorithmSpecMlKem

func sdkEncapsulate(r *sdkRound) {
	for spec := range kemSpecs {
		key := r.key(spec, types.KeyUsageTypeEncapsulateDecapsulate)
		is(r, "algorithms", r.describe(key).EncapsulationAlgorithms, []types.EncapsulationAlgorithmSpec{kemAlgorithm})
		out := call(r, (*kms.Client).Encapsulate, &kms.EncapsulateInput{KeyId: key, EncapsulationAlgorithm: kemAlgorithm})
		is(r, "algorithm", out.EncapsulationAlgorithm, kemAlgorithm)
		back := call(r, (*kms.Client).Decapsulate, &kms.DecapsulateInput{KeyId: key, EncapsulationAlgorithm: kemAlgorithm, SharedSecretCiphertextBlob: out.SharedSecretCiphertextBlob})
		if len(out.SharedSecret) != 32 || !bytes.Equal(back.SharedSecret, out.SharedSecret) {
			r.Errorf("%s: the two sides have different secrets", spec)
		}
	}
	refused(r, "InvalidKeyUsageException", (*kms.Client).Encapsulate, &kms.EncapsulateInput{
		KeyId: r.key(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement), EncapsulationAlgorithm: kemAlgorithm})
}

// sdkDecapsulate has the secret encapsulated elsewhere, with the public key that the
// cluster gives out.
func sdkDecapsulate(r *sdkRound) {
	for spec, encapsulate := range kemSpecs {
		key := r.key(spec, types.KeyUsageTypeEncapsulateDecapsulate)
		var info struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
		}
		if _, err := asn1.Unmarshal(call(r, (*kms.Client).GetPublicKey, &kms.GetPublicKeyInput{KeyId: key}).PublicKey, &info); err != nil {
			r.Fatal(err)
		}
		secret, ciphertext, err := encapsulate(info.Key.RightAlign())
		if err != nil {
			r.Fatal(err)
		}
		in := &kms.DecapsulateInput{KeyId: key, EncapsulationAlgorithm: kemAlgorithm, SharedSecretCiphertextBlob: ciphertext}
		if out := call(r, (*kms.Client).Decapsulate, in); !bytes.Equal(out.SharedSecret, secret) {
			r.Errorf("%s: the two sides have different secrets", spec)
		}
		in.SharedSecretCiphertextBlob = flipped(ciphertext)
		if out := call(r, (*kms.Client).Decapsulate, in); len(out.SharedSecret) != 32 || bytes.Equal(out.SharedSecret, secret) {
			r.Errorf("%s: a ciphertext that was changed gives %x", spec, out.SharedSecret)
		}
		in.SharedSecretCiphertextBlob = ciphertext[1:]
		refused(r, "InvalidCiphertextException", (*kms.Client).Decapsulate, in)
	}
}
