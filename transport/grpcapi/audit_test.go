package grpcapi

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// fakeLog is an audit log to which a test adds records.
type fakeLog struct {
	lines  chan string
	follow bool
	next   uint64
}

func (f *fakeLog) Next(ctx context.Context) (uint64, []byte, error) {
	if !f.follow && len(f.lines) == 0 {
		return 0, nil, io.EOF
	}
	select {
	case l := <-f.lines:
		f.next++
		return f.next - 1, []byte(l), nil
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

// auditOf serves a log with a server of its own.
func auditOf(t *testing.T, every time.Duration) (*world, *fakeLog, kmspb.AuditClient) {
	f := &fakeLog{lines: make(chan string, 100)}
	var mu sync.Mutex
	w := start(t, false, func(c *Config) { c.Timeout = 200 * time.Millisecond })
	w.server.audit.every = every
	w.server.audit.open = func(_ context.Context, _ *iam.Caller, from uint64, follow bool) (auditReader, error) {
		mu.Lock()
		defer mu.Unlock()
		f.next, f.follow = from, follow
		return f, nil
	}
	return w, f, kmspb.NewAuditClient(w.dial(nil))
}

func TestAuditIsReadToItsEnd(t *testing.T) {
	_, f, c := auditOf(t, time.Minute)
	f.lines <- "{\"a\":1}"
	f.lines <- "{\"a\":2}"
	ss, err := c.Read(withToken(timed(t), "good"), &kmspb.ReadAuditRequest{From: 41})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"{\"a\":1}", "{\"a\":2}"} {
		r, err := ss.Recv()
		if err != nil || r.GetIndex() != uint64(41+i) || r.GetJson() != want {
			t.Fatalf("got %v, %v", r, err)
		}
	}
	if _, err := ss.Recv(); err != io.EOF {
		t.Errorf("got %v, want the end", err)
	}
}

// TestAuditIsFollowed: the log can be followed for longer than a call may take,
// until the session ends.
func TestAuditIsFollowed(t *testing.T) {
	w, f, c := auditOf(t, 20*time.Millisecond)
	ss, err := c.Read(withToken(timed(t), "good"), &kmspb.ReadAuditRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		time.Sleep(100 * time.Millisecond) // together longer than a call's time
		f.lines <- "{}"
		if _, err := ss.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	w.engine.mu.Lock()
	w.engine.expired = true
	w.engine.mu.Unlock()
	if _, err := ss.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the session's end: %v", err)
	}
}

func TestAuditNeedsACaller(t *testing.T) {
	_, _, c := auditOf(t, time.Minute)
	for _, ctx := range []context.Context{timed(t), withToken(timed(t), "bad")} {
		ss, err := c.Read(ctx, &kmspb.ReadAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ss.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v", err)
		}
	}
}

// TestAuditSinksAreListedAndForgotten: a list says what the engine says, and what a caller
// names is forgotten.
func TestAuditSinksAreListedAndForgotten(t *testing.T) {
	w, _, c := auditOf(t, time.Minute)
	res, err := c.ListSinks(withToken(timed(t), "good"), &kmspb.ListAuditSinksRequest{})
	if err != nil {
		t.Fatal(err)
	}
	old, siem := res.GetSinks()[0], res.GetSinks()[1]
	if old.GetName() != "old" || old.GetConfirmed() != 7 || old.GetKind() != "" || old.GetError() != nil {
		t.Errorf("one that is remembered is %v", old)
	}
	if siem.GetKind() != "syslog" || siem.GetNode() != "n1" || siem.GetLag() != 2 || siem.GetLagSeconds() != 1.5 || siem.GetError().GetMessage() != "gone" || siem.GetError().GetTime().GetSeconds() != 2 {
		t.Errorf("one that fails is %v", siem)
	}
	if _, err := c.ForgetSink(withToken(timed(t), "good"), &kmspb.ForgetAuditSinkRequest{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if w.engine.op != "forget old" {
		t.Errorf("the engine was asked to %q", w.engine.op)
	}
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := c.ListSinks(ctx, &kmspb.ListAuditSinksRequest{})
			return err
		},
		func(ctx context.Context) error {
			_, err := c.ForgetSink(ctx, &kmspb.ForgetAuditSinkRequest{})
			return err
		},
	} {
		if err := call(timed(t)); status.Code(err) != codes.Unauthenticated {
			t.Errorf("without a token: %v", err)
		}
	}
}
