package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Reasons for which a document or a name is refused. Test for them with
// errors.Is.
var (
	// ErrMalformed: the document is not JSON, or not a key policy. In AWS's
	// terms MalformedPolicyDocumentException.
	ErrMalformed = errors.New("malformed policy document")

	// ErrUnsupported: the document may be a good IAM policy, but it uses an
	// element that this version does not evaluate and hence does not take.
	ErrUnsupported = errors.New("policy element is not supported")

	// ErrInvalidPrincipal: a statement names something that cannot be a
	// principal. In AWS's terms MalformedPolicyDocumentException with
	// InvalidPrincipalMessage. Also returned by ParsePrincipal.
	ErrInvalidPrincipal = errors.New("invalid principal")

	// ErrTooLong: the document has more than MaxKeyPolicySize bytes. In AWS's
	// terms LimitExceededException.
	ErrTooLong = errors.New("policy document is too long")

	// ErrInvalidARN: a string is not an Amazon Resource Name. In AWS's terms
	// InvalidArnException.
	ErrInvalidARN = errors.New("invalid ARN")
)

// AWS's words for two faults that clients are known to look for. They belong
// in the message of a MalformedPolicyDocumentException.
const (
	// InvalidPrincipalMessage goes with ErrInvalidPrincipal, also when the
	// engine finds that a well-formed principal does not exist.
	InvalidPrincipalMessage = "Policy contains a statement with one or more invalid principals."

	// LockoutMessage goes with a policy for which LockoutSafe is false.
	LockoutMessage = "The new key policy will not allow you to update the key policy in the future."
)

// NoStatement is the number of the statement where there is none: in the
// SyntaxError for a fault outside of the statements, and in a Decision that no
// statement brought about.
const NoStatement = -1

// A SyntaxError says what is wrong with a document, and where.
type SyntaxError struct {
	// Err is ErrMalformed, ErrUnsupported, ErrInvalidPrincipal or ErrTooLong.
	Err error
	// Statement is the statement's position, from 0, or NoStatement.
	Statement int
	// Element is the policy element at fault, such as "Condition" or
	// "Principal.AWS"; empty when there is none.
	Element string
	// Detail says what was found or wanted. It may quote the document, at most
	// a few dozen bytes of it, escaped.
	Detail string
}

// Error names the place and the fault, for people. The text is made from the
// submitted document only and may be sent to who submitted it.
func (e *SyntaxError) Error() string {
	var b strings.Builder
	b.WriteString(e.Err.Error())
	sep := ": "
	if e.Statement != NoStatement {
		fmt.Fprintf(&b, ": Statement[%d]", e.Statement)
		sep = "."
	}
	if e.Element != "" {
		b.WriteString(sep)
		b.WriteString(e.Element)
	}
	if e.Detail != "" {
		b.WriteString(": ")
		b.WriteString(e.Detail)
	}
	return b.String()
}

// Unwrap returns the sentinel.
func (e *SyntaxError) Unwrap() error { return e.Err }

// ClientMessage is the message for an API client: AWS's own words where they
// are known, else Error's.
func (e *SyntaxError) ClientMessage() string {
	if errors.Is(e.Err, ErrInvalidPrincipal) {
		return InvalidPrincipalMessage
	}
	return e.Error()
}

// quoted renders part of a document for an error message: escaped, so that it
// cannot forge a log line, and cut, so that a message stays a message.
func quoted(s string) string {
	const most = 64
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%q... (%d bytes)", s[:cut], len(s))
}
