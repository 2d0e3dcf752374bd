package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// clockTrust is how far cluster time may be ahead of true time while a majority
	// of clocks is right: another voter's clock is vouched for up to 5 s off, and a
	// leader may add a second of its own.
	clockTrust = 6 * time.Second
	// promptly is how long after its time, or after the cluster can act at all, what
	// is due is done at the latest: half a minute until a leader looks again, and the
	// change of leader before.
	promptly = 40 * time.Second

	timeRoot    = "spiffe://test/root"
	timeAccount = "111122223333"
)

// world is three real nodes in a bubble: Raft, TLS, bolt and the engine as servers
// have them, on a network in memory and with clocks that tests turn. Days pass in it
// either as time that nobody is awake in (leap), or second by second.
type world struct {
	t     *testing.T
	mem   *harness.Memory
	ca    *pki.CA
	dir   string
	nodes []*worldNode
	root  iam.Identity
	share string
	leapt atomic.Int64
	// misled says that a majority of clocks was made wrong: true time counts for
	// nothing then.
	misled atomic.Bool
	// planted says that faults are no surprise.
	planted bool

	mu      sync.Mutex
	applied map[uint64]time.Time // the first time that a node had applied a Raft index
	faults  []error
}

// worldNode is a node, and what it is made of while it runs.
type worldNode struct {
	*world
	id   string
	skew atomic.Int64
	// replica changes what the engine does with the log.
	replica func(keyengine.Replica) keyengine.Replica

	up      atomic.Bool
	cluster *cluster.Node
	running atomic.Pointer[keyengine.Engine]
	audit   *auditlog.Log
	metrics *prometheus.Registry
	endLife context.CancelFunc
	work    sync.WaitGroup
	newest  int64 // cluster time here; guarded by world.mu, as past is
	past    []pastState
}

// inTime runs a test in a world of its own.
func inTime(t *testing.T, f func(*world)) {
	t.Helper()
	inTimeWith(t, nil, f)
}

// inTimeWith is inTime with something done to the nodes before they start.
func inTimeWith(t *testing.T, before, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, mem: harness.NewMemory(), dir: t.TempDir(), applied: make(map[uint64]time.Time)}
		var err error
		if w.ca, err = pki.NewCA("test CA", 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"n1", "n2", "n3"} {
			w.nodes = append(w.nodes, &worldNode{world: w, id: id})
		}
		if before != nil {
			before(w)
		}
		defer w.end()
		w.start(w.nodes...)
		w.found()
		f(w)
	})
}

// now is true time.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.leapt.Load())) }

// Now is the node's wall clock.
func (n *worldNode) Now() time.Time { return n.now().Add(time.Duration(n.skew.Load())) }

// engine is the node's engine, or the last one that it had.
func (n *worldNode) engine() *keyengine.Engine { return n.running.Load() }

func (n *worldNode) turn(by time.Duration) { n.skew.Add(int64(by)) }

func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Errorf(format, args...))
}

// follow watches each state that a node applies.
func (n *worldNode) follow(s *fsm.State) {
	now := n.now()
	n.mu.Lock()
	back := time.Duration(n.newest - s.Time())
	n.newest = s.Time()
	if _, ok := n.applied[s.Index()]; !ok {
		n.applied[s.Index()] = now
	}
	n.mu.Unlock()
	if back > 0 {
		n.fault("cluster time on %s ran back by %v", n.id, back)
	}
	if ahead := time.Unix(0, s.Time()).Sub(now); ahead > clockTrust && !n.misled.Load() {
		n.fault("cluster time on %s is %v ahead of true time", n.id, ahead)
	}
}

// lagging is the state that a node had two seconds ago.
func (n *worldNode) lagging(newest *fsm.State) *fsm.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.past = append(n.past, pastState{now, newest})
	for len(n.past) > 1 && now.Sub(n.past[1].at) >= 2*time.Second {
		n.past = n.past[1:]
	}
	return n.past[0].state
}

// pastState is a state and when it was the newest.
type pastState struct {
	at    time.Time
	state *fsm.State
}

// appliedAt is when the first node had applied a Raft index.
func (w *world) appliedAt(index uint64) (at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, t := range w.applied {
		if i >= index && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// start starts nodes and returns once their disks are open. They are sealed.
func (w *world) start(nodes ...*worldNode) {
	w.t.Helper()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.open() })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

func (n *worldNode) identity() (*pki.Identity, error) {
	cert, key, err := n.ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: n.id, Validity: 24 * time.Hour})
	if err != nil {
		return nil, err
	}
	return pki.NewIdentity(cert, key, n.ca.CertPEM())
}

