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

// Properties of every test cluster.
const (
	Account   = "111122223333"
	Region    = "eu-test-1"
	Shares    = 5
	Threshold = 3
)

// Patience bounds every wait for a cluster to reach some state. It is long because test
// machines are shared and slow.
const Patience = 150 * time.Second

// Quick has timings for clusters on one machine.
var Quick = cluster.Timeouts{
	Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond, Lease: 150 * time.Millisecond,
	Commit: 10 * time.Millisecond, Resubmit: 500 * time.Millisecond, LeaderWait: 2 * time.Second,
	Outcome: 10 * time.Second, Hello: 300 * time.Millisecond,
}

// Options describe how a cluster differs from the default one. They apply to clusters in
// this process, except for Processes, Binary, Flags, Files, Network, Disk, Dir and Regions, which
// apply to clusters of processes too.
type Options struct {
	// Processes runs the real binary.
	Processes bool
	// Binary is the program that the processes run; what Binary returns by default.
	Binary string
	// Flags are further flags of each process.
	Flags []string
	// Files is the limit of file descriptors of each process; the limit of the test by
	// default.
	Files int
	// Network carries the traffic between nodes; by default it is one without faults. For
	// processes it is used only if its Break is set.
	Network *Network
	// Regions are the Regions that the cluster serves. The first must be Region, which is
	// also the default.
	Regions []string
	// Disk is the size in bytes of a file system in memory that each node gets for its
	// data; 0 for none. CanMakeDisks reports whether that is possible.
	Disk int64
	// Dir is the directory for the nodes' files; a temporary one by default.
	Dir string
	// Configure changes a node's configuration before each start.
	Configure func(n *Node, cfg *node.Config)
}

// LongElections makes timeouts so long that a busy machine causes no election. It can be
// Options.Configure of a test during which the leader must not change.
func LongElections(_ *Node, cfg *node.Config) {
	cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = 2*time.Second, 2*time.Second, time.Second
}

