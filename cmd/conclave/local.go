package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// localCluster is a cluster of processes of this program on loopback, in one
// directory: for the demo and the benchmark. It ends only processes that it
// started.
type localCluster struct {
	dir   string
	nodes []*localNode

	accessKeyID, secret string
	shares              []string
	verifierKey         string
}

type localNode struct {
	id                           string
	aws, grpc, peer, gossip, ops string
	data, tls                    string
	env                          []string
	process                      *child
}

// newLocalCluster makes certificates and chooses ports; nothing runs yet.
func newLocalCluster(size int) (_ *localCluster, err error) {
	dir, err := os.MkdirTemp("", "conclave-")
	if err != nil {
		return nil, err
	}
	c := &localCluster{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	plan := certPlan{dir: filepath.Join(dir, "tls"), operator: "operator", dns: []string{"localhost"}, ips: []net.IP{net.IPv4(127, 0, 0, 1)}}
	for i := range size {
		plan.nodes = append(plan.nodes, fmt.Sprintf("node-%d", i+1))
	}
	if _, err := plan.bootstrap(); err != nil {
		return nil, err
	}
	ports, err := freePorts(5 * size)
	if err != nil {
		return nil, err
	}
	var peers []string
	for i, id := range plan.nodes {
		p := ports[5*i:]
		n := &localNode{id: id, aws: p[0], grpc: p[1], peer: p[2], gossip: p[3], ops: p[4], tls: plan.dir, data: filepath.Join(dir, id)}
		c.nodes = append(c.nodes, n)
		peers = append(peers, id+"="+n.peer)
	}
	for _, n := range c.nodes {
		n.env = []string{
			"PATH=" + os.Getenv("PATH"),
			"CONCLAVE_NODE_ID=" + n.id,
			"CONCLAVE_DATA=" + n.data,
			"CONCLAVE_PEERS=" + strings.Join(peers, ","),
			"CONCLAVE_AWS_LISTEN=" + n.aws,
			"CONCLAVE_GRPC_LISTEN=" + n.grpc,
			"CONCLAVE_PEER_LISTEN=" + n.peer,
			"CONCLAVE_GOSSIP_LISTEN=" + n.gossip,
			"CONCLAVE_OPS_LISTEN=" + n.ops,
			"CONCLAVE_TLS_CA=" + filepath.Join(plan.dir, caFile),
			"CONCLAVE_TLS_CERT=" + filepath.Join(plan.dir, n.id+".pem"),
			"CONCLAVE_TLS_KEY=" + filepath.Join(plan.dir, n.id+"-key.pem"),
			"CONCLAVE_GOSSIP_KEY_FILE=" + filepath.Join(plan.dir, gossipFile),
			"CONCLAVE_ALLOW_UNLOCKED_MEMORY=true",
		}
	}
	return c, nil
}

// freePorts are addresses on loopback that nobody listens on, by TCP or UDP. The
// nodes must know each other's before they start. They lie below the range that
// Linux gives to outgoing connections, so that none of those takes one before the
// node does.
func freePorts(n int) (addrs []string, err error) {
	var held []io.Closer
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for tries := 0; len(addrs) < n; tries++ {
		if tries == 100*n {
			return nil, fmt.Errorf("found only %d free ports of %d", len(addrs), n)
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(16000+rand.IntN(16000)))
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		held = append(held, tcp)
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		held = append(held, udp)
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// close stops what runs and removes everything.
func (c *localCluster) close() error {
	for _, n := range c.nodes {
		n.process.signal(syscall.SIGTERM)
	}
	for _, n := range c.nodes {
		n.process.wait(12 * time.Second)
	}
	return os.RemoveAll(c.dir)
}

// startAll starts the nodes and waits until they answer.
func (c *localCluster) startAll(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.alive(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *localNode) start() (err error) {
	n.process, err = startChild(n.env, filepath.Join(filepath.Dir(n.data), n.id+".log"), "server")
	if err != nil {
		return fmt.Errorf("starting %s: %w", n.id, err)
	}
	return nil
}

// alive waits until the process answers.
func (n *localNode) alive(ctx context.Context) error {
	return n.wait(ctx, "/livez")
}

// ready waits until the node serves.
func (n *localNode) ready(ctx context.Context) error { return n.wait(ctx, "/readyz") }

func (n *localNode) wait(ctx context.Context, path string) error {
	err := poll(ctx, func() (bool, error) {
		if n.process.ended() {
			return false, errors.New("the process ended:\n" + n.process.lastLog())
		}
		_, code, err := getState(ctx, n.ops, path)
		return err == nil && code == 200, nil
	})
	if err != nil {
		return fmt.Errorf("%s: waiting for %s: %w", n.id, path, err)
	}
	return nil
}

// connect makes a client of one node, with the operator's certificate and, once
// there is one, the root user's access key.
func (c *localCluster) connect(ctx context.Context, n *localNode) (*client.Client, error) {
	cfg := client.Config{
		Address: n.grpc, UserAgent: "conclave-cli/" + version, CAFile: filepath.Join(n.tls, caFile),
		CertFile: filepath.Join(n.tls, operatorPEM+".pem"), KeyFile: filepath.Join(n.tls, operatorPEM+"-key.pem"),
	}
	if c.accessKeyID != "" {
		cfg.AccessKeyID, cfg.SecretAccessKey = c.accessKeyID, client.Secret(c.secret)
	}
	return client.Dial(ctx, cfg)
}

// found initialises the cluster as soon as its nodes have found each other.
func (c *localCluster) found(ctx context.Context, shares, threshold uint32) error {
	op, err := c.connect(ctx, c.nodes[0])
	if err != nil {
		return err
	}
	defer op.Close()
	var res *kmspb.InitResponse
	err = poll(ctx, func() (bool, error) {
		var err error
		res, err = op.Operator().Init(ctx, &kmspb.InitRequest{Shares: shares, Threshold: threshold, Account: "000000000000", Region: "us-east-1"})
		if f, ok := client.Error(err); ok && (f.Type == "ServiceUnavailable" || f.Type == "ClusterNotReadyException") {
			return false, nil
		}
		return err == nil, explain("initialising", c.nodes[0].grpc, err)
	})
	if err != nil {
		return err
	}
	c.accessKeyID, c.secret = res.GetAccessKeyId(), res.GetSecretAccessKey()
	c.shares, c.verifierKey = res.GetShares(), res.GetVerifierKey()
	return nil
}

// submit gives the cluster a share by way of one node.
func (c *localCluster) submit(ctx context.Context, n *localNode, share string) ([]*kmspb.NodeStatus, error) {
	op, err := c.connect(ctx, n)
	if err != nil {
		return nil, err
	}
	defer op.Close()
	res, err := op.Operator().SubmitShare(ctx, &kmspb.SubmitShareRequest{Share: share})
	if err != nil {
		return nil, explain("delivering a share", n.grpc, err)
	}
	for _, st := range res.GetNodes() {
		if e := st.GetError(); e != nil && e.GetType() != "AlreadyUnsealedException" {
			return nil, fmt.Errorf("%s did not take the share: %s", st.GetNodeId(), faultText(e))
		}
	}
	return res.GetNodes(), nil
}

// leader is the node that leads, as the first one that can be asked knows.
func (c *localCluster) leader(ctx context.Context) (*localNode, error) {
	var found *localNode
	err := poll(ctx, func() (bool, error) {
		for _, n := range c.nodes {
			if n.process.ended() {
				continue
			}
			op, err := c.connect(ctx, n)
			if err != nil {
				return false, err
			}
			st, err := op.Operator().Status(ctx, &kmspb.StatusRequest{})
			op.Close()
			if err != nil {
				continue
			}
			for _, m := range c.nodes {
				if m.id == st.GetLeaderId() && !m.process.ended() {
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

// child is a process of this program.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// startChild starts this program again, with just this environment, logging to a
// file.
func startChild(env []string, log string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(self, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = env, out, out, childAttr()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended stands in its log
		close(c.done)
	}()
	return c, nil
}

func (c *child) ended() bool {
	if c == nil {
		return true
	}
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *child) signal(s os.Signal) {
	if !c.ended() {
		_ = c.cmd.Process.Signal(s) // it may have ended just now
	}
}

// wait waits for the process to end, and kills it when it takes too long.
func (c *child) wait(limit time.Duration) {
	if c == nil {
		return
	}
	select {
	case <-c.done:
	case <-time.After(limit):
		c.signal(syscall.SIGKILL)
		<-c.done
	}
}

// lastLog is the end of what the process logged.
func (c *child) lastLog() string {
	raw, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return indent(string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n"))))
}
