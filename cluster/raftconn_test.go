package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// raftPair is a connection between two nodes as TLS leaves it.
func raftPair(t *testing.T, ca *pki.CA, from, to string) (dials, accepts *peerConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server := testIdentity(t, ca, to).Server(func(string, string) error { return nil })
	accepted := make(chan *tls.Conn, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		c := tls.Server(raw, server)
		_ = c.HandshakeContext(context.Background())
		accepted <- c
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, testIdentity(t, ca, from).Client(to, pki.ALPNRaft))
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	dials, accepts = &peerConn{Conn: c, node: to}, &peerConn{Conn: <-accepted, node: from}
	t.Cleanup(func() { dials.Close(); accepts.Close() })
	return dials, accepts
}

func exported(t *testing.T, c *peerConn) []byte {
	t.Helper()
	cs := c.ConnectionState()
	b, err := cs.ExportKeyingMaterial(connExporter, nil, exporterSize)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signedFrame is a frame with a signature of the cluster's origin key.
func signedFrame(c *fsmpb.Cluster, generation uint32, domain string, digest [32]byte) []byte {
	p := connProof{generation: generation, signature: ed25519.Sign(testOriginKey, fsm.OriginMessage(c, domain, digest))}
	return p.frame()
}

// introduced is what a node makes of a connection over which the other end, n2, sends
// a frame; nil if it closes the connection.
func introduced(t *testing.T, c *testCluster, n *testNode, end role, frame func(conn *peerConn) []byte) (*raftConn, error) {
	t.Helper()
	var theirs, ours *peerConn
	if end == acceptor {
		theirs, ours = raftPair(t, c.ca, "n2", n.id)
	} else {
		ours, theirs = raftPair(t, c.ca, n.id, "n2")
	}
	if b := frame(theirs); b != nil {
		if _, err := theirs.Write(append(preface(), b...)); err != nil {
			t.Fatal(err)
		}
		if len(b) < 1+connProofSize && b[0] != 0 {
			_ = theirs.CloseWrite()
		}
	}
	return n.introduce(ours, end, time.Now().Add(500*time.Millisecond))
}

// A proof is for one connection, one end of it, one prover, one verifier and one
// cluster.
func TestConnProofs(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes["n1"]
	other := testFounded()
	other.Id[0] ^= 1
	sign := func(conn *peerConn, prover, verifier string, end role) []byte {
		return signedFrame(testFounded(), 1, connDomain, connDigest(prover, verifier, end, exported(t, conn)))
	}
	for name, tt := range map[string]struct {
		frame func(conn *peerConn) []byte
		good  bool
	}{
		"a good one": {func(conn *peerConn) []byte { return sign(conn, "n2", "n1", dialer) }, true},
		"none":       {func(*peerConn) []byte { return []byte{0} }, false},
		"of another connection": {func(*peerConn) []byte {
			before, _ := raftPair(t, c.ca, "n2", "n1")
			return sign(before, "n2", "n1", dialer)
		}, false},
		"of the other end":  {func(conn *peerConn) []byte { return sign(conn, "n2", "n1", acceptor) }, false},
		"of another prover": {func(conn *peerConn) []byte { return sign(conn, "n3", "n1", dialer) }, false},
		"for another node":  {func(conn *peerConn) []byte { return sign(conn, "n2", "n3", dialer) }, false},
		"this node's own":   {func(conn *peerConn) []byte { return sign(conn, "n1", "n2", acceptor) }, false},
		"of another cluster": {func(conn *peerConn) []byte {
			return signedFrame(other, 1, connDomain, connDigest("n2", "n1", dialer, exported(t, conn)))
		}, false},
		"of another kind": {func(conn *peerConn) []byte {
			return signedFrame(testFounded(), 1, unsealedDomain, connDigest("n2", "n1", dialer, exported(t, conn)))
		}, false},
		"of an unknown generation": {func(conn *peerConn) []byte {
			return signedFrame(testFounded(), 2, connDomain, connDigest("n2", "n1", dialer, exported(t, conn)))
		}, false},
		"of no generation": {func(conn *peerConn) []byte {
			return signedFrame(testFounded(), 0, connDomain, connDigest("n2", "n1", dialer, exported(t, conn)))
		}, false},
		"with a flipped bit": {func(conn *peerConn) []byte {
			b := sign(conn, "n2", "n1", dialer)
			b[20] ^= 1
			return b
		}, false},
	} {
		rc, err := introduced(t, c, n, acceptor, tt.frame)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := n.connProven(rc); got != tt.good {
			t.Errorf("%s: proven %v", name, got)
		}
	}
	rc, err := introduced(t, c, n, dialer, func(conn *peerConn) []byte { return sign(conn, "n2", "n1", acceptor) })
	if err != nil || !n.connProven(rc) {
		t.Errorf("as the dialer: %v", err)
	}
}

// What begins with anything but a frame is closed, and soon.
func TestConnProofFrames(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes["n1"]
	for name, tt := range map[string]struct {
		frame []byte
		want  error
	}{
		"truncated": {[]byte{connProofSize}, io.EOF},
		"cut short": {append([]byte{connProofSize}, make([]byte, 20)...), io.ErrUnexpectedEOF},
		"oversized": {append([]byte{255}, make([]byte, 255)...), errProofFrame},
		"too short": {append([]byte{connProofSize - 1}, make([]byte, connProofSize-1)...), errProofFrame},
		"nothing":   {nil, context.DeadlineExceeded},
		"Raft":      {[]byte{1, 0x85}, errProofFrame},
	} {
		began := time.Now()
		_, err := introduced(t, c, n, acceptor, func(*peerConn) []byte { return tt.frame })
		var ne net.Error
		timeout := errors.As(err, &ne) && ne.Timeout()
		if tt.want == context.DeadlineExceeded && !timeout || tt.want != context.DeadlineExceeded && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: closed after %v", name, took)
		}
	}
	if _, err := introduced(t, c, n, acceptor, func(*peerConn) []byte { return []byte{0} }); err != nil {
		t.Error(err)
	}
}

