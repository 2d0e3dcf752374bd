package vault

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// Temporary credentials are an access key id, a secret and a session token. None of them
// is stored: the token has the contents of the session, encrypted with the keyring and
// bound to the access key id, and the secret follows from the keyring, the id and the token.
//
// The token is the URL-safe base64 of
//
//	format(1) generation(4) contents, encrypted

const (
	temporaryFormat = 2 // tokens of format 1 are those of SignSession
	bearerFormat    = 3
	// MaxToken is the length of the longest session token of temporary credentials, and
	// MaxBearer that of the longest one that is made for such: the contents are the same, with
	// an id and another time.
	MaxToken  = 8192
	MaxBearer = MaxToken + 64

	temporarySecret = "session secret v1"
)

func temporaryBinding(accessKey string) keymat.Binding {
	return keymat.Binding{Object: []byte(accessKey), Spec: "SESSION_TOKEN"}
}

// bearerBinding keeps the tokens of the two kinds apart: a session token of temporary
// credentials, which callers send in the clear and may log, must never do for one that stands
// for the caller.
var bearerBinding = keymat.Binding{Spec: "BEARER_TOKEN"}

// SealTemporary returns the session token with the given contents for an access key.
func (o *Opened) SealTemporary(accessKey string, contents []byte) (token string, err error) {
	return o.sealToken(temporaryFormat, temporaryBinding(accessKey), contents)
}

// SealBearer returns a token with the given contents that stands for a caller, without any
// further proof. It has the form of the session tokens of temporary credentials, and the
// format 3.
func (o *Opened) SealBearer(contents []byte) (token string, err error) {
	return o.sealToken(bearerFormat, bearerBinding, contents)
}

func (o *Opened) sealToken(format byte, binding keymat.Binding, contents []byte) (token string, err error) {
	generation, blob, err := o.ring.WrapSettled(keymat.PurposeToken, binding, contents)
	if err != nil {
		return "", Gone(err)
	}
	b := make([]byte, 0, 5+len(blob))
	b = append(b, format)
	b = binary.BigEndian.AppendUint32(b, generation)
	return base64.RawURLEncoding.EncodeToString(append(b, blob...)), nil
}

// OpenTemporary returns the contents of the session token of an access key. It returns
// ErrToken for anything but an unchanged token of this cluster for that access key.
func (o *Opened) OpenTemporary(accessKey, token string) (contents []byte, err error) {
	return o.openToken(temporaryFormat, MaxToken, temporaryBinding(accessKey), token)
}

// OpenBearer returns the contents of a token of SealBearer. It returns ErrToken for anything
// but an unchanged one of this cluster.
func (o *Opened) OpenBearer(token string) (contents []byte, err error) {
	return o.openToken(bearerFormat, MaxBearer, bearerBinding, token)
}

func (o *Opened) openToken(format byte, limit int, binding keymat.Binding, token string) (contents []byte, err error) {
	if len(token) > limit || strings.ContainsAny(token, "\r\n") { // ignored by the decoder
		return nil, ErrToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 5 || b[0] != format {
		return nil, ErrToken
	}
	s, err := o.ring.Unwrap(binary.BigEndian.Uint32(b[1:]), keymat.PurposeToken, binding, b[5:])
	if err != nil {
		if gone := Gone(err); errors.Is(gone, ErrSealed) {
			return nil, gone
		}
		return nil, ErrToken
	}
	defer s.Destroy()
	err = s.With(func(plain []byte) error {
		contents = append(contents, plain...)
		return nil
	})
	return contents, Gone(err)
}

// WithTemporarySecret calls use with the secret of temporary credentials.
func (o *Opened) WithTemporarySecret(accessKey, token string, use func(secret []byte) error) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 5 {
		return ErrToken
	}
	sum, err := o.mac(binary.BigEndian.Uint32(b[1:]), temporarySecret, []byte(accessKey+"\x00"+token))
	if err != nil {
		return err
	}
	defer clear(sum[:])
	var text [40]byte
	defer clear(text[:])
	base64.StdEncoding.Encode(text[:], sum[:30])
	return use(text[:])
}

// WithTemporarySigningKey is WithSigningKey for temporary credentials, whose token must
// have been opened.
func (o *Opened) WithTemporarySigningKey(accessKey, token string, size int, date, region, service string, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	id := keymat.NewCacheID(credentialCacheKey(accessKey), [16]byte{}, []byte(token), "temporary", strconv.Itoa(size), date, region, service)
	return o.signingKey(id, size, func(use func([]byte) error) error { return o.WithTemporarySecret(accessKey, token, use) }, derive, use)
}
