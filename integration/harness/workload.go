package harness

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Sealed is what a client got encrypted.
type Sealed struct {
	Key             string
	Blob, Plaintext []byte
}

// Workload uses and changes keys at all nodes until it is told to stop. Every
// name that it makes up is used once, so that a change that took effect twice, or
// was lost, shows.
type Workload struct {
	t       *testing.T
	c       *Cluster
	h       *History
	stop    chan struct{}
	workers sync.WaitGroup
	Answers atomic.Int64 // definite ones

	mu     sync.Mutex
	keys   []string // that clients were told of
	sealed []Sealed
}

// StartWorkload starts workers that ask a random node each time.
func StartWorkload(t *testing.T, c *Cluster, h *History, seed uint64, workers int) *Workload {
	nodes := c.Nodes
	return StartWorkloadOn(t, c, h, seed, workers, func() []*Node { return nodes })
}

// StartWorkloadOn starts workers that ask one of the nodes that there are each time.
func StartWorkloadOn(t *testing.T, c *Cluster, h *History, seed uint64, workers int, nodes func() []*Node) *Workload {
	w := &Workload{t: t, c: c, h: h, stop: make(chan struct{})}
	for i := range workers {
		w.workers.Go(func() { w.work(i, nodes, rand.New(rand.NewPCG(seed, uint64(1000+i)))) })
	}
	return w
}

// StartSteadyWorkload starts workers that stay with their node, so that a node
// that does not answer holds up its own only.
func StartSteadyWorkload(t *testing.T, c *Cluster, h *History, seed uint64, workers int) *Workload {
	w := &Workload{t: t, c: c, h: h, stop: make(chan struct{})}
	for i := range workers {
		own := []*Node{c.Nodes[i%len(c.Nodes)]}
		w.workers.Go(func() { w.work(i, func() []*Node { return own }, rand.New(rand.NewPCG(seed, uint64(1000+i)))) })
	}
	return w
}

// Keys are the keys that clients were told of.
func (w *Workload) Keys() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.keys)
}

// Finish ends the workload; calls that are under way end first.
func (w *Workload) Finish() {
	close(w.stop)
	w.workers.Wait()
}

// AwaitAnswers waits until clients got more answers.
func (w *Workload) AwaitAnswers(more int64) {
	w.t.Helper()
	want := w.Answers.Load() + more
	w.c.Eventually(fmt.Sprintf("waiting for %d more answers", more), func(context.Context) error {
		if n := w.Answers.Load(); n < want {
			return fmt.Errorf("%d are missing", want-n)
		}
		return nil
	})
}

func (w *Workload) work(id int, nodes func() []*Node, random *rand.Rand) {
	ctx := context.Background()
	var key string
	var kept *Sealed
	for n := 0; ; n++ {
		select {
		case <-w.stop:
			return
		default:
		}
		there := nodes()
		at := w.h.At(there[random.IntN(len(there))])
		var o Op
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
					if plaintext, o = at.Decrypt(ctx, kept.Blob); o.Code == "" && !bytes.Equal(plaintext, kept.Plaintext) {
						w.t.Errorf("%s on %s gave another plaintext", o.RequestID, o.Node)
					}
					break
				}
				fallthrough
			default:
				s := Sealed{Key: key, Plaintext: []byte(name)}
				if s.Blob, _, o = at.Encrypt(ctx, key, s.Plaintext); o.Code == "" {
					kept = &s
					w.mu.Lock()
					w.sealed = append(w.sealed, s)
					w.mu.Unlock()
				}
			}
		}
		if o.Definite() {
			w.Answers.Add(1)
		} else {
			time.Sleep(time.Duration(5+random.IntN(20)) * time.Millisecond)
		}
	}
}

// UntilDefinite makes a call until it is answered for good: a cluster that serves may
// still be changing its leader.
func UntilDefinite(call func() Op) Op {
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if o := call(); o.Definite() || time.Since(start) > Patience {
			return o
		}
	}
}

// MadeKey is a key that a node makes while others ask much of it.
func MadeKey(t *testing.T, at Calls, description string) (key string) {
	t.Helper()
	if o := UntilDefinite(func() (o Op) {
		key, o = at.CreateKey(t.Context(), description)
		return o
	}); o.Code != "" {
		t.Fatal(o)
	}
	return key
}

// OpensEverywhere checks that what clients got encrypted opens at every running
// node, for some of it.
func (w *Workload) OpensEverywhere(random *rand.Rand) {
	w.t.Helper()
	w.mu.Lock()
	list := w.sealed
	w.mu.Unlock()
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	enabled := make(map[string]bool)
	for _, s := range list[:min(len(list), 50)] {
		for _, nd := range w.c.Running() {
			at := w.h.At(nd)
			if !enabled[s.Key] {
				if o := UntilDefinite(func() Op { return at.EnableKey(w.t.Context(), s.Key) }); o.Code != "" {
					w.t.Error(o)
				}
				enabled[s.Key] = true
			}
			Opens(w.t, at, s.Blob, s.Plaintext)
		}
	}
}

// Opens checks that a ciphertext opens at a node.
func Opens(t *testing.T, at Calls, blob, want []byte) {
	t.Helper()
	var got []byte
	o := UntilDefinite(func() (o Op) {
		got, o = at.Decrypt(t.Context(), blob)
		return o
	})
	if o.Code != "" || !bytes.Equal(got, want) {
		t.Errorf("%v: opened to %q, want %q", o, got, want)
	}
}