// A connection of another Raft group is closed, whatever is proven over it, and so is
// one that ends before it says which group it is for.
func TestConnOfAnotherGroup(t *testing.T) {
	c := startCluster(t, 1, nil)
	for _, tt := range []struct {
		preface []byte
		want    error
	}{
		{[]byte{0, 0, 0, 1}, wire.ErrGroup},
		{[]byte{1, 0, 0, 0}, wire.ErrGroup},
		{[]byte{0, 0, 0}, io.ErrUnexpectedEOF},
		{[]byte{0, 0, 0, 0}, nil},
	} {
		theirs, ours := raftPair(t, c.ca, "n2", "n1")
		frame := signedFrame(testFounded(), 1, connDomain, connDigest("n2", "n1", dialer, exported(t, theirs)))
		if len(tt.preface) < prefaceSize {
			frame = nil
		}
		if _, err := theirs.Write(append(tt.preface, frame...)); err != nil {
			t.Fatal(err)
		}
		_ = theirs.CloseWrite()
		if _, err := c.nodes["n1"].introduce(ours, acceptor, time.Now().Add(5*time.Second)); !errors.Is(err, tt.want) {
			t.Errorf("%x: %v, want %v", tt.preface, err, tt.want)
		}
	}
}

// A node that is not founded yet takes a proof, and can tell later what it is worth.
func TestConnProofBeforeFounding(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.startAll()
	n := c.leader()
	n.authority.sealed.Store(true)
	rc, err := introduced(t, c, n, acceptor, func(conn *peerConn) []byte {
		return signedFrame(testFounded(), 1, connDomain, connDigest("n2", "n1", dialer, exported(t, conn)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.connProven(rc) {
		t.Error("something is proven before there is a cluster")
	}
	if n.proveMore(rc) {
		t.Error("a sealed node has more to prove")
	}
	n.authority.sealed.Store(false)
	c.found()
	if !n.connProven(rc) {
		t.Error("the proof is not good after the founding")
	}
	if !n.proveMore(rc) {
		t.Error("a connection over which this node did not prove itself is kept")
	}
}

// impostor dials nodes with the identity of one of them, and proves nothing.
type impostor struct {
	*subListener
	c  *testCluster
	as *testNode
}

func (i impostor) Dial(addr raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	node, _ := i.as.nodeAt(string(addr))
	pc, err := i.as.peers.connect(i.c.t.Context(), node, pki.ALPNRaft)
	if err != nil {
		return nil, err
	}
	if _, err := pc.Write(append(preface(), 0)); err != nil {
		return nil, err
	}
	var p connProof
	if err := readPreface(pc); err != nil {
		return nil, err
	}
	return pc, p.read(pc)
}

// transport is hashicorp/raft's, over an impostor's connections.
func (i impostor) transport() *raft.NetworkTransport {
	tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: i, MaxPool: 3, Timeout: 3 * time.Second, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
	})
	i.c.t.Cleanup(func() { tr.CloseStreams(); tr.Close() })
	return tr
}

// Who has the identity of a node that runs on, unsealed, is not taken for it, and does
// not make the others take the node for a thief.
func TestImpostorsAreRefused(t *testing.T) {
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	for _, n := range c.up() {
		for _, o := range c.up() {
			clustertest.Eventually(t, 20*time.Second, n.id+" knows that "+o.id+" is unsealed", func() bool {
				return n == o || n.standings.proven(o.id, time.Now())
			})
		}
	}
	// In the name of the leader, and of a follower.
	for _, as := range []*testNode{l, f} {
		tr := impostor{newSubListener(advertised(as.advertise)), c, as}.transport()
		header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(as.id), Addr: []byte(as.advertise)}
		term, last := l.term(), l.raft.Load().LastIndex()
		for _, n := range c.up() {
			if n == as {
				continue
			}
			id, addr := raft.ServerID(n.id), raft.ServerAddress(n.advertise)
			noop := []*raft.Log{{Index: n.raft.Load().LastIndex() + 1, Term: term, Type: raft.LogNoop}}
			for what, ask := range map[string]func() error{
				"a vote": func() error {
					return tr.RequestVote(id, addr, &raft.RequestVoteRequest{
						RPCHeader: header, Term: term + 1, LastLogIndex: last + 9, LastLogTerm: term, LeadershipTransfer: true,
					}, &raft.RequestVoteResponse{})
				},
				"a vote beforehand": func() error {
					return tr.RequestPreVote(id, addr, &raft.RequestPreVoteRequest{
						RPCHeader: header, Term: term + 1, LastLogIndex: last + 9, LastLogTerm: term,
					}, &raft.RequestPreVoteResponse{})
				},
				"a heartbeat": func() error {
					return tr.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: header, Term: term}, &raft.AppendEntriesResponse{})
				},
				"a heartbeat of the next term": func() error {
					return tr.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: header, Term: term + 1}, &raft.AppendEntriesResponse{})
				},
				"entries": func() error {
					return tr.AppendEntries(id, addr, &raft.AppendEntriesRequest{
						RPCHeader: header, Term: term, PrevLogEntry: noop[0].Index - 1, PrevLogTerm: term, Entries: noop, LeaderCommitIndex: noop[0].Index,
					}, &raft.AppendEntriesResponse{})
				},
				"a forgery": func() error {
					return tr.AppendEntries(id, addr, &raft.AppendEntriesRequest{
						RPCHeader: header, Term: term, PrevLogEntry: noop[0].Index - 1, PrevLogTerm: term,
						Entries: []*raft.Log{{Index: noop[0].Index, Term: term, Type: raft.LogCommand, Data: []byte("garbage")}},
					}, &raft.AppendEntriesResponse{})
				},
				"an election": func() error {
					return tr.TimeoutNow(id, addr, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
				},
				"a snapshot": func() error {
					return tr.InstallSnapshot(id, addr, &raft.InstallSnapshotRequest{
						RPCHeader: header, SnapshotVersion: 1, Term: term, LastLogIndex: last + 9, LastLogTerm: term,
						Configuration: raft.EncodeConfiguration(n.configuration()), Size: 1,
					}, &raft.InstallSnapshotResponse{}, strings.NewReader("x"))
				},
			} {
				if err := ask(); err == nil || !strings.Contains(err.Error(), errImpostor.Error()) {
					t.Errorf("%s took from an impostor of %s: %s: %v", n.id, as.id, what, err)
				}
			}
			if n.cutOffs.has(sender{node: as.id}, time.Now()) {
				t.Errorf("%s is cut off for what its impostor sent", as.id)
			}
			if !n.standings.proven(as.id, time.Now()) {
				t.Errorf("%s is not known any more to be unsealed", as.id)
			}
			if n.term() != term {
				t.Errorf("%s is in term %d, and was in %d", n.id, n.term(), term)
			}
		}
	}
	// A forgery without proof, as to the peer service, has the same end refused, and not
	// the node's own connections.
	for _, n := range c.up() {
		if n != l {
			n.cutOff(sender{node: l.id}, "a test")
		}
	}
	term := l.term()
	for range 3 {
		mustPropose(t, l, clustertest.Record())
		time.Sleep(quick.Election)
	}
	if !l.IsLeader() || l.term() != term {
		t.Error("the leader is cut off for what its impostor sent")
	}
	for _, n := range c.up() {
		n.cutOffs.mu.Lock()
		clear(n.cutOffs.until)
		n.cutOffs.mu.Unlock()
	}
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.noFaults()
}

