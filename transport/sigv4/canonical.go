package sigv4

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A signature is an HMAC over a digest of the canonical request (AWS General
// Reference, "Create a signed AWS API request"). Both sides build the canonical
// request from an http.Request.

// Proof returns what was signed, given the request that the claim was read from and its
// body. It overwrites buf: canonical, which is the canonical request, and the proof
// point into buf, or into a larger buffer that replaces it, and into the claim. Errors
// are of type *Error.
func (c *Claim) Proof(buf []byte, r *http.Request, body []byte) (p Proof, canonical []byte, err error) {
	sum := sha256.Sum256(body)
	var hash [2 * sha256.Size]byte
	hex.Encode(hash[:], sum[:])
	payload, err := c.announced(r, hash[:])
	if err != nil {
		return p, nil, err
	}
	canonical, err = appendCanonical(buf[:0], r, c.query, c.SignedHeaders, payload)
	if err != nil {
		return p, nil, err
	}
	s := appendStringToSign(canonical, canonical, c.Time, c.Date, c.Region, c.Service)
	return Proof{
		AccessKeyID:  c.AccessKeyID,
		Date:         c.Date,
		Region:       c.Region,
		Service:      c.Service,
		StringToSign: s[len(canonical):],
		Signature:    c.signature[:],
		SessionToken: c.SessionToken,
	}, s[:len(canonical)], nil
}

// appendStringToSign appends what is signed instead of a canonical request.
func appendStringToSign(b, canonical []byte, time, date, region, service string) []byte {
	digest := sha256.Sum256(canonical)
	b = append(b, Algorithm+"\n"...)
	b = append(b, time...)
	b = append(b, '\n')
	b = appendScope(b, date, region, service)
	b = append(b, '\n')
	return hex.AppendEncode(b, digest[:])
}

func appendScope(b []byte, date, region, service string) []byte {
	b = append(append(b, date...), '/')
	b = append(append(b, region...), '/')
	b = append(append(b, service...), '/')
	return append(b, terminator...)
}

// announced checks the hash of the body in the header, if there is one (covers makes
// sure that it is signed), and returns the hash that is signed for the body. A body
// that is not signed is accepted only over TLS, which then protects it in transit.
// Streamed bodies are not supported.
func (c *Claim) announced(r *http.Request, hash []byte) ([]byte, error) {
	v := r.Header[HeaderHash]
	if moved := c.Parameter(HeaderHash); moved != "" {
		v = []string{moved}
	}
	switch {
	case len(v) == 0 || len(v) == 1 && v[0] == string(hash):
		return hash, nil
	case len(v) == 1 && v[0] == UnsignedPayload && r.TLS != nil:
		return []byte(UnsignedPayload), nil
	case len(v) == 1 && v[0] == UnsignedPayload:
		return nil, fail(ReasonUnsupported, CodeInvalid, "An unsigned payload is taken over TLS only: 'X-Amz-Content-Sha256' must be the SHA-256 of the body.")
	case len(v) == 1 && strings.HasPrefix(v[0], "STREAMING-"):
		return nil, fail(ReasonUnsupported, CodeInvalid, "The payload must be signed: 'X-Amz-Content-Sha256' must be the SHA-256 of the body.")
	default:
		return nil, fail(ReasonPayload, CodeInvalid, "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received.")
	}
}

// appendCanonical appends the canonical request. query and payload are already in the
// form in which they are signed, and signed is the list of signed headers.
func appendCanonical(b []byte, r *http.Request, query, signed string, payload []byte) ([]byte, error) {
	b = append(b, r.Method...)
	b = append(b, '\n')
	b = appendPath(b, r.URL)
	b = append(b, '\n')
	b = append(b, query...)
	b = append(b, '\n')
	for name := range strings.SplitSeq(signed, ";") {
		b = append(b, name...)
		b = append(b, ':')
		switch name {
		case "host": // net/http removes it from the headers
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
	b = append(b, signed...)
	b = append(b, '\n')
	return append(b, payload...), nil
}

// appendPath appends a path as it is signed: escaped as it is sent, and then
// escaped again.
func appendPath(b []byte, u *url.URL) []byte {
	if u.Path == "/" && u.RawPath == "" || u.Path == "" {
		return append(b, '/')
	}
	path := u.EscapedPath()
	for i := range len(path) {
		if c := path[i]; c == '/' || unreserved(c) {
			b = append(b, c)
		} else {
			b = appendEscaped(b, c)
		}
	}
	return b
}

// spellings maps the names of commonly signed headers, in lower case, to
// net/http's spelling.
var spellings = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{
		"amz-sdk-invocation-id", "amz-sdk-request", "content-type", "user-agent",
		"x-amz-content-sha256", "x-amz-date", "x-amz-security-token", "x-amz-target", "x-amz-user-agent",
	} {
		m[name] = http.CanonicalHeaderKey(name)
	}
	return m
}()

// spelling returns net/http's spelling of a header's name. It avoids the
// allocation that net/http makes for most names.
func spelling(name string) string {
	if s, ok := spellings[name]; ok {
		return s
	}
	return http.CanonicalHeaderKey(name)
}

func missing(name string) error {
	return fail(ReasonUnsigned, CodeInvalid, "The request does not have the header '%s', which is among its SignedHeaders.", name)
}

// appendTrimmed appends a header's value without surrounding spaces, and with
// runs of spaces reduced to one.
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
