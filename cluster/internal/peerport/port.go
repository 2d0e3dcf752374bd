// Package peerport accepts the connections of other nodes on one port and distributes them
// by protocol. The other end of each connection that it delivers has proved, by its
// certificate, which node it is. It has not proved that it is unsealed.
package peerport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
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
	// HandshakeTimeout bounds the duration of a handshake.
	HandshakeTimeout = 5 * time.Second
	// MaxOfNode is the maximum number of connections of one node, so that the holder of one
	// node's key cannot use up the connections of all.
	MaxOfNode = 64
	// maxKnownSources bounds the number of addresses that are remembered as those of nodes.
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

// Port accepts connections on the peer port and distributes them by protocol. Nothing but
// TLS is decoded before the other end's identity has been verified.
//
// A connection whose handshake has not finished counts as a stranger's in the admission
// budget, and loses its place to the next one if it sends nothing. Connections from
// addresses of nodes keep their places longer than others. So a node that reconnects gets
// in, however many strangers there are.
type Port struct {
	ln      *admission.Listener
	id      *pki.Identity
	conf    *tls.Config
	log     *slog.Logger
	refused func(reason string)
	// Raft and Peers are the listeners for the two protocols.
	Raft  *Listener
	Peers *Listener
	wg    sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]string // with the node, once it is verified
	nodes  map[string]int      // number of verified connections by node
	closed bool

	known knownSources
}

// knownSources are the addresses at which nodes were seen or are expected.
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

// add records the source of a successful handshake. Nodes have few addresses; if there are
// too many nevertheless, an arbitrary one is dropped.
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

// New takes over the listener. A node is accepted if admit returns nil. refused is called
// with a one-word reason for every connection that is refused. hosts are the host parts of
// the nodes' addresses.
func New(ln *admission.Listener, id *pki.Identity, admit func(node, alpn string) error, log *slog.Logger, refused func(reason string), hosts []string) *Port {
	p := &Port{
		ln: ln, id: id, conf: id.Server(admit), log: log, refused: refused,
		conns: make(map[net.Conn]string), nodes: make(map[string]int),
	}
	p.known.fixed, p.known.seen = make(map[admission.Source]bool), make(map[admission.Source]bool)
	for _, h := range hosts {
		if _, err := netip.ParseAddr(h); err == nil { // host names are learned once a node has connected from there
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

// Known reports whether a node was seen, or is expected, at a source.
func (p *Port) Known(s admission.Source) bool { return p.known.has(s) }

// Door returns the admission door of the port's connections.
func (p *Port) Door() *admission.Door { return p.ln.Door() }

// Open returns the number of all connections and of those of one node.
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
	p.conns[c] = ""
	return true
}

func (p *Port) untrack(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// enter counts a verified connection for its node. It returns false if there are too many.
func (p *Port) enter(c net.Conn, node string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[node] >= MaxOfNode {
		return false
	}
	p.nodes[node]++
	p.conns[c] = node
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
	// VerifyConnection has already accepted this certificate.
	_, node, err := pki.CertificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		drop("certificate")
		return
	}
	if p.id.Protocol(cs) == pki.ALPNLineage {
		p.tellLineage(c)
		p.untrack(raw)
		return
	}
	if !p.enter(raw, node) {
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
	if p.id.Protocol(cs) == pki.ALPNRaft {
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

// tellLineage sends this node's lineage, which is all that ALPNLineage is for.
func (p *Port) tellLineage(c *tls.Conn) {
	_ = c.SetDeadline(time.Now().Add(HandshakeTimeout))
	_, err := io.WriteString(c, p.id.Lineage())
	if err := errors.Join(err, c.Close()); err != nil {
		p.log.Debug("telling the lineage", "remote", c.RemoteAddr().String(), "err", err)
	}
}

// ErrNotMember is returned by admit for a node that the cluster does not know.
var ErrNotMember = errors.New("not a member of the cluster")

// ErrUnreachable is returned when there is no connection to a node.
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

// Close stops listening and closes all connections.
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

// Keep closes the verified connections of all nodes for which keep returns false. Those whose
// handshake is not over are refused by its end, or by the next call.
func (p *Port) Keep(keep func(node string) bool) {
	p.mu.Lock()
	var conns []net.Conn
	for c, node := range p.conns {
		if node != "" && !keep(node) {
			conns = append(conns, c)
		}
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// Wait returns once all goroutines of the port have ended.
func (p *Port) Wait() { p.wg.Wait() }

// Listener is a net.Listener for connections that are passed to Deliver, such as those of
// one protocol of the port.
type Listener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewListener returns a Listener with the given address, on which nothing listens.
func NewListener(addr net.Addr) *Listener {
	return &Listener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Deliver passes a connection to Accept. If it is not accepted in time it is closed, so
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

// Credentials tell gRPC that the handshake of a Conn is done and which node is at its other
// end.
type Credentials struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	node string
}

// NodeOf returns the node at the other end of a call over a Conn.
func NodeOf(info credentials.AuthInfo) (node string, ok bool) {
	a, ok := info.(authInfo)
	return a.node, ok
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "conclave" }

func (Credentials) handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pc, ok := c.(*Conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection %T was not authenticated", c)
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
