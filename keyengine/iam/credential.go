package iam

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// SecretLen is the length of the secret of an access key.
	SecretLen      = 40
	secretAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+"
)

// ErrUnrecognized is AWS's answer to a credential that is unknown or no longer valid. It
// does not say which.
var ErrUnrecognized = kmsapi.Errorf(kmsapi.ErrUnrecognizedClient, "The security token included in the request is invalid.")

// randomText fills b with random characters of an alphabet whose length divides 256.
func randomText(b []byte, alphabet string) {
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	for i, c := range b {
		b[i] = alphabet[int(c)%len(alphabet)]
	}
}

// NewAccessKey creates an access key for a principal of an account. The caller must destroy
// the secret.
func NewAccessKey(arena *keymat.Arena, o *vault.Opened, account fsm.Account, principal string, created int64) (*fsmpb.Credential, *keymat.Secret, error) {
	var noise [accesskey.Noise]byte
	_, _ = rand.Read(noise[:]) // never fails: crypto/rand ends the process instead
	secret, err := arena.Fill(SecretLen, func(b []byte) error {
		randomText(b, secretAlphabet)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	c := &fsmpb.Credential{
		Account: uint64(account), Id: accesskey.ID(accesskey.LongTerm, account, noise), Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY, Principal: principal, Active: true, Created: created,
	}
	err = secret.With(func(b []byte) error { return o.WrapSecret(c, b) })
	if err == nil {
		err = o.SignCredential(c)
	}
	if err != nil {
		secret.Destroy()
		return nil, nil, fmt.Errorf("wrapping a new access key: %w", err)
	}
	return c, secret, nil
}

// identity returns the identity of a credential that was used without a session.
func identity(c *fsmpb.Credential, k *vault.Known) Identity {
	return Identity{principal: k.Principal, credential: c.Id, proof: k.Proof}
}

// Identify returns the principal of a credential, with what proofs are compared to. It
// returns ErrUnrecognized for a credential that no unsealed node wrote, or that was changed
// by others since.
func (a *Authenticator) Identify(o *vault.Opened, c *fsmpb.Credential) (*vault.Known, error) {
	known, err := o.Identify(c)
	if errors.Is(err, vault.ErrForged) {
		a.cfg.Forged.Inc()
		a.cfg.Log.Error("a credential in the state was not written by an unsealed node; it is refused", "credential", c.Id, "principal", c.Principal)
		return nil, ErrUnrecognized
	}
	return known, err
}

// good reports whether c, which may be nil, is an active credential of that kind.
func good(c *fsmpb.Credential, kind fsmpb.CredentialKind) bool {
	return c != nil && c.Active && c.Kind == kind
}

// find returns an active credential. If this node's state does not have it, find looks
// again in a state with everything that was committed before the call, because a credential
// that another node has just created must work here.
func (a *Authenticator) find(ctx context.Context, id string, kind fsmpb.CredentialKind) (*fsmpb.Credential, error) {
	s := a.cfg.Replica.State()
	account := fsm.AccountOf(s) // never changes
	if c, _ := s.Credential(account, id); good(c, kind) {
		return c, nil
	}
	fresh, err := a.fresh.state(ctx)
	if err != nil {
		return nil, err
	}
	if c, _ := fresh.Credential(account, id); good(c, kind) {
		return c, nil
	}
	return nil, ErrUnrecognized
}

// Admit returns an error unless an identity is still valid, given its credential in a
// state, which is nil if it does not exist.
func (a *Authenticator) Admit(o *vault.Opened, id *Identity, c *fsmpb.Credential) error {
	if c == nil || !c.Active || c.Principal != id.principal.ARN {
		return ErrUnrecognized
	}
	now, err := a.Identify(o, c)
	if err != nil {
		return err
	}
	want := now.Proof
	if id.session != "" {
		want = now.Sessions
	}
	if !equal(want, id.proof) {
		return ErrUnrecognized
	}
	return nil
}
