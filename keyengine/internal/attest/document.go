package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"math/big"
	"time"
	"unicode/utf8"
)

// Limits of documents. AWS's are from its description of the attestation process. The
// others are far above what enclaves send.
const (
	maxPayload     = 16384 // AWS's
	maxCertificate = 1024  // AWS's
	maxExtra       = 1024  // AWS's, for the public key, user data and nonce
	maxPCRs        = 32    // AWS's
	maxBundle      = 8     // four in practice
	maxModuleID    = 256   // about forty in practice
	signatureSize  = 96    // r and s on P-384

	coseSign1 = 18 // optional tag
)

// es384 is the protected header {1: -35}: ECDSA with SHA-384.
var es384 = []byte{0xa1, 0x01, 0x38, 0x22}

// signed is the COSE message.
type signed struct{ payload, signature []byte }

func parseSigned(document []byte) (*signed, error) {
	r := &reader{rest: document}
	if len(document) > 0 && document[0]>>5 == majorTag && r.head(majorTag) != coseSign1 {
		return nil, ErrMalformed
	}
	if r.count(majorArray, 4) != 4 {
		return nil, ErrMalformed
	}
	header := r.take(majorBytes, len(es384), len(es384))
	if unprotected := r.count(majorMap, 0); unprotected != 0 {
		return nil, ErrMalformed // this header is not signed, so it must be empty
	}
	s := &signed{payload: r.take(majorBytes, 1, maxPayload)}
	s.signature = r.take(majorBytes, signatureSize, signatureSize)
	if !r.end() || !bytes.Equal(header, es384) {
		return nil, ErrMalformed
	}
	return s, nil
}

// signedBy verifies the signature (RFC 9052, section 4.4).
func (s *signed) signedBy(key *ecdsa.PublicKey) bool {
	const context = "Signature1"
	b := appendHead(nil, majorArray, 4)
	b = append(appendHead(b, majorText, len(context)), context...)
	b = appendBytes(b, es384)
	b = appendBytes(b, nil)
	b = appendBytes(b, s.payload)
	digest := sha512.Sum384(b)
	half := signatureSize / 2
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(s.signature[:half]), new(big.Int).SetBytes(s.signature[half:]))
}

// payload is the hypervisor's description of the enclave, as encoded.
type payload struct {
	moduleID    string
	timestamp   time.Time
	pcrs, tpm   map[int][]byte // one is nil
	certificate []byte
	bundle      [][]byte // the root first
	publicKey   []byte   // nil if there is none
}

// The members of a payload, by their bits in the set of members seen. A payload has one of the
// two kinds of measurements.
var (
	members   = []string{"module_id", "digest", "timestamp", "certificate", "cabundle", "public_key", "user_data", "nonce", "pcrs", "nitrotpm_pcrs"}
	mandatory = uint(1<<5 - 1) // the first five
)

// parsePayload parses a payload. Hypervisors write its map with a definite or an indefinite
// length, and omit optional members that an enclave did not set, or set them to null.
func parsePayload(b []byte) (*payload, error) {
	r := &reader{rest: b}
	p := &payload{}
	var seen uint
	if r.skip(cborOpenMap) {
		for !r.failed && !r.skip(cborBreak) {
			p.member(r, &seen)
		}
	} else {
		for range r.count(majorMap, len(members)) {
			p.member(r, &seen)
		}
	}
	if !r.end() || seen&mandatory != mandatory || (p.pcrs == nil) == (p.tpm == nil) {
		return nil, ErrMalformed
	}
	return p, nil
}

func (p *payload) member(r *reader, seen *uint) {
	name := string(r.take(majorText, 1, len("nitrotpm_pcrs")))
	if r.failed {
		return
	}
	place := uint(1)
	for _, m := range members {
		if m == name {
			break
		}
		place <<= 1
	}
	if *seen&place != 0 {
		r.fail() // repeated
		return
	}
	*seen |= place
	switch name {
	case "module_id":
		p.moduleID = string(r.take(majorText, 1, maxModuleID))
		if !utf8.ValidString(p.moduleID) {
			r.fail()
		}
	case "digest":
		if string(r.take(majorText, 1, 16)) != "SHA384" {
			r.fail()
		}
	case "timestamp":
		// Limit the time, in milliseconds, to what time.Time can compare.
		ms := r.head(majorUint)
		if ms == 0 || ms > 1<<53 {
			r.fail()
			return
		}
		p.timestamp = time.UnixMilli(int64(ms))
	case "pcrs":
		p.pcrs = readPCRs(r)
	case "nitrotpm_pcrs":
		p.tpm = readPCRs(r)
	case "certificate":
		p.certificate = r.take(majorBytes, 1, maxCertificate)
	case "cabundle":
		n := r.count(majorArray, maxBundle)
		if n == 0 {
			r.fail()
		}
		for range n {
			p.bundle = append(p.bundle, r.take(majorBytes, 1, maxCertificate))
		}
	case "public_key":
		if !r.skip(cborNull) {
			p.publicKey = r.take(majorBytes, 1, maxExtra)
		}
	case "user_data", "nonce":
		if !r.skip(cborNull) {
			r.take(majorBytes, 0, maxExtra)
		}
	default:
		r.fail()
	}
}

// readPCRs reads measurements, of which there is at least one.
func readPCRs(r *reader) map[int][]byte {
	n := r.count(majorMap, maxPCRs)
	if n == 0 {
		r.fail()
		return nil
	}
	pcrs := make(map[int][]byte, n)
	for range n {
		index := r.head(majorUint)
		value := r.take(majorBytes, 32, 64)
		if len(value) != 32 && len(value) != 48 && len(value) != 64 || index >= maxPCRs || pcrs[int(index)] != nil {
			r.fail()
			return nil
		}
		pcrs[int(index)] = value
	}
	return pcrs
}
