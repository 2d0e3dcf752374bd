package keyengine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	secretLen      = 40
	secretAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+"

	// maxCredentialID is the longest id that the state takes.
	maxCredentialID = 1024
)

// errUnrecognized is AWS's answer to a credential that is not, or no longer,
// good for anything. It does not say which.
var errUnrecognized = kmsapi.Errorf(kmsapi.ErrUnrecognizedClient, "The security token included in the request is invalid.")

// randomText fills b with characters of an alphabet whose length divides 256.
func randomText(b []byte, alphabet string) {
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	for i, c := range b {
		b[i] = alphabet[int(c)%len(alphabet)]
	}
}

// newAccessKey makes an access key for a principal of an account. The secret is the caller's
// to destroy.
func newAccessKey(arena *keymat.Arena, ring *keymat.Keyring, account fsm.Account, principal string, created int64) (*fsmpb.Credential, *keymat.Secret, error) {
	var noise [fsm.AccessKeyNoise]byte
	_, _ = rand.Read(noise[:]) // never fails: crypto/rand ends the process instead
	secret, err := arena.Fill(secretLen, func(b []byte) error {
		randomText(b, secretAlphabet)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	c := &fsmpb.Credential{
		Account: uint64(account), Id: fsm.AccessKeyID(fsm.LongTerm, account, noise), Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY, Principal: principal, Active: true, Created: created,
	}
	err = secret.With(func(b []byte) (err error) {
		c.Generation, c.WrappedSecret, err = ring.WrapFor(keymat.PurposeCredential, credentialBinding(c), b)
		return err
	})
	if err == nil {
		err = signCredential(ring, c)
	}
	if err != nil {
		secret.Destroy()
		return nil, nil, fmt.Errorf("wrapping a new access key: %w", err)
	}
	return c, secret, nil
}

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

// isAccessKeyID reports whether an id is one that a cluster could have made: nothing
// else is worth looking for twice.
func isAccessKeyID(id string) bool {
	kind, _, ok := fsm.ParseAccessKeyID(id)
	return ok && kind == fsm.LongTerm
}

// proof is what an identity carries of the credential that proved it: a MAC over
// everything about the credential that would make another one of it. It is made
// with the keyring, so that nobody who only has the replicated state can make up
// an identity.
func (o *opened) proof(c *fsmpb.Credential) ([32]byte, error) {
	return o.mac(o.ring.Newest(), "credential proof v2", credentialText(c))
}

// sessionProof is the same for a session of the credential, and another one once the
// sessions were revoked. To revoke them must not disturb who uses the access key
// itself, even for a request that a node which is behind has authenticated.
func (o *opened) sessionProof(c *fsmpb.Credential) ([32]byte, error) {
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

// signCredential sets a credential's MAC, which is made anew with every change.
func signCredential(ring *keymat.Keyring, c *fsmpb.Credential) error {
	key, err := ring.DeriveMAC(ring.Newest(), keymat.PurposeCredential)
	if err != nil {
		return err
	}
	tag, err := key.Sum(signedText(c))
	c.Mac, c.MacGeneration = tag[:], key.Generation()
	return err
}

// genuine reports whether an unsealed node wrote a credential as it is.
func (o *opened) genuine(c *fsmpb.Credential) (bool, error) {
	key, err := o.ring.DeriveMAC(c.MacGeneration, keymat.PurposeCredential)
	if errors.Is(err, keymat.ErrGeneration) {
		return false, nil
	}
	if err != nil {
		return false, gone(err)
	}
	err = key.Verify(signedText(c), c.Mac)
	if errors.Is(err, keymat.ErrMAC) {
		return false, nil
	}
	return err == nil, gone(err)
}

// known is the identity that a credential stands for, with the proof of its sessions.
type known struct {
	Identity
	sessions [32]byte
}

// identify makes the identity that a credential stands for, or gives the one that
// was made before, for as long as the state has that very credential (vault.sweep
// forgets it then). It is shared and not written to. A credential that no unsealed
// node wrote, or that was edited since, stands for nobody.
func (e *Engine) identify(o *opened, c *fsmpb.Credential) (*known, error) {
	if id, ok := o.identities.get(c); ok {
		return id, nil
	}
	ok, err := o.genuine(c)
	if err != nil {
		return nil, err
	}
	if !ok {
		e.metrics.forged.Inc()
		e.log.Error("a credential in the state was not written by an unsealed node; it is refused", "credential", c.Id, "principal", c.Principal)
		return nil, errUnrecognized
	}
	p, err := policy.ParseCaller(c.Principal)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", c.Id, err)
	}
	id := &known{Identity: Identity{principal: p, credential: c.Id}}
	if id.proof, err = o.proof(c); err != nil {
		return nil, err
	}
	if id.sessions, err = o.sessionProof(c); err != nil {
		return nil, err
	}
	o.identities.put(c, id)
	return id, nil
}

// good reports whether c, which may be nil, is a credential that can prove
// something now.
func good(c *fsmpb.Credential, kind fsmpb.CredentialKind) bool {
	return c != nil && c.Active && c.Kind == kind
}

// find looks for a good credential. When this node's state has none, it looks
// once more in a state that has everything that was committed when the caller
// asked, as a credential made on another node just before must work here.
func (e *Engine) find(ctx context.Context, id string, kind fsmpb.CredentialKind) (*fsmpb.Credential, error) {
	s := e.replica.State()
	account := fsm.AccountOf(s) // which never changes
	if c, _ := s.Credential(account, id); good(c, kind) {
		return c, nil
	}
	fresh, err := e.freshState(ctx)
	if err != nil {
		return nil, err
	}
	if c, _ := fresh.Credential(account, id); good(c, kind) {
		return c, nil
	}
	return nil, errUnrecognized
}

// newestState marks the context of an evaluation on a state that nothing can
// overtake: ProposeExclusive holds the log back meanwhile, and a barrier would
// wait for itself.
type newestState struct{}

func withNewestState(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestState{}, true)
}

// admit decides whether the caller is still who it proved to be, on the state of
// the evaluation, and notes the credential. If not, it looks again on a fresh
// state, which the evaluation then continues with: a refusal must not rest on a
// state that is behind.
func (ev *eval) admit() error {
	o, err := ev.engine.vault.current()
	if err != nil {
		return err
	}
	err = ev.admitOn(o)
	if err == nil || !errors.Is(err, errUnrecognized) || ev.ctx.Value(newestState{}) != nil {
		return err
	}
	fresh, ferr := ev.engine.freshState(ev.ctx)
	if ferr != nil {
		return ferr
	}
	if fresh == ev.state {
		return err
	}
	ev.state, ev.reads = fresh, nil
	return ev.admitOn(o)
}

func (ev *eval) admitOn(o *opened) error {
	id := &ev.caller.Identity
	if id.credential == "" {
		return errUnrecognized
	}
	c := ev.credential(id.credential)
	if c == nil || !c.Active || c.Principal != id.principal.ARN {
		return errUnrecognized
	}
	now, err := ev.engine.identify(o, c)
	if err != nil {
		return err
	}
	want := now.proof
	if id.session != "" {
		want = now.sessions
	}
	if !equal(want, id.proof) {
		return errUnrecognized
	}
	return nil
}
