// Package sigv4 derives the signing keys of AWS Signature Version 4. Both who
// verifies requests and who signs some need them; what is signed is theirs.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"io"
)

// KeySize is the length of a signing key.
const KeySize = sha256.Size

// Derive writes the signing key of a secret for a day, Region and service to dst,
// which is KeySize bytes long. The caller wipes dst.
func Derive(dst, secret []byte, date, region, service string) {
	first := make([]byte, 0, 4+len(secret))
	first = append(append(first, "AWS4"...), secret...)
	defer clear(first)
	mac(dst, first, date)
	mac(dst, dst, region)
	mac(dst, dst, service)
	mac(dst, dst, "aws4_request")
}

// mac writes HMAC-SHA-256 of msg to dst, which may be the key.
func mac(dst, key []byte, msg string) {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, msg)
	h.Sum(dst[:0])
}
