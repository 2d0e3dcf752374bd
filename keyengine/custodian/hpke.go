package custodian

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// A share for HPKE is a PEM block with
//
//	version(1) ‖ encapsulated key(65) ‖ ciphertext ‖ tag(16)
//
// by HPKE (RFC 9180) in base mode with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
// All of it is in the FIPS module.
const (
	hpkePrefix  = "hpke-p256:"
	hpkeVersion = 1
	hpkeEncap   = 65
	hpkeTag     = 16
	hpkeInfo    = "conclave custodian share v1"

	shareBlock   = "CONCLAVE ENCRYPTED SHARE"
	publicBlock  = "PUBLIC KEY"
	privateBlock = "PRIVATE KEY"

	// MaxEncrypted is the maximum size of an encrypted share that Decrypt reads.
	MaxEncrypted = 16 << 10
)

// ErrDecrypt is returned for an encrypted share that cannot be decrypted.
var ErrDecrypt = errors.New("the share cannot be decrypted")

func parseHPKE(line string) (*Key, error) {
	point, err := readPoint(line)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	to, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	return &Key{kind: HPKE, fingerprint: hashOf(publicText(point)), encrypt: func(plaintext []byte) (string, error) {
		sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(hpkeInfo), plaintext)
		if err != nil {
			return "", err
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: shareBlock, Bytes: append([]byte{hpkeVersion}, sealed...)})), nil
	}}, nil
}

// readPoint reads a point on P-256 in either of its forms.
func readPoint(line string) (*ecdh.PublicKey, error) {
	if text, ok := strings.CutPrefix(line, hpkePrefix); ok {
		raw, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("what follows %s is not base64", hpkePrefix)
		}
		point, err := ecdh.P256().NewPublicKey(raw)
		if err != nil {
			return nil, errors.New("it is no uncompressed point on P-256")
		}
		return point, nil
	}
	block, rest := pem.Decode([]byte(line))
	if block == nil || block.Type != publicBlock || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("it is not one PEM block with a public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the PEM block has no public key")
	}
	// Keys on other curves and of other algorithms have the same kind of block.
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("a public key in PEM must be on P-256")
	}
	point, err := ec.ECDH()
	if err != nil || point.Curve() != ecdh.P256() {
		return nil, errors.New("a public key in PEM must be on P-256")
	}
	return point, nil
}

func publicText(point *ecdh.PublicKey) string {
	return hpkePrefix + base64.StdEncoding.EncodeToString(point.Bytes())
}

// PrivateKey decrypts shares that are encrypted to its public key by HPKE. It is formatted as
// [redacted].
type PrivateKey struct{ key *ecdh.PrivateKey }

// Generate returns a new private key.
func Generate() (*PrivateKey, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{key}, nil
}

// ParsePrivate reads a private key in the form of Marshal.
func ParsePrivate(text []byte) (*PrivateKey, error) {
	if len(text) > MaxKey {
		return nil, errors.New("it is too long for a private key")
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != privateBlock {
		return nil, errors.New("it is no private key in PEM, such as `conclave operator custodian-key` makes")
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the PEM block has no private key")
	}
	switch key := key.(type) {
	case *ecdh.PrivateKey:
		if key.Curve() == ecdh.P256() {
			return &PrivateKey{key}, nil
		}
	case *ecdsa.PrivateKey:
		if k, err := key.ECDH(); err == nil && k.Curve() == ecdh.P256() {
			return &PrivateKey{k}, nil
		}
	}
	return nil, errors.New("the private key is not on P-256")
}

// Marshal returns the private key as PEM, in PKCS #8. The caller has to keep it secret, and to
// wipe it.
func (p *PrivateKey) Marshal() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der}), nil
}

// Public returns the public key in one line, in the form that Parse reads.
func (p *PrivateKey) Public() string { return publicText(p.key.PublicKey()) }

// Decrypt decrypts a share. The caller has to wipe it. Errors: ErrDecrypt.
func (p *PrivateKey) Decrypt(text []byte) ([]byte, error) {
	if len(text) > MaxEncrypted {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrDecrypt, MaxEncrypted)
	}
	block, _ := pem.Decode(text)
	switch {
	case strings.Contains(string(text), "-----BEGIN AGE ENCRYPTED FILE"):
		return nil, fmt.Errorf("%w: it is encrypted for age: use age --decrypt", ErrDecrypt)
	case strings.Contains(string(text), "-----BEGIN PGP MESSAGE"):
		return nil, fmt.Errorf("%w: it is encrypted by OpenPGP: use gpg --decrypt", ErrDecrypt)
	case block == nil || block.Type != shareBlock:
		return nil, fmt.Errorf("%w: there is no PEM block %q", ErrDecrypt, shareBlock)
	}
	b := block.Bytes
	if len(b) < 1+hpkeEncap+hpkeTag {
		return nil, fmt.Errorf("%w: it is too short", ErrDecrypt)
	}
	if b[0] != hpkeVersion {
		return nil, fmt.Errorf("%w: its format is %d, and this release knows %d", ErrDecrypt, b[0], hpkeVersion)
	}
	key, err := hpke.NewDHKEMPrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	share, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(hpkeInfo), b[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: it was encrypted to another key, or was changed", ErrDecrypt)
	}
	return share, nil
}

// String and the other formatting methods return "[redacted]".
func (*PrivateKey) String() string       { return redacted }
func (*PrivateKey) GoString() string     { return redacted }
func (*PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

const redacted = "[redacted]"
