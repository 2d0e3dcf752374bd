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
	// SessionLife is how long a session token is good for.
	SessionLife = time.Hour
	// SessionSkew is how far the time of a session proof may be off.
	SessionSkew = 5 * time.Minute
)

const (
	minNonce = 16
	maxNonce = 64
)

// SessionProof shows that its sender has an access key's secret, without a
// request to sign. MAC is
//
//	HMAC-SHA-256(k, "conclave session v2\n" AccessKeyID "\n" Time "\n" hex(Nonce) "\n" hex(Channel))
//	k = HMAC-SHA-256("CONCLAVE1" secret, "session")
//
// with Time in decimal.
type SessionProof struct {
	AccessKeyID string
	// Time in Unix seconds, at most SessionSkew from this node's.
	Time int64
	// Nonce is 16 to 64 random bytes.
	Nonce []byte
	// Channel is what the transport knows the connection by, tls-exporter of RFC 9266,
	// so that who is given a proof cannot use it elsewhere; empty without TLS.
	Channel []byte
	MAC     []byte

	// What the record says of the asking; see Caller.
	RequestID RequestID
	SourceIP  string
	UserAgent string
	TLS       TLS
}

// OpenSession gives a token that stands for an access key until it expires or
// the access key is no longer good, on every unsealed node. The session is in
// the audit log, as CreateSession, before the token is given. Errors:
// ErrUnrecognizedClient, ErrInvalidSignature, ErrUnavailable.
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
	// That the credential has not changed is the record's precondition, so a session is
	// never given on one that was withdrawn before.
	d, err := a.cfg.Events.CommitEvent(ctx, func(*fsm.State) (record.Event, error) {
		c, err := a.proven(ctx, o, &p)
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
		return sessionEvent(&p, c, known, &claims), nil
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

// MaxProofs bounds the proofs that are remembered as used.
const MaxProofs = 1 << 16

// UsedProofs are proofs that opened a session on this node, as long as their time
// would let them do so again. On another node they are of another connection.
type UsedProofs struct {
	mu   sync.Mutex
	Seen map[[sha256.Size]byte]int64 // when they are too old, Unix seconds
}

// Use notes a good proof, or refuses one that was used before.
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

// proven is the access key whose secret made the proof.
func (a *Authenticator) proven(ctx context.Context, o *vault.Opened, p *SessionProof) (*fsmpb.Credential, error) {
	c, err := a.accessKey(ctx, p.AccessKeyID)
	if errors.Is(err, ErrUnrecognized) {
		_ = checkSessionProof(decoySecret, p) // the same work as for a wrong secret
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	ok := false
	if err := o.WithSecret(c, func(secret []byte) error {
		ok = checkSessionProof(secret, p)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("access key %s: %w", c.Id, err)
	}
	if !ok {
		return nil, ErrSignature
	}
	return c, nil
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

// sessionEvent says that a session was given.
func sessionEvent(p *SessionProof, c *fsmpb.Credential, known *vault.Known, claims *vault.Session) record.Event {
	return record.Event{
		Name: "CreateSession", Kind: record.KindConclave, RequestID: p.RequestID,
		Identity: record.IdentityOf(known.Principal, c.Id), SourceIP: p.SourceIP, UserAgent: p.UserAgent, Transport: "grpc", TLS: p.TLS.Recorded(),
		Response: []*auditpb.Field{
			auditfield.Text("sessionId", hex.EncodeToString(claims.ID[:])),
			auditfield.Text("expiration", time.Unix(claims.Expires, 0).UTC().Format(time.RFC3339)),
		},
		Reads: []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CREDENTIAL, Id: fsm.CredentialID(fsm.Account(c.Account), c.Id), Version: c.Version}},
	}
}

// KnowsToken reports whether a token is one of this cluster's that has not expired.
// It waits for nothing and says nothing of the access key behind the token: it is
// for whoever has to decide how much room a caller gets, before there is one.
func (a *Authenticator) KnowsToken(token string) bool {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return false
	}
	claims, err := o.VerifySession(token)
	s := a.cfg.Replica.State()
	return err == nil && claims.Account == fsm.AccountOf(s) && record.Now(s, a.cfg.Clock).Unix() < claims.Expires
}

// AuthenticateSession tells whom a session token stands for. Errors:
// ErrExpiredToken, ErrUnrecognizedClient for a token that is none of this
// cluster's or whose access key is no longer good, ErrUnavailable.
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
	if claims.Account != fsm.AccountOf(s) {
		return Identity{}, ErrUnrecognized
	}
	if record.Now(s, a.cfg.Clock).Unix() >= claims.Expires {
		return Identity{}, kmsapi.Errorf(kmsapi.ErrExpiredToken, "The security token included in the request is expired")
	}
	id, err := a.sessionIdentity(o, s, &claims)
	if !errors.Is(err, ErrUnrecognized) {
		return id, err
	}
	fresh, err := a.fresh.state(ctx)
	if err != nil {
		return Identity{}, err
	}
	return a.sessionIdentity(o, fresh, &claims)
}

func (a *Authenticator) sessionIdentity(o *vault.Opened, s *fsm.State, claims *vault.Session) (Identity, error) {
	c, _ := s.Credential(claims.Account, claims.Credential)
	if c == nil || !c.Active {
		return Identity{}, ErrUnrecognized
	}
	known, err := a.Identify(o, c)
	if err != nil {
		return Identity{}, err
	}
	if !equal(known.Sessions, claims.Proof) {
		return Identity{}, ErrUnrecognized
	}
	id := identity(c, known)
	id.proof = known.Sessions
	id.session = hex.EncodeToString(claims.ID[:])
	return id, nil
}
