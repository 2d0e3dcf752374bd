package grpcapi

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// longMessage is nearly all of a message of the greatest length, and never ends.
type longMessage struct {
	left  int
	ended chan struct{}
	once  sync.Once
}

func (m *longMessage) Read(p []byte) (int, error) {
	if m.left == 0 {
		<-m.ended
		return 0, io.ErrUnexpectedEOF
	}
	n := min(len(p), m.left)
	if m.left == maxMessage {
		n = min(n, 5)
		head := binary.BigEndian.AppendUint32([]byte{0}, maxMessage)
		n = copy(p, head[:n])
	} else {
		clear(p[:n])
	}
	m.left -= n
	return n, nil
}

func (m *longMessage) Close() error {
	m.once.Do(func() { close(m.ended) })
	return nil
}

// strangers opens connections without a certificate from several addresses, and on
// each as many streams as it may have, with messages that never end, over and over
// until the test ends.
func (w *world) strangers(connections, streams int, sent *atomic.Int64) {
	stop, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	w.t.Cleanup(func() {
		cancel()
		all.Wait()
	})
	for i := range connections {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 5, byte(1+i%8))}}
		tr := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: w.ca.pool(), ServerName: "localhost"}, ForceAttemptHTTP2: true, DialContext: d.DialContext,
		}
		w.t.Cleanup(tr.CloseIdleConnections)
		methods := []string{"conclave.v1.Session/Create", "conclave.v1.Operator/Status", "conclave.v1.KMS/Encrypt", "conclave.v1.Audit/Read", "grpc.health.v1.Health/Watch", "no.such/Method"}
		for j := range streams {
			all.Go(func() {
				for stop.Err() == nil {
					m := &longMessage{left: maxMessage, ended: make(chan struct{})}
					r, err := http.NewRequestWithContext(stop, "POST", "https://"+w.addr+"/"+methods[j%len(methods)], m)
					if err != nil {
						w.t.Error(err)
						return
					}
					r.Header.Set("Content-Type", "application/grpc")
					sent.Add(1)
					if resp, err := tr.RoundTrip(r); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					select {
					case <-stop.Done():
					case <-time.After(time.Second):
					}
				}
			})
		}
	}
}

// TestSilentStreamsAreLetGo: strangers with 17 connections of many streams each,
// with long messages that never end, keep nobody out: operators and clients,
// including new ones, are answered, and little memory is used for the strangers.
func TestSilentStreamsAreLetGo(t *testing.T) {
	w := start(t, true, func(c *Config) { c.Timeout = 20 * time.Second })
	operator := kmspb.NewOperatorClient(w.dial(w.ca.issue(nil, "conclave://operator/alice")))
	client := kmspb.NewKMSClient(w.dial(nil))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var sent atomic.Int64
	w.strangers(17, 60, &sent)
	eventually(t, "strangers have all that they may have", func() bool { return w.server.api.Strangers.Used() == maxStrangers })

	var slowest time.Duration
	peak := uint64(0)
	timely := func(what string, err error, began time.Time) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		slowest = max(slowest, time.Since(began))
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapInuse)
	}
	for round := range 10 {
		if testing.Short() && round >= 4 && sent.Load() >= 3*maxStrangers {
			break
		}
		began := time.Now()
		_, err := operator.Seal(timed(t), &kmspb.SealRequest{})
		timely("an operator seals", err, began)
		began = time.Now()
		_, err = operator.Status(timed(t), &kmspb.StatusRequest{})
		timely("an operator asks", err, began)
		began = time.Now()
		_, err = client.ListKeys(withToken(timed(t), "good"), &kmspb.ListKeysRequest{})
		timely("a client asks", err, began)
		// A client that is not known yet.
		fresh := w.dial(nil)
		began = time.Now()
		_, err = kmspb.NewSessionClient(fresh).Create(timed(t), &kmspb.CreateSessionRequest{AccessKeyId: "AKIAABCDEFGHIJKLMNOP"})
		timely("a client begins a session", err, began)
		began = time.Now()
		_, err = grpc_health_v1.NewHealthClient(w.dial(nil)).Check(timed(t), &grpc_health_v1.HealthCheckRequest{})
		timely("a load balancer asks", err, began)
		began = time.Now()
		_, err = kmspb.NewOperatorClient(w.dial(w.ca.issue(nil, "conclave://operator/bob"))).Status(timed(t), &kmspb.StatusRequest{})
		timely("another operator comes", err, began)
	}
	if n := w.server.api.Strangers.Used(); n > maxStrangers {
		t.Errorf("%d streams of strangers", n)
	}
	if n := w.server.api.Calls.Inside() + w.server.gates.ceremonies.Inside(); n != 0 {
		t.Errorf("%d calls are being worked on", n)
	}
	grown := (int64(peak) - int64(before.HeapInuse)) >> 20
	t.Logf("%d streams of strangers; others waited %v at most; the heap grew by %d MiB, both ends", sent.Load(), slowest.Round(time.Millisecond), grown)
	if sent.Load() < 3*maxStrangers {
		t.Errorf("void: only %d streams", sent.Load())
	}
	if grown > 250 {
		t.Errorf("the heap grew by %d MiB", grown)
	}
}

