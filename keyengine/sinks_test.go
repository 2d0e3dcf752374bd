package keyengine

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/auditsink"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// hook is a receiver that counts how often it has got each record.
type hook struct {
	mu      sync.Mutex
	got     map[uint64]int
	acks    int
	asked   int
	blocked chan struct{} // not nil while it answers nothing
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	blocked := h.blocked
	h.mu.Unlock()
	if blocked != nil {
		<-blocked
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	for lines.Scan() {
		var line struct {
			EventName string `json:"eventName"`
			Conclave  struct {
				Index uint64 `json:"index"`
			} `json:"conclave"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if h.got[line.Conclave.Index]++; line.EventName == "AcknowledgeAuditSink" {
			h.acks++
		}
	}
}

// all reports whether the receiver has the first n records.
func (h *hook) all(n uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range n {
		if h.got[i] == 0 {
			return false
		}
	}
	return true
}

func hookSink(t *testing.T, h *hook) []auditsink.Sink {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	return []auditsink.Sink{{Name: "hook", Webhook: &auditsend.Webhook{URL: server.URL, SecretFile: secret}}}
}

// sinksOf returns the service that sends for a node.
func sinksOf(t *testing.T, e *Engine, sinks []auditsink.Sink) *auditsink.Service {
	t.Helper()
	s, err := auditsink.New(auditsink.Config{
		NodeID: e.cfg.NodeID, Sinks: sinks, Feed: e.feed, Vault: e.vault, Replica: e.replica, Events: e.events, Log: e.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// TestSinksAcrossLeaders: a receiver gets each record once when the leadership moves, also if it
// was blocked in between, and nothing is lost when a leader ends without warning.
func TestSinksAcrossLeaders(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	h := &hook{got: make(map[uint64]int)}
	sinks := hookSink(t, h)
	lead := func(node string) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s := sinksOf(t, c.engines[node], sinks)
		go func() {
			defer close(done)
			s.Lead(ctx)
		}()
		return func() { cancel(); <-done }
	}
	work := func() {
		for range 20 {
			must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
		}
	}
	c.finalize()
	work()
	end := lead("n1")
	work()
	eventually(t, "what n1 sends", func() bool { return h.all(40) })
	end()

	end = lead("n2")
	work()
	eventually(t, "what n2 sends", func() bool { return h.all(60) })
	end()
	h.mu.Lock()
	for i, n := range h.got {
		if n != 1 {
			t.Errorf("record %d was delivered %d times", i, n)
		}
	}
	h.blocked = make(chan struct{})
	h.mu.Unlock()

	end = lead("n1")
	began := time.Now()
	work()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("with a blocked sink, requests took %v", took)
	}
	h.mu.Lock()
	close(h.blocked)
	h.blocked = nil
	h.mu.Unlock()
	eventually(t, "what was held up", func() bool { return h.all(80) })
	c.engines["n1"].vault.Seal() // without a last word
	end()
	end = lead("n2")
	work2 := func() {
		for range 20 {
			if _, err := callAs[kmsapi.GenerateRandomOutput](c, c.engines["n2"], c.root, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))}); err != nil {
				t.Fatal(err)
			}
		}
	}
	work2()
	size := c.Audit.Size()
	eventually(t, "what n2 sends after n1 was lost", func() bool { return h.all(size) })
	end()
	h.mu.Lock()
	defer h.mu.Unlock()
	t.Logf("%d records, of which %d are acknowledgements", len(h.got), h.acks)
	if h.acks > 15 {
		t.Errorf("there are %d acknowledgements", h.acks)
	}
}

// TestSinksAreListedAndForgotten: whoever may read the log sees how far a receiver is, and why it
// failed on the node that sends; one that is in use is not forgotten, and one that is not is.
func TestSinksAreListedAndForgotten(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.finalize()
	h := &hook{got: make(map[uint64]int)}
	n1, n2 := c.engines["n1"], c.engines["n2"]
	n1.Sinks = sinksOf(t, n1, hookSink(t, h))
	lead := func() (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			n1.Sinks.Lead(ctx)
		}()
		return func() { cancel(); <-done }
	}
	work := func() {
		must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
	}
	root := &iam.Caller{Identity: c.root}
	list := func(e *Engine) AuditSink {
		all, err := e.AuditSinks(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || all[0].Name != "hook" {
			t.Fatalf("the sinks are %+v", all)
		}
		return all[0]
	}
	refused := func(e *Engine, name string, want error, why string) {
		t.Helper()
		if err := e.ForgetAuditSink(t.Context(), root, name); !errors.Is(err, want) {
			t.Errorf("%s: forgetting gives %v, want %v", why, err, want)
		}
	}
	refused(n1, "hook", kmsapi.ErrNotFound, "a sink to which nothing was sent")
	end := lead()
	work()
	eventually(t, "the receiver has all", func() bool {
		s := list(n1)
		return s.Kind == "webhook" && s.Node == "n1" && s.Confirmed > 1 && s.Lag == 0 && s.Age == 0 && s.Error == ""
	})
	if s := list(n2); s.Kind != "" || s.Node != "n1" {
		t.Errorf("n2, which does not send, says %+v", s)
	}
	refused(n1, "hook", kmsapi.ErrInvalidState, "n1 is configured with it")
	refused(n2, "hook", kmsapi.ErrInvalidState, "n1 sends")
	h.mu.Lock()
	h.blocked = make(chan struct{})
	close(h.blocked)
	h.mu.Unlock()
	work()
	eventually(t, "a failure is shown", func() bool {
		s := list(n1)
		return strings.Contains(s.Error, "503") && !s.ErrorAt.IsZero() && s.Lag > 0
	})
	if s := list(n2); s.Error != "" {
		t.Errorf("n2, which does not send, says %+v", s)
	}
	h.mu.Lock()
	h.blocked = nil
	h.mu.Unlock()
	eventually(t, "it recovers", func() bool { return list(n1).Lag == 0 })
	end()
	if s := list(n2); s.Node != "" || s.Lag > 5 {
		t.Errorf("when n1 has stopped, n2 says %+v", s)
	}
	if err := n2.ForgetAuditSink(t.Context(), root, "hook"); err != nil {
		t.Fatal(err)
	}
	if r := c.lastRecord(); r.EventName != "ForgetAuditSink" || len(r.RequestParameters) != 1 || r.RequestParameters[0].GetText() != "hook" {
		t.Errorf("the record is %+v", r)
	}
	if all, err := n2.AuditSinks(t.Context(), root); err != nil || len(all) != 0 {
		t.Errorf("after that there are %+v, %v", all, err)
	}
	refused(n2, "hook", kmsapi.ErrNotFound, "it was forgotten")
	refused(n2, strings.Repeat("x", 4096), kmsapi.ErrValidation, "a name that is too long")
}

// TestSinksGather: records that are committed soon after each other are sent together, so that a
// receiver of a busy cluster is not sent a request for each.
func TestSinksGather(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.finalize()
	h := &hook{got: make(map[uint64]int)}
	s := sinksOf(t, c.engine, hookSink(t, h))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Lead(ctx)
	}()
	defer func() { cancel(); <-done }()
	began, n := time.Now(), 0
	for ; time.Since(began) < 600*time.Millisecond || n < 100; n++ {
		must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
	}
	size := c.Audit.Size()
	eventually(t, "the receiver has all", func() bool { return h.all(size) })
	took := time.Since(began)
	h.mu.Lock()
	defer h.mu.Unlock()
	if most := int(took/(100*time.Millisecond)) + int(size)/256 + 2; h.asked > most {
		t.Errorf("%d records of %v were sent in %d requests, more than %d", size, took, h.asked, most)
	}
}
