package client

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// renewBefore is how long before its end a session is replaced, but at most a
// quarter of its life, so that few calls are in flight when it ends.
const renewBefore = 2 * time.Minute

// session keeps a valid session token.
type session struct {
	server kmspb.SessionClient
	id     string
	// temporary is the session token of temporary credentials, which the server needs to
	// check a proof; "" for an access key.
	temporary string
	now       func() time.Time
	cache     *sessionCache // nil if there is none

	// turn holds one token, which is taken by the goroutine that opens a
	// session.
	turn chan struct{}

	mu      sync.Mutex
	key     []byte // proves the secret; nil once forgotten
	token   string
	renewAt time.Time
}

func newSession(server kmspb.SessionClient, id string, secret []byte) *session {
	s := &session{server: server, id: id, now: time.Now, turn: make(chan struct{}, 1)}
	prefixed := append([]byte("CONCLAVE1"), secret...)
	defer clear(prefixed)
	s.key = mac(prefixed, "session")
	return s
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// current returns the kept token, if it is valid for a while.
func (s *session) current() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.token != "" && s.now().Before(s.renewAt)
}

// get returns a valid token; fresh reports whether the session was opened for
// this call. Calls that arrive while a session is being opened wait for it.
func (s *session) get(ctx context.Context) (token string, fresh bool, err error) {
	if token, ok := s.current(); ok {
		return token, false, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return "", false, status.FromContextError(ctx.Err()).Err()
	}
	if token, ok := s.current(); ok {
		return token, false, nil
	}
	if token, ok := s.cached(); ok {
		return token, false, nil
	}
	token, err = s.open(ctx)
	return token, true, err
}

// cached takes over the session that an earlier program left, once: a token that was
// dropped since then is no longer in the cache.
func (s *session) cached() (string, bool) {
	kept, ok := s.cache.load()
	if !ok || !s.now().Before(kept.Expires.Add(-renewBefore)) {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key == nil {
		return "", false
	}
	s.token, s.renewAt = kept.Token, kept.Expires.Add(-renewBefore)
	return s.token, true
}

func (s *session) open(ctx context.Context) (string, error) {
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // never fails: the program ends first
	at := s.now().Unix()
	message := "conclave session v2\n" + s.id + "\n" + strconv.FormatInt(at, 10) + "\n" + hex.EncodeToString(nonce) + "\n"
	r, err := s.server.Create(ctx, &kmspb.CreateSessionRequest{AccessKeyId: s.id, Time: at, Nonce: nonce, SessionToken: s.temporary},
		grpc.PerRPCCredentials(proof{session: s, message: message}))
	if err != nil {
		return "", err
	}
	if r.GetToken() == "" {
		return "", status.Error(codes.Internal, "the server opened a session without a token")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key != nil {
		expires := r.GetExpires().AsTime()
		s.token, s.renewAt = r.GetToken(), expires.Add(-min(renewBefore, expires.Sub(s.now())/4))
		// If this fails, the next program opens a session of its own.
		_ = s.cache.save(cachedSession{Token: s.token, Expires: expires})
	}
	return r.GetToken(), nil
}

// proof makes the proof of a call once its connection is known. The proof is valid
// only on that connection, so a server that receives it cannot use it with another
// one.
type proof struct {
	session *session
	message string
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p proof) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	var channel []byte
	if call, ok := credentials.RequestInfoFromContext(ctx); ok {
		if info, ok := call.AuthInfo.(credentials.TLSInfo); ok {
			var err error
			if channel, err = info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
				return nil, status.Error(codes.FailedPrecondition, "the connection has no channel binding: "+err.Error())
			}
		}
	}
	p.session.mu.Lock()
	defer p.session.mu.Unlock()
	if p.session.key == nil {
		return nil, status.Error(codes.Canceled, "the client is closed")
	}
	return map[string]string{"conclave-proof-bin": string(mac(p.session.key, p.message+hex.EncodeToString(channel)))}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. Without TLS,
// a proof is sent on loopback only.
func (proof) RequireTransportSecurity() bool { return false }

// drop forgets a token that a server did not accept.
func (s *session) drop(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == token {
		s.token = ""
		s.cache.forget()
	}
}

// forget makes the session useless.
func (s *session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.key)
	s.key, s.token = nil, ""
}

// authenticated is a connection whose calls carry the session's token.
type authenticated struct {
	conn    grpc.ClientConnInterface
	session *session // nil if only the certificate authenticates
	region  string
}

// Invoke makes a call. A call that was refused because of its token had no
// effect, and is made once more with a new token.
func (a *authenticated) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	for again := true; ; again = false {
		with, token, fresh, err := a.prepare(ctx)
		if err != nil {
			return err
		}
		err = a.conn.Invoke(with, method, in, out, opts...)
		if token == "" || status.Code(err) != codes.Unauthenticated {
			return err
		}
		a.session.drop(token)
		if fresh || !again {
			return err
		}
	}
}

// NewStream opens a stream. Whether its token is accepted is known only later,
// so a refused token is merely forgotten, and the caller has to open the stream
// again.
func (a *authenticated) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	with, token, _, err := a.prepare(ctx)
	if err != nil {
		return nil, err
	}
	cs, err := a.conn.NewStream(with, desc, method, opts...)
	if err != nil || token == "" {
		return cs, err
	}
	return &stream{ClientStream: cs, session: a.session, token: token}, nil
}

func (a *authenticated) prepare(ctx context.Context) (with context.Context, token string, fresh bool, err error) {
	if a.region != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-conclave-region", a.region)
	}
	if a.session == nil {
		return ctx, "", false, nil
	}
	token, fresh, err = a.session.get(ctx)
	if err != nil {
		return nil, "", false, fmt.Errorf("opening a session: %w", err)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), token, fresh, nil
}

type stream struct {
	grpc.ClientStream
	session *session
	token   string
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if status.Code(err) == codes.Unauthenticated {
		s.session.drop(s.token)
	}
	return err
}
