package vault

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/policy"
)

// MaxCredentialID is the longest id of a credential that the state takes.
const MaxCredentialID = 1024

// ErrForged is returned for a credential in the state that no unsealed node wrote as it
// is.
var ErrForged = errors.New("credential was not written by an unsealed node")

// credentialBinding ties a secret to its id and to the principal that it proves:
// a credential whose principal was edited on disk does not open.
func credentialBinding(c *fsmpb.Credential) keymat.Binding {
	return keymat.Binding{Object: fsm.CredentialID(fsm.Account(c.Account), c.Id), Spec: "ACCESS_KEY", Usage: c.Principal}
}

// credentialCacheKey names a credential in caches of keys derived from it.
func credentialCacheKey(id string) [16]byte {
	h := sha256.Sum256([]byte(id))
	return [16]byte(h[:])
}

// proof is what an identity carries of the credential that proved it: a MAC over
// everything about the credential that would make another one of it. It is made
// with the keyring, so that nobody who only has the replicated state can make up
// an identity.
func (o *Opened) proof(c *fsmpb.Credential) ([32]byte, error) {
	return o.mac(o.ring.Newest(), "credential proof v2", credentialText(c))
}

// sessionProof is the same for a session of the credential, and another one once the
// sessions were revoked. To revoke them must not disturb who uses the access key
// itself, even for a request that a node which is behind has authenticated.
func (o *Opened) sessionProof(c *fsmpb.Credential) ([32]byte, error) {
	return o.mac(o.ring.Newest(), "session proof v1", epochText(c))
}

// credentialText is what identifies a credential, without what may change of it.
func credentialText(c *fsmpb.Credential) []byte {
	b := make([]byte, 0, 512)
	b = fsm.Account(c.Account).Append(b)
	for _, f := range [][]byte{[]byte(c.Id), []byte(c.Principal), c.WrappedSecret} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(c.Kind))
	return binary.BigEndian.AppendUint32(b, c.Generation)
}

// epochText is that with the epoch of the sessions.
func epochText(c *fsmpb.Credential) []byte {
	return binary.BigEndian.AppendUint32(credentialText(c), c.SessionEpoch)
}

// signedText is what a credential's MAC is over: all that it gives authority by.
func signedText(c *fsmpb.Credential) []byte {
	b := append([]byte("conclave credential v1\x00"), epochText(c)...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Created))
	if c.Active {
		return append(b, 1)
	}
	return append(b, 0)
}

// SignCredential sets a credential's MAC, which is made anew with every change.
func (o *Opened) SignCredential(c *fsmpb.Credential) error {
	key, err := o.ring.DeriveMAC(o.ring.Newest(), keymat.PurposeCredential)
	if err != nil {
		return Gone(err)
	}
	tag, err := key.Sum(signedText(c))
	c.Mac, c.MacGeneration = tag[:], key.Generation()
	return Gone(err)
}

// genuine reports whether an unsealed node wrote a credential as it is.
func (o *Opened) genuine(c *fsmpb.Credential) (bool, error) {
	key, err := o.ring.DeriveMAC(c.MacGeneration, keymat.PurposeCredential)
	if errors.Is(err, keymat.ErrGeneration) {
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

// Known is whom a credential stands for, with what an identity carries of it: the
// proof of the credential itself, or that of its sessions.
type Known struct {
	Principal policy.Principal
	Proof     [32]byte
	Sessions  [32]byte
}

// Identify tells whom a credential stands for, from what was made of it before for as
// long as the state has that very credential (Vault.Sweep forgets it then). It is shared
// and not written to. The error is ErrForged for a credential that no unsealed node
// wrote, or that was edited since.
func (o *Opened) Identify(c *fsmpb.Credential) (*Known, error) {
	if k, ok := o.identities.get(c); ok {
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
	if k.Principal, err = policy.ParseCaller(c.Principal); err != nil {
		return nil, fmt.Errorf("credential %s: %w", c.Id, err)
	}
	if k.Proof, err = o.proof(c); err != nil {
		return nil, err
	}
	if k.Sessions, err = o.sessionProof(c); err != nil {
		return nil, err
	}
	o.identities.put(c, k)
	return k, nil
}

// WrapSecret gives an access key its secret, wrapped.
func (o *Opened) WrapSecret(c *fsmpb.Credential, secret []byte) (err error) {
	c.Generation, c.WrappedSecret, err = o.ring.WrapFor(keymat.PurposeCredential, credentialBinding(c), secret)
	return Gone(err)
}

// WithSecret lends an access key's secret to use.
func (o *Opened) WithSecret(c *fsmpb.Credential, use func(secret []byte) error) error {
	s, err := o.ring.Unwrap(c.Generation, keymat.PurposeCredential, credentialBinding(c), c.WrappedSecret)
	if err != nil {
		return Gone(err)
	}
	defer s.Destroy()
	return s.With(use)
}

// WithSigningKey lends to use the key that derive makes of an access key's secret for a
// date, a region and a service: size bytes, which are kept for the next time unless
// derive fails. Its error, which callers who wait for the same key get too, and that of
// use are returned as they are.
func (o *Opened) WithSigningKey(c *fsmpb.Credential, size int, date, region, service string, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	id := keymat.NewCacheID(credentialCacheKey(c.Id), [16]byte{}, c.WrappedSecret,
		c.Principal, strconv.Itoa(int(c.Generation)), date, region, service)
	return Gone(o.signing.Use(id, func() (key *keymat.Secret, err error) {
		err = o.WithSecret(c, func(secret []byte) error {
			key, err = o.arena.Fill(size, func(dst []byte) error { return derive(dst, secret) })
			return err
		})
		return key, err
	}, use))
}
