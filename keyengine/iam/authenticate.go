package iam

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// ErrSignature has AWS's message for a wrong signature.
var ErrSignature = kmsapi.Errorf(kmsapi.ErrInvalidSignature, "The request signature we calculated does not match the signature you provided. "+
	"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")

// Authenticator establishes the identity of callers from a signature, a session token or a
// client certificate. It is safe for concurrent use.
type Authenticator struct {
	cfg    AuthenticatorConfig
	fresh  *freshness
	proofs UsedProofs
}

// AuthenticatorConfig configures an Authenticator.
type AuthenticatorConfig struct {
	Vault    *vault.Vault
	Replica  Replica
	Clock    record.Clock
	Log      *slog.Logger
	Events   *record.Recorder
	Withheld *record.Withheld
	Forged   prometheus.Counter // counts uses of credentials that no unsealed node wrote
}

// NewAuthenticator returns an Authenticator. The caller must close it.
func NewAuthenticator(cfg AuthenticatorConfig) *Authenticator {
	return &Authenticator{cfg: cfg, fresh: newFreshness(cfg.Replica)}
}

// Close ends pending look-ups. The Authenticator must not be used afterwards.
func (a *Authenticator) Close() { a.fresh.close() }

// FreshState returns a state with everything that was committed before the call.
func (a *Authenticator) FreshState(ctx context.Context) (*fsm.State, error) {
	return a.fresh.state(ctx)
}

// AuthenticateSigV4 returns the identity that made a signature. The transport has built the
// proof from the request and has checked its date. Errors: ErrUnrecognizedClient if the
// access key is unknown or inactive, ErrInvalidSignature if the signature is wrong,
// ErrUnavailable if the node is sealed or there is no majority.
func (a *Authenticator) AuthenticateSigV4(ctx context.Context, p sigv4.Proof) (Identity, error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return Identity{}, err
	}
	if !p.WellFormed() {
		return Identity{}, ErrSignature
	}
	if kind, account, ok := accesskey.Parse(p.AccessKeyID); ok && kind == accesskey.Session {
		return a.authenticateTemporary(ctx, o, account, &p)
	}
	c, id, err := a.accessKey(ctx, o, p.AccessKeyID)
	if err == nil && p.SessionToken != "" {
		err = ErrUnrecognized // a long-term access key has no session token
	}
	if errors.Is(err, ErrUnrecognized) {
		decoy(&p)
		return Identity{}, err
	}
	if err != nil {
		return Identity{}, err
	}
	if err := verifySigV4(&p, c.Id, &credentialKeys{o, c}); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// decoy does the same work as for a known access key and a wrong signature.
func decoy(p *sigv4.Proof) {
	var key [sigv4.KeySize]byte
	p.Derive(key[:], decoySecret)
	_ = p.SignedBy(key[:])
}

// authenticateTemporary authenticates temporary credentials. The session token is bound to
// the access key, and what it says is checked again by each evaluation.
func (a *Authenticator) authenticateTemporary(ctx context.Context, o *vault.Opened, account fsm.Account, p *sigv4.Proof) (Identity, error) {
	session, err := openTemporaryOf(o, account, p.AccessKeyID, p.SessionToken)
	if errors.Is(err, ErrUnrecognized) {
		decoy(p)
	}
	if err != nil {
		return Identity{}, err
	}
	if err := verifySigV4(p, p.AccessKeyID, &temporaryKeys{o, p.AccessKeyID, p.SessionToken}); err != nil {
		return Identity{}, err
	}
	if record.Now(a.cfg.Replica.State(), a.cfg.Clock).UnixNano() >= session.Expires {
		return Identity{}, ErrSessionEnded
	}
	return a.admittedOnFresh(ctx, o, Identity{account: account, credential: p.AccessKeyID, temporary: session})
}

// signingKeys has the signing keys of one access key.
type signingKeys interface {
	withKey(p *sigv4.Proof, derive func(dst, secret []byte) error, use func(key []byte) error) error
	withSecret(use func(secret []byte) error) error
}

type credentialKeys struct {
	o *vault.Opened
	c *fsmpb.Credential
}

func (k *credentialKeys) withKey(p *sigv4.Proof, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	return k.o.WithSigningKey(k.c, sigv4.KeySize, p.Date, p.Region, p.Service, derive, use)
}

func (k *credentialKeys) withSecret(use func(secret []byte) error) error {
	return k.o.WithSecret(k.c, use)
}

type temporaryKeys struct {
	o                *vault.Opened
	accessKey, token string
}

func (k *temporaryKeys) withKey(p *sigv4.Proof, derive func(dst, secret []byte) error, use func(key []byte) error) error {
	return k.o.WithTemporarySigningKey(k.accessKey, k.token, sigv4.KeySize, p.Date, p.Region, p.Service, derive, use)
}

func (k *temporaryKeys) withSecret(use func(secret []byte) error) error {
	return k.o.WithTemporarySecret(k.accessKey, k.token, use)
}

// verifySigV4 checks a signature against the secret of an access key. A derived key is cached
// only after it has verified a signature: callers choose the scope, and an attacker who
// knows an access key id must not be able to evict the keys that are in use.
func verifySigV4(p *sigv4.Proof, accessKey string, keys signingKeys) error {
	derived := false
	err := keys.withKey(p, func(dst, secret []byte) error {
		derived = true
		p.Derive(dst, secret)
		return checkSignature(dst, p)
	}, func(key []byte) error { return checkSignature(key, p) })
	if errors.Is(err, ErrSignature) && !derived {
		// The key was cached, or derived in a concurrent call for a wrong signature, and
		// may not be the right one for this scope and secret. Derive it from the secret.
		err = keys.withSecret(func(secret []byte) error {
			var key [sigv4.KeySize]byte
			defer clear(key[:])
			p.Derive(key[:], secret)
			return checkSignature(key[:], p)
		})
	}
	if err != nil && !errors.Is(err, ErrSignature) {
		return fmt.Errorf("access key %s: %w", accessKey, err)
	}
	return err
}

func checkSignature(key []byte, p *sigv4.Proof) error {
	if !p.SignedBy(key) {
		return ErrSignature
	}
	return nil
}

// decoySecret stands in for the secret of an access key that does not exist.
var decoySecret = []byte("0000000000000000000000000000000000000000")

// accessKey returns the active access key with the given id, with its principal.
func (a *Authenticator) accessKey(ctx context.Context, o *vault.Opened, id string) (*fsmpb.Credential, Identity, error) {
	kind, account, ok := accesskey.Parse(id)
	if !ok || kind != accesskey.LongTerm {
		return nil, Identity{}, ErrUnrecognized
	}
	return a.find(ctx, o, account, id, fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY)
}

// hmacInto writes HMAC-SHA-256 of msg to dst, which may be the key.
func hmacInto(dst, key []byte, msg string) {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, msg)
	h.Sum(dst[:0])
}

func hmacEqual(key, msg, tag []byte) bool {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(msg)
	var sum [sha256.Size]byte
	return hmac.Equal(h.Sum(sum[:0]), tag)
}

func equal(a, b [32]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }
