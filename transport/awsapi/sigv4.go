package awsapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/keyengine"
)

// The proof of a SigV4 request is an HMAC over a digest of the canonical request
// (AWS General Reference, "Create a signed AWS API request"). This file puts the
// canonical request together again from what net/http made of the request; the
// engine, which alone has the secrets, computes the HMAC and compares.
//
// There is one address, "/", and no query: the handler refuses everything else
// before it comes here, so the canonical path is constant and nothing depends on
// how paths and queries are escaped.

// maxShownCanonical bounds the canonical request in the answer to a wrong signature.
const maxShownCanonical = 8 << 10

// proof builds what the engine checks from the request, its body and what its
// headers claim. buf is written over: canonical and the proof lie in it, or in
// what it grew into.
func (a *authorization) proof(buf []byte, r *http.Request, body []byte) (p keyengine.SigV4Proof, canonical []byte, err error) {
	sum := sha256.Sum256(body)
	var hash [2 * sha256.Size]byte
	hex.Encode(hash[:], sum[:])
	if err := announced(r.Header, hash[:]); err != nil {
		return p, nil, err
	}
	canonical, err = a.canonical(buf[:0], r, hash[:])
	if err != nil {
		return p, nil, err
	}
	digest := sha256.Sum256(canonical)
	s := append(canonical, algorithm+"\n"...)
	s = append(s, a.time...)
	s = append(s, '\n')
	s = append(s, a.date...)
	s = append(s, '/')
	s = append(s, a.region...)
	s = append(s, "/"+service+"/"+terminator+"\n"...)
	s = hex.AppendEncode(s, digest[:])
	return keyengine.SigV4Proof{
		AccessKeyID:  a.accessKeyID,
		Date:         a.date,
		Region:       a.region,
		Service:      service,
		StringToSign: s[len(canonical):],
		Signature:    a.signature[:],
	}, s[:len(canonical)], nil
}

// announced checks the body's hash in the header, which covers refuses unless it
// is signed, where a client sends one. There is no unsigned and no streamed body.
func announced(h http.Header, hash []byte) error {
	v := h[headerHash]
	switch {
	case len(v) == 0 || len(v) == 1 && v[0] == string(hash):
		return nil
	case len(v) == 1 && (strings.HasPrefix(v[0], "STREAMING-") || v[0] == "UNSIGNED-PAYLOAD"):
		return refuse(reasonUnsupported, keyengine.ErrInvalidSignature, "The payload must be signed: 'X-Amz-Content-Sha256' must be the SHA-256 of the body.")
	default:
		return refuse(reasonPayload, keyengine.ErrInvalidSignature, "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received.")
	}
}

// canonical appends the canonical request.
func (a *authorization) canonical(b []byte, r *http.Request, hash []byte) ([]byte, error) {
	b = append(b, r.Method...)
	b = append(b, "\n/\n\n"...)
	for name := range strings.SplitSeq(a.signed, ";") {
		b = append(b, name...)
		b = append(b, ':')
		switch name {
		case "host": // net/http takes it out of the headers
			b = appendTrimmed(b, r.Host)
		case "content-length":
			if r.ContentLength < 0 {
				return nil, missing(name)
			}
			b = strconv.AppendInt(b, r.ContentLength, 10)
		default:
			values := r.Header[spelling(name)]
			if len(values) == 0 {
				return nil, missing(name)
			}
			for i, v := range values {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendTrimmed(b, v)
			}
		}
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = append(b, a.signed...)
	b = append(b, '\n')
	return append(b, hash...), nil
}

// spellings are the names that signers sign as net/http spells them, by their
// lower case.
var spellings = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{
		"amz-sdk-invocation-id", "amz-sdk-request", "content-type", "user-agent",
		"x-amz-content-sha256", "x-amz-date", "x-amz-target", "x-amz-user-agent",
	} {
		m[name] = http.CanonicalHeaderKey(name)
	}
	return m
}()

// spelling is how net/http spells a header's name, which costs it an allocation
// for all but a few.
func spelling(name string) string {
	if s, ok := spellings[name]; ok {
		return s
	}
	return http.CanonicalHeaderKey(name)
}

func missing(name string) error {
	return refuse(reasonUnsigned, keyengine.ErrInvalidSignature, "The request does not have the header '%s', which is among its SignedHeaders.", name)
}

// appendTrimmed appends a header's value without the spaces around it, and with
// one space where there are several.
func appendTrimmed(b []byte, v string) []byte {
	v = strings.Trim(v, " \t")
	if !strings.Contains(v, "  ") {
		return append(b, v...)
	}
	var last byte
	for i := range len(v) {
		if c := v[i]; c != ' ' || last != ' ' {
			b = append(b, c)
		}
		last = v[i]
	}
	return b
}

// mismatch is the answer to a signature that the engine found wrong. It repeats
// what the node put together, which is all the caller's own words, because that
// is how people find out where their signer differs.
func mismatch(canonical []byte, p keyengine.SigV4Proof) *refusal {
	text := mismatchText
	if len(canonical) <= maxShownCanonical {
		text += "\n\nThe Canonical String for this request should have been\n'" + string(bytes.ToValidUTF8(canonical, []byte("\uFFFD"))) +
			"'\n\nThe String-to-Sign should have been\n'" + string(p.StringToSign) + "'\n"
	}
	return refuse(reasonSignature, keyengine.ErrInvalidSignature, "%s", text)
}
