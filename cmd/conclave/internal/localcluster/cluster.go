// Package localcluster starts clusters on this machine: for dev, one node in this
// process that unseals itself (Single); for the demo and the benchmark, several
// nodes in processes of their own (Cluster). It makes their certificates and
// directories, chooses ports, initialises and unseals them, and waits until they
// serve.
package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/process"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Cluster is a cluster of processes of this program on loopback, in one
// directory, for the demo and the benchmark. It ends only processes that it
// started.
type Cluster struct {
	Dir   string // contains everything; Close removes it
	Nodes []*Node

	Keys // once it is initialised
}

// Node is one node of a Cluster, with its addresses on loopback.
type Node struct {
	ID                           string
	AWS, GRPC, peer, gossip, Ops string
	Data, TLS                    string // directories: that of the node, and that of all certificates
	env                          []string
	Process                      *process.Process // nil before Start
}

// New makes certificates and chooses ports. It starts nothing yet.
func New(size int) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp("", "conclave-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	plan := certs.Plan{Dir: filepath.Join(dir, "tls"), Operator: "operator", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	for i := range size {
		plan.Nodes = append(plan.Nodes, fmt.Sprintf("node-%d", i+1))
	}
	if _, err := plan.Bootstrap(); err != nil {
		return nil, err
	}
	ports, err := FreePorts(5 * size)
	if err != nil {
		return nil, err
	}
	var peers []string
	for i, id := range plan.Nodes {
		p := ports[5*i:]
		n := &Node{ID: id, AWS: p[0], GRPC: p[1], peer: p[2], gossip: p[3], Ops: p[4], TLS: plan.Dir, Data: filepath.Join(dir, id)}
		c.Nodes = append(c.Nodes, n)
		peers = append(peers, id+"="+n.peer)
	}
	for _, n := range c.Nodes {
		n.env = []string{
			"PATH=" + os.Getenv("PATH"),
			"CONCLAVE_NODE_ID=" + n.ID,
			"CONCLAVE_DATA=" + n.Data,
			"CONCLAVE_PEERS=" + strings.Join(peers, ","),
			"CONCLAVE_AWS_LISTEN=" + n.AWS,
			"CONCLAVE_GRPC_LISTEN=" + n.GRPC,
			"CONCLAVE_PEER_LISTEN=" + n.peer,
			"CONCLAVE_GOSSIP_LISTEN=" + n.gossip,
			"CONCLAVE_OPS_LISTEN=" + n.Ops,
			"CONCLAVE_TLS_CA=" + filepath.Join(plan.Dir, certs.CAFile),
			"CONCLAVE_TLS_CERT=" + filepath.Join(plan.Dir, n.ID+".pem"),
			"CONCLAVE_TLS_KEY=" + filepath.Join(plan.Dir, n.ID+"-key.pem"),
			"CONCLAVE_GOSSIP_KEY_FILE=" + filepath.Join(plan.Dir, certs.GossipFile),
			"CONCLAVE_ALLOW_UNLOCKED_MEMORY=true",
		}
	}
	return c, nil
}

// Close stops all processes and removes all files.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, n := range c.Nodes {
		all.Go(func() { _ = n.Process.Stop(ctx) }) // whatever becomes of it, its files are removed
	}
	all.Wait()
	return os.RemoveAll(c.Dir)
}

// Self starts this program again, with only this environment, logging to a file.
func Self(env []string, log string, args ...string) (*process.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return process.Start(process.Command{Path: self, Args: args, Env: env, Log: log})
}

