package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
)

// dialTimeout bounds one connection attempt, handshake included.
const dialTimeout = 3 * time.Second

// maxMessage bounds a message between nodes.
const maxMessage = 2 << 20

// peerWindow is the flow control window between nodes. One that adapts itself
// sends a ping beside nearly every batch to measure the line.
const peerWindow = maxMessage

// peers holds one gRPC connection to each other node.
type peers struct {
	self     string
	identity *pki.Identity
	dial     func(ctx context.Context, node, addr string) (net.Conn, error)
	// addresses are where a node may be reached, best first.
	addresses func(node string) []string

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	raw    map[*peerport.Conn]struct{}
	closed bool
}

func newPeers(self string, id *pki.Identity, dial func(context.Context, string, string) (net.Conn, error), addresses func(string) []string) *peers {
	if dial == nil {
		d := &net.Dialer{}
		dial = func(ctx context.Context, _, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	return &peers{
		self: self, identity: id, dial: dial, addresses: addresses,
		conns: make(map[string]*grpc.ClientConn), raw: make(map[*peerport.Conn]struct{}),
	}
}

// connect opens a verified connection to that node, at whichever of its
// addresses it answers.
func (p *peers) connect(ctx context.Context, node, alpn string) (*peerport.Conn, error) {
	err := fmt.Errorf("%w: no address of node %s", ErrUnreachable, node)
	for _, addr := range p.addresses(node) {
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

func (p *peers) connectTo(ctx context.Context, node, addr, alpn string) (*peerport.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := p.dial(ctx, node, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, p.identity.Client(node, alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("node %s at %s: %w", node, addr, err)
	}
	release, err := p.identity.Watch(c.ConnectionState(), raw)
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
		return nil, ErrShutdown
	}
	return pc, nil
}

// client is the service of another node.
func (p *peers) client(node string) (clusterpb.PeerClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrShutdown
	}
	if node == p.self {
		return nil, fmt.Errorf("%w: %s is this node", ErrUnreachable, node)
	}
	if c := p.conns[node]; c != nil {
		return clusterpb.NewPeerClient(c), nil
	}
	c, err := grpc.NewClient("passthrough:///"+node,
		grpc.WithTransportCredentials(peerport.Credentials{}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := p.connect(ctx, node, pki.ALPNPeer)
			if err != nil {
				return nil, err
			}
			return c, nil
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithStaticStreamWindowSize(peerWindow),
		grpc.WithStaticConnWindowSize(peerWindow),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newPeerCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, err
	}
	p.conns[node] = c
	return clusterpb.NewPeerClient(c), nil
}

// reach waits for a connection to that node. When it fails, nothing was sent.
func (p *peers) reach(ctx context.Context, node string) (clusterpb.PeerClient, error) {
	client, err := p.client(node)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	c := p.conns[node]
	p.mu.Unlock()
	if c == nil {
		return nil, ErrShutdown
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
			return nil, fmt.Errorf("%w: %s", ErrUnreachable, node)
		}
		if !c.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, node, ctx.Err())
		}
	}
}

// reset makes a connection in backoff try again at once.
func (p *peers) reset(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[node]; c != nil {
		c.ResetConnectBackoff()
	}
}

// close cuts every connection.
func (p *peers) close() {
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

// appendNew appends what is not there yet.
func appendNew(list []string, more ...string) []string {
	for _, s := range more {
		if s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}
