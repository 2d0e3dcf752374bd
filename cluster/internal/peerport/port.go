// Package peerport accepts the connections of other nodes on one port, and sorts them by
// protocol. What it hands on is a connection whose other end proved, by its certificate,
// which node it is; whether that node is unsealed it did not prove.
package peerport

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
	// HandshakeTimeout is how long a handshake may take.
	HandshakeTimeout = 5 * time.Second
	// MaxOfNode is how many connections of one node there may be: who has
	// one node's key gets no more of the nodes' places.
	MaxOfNode = 64
	// maxKnownSources bounds the addresses that are remembered as nodes'.
	maxKnownSources = 256
)

// Conn is a connection whose other end proved to be a node of the cluster.
type Conn struct {
	*tls.Conn
	Node string
	Done func() // called by Close, unless it is nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	if c.Done != nil {
		c.Done()
	}
	return err
}

// Port accepts connections on the peer port and sorts them by protocol. Not a
// byte is decoded, beyond TLS, before the other end's identity is verified.
//
// Whose handshake is not done is a stranger: it has a place in the admission
// budget's share of those, which the next one takes if it says nothing. Addresses
// of nodes keep their places for longer than others, so that however many
// strangers there are a node that comes back gets in.
type Port struct {
	ln      *admission.Listener
	id      *pki.Identity
	conf    *tls.Config
	log     *slog.Logger
	refused func(reason string)
	// Raft and Peers are the connections of either protocol.
	Raft  *Listener
	Peers *Listener
	wg    sync.WaitGroup

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

// New takes over the listener. A node is let in if admit returns no error, and refused is
// called with a reason, a word, for every connection that was not. hosts are those of the
// nodes' addresses.
func New(ln *admission.Listener, id *pki.Identity, admit func(node, alpn string) error, log *slog.Logger, refused func(reason string), hosts []string) *Port {
	p := &Port{
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
	p.Raft = NewListener(ln.Addr())
	p.Peers = NewListener(ln.Addr())
	p.wg.Add(1)
	go p.accept()
	return p
}

// Known reports whether a node was seen at a source, or should be there.
func (p *Port) Known(s admission.Source) bool { return p.known.has(s) }

// Door is where the port's connections are admitted.
func (p *Port) Door() *admission.Door { return p.ln.Door() }

// Open is how many connections there are, and how many of them are that node's.
func (p *Port) Open(node string) (all, ofNode int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns), p.nodes[node]
}

func (p *Port) accept() {
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

func (p *Port) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Port) untrack(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// enter counts a verified connection for its node.
func (p *Port) enter(node string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[node] >= MaxOfNode {
		return false
	}
	p.nodes[node]++
	return true
}

func (p *Port) leave(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[node]--; p.nodes[node] <= 0 {
		delete(p.nodes, node)
	}
}

func (p *Port) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), HandshakeTimeout)
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
	sub := p.Peers
	if cs.NegotiatedProtocol == pki.ALPNRaft {
		sub = p.Raft
	}
	var once sync.Once
	sub.Deliver(&Conn{Conn: c, Node: node, Done: func() {
		once.Do(func() {
			release()
			p.untrack(raw)
			p.leave(node)
		})
	}})
}

// ErrNotMember is what admit returns for a node that the cluster does not know.
var ErrNotMember = errors.New("not a member of the cluster")

// ErrUnreachable is a node to which there is no connection.
var ErrUnreachable = errors.New("node cannot be reached")

func refusal(err error) string {
	var ne net.Error
	var cert *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrNotMember):
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

// Close stops listening and cuts every connection.
func (p *Port) Close() {
	p.mu.Lock()
	p.closed = true
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	p.ln.Close()
	p.Raft.Close()
	p.Peers.Close()
	for _, c := range conns {
		c.Close()
	}
}

// Wait returns when no goroutine of the port runs any more.
func (p *Port) Wait() { p.wg.Wait() }

// Listener is a net.Listener of connections that are delivered to it, such as those of one
// protocol of the port.
type Listener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewListener returns a listener at an address, which nothing listens at.
func NewListener(addr net.Addr) *Listener {
	return &Listener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Deliver hands a connection over; one that nobody takes in time is closed, so
// that the other end tries again.
func (l *Listener) Deliver(c net.Conn) {
	t := time.NewTimer(HandshakeTimeout)
	defer t.Stop()
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	case <-t.C:
		c.Close()
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that were accepted stay open.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.addr }

// Credentials tell gRPC that the handshake is done, and whose connection it is: a Conn's.
type Credentials struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	node string
}

// NodeOf is the node at the other end of a call over a Conn.
func NodeOf(info credentials.AuthInfo) (node string, ok bool) {
	a, ok := info.(authInfo)
	return a.node, ok
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "conclave" }

func (Credentials) handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pc, ok := c.(*Conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection %T was not verified", c)
	}
	return pc, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, pc.Node}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (v Credentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return v.handshake(c)
}

// ServerHandshake implements credentials.TransportCredentials.
func (v Credentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return v.handshake(c)
}

// Info implements credentials.TransportCredentials.
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (v Credentials) Clone() credentials.TransportCredentials { return v }

// OverrideServerName implements credentials.TransportCredentials.
func (Credentials) OverrideServerName(string) error { return nil }
