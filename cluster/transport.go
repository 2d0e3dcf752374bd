package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/pki"
)

// raftStream carries Raft to other nodes over the peer port. Raft knows nodes by
// address; the address says which node's certificate the other end must have.
// What comes from other nodes does not come this way: see raftTransport.
type raftStream struct {
	*subListener
	n *Node

	mu sync.Mutex
	// open are the connections to each target.
	open map[raft.ServerAddress]map[*outbound]struct{}
	// unproven counts those that were opened and whose other end did not prove itself.
	unproven map[raft.ServerAddress]uint64
	// renewed is when connections had to give way to new ones.
	renewed map[raft.ServerAddress]time.Time
}

func newRaftStream(n *Node) *raftStream {
	return &raftStream{
		subListener: newSubListener(n.port.raft.Addr()), n: n,
		open: make(map[raft.ServerAddress]map[*outbound]struct{}), unproven: make(map[raft.ServerAddress]uint64), renewed: make(map[raft.ServerAddress]time.Time),
	}
}

// advertised is the address under which other nodes know this one.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// Addr implements net.Listener.
func (s *raftStream) Addr() net.Addr { return advertised(s.n.advertise) }

// lane separates the connections of a target that serve one purpose from others, in
// hashicorp/raft's pool, which knows them by target, and in raftStream: a target is an
// address and its lane.
const (
	laneMark      = "#"
	pipelineLane  = laneMark + "pipeline"
	snapshotsLane = laneMark + "snapshots"
)

// Dial implements raft.StreamLayer.
func (s *raftStream) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	addr, _, _ := strings.Cut(string(target), laneMark)
	node, ok := s.n.nodeAt(addr)
	if !ok {
		return nil, fmt.Errorf("%w: no node is known at %s", ErrUnreachable, addr)
	}
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	pc, err := s.n.peers.connect(ctx, node, pki.ALPNRaft)
	if err != nil {
		return nil, err
	}
	rc, err := s.n.introduce(pc, dialer, deadline)
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	c := &outbound{raftConn: rc}
	c.closed = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open[target], c)
	}
	s.mu.Lock()
	if s.open[target] == nil {
		s.open[target] = make(map[*outbound]struct{})
	}
	s.open[target][c] = struct{}{}
	if !s.n.connProven(rc) {
		s.unproven[target]++
	}
	s.mu.Unlock()
	s.n.acquaint(rc, dialer)
	return c, nil
}

// mark is what is known, at one moment, of the connections to a target.
type mark struct {
	open int    // connections without proof that are open
	made uint64 // connections without proof that were opened so far
}

// mark looks at the connections to a target.
func (s *raftStream) mark(target raft.ServerAddress) mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := mark{made: s.unproven[target]}
	for c := range s.open[target] {
		if !s.n.connProven(c.raftConn) {
			m.open++
		}
	}
	return m
}

// proven reports whether all connections to a target that were open since the mark was
// made had proof, and so the one that an answer came over: which it was hashicorp/raft
// does not say.
func (s *raftStream) proven(target raft.ServerAddress, since mark) bool {
	return since.open == 0 && s.mark(target).made == since.made
}

// renew closes those connections to a target that should give way to new ones, over
// which more is proven, if they are not in use. It reports whether there were any.
func (s *raftStream) renew(target raft.ServerAddress) (closed bool) {
	for _, c := range s.outdated(target) {
		closed = c.retire() || closed
	}
	if closed {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.renewed[target] = time.Now()
	}
	return closed
}

// outdated are the connections to a target that should give way to new ones.
func (s *raftStream) outdated(target raft.ServerAddress) (list []*outbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Should new ones prove no more either, they are not opened without end.
	want := time.Since(s.renewed[target]) >= s.n.cfg.Timeouts.Heartbeat
	for c := range s.open[target] {
		if s.n.proveMore(c.raftConn) || want && s.n.wantProof(c.raftConn) {
			list = append(list, c)
		}
	}
	return list
}

// maxPool is how many connections without a request hashicorp/raft keeps to a target.
const maxPool = 3

