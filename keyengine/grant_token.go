package keyengine

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A grant token names a grant. It is no secret and gives nothing: grants are good
// everywhere from the moment on that CreateGrant returns. It is authenticated, so
// that every unsealed node knows the tokens that the cluster gave out, and none that
// it did not, without keeping them.
//
// Format 1, in base64: format(1) generation(4) nonce(16) account(5) key(16) grant(32), the
// key's Region with its length(1) before it, and a MAC(32) of all before that, by
// the keyring's generation that the token names. The nonce makes each token another.
const (
	grantTokenFormat = 1
	grantTokenFixed  = 1 + 4 + 16 + 5 + 16 + 32 + 1
	grantTokenMAC    = "grant token v1"
)

// grantToken makes a token of a grant.
func (v *vault) grantToken(key fsm.KeyID, grant [32]byte) (string, error) {
	o, err := v.current()
	if err != nil {
		return "", err
	}
	generation := o.ring.Newest()
	b := make([]byte, 0, grantTokenFixed+len(key.Region)+sha256.Size)
	b = append(b, grantTokenFormat)
	b = binary.BigEndian.AppendUint32(b, generation)
	b = append(b, make([]byte, 16)...)
	_, _ = rand.Read(b[5:21]) // never fails: crypto/rand ends the process instead
	b = key.Account.Append(b)
	b = append(b, key.ID[:]...)
	b = append(b, grant[:]...)
	b = append(b, byte(len(key.Region))) // Regions have 32 bytes at most
	b = append(b, key.Region...)
	tag, err := o.mac(generation, grantTokenMAC, b)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(append(b, tag[:]...)), nil
}

// grantOfToken reads a token. The error is ErrInvalidGrantToken for everything that
// the cluster did not give out; that the grant is there still, a token does not say.
func (v *vault) grantOfToken(token string) (key fsm.KeyID, grant [32]byte, err error) {
	o, err := v.current()
	if err != nil {
		return key, grant, err
	}
	if strings.ContainsAny(token, "\r\n") { // which decoding would pass over
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
	if !equal(want, [32]byte(tag)) || int(body[grantTokenFixed-1]) != len(body)-grantTokenFixed {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	account, ids, ok := fsm.CutAccount(body[21:])
	if !ok {
		return key, grant, kmsapi.ErrInvalidGrantToken
	}
	return fsm.KeyID{Account: account, Region: string(body[grantTokenFixed:]), ID: [16]byte(ids)}, [32]byte(ids[16:]), nil
}

// checkTokens refuses grant tokens that the cluster did not give out for this
// Region. What is true of a genuine one, that its grant is there and whose it is,
// the state says already, so it changes nothing.
func (ev *eval) checkTokens(tokens []string) error {
	for _, token := range tokens {
		if _, _, err := ev.tokenGrant(token); err != nil {
			return err
		}
	}
	return nil
}

// tokenGrant is the grant of this account and Region that a token names.
func (ev *eval) tokenGrant(token string) (fsm.KeyID, [32]byte, error) {
	key, grant, err := ev.engine.vault.grantOfToken(token)
	if err == nil && (key.Account != accountOf(ev) || key.Region != ev.region()) {
		err = kmsapi.ErrInvalidGrantToken
	}
	return key, grant, err
}
