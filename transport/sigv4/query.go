package sigv4

import (
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A presigned request has its signature in the query string (AWS General Reference,
// "Signature Version 4 query parameters"), with the duration for which it is valid.
// Its sender need not have the secret, and may send it repeatedly until that time
// is over. So such a URL permits the one request that it is for or, with an
// unsigned payload, every request of that operation.

const (
	queryAlgorithm = "X-Amz-Algorithm"
	queryExpires   = "X-Amz-Expires"
	querySigned    = "X-Amz-SignedHeaders"
	querySignature = "X-Amz-Signature"
	queryCred      = "X-Amz-Credential"

	// maxQuery and maxParameters bound the query string, in which a session token is
	// the longest part. A token is mostly base64, of which little has to be encoded.
	maxQuery      = MaxSessionToken + 8<<10
	maxParameters = 32
	// maxExpires is the longest duration for which a presigned request is valid,
	// in seconds.
	maxExpires = 7 * 24 * 60 * 60
)

// parameter is a parameter of a query string, decoded.
type parameter struct{ name, value string }

// parameters are those of a presigned request, by name. Signers may move AWS's
// headers there. Others are ignored, but are signed too.
type parameters []parameter

func (q parameters) of(name string) string {
	if i, ok := slices.BinarySearchFunc(q, name, func(p parameter, name string) int { return strings.Compare(p.name, name) }); ok {
		return q[i].value
	}
	return ""
}

// IsPresigned reports whether the query string claims to hold a signature.
func IsPresigned(r *http.Request) bool {
	return strings.Contains(r.URL.RawQuery, "X-Amz-")
}

// readQuery is Read for requests that are signed in the query string. It is
// equally strict: every parameter may occur only once, and only in one
// encoding.
func (v *Verifier) readQuery(c *Claim, r *http.Request, now time.Time) error {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	for _, name := range [...]string{queryAlgorithm, queryCred, querySignature, querySigned, HeaderDate, queryExpires} {
		if q.of(name) == "" && !(name == queryExpires && v.expires > 0) {
			return fail(ReasonMalformed, CodeIncomplete,
				"AWS query-string parameters must include '%s'. Re-examine the query-string parameters.", name)
		}
	}
	if q.of(queryAlgorithm) != Algorithm {
		return fail(ReasonUnsupported, CodeIncomplete, unsupportedText)
	}
	c.SignedHeaders, c.parameters = q.of(querySigned), q
	if err := c.decodeSignature(q.of(querySignature)); err != nil {
		return err
	}
	when, err := time.Parse(TimeFormat, q.of(HeaderDate))
	if err != nil || len(q.of(HeaderDate)) != len(TimeFormat) {
		return fail(ReasonMalformed, CodeIncomplete, badDateText)
	}
	c.Time = q.of(HeaderDate)
	if err := c.scope(q.of(queryCred), v.service); err != nil {
		return err
	}
	for _, name := range v.meaningful {
		if _, ok := r.Header[name]; ok && (name == HeaderDate || q.of(name) != "") {
			return fail(ReasonMalformed, CodeIncomplete, "The request has '%s' both as a header and in the query string.", name)
		}
	}
	if err := v.covers(c, r.Header, true); err != nil {
		return err
	}
	good, err := v.validity(q.of(queryExpires))
	if err != nil {
		return err
	}
	if err := currentFor(when, now, good); err != nil {
		return err
	}
	token := r.Header[HeaderToken]
	if moved := q.of(HeaderToken); moved != "" {
		token = []string{moved} // there is no header then, see above
	}
	if err := c.readToken(token); err != nil {
		return err
	}
	c.query = q.canonical()
	return nil
}

// validity returns how long a presigned request is valid.
func (v *Verifier) validity(expires string) (time.Duration, error) {
	if expires == "" {
		return v.expires, nil
	}
	seconds, err := strconv.Atoi(expires)
	if err != nil || seconds < 1 || seconds > maxExpires || strconv.Itoa(seconds) != expires {
		return 0, fail(ReasonMalformed, CodeIncomplete, "X-Amz-Expires must be a number of seconds from 1 to %d.", maxExpires)
	}
	return time.Duration(seconds) * time.Second, nil
}

// currentFor is current for a signature that says how long it is valid.
func currentFor(when, now time.Time, good time.Duration) error {
	now = now.UTC().Truncate(time.Second)
	if early := now.Add(-good); when.Before(early) {
		return fail(ReasonClock, CodeInvalid, "Signature expired: %s is now earlier than %s (%s - %d sec.)",
			when.Format(TimeFormat), early.Format(TimeFormat), now.Format(TimeFormat), int(good.Seconds()))
	}
	return notYet(when, now)
}

// parseQuery parses a query string.
func parseQuery(raw string) (parameters, error) {
	bad := func() (parameters, error) {
		return nil, fail(ReasonMalformed, CodeIncomplete,
			"The query string of a presigned request has at most %d parameters, each once, percent-encoded and not empty.", maxParameters)
	}
	if len(raw) > maxQuery || strings.Count(raw, "&") >= maxParameters {
		return bad()
	}
	var q parameters
	for part := range strings.SplitSeq(raw, "&") {
		name, value, ok := strings.Cut(part, "=")
		decoded, good := unescape(value)
		if !ok || !good || decoded == "" || !wordOf(name, maxName, unreserved) {
			return bad()
		}
		q = append(q, parameter{name, decoded})
	}
	slices.SortFunc(q, func(a, b parameter) int { return strings.Compare(a.name, b.name) })
	for i := range q[1:] {
		if q[i].name == q[i+1].name {
			return bad()
		}
	}
	return q, nil
}

// unreserved reports whether c is an unreserved character of RFC 3986, which is
// never encoded.
func unreserved(c byte) bool {
	return lowerOrDigit(c) || c >= 'A' && c <= 'Z' || strings.IndexByte("-_.~", c) >= 0
}

// unescape decodes percent-encoding. It refuses a plus sign, which is ambiguous,
// and bytes that are not printable.
func unescape(s string) (string, bool) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			return "", false
		case c == '%':
			if i+2 >= len(s) {
				return "", false
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			c = byte(n)
			i += 2
		}
		if c <= ' ' || c > '~' {
			return "", false
		}
		b = append(b, c)
	}
	return string(b), true
}

// canonical returns the query string as it is signed: sorted by name, with
// everything but unreserved characters encoded, and without the signature.
func (q parameters) canonical() string {
	var b []byte
	for _, p := range q {
		if p.name == querySignature {
			continue
		}
		if len(b) > 0 {
			b = append(b, '&')
		}
		b = append(append(b, p.name...), '=')
		for i := range len(p.value) {
			if c := p.value[i]; unreserved(c) {
				b = append(b, c)
			} else {
				b = appendEscaped(b, c)
			}
		}
	}
	return string(b)
}

func appendEscaped(b []byte, c byte) []byte {
	const hexDigits = "0123456789ABCDEF"
	return append(b, '%', hexDigits[c>>4], hexDigits[c&15])
}

// decodeSignature decodes a signature, in the only form that signers write.
func (c *Claim) decodeSignature(s string) error {
	if lowerHex(s, len(c.signature)) {
		if _, err := hex.Decode(c.signature[:], []byte(s)); err == nil {
			return nil
		}
	}
	return fail(ReasonSignature, CodeInvalid, mismatchText)
}