// raftConfig is Raft's configuration for c.
func raftConfig(c *Config) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.ProtocolVersion = 3
	rc.HeartbeatTimeout = c.Timeouts.Heartbeat
	rc.ElectionTimeout = c.Timeouts.Election
	rc.LeaderLeaseTimeout = c.Timeouts.Lease
	rc.CommitTimeout = c.Timeouts.Commit
	rc.MaxAppendEntries = maxAppendEntries
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = true
	rc.TrailingLogs = c.TrailingLogs
	rc.SnapshotInterval = c.Timeouts.Snapshot
	rc.SnapshotThreshold = c.SnapshotEntries
	rc.Logger = newRaftLogger(c.Logger, "raft")
	rc.NoLegacyTelemetry = true
	return rc
}

// raftTransport is Raft's network transport with a door in it, and without a way to
// hang.
//
// The embedded transport carries what this node's Raft asks of others. What others
// ask of it comes through one more transport for each connection, so that the door
// knows which one a request came over: Raft believes whatever id a request claims.
//
// As to hanging: when a follower reports a newer term, Raft stops to read the
// answers of the pipeline to it while its sender may be waiting for room in it, for
// ever. That would leak the sender and keep Raft from shutting down.
type raftTransport struct {
	*raft.NetworkTransport
	out     *raftStream
	timeout time.Duration // of one RPC
	config  func(raft.StreamLayer) *raft.NetworkTransportConfig
	door    door

	rpcs      chan raft.RPC
	heartbeat atomic.Pointer[func(raft.RPC)]
	stop      chan struct{}
	stopOnce  sync.Once

	mu        sync.Mutex
	pipelines map[*pipeline]struct{}
	inbound   map[*inbound]struct{}
	large     largeRequests
	closed    bool

	silent atomic.Bool
}

// inbound is what comes over one connection.
type inbound struct {
	*raft.NetworkTransport
	conn *raftConn
}

// inboundStream is the raft.StreamLayer of an inbound.
type inboundStream struct{ *subListener }

// Dial implements raft.StreamLayer.
func (inboundStream) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, ErrUnreachable
}

func newRaftTransport(out *raftStream, timeout time.Duration, door door, config func(raft.StreamLayer) *raft.NetworkTransportConfig) *raftTransport {
	return &raftTransport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(config(out)),
		out:              out, timeout: timeout, config: config, door: door,
		rpcs: make(chan raft.RPC), stop: make(chan struct{}),
		pipelines: make(map[*pipeline]struct{}), inbound: make(map[*inbound]struct{}),
	}
}

// serve takes connections of other nodes until the listener is closed.
func (t *raftTransport) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		pc, ok := c.(*peerConn)
		if !ok {
			c.Close()
			continue
		}
		go func() {
			rc, err := t.door.n.introduce(pc, acceptor, time.Now().Add(handshakeTimeout))
			if err != nil {
				pc.Close()
				t.door.n.log.Debug("refused a connection for Raft", "node", pc.node, "err", err)
				return
			}
			t.door.n.acquaint(rc, acceptor)
			t.take(rc)
		}()
	}
}

// take serves one connection until it is closed. There are no more of them than the
// port lets in.
func (t *raftTransport) take(c *raftConn) {
	in := &inbound{conn: c}
	sub := newSubListener(advertised(t.LocalAddr()))
	t.mu.Lock()
	closed := t.closed
	if !closed {
		in.NetworkTransport = raft.NewNetworkTransportWithConfig(t.config(inboundStream{sub}))
		t.inbound[in] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		c.Close()
		return
	}
	in.SetHeartbeatHandler(func(rpc raft.RPC) {
		if !t.admit(c, rpc) {
			return
		}
		if f := t.heartbeat.Load(); f != nil && t.door.routine(rpc.Command) {
			(*f)(rpc)
			return
		}
		t.pass(c, rpc)
	})
	conn := &inboundConn{
		raftConn: c, from: sender{c.node, t.door.n.connProven(c)}, timeout: t.timeout, large: &t.large, ended: make(chan struct{}), stop: t.stop,
		excess: func(err error) { t.door.n.cutOff(sender{c.node, t.door.n.connProven(c)}, err.Error()) },
		closed: func() {
			in.NetworkTransport.Close()
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.inbound, in)
		},
	}
	go func() {
		for {
			select {
			case rpc := <-in.Consumer():
				if t.admit(c, rpc) {
					t.pass(c, rpc)
				}
			case <-conn.ended:
				return
			}
		}
	}()
	sub.deliver(conn)
}

