package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// sealed is what a client got encrypted.
type sealed struct {
	key             string
	blob, plaintext []byte
}

// workload uses and changes keys at all nodes until it is told to stop. Every
// name that it makes up is used once, so that a change that took effect twice, or
// was lost, shows.
type workload struct {
	t       *testing.T
	c       *harness.Cluster
	h       *harness.History
	stop    chan struct{}
	workers sync.WaitGroup
	answers atomic.Int64 // definite ones

	mu     sync.Mutex
	keys   []string // that clients were told of
	sealed []sealed
}

// startWorkload starts workers that ask a random node each time.
func startWorkload(t *testing.T, c *harness.Cluster, h *harness.History, seed uint64, workers int) *workload {
	w := &workload{t: t, c: c, h: h, stop: make(chan struct{})}
	for i := range workers {
		w.workers.Go(func() { w.work(i, c.Nodes, rand.New(rand.NewPCG(seed, uint64(1000+i)))) })
	}
	return w
}

// startSteadyWorkload starts workers that stay with their node, so that a node
// that does not answer holds up its own only.
func startSteadyWorkload(t *testing.T, c *harness.Cluster, h *harness.History, seed uint64, workers int) *workload {
	w := &workload{t: t, c: c, h: h, stop: make(chan struct{})}
	for i := range workers {
		own := c.Nodes[i%len(c.Nodes)]
		w.workers.Go(func() { w.work(i, []*harness.Node{own}, rand.New(rand.NewPCG(seed, uint64(1000+i)))) })
	}
	return w
}

// finish ends the workload; calls that are under way end first.
func (w *workload) finish() {
	close(w.stop)
	w.workers.Wait()
}

// awaitAnswers waits until clients got more answers.
func (w *workload) awaitAnswers(more int64) {
	w.t.Helper()
	want := w.answers.Load() + more
	w.c.Eventually(fmt.Sprintf("waiting for %d more answers", more), func(context.Context) error {
		if n := w.answers.Load(); n < want {
			return fmt.Errorf("%d are missing", want-n)
		}
		return nil
	})
}

func (w *workload) work(id int, nodes []*harness.Node, random *rand.Rand) {
	ctx := context.Background()
	var key string
	var kept *sealed
	for n := 0; ; n++ {
		select {
		case <-w.stop:
			return
		default:
		}
		at := w.h.At(nodes[random.IntN(len(nodes))])
		var o harness.Op
		name := fmt.Sprintf("%d-%d", id, n)
		if key == "" || n%40 == 0 {
			var made string
			if made, o = at.CreateKey(ctx, name); o.Code == "" {
				key, kept = made, nil
				w.mu.Lock()
				w.keys = append(w.keys, key)
				w.mu.Unlock()
			}
		} else {
			switch random.IntN(12) {
			case 0:
				o = at.CreateAlias(ctx, "alias/"+name, key)
			case 1:
				o = at.DeleteAlias(ctx, fmt.Sprintf("alias/%d-%d", id, n-1-random.IntN(12)))
			case 2:
				o = at.UpdateAlias(ctx, fmt.Sprintf("alias/%d-%d", id, n-1-random.IntN(12)), key)
			case 3:
				o = at.Tag(ctx, key, name, "v")
			case 4:
				o = at.Untag(ctx, key, fmt.Sprintf("%d-%d", id, n-1-random.IntN(12)))
			case 5:
				o = at.UpdateKeyDescription(ctx, key, name)
			case 6:
				o = at.DisableKey(ctx, key)
			case 7:
				o = at.EnableKey(ctx, key)
			case 8:
				if kept != nil {
					var plaintext []byte
					if plaintext, o = at.Decrypt(ctx, kept.blob); o.Code == "" && !bytes.Equal(plaintext, kept.plaintext) {
						w.t.Errorf("%s on %s gave another plaintext", o.RequestID, o.Node)
					}
					break
				}
				fallthrough
			default:
				s := sealed{key: key, plaintext: []byte(name)}
				if s.blob, _, o = at.Encrypt(ctx, key, s.plaintext); o.Code == "" {
					kept = &s
					w.mu.Lock()
					w.sealed = append(w.sealed, s)
					w.mu.Unlock()
				}
			}
		}
		if o.Definite() {
			w.answers.Add(1)
		} else {
			time.Sleep(time.Duration(5+random.IntN(20)) * time.Millisecond)
		}
	}
}

// definite makes a call until it is answered for good: a cluster that serves may
// still be changing its leader.
func definite(call func() harness.Op) harness.Op {
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if o := call(); o.Definite() || time.Since(start) > harness.Patience {
			return o
		}
	}
}

// madeKey is a key that a node makes while others ask much of it.
func madeKey(t *testing.T, at harness.Calls, description string) (key string) {
	t.Helper()
	if o := definite(func() (o harness.Op) {
		key, o = at.CreateKey(t.Context(), description)
		return o
	}); o.Code != "" {
		t.Fatal(o)
	}
	return key
}

// opensEverywhere checks that what clients got encrypted opens at every running
// node, for some of it.
func (w *workload) opensEverywhere(random *rand.Rand) {
	w.t.Helper()
	w.mu.Lock()
	list := w.sealed
	w.mu.Unlock()
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	enabled := make(map[string]bool)
	for _, s := range list[:min(len(list), 50)] {
		for _, nd := range w.c.Running() {
			at := w.h.At(nd)
			if !enabled[s.key] {
				if o := definite(func() harness.Op { return at.EnableKey(w.t.Context(), s.key) }); o.Code != "" {
					w.t.Error(o)
				}
				enabled[s.key] = true
			}
			opensTo(w.t, at, s.blob, s.plaintext)
		}
	}
}

// opensTo checks that a ciphertext opens at a node.
func opensTo(t *testing.T, at harness.Calls, blob, want []byte) {
	t.Helper()
	var got []byte
	o := definite(func() (o harness.Op) {
		got, o = at.Decrypt(t.Context(), blob)
		return o
	})
	if o.Code != "" || !bytes.Equal(got, want) {
		t.Errorf("%v: opened to %q, want %q", o, got, want)
	}
}
