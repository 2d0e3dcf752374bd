package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Reasons why a document or a name is refused. Test for them with errors.Is.
var (
	// ErrMalformed: the document is not JSON, or not a policy of its kind. AWS answers
	// MalformedPolicyDocumentException.
	ErrMalformed = errors.New("malformed policy document")

	// ErrOverlyPermissive: a condition says ForAllValues of a key that has one value, and
	// so holds if the request does not have the key. It is an ErrMalformed, with AWS's
	// message.
	ErrOverlyPermissive = fmt.Errorf("%w", ErrMalformed)

	// ErrInvalidPrincipal: a statement names something that cannot be a
	// principal. AWS answers MalformedPolicyDocumentException with
	// InvalidPrincipalMessage. ParsePrincipal returns it too.
	ErrInvalidPrincipal = errors.New("invalid principal")

	// ErrTooLong: the document has more bytes than Parse takes. AWS
	// answers LimitExceededException.
	ErrTooLong = errors.New("policy document is too long")

	// ErrInvalidARN: a string is not an Amazon Resource Name. AWS answers
	// InvalidArnException.
	ErrInvalidARN = errors.New("invalid ARN")
)

// AWS's messages for two errors, which some clients look for. They belong in a
// MalformedPolicyDocumentException.
const (
	// InvalidPrincipalMessage is the message for ErrInvalidPrincipal, and for a
	// well-formed principal that does not exist, which the engine finds out.
	InvalidPrincipalMessage = "Policy contains a statement with one or more invalid principals."

	// LockoutMessage is the message for a policy for which LockoutSafe is
	// false.
	LockoutMessage = "The new key policy will not allow you to update the key policy in the future."
)

// overlyPermissive returns AWS's message for ErrOverlyPermissive, about an encryption context
// or a tag.
func overlyPermissive(what string) string {
	return "OverlyPermissiveCondition: Using the ForAllValues set operator with a single-valued condition key matches requests without the specified " +
		what + " or with an unspecified " + what + ". To fix, remove ForAllValues."
}

// NoStatement is used in place of the position of a statement: in a SyntaxError
// about something outside of the statements, and in a Decision that does not
// rest on a statement.
const NoStatement = -1

// A SyntaxError says what is wrong with a document, and where.
type SyntaxError struct {
	// Err is ErrMalformed, ErrOverlyPermissive, ErrInvalidPrincipal or ErrTooLong.
	Err error
	// Statement is the statement's position, from 0, or NoStatement.
	Statement int
	// Element is the policy element that is wrong, such as "Condition" or
	// "Principal.AWS"; empty if it is none in particular.
	Element string
	// Detail says what was found or expected. It may quote up to a few dozen
	// bytes of the document, escaped.
	Detail string
}

// Error says what is wrong and where, for people. The text depends only on the
// submitted document and may be sent to its sender.
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

// Unwrap returns the sentinel error.
func (e *SyntaxError) Unwrap() error { return e.Err }

// ClientMessage returns the message for an API client: AWS's own if it is
// known, otherwise that of Error.
func (e *SyntaxError) ClientMessage() string {
	switch e.Err {
	case ErrInvalidPrincipal:
		return InvalidPrincipalMessage
	case ErrOverlyPermissive:
		return e.Detail
	}
	return e.Error()
}

// quoted renders part of a document for an error message: escaped, so that it
// cannot forge a log line, and cut to a reasonable length.
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
