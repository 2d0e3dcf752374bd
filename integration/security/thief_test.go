package security

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// What shares the peer port, by ALPN.
const (
	peerRaft    = "conclave-raft/2"
	peerService = "h2"
)

// thief is an attacker's program that has what was taken from one node of a cluster
// and no share: the node's TLS identity and, where it opens the node's port, its
// address in the network. It speaks the protocol of the peers as it likes.
type thief struct {
	clusterpb.UnimplementedPeerServer
	t    *testing.T
	id   string // of the node that it was taken from
	addr string // where that node's peers look for it
	// listen is where the thief listens when it opens; addr if empty.
	listen string
	// frame is what it begins its connections for Raft with, instead of the word that it
	// proves nothing.
	frame func(c *tls.Conn) []byte
	cert  tls.Certificate
	roots *x509.CertPool
	peers map[string]string // the honest nodes' addresses

	raft *raft.NetworkTransport
	port *thiefPort

	mu    sync.Mutex
	heard []byte // all that it was sent
	log   []*raft.Log
	term  uint64
	asked map[string]int // requests of honest nodes, by kind
	shown []byte         // the newest frame in which an honest node proved itself
	ahead uint64         // how far ahead of honest nodes' terms the terms of its answers are
	// hello is what it tells a node that starts.
	hello *clusterpb.HelloResponse
}

// maxHeard bounds what a thief keeps of what it is sent.
const maxHeard = 64 << 20

// newThief takes a node's identity from the directory that has its PEM files.
func newThief(t *testing.T, dir, id, addr string, peers map[string]string) *thief {
	t.Helper()
	th := &thief{t: t, id: id, addr: addr, peers: peers, roots: x509.NewCertPool(), asked: make(map[string]int)}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err == nil {
		th.cert, err = tls.LoadX509KeyPair(filepath.Join(dir, id+".pem"), filepath.Join(dir, id+"-key.pem"))
	}
	if err != nil {
		t.Fatal(err)
	}
	th.roots.AppendCertsFromPEM(ca)
	th.port = newThiefPort(th)
	th.raft = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: th.port, MaxPool: 3, Timeout: 3 * time.Second, MsgpackUseNewTimeFormat: true, Logger: hclog.NewNullLogger(),
	})
	t.Cleanup(func() {
		th.port.Close()
		th.raft.CloseStreams()
		th.raft.Close()
	})
	return th
}

func (th *thief) hear(b []byte) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if len(th.heard)+len(b) <= maxHeard {
		th.heard = append(th.heard, b...)
	}
}

// all is everything that the thief was sent, as its connections decrypted it.
func (th *thief) all() []byte {
	th.mu.Lock()
	defer th.mu.Unlock()
	return slices.Clone(th.heard)
}

func (th *thief) note(kind string) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.asked[kind]++
}

func (th *thief) was(kind string) int {
	th.mu.Lock()
	defer th.mu.Unlock()
	return th.asked[kind]
}

func (th *thief) requests() string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return fmt.Sprint(th.asked)
}

// tap has the thief keep what comes over a connection.
type tap struct {
	net.Conn
	th *thief
}

// Read implements io.Reader.
func (c tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.th.hear(b[:n])
	return n, err
}

// dial connects to an honest node with the stolen identity.
func (th *thief) dial(ctx context.Context, node, alpn string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: th.roots, ServerName: "localhost",
		Certificates: []tls.Certificate{th.cert}, NextProtos: []string{alpn},
	}}
	c, err := d.DialContext(ctx, "tcp", th.peers[node])
	if err != nil {
		return nil, err
	}
	if alpn == peerRaft {
		if err := th.introduce(c.(*tls.Conn)); err != nil {
			c.Close()
			return nil, err
		}
	}
	return tap{c, th}, nil
}

// introduce begins a connection for Raft: each end names its Raft group first, and then what
// it can prove, in a frame whose length is its first byte.
func (th *thief) introduce(c *tls.Conn) error {
	frame := []byte{0}
	if th.frame != nil {
		frame = th.frame(c)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(append([]byte{0, 0, 0, 0}, frame...)); err != nil {
		return err
	}
	begin := make([]byte, 4+1)
	if _, err := io.ReadFull(c, begin); err != nil {
		return err
	}
	theirs := append(make([]byte, 0, 256), begin[4])
	theirs = theirs[:1+int(theirs[0])]
	if _, err := io.ReadFull(c, theirs[1:]); err != nil {
		return err
	}
	th.hear(theirs)
	th.mu.Lock()
	if th.asked["connection"]++; len(theirs) > 1 {
		th.shown = theirs
	}
	th.mu.Unlock()
	return c.SetDeadline(time.Time{})
}

// peer is the service of an honest node.
func (th *thief) peer(node string) clusterpb.PeerClient {
	return clusterpb.NewPeerClient(th.conn(node))
}

func (th *thief) conn(node string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+node, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return th.dial(ctx, node, peerService) }))
	if err != nil {
		th.t.Fatal(err)
	}
	th.t.Cleanup(func() { conn.Close() })
	return conn
}

