package client

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	testID     = "AKIAABCDEFGHIJKLMNOP"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzzzzzzzzz"
)

// fakeServer opens sessions and accepts calls with a valid one.
type fakeServer struct {
	kmspb.UnimplementedKMSServer
	kmspb.UnimplementedSessionServer
	kmspb.UnimplementedAuditServer

	life time.Duration

	mu     sync.Mutex
	opened int
	good   map[string]bool
	calls  int
	region string
	// temporary is the session token that came with the last proof.
	temporary string
	fail      error         // what calls end with
	lines     []string      // of the audit log
	slow      chan struct{} // Create waits for it, if set
}

func (f *fakeServer) Create(ctx context.Context, in *kmspb.CreateSessionRequest) (*kmspb.CreateSessionResponse, error) {
	if f.slow != nil {
		<-f.slow
	}
	outer := func(key, msg string) []byte {
		h := hmac.New(sha256.New, []byte(key))
		io.WriteString(h, msg)
		return h.Sum(nil)
	}
	var channel []byte
	if p, _ := peer.FromContext(ctx); p != nil {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			channel, _ = info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		}
	}
	want := outer(string(outer("CONCLAVE1"+testSecret, "session")),
		fmt.Sprintf("conclave session v2\n%s\n%d\n%s\n%x", in.GetAccessKeyId(), in.GetTime(), hex.EncodeToString(in.GetNonce()), channel))
	if !hmac.Equal(want, []byte(strings.Join(metadata.ValueFromIncomingContext(ctx, "conclave-proof-bin"), ""))) || in.GetAccessKeyId() != testID || len(in.GetNonce()) < 16 {
		return nil, detailed(codes.Unauthenticated, "InvalidSignatureException")
	}
	if d := time.Since(time.Unix(in.GetTime(), 0)); d < -time.Minute || d > time.Minute {
		return nil, status.Error(codes.Unauthenticated, "time")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened++
	f.temporary = in.GetSessionToken()
	token := fmt.Sprintf("token-%d", f.opened)
	f.good[token] = true
	return &kmspb.CreateSessionResponse{Token: token, Expires: timestamppb.New(time.Now().Add(f.life))}, nil
}

func (f *fakeServer) check(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	md, _ := metadata.FromIncomingContext(ctx)
	auth := md.Get("authorization")
	f.region = strings.Join(md.Get("x-conclave-region"), ",")
	if len(auth) != 1 || !f.good[strings.TrimPrefix(auth[0], "Bearer ")] {
		return detailed(codes.Unauthenticated, "ExpiredTokenException")
	}
	return f.fail
}

func (f *fakeServer) ListKeys(ctx context.Context, _ *kmspb.ListKeysRequest) (*kmspb.ListKeysResponse, error) {
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	return &kmspb.ListKeysResponse{}, nil
}

func (f *fakeServer) Read(_ *kmspb.ReadAuditRequest, ss grpc.ServerStreamingServer[kmspb.ReadAuditResponse]) error {
	if err := f.check(ss.Context()); err != nil {
		return err
	}
	for i, line := range f.lines {
		if err := ss.Send(&kmspb.ReadAuditResponse{Index: uint64(i), Json: line}); err != nil {
			return err
		}
	}
	return ss.Send(&kmspb.ReadAuditResponse{Index: 7, Json: "{}"})
}

func (f *fakeServer) revokeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.good)
}

func (f *fakeServer) counts() (opened, calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened, f.calls
}

