package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness/ports"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// What every test cluster is.
const (
	Account   = "111122223333"
	Region    = "eu-test-1"
	Shares    = 5
	Threshold = 3
)

// Patience bounds every wait for a cluster to get somewhere. Machines under test
// are shared and slow.
const Patience = 150 * time.Second

// Quick are timings for clusters on one machine.
var Quick = cluster.Timeouts{
	Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond, Lease: 150 * time.Millisecond,
	Commit: 10 * time.Millisecond, Resubmit: 500 * time.Millisecond, LeaderWait: 2 * time.Second,
	Outcome: 10 * time.Second, Hello: 300 * time.Millisecond,
}

// Options say how a cluster differs from the usual one. They are for clusters in
// this process, but for Processes, Files, Network, Disk, Dir and
// Regions.
type Options struct {
	// Processes runs the real binary.
	Processes bool
	// Files is how many descriptors each process may have; the tests' own limit by
	// default.
	Files int
	// Network carries what nodes say to each other; a good one by default. Between
	// processes it is used only if its Break is set.
	Network *Network
	// Regions are those that the cluster serves, the first one being Region; that
	// one alone by default.
	Regions []string
	// Disk gives each node a file system of its own, in memory and of so many bytes,
	// for its data; 0 for none. CanMakeDisks says whether that can be had.
	Disk int64
	// Dir holds what the nodes keep; a temporary one by default.
	Dir string
	// Configure changes a node's configuration before each of its starts.
	Configure func(n *Node, cfg *node.Config)
}

// Cluster is a cluster under test. Its methods end the test when they fail.
type Cluster struct {
	T       testing.TB
	Nodes   []*Node
	Network *Network
	// Shares of the unseal key, and the account's root, since Init.
	Shares      []string
	AccessKeyID string
	secret      string
	// VerifierKey checks checkpoints of the audit log.
	VerifierKey string

	dir     string
	ca      *pki.CA
	roots   *x509.CertPool
	opsCert tls.Certificate
	opts    Options
}

// server is a node as it runs: in this process, or as one of its own.
type server interface {
	start(ctx context.Context) error
	// kill ends it at once, without a word to anybody.
	kill()
	// stop ends it in good order.
	stop(ctx context.Context) error
	// fault is why it ended by itself; nil while it has not.
	fault() error
}

// Node is one node of a cluster under test.
type Node struct {
	ID    string
	Index int
	// Data is the directory that the node keeps everything in.
	Data string
	// Where it listens, for its whole life.
	AWS, GRPC, Peer, Ops string

	cluster   *Cluster
	advertise string
	server    server

	mu      sync.Mutex
	running bool
	clients []*client.Client
	root    *client.Client // as the account's root
	ops     *client.Client // as an operator
	sdk     sdkClient
}

// Start starts n nodes that form a cluster, which is neither initialised nor
// unsealed yet. The cluster ends with the test. With -short, which is for the race
// detector, a test of processes is skipped.
func Start(t testing.TB, n int, opts Options) *Cluster {
	t.Helper()
	if opts.Processes && testing.Short() {
		t.Skip("its servers are processes, without the race detector: make test runs it")
	}
	c := &Cluster{T: t, opts: opts, dir: opts.Dir, Network: opts.Network}
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	if c.Network == nil {
		c.Network = NewNetwork(1)
	}
	c.must("making certificates", c.certificates())
	peers := make(map[string]string, n)
	for i := range n {
		id := string(rune('a' + i))
		nd := &Node{ID: id, Index: i, Data: filepath.Join(c.dir, id), cluster: c}
		if opts.Disk > 0 {
			nd.Data = filepath.Join(nd.diskDir(), "data")
			c.must("making a disk", nd.makeDisk(opts.Disk))
		}
		for _, addr := range []*string{&nd.AWS, &nd.GRPC, &nd.Peer, &nd.Ops} {
			var err error
			*addr, err = ports.Free()
			c.must("finding a port", err)
		}
		nd.advertise = nd.Peer
		if opts.Processes && c.Network.Break {
			var err error
			nd.advertise, err = ports.Free()
			c.must("finding a port", err)
			c.must("starting a proxy", c.Network.Proxy(id, nd.advertise, nd.Peer))
		}
		peers[id] = nd.advertise
		c.Nodes = append(c.Nodes, nd)
	}
	t.Cleanup(c.close)
	for _, nd := range c.Nodes {
		c.must("certificate of "+nd.ID, c.issue(nd))
		if opts.Processes {
			nd.server = &process{n: nd, peers: peers}
		} else {
			nd.server = &inProcess{n: nd, peers: peers}
		}
	}
	c.each(c.Nodes, func(nd *Node) error { return nd.start() })
	return c
}

// Found starts n nodes, initialises them and unseals them.
func Found(t testing.TB, n int, opts Options) *Cluster {
	t.Helper()
	c := Start(t, n, opts)
	c.Init()
	c.Unseal()
	c.WaitReady()
	return c
}

