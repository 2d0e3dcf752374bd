package iam

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// SessionLife is the lifetime of a session token.
	SessionLife = time.Hour
	// SessionSkew is the maximum difference between the time of a session proof and this
	// node's clock.
	SessionSkew = 5 * time.Minute
)

const (
	minNonce = 16
	maxNonce = 64
)

// SessionProof proves possession of an access key's secret without signing a request. MAC
// is
//
//	HMAC-SHA-256(k, "conclave session v2\n" AccessKeyID "\n" Time "\n" hex(Nonce) "\n" hex(Channel))
//	k = HMAC-SHA-256("CONCLAVE1" secret, "session")
//
// with Time in decimal.
type SessionProof struct {
	AccessKeyID string
	// Time is in Unix seconds, at most SessionSkew from this node's clock.
	Time int64
	// Nonce is 16 to 64 random bytes.
	Nonce []byte
	// Channel is the channel binding of the connection, tls-exporter of RFC 9266, so that a
	// recipient of the proof cannot use it on another connection. It is empty without TLS.
	Channel []byte
	MAC     []byte

	// For the record; see Caller.
	RequestID RequestID
	SourceIP  string
	UserAgent string
	TLS       TLS
}

// OpenSession returns a token that stands for an access key, on every unsealed node, until
// it expires or the access key is no longer valid. The session is recorded, as
// CreateSession, before the token is returned. Errors: ErrUnrecognizedClient,
// ErrInvalidSignature, ErrUnavailable.
func (a *Authenticator) OpenSession(ctx context.Context, p SessionProof) (token string, expires time.Time, err error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return "", time.Time{}, err
	}
	if len(p.MAC) != sha256.Size || len(p.Nonce) < minNonce || len(p.Nonce) > maxNonce {
		return "", time.Time{}, ErrSignature
	}
	now := record.Now(a.cfg.Replica.State(), a.cfg.Clock)
	if d := now.Unix() - p.Time; d > int64(SessionSkew/time.Second) || d < -int64(SessionSkew/time.Second) {
		return "", time.Time{}, kmsapi.Errorf(kmsapi.ErrInvalidSignature, "The time of the proof is too far from the server's, which is %s.", now.UTC().Format(time.RFC3339))
	}
	claims := vault.Session{Expires: now.Add(SessionLife).Unix()}
	used := false
	_, _ = rand.Read(claims.ID[:]) // never fails: crypto/rand ends the process instead
	// The credential is in the record's read set, so that no session is opened with one
	// that has been withdrawn.
	d, err := a.cfg.Events.CommitEvent(ctx, func(*fsm.State) (record.Event, error) {
		c, id, err := a.proven(ctx, o, &p)
		if err != nil {
			return record.Event{}, err
		}
		known, err := a.Identify(o, c)
		if err != nil {
			return record.Event{}, err
		}
		if !used {
			if err := a.proofs.Use(now, &p); err != nil {
				return record.Event{}, err
			}
			used = true
		}
		claims.Account, claims.Credential, claims.Proof = fsm.Account(c.Account), c.Id, known.Sessions
		return sessionEvent(&p, c, &id, &claims), nil
	})
	switch {
	case err == record.ErrConflict:
		return "", time.Time{}, kmsapi.Errorf(kmsapi.ErrUnavailable, "The access key keeps changing. Try again.")
	case err != nil:
		return "", time.Time{}, err
	case d.TooLate():
		return "", time.Time{}, a.cfg.Withheld.Withhold(p.RequestID, "CreateSession")
	}
	if token, err = o.SignSession(&claims); err != nil {
		return "", time.Time{}, err
	}
	return token, time.Unix(claims.Expires, 0), nil
}

// MaxProofs is the maximum number of used proofs that are remembered.
const MaxProofs = 1 << 16

// UsedProofs remembers the proofs that have opened a session on this node, as long as their
// time would still be accepted. They cannot be used on another node, where they would be
// bound to another connection.
type UsedProofs struct {
	mu   sync.Mutex
	Seen map[[sha256.Size]byte]int64 // when the proof becomes too old, in Unix seconds
}

// Use remembers a valid proof, or returns an error if it was used before.
func (u *UsedProofs) Use(now time.Time, p *SessionProof) error {
	id := sha256.Sum256(p.MAC)
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.Seen[id]; ok {
		return ErrSignature
	}
	if len(u.Seen) >= MaxProofs {
		maps.DeleteFunc(u.Seen, func(_ [sha256.Size]byte, until int64) bool { return until < now.Unix() })
		if len(u.Seen) >= MaxProofs {
			return record.ErrThrottled
		}
	}
	if u.Seen == nil {
		u.Seen = make(map[[sha256.Size]byte]int64)
	}
	u.Seen[id] = p.Time + int64(SessionSkew/time.Second)
	return nil
}