// nodes are the honest nodes, in order.
func (th *thief) nodes() []string {
	var ids []string
	for id := range th.peers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// thiefPort is where the thief stands in for the stolen node: it sorts connections
// as the node would. Raft's transport has one too if it is not open, to dial from.
type thiefPort struct {
	th    *thief
	raft  chan net.Conn
	peer  chan net.Conn
	done  chan struct{}
	once  sync.Once
	ln    net.Listener
	serve *grpc.Server
}

func newThiefPort(th *thief) *thiefPort {
	return &thiefPort{th: th, raft: make(chan net.Conn), peer: make(chan net.Conn), done: make(chan struct{})}
}

// Accept implements net.Listener, for Raft's connections.
func (p *thiefPort) Accept() (net.Conn, error) { return p.accept(p.raft) }

func (p *thiefPort) accept(from chan net.Conn) (net.Conn, error) {
	select {
	case c := <-from:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *thiefPort) Close() error {
	p.once.Do(func() {
		close(p.done)
		if p.ln != nil {
			p.ln.Close()
			p.serve.Stop()
		}
	})
	return nil
}

// Addr implements net.Listener.
func (p *thiefPort) Addr() net.Addr { return thiefAddr(p.th.addr) }

type thiefAddr string

func (thiefAddr) Network() string  { return "tcp" }
func (a thiefAddr) String() string { return string(a) }

// Dial implements raft.StreamLayer.
func (p *thiefPort) Dial(addr raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	for id, a := range p.th.peers {
		if a == string(addr) {
			return p.th.dial(context.Background(), id, peerRaft)
		}
	}
	return nil, errors.New("nobody is there")
}

// servicePort is the same for the peer service's connections.
type servicePort struct{ *thiefPort }

// Accept implements net.Listener.
func (p servicePort) Accept() (net.Conn, error) { return p.accept(p.peer) }

// Close implements net.Listener. The port's owner closes it.
func (servicePort) Close() error { return nil }

// open listens where the stolen node was, and answers as a follower that stores and
// grants whatever it is asked to; so it also gets the whole log.
func (th *thief) open() {
	p := th.port
	var err error
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if p.ln, err = net.Listen("tcp", cmp.Or(th.listen, th.addr)); err == nil {
			break
		}
		if time.Now().After(end) {
			th.t.Fatal(err)
		}
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{th.cert},
		ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{peerRaft, peerService},
	}
	go func() {
		for {
			raw, err := p.ln.Accept()
			if err != nil {
				return
			}
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				c := tls.Server(raw, conf)
				if c.HandshakeContext(ctx) != nil {
					raw.Close()
					return
				}
				to := p.peer
				if c.ConnectionState().NegotiatedProtocol == peerRaft {
					if th.introduce(c) != nil {
						raw.Close()
						return
					}
					to = p.raft
				}
				select {
				case to <- tap{c, th}:
				case <-p.done:
					c.Close()
				}
			}()
		}
	}()
	p.serve = grpc.NewServer()
	clusterpb.RegisterPeerServer(p.serve, th)
	go func() { _ = p.serve.Serve(servicePort{p}) }()
	go func() {
		for {
			select {
			case rpc := <-th.raft.Consumer():
				th.answer(rpc)
			case <-p.done:
				return
			}
		}
	}()
}

// header names the thief as the node that it was taken from.
func (th *thief) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(th.id), Addr: []byte(th.addr)}
}

// answer is what the thief says to a request of an honest node's Raft.
func (th *thief) answer(rpc raft.RPC) {
	th.mu.Lock()
	defer th.mu.Unlock()
	var resp any
	switch r := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		th.asked["append"]++
		th.term = max(th.term, r.Term)
		ok := r.PrevLogEntry <= uint64(len(th.log))
		for _, e := range r.Entries {
			if !ok || e.Index > uint64(len(th.log))+1 {
				ok = false
				break
			}
			th.log = append(th.log[:e.Index-1], e)
		}
		resp = &raft.AppendEntriesResponse{RPCHeader: th.header(), Term: r.Term + th.ahead, LastLog: uint64(len(th.log)), Success: ok}
	case *raft.RequestVoteRequest:
		th.asked["vote"]++
		th.term = max(th.term, r.Term)
		resp = &raft.RequestVoteResponse{RPCHeader: th.header(), Term: r.Term + th.ahead, Granted: true}
	case *raft.RequestPreVoteRequest:
		resp = &raft.RequestPreVoteResponse{RPCHeader: th.header(), Term: r.Term + th.ahead, Granted: true}
	case *raft.InstallSnapshotRequest:
		th.asked["snapshot"]++
		_, _ = io.Copy(io.Discard, rpc.Reader) // the tap has it
		resp = &raft.InstallSnapshotResponse{RPCHeader: th.header(), Term: r.Term + th.ahead, Success: true}
	case *raft.TimeoutNowRequest:
		th.asked["lead"]++
		resp = &raft.TimeoutNowResponse{RPCHeader: th.header()}
	}
	rpc.Respond(resp, nil)
}

// entries are the log as the thief has it.
func (th *thief) entries() []*raft.Log {
	th.mu.Lock()
	defer th.mu.Unlock()
	return slices.Clone(th.log)
}
