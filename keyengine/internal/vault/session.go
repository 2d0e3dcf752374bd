package vault

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

const (
	tokenFormat = 1
	tokenMin    = 1 + 4 + 5 + 8 + 16 + 32 + 2 + 1 + 32
	tokenMax    = tokenMin - 1 + MaxCredentialID
	tokenMAC    = "session token v1"
)

// ErrToken is returned for anything that is not a session token of this cluster.
var ErrToken = errors.New("not a session token of this cluster")

// Session is the content of a session token.
type Session struct {
	Account    fsm.Account
	Credential string
	Proof      [32]byte
	ID         [16]byte
	Expires    int64 // in Unix seconds
}

// SignSession returns the token of a session: the URL-safe base64 of
//
//	format(1) generation(4) account(5) expires(8) session(16) proof(32) length(2) credential MAC(32)
//
// where the MAC covers everything before it and is made with the keyring's generation that
// the token names.
func (o *Opened) SignSession(c *Session) (string, error) {
	generation := o.ring.Settled()
	b := make([]byte, 0, tokenMin+len(c.Credential))
	b = append(b, tokenFormat)
	b = binary.BigEndian.AppendUint32(b, generation)
	b = c.Account.Append(b)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Expires))
	b = append(b, c.ID[:]...)
	b = append(b, c.Proof[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Credential)))
	b = append(b, c.Credential...)
	tag, err := o.mac(generation, tokenMAC, b)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(b, tag[:]...)), nil
}

// VerifySession parses and authenticates a token. It returns ErrToken for anything but an
// unchanged token of this cluster. It does not check whether the token has expired.
func (o *Opened) VerifySession(token string) (Session, error) {
	if len(token) < base64.RawURLEncoding.EncodedLen(tokenMin) || len(token) > base64.RawURLEncoding.EncodedLen(tokenMax) ||
		strings.ContainsAny(token, "\r\n") { // ignored by the decoder
		return Session{}, ErrToken
	}
	id := sha256.Sum256([]byte(token))
	if c, ok := o.tokens.Get(id); ok {
		return c, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < tokenMin || b[0] != tokenFormat {
		return Session{}, ErrToken
	}
	body, tag := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	want, err := o.mac(binary.BigEndian.Uint32(body[1:]), tokenMAC, body)
	if errors.Is(err, keymat.ErrGeneration) {
		return Session{}, ErrToken
	}
	if err != nil {
		return Session{}, err
	}
	if subtle.ConstantTimeCompare(want[:], tag) != 1 {
		return Session{}, ErrToken
	}
	account, rest, ok := fsm.CutAccount(body[5:])
	if !ok {
		return Session{}, ErrToken
	}
	r := bytes.NewBuffer(rest)
	c := Session{
		Account: account,
		Expires: int64(binary.BigEndian.Uint64(r.Next(8))),
		ID:      [16]byte(r.Next(16)),
		Proof:   [32]byte(r.Next(32)),
	}
	if n := int(binary.BigEndian.Uint16(r.Next(2))); n != r.Len() {
		return Session{}, ErrToken
	}
	c.Credential = r.String()
	o.tokens.Put(id, c)
	return c, nil
}
