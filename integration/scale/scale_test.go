package scale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// scaleQuotaGrants is how many grants one key may have.
const scaleQuotaGrants = 50_000

// measured is how a cluster did.
type measured struct {
	start, unsealed, snapshot time.Duration
	encrypt                   encrypted
	heap                      uint64 // of all three nodes
}

// encrypted is how Encrypt, or another request, did in a window, or the median of windows.
type encrypted struct {
	p50, p99 time.Duration
	rate     float64
}

func (e encrypted) String() string {
	return fmt.Sprintf("%10v %10v %10.0f", ms(e.p50), ms(e.p99), e.rate)
}

// TestScale fills a cluster with keys, aliases and grants, and holds it against the
// same cluster when it was empty: a node's start, a snapshot, lists, and Encrypt. Half
// of the grants are on one key. `make scale` makes 100,000 of each.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("measures, which the race detector spoils: make scale runs it")
	}
	if os.Getenv("GOGC") == "" {
		// As a server does. With three nodes in one process the collector has thrice
		// as much to mark, and is due as often.
		defer debug.SetGCPercent(debug.SetGCPercent(node.GCPercent))
	}
	seed := harness.NewSeed(t)
	size := sizeOf(t)
	w := &scaled{t: t, seed: seed, keys: make([]string, size)}
	w.start(func(*harness.Node, *node.Config) {})
	c := w.c
	w.check(w.createKey(0))
	empty := w.measure(w.keys[:1])

	began := time.Now()
	w.parallel(1, size, w.createKey)
	w.parallel(0, size, func(i int) error {
		_, err := w.at(i).CreateAlias(t.Context(), &kmspb.CreateAliasRequest{AliasName: new(fmt.Sprintf("alias/scale/%06d", i)), TargetKeyId: &w.keys[i]})
		return err
	})
	c.MakePrincipals("role/reader", "role/retirer")
	var last sync.Map // key → grant
	w.parallel(0, size, func(i int) error {
		key := w.keys[i]
		if i < min(size/2, scaleQuotaGrants) {
			key = w.keys[0]
		}
		g, err := w.at(i).CreateGrant(t.Context(), &kmspb.CreateGrantRequest{
			KeyId: &key, GranteePrincipal: new(fmt.Sprintf("arn:aws:sts::%s:assumed-role/reader/s%d", harness.Account, i)),
			RetiringPrincipal: new(fmt.Sprintf("arn:aws:iam::%s:role/retirer", harness.Account)), Operations: []string{"Encrypt", "Decrypt"},
		})
		last.Store(key, g.GetGrantId())
		return err
	})
	t.Logf("filled in %v", time.Since(began).Round(time.Second))
	full := w.measure(w.keys)
	w.lists()
	w.use(&last)
	c.Converged()
	c.NoFaults()

	perKey := float64(int64(full.heap)-int64(empty.heap)) / 3 / float64(size)
	t.Logf("%d keys, %d aliases, %d grants; three nodes in one process, seed %d\n"+
		"                      empty       full\n"+
		"node started   %12v %10v\n"+
		"and unsealed   %12v %10v\n"+
		"snapshot       %12v %10v\n"+
		"Encrypt p50    %12v %10v\n"+
		"Encrypt p99    %12v %10v\n"+
		"Encrypt op/s   %12.0f %10.0f\n"+
		"memory per key, with its alias and grant: %.0f bytes a node",
		size, size, size, seed, ms(empty.start), ms(full.start), ms(empty.unsealed), ms(full.unsealed), ms(empty.snapshot), ms(full.snapshot),
		ms(empty.encrypt.p50), ms(full.encrypt.p50), ms(empty.encrypt.p99), ms(full.encrypt.p99), empty.encrypt.rate, full.encrypt.rate, perKey)
	if size < 50_000 {
		return // too little to say anything of the figures
	}
	if full.start > 15*time.Second || full.snapshot > 15*time.Second {
		t.Errorf("a node starts in %v and writes its snapshot in %v: want 15 s at the most", full.start, full.snapshot)
	}
	if perKey > 16<<10 {
		t.Errorf("a key, its alias and grant take %.0f bytes: want 16 KiB at the most", perKey)
	}
	if full.encrypt.p99 > 2*empty.encrypt.p99+10*time.Millisecond {
		t.Errorf("the p99 of Encrypt is %v, and was %v when the cluster was empty", full.encrypt.p99, empty.encrypt.p99)
	}
}

