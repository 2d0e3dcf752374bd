package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/rafttransport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/cluster/pki"
)

// impostor dials nodes with the identity of one of them, and proves nothing.
type impostor struct {
	*peerport.Listener
	c  *testCluster
	as *testNode
}

func (i impostor) Dial(addr raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	node, _ := i.as.members.NodeAt(string(addr))
	pc, err := i.as.peers.Connect(i.c.t.Context(), node, pki.ALPNRaft)
	if err != nil {
		return nil, err
	}
	_, err = peerproof.Exchange(pc, i.as.id, peerproof.Dialer, nil, time.Now().Add(5*time.Second))
	return pc, err
}

// transport is hashicorp/raft's, over an impostor's connections.
func (i impostor) transport() *raft.NetworkTransport {
	tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: i, MaxPool: 3, Timeout: 3 * time.Second, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
	})
	i.c.t.Cleanup(func() { tr.CloseStreams(); tr.Close() })
	return tr
}

// knowEachOther waits until each node knows that the others are unsealed.
func knowEachOther(t *testing.T, c *testCluster) {
	t.Helper()
	for _, n := range c.up() {
		for _, o := range c.up() {
			clustertest.Eventually(t, time.Minute, n.id+" knows that "+o.id+" is unsealed", func() bool {
				return n == o || n.standings.Proven(o.id, time.Now())
			})
		}
	}
}

// Who has the identity of a node that runs on, unsealed, is not taken for it, and does
// not make the others take the node for a thief.
func TestImpostorsAreRefused(t *testing.T) {
	t.Parallel()
	// A busy machine is not to elect somebody else meanwhile, nor a slow disk.
	const election = 1500 * time.Millisecond
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = election, election, election/2
		cfg.Timeouts.DiskYield = time.Minute
	})
	l, f := c.leader(), c.followers()[0]
	knowEachOther(t, c)
	// In the name of the leader, and of a follower.
	for _, as := range []*testNode{l, f} {
		tr := impostor{peerport.NewListener(as.port.Raft.Addr()), c, as}.transport()
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
						Configuration: raft.EncodeConfiguration(n.members.Configuration()), Size: 1,
					}, &raft.InstallSnapshotResponse{}, strings.NewReader("x"))
				},
			} {
				if err := ask(); err == nil || !strings.Contains(err.Error(), rafttransport.ErrImpostor.Error()) {
					t.Errorf("%s took from an impostor of %s: %s: %v", n.id, as.id, what, err)
				}
			}
			if n.cutOffs.Has(standing.Sender{Node: as.id}, time.Now()) {
				t.Errorf("%s is cut off for what its impostor sent", as.id)
			}
			if !n.standings.Proven(as.id, time.Now()) {
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
			n.cutOff(standing.Sender{Node: l.id}, "a test")
		}
	}
	term := l.term()
	for range 3 {
		mustPropose(t, l, clustertest.Record())
		time.Sleep(election)
	}
	if !l.IsLeader() || l.term() != term {
		t.Error("the leader is cut off for what its impostor sent")
	}
	for _, n := range c.up() {
		n.cutOffs.Clear()
	}
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.noFaults()
}

// rogue answers Raft's requests in the name of a node, with whatever does most harm. It
// proves nothing.
type rogue struct {
	*peerport.Listener
}

func (rogue) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return nil, ErrUnreachable }

// newRogue listens with a node's identity, on the address that it returns.
func newRogue(t *testing.T, c *testCluster, as *testNode) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := clustertest.Identity(t, c.ca, as.id).Server(func(string, string) error { return nil })
	r := rogue{peerport.NewListener(as.port.Raft.Addr())}
	go func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := tls.Server(raw, conf)
				if conn.HandshakeContext(context.Background()) != nil || conn.ConnectionState().NegotiatedProtocol != pki.ALPNRaft {
					raw.Close()
					return
				}
				if _, err := peerproof.Exchange(&peerport.Conn{Conn: conn}, as.id, peerproof.Acceptor, nil, time.Now().Add(5*time.Second)); err != nil {
					raw.Close()
					return
				}
				r.Deliver(conn)
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

// dialled are the connections that a node's Raft has to another.
func dialled(from, to *testNode) (list []rafttransport.OpenConn) {
	for _, c := range from.trans.Conns() {
		if c.Dialled && c.Node == to.id {
			list = append(list, c)
		}
	}
	return list
}

