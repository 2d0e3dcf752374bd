package sigv4

import (
	"bytes"
	"fmt"
)

// Error says why a signature is not accepted.
type Error struct {
	// Code is the name of AWS's exception.
	Code string
	// Reason is one of a few words, for metrics.
	Reason string
	// Message is for the caller. It is AWS's own if AWS has one.
	Message string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Code + ": " + e.Message }

// Codes of an Error.
const (
	CodeMissing      = "MissingAuthenticationTokenException" // the request does not say who sends it
	CodeIncomplete   = "IncompleteSignatureException"        // the signature cannot be parsed
	CodeInvalid      = "InvalidSignatureException"           // the signature is not valid for this request
	CodeUnrecognized = "UnrecognizedClientException"         // there is no such access key or session
)

// Reasons of an Error.
const (
	ReasonMissing     = "missing"     // no authentication at all
	ReasonMalformed   = "malformed"   // it cannot be parsed
	ReasonUnsupported = "unsupported" // a kind of signature that is not supported
	ReasonScope       = "scope"       // for another service, date or terminator
	ReasonClock       = "clock"       // too old or not yet current
	ReasonUnsigned    = "unsigned"    // headers that must be signed are not
	ReasonPayload     = "payload"     // the body is not the one that was announced
	ReasonToken       = "token"       // a session token
	ReasonUnknownKey  = "unknown_key" // no such access key, or not active
	ReasonSignature   = "signature"   // the signature is wrong
)

const (
	mismatchText      = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	badTokenText      = "The security token included in the request is invalid."
	badDateText       = "Date must be in ISO-8601 'basic format', once."
	unsupportedText   = "The signature's algorithm is not supported. Sign the request with " + Algorithm + "."
	unreadableKeyText = "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term."
)

// maxShownCanonical bounds the canonical request in the answer to a wrong signature.
const maxShownCanonical = 8 << 10

func fail(reason, code, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// UnknownKey returns the error for an access key that does not exist or is not
// active.
func UnknownKey() *Error { return fail(ReasonUnknownKey, CodeUnrecognized, badTokenText) }

// Mismatch returns the error for a signature that SignedBy rejected. It repeats the
// canonical request and the string to sign, both of which consist of what the
// caller sent, because people need them to find out where their signer differs.
func Mismatch(canonical []byte, p *Proof) *Error {
	text := mismatchText
	if len(canonical) <= maxShownCanonical {
		text += "\n\nThe Canonical String for this request should have been\n'" + string(bytes.ToValidUTF8(canonical, []byte("\uFFFD"))) +
			"'\n\nThe String-to-Sign should have been\n'" + string(p.StringToSign) + "'\n"
	}
	return &Error{Code: CodeInvalid, Reason: ReasonSignature, Message: text}
}