// pass gives an admitted request to Raft. One that came without proof is counted until
// it is answered: Raft may have begun with it when its sender is known to be unsealed.
func (t *raftTransport) pass(c *raftConn, rpc raft.RPC) {
	if !t.door.n.connProven(c) {
		answer, to := make(chan raft.RPCResponse, 1), rpc.RespChan
		rpc.RespChan = answer
		t.door.n.standings.pend(c.node, 1)
		go func() {
			defer t.door.n.standings.pend(c.node, -1)
			select {
			case r := <-answer:
				to <- r // which has room
			case <-t.stop:
			}
		}()
	}
	select {
	case t.rpcs <- rpc:
	case <-t.stop:
		rpc.Respond(nil, ErrShutdown)
	}
}

// admit lets a request through the door, or answers it.
func (t *raftTransport) admit(c *raftConn, rpc raft.RPC) bool {
	err := t.door.request(c.node, t.door.n.connProven(c), rpc.Command)
	switch {
	case errors.Is(err, errInstalled):
		// All of it is read, or the rest would be taken for the next request.
		if _, err = io.Copy(io.Discard, rpc.Reader); err == nil {
			rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: rpcHeader(t.door.n), Term: t.door.n.term(), Success: true}, nil)
		} else {
			rpc.Respond(nil, err)
		}
		return false
	case err != nil:
		rpc.Respond(nil, err)
		return false
	}
	return true
}

// Consumer implements raft.Transport.
func (t *raftTransport) Consumer() <-chan raft.RPC { return t.rpcs }

// SetHeartbeatHandler implements raft.Transport.
func (t *raftTransport) SetHeartbeatHandler(f func(raft.RPC)) { t.heartbeat.Store(&f) }

// Close implements raft.WithClose.
func (t *raftTransport) Close() error {
	t.stopOnce.Do(func() { close(t.stop) })
	t.mu.Lock()
	t.closed = true
	list := slices.Collect(maps.Keys(t.inbound))
	t.mu.Unlock()
	errs := []error{t.NetworkTransport.Close()}
	for _, in := range list {
		in.CloseStreams()
		errs = append(errs, in.NetworkTransport.Close())
		in.conn.Close()
	}
	return errors.Join(errs...)
}

// errHushed is what Raft is told of entries and heartbeats that were not sent.
var errHushed = errors.New("nothing is sent while the disk does not answer")

// hush keeps this node from sending entries and heartbeats, so that the others elect
// another leader.
func (t *raftTransport) hush(silent bool) { t.silent.Store(silent) }

// ask sends a request to a node and refuses the answer of an impostor. When connections
// had to give way to new ones, over which more is proven, the request is sent again.
func (t *raftTransport) ask(node raft.ServerID, target raft.ServerAddress, request func() error) error {
	known := t.door.unsealed(string(node))
	t.out.renew(target)
	for again := false; ; again = true {
		since := t.out.mark(target)
		err := request()
		for range maxPool {
			if !errors.Is(err, errRetired) {
				break
			}
			err = request() // nothing was sent
		}
		if err != nil {
			return err
		}
		err = t.authentic(string(node), target, since, known)
		if err == nil || again || !t.out.renew(target) {
			return err
		}
	}
}

// authentic refuses an answer over a connection without proof if the node was known to
// be unsealed before the request, or is now.
func (t *raftTransport) authentic(node string, target raft.ServerAddress, since mark, known bool) error {
	if t.out.proven(target, since) {
		return nil
	}
	if err := t.door.n.notImpostor(node, false); err != nil || !known {
		return err
	}
	return fmt.Errorf("%s: %w", node, errImpostor)
}