func (c *Cluster) must(what string, err error) {
	c.T.Helper()
	if err != nil {
		c.T.Fatalf("%s: %v", what, err)
	}
}

// each does something to nodes at once.
func (c *Cluster) each(nodes []*Node, do func(*Node) error) {
	c.T.Helper()
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, nd := range nodes {
		all.Go(func() {
			if err := do(nd); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", nd.ID, err)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		c.T.Fatal(err)
	}
}

func (c *Cluster) certificates() (err error) {
	if c.ca, err = pki.NewCA("test cluster", 24*time.Hour); err != nil {
		return err
	}
	c.roots = x509.NewCertPool()
	c.roots.AppendCertsFromPEM(c.ca.CertPEM())
	cert, key, err := c.ca.Issue(pki.IssueRequest{Kind: pki.KindOperator, Name: "tester", Validity: 24 * time.Hour})
	if err != nil {
		return err
	}
	if c.opsCert, err = tls.X509KeyPair(cert, key); err != nil {
		return err
	}
	return os.WriteFile(c.CAFile(), c.ca.CertPEM(), 0o600)
}

// CAFile is the cluster's CA in PEM.
func (c *Cluster) CAFile() string { return filepath.Join(c.dir, "ca.pem") }

func (n *Node) certFile() string { return filepath.Join(n.cluster.dir, n.ID+".pem") }
func (n *Node) keyFile() string  { return filepath.Join(n.cluster.dir, n.ID+"-key.pem") }

func (c *Cluster) issue(n *Node) error {
	cert, key, err := c.ca.Issue(pki.IssueRequest{
		Kind: pki.KindNode, Name: n.ID, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Validity: 24 * time.Hour,
	})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(n.certFile(), cert, 0o600), os.WriteFile(n.keyFile(), key, 0o600))
}

// Eventually waits for something, as long as Patience allows.
func (c *Cluster) Eventually(what string, check func(context.Context) error) {
	c.T.Helper()
	c.must(what, Poll(c.T.Context(), Patience, check))
}

// Poll asks until there is no error, and returns the last one when time is up.
func Poll(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Init founds the cluster, once all nodes have joined.
func (c *Cluster) Init() {
	c.T.Helper()
	c.Eventually("initialising", func(ctx context.Context) error {
		r, secrets, err := client.Init(ctx, c.Nodes[0].Operator(), &kmspb.InitRequest{
			Shares: Shares, Threshold: Threshold, Account: Account, Region: Region, Regions: c.opts.Regions, Partition: "aws", AnyRegion: true,
		})
		if err != nil {
			return err
		}
		c.AccessKeyID, c.secret, c.VerifierKey = r.GetAccessKeyId(), string(secrets.GetSecretAccessKey()), r.GetVerifierKey()
		for _, share := range secrets.GetShares() {
			c.Shares = append(c.Shares, string(share))
		}
		return nil
	})
}

// Unseal gives shares to all nodes.
func (c *Cluster) Unseal() {
	c.T.Helper()
	for _, nd := range c.Nodes {
		c.Eventually("waiting for the founding to reach "+nd.ID, func(ctx context.Context) error {
			s, err := nd.Status(ctx)
			if err == nil && !s.GetSeal().GetInitialised() {
				err = errors.New("not initialised")
			}
			return err
		})
	}
	for _, nd := range c.Nodes {
		nd.Unseal()
	}
}

// Unseal gives shares to this node.
func (n *Node) Unseal() {
	c := n.cluster
	c.T.Helper()
	for i := range Threshold {
		c.Eventually(fmt.Sprintf("giving share %d to %s", i+1, n.ID), func(ctx context.Context) error {
			s, err := client.SubmitShare(ctx, n.Operator(), []byte(c.Shares[i]))
			if err != nil {
				return err
			}
			// What a try before this one brought about is as good.
			seal := s.GetSeal()
			if e := s.GetError(); e != nil && (seal == nil || seal.GetSealed() && !slices.Contains(seal.GetCustodians(), uint32(i+1))) {
				return errors.New(s.GetNodeId() + ": " + e.GetType() + ": " + e.GetMessage())
			}
			return nil
		})
	}
}

// WaitReady waits until nodes, or all of them, answer requests.
func (c *Cluster) WaitReady(nodes ...*Node) {
	c.T.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	for _, nd := range nodes {
		c.Eventually("waiting for "+nd.ID+" to serve", func(ctx context.Context) error {
			_, err := nd.KMS().ListKeys(ctx, &kmspb.ListKeysRequest{})
			return err
		})
	}
}

// Leader is the node that leads, by its own word and the others'.
func (c *Cluster) Leader() *Node {
	c.T.Helper()
	var leader *Node
	c.Eventually("finding the leader", func(ctx context.Context) error {
		leader = c.leaderNow(ctx)
		if leader == nil {
			return errors.New("nobody leads")
		}
		return nil
	})
	return leader
}

// leaderNow is the node that says that it leads, if one says so; the one in the newest
// term, as one whose disk hangs may go on saying so.
func (c *Cluster) leaderNow(ctx context.Context) (leader *Node) {
	var newest uint64
	for _, nd := range c.Nodes {
		if !nd.Running() {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		s, err := nd.Status(ctx)
		cancel()
		if r := s.GetRaft(); err == nil && r.GetState() == "Leader" && (leader == nil || r.GetTerm() > newest) {
			leader, newest = nd, r.GetTerm()
		}
	}
	return leader
}

// Running are the nodes that run.
func (c *Cluster) Running() []*Node {
	var list []*Node
	for _, nd := range c.Nodes {
		if nd.Running() {
			list = append(list, nd)
		}
	}
	return list
}

// NoFaults fails the test if a node took itself out of the cluster.
func (c *Cluster) NoFaults() {
	c.T.Helper()
	for _, nd := range c.Running() {
		if err := nd.Fault(); err != nil {
			c.T.Errorf("node %s ended by itself: %v", nd.ID, err)
		}
	}
}

// Converged waits until all running nodes have applied the same entries, checks
// that their states are the same, and returns the index.
func (c *Cluster) Converged() uint64 {
	c.T.Helper()
	var at uint64
	c.Eventually("waiting for the nodes' states to agree", func(ctx context.Context) error {
		var first *kmspb.StatusResponse
		for _, nd := range c.Running() {
			s, err := nd.Status(ctx)
			if err != nil {
				return err
			}
			r := s.GetRaft()
			if r.GetStateIndex() == 0 || len(r.GetStateHash()) == 0 {
				return fmt.Errorf("%s has no state", nd.ID)
			}
			if first == nil {
				first, at = s, r.GetStateIndex()
			}
			if f := first.GetRaft(); f.GetStateIndex() != r.GetStateIndex() {
				return fmt.Errorf("%s is at %d, %s at %d", first.GetNodeId(), f.GetStateIndex(), nd.ID, r.GetStateIndex())
			} else if string(f.GetStateHash()) != string(r.GetStateHash()) {
				c.T.Fatalf("at index %d, node %s has state %x and node %s %x", r.GetStateIndex(), first.GetNodeId(), f.GetStateHash(), nd.ID, r.GetStateHash())
			}
		}
		return nil
	})
	return at
}

func (c *Cluster) close() {
	if c.T.Failed() {
		c.NoFaults() // a node that ended may be why
		for _, nd := range c.Nodes {
			c.showLog(nd)
		}
	}
	var all sync.WaitGroup
	for _, nd := range c.Nodes {
		all.Go(func() {
			nd.Kill()
			nd.closeClients()
		})
	}
	all.Wait()
	c.Network.Close()
}

// shownLines are how many lines of its log a node shows after a test that failed.
const shownLines = 60

// showLog writes to the test's log what the node wrote last to its own, but for what is
// of use to those alone who have all of it.
func (c *Cluster) showLog(n *Node) {
	b, err := os.ReadFile(n.logFile())
	if err != nil {
		c.T.Log(err)
		return
	}
	lines := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool {
		return l == "" || strings.Contains(l, "level=DEBUG")
	})
	left := max(0, len(lines)-shownLines)
	c.T.Logf("the log of node %s, without %d lines before:\n%s", n.ID, left, strings.Join(lines[left:], "\n"))
}

// logFile is where the node writes its log.
func (n *Node) logFile() string { return filepath.Join(n.cluster.dir, n.ID+".log") }

// Start starts the node on what it has kept.
func (n *Node) Start() {
	n.cluster.T.Helper()
	n.cluster.must("starting node "+n.ID, n.start())
}

// Fault is why the node ended by itself; nil while it has not, and when it was ended.
func (n *Node) Fault() error { return n.server.fault() }

// TryStart is Start for a node that may refuse what it finds.
func (n *Node) TryStart() error { return n.start() }

func (n *Node) start() error {
	n.cluster.Network.Rejoin(n.ID)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := n.server.start(ctx); err != nil {
		return err
	}
	n.mu.Lock()
	n.running = true
	n.mu.Unlock()
	n.closeClients() // what they know of a broken connection would make them wait
	return nil
}

// Running reports whether the node was started and not ended since.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.running
}

func (n *Node) ended() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.running
	n.running = false
	return was
}

// Kill ends the node as a power cut ends a machine: SIGKILL for a process, and as
// near to that as can be in this one. Nobody hears of it.
func (n *Node) Kill() {
	if n.ended() {
		n.cluster.Network.Isolate(n.ID)
		n.server.kill()
	}
}

// Stop ends the node in good order.
func (n *Node) Stop() {
	n.cluster.T.Helper()
	if n.ended() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		n.cluster.must("stopping node "+n.ID, n.server.stop(ctx))
	}
}

// InProcess is the node itself; nil for a process, and while it is down.
func (n *Node) InProcess() *node.Node {
	if p, ok := n.server.(*inProcess); ok {
		return p.node.Load()
	}
	return nil
}
