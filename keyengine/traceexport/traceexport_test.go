package traceexport

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/keyengine/trace"
)

// TestFullQueue: what does not fit into the queue is dropped at once, and all its spans count.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{To: Collector{URL: "http://127.0.0.1:1/v1/traces"}, NodeID: "n1", Log: slog.New(slog.DiscardHandler), Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	for range queued + 10 {
		e.Add(&trace.Done{Parts: make([]trace.Part, 4)})
	}
	if n := testutil.ToFloat64(m.dropped.WithLabelValues(dropFull)); n != 10*5 {
		t.Errorf("%v spans are counted as dropped, want 50", n)
	}
}

// TestLastWords: when the node stops, what is queued is sent in one request, however much it is.
// A collector that answers nothing holds up the stop by one such request only.
func TestLastWords(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	const waiting, exporters = 3 * together, 8 // one that goes on by chance does so in half of all stops
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var stops sync.WaitGroup
	for range exporters {
		e, err := New(Config{To: Collector{URL: server.URL + "/v1/traces"}, NodeID: "n1", Log: slog.New(slog.DiscardHandler), Metrics: m})
		if err != nil {
			t.Fatal(err)
		}
		for range waiting {
			e.Add(&trace.Done{Operation: "Encrypt"})
		}
		stops.Go(func() { e.Run(ended) })
	}
	stops.Wait()
	if n := requests.Load(); n > exporters { // fewer, if one had no time to connect
		t.Errorf("%d nodes sent %d requests after their end, want at most one each", exporters, n)
	}
	if n := testutil.ToFloat64(m.dropped.WithLabelValues(dropRefused)); n != exporters*waiting {
		t.Errorf("%v spans are counted as refused, want %d", n, exporters*waiting)
	}
}

// TestAddresses: as for the sinks of the audit log, a collector is not link-local, and without TLS
// it is on loopback.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"http://192.0.2.1:4318/v1/traces", "http://169.254.169.254/v1/traces", "https://169.254.169.254/v1/traces"} {
		m, err := NewMetrics(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		e, err := New(Config{To: Collector{URL: url}, NodeID: "n1", Log: slog.New(slog.DiscardHandler), Metrics: m})
		if err != nil {
			t.Fatal(err)
		}
		e.span(&trace.Done{Operation: "Encrypt"})
		e.send(t.Context(), attempt)
		if n := testutil.ToFloat64(m.dropped.WithLabelValues(dropRefused)); n != 1 {
			t.Errorf("%s: %v spans are counted as refused, want 1", url, n)
		}
	}
}
