package awsapi

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	service    = "kms"
	terminator = "aws4_request"

	dateFormat  = "20060102"
	amzFormat   = "20060102T150405Z"
	maxSkew     = 5 * time.Minute
	maxKeyID    = 128
	maxRegion   = 64
	maxSigned   = 64
	headerAuth  = "Authorization"
	headerDate  = "Date"
	headerAmz   = "X-Amz-Date"
	headerHash  = "X-Amz-Content-Sha256"
	headerToken = "X-Amz-Security-Token"
	amzPrefix   = "X-Amz-"
)

// refusal is a request whose sender could not be made out. reason is one of a
// few words, for metrics; err is for the caller.
type refusal struct {
	reason string
	err    *keyengine.Error
}

func (r *refusal) Error() string { return r.reason + ": " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// Why a request was refused before it reached the engine's door.
const (
	reasonMissing     = "missing"     // no authentication at all
	reasonMalformed   = "malformed"   // cannot be read
	reasonUnsupported = "unsupported" // a kind of signature that is not taken
	reasonScope       = "scope"       // for another service, date or terminator
	reasonClock       = "clock"       // too old or not yet current
	reasonUnsigned    = "unsigned"    // headers that must be signed are not
	reasonPayload     = "payload"     // the body is not the one that was announced
	reasonToken       = "token"       // a session token
	reasonUnknownKey  = "unknown_key" // no such access key, or not active
	reasonSignature   = "signature"   // the signature is wrong
	reasonOther       = "other"       // refused by the engine for another reason
)

// What callers are told, in AWS's words.
const (
	mismatchText      = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	badTokenText      = "The security token included in the request is invalid."
	unreadableKeyText = "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term."
)

func refuse(reason string, kind *keyengine.Error, format string, args ...any) *refusal {
	return &refusal{reason, &keyengine.Error{Code: kind.Code, Message: fmt.Sprintf(format, args...)}}
}

// authorization is what a request's headers claim: an Authorization header that
// is well formed, for this service, of the present time. Nothing of it is proven.
type authorization struct {
	accessKeyID string
	date        string // YYYYMMDD
	region      string
	time        string // YYYYMMDDTHHMMSSZ
	signed      string // as sent: lower-case names, in order, joined by ";"
	signature   [32]byte
}

// read takes everything from the headers that can be judged without
// the body, so that a stranger is told before a body is read.
//
// It is as strict as the signers of the AWS SDKs allow. What could be read in two
// ways (repeated headers, unordered or repeated names, encodings in the query) is
// refused rather than interpreted.
func (a *authorization) read(r *http.Request, now time.Time) error {
	values := r.Header[headerAuth]
	if len(values) == 0 {
		if q := r.URL.Query(); q.Has("X-Amz-Signature") || q.Has("X-Amz-Algorithm") {
			return refuse(reasonUnsupported, transport.ErrIncompleteSignature,
				"Requests signed in the query string are not supported. Sign the request with an Authorization header.")
		}
		return refuse(reasonMissing, transport.ErrMissingAuthentication, "Missing Authentication Token")
	}
	if len(values) > 1 {
		return refuse(reasonMalformed, transport.ErrIncompleteSignature, "The request has more than one Authorization header.")
	}
	credential, err := a.parse(values[0])
	if err != nil {
		return err
	}
	when, stamp, err := requestTime(r.Header)
	if err != nil {
		return err
	}
	a.time = stamp
	if err := a.scope(credential); err != nil {
		return err
	}
	if err := a.covers(r.Header); err != nil {
		return err
	}
	if err := current(when, now); err != nil {
		return err
	}
	if _, ok := r.Header[headerToken]; ok {
		return refuse(reasonToken, keyengine.ErrUnrecognizedClient, badTokenText)
	}
	return nil
}

// parse reads the header's three parameters.
func (a *authorization) parse(header string) (credential string, err error) {
	scheme, rest, _ := strings.Cut(header, " ")
	switch {
	case scheme == algorithm:
	case strings.HasPrefix(scheme, "AWS4-"):
		return "", refuse(reasonUnsupported, transport.ErrIncompleteSignature,
			"The signature's algorithm is not supported. Sign the request with %s.", algorithm)
	default:
		return "", refuse(reasonMissing, transport.ErrMissingAuthentication, "Missing Authentication Token")
	}
	var signature string
	*a = authorization{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " "), "=")
		if !ok {
			return "", refuse(reasonMalformed, transport.ErrIncompleteSignature,
				"A part of the Authorization header is not a valid key=value pair (missing equal-sign).")
		}
		var to *string
		switch name {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &a.signed
		case "Signature":
			to = &signature
		default:
			return "", refuse(reasonMalformed, transport.ErrIncompleteSignature,
				"Authorization header has a parameter other than 'Credential', 'SignedHeaders' and 'Signature'.")
		}
		if *to != "" {
			return "", refuse(reasonMalformed, transport.ErrIncompleteSignature,
				"Authorization header has the '%s' parameter more than once.", name)
		}
		*to = value
	}
	var missing string
	for _, p := range [...]struct{ name, value string }{{"Credential", credential}, {"Signature", signature}, {"SignedHeaders", a.signed}} {
		if p.value == "" {
			missing += "Authorization header requires '" + p.name + "' parameter. "
		}
	}
	if missing != "" {
		return "", refuse(reasonMalformed, transport.ErrIncompleteSignature, "%s", strings.TrimSuffix(missing, " "))
	}
	if !lowerHex(signature, len(a.signature)) {
		return "", refuse(reasonSignature, keyengine.ErrInvalidSignature, mismatchText)
	}
	if _, err := hex.Decode(a.signature[:], []byte(signature)); err != nil {
		return "", refuse(reasonSignature, keyengine.ErrInvalidSignature, mismatchText)
	}
	return credential, nil
}

