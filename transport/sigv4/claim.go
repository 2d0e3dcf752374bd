package sigv4

import (
	"net/http"
	"strings"
	"time"
)

// Limits of the parts of a signature.
const (
	maxSkew   = 5 * time.Minute
	maxKeyID  = 128
	maxName   = 64 // of a Region, a service or a parameter of a query string
	maxSigned = 64 // headers
)

// Verifier parses the signatures of requests to one service. It holds no secret,
// and is safe for concurrent use.
type Verifier struct {
	service string
	// meaningful are the headers that the service uses. Others, such as those
	// that proxies add (X-Amz-Cf-Id), need not be signed, as they are ignored.
	meaningful []string
	expires    time.Duration // see Expiring
}

// NewVerifier returns a Verifier for the service of that name in credential scopes,
// such as "kms". headers are those that the service uses: a request that has one of
// them unsigned is refused, so that nobody in between can change what is requested.
// Host, the date and the hash of the body are always among them.
func NewVerifier(service string, headers ...string) *Verifier {
	v := &Verifier{service: service}
	for _, name := range headers {
		v.meaningful = append(v.meaningful, http.CanonicalHeaderKey(name))
	}
	v.meaningful = append(v.meaningful, HeaderDate, HeaderHash, HeaderToken)
	return v
}

// Expiring returns a Verifier that takes presigned requests that do not say how long they
// are valid as valid for d. Without, they are refused.
func (v *Verifier) Expiring(d time.Duration) *Verifier {
	w := *v
	w.expires = d
	return &w
}

// Claim is what a request's headers, or its query string, say about its signature.
// What Read accepts is well formed, for the Verifier's service and for the present
// time, but nothing in it is proved.
type Claim struct {
	AccessKeyID string
	// Date (YYYYMMDD), Region and Service are those of the credential scope.
	Date, Region, Service string
	// Time is that of the signature, in TimeFormat.
	Time string
	// SignedHeaders are as they were sent: names in lower case, in order, joined by ";".
	SignedHeaders string
	// SessionToken is the token of a session's credentials, or "" if the request has none.
	// It is signed, but only its issuer can tell whether it is valid.
	SessionToken string

	signature  [32]byte
	query      string     // canonical; "" if the signature is in a header
	parameters parameters // of the query string; nil if the signature is in a header
}

// Parameter returns a parameter of a presigned request's query string, decoded, or ""
// if there is none. Signers may move headers there; Read refuses a request that has
// one of the Verifier's headers in both places.
func (c *Claim) Parameter(name string) string { return c.parameters.of(name) }

// Read parses and checks everything about a signature that does not depend on the
// body, so that a bad request can be refused before its body is read. It overwrites
// c. Errors are of type *Error.
//
// It is as strict as the signers of the AWS SDKs allow. Anything ambiguous (repeated
// headers, unordered or repeated names, encodings in the query) is refused rather than
// interpreted. The time of the request may differ from now by five minutes; a
// presigned request may be as old as it says that it is valid.
func (v *Verifier) Read(c *Claim, r *http.Request, now time.Time) error {
	*c = Claim{}
	values := r.Header[HeaderAuthorization]
	if len(values) == 0 {
		if IsPresigned(r) {
			return v.readQuery(c, r, now)
		}
		return fail(ReasonMissing, CodeMissing, "Missing Authentication Token")
	}
	if len(values) > 1 {
		return fail(ReasonMalformed, CodeIncomplete, "The request has more than one Authorization header.")
	}
	credential, err := c.parse(values[0])
	if err != nil {
		return err
	}
	when, stamp, err := requestTime(r.Header)
	if err != nil {
		return err
	}
	c.Time = stamp
	if err := c.scope(credential, v.service); err != nil {
		return err
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return fail(ReasonSignature, CodeInvalid, "Requests have no query string but that of a signature, and not both a signature there and an Authorization header.")
	}
	if err := v.covers(c, r.Header, false); err != nil {
		return err
	}
	if err := current(when, now); err != nil {
		return err
	}
	return c.readToken(r.Header[HeaderToken])
}

