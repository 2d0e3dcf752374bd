package sinks

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	// What a sink may add to the median, and to the 99th percentile: a part of it, and what is
	// noise in short ones.
	medianRatio, medianNoise = 1.25, 2 * time.Millisecond
	tailRatio, tailNoise     = 1.5, 25 * time.Millisecond
	// tries is how often a comparison is made before it fails: what else the machine does can
	// spoil one.
	tries = 3
)

// latencies are of requests in some windows of time.
type latencies struct{ p50, p99 []time.Duration }

func median(list []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(list))[len(list)/2]
}

func (l latencies) String() string {
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", median(l.p50).Seconds()*1000, median(l.p99).Seconds()*1000)
}

// loaded is a cluster that is asked to encrypt.
type loaded struct {
	c   *harness.Cluster
	key string
}

func load(t *testing.T, config string) *loaded {
	t.Helper()
	l := new(loaded)
	l.c, l.key = clusterWith(t, config)
	return l
}

// encrypt makes n requests on the node that leads, some at a time, and returns how long each took.
func (l *loaded) encrypt(t *testing.T, n, atOnce int) []time.Duration {
	t.Helper()
	kms := l.c.Leader().KMS()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && failed.Load() == nil; i = next.Add(1) - 1 {
				began := time.Now()
				// A machine that is too busy may have another node lead.
				err := harness.Poll(t.Context(), time.Minute, func(ctx context.Context) error {
					_, err := kms.Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &l.key, Plaintext: []byte("x")})
					return err
				})
				if err != nil {
					failed.Store(&err)
				}
				took[i] = time.Since(began)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	return took
}

func (l *loaded) measure(t *testing.T, n int, to *latencies) {
	t.Helper()
	took := l.encrypt(t, n, 8)
	slices.Sort(took)
	to.p50, to.p99 = append(to.p50, took[n/2]), append(to.p99, took[n*99/100])
}

// TestHostileSinks: receivers that are blocked, slow, failing or malicious add nothing to the
// latency of requests but noise. With CONCLAVE_FAULTS=1, each of them is tried alone, too.
func TestHostileSinks(t *testing.T) {
	list, strayed := hostiles(t)
	none := load(t, "")
	compare(t, "all at once", none, list)
	if harness.AtLength() {
		for _, h := range list {
			compare(t, h.name, none, []hostile{h})
		}
	}
	if n := strayed.Load(); n > 0 {
		t.Errorf("records were sent %d times to where no sink is configured", n)
	}
}

// compare measures a cluster with some receivers beside one without.
func compare(t *testing.T, name string, none *loaded, list []hostile) {
	t.Run(name, func(t *testing.T) {
		rounds, n := 5, 400
		if harness.AtLength() {
			rounds, n = 7, 1000
		}
		before := make([]int64, len(list))
		for i, h := range list {
			before[i] = h.asked.Load()
		}
		with := load(t, configure(t, list...))
		with.c.Eventually("waiting for the receivers to be asked", func(context.Context) error {
			for i, h := range list {
				if h.asked.Load() == before[i] {
					return fmt.Errorf("nothing was sent to the one that is %s", h.name)
				}
			}
			return nil
		})
		none.encrypt(t, n, 8)
		with.encrypt(t, n, 8)
		for try := 1; ; try++ {
			var a, b latencies
			for i := range rounds {
				if i%2 == 0 { // what the machine does besides is to hit both alike
					none.measure(t, n, &a)
				}
				with.measure(t, n, &b)
				if i%2 == 1 {
					none.measure(t, n, &a)
				}
			}
			t.Logf("without sinks: %v; with these: %v", a, b)
			slower := median(b.p50) > bound(median(a.p50), medianRatio, medianNoise) || median(b.p99) > bound(median(a.p99), tailRatio, tailNoise)
			if !slower {
				break
			}
			if try == tries {
				t.Fatal("requests take longer with these sinks")
			}
		}
		// What no receiver has confirmed is still waiting.
		for _, h := range list {
			if h.confirms {
				continue
			}
			s, err := sinkAt(t.Context(), with.c.Leader(), h.name)
			if err != nil || s == nil || s.GetConfirmed() > 0 || s.GetLag() < uint64(n) {
				t.Errorf("the one that is %s: %v, %v", h.name, s, err)
			}
		}
	})
}

func bound(d time.Duration, ratio float64, noise time.Duration) time.Duration {
	return time.Duration(float64(d)*ratio) + noise
}

// TestWaitingRecords: records that wait for a receiver that is blocked are not in memory, and
// nothing else of the node grows with them, other than with the records themselves.
func TestWaitingRecords(t *testing.T) {
	t.Parallel()
	n := 4000
	if harness.AtLength() {
		n = 100_000
	}
	grow := func(config string) (memory, goroutines float64) {
		l := load(t, config)
		leader := l.c.Leader()
		read := func() (memory, goroutines float64) {
			return harness.Metric(t, leader, "process_resident_memory_bytes"), harness.Metric(t, leader, "go_goroutines")
		}
		l.encrypt(t, n/10, 32)
		m, g := read()
		l.encrypt(t, n-n/10, 32)
		memory, goroutines = read()
		t.Logf("%d records: %.1f MiB more, %.0f goroutines more", n, (memory-m)/(1<<20), goroutines-g)
		if config != "" {
			s, err := sinkAt(t.Context(), l.c.Leader(), "blocked")
			if err != nil || s.GetLag() < uint64(n) {
				t.Errorf("of %d records wait: %v, %v", n, s, err)
			}
		}
		for _, nd := range l.c.Nodes {
			nd.Kill()
		}
		return memory - m, goroutines - g
	}
	list, _ := hostiles(t)
	memory, goroutines := grow("")
	memoryWith, goroutinesWith := grow(configure(t, list[0]))
	if more := memoryWith - memory; more > 48<<20 {
		t.Errorf("with a receiver that is blocked, memory grows by %.1f MiB more", more/(1<<20))
	}
	if more := goroutinesWith - goroutines; more > 40 {
		t.Errorf("with a receiver that is blocked, there are %.0f more goroutines", more)
	}
}
