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
	"github.com/conclavekms/conclave/keyengine/internal/record"
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

// NewAccessKey creates an access key for a principal of an account. created and, for a
// break-glass access key, until are in Unix nanoseconds; until is 0 for all others. The caller
// must destroy the secret.
func NewAccessKey(arena *keymat.Arena, o *vault.Opened, account fsm.Account, principal string, created, until int64) (*fsmpb.Credential, *keymat.Secret, error) {
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
		Account: uint64(account), Id: accesskey.ID(accesskey.LongTerm, account, noise), Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY, Principal: principal, Active: true, Created: created, BreakGlassUntil: until,
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

// CheckAnswerKey checks the key that the secret of a new access key is to be encrypted to; see
// keymat.SealTo. Its error is an ErrValidation.
func CheckAnswerKey(key []byte) error {
	if _, err := keymat.SealTo(key, nil, nil); err != nil {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The answer key must be an uncompressed point on P-256.")
	}
	return nil
}

// SecretInfo binds the encrypted secret of an access key to its id.
func SecretInfo(id string) []byte { return []byte("conclave access key v1\x00" + id) }

// identity returns the identity of a credential that was used without a session.
func (a *Authenticator) identity(s *fsm.State, c *fsmpb.Credential, k *vault.Known) (Identity, error) {
	e, err := entityOf(s, fsm.Account(c.Account), c, k)
	return Identity{principal: e.Principal, account: e.Account, credential: c.Id, proof: k.Proof}, err
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

// find returns an active credential with its principal. If this node's state does not have
// it, find looks again in a state with everything that was committed before the call,
// because a credential that another node has just created must work here.
func (a *Authenticator) find(ctx context.Context, o *vault.Opened, account fsm.Account, id string, kind fsmpb.CredentialKind) (*fsmpb.Credential, Identity, error) {
	look := func(s *fsm.State) (*fsmpb.Credential, Identity, error) {
		c, _ := s.Credential(account, id)
		if !good(c, kind) {
			return nil, Identity{}, ErrUnrecognized
		}
		if c.BreakGlassUntil != 0 && record.Now(s, a.cfg.Clock).UnixNano() >= c.BreakGlassUntil {
			// Whoever has not proved to have the secret must not learn that there was one.
			return nil, Identity{}, ErrUnrecognized
		}
		known, err := a.Identify(o, c)
		if err != nil {
			return nil, Identity{}, err
		}
		who, err := a.identity(s, c, known)
		return c, who, err
	}
	return onFresh(ctx, a, look)
}

// onFresh looks something up in this node's state and, if it is not there, in one with
// everything that was committed before the call.
func onFresh[C any](ctx context.Context, a *Authenticator, look func(*fsm.State) (C, Identity, error)) (C, Identity, error) {
	c, id, err := look(a.cfg.Replica.State())
	if !errors.Is(err, ErrUnrecognized) {
		return c, id, err
	}
	fresh, err := a.fresh.state(ctx)
	if err != nil {
		var none C
		return none, Identity{}, err
	}
	return look(fresh)
}

// Admit checks that an identity is still valid, given its credential in a state, which is
// nil if it does not exist, and returns its principal in that state. For temporary
// credentials, the credential is the one that the session was opened with, if any.
func (a *Authenticator) Admit(o *vault.Opened, s *fsm.State, id *Identity, c *fsmpb.Credential) (Entity, error) {
	t := id.temporary
	if t != nil && t.Role != "" {
		e, err := roleEntity(s, t)
		if err == nil && ended(s, &e) {
			err = ErrSessionEnded
		}
		return e, err
	}
	if t != nil && s.Time() >= t.Expires {
		return Entity{}, ErrSessionEnded
	}
	if c == nil || !c.Active {
		return Entity{}, ErrUnrecognized
	}
	now, err := a.Identify(o, c)
	if err != nil {
		return Entity{}, err
	}
	want, have := now.Proof, id.proof
	switch {
	case t != nil:
		want, have = now.Sessions, [32]byte(t.ParentProof)
	case id.session != "":
		want = now.Sessions
	}
	if !equal(want, have) {
		return Entity{}, ErrUnrecognized
	}
	if c.BreakGlassUntil != 0 && s.Time() >= c.BreakGlassUntil {
		return Entity{}, ErrSessionEnded
	}
	e, err := entityOf(s, id.account, c, now)
	e.Session, e.BreakGlassUntil = t, c.BreakGlassUntil
	return e, err
}

// ErrSessionEnded is the answer to temporary credentials that have expired or were revoked, and to
// callers whose break-glass access key has ended since they were authenticated. Clients ask for new ones when they get it.
var ErrSessionEnded = kmsapi.Errorf(kmsapi.ErrExpiredToken, "The security token included in the request is expired")