// readToken takes the session token from the values of its header. covers has made sure that
// it is signed.
func (c *Claim) readToken(values []string) error {
	if len(values) == 0 {
		return nil
	}
	if len(values) > 1 || !wordOf(values[0], MaxSessionToken, func(b byte) bool { return b > ' ' && b <= '~' }) {
		return fail(ReasonToken, CodeUnrecognized, badTokenText)
	}
	c.SessionToken = values[0]
	return nil
}

// ServiceOf returns the service that a request claims to be signed for, even if
// something else is wrong with it, or "" if there is none that could be a name. Faces that
// serve several services choose by it who verifies the request, which the signature then
// has to be for.
func ServiceOf(r *http.Request) string {
	var credential string
	if auth := r.Header.Get(HeaderAuthorization); strings.HasPrefix(auth, Algorithm) {
		_, credential, _ = strings.Cut(auth, "Credential=")
		credential, _, _ = strings.Cut(credential, ",")
	} else if IsPresigned(r) {
		credential = r.URL.Query().Get(queryCred)
	}
	if strings.Count(credential, "/") != 4 {
		return ""
	}
	for range 3 {
		_, credential, _ = strings.Cut(credential, "/")
	}
	service, _, _ := strings.Cut(credential, "/")
	if !wordOf(service, maxName, func(c byte) bool { return c == '-' || lowerOrDigit(c) }) {
		return ""
	}
	return service
}

// parse parses the three parameters of the header.
func (c *Claim) parse(header string) (credential string, err error) {
	scheme, rest, _ := strings.Cut(header, " ")
	switch {
	case scheme == Algorithm:
	case strings.HasPrefix(scheme, "AWS4-"):
		return "", fail(ReasonUnsupported, CodeIncomplete, unsupportedText)
	default:
		return "", fail(ReasonMissing, CodeMissing, "Missing Authentication Token")
	}
	var signature string
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " "), "=")
		if !ok {
			return "", fail(ReasonMalformed, CodeIncomplete,
				"A part of the Authorization header is not a valid key=value pair (missing equal-sign).")
		}
		var to *string
		switch name {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &c.SignedHeaders
		case "Signature":
			to = &signature
		default:
			return "", fail(ReasonMalformed, CodeIncomplete,
				"Authorization header has a parameter other than 'Credential', 'SignedHeaders' and 'Signature'.")
		}
		if *to != "" {
			return "", fail(ReasonMalformed, CodeIncomplete,
				"Authorization header has the '%s' parameter more than once.", name)
		}
		*to = value
	}
	var missing string
	for _, p := range [...]struct{ name, value string }{{"Credential", credential}, {"Signature", signature}, {"SignedHeaders", c.SignedHeaders}} {
		if p.value == "" {
			missing += "Authorization header requires '" + p.name + "' parameter. "
		}
	}
	if missing != "" {
		return "", fail(ReasonMalformed, CodeIncomplete, "%s", strings.TrimSuffix(missing, " "))
	}
	return credential, c.decodeSignature(signature)
}

// lowerHex reports whether s is n bytes in lower-case hexadecimal, the only
// form that signers write.
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

