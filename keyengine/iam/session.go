package iam

import (
	"cmp"
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

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
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
// with Time in decimal. The secret of temporary credentials follows from their access key id
// and their session token, so the MAC covers the token too.
type SessionProof struct {
	AccessKeyID string
	// SessionToken is that of temporary credentials, and empty for an access key.
	SessionToken string
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

// MaxToken is the length of the longest token that OpenSession returns.
const MaxToken = vault.MaxBearer

// OpenSession returns a token that stands for an access key or for temporary credentials, on
// every unsealed node, until it expires or they are no longer valid. The session is recorded,
// as CreateSession, before the token is returned. Errors: ErrUnrecognizedClient,
// ErrInvalidSignature, ErrExpiredToken for temporary credentials that have ended,
// ErrUnavailable.
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
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	var proved *provedSession
	used := false
	// What the caller's identity depends on is in the record's read set, so that no session
	// is opened with a credential that has been withdrawn.
	d, err := a.cfg.Events.CommitEvent(ctx, func(*fsm.State) (record.Event, error) {
		var err error
		if proved, err = a.proven(ctx, o, &p); err != nil {
			return record.Event{}, err
		}
		if !used {
			if err := a.proofs.Use(now, &p); err != nil {
				return record.Event{}, err
			}
			used = true
		}
		expires = now.Add(SessionLife)
		if end := proved.notAfter; end != 0 && end < expires.UnixNano() {
			expires = time.Unix(0, end)
		}
		expires = expires.Truncate(time.Second)
		return proved.event(&p, id, expires), nil
	})
	switch {
	case err == record.ErrConflict:
		return "", time.Time{}, kmsapi.Errorf(kmsapi.ErrUnavailable, "The access key keeps changing. Try again.")
	case err != nil:
		return "", time.Time{}, err
	case d.TooLate():
		return "", time.Time{}, a.cfg.Withheld.Withhold(p.RequestID, "CreateSession")
	}
	if token, err = proved.token(o, id, expires); err != nil {
		return "", time.Time{}, err
	}
	return token, expires, nil
}

// provedSession is the caller of a proof.
type provedSession struct {
	Identity
	recorded auditpb.Identity
	sessions [32]byte      // of the access key, or of the one that the temporary credentials are of
	reads    []*fsmpb.Read // what the identity depends on
	notAfter int64         // of the record, in Unix nanoseconds; 0 means no limit
}

// token returns the token of a session. That of temporary credentials says all that their own
// session token says, so that every evaluation can check them again.
func (s *provedSession) token(o *vault.Opened, id [16]byte, expires time.Time) (string, error) {
	if s.temporary == nil {
		return o.SignSession(&vault.Session{Account: s.account, Credential: s.credential, Proof: s.sessions, ID: id, Expires: expires.Unix()})
	}
	b, err := proto.Marshal(&iampb.Bearer{Session: s.temporary, Id: id[:], Expires: expires.Unix()})
	if err != nil {
		return "", err
	}
	return o.SealBearer(b)
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

// proven returns the caller whose secret made the proof.
func (a *Authenticator) proven(ctx context.Context, o *vault.Opened, p *SessionProof) (*provedSession, error) {
	if kind, account, ok := accesskey.Parse(p.AccessKeyID); ok && kind == accesskey.Session {
		return a.provenTemporary(ctx, o, account, p)
	}
	c, id, err := a.accessKey(ctx, o, p.AccessKeyID)
	if err == nil && p.SessionToken != "" {
		err = ErrUnrecognized // a long-term access key has no session token
	}
	if errors.Is(err, ErrUnrecognized) {
		_ = checkSessionProof(decoySecret, p) // the same work as for a wrong secret
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if err := o.WithSecret(c, func(secret []byte) error { return checkSessionProof(secret, p) }); err != nil {
		return nil, proofError(c.Id, err)
	}
	return a.provedOnFresh(ctx, o, id)
}

// provenTemporary is proven for temporary credentials.
func (a *Authenticator) provenTemporary(ctx context.Context, o *vault.Opened, account fsm.Account, p *SessionProof) (*provedSession, error) {
	t, err := openTemporaryOf(o, account, p.AccessKeyID, p.SessionToken)
	if errors.Is(err, ErrUnrecognized) {
		_ = checkSessionProof(decoySecret, p)
	}
	if err != nil {
		return nil, err
	}
	if err := o.WithTemporarySecret(p.AccessKeyID, p.SessionToken, func(secret []byte) error { return checkSessionProof(secret, p) }); err != nil {
		return nil, proofError(p.AccessKeyID, err)
	}
	if record.Now(a.cfg.Replica.State(), a.cfg.Clock).UnixNano() >= t.Expires {
		return nil, ErrSessionEnded
	}
	return a.provedOnFresh(ctx, o, Identity{account: account, credential: p.AccessKeyID, temporary: t})
}

// provedOnFresh returns the caller with an identity whose proof was valid, and what it depends
// on.
func (a *Authenticator) provedOnFresh(ctx context.Context, o *vault.Opened, id Identity) (*provedSession, error) {
	proved, _, err := onFresh(ctx, a, func(s *fsm.State) (*provedSession, Identity, error) {
		id, e, c, err := a.admitted(o, s, id)
		if err != nil {
			return nil, Identity{}, err
		}
		proved := &provedSession{Identity: id, notAfter: id.temporary.GetExpires()}
		e.Record(&proved.recorded, id.credential)
		note := func(kind fsmpb.Kind, id []byte, v fsm.Version) {
			proved.reads = append(proved.reads, &fsmpb.Read{Kind: kind, Id: id, Version: v})
		}
		if c != nil {
			proved.notAfter = cmp.Or(proved.notAfter, c.BreakGlassUntil)
			note(fsmpb.Kind_KIND_CREDENTIAL, fsm.CredentialID(fsm.Account(c.Account), c.Id), c.Version)
			known, err := a.Identify(o, c)
			if err != nil {
				return nil, Identity{}, err
			}
			proved.sessions = known.Sessions
		}
		e.Reads(note)
		return proved, id, nil
	})
	return proved, err
}

// proofError returns the error of a check of a proof.
func proofError(accessKey string, err error) error {
	if errors.Is(err, ErrSignature) {
		return err
	}
	return fmt.Errorf("access key %s: %w", accessKey, err)
}

func checkSessionProof(secret []byte, p *SessionProof) error {
	key := append(append(make([]byte, 0, 9+len(secret)), "CONCLAVE1"...), secret...)
	defer clear(key)
	var k [sha256.Size]byte
	defer clear(k[:])
	hmacInto(k[:], key, "session")
	msg := "conclave session v2\n" + p.AccessKeyID + "\n" + strconv.FormatInt(p.Time, 10) + "\n" + hex.EncodeToString(p.Nonce) + "\n" + hex.EncodeToString(p.Channel)
	if !hmacEqual(k[:], []byte(msg), p.MAC) {
		return ErrSignature
	}
	return nil
}

// event returns the event that records a new session.
func (s *provedSession) event(p *SessionProof, id [16]byte, expires time.Time) record.Event {
	return record.Event{
		Name: "CreateSession", Kind: record.KindConclave, RequestID: p.RequestID,
		Identity: &s.recorded, SourceIP: p.SourceIP, UserAgent: p.UserAgent, Transport: "grpc", TLS: p.TLS.Recorded(),
		Response: []*auditpb.Field{
			auditfield.Text("sessionId", hex.EncodeToString(id[:])),
			auditfield.Text("expiration", expires.UTC().Format(time.RFC3339)),
		},
		Reads: s.reads, NotAfter: s.notAfter,
	}
}

// sessionOf returns the identity that the token of a session stands for, and when the session
// expires, in Unix seconds. It does not check whether either is still valid.
func sessionOf(o *vault.Opened, token string) (Identity, int64, error) {
	c, err := o.VerifySession(token)
	if err == nil {
		return Identity{account: c.Account, credential: c.Credential, proof: c.Proof, session: hex.EncodeToString(c.ID[:])}, c.Expires, nil
	}
	if !errors.Is(err, vault.ErrToken) {
		return Identity{}, 0, err
	}
	raw, err := o.OpenBearer(token)
	if err != nil {
		return Identity{}, 0, err
	}
	b := new(iampb.Bearer)
	if err := proto.Unmarshal(raw, b); err != nil || len(b.ProtoReflect().GetUnknown()) > 0 || !wellFormed(b.Session) || len(b.Id) != len(c.ID) {
		return Identity{}, 0, vault.ErrToken
	}
	t := b.Session
	return Identity{account: fsm.Account(t.Account), credential: t.AccessKey, session: hex.EncodeToString(b.Id), temporary: t}, b.Expires, nil
}

// KnowsToken reports whether a token belongs to this cluster and has not expired. It does
// not wait, and does not check the access key behind the token: it is for deciding which
// limits apply to a caller before a request is authenticated.
func (a *Authenticator) KnowsToken(token string) bool {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return false
	}
	id, expires, err := sessionOf(o, token)
	s := a.cfg.Replica.State()
	return err == nil && fsm.AccountExists(s, id.account) && record.Now(s, a.cfg.Clock).Unix() < expires
}

// AuthenticateSession returns the identity of a session token. Errors: ErrExpiredToken, also
// if temporary credentials behind it were revoked, ErrUnrecognizedClient if the token is not
// from this cluster or its access key is no longer valid, ErrUnavailable.
func (a *Authenticator) AuthenticateSession(ctx context.Context, token string) (Identity, error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return Identity{}, err
	}
	id, expires, err := sessionOf(o, token)
	if errors.Is(err, vault.ErrToken) {
		err = ErrUnrecognized
	}
	if err != nil {
		return Identity{}, err
	}
	s := a.cfg.Replica.State()
	if !fsm.AccountExists(s, id.account) {
		return Identity{}, ErrUnrecognized
	}
	if record.Now(s, a.cfg.Clock).Unix() >= expires {
		return Identity{}, ErrSessionEnded
	}
	return a.admittedOnFresh(ctx, o, id)
}

// admittedOnFresh is admitted on this node's state and, if that does not have the credential,
// on one with everything that was committed before the call.
func (a *Authenticator) admittedOnFresh(ctx context.Context, o *vault.Opened, id Identity) (Identity, error) {
	_, id, err := onFresh(ctx, a, func(s *fsm.State) (struct{}, Identity, error) {
		id, _, _, err := a.admitted(o, s, id)
		return struct{}{}, id, err
	})
	return id, err
}

// admitted admits an identity without a principal on a state, and returns it with its
// principal, and the credential in the state that it depends on, if any.
func (a *Authenticator) admitted(o *vault.Opened, s *fsm.State, id Identity) (Identity, Entity, *fsmpb.Credential, error) {
	credential := id.credential
	if id.temporary != nil {
		credential = id.temporary.Parent
	}
	var c *fsmpb.Credential
	if credential != "" {
		c, _ = s.Credential(id.account, credential)
	}
	e, err := a.Admit(o, s, &id, c)
	id.principal = e.Principal
	return id, e, c, err
}
