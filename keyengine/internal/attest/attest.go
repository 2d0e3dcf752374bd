// Package attest verifies the attestation documents of AWS Nitro Enclaves, in which the
// hypervisor describes and signs the program that an enclave runs, and those of instances with
// a NitroTPM, which differ only in what was measured. A verified document was made within the
// last five minutes, in an enclave or instance with these measurements, which has the private
// key for the public key in it. This is as trustworthy as the owner of the root certificate.
//
// A document is a COSE_Sign1 message (RFC 9052) of four items. One of them is the payload,
// and one the signature, by a certificate in the payload that chains to the root. Nothing
// in the payload is returned before all of that has been verified.
package attest

import (
	"crypto/rsa"
	"crypto/x509"
	"time"
)

const (
	// MaxAge is the maximum age of a document. Callers create a new one for each request,
	// or for a few of them.
	MaxAge = 5 * time.Minute
	// MaxAhead is how far in the future a document may have been created, because the
	// hypervisor's clock may differ from ours.
	MaxAhead = time.Minute
)

// Error says what is wrong with a document. It contains nothing of the document and may be
// returned to its sender.
type Error struct{ reason string }

// Error returns the reason.
func (e *Error) Error() string { return e.reason }

// Errors of Verify.
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

// Attested is the content of a verified document.
type Attested struct {
	// ModuleID identifies the enclave.
	ModuleID string
	// PCRs are the measurements of an enclave, by number, and TPM those that the NitroTPM of an
	// instance made. A document has one or the other.
	PCRs, TPM map[int][]byte
	// PublicKey is the enclave's public key, and SPKI its encoding in the document.
	PublicKey *rsa.PublicKey
	SPKI      []byte
	// Until is when the document expires.
	Until time.Time
}

// Verify verifies a document at a time against root certificates. Its errors are of type
// *Error.
func Verify(document []byte, roots *x509.CertPool, now time.Time) (*Attested, error) {
	s, err := parseSigned(document)
	if err != nil {
		return nil, err
	}
	p, err := parsePayload(s.payload)
	if err != nil {
		return nil, err
	}
	// Cheap checks come first, as each signature takes a millisecond.
	at := now
	switch made := p.timestamp; {
	case made.After(now.Add(MaxAhead)):
		return nil, ErrFuture
	case made.After(now):
		at = made // so that a certificate made just before it is not in the future either
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
	return &Attested{ModuleID: p.moduleID, PCRs: p.pcrs, TPM: p.tpm, PublicKey: key, SPKI: p.publicKey, Until: until}, nil
}

// minExponent is the minimum of FIPS 186-5, appendix A.1.1.
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
