package vault

import (
	"encoding/base64"
	"errors"
	"strings"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// MaxMessage is the length of the longest encoded message of a denial.
const MaxMessage = 8192

// messageContext keeps encoded messages apart from everything else that is encrypted for the
// same purpose.
var messageContext = []byte("authorization message v1")

// SealMessage returns an encoded message with the given contents, in URL-safe base64. There
// may be very many of them, so each has a key of its own.
func (o *Opened) SealMessage(contents []byte) (text string, err error) {
	b, err := o.ring.SealTransit(keymat.PurposeToken, messageContext, contents)
	if err != nil {
		return "", Gone(err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// OpenMessage returns the contents of an encoded message. It returns ErrToken for anything
// but an unchanged message of this cluster.
func (o *Opened) OpenMessage(text string) (contents []byte, err error) {
	if len(text) > MaxMessage || strings.ContainsAny(text, "\r\n") { // ignored by the decoder
		return nil, ErrToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, ErrToken
	}
	contents, err = o.ring.OpenTransit(keymat.PurposeToken, messageContext, b)
	if errors.Is(err, keymat.ErrTransit) {
		return nil, ErrToken
	}
	return contents, Gone(err)
}
