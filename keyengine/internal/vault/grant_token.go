package vault

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A grant token names a grant. It is not secret and confers nothing, because grants apply
// everywhere as soon as CreateGrant has returned. Tokens are authenticated, so that every
// unsealed node accepts exactly the tokens that the cluster issued, without storing them.
//
// Format 1, in base64: format(1) generation(4) nonce(16) account(5) key(16) grant(32), the
// key's Region with its length(1) before it, and a MAC(32) of everything before it, by the
// keyring's generation that the token names. The nonce makes each token different.
const (
	grantTokenFormat = 1
	grantTokenFixed  = 1 + 4 + 16 + 5 + 16 + 32 + 1
	grantTokenMAC    = "grant token v1"
)

// GrantToken returns a token for a grant.
func (v *Vault) GrantToken(key fsm.KeyID, grant [32]byte) (string, error) {
	o, err := v.Current()
	if err != nil {
		return "", err
	}
	generation := o.ring.Settled()
	b := make([]byte, 0, grantTokenFixed+len(key.Region)+sha256.Size)
	b = append(b, grantTokenFormat)
	b = binary.BigEndian.AppendUint32(b, generation)
	b = append(b, make([]byte, 16)...)
	_, _ = rand.Read(b[5:21]) // never fails: crypto/rand ends the process instead
	b = key.Account.Append(b)
	b = append(b, key.ID[:]...)
	b = append(b, grant[:]...)
	b = append(b, byte(len(key.Region))) // Regions have at most 32 bytes
	b = append(b, key.Region...)
	tag, err := o.mac(generation, grantTokenMAC, b)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(append(b, tag[:]...)), nil
}

// GrantOfToken parses a token. It returns ErrInvalidGrantToken for everything that the
// cluster did not issue. A valid token does not imply that the grant still exists.
func (v *Vault) GrantOfToken(token string) (key fsm.KeyID, grant [32]byte, err error) {
	o, err := v.Current()
	if err != nil {
		return key, grant, err
	}
	if strings.ContainsAny(token, "\r\n") { // ignored by the decoder
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	b, err := base64.StdEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < grantTokenFixed+sha256.Size || b[0] != grantTokenFormat {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	body, tag := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	want, err := o.mac(binary.BigEndian.Uint32(body[1:]), grantTokenMAC, body)
	if errors.Is(err, keymat.ErrGeneration) {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	if err != nil {
		return key, grant, err
	}
	if subtle.ConstantTimeCompare(want[:], tag) != 1 || int(body[grantTokenFixed-1]) != len(body)-grantTokenFixed {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	account, ids, ok := fsm.CutAccount(body[21:])
	if !ok {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	return fsm.KeyID{Account: account, Region: string(body[grantTokenFixed:]), ID: [16]byte(ids)}, [32]byte(ids[16:]), nil
}