// sizeOf returns how many objects of a kind there are to be.
func sizeOf(t *testing.T) int {
	t.Helper()
	v := os.Getenv("CONCLAVE_SCALE")
	if v == "" {
		return 1000
	}
	size, err := strconv.Atoi(v)
	if err != nil || size < 100 || size > 100_000 {
		t.Fatalf("CONCLAVE_SCALE=%s: want 100 to 100000", v)
	}
	return size
}

func ms(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// scaled is a cluster being filled.
type scaled struct {
	t    *testing.T
	c    *harness.Cluster
	seed uint64
	keys []string
	soon atomic.Pointer[harness.Node] // it makes snapshots all the time from its next start on
}

// start starts the cluster. Snapshots come as often as a server makes them, and when one is
// waited for.
func (w *scaled) start(configure func(*harness.Node, *node.Config)) {
	w.c = harness.NewCluster(w.t, 3, harness.Options{Configure: func(n *harness.Node, cfg *node.Config) {
		cfg.OpsListen = n.Ops
		if w.soon.Load() == n {
			cfg.Test.SnapshotEntries, cfg.Timeouts.Snapshot = 1, 100*time.Millisecond
		}
		configure(n, cfg)
	}})
}

// at spreads requests over the nodes.
func (w *scaled) at(i int) kmspb.KMSClient { return w.c.Nodes[i%len(w.c.Nodes)].KMS() }

func (w *scaled) check(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

func (w *scaled) createKey(i int) error {
	out, err := w.at(i).CreateKey(w.t.Context(), &kmspb.CreateKeyRequest{Description: new(fmt.Sprintf("scale %d", i))})
	w.keys[i] = out.GetKeyMetadata().GetKeyId()
	return err
}

// patiently does something. What the cluster was too busy for, and did not do, is done again,
// as clients do.
func (w *scaled) patiently(do func() error) error {
	err := do()
	for status.Code(err) == codes.ResourceExhausted && w.t.Context().Err() == nil {
		err = do()
	}
	return err
}

// parallel does something for each number, many at a time and patiently, until one failed.
func (w *scaled) parallel(from, to int, do func(i int) error) {
	w.t.Helper()
	var next atomic.Int64
	next.Store(int64(from))
	var workers sync.WaitGroup
	for range 128 {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(to) && !w.t.Failed(); i = next.Add(1) - 1 {
				w.check(w.patiently(func() error { return do(int(i)) }))
			}
		})
	}
	workers.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// measure measures the cluster as it is, with Encrypt under some of its keys.
func (w *scaled) measure(keys []string) (m measured) {
	w.t.Helper()
	m.encrypt = w.encrypt(keys)
	m.start, m.unsealed, m.snapshot = w.starts(keys[0])
	w.c.Converged()
	m.heap = w.heap()
	return m
}

// starts has a node make a snapshot of everything, and starts it from that.
func (w *scaled) starts(key string) (started, unsealed, snapshot time.Duration) {
	w.t.Helper()
	n := w.c.Nodes[(w.c.Leader().Index+1)%3]
	w.soon.Store(n)
	w.restart(n)
	w.c.Eventually("waiting for a snapshot", func(ctx context.Context) error {
		if _, err := n.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &key}); err != nil {
			return err
		}
		count := harness.Metric(w.t, n, "conclave_raft_snapshot_seconds_count")
		if count == 0 {
			return errors.New("there is none")
		}
		snapshot = time.Duration(harness.Metric(w.t, n, "conclave_raft_snapshot_seconds_sum") / count * float64(time.Second))
		return nil
	})
	w.soon.Store(nil)
	started, unsealed = w.restart(n)
	return started, unsealed, snapshot
}