// open wires a node as cmd/conclave/node does, without the faces.
func (n *worldNode) open() (err error) {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("TIME_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", n.id)
	}
	identity, err := n.identity()
	if err != nil {
		return err
	}
	if n.audit, err = auditlog.Open(filepath.Join(n.dir, n.id, "groups", "0", "audit"), auditlog.Options{Logger: log}); err != nil {
		return err
	}
	peers := make(map[string]string)
	for _, o := range n.nodes {
		peers[o.id] = n.mem.Address(o.id)
	}
	n.mu.Lock()
	n.newest, n.past = 0, nil
	n.mu.Unlock()
	var engine atomic.Pointer[keyengine.Engine]
	n.cluster, err = cluster.Open(cluster.Config{
		NodeID: n.id, DataDir: filepath.Join(n.dir, n.id), Identity: identity,
		Listener: n.mem.Listen(n.id), Advertise: peers[n.id], Peers: peers, BootstrapExpect: len(peers),
		Audit: n.audit, Clock: n, Logger: log, Hooks: cluster.Hooks{Dial: n.mem.Dialer(n.id)},
		OnFault: func(err error) { n.fault("node %s: %w", n.id, err) },
		OnApply: func(s *fsm.State, ev fsm.Events) {
			if e := engine.Load(); e != nil {
				e.OnApply(s, ev)
			}
			n.follow(s)
		},
	})
	if err != nil {
		return err
	}
	var replica keyengine.Replica = n.cluster
	if n.replica != nil {
		replica = n.replica(replica)
	}
	n.metrics = prometheus.NewRegistry()
	e, err := keyengine.New(keyengine.Config{
		NodeID: n.id, Replica: replica, Audit: n.audit, Clock: n, Logger: log, Metrics: n.metrics, AllowUnlockedMemory: true,
		RefusalRate: 1e6, RefusalBurst: 1e6,
	})
	if err != nil {
		return err
	}
	engine.Store(e)
	n.running.Store(e)
	n.cluster.SetExecutor(e.ServeForwarded)
	n.cluster.SetAuthority(node.Authority(e))
	n.cluster.SetCanLead(func() bool { return !e.Sealed() })
	n.cluster.OnLeader(e.Lead)
	var life context.Context
	life, n.endLife = context.WithCancel(context.Background())
	n.work.Go(func() { e.Run(life) })
	n.up.Store(true)
	return nil
}

// kill ends a node at once: nothing that it still does is seen by anybody.
func (n *worldNode) kill() {
	n.mem.Unplug(n.id)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.close(ctx)
}

func (n *worldNode) close(ctx context.Context) {
	n.endLife()
	_ = n.cluster.Shutdown(ctx)
	n.work.Wait()
	if err := n.unlocked(); err != nil {
		n.fault("stopping %s: %w", n.id, err)
	}
	if err := errors.Join(n.engine().Close(), n.audit.Close()); err != nil {
		n.fault("stopping %s: %w", n.id, err)
	}
	n.up.Store(false)
}

// unlocked waits until nobody has the node's Raft log open.
func (n *worldNode) unlocked() error {
	f, err := os.Open(filepath.Join(n.dir, n.id, "groups", "0", "raft", "raft.db"))
	if err != nil {
		return err
	}
	defer f.Close()
	for range 60_000 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// stop stops nodes as an operator does, all at the same time.
func (w *world) stop(nodes ...*worldNode) {
	var wg sync.WaitGroup
	for _, n := range nodes {
		if n.up.Load() {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				n.close(ctx)
			})
		}
	}
	wg.Wait()
}

func (w *world) end() {
	w.stop(w.nodes...)
	for _, err := range w.faults {
		if !w.planted {
			w.t.Error(err)
		}
	}
}

var timeOperator = ceremony.Operator{Name: "conclave://operator/test"}

func (w *world) found() {
	w.t.Helper()
	ctx := w.t.Context()
	w.leader()
	var res *ceremony.InitResult
	var err error
	w.poll("every node's joining", func() bool {
		res, err = w.nodes[0].engine().Init(ctx, timeOperator, ceremony.InitParams{
			Shares: 1, Threshold: 1, Account: timeAccount, Region: harness.Region, RootCertificate: timeRoot,
		})
		return !errors.Is(err, ceremony.ErrNotReady)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.share = res.Shares[0]
	w.unseal(w.nodes...)
	if w.root, err = w.nodes[0].engine().AuthenticateCertificate(ctx, timeRoot); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) unseal(nodes ...*worldNode) {
	w.t.Helper()
	for _, n := range nodes {
		w.poll("unsealing "+n.id, func() bool {
			_, err := n.engine().SubmitShare(w.t.Context(), timeOperator, w.share)
			return err == nil
		})
	}
}

// poll waits until ok, at most a minute.
func (w *world) poll(what string, ok func() bool) {
	w.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			w.t.Fatalf("%s takes more than a minute", what)
		}
	}
}

// leader is the node that leads.
func (w *world) leader() (leader *worldNode) {
	w.t.Helper()
	w.poll("an election", func() bool {
		for _, n := range w.nodes {
			if n.up.Load() && n.cluster.IsLeader() {
				leader = n
				ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
				err := n.cluster.Barrier(ctx)
				cancel()
				if err == nil && n.cluster.IsLeader() {
					return true
				}
			}
		}
		return false
	})
	return leader
}

func (w *world) others(n *worldNode) []*worldNode {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(o *worldNode) bool { return o == n })
}

// sleepUntil lets true time pass, awake.
func (w *world) sleepUntil(at time.Time) { time.Sleep(at.Sub(w.now())) }

// clusterTime is what the leader has by now.
func (w *world) clusterTime() time.Time {
	l := w.leader()
	if !l.engine().Sealed() { // an entry, as time moves with nothing else
		_, _ = ask[kmsapi.GenerateRandomOutput](w, l, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))})
	}
	return time.Unix(0, l.cluster.State().Time())
}

// leap lets time pass until shortly before at that nobody is awake in, as if all
// machines had been suspended; an operator confirms it where that is needed.
func (w *world) leap(at time.Time) {
	w.t.Helper()
	w.suspend(at.Sub(w.now()) - 20*time.Second)
	w.caughtUp()
	w.sleepUntil(at)
}

func (w *world) suspend(d time.Duration) { w.leapt.Add(int64(d)) }

// caughtUp has cluster time agree with the clocks.
func (w *world) caughtUp() {
	w.t.Helper()
	for range 5 {
		if w.now().Sub(w.clusterTime()) < 2*time.Second {
			return
		}
		time.Sleep(1100 * time.Millisecond) // the clocks are read again
	}
	if err := w.leader().engine().ConfirmTime(w.t.Context(), timeOperator); err != nil {
		w.t.Fatalf("confirming time: %v", err)
	}
	w.poll("cluster time", func() bool { return w.now().Sub(w.clusterTime()) < 2*time.Second })
}
