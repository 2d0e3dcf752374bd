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

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
	"github.com/prometheus/client_golang/prometheus"
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
	if p.SessionToken != "" { // no access key belongs to a session
		return Identity{}, ErrUnrecognized
	}
	c, err := a.accessKey(ctx, p.AccessKeyID)
	if errors.Is(err, ErrUnrecognized) {
		// Do the same work as for a known access key and a wrong signature.
		var key [sigv4.KeySize]byte
		p.Derive(key[:], decoySecret)
		_ = p.SignedBy(key[:])
		return Identity{}, err
	}
	if err != nil {
		return Identity{}, err
	}
	if err := verifySigV4(o, c, &p); err != nil {
		return Identity{}, err
	}
	known, err := a.Identify(o, c)
	if err != nil {
		return Identity{}, err
	}
	return identity(c, known), nil
}

// verifySigV4 checks a signature against the credential's secret. A derived key is cached
// only after it has verified a signature: callers choose the scope, and an attacker who
// knows an access key id must not be able to evict the keys that are in use.
func verifySigV4(o *vault.Opened, c *fsmpb.Credential, p *sigv4.Proof) error {
	derived := false
	err := o.WithSigningKey(c, sigv4.KeySize, p.Date, p.Region, p.Service, func(dst, secret []byte) error {
		derived = true
		p.Derive(dst, secret)
		return checkSignature(dst, p)
	}, func(key []byte) error { return checkSignature(key, p) })
	if errors.Is(err, ErrSignature) && !derived {
		// The key was cached, or derived in a concurrent call for a wrong signature, and
		// may not be the right one for this scope and secret. Derive it from the secret.
		err = o.WithSecret(c, func(secret []byte) error {
			var key [sigv4.KeySize]byte
			defer clear(key[:])
			p.Derive(key[:], secret)
			return checkSignature(key[:], p)
		})
	}
	if err != nil && !errors.Is(err, ErrSignature) {
		return fmt.Errorf("access key %s: %w", c.Id, err)
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

// accessKey returns the active access key with the given id.
func (a *Authenticator) accessKey(ctx context.Context, id string) (*fsmpb.Credential, error) {
	kind, account, ok := accesskey.Parse(id)
	if !ok || kind != accesskey.LongTerm || account != fsm.AccountOf(a.cfg.Replica.State()) {
		return nil, ErrUnrecognized
	}
	return a.find(ctx, id, fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY)
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

// AuthenticateCertificate returns the identity of a client certificate, by its URI. The
// transport has verified the certificate. Errors: ErrUnrecognizedClient, ErrUnavailable.
func (a *Authenticator) AuthenticateCertificate(ctx context.Context, uri string) (Identity, error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return Identity{}, err
	}
	if uri == "" || len(uri) > vault.MaxCredentialID {
		return Identity{}, ErrUnrecognized
	}
	c, err := a.find(ctx, uri, fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE)
	if err != nil {
		return Identity{}, err
	}
	known, err := a.Identify(o, c)
	if err != nil {
		return Identity{}, err
	}
	return identity(c, known), nil
}