// proven returns the access key whose secret made the proof.
func (a *Authenticator) proven(ctx context.Context, o *vault.Opened, p *SessionProof) (*fsmpb.Credential, Identity, error) {
	c, id, err := a.accessKey(ctx, o, p.AccessKeyID)
	if errors.Is(err, ErrUnrecognized) {
		_ = checkSessionProof(decoySecret, p) // the same work as for a wrong secret
		return nil, Identity{}, err
	}
	if err != nil {
		return nil, Identity{}, err
	}
	ok := false
	if err := o.WithSecret(c, func(secret []byte) error {
		ok = checkSessionProof(secret, p)
		return nil
	}); err != nil {
		return nil, Identity{}, fmt.Errorf("access key %s: %w", c.Id, err)
	}
	if !ok {
		return nil, Identity{}, ErrSignature
	}
	return c, id, nil
}

func checkSessionProof(secret []byte, p *SessionProof) bool {
	key := append(append(make([]byte, 0, 9+len(secret)), "CONCLAVE1"...), secret...)
	defer clear(key)
	var k [sha256.Size]byte
	defer clear(k[:])
	hmacInto(k[:], key, "session")
	msg := "conclave session v2\n" + p.AccessKeyID + "\n" + strconv.FormatInt(p.Time, 10) + "\n" + hex.EncodeToString(p.Nonce) + "\n" + hex.EncodeToString(p.Channel)
	return hmacEqual(k[:], []byte(msg), p.MAC)
}

// sessionEvent returns the event that records a new session.
func sessionEvent(p *SessionProof, c *fsmpb.Credential, id *Identity, claims *vault.Session) record.Event {
	return record.Event{
		Name: "CreateSession", Kind: record.KindConclave, RequestID: p.RequestID,
		Identity: record.IdentityOf(id.principal, c.Id), SourceIP: p.SourceIP, UserAgent: p.UserAgent, Transport: "grpc", TLS: p.TLS.Recorded(),
		Response: []*auditpb.Field{
			auditfield.Text("sessionId", hex.EncodeToString(claims.ID[:])),
			auditfield.Text("expiration", time.Unix(claims.Expires, 0).UTC().Format(time.RFC3339)),
		},
		Reads: []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CREDENTIAL, Id: fsm.CredentialID(fsm.Account(c.Account), c.Id), Version: c.Version}},
	}
}

// KnowsToken reports whether a token belongs to this cluster and has not expired. It does
// not wait, and does not check the access key behind the token: it is for deciding which
// limits apply to a caller before a request is authenticated.
func (a *Authenticator) KnowsToken(token string) bool {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return false
	}
	claims, err := o.VerifySession(token)
	s := a.cfg.Replica.State()
	return err == nil && fsm.AccountExists(s, claims.Account) && record.Now(s, a.cfg.Clock).Unix() < claims.Expires
}

// AuthenticateSession returns the identity of a session token. Errors: ErrExpiredToken,
// ErrUnrecognizedClient if the token is not from this cluster or its access key is no
// longer valid, ErrUnavailable.
func (a *Authenticator) AuthenticateSession(ctx context.Context, token string) (Identity, error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return Identity{}, err
	}
	claims, err := o.VerifySession(token)
	if errors.Is(err, vault.ErrToken) {
		err = ErrUnrecognized
	}
	if err != nil {
		return Identity{}, err
	}
	s := a.cfg.Replica.State()
	if !fsm.AccountExists(s, claims.Account) {
		return Identity{}, ErrUnrecognized
	}
	if record.Now(s, a.cfg.Clock).Unix() >= claims.Expires {
		return Identity{}, kmsapi.Errorf(kmsapi.ErrExpiredToken, "The security token included in the request is expired")
	}
	_, id, err := onFresh(ctx, a, func(s *fsm.State) (struct{}, Identity, error) {
		id, err := a.sessionIdentity(o, s, &claims)
		return struct{}{}, id, err
	})
	return id, err
}

func (a *Authenticator) sessionIdentity(o *vault.Opened, s *fsm.State, claims *vault.Session) (Identity, error) {
	c, _ := s.Credential(claims.Account, claims.Credential)
	id := Identity{account: claims.Account, credential: claims.Credential, proof: claims.Proof, session: hex.EncodeToString(claims.ID[:])}
	e, err := a.Admit(o, s, &id, c)
	id.principal = e.Principal
	return id, err
}