func detailed(code codes.Code, typ string) error {
	st, err := status.New(code, "message of "+typ).WithDetails(&kmspb.ErrorDetail{Type: typ, Message: "message of " + typ, RequestId: "id-1"})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func start(t *testing.T, f *fakeServer) string {
	t.Helper()
	f.good = make(map[string]bool)
	if f.life == 0 {
		f.life = time.Hour
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kmspb.RegisterKMSServer(s, f)
	kmspb.RegisterSessionServer(s, f)
	kmspb.RegisterAuditServer(s, f)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func dial(t *testing.T, cfg Config) *Client {
	t.Helper()
	cfg.Plaintext = true
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func withKey(addr string) Config {
	return Config{Address: addr, AccessKeyID: testID, SecretAccessKey: Secret(testSecret)}
}

func timed(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestSessionOpensOnceAndIsKept(t *testing.T) {
	f := &fakeServer{}
	c := dial(t, withKey(start(t, f)))
	if opened, _ := f.counts(); opened != 0 {
		t.Fatalf("a session was opened before a call needed one")
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if opened, calls := f.counts(); opened != 1 || calls != 20 {
		t.Errorf("opened %d sessions for %d calls, want 1 for 20", opened, calls)
	}
}

func TestSessionIsRenewedBeforeItEnds(t *testing.T) {
	f := &fakeServer{}
	c := dial(t, withKey(start(t, f)))
	now := time.Now()
	c.session.now = func() time.Time { return now }
	call := func() {
		t.Helper()
		if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	call()
	// The server uses the real clock, so the second proof must have the current
	// time; only the remaining life of the token changes.
	c.session.mu.Lock()
	c.session.renewAt = now
	c.session.mu.Unlock()
	call()
	if opened, calls := f.counts(); opened != 2 || calls != 2 {
		t.Errorf("opened %d sessions for %d calls, want 2 for 2: no call was refused", opened, calls)
	}
	if got, want := c.session.renewAt, now.Add(time.Hour-renewBefore); got.Sub(want).Abs() > 10*time.Second {
		t.Errorf("renewal due at %v, want about %v", got, want)
	}
}

func TestShortSessionsAreUsed(t *testing.T) {
	f := &fakeServer{life: time.Minute}
	c := dial(t, withKey(start(t, f)))
	for range 3 {
		if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if opened, _ := f.counts(); opened != 1 {
		t.Errorf("opened %d sessions, want 1", opened)
	}
}

func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	f := &fakeServer{}
	c := dial(t, withKey(start(t, f)))
	for range 2 {
		if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
			t.Fatal(err)
		}
		f.revokeAll()
	}
	if opened, calls := f.counts(); opened != 2 || calls != 3 {
		t.Errorf("opened %d sessions, %d calls; want 2 and 3", opened, calls)
	}
	// If a server accepts no token at all, the client gives up.
	f.mu.Lock()
	f.fail = detailed(codes.Unauthenticated, "UnrecognizedClientException")
	f.mu.Unlock()
	_, before := f.counts()
	_, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v, want Unauthenticated", err)
	}
	if _, calls := f.counts(); calls-before > 2 {
		t.Errorf("%d calls for one", calls-before)
	}
}

func TestOtherErrorsAreNotRepeated(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.PermissionDenied, codes.Internal, codes.ResourceExhausted, codes.DeadlineExceeded} {
		f := &fakeServer{fail: detailed(code, "SomeException")}
		c := dial(t, withKey(start(t, f)))
		_, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{})
		if status.Code(err) != code {
			t.Errorf("got %v, want %v", err, code)
		}
		if _, calls := f.counts(); calls != 1 {
			t.Errorf("%v: %d calls, want 1", code, calls)
		}
	}
}

func TestStreamDropsRefusedToken(t *testing.T) {
	f := &fakeServer{}
	c := dial(t, withKey(start(t, f)))
	read := func() error {
		ss, err := c.Audit().Read(timed(t), &kmspb.ReadAuditRequest{})
		if err != nil {
			return err
		}
		r, err := ss.Recv()
		if err == nil && r.GetIndex() != 7 {
			t.Errorf("got record %d", r.GetIndex())
		}
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	f.revokeAll()
	if err := read(); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("got %v, want Unauthenticated", err)
	}
	if err := read(); err != nil {
		t.Errorf("after the token was refused: %v", err)
	}
}

// TestLongStream: an audit log that is larger than the window is read
// completely.
func TestLongStream(t *testing.T) {
	line := strings.Repeat("x", 60<<10)
	f := &fakeServer{lines: slices.Repeat([]string{line}, 3*window/len(line))}
	c := dial(t, withKey(start(t, f)))
	ss, err := c.Audit().Read(timed(t), &kmspb.ReadAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.lines {
		r, err := ss.Recv()
		if err != nil || r.GetIndex() != uint64(i) || r.GetJson() != line {
			t.Fatalf("record %d: got %d, %d bytes, %v", i, r.GetIndex(), len(r.GetJson()), err)
		}
	}
	if _, err := ss.Recv(); err != nil {
		t.Error(err)
	}
	if _, err := ss.Recv(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestWrongSecret(t *testing.T) {
	f := &fakeServer{}
	cfg := withKey(start(t, f))
	cfg.SecretAccessKey = Secret("another secret")
	c := dial(t, cfg)
	_, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{})
	got, ok := FromError(err)
	want := Error{Code: codes.Unauthenticated, Type: "InvalidSignatureException", Message: "message of InvalidSignatureException", RequestID: "id-1"}
	if !ok || got != want {
		t.Errorf("got %+v of %v, want %+v", got, err, want)
	}
	if _, calls := f.counts(); calls != 0 {
		t.Errorf("the call was made without a session")
	}
}

func TestWaitingForASessionEndsWithTheCall(t *testing.T) {
	f := &fakeServer{slow: make(chan struct{})}
	c := dial(t, withKey(start(t, f)))
	defer close(f.slow)
	first := make(chan error, 1)
	ctx, cancel := context.WithCancel(timed(t))
	go func() {
		_, err := c.KMS().ListKeys(ctx, &kmspb.ListKeysRequest{})
		first <- err
	}()
	short, done := context.WithTimeout(timed(t), 50*time.Millisecond)
	defer done()
	if _, err := c.KMS().ListKeys(short, &kmspb.ListKeysRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	cancel()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestRegionIsSent(t *testing.T) {
	f := &fakeServer{}
	cfg := withKey(start(t, f))
	cfg.Region = "eu-west-1"
	if _, err := dial(t, cfg).KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
		t.Fatal(err)
	}
	if f.region != "eu-west-1" {
		t.Errorf("region %q", f.region)
	}
}

func TestClosedClientOpensNoSession(t *testing.T) {
	f := &fakeServer{}
	ctx, cancel := context.WithCancel(t.Context())
	cfg := withKey(start(t, f))
	cfg.Plaintext = true
	c, err := Dial(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{})
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the client outlives its context")
		}
		time.Sleep(time.Millisecond)
	}
	c.session.mu.Lock()
	if c.session.key != nil || c.session.token != "" {
		t.Error("a closed client keeps what proves its secret")
	}
	c.session.mu.Unlock()
	if err := c.Close(); err != nil && status.Code(err) != codes.Canceled {
		t.Error(err)
	}
}

func TestSecretIsWipedAndNeverShown(t *testing.T) {
	for _, good := range []bool{true, false} {
		secret := Secret(testSecret)
		cfg := Config{Address: "127.0.0.1:1", AccessKeyID: testID, SecretAccessKey: secret, Plaintext: good}
		if !good {
			cfg.CAFile = filepath.Join(t.TempDir(), "none.pem")
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", secret, "cfg", cfg)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", secret, "cfg", cfg)
		j, err := json.Marshal(map[string]any{"secret": cfg.SecretAccessKey})
		if err != nil {
			t.Fatal(err)
		}
		shown := fmt.Sprintf("%v %+v %#v %s %q %x %d %s", cfg, cfg, cfg, secret, secret, secret, secret, j) + log.String()
		for _, bad := range []string{testSecret, hex.EncodeToString([]byte(testSecret)), "119 74 97", "d0phbHJY"} {
			if strings.Contains(shown, bad) {
				t.Errorf("the secret is shown as %q", bad)
			}
		}
		c, err := Dial(t.Context(), cfg)
		if (err == nil) != good {
			t.Fatalf("Dial: %v", err)
		}
		if !bytes.Equal(secret, make([]byte, len(secret))) {
			t.Error("Dial leaves the secret in memory")
		}
		if c != nil {
			c.Close()
		}
	}
}

func TestBadConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":          {Plaintext: true},
		"secret without id":   {Address: "a:1", Plaintext: true, SecretAccessKey: Secret("x")},
		"id without secret":   {Address: "a:1", Plaintext: true, AccessKeyID: "x"},
		"CA that is not":      {Address: "a:1", CAFile: "client_test.go"},
		"CA that is not here": {Address: "a:1", CAFile: "no-such-file"},
		"certificate alone":   {Address: "a:1", CertFile: "no-such-file"},
		"files in plaintext":  {Address: "a:1", Plaintext: true, CAFile: "client_test.go"},
	} {
		if c, err := Dial(t.Context(), cfg); err == nil {
			c.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestError(t *testing.T) {
	if _, ok := FromError(nil); ok {
		t.Error("nil has a fault")
	}
	if _, ok := FromError(errors.New("x")); ok {
		t.Error("an error from elsewhere has a fault")
	}
	if f, ok := FromError(status.Error(codes.Unavailable, "no route")); !ok || f != (Error{Code: codes.Unavailable, Message: "no route"}) {
		t.Errorf("got %+v, %v", f, ok)
	}
	if f, ok := FromError(fmt.Errorf("listing keys: %w", detailed(codes.NotFound, "NotFoundException"))); !ok || f.Type != "NotFoundException" || f.RequestID != "id-1" || f.Code != codes.NotFound {
		t.Errorf("got %+v, %v", f, ok)
	}
}

// TestTemporaryCredentials: the session token goes with the proof, from which the server
// derives the secret, and never with a call.
func TestTemporaryCredentials(t *testing.T) {
	f := &fakeServer{}
	cfg := withKey(start(t, f))
	cfg.SessionToken = "session-token"
	c := dial(t, cfg)
	if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.temporary != "session-token" {
		t.Errorf("the server got the session token %q", f.temporary)
	}
	if _, err := Dial(t.Context(), Config{Address: "127.0.0.1:1", Plaintext: true, SessionToken: "x"}); err == nil || !strings.Contains(err.Error(), "session token needs") {
		t.Errorf("a session token alone: %v", err)
	}
}