// StartAll starts the nodes and waits until they answer.
func (c *Cluster) StartAll(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.Alive(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the node's process, for the first time or again.
func (n *Node) Start() (err error) {
	n.Process, err = Self(n.env, filepath.Join(filepath.Dir(n.Data), n.ID+".log"), "server")
	if err != nil {
		return fmt.Errorf("starting %s: %w", n.ID, err)
	}
	return nil
}

// Alive waits until the process answers.
func (n *Node) Alive(ctx context.Context) error {
	return n.wait(ctx, "/livez")
}

// Ready waits until the node serves.
func (n *Node) Ready(ctx context.Context) error { return n.wait(ctx, "/readyz") }

func (n *Node) wait(ctx context.Context, path string) error {
	err := waitFor(ctx, n.Ops, path, func() error {
		if n.Process.Ended() {
			return n.Process.Err()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: waiting for %s: %w", n.ID, path, err)
	}
	return nil
}

// Connect returns a client for one node, with the operator's certificate and,
// once there is one, the root user's access key.
func (c *Cluster) Connect(ctx context.Context, n *Node) (*client.Client, error) {
	return ConnectAs(ctx, n, c.AccessKeyID, c.SecretAccessKey)
}

// ConnectAs returns a client for one node, with the operator's certificate and,
// unless it is empty, an access key.
func ConnectAs(ctx context.Context, n *Node, accessKeyID, secret string) (*client.Client, error) {
	cfg := client.Config{
		Address: n.GRPC, UserAgent: "conclave-cli/" + cli.Version, CAFile: filepath.Join(n.TLS, certs.CAFile),
		CertFile: filepath.Join(n.TLS, certs.OperatorFile+".pem"), KeyFile: filepath.Join(n.TLS, certs.OperatorFile+"-key.pem"),
	}
	if accessKeyID != "" {
		cfg.AccessKeyID, cfg.SecretAccessKey = accessKeyID, client.Secret(secret)
	}
	return client.Dial(ctx, cfg)
}

// Init initialises the cluster as soon as its nodes have found each other.
func (c *Cluster) Init(ctx context.Context, shares, threshold uint32) error {
	var res *kmspb.InitResponse
	var once *kmspb.InitSecrets
	err := c.operate(ctx, "initialising", "ClusterNotReadyException", func(op *client.Client) (err error) {
		res, once, err = client.Init(ctx, op.Operator(), &kmspb.InitRequest{Shares: shares, Threshold: threshold, Account: "000000000000", Region: "us-east-1"})
		return err
	})
	if err != nil {
		return err
	}
	c.Keys = Keys{AccessKeyID: res.GetAccessKeyId(), SecretAccessKey: string(once.GetSecretAccessKey()), VerifierKey: res.GetVerifierKey()}
	for _, share := range once.GetShares() {
		c.Shares = append(c.Shares, string(share))
	}
	return nil
}

// Submit submits a share to nodes, and returns the resulting status of the last
// one.
func (c *Cluster) Submit(ctx context.Context, share string, nodes ...*Node) (*kmspb.NodeStatus, error) {
	var st *kmspb.NodeStatus
	for _, n := range nodes {
		op, err := c.Connect(ctx, n)
		if err != nil {
			return nil, err
		}
		st, err = client.SubmitShare(ctx, op.Operator(), []byte(share))
		op.Close()
		if err != nil {
			return nil, cli.Explain("delivering a share", n.GRPC, err)
		}
		if e := st.GetError(); e != nil && e.GetType() != "AlreadyUnsealedException" {
			return nil, fmt.Errorf("%s did not accept the share: %s", st.GetNodeId(), cli.ErrorText(e))
		}
	}
	return st, nil
}

// Leader returns the leader, according to the first node that answers.
func (c *Cluster) Leader(ctx context.Context) (*Node, error) {
	var found *Node
	err := Poll(ctx, func() (bool, error) {
		for _, n := range c.Nodes {
			if n.Process.Ended() {
				continue
			}
			op, err := c.Connect(ctx, n)
			if err != nil {
				return false, err
			}
			st, err := op.Operator().Status(ctx, &kmspb.StatusRequest{})
			op.Close()
			if err != nil {
				continue
			}
			for _, m := range c.Nodes {
				if m.ID == st.GetLeaderId() && !m.Process.Ended() {
					found = m
					return true, nil
				}
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for a leader: %w", err)
	}
	return found, nil
}

// StartOpen starts all nodes, initialises the cluster with one share, unseals every
// node with it and waits until they serve.
func (c *Cluster) StartOpen(ctx context.Context) error {
	if err := c.StartAll(ctx); err != nil {
		return err
	}
	if err := c.Init(ctx, 1, 1); err != nil {
		return err
	}
	if _, err := c.Submit(ctx, c.Shares[0], c.Nodes...); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Finalize raises the feature level to the newest one as soon as all nodes have registered,
// as is recommended for a new cluster.
func (c *Cluster) Finalize(ctx context.Context) error {
	return c.operate(ctx, "raising the feature level", "NotUpgradedException", func(op *client.Client) error {
		_, err := op.Cluster().FinalizeUpgrade(ctx, &kmspb.FinalizeUpgradeRequest{})
		return err
	})
}

// operate makes a call to the first node of a cluster that was just started. It repeats the call
// as long as there is no leader, or the type of the error is tooEarly.
func (c *Cluster) operate(ctx context.Context, what, tooEarly string, call func(*client.Client) error) error {
	op, err := c.Connect(ctx, c.Nodes[0])
	if err != nil {
		return err
	}
	defer op.Close()
	err = whenLed(ctx, func() error { return call(op) }, func(err error) bool {
		f, ok := client.FromError(err)
		return ok && (f.Type == "ServiceUnavailable" || f.Type == tooEarly)
	})
	if err != nil {
		return cli.Explain(what, c.Nodes[0].GRPC, err)
	}
	return nil
}

// LastLogs returns the end of each node's log, for a report of a failure.
func (c *Cluster) LastLogs() (logs []string) {
	for _, n := range c.Nodes {
		if n.Process != nil {
			logs = append(logs, fmt.Sprintf("the end of the log of %s:\n%s", n.ID, cli.Indent(n.Process.LastLog())))
		}
	}
	return logs
}