// AppendEntries implements raft.Transport.
func (t *raftTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.silent.Load() {
		return errHushed
	}
	held := false
	if len(args.Entries) > 0 && !t.door.storing(string(id)) {
		args.Entries, held = alreadyCommitted(args)
	}
	args.Entries = appendable(args.Entries)
	err := t.ask(id, target, func() error {
		if err := t.NetworkTransport.AppendEntries(id, target, args, resp); err != nil {
			return err
		}
		return t.door.term(string(id), args.Term, resp.Term)
	})
	if err == nil && held && len(args.Entries) == 0 {
		time.Sleep(heldPause) // Raft tries again at once
	}
	return err
}

// heldPause lies between two requests to a node whose acknowledgement does not count.
const heldPause = 20 * time.Millisecond

// alreadyCommitted are the entries of a request that do not need the other node's
// acknowledgement any more, and whether there are others: a node that may say that
// it has stored what it has not gets them later.
func alreadyCommitted(r *raft.AppendEntriesRequest) (entries []*raft.Log, others bool) {
	n := 0
	for n < len(r.Entries) && r.Entries[n].Index <= r.LeaderCommitIndex {
		n++
	}
	return r.Entries[:n], n < len(r.Entries)
}

// RequestVote implements raft.Transport.
func (t *raftTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.ask(id, target, func() error {
		if err := t.NetworkTransport.RequestVote(id, target, args, resp); err != nil {
			return err
		}
		resp.Granted = resp.Granted && t.door.vote(string(id))
		return t.door.term(string(id), args.Term, resp.Term)
	})
}

// RequestPreVote implements raft.WithPreVote.
func (t *raftTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.ask(id, target, func() error {
		if err := t.NetworkTransport.RequestPreVote(id, target, args, resp); err != nil {
			return err
		}
		resp.Granted = resp.Granted && t.door.vote(string(id))
		return t.door.term(string(id), args.Term, resp.Term)
	})
}

// InstallSnapshot implements raft.Transport.
func (t *raftTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	known := t.door.unsealed(string(id))
	target += snapshotsLane // whose connections serve one request each
	since := t.out.mark(target)
	if err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data); err != nil {
		return err
	}
	if err := t.door.term(string(id), args.Term, resp.Term); err != nil {
		return err
	}
	return t.authentic(string(id), target, since, known)
}

// TimeoutNow implements raft.Transport.
func (t *raftTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.ask(id, target, func() error { return t.NetworkTransport.TimeoutNow(id, target, args, resp) })
}

// AppendEntriesPipeline implements raft.Transport. The answers of a pipeline go to
// Raft without a look at their terms, so there is none to a node that may not tell
// this one of a newer term, nor to an impostor; Raft does without.
func (t *raftTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if !t.door.believed(string(id)) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	known := t.door.unsealed(string(id))
	target += pipelineLane
	since := t.out.mark(target)
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	if err := t.authentic(string(id), target, since, known); err != nil {
		inner.Close()
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, t: t, target: target}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		inner.Close()
		return nil, raft.ErrTransportShutdown
	}
	t.pipelines[p] = struct{}{}
	return p, nil
}

// closePipelines ends every pipeline and whoever waits in one, and opens no
// more.
func (t *raftTransport) closePipelines() {
	t.mu.Lock()
	t.closed = true
	list := slices.Collect(maps.Keys(t.pipelines))
	t.mu.Unlock()
	for _, p := range list {
		p.Close()
	}
}

type pipeline struct {
	raft.AppendPipeline
	t      *raftTransport
	target raft.ServerAddress
}

// AppendEntries implements raft.AppendPipeline. It waits for the answer before
// at most, which comes, if only as an error, within the timeout.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.t.silent.Load() {
		return nil, errHushed
	}
	if len(p.t.out.outdated(p.target)) > 0 {
		return nil, errRetired // Raft opens another one
	}
	args.Entries = appendable(args.Entries)
	stuck := time.AfterFunc(2*p.t.timeout, func() { p.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.t.mu.Lock()
	delete(p.t.pipelines, p)
	p.t.mu.Unlock()
	return p.AppendPipeline.Close()
}