// heap is the memory of all nodes that is in use.
func (w *scaled) heap() uint64 {
	runtime.GC()
	runtime.GC() // so that what pools kept is gone too
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return mem.HeapAlloc
}

// encrypt measures Encrypt in windows that each hold a whole cycle of the garbage
// collector, and gives the medians. A filled cluster has cycles seldom and long
// ones: a window without one would be all too good, and one cut out around one too
// bad, so the first begins after a cycle and each ends with the next.
func (w *scaled) encrypt(keys []string) encrypted {
	w.t.Helper()
	runtime.GC() // what was before is not what is measured
	var all []encrypted
	for began := time.Now(); len(all) == 0 || len(all) < 3 && len(w.keys) >= 20_000 && time.Since(began) < 45*time.Second; {
		began, cycles, snapshots := time.Now(), gcCycles(), w.snapshots()
		e := w.encrypts(keys, func() bool {
			took := time.Since(began)
			if took > 2*time.Minute {
				w.t.Errorf("no cycle of the garbage collector was due for %v", took)
				return false
			}
			return took < 3*time.Second || gcCycles() == cycles
		})
		w.t.Logf("%d keys, %v: %d GC cycles, %d snapshots, p50 %v, p99 %v, %.0f op/s", len(keys), time.Since(began).Round(10*time.Millisecond),
			gcCycles()-cycles, w.snapshots()-snapshots, ms(e.p50), ms(e.p99), e.rate)
		all = append(all, e)
	}
	return encrypted{
		p50:  median(all, func(e encrypted) time.Duration { return e.p50 }),
		p99:  median(all, func(e encrypted) time.Duration { return e.p99 }),
		rate: median(all, func(e encrypted) float64 { return e.rate }),
	}
}

// median is the middle one, or the greater of the two.
func median[T cmp.Ordered](all []encrypted, of func(encrypted) T) T {
	figures := make([]T, len(all))
	for i, e := range all {
		figures[i] = of(e)
	}
	slices.Sort(figures)
	return figures[len(figures)/2]
}

// gcCycles counts the collector's finished cycles, without stopping anything.
func gcCycles() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// restart stops a node and starts it.
func (w *scaled) restart(n *harness.Node) (started, unsealed time.Duration) {
	n.Stop()
	began := time.Now()
	n.Start()
	started = time.Since(began)
	n.Unseal()
	w.c.WaitReady(n)
	return started, time.Since(began)
}

// snapshots counts those that the nodes have written.
func (w *scaled) snapshots() (sum int) {
	for _, n := range w.c.Nodes {
		sum += int(harness.Metric(w.t, n, "conclave_raft_snapshot_seconds_count"))
	}
	return sum
}

// callers is how many make requests at the same time.
const callers = 16

