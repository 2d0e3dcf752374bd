package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxHandshakes run at once; further connections wait in the kernel's queue,
	// at most handshakeTimeout for each slot.
	maxHandshakes = 64
	// maxHandshakesFrom one address run at once, so that one slow stranger does
	// not keep the nodes from each other.
	maxHandshakesFrom = 16
	// maxConnections of nodes are open at once on the peer port.
	maxConnections = 512
)

// peerConn is a connection whose other end proved to be a node of the cluster.
type peerConn struct {
	net.Conn
	node string
	done func()
}

func (c *peerConn) Close() error {
	err := c.Conn.Close()
	if c.done != nil {
		c.done()
	}
	return err
}

// port accepts connections on the peer port and sorts them by protocol. Not a
// byte is decoded, beyond TLS, before the other end's identity is verified.
type port struct {
	ln      net.Listener
	conf    *tls.Config
	log     *slog.Logger
	refused func(reason string)
	raft    *subListener
	peer    *subListener
	slots   chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	shakes map[string]int // handshakes by remote address
	closed bool
}

func newPort(ln net.Listener, conf *tls.Config, log *slog.Logger, refused func(string)) *port {
	p := &port{
		ln: ln, conf: conf, log: log, refused: refused,
		slots: make(chan struct{}, maxHandshakes),
		conns: make(map[net.Conn]struct{}), shakes: make(map[string]int),
	}
	p.raft = newSubListener(ln.Addr())
	p.peer = newSubListener(ln.Addr())
	p.wg.Add(1)
	go p.accept()
	return p
}

func (p *port) accept() {
	defer p.wg.Done()
	for {
		p.slots <- struct{}{}
		c, err := p.ln.Accept()
		if err != nil {
			<-p.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.log.Warn("accepting peer connection", "err", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors: do not spin
			continue
		}
		if !p.track(c) {
			<-p.slots
			c.Close()
			p.refused("too_many")
			continue
		}
		p.wg.Add(1)
		go func() {
			defer p.wg.Done()
			p.handshake(c)
		}()
	}
}

func (p *port) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := remoteHost(c)
	if p.closed || len(p.conns) >= maxConnections || p.shakes[from] >= maxHandshakesFrom {
		return false
	}
	p.conns[c] = struct{}{}
	p.shakes[from]++
	return true
}

// shaken frees the place of a handshake that ended.
func (p *port) shaken(c net.Conn) {
	<-p.slots
	p.mu.Lock()
	defer p.mu.Unlock()
	from := remoteHost(c)
	if p.shakes[from]--; p.shakes[from] <= 0 {
		delete(p.shakes, from)
	}
}

func remoteHost(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return ""
	}
	return host
}

func (p *port) untrack(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *port) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	c := tls.Server(raw, p.conf)
	err := c.HandshakeContext(ctx)
	cancel()
	p.shaken(raw)
	if err != nil {
		raw.Close()
		p.untrack(raw)
		p.refused(refusal(err))
		p.log.Debug("refused peer connection", "remote", raw.RemoteAddr().String(), "err", err)
		return
	}
	cs := c.ConnectionState()
	// VerifyConnection saw this certificate and accepted it.
	_, node, err := CertificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		raw.Close()
		p.untrack(raw)
		return
	}
	sub := p.peer
	if cs.NegotiatedProtocol == alpnRaft {
		sub = p.raft
	}
	sub.deliver(&peerConn{Conn: c, node: node, done: func() { p.untrack(raw) }})
}

// errNotMember is the refusal of a node that the cluster does not know.
var errNotMember = errors.New("not a member of the cluster")

func refusal(err error) string {
	var ne net.Error
	var cert *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	switch {
	case errors.Is(err, errNotMember):
		return "not_member"
	case errors.As(err, &ne) && ne.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &cert):
		return "certificate"
	case errors.As(err, &header):
		return "not_tls"
	}
	return "handshake"
}

// close stops listening and cuts every connection.
func (p *port) close() {
	p.mu.Lock()
	p.closed = true
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	p.ln.Close()
	p.raft.Close()
	p.peer.Close()
	for _, c := range conns {
		c.Close()
	}
}

// wait returns when no goroutine of the port runs any more.
func (p *port) wait() { p.wg.Wait() }

// subListener is the net.Listener of one protocol of the port.
type subListener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newSubListener(addr net.Addr) *subListener {
	return &subListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// deliver hands a connection over; one that nobody takes in time is closed, so
// that the other end tries again.
func (l *subListener) deliver(c net.Conn) {
	t := time.NewTimer(handshakeTimeout)
	defer t.Stop()
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	case <-t.C:
		c.Close()
	}
}

func (l *subListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *subListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *subListener) Addr() net.Addr { return l.addr }

// verifiedPeer tells gRPC that the handshake is done, and whose connection it is.
type verifiedPeer struct{}

type peerAuth struct {
	credentials.CommonAuthInfo
	node string
}

func (peerAuth) AuthType() string { return "conclave" }

func (verifiedPeer) handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pc, ok := c.(*peerConn)
	if !ok {
		return nil, nil, fmt.Errorf("connection %T was not verified", c)
	}
	return pc, peerAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, pc.node}, nil
}

func (v verifiedPeer) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return v.handshake(c)
}

func (v verifiedPeer) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return v.handshake(c)
}

func (verifiedPeer) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (v verifiedPeer) Clone() credentials.TransportCredentials { return v }
func (verifiedPeer) OverrideServerName(string) error           { return nil }
