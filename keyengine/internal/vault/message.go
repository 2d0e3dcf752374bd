package vault

import "github.com/conclavekms/conclave/keyengine/internal/keymat"

const (
	messageFormat = 4
	// MaxMessage is the length of the longest encoded message of a denial.
	MaxMessage = 8192
)

var messageBinding = keymat.Binding{Spec: "AUTHORIZATION_MESSAGE"}

// SealMessage returns an encoded message with the given contents. It has the form of session
// tokens, and the format 4.
func (o *Opened) SealMessage(contents []byte) (text string, err error) {
	return o.sealToken(messageFormat, messageBinding, contents)
}

// OpenMessage returns the contents of an encoded message. It returns ErrToken for anything
// but an unchanged message of this cluster.
func (o *Opened) OpenMessage(text string) (contents []byte, err error) {
	return o.openToken(messageFormat, MaxMessage, messageBinding, text)
}