// scope splits the credential and checks what the signature is valid for.
func (c *Claim) scope(credential, service string) error {
	var parts [5]string
	for i := range parts {
		var more bool
		if parts[i], credential, more = strings.Cut(credential, "/"); more != (i < len(parts)-1) {
			return fail(ReasonMalformed, CodeIncomplete, unreadableKeyText)
		}
	}
	c.AccessKeyID, c.Date, c.Region, c.Service = parts[0], parts[1], parts[2], parts[3]
	switch {
	case !wordOf(c.AccessKeyID, maxKeyID, func(c byte) bool { return c == '_' || c >= 'A' && c <= 'Z' || lowerOrDigit(c) }):
		return UnknownKey()
	case parts[4] != terminator:
		return fail(ReasonScope, CodeInvalid, "Credential should be scoped with a valid terminator: '%s'.", terminator)
	case parts[3] != service:
		return fail(ReasonScope, CodeInvalid, "Credential should be scoped to correct service: '%s'.", service)
	case !wordOf(c.Region, maxName, func(c byte) bool { return c == '-' || lowerOrDigit(c) }):
		return fail(ReasonScope, CodeInvalid, "Credential should be scoped to a valid region.")
	case c.Date != c.Time[:len(dateFormat)]:
		return fail(ReasonScope, CodeInvalid,
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: expected '%s', from '%s'.", c.Time[:len(dateFormat)], c.Time)
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

// requestTime returns the time that the signature is made for: X-Amz-Date, or
// else Date. stamp is that time in the form in which it is signed.
func requestTime(h http.Header) (when time.Time, stamp string, err error) {
	if v := h[HeaderDate]; len(v) == 1 {
		// Parse accepts fractions of seconds that the format does not have. A value
		// of the same length as the format is exactly what Format would write.
		if t, err := time.Parse(TimeFormat, v[0]); err == nil && len(v[0]) == len(TimeFormat) {
			return t, v[0], nil
		}
	} else if d := h[headerHTTPDate]; len(v) == 0 && len(d) == 1 {
		if t, err := time.Parse(TimeFormat, d[0]); err == nil && len(d[0]) == len(TimeFormat) {
			return t, d[0], nil
		}
		if t, err := http.ParseTime(d[0]); err == nil {
			t = t.UTC()
			return t, t.Format(TimeFormat), nil
		}
	} else if len(v) == 0 && len(d) == 0 {
		return time.Time{}, "", fail(ReasonMalformed, CodeIncomplete,
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	return time.Time{}, "", fail(ReasonMalformed, CodeIncomplete, badDateText)
}

// covers checks that the required headers are signed: host, the date unless the
// query string has it, and every header that the service uses.
func (v *Verifier) covers(c *Claim, h http.Header, dated bool) error {
	host, date, ok := signedNames(c.SignedHeaders)
	if !ok {
		return fail(ReasonMalformed, CodeInvalid,
			"SignedHeaders must be at most %d different header names in lower case and in alphabetical order.", maxSigned)
	}
	if !host {
		return fail(ReasonUnsigned, CodeInvalid, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if _, ok := h[HeaderDate]; !ok && !date && !dated {
		return fail(ReasonUnsigned, CodeInvalid, "'Date' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for _, name := range v.meaningful {
		if _, ok := h[name]; ok && !lists(c.SignedHeaders, name) {
			return fail(ReasonUnsigned, CodeInvalid, "'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

// signedNames reports whether a list of signed headers is in its only valid form, and
// whether it contains host and date, which is HTTP's Date header.
func signedNames(list string) (host, date, ok bool) {
	last, n := "", 0
	for name := range strings.SplitSeq(list, ";") {
		if n++; n > maxSigned || name <= last || !wordOf(name, 256, headerByte) {
			return false, false, false
		}
		last = name
		host = host || name == "host"
		date = date || name == "date"
	}
	return host, date, true
}

// headerByte reports whether c is a character of a token (RFC 9110), other than an
// upper-case letter.
func headerByte(c byte) bool {
	return lowerOrDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// lists reports whether a list of signed headers contains a header.
func lists(signed, name string) bool {
	for s := range strings.SplitSeq(signed, ";") {
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
		return fail(ReasonClock, CodeInvalid, "Signature expired: %s is now earlier than %s (%s - 5 min.)",
			when.Format(TimeFormat), early.Format(TimeFormat), now.Format(TimeFormat))
	}
	return notYet(when, now)
}

// notYet refuses a time that is ahead of the node's clock.
func notYet(when, now time.Time) error {
	if late := now.Add(maxSkew); when.After(late) {
		return fail(ReasonClock, CodeInvalid, "Signature not yet current: %s is still later than %s (%s + 5 min.)",
			when.Format(TimeFormat), late.Format(TimeFormat), now.Format(TimeFormat))
	}
	return nil
}
