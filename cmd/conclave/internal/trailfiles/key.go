package trailfiles

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

const (
	maxKeyFile = 64 << 10
	minBits    = 2048
	newBits    = 3072
)

// Key returns the RSA key in a PEM file, PKCS #8 or PKCS #1. If there is no such file, it makes
// a key and writes it there. The file must not be in the directory of the export, which is
// meant to be given away.
func Key(name, dir string) (key *rsa.PrivateKey, made bool, err error) {
	if under(dir, name) {
		return nil, false, fmt.Errorf("%s is in the directory of the export: keep the key that signs elsewhere", name)
	}
	raw, err := files.Read(name, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = rsa.GenerateKey(rand.Reader, newBits); err != nil {
			return nil, false, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, false, err
		}
		return key, true, files.Write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if err != nil {
		return nil, false, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, false, fmt.Errorf("%s is not a PEM file", name)
	}
	var parsed any
	if block.Type == "RSA PRIVATE KEY" {
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	} else {
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, false, fmt.Errorf("%s has no RSA key that can be read: PKCS #8 or PKCS #1, not encrypted", name)
	}
	if key.N.BitLen() < minBits {
		return nil, false, fmt.Errorf("the key in %s has %d bits, and must have at least %d", name, key.N.BitLen(), minBits)
	}
	return key, false, nil
}

// PublicKey returns a public key as a PEM file.
func PublicKey(key *rsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParsePublicKeys returns the RSA keys in a PEM file, by their fingerprints.
func ParsePublicKeys(raw []byte) (map[string]*rsa.PublicKey, error) {
	keys := make(map[string]*rsa.PublicKey)
	for {
		block, rest := pem.Decode(raw)
		if block == nil {
			break
		}
		raw = rest
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(*rsa.PublicKey)
		if err != nil || !ok || key.N.BitLen() < minBits {
			return nil, errors.New("not a public key of RSA with at least 2048 bits")
		}
		keys[Fingerprint(key)] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no public key in PEM form")
	}
	return keys, nil
}

// under reports whether a file is in the directory of an export, or may be.
func under(dir, name string) bool {
	a, err := filepath.Abs(dir)
	if err != nil {
		return true
	}
	b, err := filepath.Abs(name)
	if err != nil {
		return true
	}
	rel, err := filepath.Rel(a, b)
	return err != nil || filepath.IsLocal(rel)
}