// rogue answers Raft's requests in the name of a node, with whatever does most harm. It
// proves nothing.
type rogue struct {
	*subListener
}

func (rogue) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return nil, ErrUnreachable }

// newRogue listens with a node's identity, on the address that it returns.
func newRogue(t *testing.T, c *testCluster, as *testNode) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := testIdentity(t, c.ca, as.id).Server(func(string, string) error { return nil })
	r := rogue{newSubListener(advertised(as.advertise))}
	go func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := tls.Server(raw, conf)
				var p connProof
				if conn.HandshakeContext(context.Background()) != nil || conn.ConnectionState().NegotiatedProtocol != pki.ALPNRaft {
					raw.Close()
					return
				}
				if _, err := conn.Write(append(preface(), 0)); err != nil || readPreface(conn) != nil || p.read(conn) != nil {
					raw.Close()
					return
				}
				r.deliver(conn)
			}()
		}
	}()
	tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: r, MaxPool: 3, Timeout: 3 * time.Second, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
	})
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(as.id), Addr: []byte(as.advertise)}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case rpc := <-tr.Consumer():
				var resp any
				switch q := rpc.Command.(type) {
				case *raft.AppendEntriesRequest:
					resp = &raft.AppendEntriesResponse{RPCHeader: header, Term: q.Term, LastLog: q.PrevLogEntry + uint64(len(q.Entries)), Success: true}
				case *raft.RequestVoteRequest:
					resp = &raft.RequestVoteResponse{RPCHeader: header, Term: q.Term, Granted: true}
				case *raft.RequestPreVoteRequest:
					resp = &raft.RequestPreVoteResponse{RPCHeader: header, Term: q.Term, Granted: true}
				case *raft.InstallSnapshotRequest:
					_, _ = io.Copy(io.Discard, rpc.Reader)
					resp = &raft.InstallSnapshotResponse{RPCHeader: header, Term: q.Term, Success: true}
				case *raft.TimeoutNowRequest:
					resp = &raft.TimeoutNowResponse{RPCHeader: header}
				}
				rpc.Respond(resp, nil)
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() { close(done); ln.Close(); tr.CloseStreams(); tr.Close() })
	return ln.Addr().String()
}

