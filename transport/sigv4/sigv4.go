// Package sigv4 implements AWS Signature Version 4 for servers, which verify
// signed requests, and for clients, which sign them (AWS General Reference,
// "Create a signed AWS API request"). It knows nothing about particular services.
//
// A server has a Verifier. Verifier.Read parses a Claim from the Authorization
// header or the query string, before the body is read. Claim.Proof computes what was
// signed. Proof.SignedBy compares the signature with that of a signing key, and
// Derive derives signing keys. Only the last two see secrets, so that they can run
// where the secrets are kept. A client has a Signer.
//
// The reader may rely on this. Anything ambiguous (repeated headers, names out of
// order, a plus sign in a query string) is refused, not interpreted. Everything in a
// request is limited, which bounds the work and the memory that it takes. Signatures
// are compared in constant time.
//
// A session token is passed on with the proof, and is always part of what is signed.
// Whether it is valid, and belongs to the access key, is for its issuer to say.
//
// SigV4A, streamed payloads, query strings other than those of presigned requests, and
// the path rules of Amazon S3, which does not escape paths a second time, are not
// supported. Paths are never normalised: the signature of a path
// with empty or dot segments is for exactly that path.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"io"
)

const (
	// KeySize is the length of a signing key.
	KeySize = sha256.Size
	// Algorithm names the only algorithm of this package.
	Algorithm = "AWS4-HMAC-SHA256"
	// TimeFormat is the form of the time that a signature is made for, in UTC.
	TimeFormat = "20060102T150405Z"
	// UnsignedPayload, in place of a body's hash, leaves the body out of the signature.
	UnsignedPayload = "UNSIGNED-PAYLOAD"
	// MaxSessionToken is the length of the longest session token, in bytes.
	MaxSessionToken = 8192

	dateFormat = "20060102"
	terminator = "aws4_request"
)

// Headers that have a meaning for a signature, as net/http spells them. The query
// string of a presigned request has parameters with the same names.
const (
	HeaderAuthorization = "Authorization"
	HeaderDate          = "X-Amz-Date"
	HeaderHash          = "X-Amz-Content-Sha256"
	HeaderToken         = "X-Amz-Security-Token"

	headerHTTPDate = "Date"
)

// Proof is a signature and what it claims to sign. It is not verified yet: SignedBy
// does that.
type Proof struct {
	AccessKeyID string
	// Date (YYYYMMDD), Region and Service are those of the credential scope.
	Date, Region, Service string
	StringToSign          []byte
	// Signature is 32 bytes, decoded.
	Signature []byte
	// SessionToken is the session token that the request has, or "". It is among what
	// is signed. Whoever verifies a proof must check that the token is valid for the
	// access key, or refuse a proof that has one.
	SessionToken string
}

// WellFormed reports whether all parts have lengths that a proof can have. Check it
// before using a proof that does not come from Claim.Proof.
func (p *Proof) WellFormed() bool {
	return len(p.Signature) == sha256.Size && len(p.Date) == len(dateFormat) && p.Region != "" && len(p.Region) <= maxName &&
		p.Service != "" && len(p.Service) <= maxName && len(p.StringToSign) <= 4096 && len(p.SessionToken) <= MaxSessionToken
}

// Derive writes the signing key of a secret in the proof's scope to dst, which
// must be KeySize bytes long. The caller has to wipe dst.
func (p *Proof) Derive(dst, secret []byte) { Derive(dst, secret, p.Date, p.Region, p.Service) }

// SignedBy reports whether the signature was made with the signing key.
func (p *Proof) SignedBy(key []byte) bool {
	var sum [sha256.Size]byte
	return hmac.Equal(appendSignature(sum[:0], key, p.StringToSign), p.Signature)
}

func appendSignature(b, key, stringToSign []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(stringToSign)
	return h.Sum(b)
}

// Derive writes the signing key of a secret for a day, Region and service to dst,
// which must be KeySize bytes long. The caller has to wipe dst.
func Derive(dst, secret []byte, date, region, service string) {
	first := make([]byte, 0, 4+len(secret))
	first = append(append(first, "AWS4"...), secret...)
	defer clear(first)
	mac(dst, first, date)
	mac(dst, dst, region)
	mac(dst, dst, service)
	mac(dst, dst, terminator)
}

// mac writes HMAC-SHA-256 of msg to dst, which may be the key.
func mac(dst, key []byte, msg string) {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, msg)
	h.Sum(dst[:0])
}
