package faketime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

// worldNode is a node, with its parts while it runs.
type worldNode struct {
	*world
	id   string
	skew atomic.Int64
	// replica changes what the engine does with the log.
	replica func(keyengine.Replica) keyengine.Replica

	up      atomic.Bool
	server  *node.Node
	cluster *cluster.Node
	running atomic.Pointer[keyengine.Engine]
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

// open starts a node as main does. Its ports for clients are in memory, too, and nobody
// connects to them.
func (n *worldNode) open() error {
	cert, key, err := n.ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: n.id, Validity: 24 * time.Hour})
	if err != nil {
		return err
	}
	peers := make(map[string]string)
	for _, o := range n.nodes {
		peers[o.id] = n.mem.Address(o.id)
	}
	n.mu.Lock()
	n.newest, n.past = 0, nil
	n.mu.Unlock()
	cfg := node.Config{
		NodeID: n.id, Data: n.data(), Identity: &node.Identity{Cert: cert, Key: key, CA: n.ca.CertPEM()},
		PeerListen: peers[n.id], AWSListen: n.mem.Address(n.id + ".aws"), GRPCListen: n.mem.Address(n.id + ".grpc"),
		Peers: peers, BootstrapExpect: len(peers), AllowUnlockedMemory: true,
		LogOutput: io.Discard, LogLevel: slog.LevelError + 1,
		Test: node.Hooks{
			Clock: n, Cluster: cluster.Hooks{Dial: n.mem.Dialer(n.id)}, Replica: n.replica,
			Listen: func(_ context.Context, _, addr string) (net.Listener, error) {
				name, _, err := net.SplitHostPort(addr)
				return n.mem.Listen(name), err
			},
			OnApply: func(s *fsm.State, _ fsm.Events) { n.follow(s) },
		},
		RefusalRate: 1e6,
	}
	if os.Getenv("TIME_TEST_LOG") != "" {
		cfg.LogOutput, cfg.LogLevel = os.Stderr, slog.LevelInfo
	}
	// Not the test's context: it ends before the node is stopped.
	if n.server, err = node.Start(context.Background(), cfg); err != nil {
		return err
	}
	go func(server *node.Node) {
		<-server.Done()
		if err := server.Err(); err != nil {
			n.fault("node %s: %w", n.id, err)
		}
	}(n.server)
	n.cluster = n.server.Cluster()
	n.running.Store(n.server.Engine())
	n.up.Store(true)
	return nil
}

func (n *worldNode) data() string { return filepath.Join(n.dir, n.id) }

// kill ends a node at once: nothing that it still does is seen by anybody.
func (n *worldNode) kill() {
	n.mem.Unplug(n.id)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.cluster.Shutdown(ctx) // first, so that nothing is signed at the end
	n.close(ctx)
}

func (n *worldNode) close(ctx context.Context) {
	// Without a majority, a node can neither sign a checkpoint nor leave in good order.
	if joined, ok := n.server.Stop(ctx).(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			if !strings.HasPrefix(err.Error(), "signing the last checkpoint: ") && !strings.HasPrefix(err.Error(), "leaving the cluster: ") {
				n.fault("stopping %s: %w", n.id, err)
			}
		}
	}
	if err := harness.WaitUnlocked(n.data()); err != nil {
		n.fault("stopping %s: %w", n.id, err)
	}
	n.up.Store(false)
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
	if w.root, err = w.nodes[0].engine().AuthenticateCertificate(ctx, iam.Certificate{URI: timeRoot}); err != nil {
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
