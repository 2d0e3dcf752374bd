package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/transport/admission"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxConnectionsOfNode is how many connections of one node there may be: who has
	// one node's key gets no more of the nodes' places.
	maxConnectionsOfNode = 64
	// maxKnownSources bounds the addresses that are remembered as nodes'.
	maxKnownSources = 256
)

// peerConn is a connection whose other end proved to be a node of the cluster.
type peerConn struct {
	*tls.Conn
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
//
// Whose handshake is not done is a stranger: it has a place in the admission
// budget's share of those, which the next one takes if it says nothing. Addresses
// of nodes keep their places for longer than others, so that however many
// strangers there are a node that comes back gets in.
type port struct {
	ln      *admission.Listener
	id      *pki.Identity
	conf    *tls.Config
	log     *slog.Logger
	refused func(reason string)
	raft    *subListener
	peer    *subListener
	wg      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	nodes  map[string]int // verified connections by node
	closed bool

	known knownSources
}

// knownSources are where nodes were seen, and where they should be.
type knownSources struct {
	mu    sync.Mutex
	fixed map[admission.Source]bool
	seen  map[admission.Source]bool
}

func (k *knownSources) has(s admission.Source) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fixed[s] || k.seen[s]
}

// add remembers where a handshake ended well. Nodes have few addresses; if there
// are many nevertheless, any is forgotten.
func (k *knownSources) add(s admission.Source) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fixed[s] || k.seen[s] {
		return
	}
	for old := range k.seen {
		if len(k.seen) < maxKnownSources {
			break
		}
		delete(k.seen, old)
	}
	k.seen[s] = true
}

// newPort takes over the listener. hosts are those of the nodes' addresses.
func newPort(ln *admission.Listener, id *pki.Identity, admit func(node, alpn string) error, log *slog.Logger, refused func(string), hosts []string) *port {
	p := &port{
		ln: ln, id: id, conf: id.Server(admit), log: log, refused: refused,
		conns: make(map[net.Conn]struct{}), nodes: make(map[string]int),
	}
	p.known.fixed, p.known.seen = make(map[admission.Source]bool), make(map[admission.Source]bool)
	for _, h := range hosts {
		if _, err := netip.ParseAddr(h); err == nil { // names are known once a node came from there
			p.known.fixed[admission.SourceOf(h)] = true
		}
	}
	ln.Door().Prefer(p.known.has)
	p.raft = newSubListener(ln.Addr())
	p.peer = newSubListener(ln.Addr())
	p.wg.Add(1)
	go p.accept()
	return p
}

func (p *port) accept() {
	defer p.wg.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.log.Warn("accepting peer connection", "err", err)
			time.Sleep(10 * time.Millisecond) // do not spin
			continue
		}
		if !p.track(c) {
			c.Close()
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
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *port) untrack(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// enter counts a verified connection for its node.
func (p *port) enter(node string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[node] >= maxConnectionsOfNode {
		return false
	}
	p.nodes[node]++
	return true
}

func (p *port) leave(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[node]--; p.nodes[node] <= 0 {
		delete(p.nodes, node)
	}
}

func (p *port) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	c := tls.Server(raw, p.conf)
	err := c.HandshakeContext(ctx)
	cancel()
	drop := func(reason string) {
		raw.Close()
		p.untrack(raw)
		p.refused(reason)
	}
	if err != nil {
		drop(refusal(err))
		p.log.Debug("refused peer connection", "remote", raw.RemoteAddr().String(), "err", err)
		return
	}
	cs := c.ConnectionState()
	// VerifyConnection saw this certificate and accepted it.
	_, node, err := pki.CertificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		drop("certificate")
		return
	}
	if !p.enter(node) {
		drop("too_many")
		return
	}
	conn := admission.Of(raw)
	if !conn.Promote(admission.Peer) {
		p.leave(node)
		drop("too_many")
		return
	}
	p.known.add(conn.Source())
	release, err := p.id.Watch(cs, raw)
	if err != nil {
		p.leave(node)
		drop(refusal(err))
		return
	}
	sub := p.peer
	if cs.NegotiatedProtocol == pki.ALPNRaft {
		sub = p.raft
	}
	var once sync.Once
	sub.deliver(&peerConn{Conn: c, node: node, done: func() {
		once.Do(func() {
			release()
			p.untrack(raw)
			p.leave(node)
		})
	}})
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
	case errors.Is(err, pki.ErrRevoked):
		return "revoked"
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
