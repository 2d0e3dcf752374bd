package primitive

import (
	"bytes"
	"crypto/mlkem"
	"crypto/rand"
	"encoding/asn1"

	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
)

// ML-KEM (FIPS 203). The standard library has the two larger parameter sets. The smallest
// comes from another module and is not available in FIPS mode.
var (
	mlkemFamily    = family{generate: newMLKEM, check: checkMLKEM, public: publicMLKEM, export: exportMLKEM}
	mlkem512Family = family{foreign: true, generate: newMLKEM, check: checkMLKEM, public: publicMLKEM, export: exportMLKEM}
)

// kem is ML-KEM with one parameter set. Seeds are d and z of FIPS 203, concatenated.
type kem struct {
	oid            asn1.ObjectIdentifier
	publicSize     int
	ciphertextSize int
	publicKey      func(seed []byte) ([]byte, error)
	encapsulate    func(public []byte) (secret, ciphertext []byte, err error)
	decapsulate    func(seed, ciphertext []byte) (secret []byte, err error)
}

var kems = map[string]*kem{
	"ML_KEM_512": {
		oid:        asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 1},
		publicSize: mlkem512.PublicKeySize, ciphertextSize: mlkem512.CiphertextSize,
		publicKey: publicKey512, encapsulate: encapsulate512, decapsulate: decapsulate512,
	},
	"ML_KEM_768": {
		oid:        asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 2},
		publicSize: mlkem.EncapsulationKeySize768, ciphertextSize: mlkem.CiphertextSize768,
		publicKey: func(seed []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey768(seed)
			if err != nil {
				return nil, err
			}
			return key.EncapsulationKey().Bytes(), nil
		},
		encapsulate: func(public []byte) (secret, ciphertext []byte, err error) {
			key, err := mlkem.NewEncapsulationKey768(public)
			if err != nil {
				return nil, nil, err
			}
			secret, ciphertext = key.Encapsulate()
			return secret, ciphertext, nil
		},
		decapsulate: func(seed, ciphertext []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey768(seed)
			if err != nil {
				return nil, err
			}
			return key.Decapsulate(ciphertext)
		},
	},
	"ML_KEM_1024": {
		oid:        asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 3},
		publicSize: mlkem.EncapsulationKeySize1024, ciphertextSize: mlkem.CiphertextSize1024,
		publicKey: func(seed []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey1024(seed)
			if err != nil {
				return nil, err
			}
			return key.EncapsulationKey().Bytes(), nil
		},
		encapsulate: func(public []byte) (secret, ciphertext []byte, err error) {
			key, err := mlkem.NewEncapsulationKey1024(public)
			if err != nil {
				return nil, nil, err
			}
			secret, ciphertext = key.Encapsulate()
			return secret, ciphertext, nil
		},
		decapsulate: func(seed, ciphertext []byte) ([]byte, error) {
			key, err := mlkem.NewDecapsulationKey1024(seed)
			if err != nil {
				return nil, err
			}
			return key.Decapsulate(ciphertext)
		},
	},
}

func publicKey512(seed []byte) ([]byte, error) {
	public, _ := mlkem512.NewKeyFromSeed(seed)
	return public.MarshalBinary()
}

func encapsulate512(public []byte) (secret, ciphertext []byte, err error) {
	var key mlkem512.PublicKey
	if err := key.Unpack(public); err != nil {
		return nil, nil, err
	}
	secret, ciphertext = make([]byte, mlkem512.SharedKeySize), make([]byte, mlkem512.CiphertextSize)
	key.EncapsulateTo(ciphertext, secret, nil)
	return secret, ciphertext, nil
}

func decapsulate512(seed, ciphertext []byte) ([]byte, error) {
	_, key := mlkem512.NewKeyFromSeed(seed)
	secret := make([]byte, mlkem512.SharedKeySize)
	key.DecapsulateTo(secret, ciphertext)
	return secret, nil
}

func newMLKEM(string) ([]byte, error) {
	seed := make([]byte, mlkem.SeedSize)
	_, err := rand.Read(seed)
	return seed, err
}

// checkMLKEM accepts every seed of the right length.
func checkMLKEM(_ string, seed []byte) error {
	if len(seed) != mlkem.SeedSize {
		return ErrMaterial
	}
	return nil
}

func publicMLKEM(spec string, seed []byte) ([]byte, error) {
	if err := checkMLKEM(spec, seed); err != nil {
		return nil, err
	}
	k := kems[spec]
	public, err := k.publicKey(seed)
	if err != nil {
		return nil, err
	}
	return k.spki(public)
}

// kemIdentifier is an algorithm identifier, which has no parameters (RFC 9935, section 3).
type kemIdentifier struct{ Algorithm asn1.ObjectIdentifier }

// spki encodes a public key according to RFC 9935, section 4.
func (k *kem) spki(public []byte) ([]byte, error) {
	return asn1.Marshal(struct {
		Algorithm kemIdentifier
		PublicKey asn1.BitString
	}{kemIdentifier{k.oid}, bits(public)})
}

// fromSPKI accepts only the encoding of spki.
func (k *kem) fromSPKI(spki []byte) ([]byte, error) {
	if len(spki) < k.publicSize {
		return nil, ErrPublicKey
	}
	public := spki[len(spki)-k.publicSize:]
	if whole, err := k.spki(public); err != nil || !bytes.Equal(whole, spki) {
		return nil, ErrPublicKey
	}
	return public, nil
}

// exportMLKEM encodes a private key as its seed alone, the first choice of RFC 9935,
// section 6: seed [0] OCTET STRING.
func exportMLKEM(spec string, seed []byte) ([]byte, error) {
	if err := checkMLKEM(spec, seed); err != nil {
		return nil, err
	}
	inner, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: seed})
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	return asn1.Marshal(struct {
		Version    int
		Algorithm  kemIdentifier
		PrivateKey []byte
	}{0, kemIdentifier{kems[spec].oid}, inner})
}

func findKEM(spec string) (*kem, error) {
	if _, err := find(spec); err != nil {
		return nil, err
	}
	k, ok := kems[spec]
	if !ok {
		return nil, errSpec
	}
	return k, nil
}

// Encapsulate generates a secret, and the ciphertext from which the owner of the public key
// can decapsulate it. The caller must wipe the secret.
func Encapsulate(spec string, spki []byte) (secret, ciphertext []byte, err error) {
	k, err := findKEM(spec)
	if err != nil {
		return nil, nil, err
	}
	public, err := k.fromSPKI(spki)
	if err != nil {
		return nil, nil, err
	}
	secret, ciphertext, err = k.encapsulate(public)
	if err != nil {
		return nil, nil, ErrPublicKey
	}
	return secret, ciphertext, nil
}

// CheckEncapsulated returns ErrCiphertext for a ciphertext of the wrong length. Nothing
// else about a ciphertext can be checked.
func CheckEncapsulated(spec string, ciphertext []byte) error {
	k, err := findKEM(spec)
	if err != nil {
		return err
	}
	if len(ciphertext) != k.ciphertextSize {
		return ErrCiphertext
	}
	return nil
}

// Decapsulate returns the secret of a ciphertext. For one that was not made for the key, it
// returns another secret, which depends on the ciphertext and the key (FIPS 203, section
// 6.3) and reveals nothing to the sender. The caller must wipe the secret.
func Decapsulate(spec string, material, ciphertext []byte) (secret []byte, err error) {
	if err := CheckEncapsulated(spec, ciphertext); err != nil {
		return nil, err
	}
	if err := checkMLKEM(spec, material); err != nil {
		return nil, err
	}
	return kems[spec].decapsulate(material, ciphertext)
}
