// Package attest checks the attestation documents of AWS Nitro Enclaves: what
// the hypervisor says, and signs, of the program that an enclave runs. After
// Verify the caller may rely on this: the document was made within the last five
// minutes, in an enclave with these measurements, which holds the private half
// of the public key; as far as the owner of the root certificate can be believed.
//
// A document is a COSE_Sign1 message (RFC 9052): four items, of which one is the
// payload and one the signature by a certificate in the payload, which chains to
// the root. Nothing of a payload is handed out before all that has been checked.
package attest

import (
	"crypto/rsa"
	"crypto/x509"
	"time"
)

const (
	// MaxAge is how old a document may be. A caller makes a new one for each
	// request, or for a few of them.
	MaxAge = 5 * time.Minute
	// MaxAhead is how far in the future a document may have been made: clocks
	// differ, and the hypervisor's is not ours.
	MaxAhead = time.Minute
)

// Error says what is wrong with a document. It holds nothing of the document's
// content, and may be told to whoever sent it.
type Error struct{ reason string }

func (e *Error) Error() string { return e.reason }

// What can be wrong with a document.
var (
	ErrMalformed   = &Error{"it is malformed"}
	ErrCertificate = &Error{"its certificates are not those of an enclave"}
	ErrUntrusted   = &Error{"its certificate does not chain to a trusted root, or is not valid now"}
	ErrSignature   = &Error{"its signature is wrong"}
	ErrTooOld      = &Error{"it has expired"}
	ErrFuture      = &Error{"its timestamp is in the future"}
	ErrNoKey       = &Error{"it has no public key"}
	ErrKey         = &Error{"its public key is not an RSA key of 2048, 3072 or 4096 bits"}
)

// Attested is what a document that was verified says of an enclave.
type Attested struct {
	// ModuleID names the enclave.
	ModuleID string
	// PCRs are the measurements by their number.
	PCRs map[int][]byte
	// PublicKey is the enclave's, and SPKI the form that the document has it in.
	PublicKey *rsa.PublicKey
	SPKI      []byte
	// Until is when the document ceases to be good.
	Until time.Time
}

// Verify checks a document at a time against root certificates. Its errors are
// of type *Error.
func Verify(document []byte, roots *x509.CertPool, now time.Time) (*Attested, error) {
	s, err := parseSigned(document)
	if err != nil {
		return nil, err
	}
	p, err := parsePayload(s.payload)
	if err != nil {
		return nil, err
	}
	// What is cheap first: signatures cost a millisecond each.
	at := now
	switch made := p.timestamp; {
	case made.After(now.Add(MaxAhead)):
		return nil, ErrFuture
	case made.After(now):
		at = made // a certificate made just before it is not in the future either
	case !now.Before(made.Add(MaxAge)):
		return nil, ErrTooOld
	}
	key, err := parseKey(p.publicKey)
	if err != nil {
		return nil, err
	}
	signer, until, err := p.chain(roots, at)
	if err != nil {
		return nil, err
	}
	if !s.signedBy(signer) {
		return nil, ErrSignature
	}
	if e := p.timestamp.Add(MaxAge); e.Before(until) {
		until = e
	}
	return &Attested{ModuleID: p.moduleID, PCRs: p.pcrs, PublicKey: key, SPKI: p.publicKey, Until: until}, nil
}

// minExponent is FIPS 186-5's, appendix A.1.1.
const minExponent = 65537

func parseKey(spki []byte) (*rsa.PublicKey, error) {
	if spki == nil {
		return nil, ErrNoKey
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, ErrKey
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || key.N.Bit(0) == 0 || key.E < minExponent || key.E%2 == 0 {
		return nil, ErrKey
	}
	switch key.N.BitLen() {
	case 2048, 3072, 4096:
		return key, nil
	}
	return nil, ErrKey
}
