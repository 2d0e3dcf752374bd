package primitive

import (
	"crypto/rand"

	"filippo.io/mldsa"
	"filippo.io/mldsa/mldsacrypto"
	pkix "filippo.io/mldsa/x509"
)

// mldsaFamily is ML-DSA (FIPS 204) with an empty context and hedged signatures.
var mldsaFamily = family{foreign: true, generate: newMLDSA, check: checkMLDSA, public: publicMLDSA, sign: signMLDSA, verify: verifyMLDSA}

func mldsaParameters(spec string) mldsa.Parameters {
	switch spec {
	case "ML_DSA_44":
		return mldsa.MLDSA44()
	case "ML_DSA_65":
		return mldsa.MLDSA65()
	}
	return mldsa.MLDSA87()
}

func newMLDSA(string) ([]byte, error) {
	seed := make([]byte, mldsa.PrivateKeySize)
	_, err := rand.Read(seed)
	return seed, err
}

func parseMLDSA(spec string, seed []byte) (*mldsa.PrivateKey, error) {
	key, err := mldsa.NewPrivateKey(mldsaParameters(spec), seed)
	if err != nil {
		return nil, ErrMaterial
	}
	return key, nil
}

func checkMLDSA(spec string, seed []byte) error {
	_, err := parseMLDSA(spec, seed)
	return err
}

// publicMLDSA encodes the public key according to RFC 9881.
func publicMLDSA(spec string, seed []byte) ([]byte, error) {
	key, err := parseMLDSA(spec, seed)
	if err != nil {
		return nil, err
	}
	return pkix.MarshalPKIXPublicKey(key.PublicKey())
}

func signMLDSA(spec string, seed []byte, m message) ([]byte, error) {
	key, err := parseMLDSA(spec, seed)
	if err != nil {
		return nil, err
	}
	if m.kind == ExternalMu {
		return key.Sign(nil, m.bytes, mldsacrypto.MLDSAMu)
	}
	return key.Sign(nil, m.bytes, nil)
}

func verifyMLDSA(spec string, spki []byte, m message, signature []byte) error {
	parsed, err := pkix.ParsePKIXPublicKey(spki)
	if err != nil {
		return ErrPublicKey
	}
	key, ok := parsed.(*mldsa.PublicKey)
	if !ok || key.Parameters() != mldsaParameters(spec) {
		return ErrPublicKey
	}
	if m.kind == ExternalMu {
		return verifyMu(spec, key.Bytes(), m.bytes, signature)
	}
	if mldsa.Verify(key, m.bytes, signature, nil) != nil {
		return ErrSignature
	}
	return nil
}