// What an impostor answers, while the node itself answers that it is unsealed, counts
// for nothing.
func TestAnswersOfImpostorsDoNotCount(t *testing.T) {
	t.Parallel()
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
	clustertest.Eventually(t, time.Minute, "the follower is known to be unsealed", func() bool { return l.standings.Proven(f.id, time.Now()) })
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
	clustertest.Eventually(t, time.Minute, "an impostor's answer to a heartbeat is refused", func() bool {
		for _, conn := range dialled(l, f) {
			conn.Close()
		}
		if refused++; !errors.Is(asks["a heartbeat"](), rafttransport.ErrImpostor) || len(dialled(l, f)) > 0 {
			refused = 0
		}
		return refused > 20
	})
	for what, ask := range asks {
		if err := ask(); !errors.Is(err, rafttransport.ErrImpostor) {
			t.Errorf("an impostor's answer counts: %s: %v", what, err)
		}
	}
	mustPropose(t, l, clustertest.Record()) // with the other follower
	divert.Store(nil)
	clustertest.Eventually(t, time.Minute, "the follower's own answers count", func() bool { return asks["a heartbeat"]() == nil })
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
	clustertest.Eventually(t, time.Minute, "a sealed leader", func() bool {
		for _, n := range c.up() {
			if n.IsLeader() && n.auth.Initialised() {
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
	t.Parallel()
	for range 5 {
		if waited := requestOverOldConnection(t); waited {
			return
		}
	}
	t.Error("void: no request waited until the end of its round")
}

// requestOverOldConnection is a round of the test. It reports whether the request waited
// for the disk: Raft answers it if it comes before what makes Raft wait, and nothing does if
// the leader changes, or if the follower stopped with an entry that the leader does not have:
// it keeps such an entry, and accepts no others, until it knows an unsealed leader.
func requestOverOldConnection(t *testing.T) (waited bool) {
	disks := newSlowDisks()
	c := startCluster(t, 3, func(id string, cfg *Config) {
		disks.edit(id, cfg)
		slowElections(id, cfg) // a heartbeat of another term would wait for the disk
	})
	l := sealedLeader(t, c)
	f := c.nodes[c.ids[0]]
	if f == l {
		f = c.nodes[c.ids[1]]
	}
	release := disks.hang(f.id)
	defer release()
	barrier := l.raft.Load().Barrier(0) // f's Raft waits for its disk with this
	var lost atomic.Bool
	go func() { lost.Store(barrier.Error() != nil) }()
	hangs := func() bool { return f.store.Meter().Behind() > 50*time.Millisecond }
	void := time.Now().Add(20 * time.Second)
	clustertest.Eventually(t, time.Minute, "the follower's disk to hang", func() bool { return hangs() || lost.Load() || time.Now().After(void) })
	if !hangs() {
		t.Logf("void: the follower has nothing to write; its log ends at %d, the leader's at %d", f.raft.Load().LastIndex(), l.raft.Load().LastIndex())
		return false
	}
	id, target := raft.ServerID(f.id), raft.ServerAddress(f.advertise)
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id), Addr: []byte(l.advertise)}
	waits := make(chan error, 1)
	go func() {
		waits <- l.trans.RequestPreVote(id, target, &raft.RequestPreVoteRequest{RPCHeader: header, Term: 1}, &raft.RequestPreVoteResponse{})
	}()
	seen := make(map[net.Conn]int) // that a heartbeat makes busy is not so every time
	clustertest.Eventually(t, time.Minute, "a request waits", func() bool {
		for _, conn := range dialled(l, f) {
			if seen[conn.Conn]++; conn.Proven || !conn.Busy {
				seen[conn.Conn] = 0
			} else if seen[conn.Conn] > 5 {
				return true
			}
		}
		return false
	})
	for _, n := range c.up() {
		n.unsealAgain()
	}
	clustertest.Eventually(t, time.Minute, "the follower is known to be unsealed", func() bool { return l.standings.Proven(f.id, time.Now()) })
	for range 3 {
		if err := l.trans.AppendEntries(id, target, &raft.AppendEntriesRequest{RPCHeader: header, Term: l.term()}, &raft.AppendEntriesResponse{}); err != nil {
			t.Errorf("a heartbeat: %v", err)
		}
	}
	select {
	case err := <-waits:
		t.Logf("the request did not wait: %v", err)
	default:
		waited = true
	}
	release()
	if waited {
		<-waits
	}
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.noFaults()
	return waited
}

// A node that proves itself, and whose state is another one, is not believed; it is asked
// all the same.
func TestDifferentStatesAreAsked(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	knowEachOther(t, c)
	l, f := c.leader(), c.followers()[0]
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id), Addr: []byte(l.advertise)}
	for range 5 {
		l.standings.Compare(f.id, 1, false, time.Now()) // until the next comparison
		for _, conn := range dialled(l, f) {
			conn.Close()
		}
		err := l.trans.AppendEntries(raft.ServerID(f.id), raft.ServerAddress(f.advertise),
			&raft.AppendEntriesRequest{RPCHeader: header, Term: l.term()}, &raft.AppendEntriesResponse{})
		if errors.Is(err, rafttransport.ErrRetired) || errors.Is(err, rafttransport.ErrImpostor) {
			t.Errorf("a heartbeat: %v", err)
		}
	}
}

// When nodes are unsealed they prove themselves over new connections, and the old ones
// are closed.
func TestConnectionsAreRenewed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	l := sealedLeader(t, c)
	proven := func(n *testNode) (list []bool) {
		for _, conn := range n.trans.Conns() {
			if !conn.Dialled && conn.Node == l.id {
				list = append(list, conn.Proven)
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
	clustertest.Eventually(t, time.Minute, "proof over all connections of the leader", all)
	t.Logf("the leader proved itself over all connections after %v", time.Since(began).Round(time.Millisecond))
	for _, n := range c.up() {
		n.unsealAgain()
	}
	began = time.Now()
	clustertest.Eventually(t, time.Minute, "pipelines and requests over connections with proof of both ends", func() bool {
		n := 0
		for _, conn := range l.trans.Conns() {
			if !conn.Dialled {
				continue
			}
			if !conn.Proven {
				return false
			}
			n++
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