// encrypts has 16 callers encrypt while it goes on, with keys chosen at random.
func (w *scaled) encrypts(keys []string, goesOn func() bool) encrypted {
	w.t.Helper()
	took := make([][]time.Duration, callers)
	var all sync.WaitGroup
	var stop atomic.Bool
	began := time.Now()
	for i := range callers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(w.seed, uint64(i)))
			plaintext := make([]byte, 1024)
			for !stop.Load() {
				start := time.Now()
				_, err := w.at(i).Encrypt(w.t.Context(), &kmspb.EncryptRequest{KeyId: &keys[random.IntN(len(keys))], Plaintext: plaintext})
				if err != nil {
					w.t.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	for goesOn() && !w.t.Failed() {
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	all.Wait()
	lasted := time.Since(began)
	sorted := slices.Sorted(slices.Values(slices.Concat(took...)))
	if len(sorted) < 100 {
		w.t.Fatalf("%d answers in %v", len(sorted), lasted)
	}
	return encrypted{p50: sorted[len(sorted)/2], p99: sorted[len(sorted)*99/100], rate: float64(len(sorted)) / lasted.Seconds()}
}

// lists reads everything, page by page, each page at another node. The lists are read
// at the same time.
func (w *scaled) lists() {
	w.t.Helper()
	ctx := w.t.Context()
	began := time.Now()
	var pages atomic.Int64
	var all sync.WaitGroup
	count := func(seen *int, list func(kms kmspb.KMSClient, marker *string) (names []string, next *string, err error)) {
		all.Go(func() {
			known := make(map[string]bool)
			var marker *string
			for more := true; more; more = marker != nil {
				names, next, err := list(w.at(int(pages.Add(1))), marker)
				if err != nil {
					w.t.Error(err)
					return
				}
				for _, n := range names {
					if known[n] {
						w.t.Errorf("%s is listed twice", n)
						return
					}
					known[n] = true
				}
				marker = next
			}
			*seen = len(known)
		})
	}
	var keys, aliases, ofOne, retirable int
	count(&keys, func(kms kmspb.KMSClient, marker *string) (names []string, _ *string, _ error) {
		out, err := kms.ListKeys(ctx, &kmspb.ListKeysRequest{Limit: new(int32(1000)), Marker: marker})
		for _, k := range out.GetKeys() {
			names = append(names, k.GetKeyId())
		}
		return names, next(out), err
	})
	count(&aliases, func(kms kmspb.KMSClient, marker *string) (names []string, _ *string, _ error) {
		out, err := kms.ListAliases(ctx, &kmspb.ListAliasesRequest{Limit: new(int32(100)), Marker: marker})
		for _, a := range out.GetAliases() {
			names = append(names, a.GetAliasName())
		}
		return names, next(out), err
	})
	count(&ofOne, func(kms kmspb.KMSClient, marker *string) (names []string, _ *string, _ error) {
		out, err := kms.ListGrants(ctx, &kmspb.ListGrantsRequest{KeyId: &w.keys[0], Limit: new(int32(100)), Marker: marker})
		for _, g := range out.GetGrants() {
			names = append(names, g.GetGrantId())
		}
		return names, next(out), err
	})
	count(&retirable, func(kms kmspb.KMSClient, marker *string) (names []string, _ *string, _ error) {
		out, err := kms.ListRetirableGrants(ctx, &kmspb.ListRetirableGrantsRequest{
			RetiringPrincipal: new(fmt.Sprintf("arn:aws:iam::%s:role/retirer", harness.Account)), Limit: new(int32(100)), Marker: marker,
		})
		for _, g := range out.GetGrants() {
			names = append(names, g.GetGrantId())
		}
		return names, next(out), err
	})
	all.Wait()
	size := len(w.keys)
	if keys != size || aliases != size || ofOne != min(size/2, scaleQuotaGrants) || retirable != size {
		w.t.Errorf("listed %d keys, %d aliases, %d grants of one key and %d retirable ones", keys, aliases, ofOne, retirable)
	}
	w.t.Logf("listed all, %d pages, in %v", pages.Load(), time.Since(began).Round(time.Millisecond))
}

// next is where a list goes on; nil at its end.
func next(out interface{ GetNextMarker() string }) *string {
	if m := out.GetNextMarker(); m != "" {
		return &m
	}
	return nil
}

// use does with some keys what is done with keys, by all of their names.
func (w *scaled) use(grants *sync.Map) {
	w.t.Helper()
	ctx := w.t.Context()
	random := rand.New(rand.NewPCG(w.seed, 1<<20))
	for range 200 {
		i := random.IntN(len(w.keys))
		alias := fmt.Sprintf("alias/scale/%06d", i)
		enc, err := w.at(i).Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &alias, Plaintext: []byte(alias)})
		if err != nil {
			w.t.Fatal(err)
		}
		dec, err := w.at(i+1).Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: enc.GetCiphertextBlob(), KeyId: &w.keys[i]})
		if err != nil || string(dec.GetPlaintext()) != alias {
			w.t.Fatalf("Decrypt gave %q, %v", dec.GetPlaintext(), err)
		}
	}
	n := 0
	grants.Range(func(key, grant any) bool {
		_, err := w.at(n).RevokeGrant(ctx, &kmspb.RevokeGrantRequest{KeyId: new(key.(string)), GrantId: new(grant.(string))})
		w.check(err)
		n++
		return n < 100 && err == nil
	})
}
