package primitive

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
)

var edwardsFamily = family{generate: newEdwards, check: checkEdwards, public: publicEdwards, sign: signEdwards, verify: verifyEdwards}

func newEdwards(string) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

func parseEdwards(material []byte) (ed25519.PrivateKey, error) {
	parsed, err := parsePKCS8(material)
	if err != nil {
		return nil, ErrMaterial
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, ErrMaterial
	}
	return key, nil
}

func checkEdwards(_ string, material []byte) error {
	_, err := parseEdwards(material)
	return err
}

func publicEdwards(_ string, material []byte) ([]byte, error) {
	key, err := parseEdwards(material)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key.Public())
}

// edwardsMessage returns what to sign, and the options. For Ed25519ph, AWS uses the digest
// that it is given as the message of RFC 8032, and hashes it again.
func edwardsMessage(m message) ([]byte, *ed25519.Options) {
	if m.kind != Digest {
		return m.bytes, &ed25519.Options{}
	}
	h := crypto.SHA512.New()
	h.Write(m.bytes)
	return h.Sum(nil), &ed25519.Options{Hash: crypto.SHA512}
}

func signEdwards(_ string, material []byte, m message) ([]byte, error) {
	key, err := parseEdwards(material)
	if err != nil {
		return nil, err
	}
	b, opts := edwardsMessage(m)
	return key.Sign(nil, b, opts)
}

func verifyEdwards(_ string, spki []byte, m message, signature []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return ErrPublicKey
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return ErrPublicKey
	}
	b, opts := edwardsMessage(m)
	if ed25519.VerifyWithOptions(key, b, signature, opts) != nil {
		return ErrSignature
	}
	return nil
}