// divertible is a connection that goes elsewhere if it is for Raft, which its first
// message says, and an attacker in the network says so.
func divertible(t testing.TB, addr string, to *atomic.Pointer[string]) net.Conn {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		hello := make([]byte, 16<<10)
		n, err := far.Read(hello)
		if err != nil {
			return
		}
		if other := to.Load(); other != nil && strings.Contains(string(hello[:n]), pki.ALPNRaft) {
			addr = *other
		}
		out, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer out.Close()
		if _, err := out.Write(hello[:n]); err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(far, out)
			far.Close()
		}()
		_, _ = io.Copy(out, far)
	}()
	return near
}

// outbounds are the connections that a node's Raft has to another.
func outbounds(from, to *testNode) (list []*outbound) {
	from.trans.out.mu.Lock()
	defer from.trans.out.mu.Unlock()
	for target, conns := range from.trans.out.open {
		if addr, _, _ := strings.Cut(string(target), laneMark); addr == to.advertise {
			list = slices.AppendSeq(list, maps.Keys(conns))
		}
	}
	return list
}

// What an impostor answers, while the node itself answers that it is unsealed, counts
// for nothing.
func TestAnswersOfImpostorsDoNotCount(t *testing.T) {
	var divert atomic.Pointer[string] // where connections for Raft to that node go
	var victim atomic.Pointer[string]
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Hooks.Dial = func(_ context.Context, node, addr string) (net.Conn, error) {
			if v := victim.Load(); v != nil && *v == node {
				return divertible(t, addr, &divert), nil
			}
			return net.Dial("tcp", addr)
		}
	})
	l, f := c.leader(), c.followers()[0]
	clustertest.Eventually(t, 20*time.Second, "the follower is known to be unsealed", func() bool { return l.standings.proven(f.id, time.Now()) })
	addr := newRogue(t, c, f)
	victim.Store(&f.id)
	divert.Store(&addr)
	id, target := raft.ServerID(f.id), raft.ServerAddress(f.advertise)
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id), Addr: []byte(l.advertise)}
	term := l.term()
	asks := map[string]func() error{
		"a vote": func() error {
			return l.trans.RequestVote(id, target, &raft.RequestVoteRequest{RPCHeader: header, Term: term}, &raft.RequestVoteResponse{})
		},
		"a vote beforehand": func() error {
			return l.trans.RequestPreVote(id, target, &raft.RequestPreVoteRequest{RPCHeader: header, Term: term}, &raft.RequestPreVoteResponse{})
		},
		"a heartbeat": func() error {
			return l.trans.AppendEntries(id, target, &raft.AppendEntriesRequest{RPCHeader: header, Term: term}, &raft.AppendEntriesResponse{})
		},
		"entries": func() error {
			return l.trans.AppendEntries(id, target, &raft.AppendEntriesRequest{RPCHeader: header, Term: term, Entries: []*raft.Log{{Index: 1 << 20}}}, &raft.AppendEntriesResponse{})
		},
		"a snapshot": func() error {
			return l.trans.InstallSnapshot(id, target, &raft.InstallSnapshotRequest{RPCHeader: header, Term: term, Size: 1}, &raft.InstallSnapshotResponse{}, strings.NewReader("x"))
		},
		"an election": func() error {
			return l.trans.TimeoutNow(id, target, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
		},
		"a pipeline": func() error {
			p, err := l.trans.AppendEntriesPipeline(id, target)
			if err == nil {
				p.Close()
			}
			return err
		},
	}
	// Raft dials anew, and what was being dialled is closed as well.
	refused := 0
	clustertest.Eventually(t, 20*time.Second, "an impostor's answer to a heartbeat is refused", func() bool {
		for _, conn := range outbounds(l, f) {
			conn.Close()
		}
		if refused++; !errors.Is(asks["a heartbeat"](), errImpostor) || len(outbounds(l, f)) > 0 {
			refused = 0
		}
		return refused > 20
	})
	for what, ask := range asks {
		if err := ask(); !errors.Is(err, errImpostor) {
			t.Errorf("an impostor's answer counts: %s: %v", what, err)
		}
	}
	mustPropose(t, l, clustertest.Record()) // with the other follower
	divert.Store(nil)
	clustertest.Eventually(t, 20*time.Second, "the follower's own answers count", func() bool { return asks["a heartbeat"]() == nil })
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.converged()
	c.noFaults()
}