// Cluster is a cluster under test. Its methods fail the test on an error.
type Cluster struct {
	T       testing.TB
	Nodes   []*Node
	Network *Network
	// Set by Init: the shares of the unseal key and the access key of the account's root.
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

// server is a running node, either in this process or in its own.
type server interface {
	start(ctx context.Context) error
	// kill stops it at once, without notice to the other nodes or clients.
	kill()
	// stop stops it in an orderly way.
	stop(ctx context.Context) error
	// failure returns why it stopped by itself, or nil if it did not.
	failure() error
}

// Node is one node of a cluster under test.
type Node struct {
	ID    string
	Index int
	// Data is the directory that contains all of the node's data.
	Data string
	// The addresses that it listens on, which never change.
	AWS, GRPC, Peer, Ops string

	// Binary is the program that a process runs at its next start; what the function Binary
	// returns if it is empty.
	Binary string

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

// Start starts n nodes that form a cluster, which is not initialised yet. The cluster ends
// with the test. With -short, which is for the race detector, tests with processes are
// skipped.
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
	t.Cleanup(c.close)
	for i := range n {
		nd := c.newNode(string(rune('a' + i)))
		c.serve(nd, peers, false)
		peers[nd.ID] = nd.advertise
	}
	c.each(c.Nodes, func(nd *Node) error { return nd.start() })
	return c
}

// newNode makes the files of a node and chooses its ports.
func (c *Cluster) newNode(id string) *Node {
	c.T.Helper()
	nd := &Node{ID: id, Index: len(c.Nodes), Data: filepath.Join(c.dir, id), Binary: c.opts.Binary, cluster: c}
	if c.opts.Disk > 0 {
		nd.Data = filepath.Join(nd.diskDir(), "data")
		c.must("making a disk", nd.makeDisk(c.opts.Disk))
	}
	for _, addr := range []*string{&nd.AWS, &nd.GRPC, &nd.Peer, &nd.Ops} {
		var err error
		*addr, err = ports.Free()
		c.must("finding a port", err)
	}
	nd.advertise = nd.Peer
	if c.opts.Processes && c.Network.Break {
		var err error
		nd.advertise, err = ports.Free()
		c.must("finding a port", err)
		c.must("starting a proxy", c.Network.Proxy(id, nd.advertise, nd.Peer))
	}
	c.must("certificate of "+id, c.issue(nd))
	c.Nodes = append(c.Nodes, nd)
	return nd
}

// serve says how the node is started: with these peers, or as one that joins them.
func (c *Cluster) serve(n *Node, peers map[string]string, joins bool) {
	if c.opts.Processes {
		n.server = &nodeProcess{n: n, peers: peers, joins: joins}
	} else {
		n.server = &inProcess{n: n, peers: peers, joins: joins}
	}
}

// Join makes a new node, which joins the nodes that run, and starts it. It waits until an
// operator adds it at the address that is returned.
func (c *Cluster) Join(id string) (nd *Node, address string) {
	c.T.Helper()
	members := make(map[string]string)
	for _, m := range c.Running() {
		members[m.ID] = m.advertise
	}
	nd = c.newNode(id)
	c.serve(nd, members, true)
	nd.Start()
	return nd, nd.advertise
}

// NewCluster starts n nodes, initialises the cluster and unseals the nodes.
func NewCluster(t testing.TB, n int, opts Options) *Cluster {
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

// each calls do for all nodes concurrently.
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

// CAFile returns the path of the cluster's CA certificate in PEM.
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

// Eventually waits, for at most Patience, until check returns nil.
func (c *Cluster) Eventually(what string, check func(context.Context) error) {
	c.T.Helper()
	c.must(what, Poll(c.T.Context(), Patience, check))
}

// Poll calls check until it returns nil. After limit it returns the last error.
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

// Init initialises the cluster once all nodes have joined.
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

// Finalize raises the feature level to that of this release.
func (c *Cluster) Finalize() {
	c.T.Helper()
	c.Eventually("finalizing the upgrade", func(ctx context.Context) error {
		_, err := Administration(c.Leader()).FinalizeUpgrade(ctx, &kmspb.FinalizeUpgradeRequest{})
		return err
	})
}

// Unseal submits shares to all nodes.
func (c *Cluster) Unseal() {
	c.T.Helper()
	for _, nd := range c.Nodes {
		c.Eventually("waiting for the initialisation to reach "+nd.ID, func(ctx context.Context) error {
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

// Unseal submits shares to this node.
func (n *Node) Unseal() {
	c := n.cluster
	c.T.Helper()
	for i := range Threshold {
		c.Eventually(fmt.Sprintf("giving share %d to %s", i+1, n.ID), func(ctx context.Context) error {
			s, err := client.SubmitShare(ctx, n.Operator(), []byte(c.Shares[i]))
			if err != nil {
				return err
			}
			// An earlier attempt may have unsealed the node.
			seal := s.GetSeal()
			if e := s.GetError(); e != nil && (seal == nil || seal.GetSealed() && !slices.Contains(seal.GetCustodians(), uint32(i+1))) {
				return errors.New(s.GetNodeId() + ": " + e.GetType() + ": " + e.GetMessage())
			}
			return nil
		})
	}
}

// WaitReady waits until the given nodes, or all of them by default, answer requests.
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

// Leader returns the node that leads according to itself and the others.
func (c *Cluster) Leader() *Node {
	c.T.Helper()
	var leader *Node
	c.Eventually("finding the leader", func(ctx context.Context) error {
		leader = c.leaderNow(ctx)
		if leader == nil {
			return errors.New("no node leads")
		}
		return nil
	})
	return leader
}

// leaderNow returns the node that reports to be the leader, if any. If there are several it
// returns the one in the newest term, because a node whose disk hangs may not know that it
// no longer leads.
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

// Running returns the nodes that are running.
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

// Converged waits until all running nodes have applied the same entries, checks that their
// states are the same, and returns the index.
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
		c.NoFaults() // a node that stopped may be the reason
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

// shownLines is how many lines of a node's log are shown after a test that failed.
const shownLines = 60

// showLog copies the newest lines of the node's log to the test's log, without those that
// are of use only with the complete log.
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

// logFile returns the path of the node's log.
func (n *Node) logFile() string { return filepath.Join(n.cluster.dir, n.ID+".log") }

// Start starts the node with the data that it has.
func (n *Node) Start() {
	n.cluster.T.Helper()
	n.cluster.must("starting node "+n.ID, n.start())
}

// Fault returns why the node stopped by itself, or nil if it did not.
func (n *Node) Fault() error { return n.server.failure() }

// TryStart is like Start, but returns an error if the node does not start.
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
	n.closeClients() // they would delay calls because they know of a broken connection
	return nil
}

// Running reports whether the node has been started and not stopped since.
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

// Kill stops the node as a power cut stops a machine: with SIGKILL if it is a process, and
// as close to that as possible otherwise. The other nodes get no notice.
func (n *Node) Kill() {
	if n.ended() {
		n.cluster.Network.Isolate(n.ID)
		n.server.kill()
	}
}

// Stop stops the node in an orderly way.
func (n *Node) Stop() {
	n.cluster.T.Helper()
	if n.ended() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		n.cluster.must("stopping node "+n.ID, n.server.stop(ctx))
	}
}

// InProcess returns the node itself. It is nil for a process, and while the node is down.
func (n *Node) InProcess() *node.Node {
	if p, ok := n.server.(*inProcess); ok {
		return p.node.Load()
	}
	return nil
}

// SnapshotIndex returns the index of the newest Raft snapshot of a node, by its directory;
// 0 without one.
func SnapshotIndex(n *Node) (uint64, error) {
	names, err := filepath.Glob(filepath.Join(n.Data, "groups", "0", "raft", "snapshots", "*-*-*"))
	if err != nil {
		return 0, err
	}
	var newest uint64
	for _, name := range names {
		var term, index, at uint64
		if _, err := fmt.Sscanf(filepath.Base(name), "%d-%d-%d", &term, &index, &at); err == nil && !strings.HasSuffix(name, ".tmp") {
			newest = max(newest, index)
		}
	}
	return newest, nil
}
