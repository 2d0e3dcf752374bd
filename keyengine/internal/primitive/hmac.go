package primitive

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"slices"
)

var hmacFamily = family{generate: newHMAC, check: checkHMAC}

var hmacHashes = map[string]crypto.Hash{
	"HMAC_224": crypto.SHA224,
	"HMAC_256": crypto.SHA256,
	"HMAC_384": crypto.SHA384,
	"HMAC_512": crypto.SHA512,
}

func newHMAC(spec string) ([]byte, error) {
	key := make([]byte, hmacHashes[spec].Size())
	_, err := rand.Read(key)
	return key, err
}

// checkHMAC accepts only keys that are as long as the digest, as AWS does.
func checkHMAC(spec string, material []byte) error {
	if len(material) != hmacHashes[spec].Size() {
		return ErrMaterial
	}
	return nil
}

// Mac returns a MAC of full length (RFC 2104).
func Mac(spec string, material []byte, algorithm string, message []byte) ([]byte, error) {
	if !slices.Contains(specs[spec].mac, algorithm) {
		return nil, errSpec
	}
	h := hmac.New(hmacHashes[spec].New, material)
	h.Write(message)
	return h.Sum(nil), nil
}

// VerifyMac returns ErrMac if mac is not the MAC of message. It compares in constant time.
func VerifyMac(spec string, material []byte, algorithm string, message, mac []byte) error {
	want, err := Mac(spec, material, algorithm, message)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, mac) {
		return ErrMac
	}
	return nil
}
