package peers

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// dialTimeout bounds one attempt to connect, including the handshake.
const dialTimeout = 3 * time.Second

// maxMessage bounds a message between nodes.
const maxMessage = 2 << 20

// window is the size of the flow control window. It is fixed, because a window that adapts
// itself sends a ping with nearly every batch to measure the bandwidth.
const window = maxMessage

// Config configures Clients. Everything is required except Dial.
type Config struct {
	// ID is the id of this node, and Identity its certificate.
	ID       string
	Identity *pki.Identity
	// Dial replaces the TCP dialer.
	Dial func(ctx context.Context, node, addr string) (net.Conn, error)
	// Addresses returns the addresses at which a node may be reached, best first.
	Addresses func(node string) []string
	// Cluster returns the cluster's record, or nil before the cluster is initialised.
	Cluster func() *fsmpb.Cluster
	// Go runs a function on a goroutine that the node waits for when it ends.
	Go func(func())
	// Forwarded counts the batches that were sent to another node.
	Forwarded prometheus.Counter
	Log       *slog.Logger
}

// Clients are this node's connections to the services of the other nodes, and the requests
// made over them.
type Clients struct {
	conf Config

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	raw    map[*peerport.Conn]struct{}
	closed bool
}

// New returns Clients without any connections. They are opened when they are first used.
func New(c Config) *Clients {
	if c.Dial == nil {
		d := &net.Dialer{}
		c.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	return &Clients{conf: c, conns: make(map[string]*grpc.ClientConn), raw: make(map[*peerport.Conn]struct{})}
}

// Connect opens a verified connection to a node at the first of its addresses that answers.
func (p *Clients) Connect(ctx context.Context, node, alpn string) (*peerport.Conn, error) {
	err := fmt.Errorf("%w: the address of node %s is not known", peerport.ErrUnreachable, node)
	for _, addr := range p.conf.Addresses(node) {
		var c *peerport.Conn
		if c, err = p.connectTo(ctx, node, addr, alpn); err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (p *Clients) connectTo(ctx context.Context, node, addr, alpn string) (*peerport.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := p.conf.Dial(ctx, node, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, p.conf.Identity.Client(node, alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("node %s at %s: %w", node, addr, err)
	}
	release, err := p.conf.Identity.Watch(c.ConnectionState(), raw)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("node %s at %s: %w", node, addr, err)
	}
	pc := &peerport.Conn{Conn: c, Node: node}
	pc.Done = func() {
		release()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.raw, pc)
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.raw[pc] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		pc.Close()
		return nil, commit.ErrShutdown
	}
	return pc, nil
}

// maxLineage bounds a lineage in hexadecimal.
const maxLineage = 64

// Lineage asks a node for its lineage. It is the only question that a node of no lineage can
// ask one that has one.
func (p *Clients) Lineage(ctx context.Context, node string) (string, error) {
	c, err := p.Connect(ctx, node, pki.ALPNLineage)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(c, maxLineage+1)) // an error if the other end has not closed it properly
	if err != nil {
		return "", err
	}
	if _, err := hex.DecodeString(string(b)); err != nil || len(b) > maxLineage {
		return "", fmt.Errorf("node %s sent a lineage that is none", node)
	}
	return string(b), nil
}

// Client returns the client of another node's service.
func (p *Clients) Client(node string) (clusterpb.PeerClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, commit.ErrShutdown
	}
	if node == p.conf.ID {
		return nil, fmt.Errorf("%w: %s is this node", peerport.ErrUnreachable, node)
	}
	if c := p.conns[node]; c != nil {
		return clusterpb.NewPeerClient(c), nil
	}
	c, err := grpc.NewClient("passthrough:///"+node,
		grpc.WithTransportCredentials(peerport.Credentials{}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := p.Connect(ctx, node, pki.ALPNPeer)
			if err != nil {
				return nil, err
			}
			return c, nil
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		// It is short, and nobody cuts it shorter: ResetConnectBackoff (grpc 1.85) iterates
		// over a map that others write at the same time, which ends the process.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, err
	}
	p.conns[node] = c
	return clusterpb.NewPeerClient(c), nil
}

// Reach waits for a connection to a node. If it fails, nothing was sent.
func (p *Clients) Reach(ctx context.Context, node string) (clusterpb.PeerClient, error) {
	client, err := p.Client(node)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	c := p.conns[node]
	p.mu.Unlock()
	if c == nil {
		return nil, commit.ErrShutdown
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		state := c.GetState()
		switch state {
		case connectivity.Ready:
			return client, nil
		case connectivity.Idle:
			c.Connect()
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, fmt.Errorf("%w: %s", peerport.ErrUnreachable, node)
		}
		if !c.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("%w: %s: %w", peerport.ErrUnreachable, node, ctx.Err())
		}
	}
}

// Close closes all connections.
func (p *Clients) Close() {
	p.mu.Lock()
	p.closed = true
	conns, raw := p.conns, make([]*peerport.Conn, 0, len(p.raw))
	p.conns = nil
	for c := range p.raw {
		raw = append(raw, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	for _, c := range raw {
		c.Close()
	}
}

// Keep closes the connections to all nodes for which keep returns false.
func (p *Clients) Keep(keep func(node string) bool) {
	p.mu.Lock()
	var conns []*grpc.ClientConn
	var raw []*peerport.Conn
	for node, c := range p.conns {
		if !keep(node) {
			conns = append(conns, c)
			delete(p.conns, node)
		}
	}
	for c := range p.raw {
		if !keep(c.Node) {
			raw = append(raw, c)
		}
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	for _, c := range raw {
		c.Close()
	}
}

// Open returns the number of connections to a node.
func (p *Clients) Open(node string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.raw {
		if c.Node == node {
			n++
		}
	}
	return n
}
