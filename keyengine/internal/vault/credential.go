package vault

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/policy"
)

// MaxCredentialID is the maximum length of a credential's id in the state.
const MaxCredentialID = 1024

// ErrForged is returned for a credential in the state that no unsealed node wrote in this
// form.
var ErrForged = errors.New("credential was not written by an unsealed node")

// credentialBinding binds a secret to the credential's id and principal. If the principal
// was changed on disk, the secret does not decrypt.
func credentialBinding(c *fsmpb.Credential) keymat.Binding {
	return keymat.Binding{Object: fsm.CredentialID(fsm.Account(c.Account), c.Id), Spec: "ACCESS_KEY", Usage: c.Principal}
}

// credentialCacheKey names a credential in caches of keys derived from it.
func credentialCacheKey(id string) [16]byte {
	h := sha256.Sum256([]byte(id))
	return [16]byte(h[:])
}

// proof returns what an identity keeps to identify its credential: a MAC over the parts of
// the credential that never change. It is keyed from the keyring, so an identity cannot be
// forged with the replicated state alone.
func (o *Opened) proof(c *fsmpb.Credential) ([32]byte, error) {
	return o.mac(o.ring.Oldest(), "credential proof v2", credentialText(c))
}

// sessionProof is proof for a session of the credential. It changes when the sessions are
// revoked. That must not affect requests that use the access key itself, including those
// authenticated by a node that is behind.
func (o *Opened) sessionProof(c *fsmpb.Credential) ([32]byte, error) {
	return o.mac(o.ring.Oldest(), "session proof v1", epochText(c))
}

// credentialText encodes the parts of a credential that never change. The secret stands in it
// as it was wrapped at first, whatever wraps it now.
func credentialText(c *fsmpb.Credential) []byte {
	b := make([]byte, 0, 512)
	b = fsm.Account(c.Account).Append(b)
	wrapped, generation := c.WrappedSecret, c.Generation
	if c.FirstGeneration != 0 {
		wrapped, generation = c.FirstWrapped, c.FirstGeneration
	}
	for _, f := range [][]byte{[]byte(c.Id), []byte(c.Principal), wrapped} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(c.Kind))
	b = binary.BigEndian.AppendUint64(b, uint64(c.BreakGlassUntil))
	return binary.BigEndian.AppendUint32(b, generation)
}

// epochText is credentialText with the epoch of the sessions.
func epochText(c *fsmpb.Credential) []byte {
	return binary.BigEndian.AppendUint32(credentialText(c), c.SessionEpoch)
}

// signedText encodes everything that determines a credential's authority, for its MAC.
func signedText(c *fsmpb.Credential) []byte {
	b := append([]byte("conclave credential v1\x00"), epochText(c)...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Created))
	active := byte(0)
	if c.Active {
		active = 1
	}
	b = append(b, active)
	if c.FirstGeneration != 0 { // the text above has the first wrapping
		b = binary.BigEndian.AppendUint32(b, c.Generation)
		b = append(b, c.WrappedSecret...)
	}
	return b
}

// SignCredential sets a credential's MAC. It must be called after every change.
func (o *Opened) SignCredential(c *fsmpb.Credential) error {
	key, err := o.ring.DeriveMAC(o.ring.Newest(), keymat.PurposeCredential)
	if err != nil {
		return Gone(err)
	}
	tag, err := key.Sum(signedText(c))
	c.Mac, c.MacGeneration = tag[:], key.Generation()
	return Gone(err)
}

// genuine reports whether an unsealed node wrote a credential in this form.
func (o *Opened) genuine(c *fsmpb.Credential) (bool, error) {
	key, err := o.ring.DeriveMAC(c.MacGeneration, keymat.PurposeCredential)
	if errors.Is(err, keymat.ErrGeneration) {
		if c.MacGeneration > o.ring.Newest() {
			return false, ErrBehind
		}
		return false, nil
	}
	if err != nil {
		return false, Gone(err)
	}
	err = key.Verify(signedText(c), c.Mac)
	if errors.Is(err, keymat.ErrMAC) {
		return false, nil
	}
	return err == nil, Gone(err)
}

// UserPrefix is what the unique ids of users begin with. The credential of a user has the
// unique id as its principal, since the user's name and path may change.
const UserPrefix = "AIDA"

// Known is the principal of a credential, with the proofs that identities keep of it: one
// for the credential itself and one for its sessions.
type Known struct {
	Principal policy.Principal // without an ARN for a user, whom the state knows
	User      string           // the unique id of the user, or ""
	Proof     [32]byte
	Sessions  [32]byte
	// Named caches the user.
	Named atomic.Pointer[Named]
}

// Named is a user with its principal, as they are in the states with the same objects.
type Named struct {
	Objects   uint64 // see fsm.State.Objects
	User      *fsmpb.User
	Principal policy.Principal
}

// Identify returns the principal of a credential. The result is cached while the state has
// this version of the credential, until Vault.Sweep; it is shared, and nothing but Named may be changed.
// Identify returns ErrForged if no unsealed node wrote the credential in this form.
func (o *Opened) Identify(c *fsmpb.Credential) (*Known, error) {
	if k, ok := o.identities.Get(c); ok {
		return k, nil
	}
	ok, err := o.genuine(c)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrForged
	}
	k := new(Known)
	if strings.HasPrefix(c.Principal, UserPrefix) {
		k.User = c.Principal
	} else if k.Principal, err = policy.ParseCaller(c.Principal); err != nil {
		return nil, fmt.Errorf("credential %s: %w", c.Id, err)
	}
	if k.Proof, err = o.proof(c); err != nil {
		return nil, err
	}
	if k.Sessions, err = o.sessionProof(c); err != nil {
		return nil, err
	}
	o.identities.Put(c, k)
	return k, nil
}

// WrapSecret wraps the secret of an access key and stores it in c.
func (o *Opened) WrapSecret(c *fsmpb.Credential, secret []byte) (err error) {
	c.Generation, c.WrappedSecret, err = o.ring.WrapFor(keymat.PurposeCredential, credentialBinding(c), secret)
	return Gone(err)
}

// WithSecret calls use with an access key's secret.
func (o *Opened) WithSecret(c *fsmpb.Credential, use func(secret []byte) error) error {
	s, err := o.ring.Unwrap(c.Generation, keymat.PurposeCredential, credentialBinding(c), c.WrappedSecret)
	if err != nil {
		return behind(err)
	}
	defer s.Destroy()
	return s.With(use)
}

// WithSigningKey calls use with the key that derive makes from an access key's secret for a
// date, a Region and a service. The key has size bytes and is cached unless derive fails.
// Errors of use and derive are returned unchanged; an error of derive is also returned to
// callers that wait for the same key.
func (o *Opened) WithSigningKey(c *fsmpb.Credential, size int, date, region, service string, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	id := keymat.NewCacheID(credentialCacheKey(c.Id), [16]byte{}, c.WrappedSecret,
		c.Principal, strconv.Itoa(int(c.Generation)), date, region, service)
	return o.signingKey(id, size, func(use func([]byte) error) error { return o.WithSecret(c, use) }, derive, use)
}

// signingKey calls use with the cached key of that id, or makes it from the secret.
func (o *Opened) signingKey(id keymat.CacheID, size int, secret func(use func([]byte) error) error, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	return Gone(o.signing.Use(id, func() (key *keymat.Secret, err error) {
		err = secret(func(s []byte) error {
			key, err = o.arena.Fill(size, func(dst []byte) error { return derive(dst, s) })
			return err
		})
		return key, err
	}, use))
}