// sealedLeader has all nodes start again, sealed, with no connection of before, and waits
// for one to lead.
func sealedLeader(t *testing.T, c *testCluster) (l *testNode) {
	t.Helper()
	for _, n := range c.up() {
		n.seal()
	}
	for _, id := range c.ids {
		c.kill(id)
	}
	for _, id := range c.ids {
		if err := c.open(id); err != nil {
			t.Fatal(err)
		}
		c.nodes[id].seal()
	}
	clustertest.Eventually(t, 30*time.Second, "a sealed leader", func() bool {
		for _, n := range c.up() {
			if n.IsLeader() && n.founded() {
				l = n
				return true
			}
		}
		return false
	})
	return l
}

func (n *testNode) unsealAgain() {
	n.authority.sealed.Store(false)
	n.SetCanLead(func() bool { return true })
}

// A request that has waited since before the nodes were unsealed, because a disk hangs,
// does not keep the leader from hearing the same node over connections with proof.
func TestRequestsOverOldConnectionsDoNotDisturb(t *testing.T) {
	disks := newSlowDisks()
	c := startCluster(t, 3, disks.edit)
	l := sealedLeader(t, c)
	f := c.nodes[c.ids[0]]
	if f == l {
		f = c.nodes[c.ids[1]]
	}
	release := disks.hang(f.id)
	defer release()
	l.raft.Load().Barrier(0) // f's Raft waits for its disk with this
	clustertest.Eventually(t, 10*time.Second, "the follower's disk hangs", func() bool { return f.store.Meter().Behind() > 50*time.Millisecond })
	id, target := raft.ServerID(f.id), raft.ServerAddress(f.advertise)
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id), Addr: []byte(l.advertise)}
	waits := make(chan error, 1)
	go func() {
		waits <- l.trans.RequestPreVote(id, target, &raft.RequestPreVoteRequest{RPCHeader: header, Term: 1}, &raft.RequestPreVoteResponse{})
	}()
	seen := make(map[*outbound]int) // that a heartbeat makes busy is not so every time
	clustertest.Eventually(t, 10*time.Second, "a request waits", func() bool {
		for _, conn := range outbounds(l, f) {
			if seen[conn]++; conn.proven || !conn.busy.Load() {
				seen[conn] = 0
			} else if seen[conn] > 5 {
				return true
			}
		}
		return false
	})
	for _, n := range c.up() {
		n.unsealAgain()
	}
	clustertest.Eventually(t, 20*time.Second, "the follower is known to be unsealed", func() bool { return l.standings.proven(f.id, time.Now()) })
	for range 3 {
		if err := l.trans.AppendEntries(id, target, &raft.AppendEntriesRequest{RPCHeader: header, Term: l.term()}, &raft.AppendEntriesResponse{}); err != nil {
			t.Errorf("a heartbeat: %v", err)
		}
	}
	select {
	case err := <-waits:
		t.Fatalf("void: the request did not wait: %v", err)
	default:
	}
	release()
	<-waits
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.noFaults()
}