// TestStreamsOfClients: if a client's streams send nothing, the oldest is evicted
// for the newest, none passes the gate, and the timeout of a call ends the others.
func TestStreamsOfClients(t *testing.T) {
	w := start(t, false, func(c *Config) { c.Timeout = 2 * time.Second; c.MaxCalls = 4 })
	conn := w.dial(nil)
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	var first grpc.ClientStream
	for range 5 {
		s, err := conn.NewStream(withToken(timed(t), "good"), desc, "/conclave.v1.KMS/Encrypt")
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = s
			eventually(t, "the first is in", func() bool { return w.server.gates.clients.Used() == 1 })
		}
	}
	if err := first.RecvMsg(new(kmspb.EncryptResponse)); status.Code(err) != codes.Canceled && status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the oldest: %v", err)
	}
	if n := w.server.api.Calls.Inside(); n != 0 {
		t.Errorf("%d calls without a message are being worked on", n)
	}
	if _, err := kmspb.NewKMSClient(w.dial(nil)).ListKeys(withToken(timed(t), "good"), &kmspb.ListKeysRequest{}); err != nil {
		t.Errorf("a complete call: %v", err)
	}
	eventually(t, "the places are given back", func() bool { return w.server.gates.clients.Used() == 0 })
}

// TestWatchesHaveTheirOwnPlaces: watches outlive the timeout of a call, are
// bounded, do not count as calls, and keep no newer watch out.
func TestWatchesHaveTheirOwnPlaces(t *testing.T) {
	w := start(t, false, func(c *Config) { c.Timeout = 100 * time.Millisecond; c.MaxStreams = 4 })
	watch := func() grpc_health_v1.Health_WatchClient {
		t.Helper()
		s, err := grpc_health_v1.NewHealthClient(w.dial(nil)).Watch(timed(t), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	one := watch()
	if n := w.server.api.Strangers.Used() + w.server.api.Calls.Inside(); n != 0 {
		t.Errorf("%d calls", n)
	}
	time.Sleep(200 * time.Millisecond) // longer than a call may take
	w.serving(false)
	if r, err := one.Recv(); err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("the first watch: %v, %v", r, err)
	}
	two := watch() // of the same source, which may have one of the four
	if _, err := one.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the first watch beside a second: %v", err)
	}
	w.serving(true)
	if r, err := two.Recv(); err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the second watch: %v, %v", r, err)
	}
	two.CloseSend()
	if n := w.server.gates.watches.Used(); n != 1 {
		t.Errorf("%d watches are counted", n)
	}
}

func TestWatchesEnd(t *testing.T) {
	w := start(t, false, func(c *Config) { c.WatchTime = 50 * time.Millisecond })
	s, err := grpc_health_v1.NewHealthClient(w.dial(nil)).Watch(timed(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || detailOf(err).GetMessage() != errWatchOver.Message {
		t.Errorf("got %v", err)
	}
	eventually(t, "the place is given back", func() bool { return w.server.gates.watches.Used() == 0 })
}

// TestConnectionsAreKnown: a connection counts in the class of its authenticated
// caller, and the certificate of a node authenticates nobody here.
func TestConnectionsAreKnown(t *testing.T) {
	for _, tt := range []struct{ name, uri, token, want string }{
		{"nobody", "", "", "stranger"},
		{"a wrong token", "", "bad", "stranger"},
		{"a token", "", "good", "client"},
		{"an operator", "conclave://operator/bob", "", "operator"},
		{"a node", "conclave://node/n2", "", "stranger"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, true, nil)
			c := w.dial(nil)
			if tt.uri != "" {
				c = w.dial(w.ca.issue(nil, tt.uri))
			}
			ctx := timed(t)
			if tt.token != "" {
				ctx = withToken(ctx, tt.token)
			}
			kmspb.NewKMSClient(c).ListKeys(ctx, &kmspb.ListKeysRequest{})
			mfs, err := w.metrics.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, mf := range mfs {
				for _, m := range mf.GetMetric() {
					if mf.GetName() == "conclave_connections_open" && m.GetGauge().GetValue() > 0 {
						got += m.GetLabel()[0].GetValue()
					}
				}
			}
			if got != tt.want {
				t.Errorf("the connection is a %s's, want %s", got, tt.want)
			}
		})
	}
}