// lowerHex reports whether s is n bytes in lower-case hexadecimal: the one form
// that signers write.
func lowerHex(s string, n int) bool {
	if len(s) != 2*n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// scope takes the credential apart and checks what the signature is good for.
func (a *authorization) scope(credential string) error {
	var parts [5]string
	for i := range parts {
		var more bool
		if parts[i], credential, more = strings.Cut(credential, "/"); more != (i < len(parts)-1) {
			return refuse(reasonMalformed, transport.ErrIncompleteSignature, unreadableKeyText)
		}
	}
	a.accessKeyID, a.date, a.region = parts[0], parts[1], parts[2]
	switch {
	case !wordOf(a.accessKeyID, maxKeyID, func(c byte) bool { return c == '_' || c >= 'A' && c <= 'Z' || lowerOrDigit(c) }):
		return refuse(reasonUnknownKey, keyengine.ErrUnrecognizedClient, badTokenText)
	case parts[4] != terminator:
		return refuse(reasonScope, keyengine.ErrInvalidSignature, "Credential should be scoped with a valid terminator: '%s'.", terminator)
	case parts[3] != service:
		return refuse(reasonScope, keyengine.ErrInvalidSignature, "Credential should be scoped to correct service: '%s'.", service)
	case !wordOf(a.region, maxRegion, func(c byte) bool { return c == '-' || lowerOrDigit(c) }):
		return refuse(reasonScope, keyengine.ErrInvalidSignature, "Credential should be scoped to a valid region.")
	case a.date != a.time[:len(dateFormat)]:
		return refuse(reasonScope, keyengine.ErrInvalidSignature,
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: expected '%s', from '%s'.", a.time[:len(dateFormat)], a.time)
	}
	return nil
}

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func wordOf(s string, max int, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return s != "" && len(s) <= max
}

// requestTime is the time that the signature is made for: X-Amz-Date, or else
// Date. stamp is the same as the signature has it.
func requestTime(h http.Header) (when time.Time, stamp string, err error) {
	if v := h[headerAmz]; len(v) == 1 {
		// Parse takes fractions of seconds that the format does not have. What is as
		// long as the format is just what Format would write.
		if t, err := time.Parse(amzFormat, v[0]); err == nil && len(v[0]) == len(amzFormat) {
			return t, v[0], nil
		}
	} else if d := h[headerDate]; len(v) == 0 && len(d) == 1 {
		if t, err := time.Parse(amzFormat, d[0]); err == nil && len(d[0]) == len(amzFormat) {
			return t, d[0], nil
		}
		if t, err := http.ParseTime(d[0]); err == nil {
			t = t.UTC()
			return t, t.Format(amzFormat), nil
		}
	} else if len(v) == 0 && len(d) == 0 {
		return time.Time{}, "", refuse(reasonMalformed, transport.ErrIncompleteSignature,
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	return time.Time{}, "", refuse(reasonMalformed, transport.ErrIncompleteSignature, "Date must be in ISO-8601 'basic format', once.")
}

// covers checks which headers are signed: host, the date, and every X-Amz header
// there is, so that nobody between can change what is asked for.
func (a *authorization) covers(h http.Header) error {
	last, n := "", 0
	var host, date bool
	for name := range strings.SplitSeq(a.signed, ";") {
		if n++; n > maxSigned || name <= last || !wordOf(name, 256, headerByte) {
			return refuse(reasonMalformed, keyengine.ErrInvalidSignature,
				"SignedHeaders must be at most %d different header names in lower case and in alphabetical order.", maxSigned)
		}
		last = name
		host = host || name == "host"
		date = date || name == "date"
	}
	if !host {
		return refuse(reasonUnsigned, keyengine.ErrInvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if _, ok := h[headerAmz]; !ok && !date {
		return refuse(reasonUnsigned, keyengine.ErrInvalidSignature, "'Date' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range h {
		if strings.HasPrefix(name, amzPrefix) && !a.signs(name) {
			return refuse(reasonUnsigned, keyengine.ErrInvalidSignature, "'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

// headerByte are the characters of a token (RFC 9110) that are their own lower case.
func headerByte(c byte) bool {
	return lowerOrDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func (a *authorization) signs(name string) bool {
	for s := range strings.SplitSeq(a.signed, ";") {
		if strings.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// current checks the request's time against the node's clock.
func current(when, now time.Time) error {
	now = now.UTC().Truncate(time.Second)
	if early := now.Add(-maxSkew); when.Before(early) {
		return refuse(reasonClock, keyengine.ErrInvalidSignature, "Signature expired: %s is now earlier than %s (%s - 5 min.)",
			when.Format(amzFormat), early.Format(amzFormat), now.Format(amzFormat))
	}
	if late := now.Add(maxSkew); when.After(late) {
		return refuse(reasonClock, keyengine.ErrInvalidSignature, "Signature not yet current: %s is still later than %s (%s + 5 min.)",
			when.Format(amzFormat), late.Format(amzFormat), now.Format(amzFormat))
	}
	return nil
}