// When nodes are unsealed they prove themselves over new connections, and the old ones
// are closed.
func TestConnectionsAreRenewed(t *testing.T) {
	c := startCluster(t, 3, nil)
	l := sealedLeader(t, c)
	proven := func(n *testNode) (list []bool) {
		n.trans.mu.Lock()
		defer n.trans.mu.Unlock()
		for in := range n.trans.inbound {
			if in.conn.node == l.id {
				list = append(list, n.connProven(in.conn))
			}
		}
		return list
	}
	all := func() bool {
		for _, n := range c.up() {
			if n == l {
				continue
			}
			list := proven(n)
			for _, p := range list {
				if !p {
					return false
				}
			}
			if len(list) == 0 {
				return false
			}
		}
		return true
	}
	if all() {
		t.Error("void: a sealed leader proved itself")
	}
	began, term := time.Now(), l.term()
	l.unsealAgain()
	clustertest.Eventually(t, 10*time.Second, "proof over all connections of the leader", all)
	t.Logf("the leader proved itself over all connections after %v", time.Since(began).Round(time.Millisecond))
	for _, n := range c.up() {
		n.unsealAgain()
	}
	began = time.Now()
	clustertest.Eventually(t, 10*time.Second, "pipelines and requests over connections with proof of both ends", func() bool {
		l.trans.out.mu.Lock()
		defer l.trans.out.mu.Unlock()
		n := 0
		for _, conns := range l.trans.out.open {
			for conn := range conns {
				if !l.connProven(conn.raftConn) {
					return false
				}
				n++
			}
		}
		return n > 0
	})
	t.Logf("the followers had done so after %v", time.Since(began).Round(time.Millisecond))
	if !l.IsLeader() || l.term() != term {
		t.Errorf("the leadership moved: term %d, was %d", l.term(), term)
	}
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.noFaults()
}

// The proof of a frame has the length that its first byte says.
func TestConnProofFrameSize(t *testing.T) {
	p := connProof{generation: 7, signature: make([]byte, ed25519.SignatureSize)}
	b := p.frame()
	if len(b) != 1+connProofSize || b[0] != connProofSize || binary.BigEndian.Uint32(b[1:]) != 7 {
		t.Errorf("a frame of %d bytes, %x", len(b), b[:5])
	}
}
