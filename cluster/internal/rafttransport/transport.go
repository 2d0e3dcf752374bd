package rafttransport

import (
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/cluster/internal/raftscan"
	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// Transport is Raft's network transport with a door in it, and without a way to
// hang.
//
// The embedded transport carries what this node's Raft asks of others. What others
// ask of it comes through one more transport for each connection, so that the door
// knows which one a request came over: Raft believes whatever id a request claims.
//
// As to hanging: when a follower reports a newer term, Raft stops to read the
// answers of the pipeline to it while its sender may be waiting for room in it, for
// ever. That would leak the sender and keep Raft from shutting down.
type Transport struct {
	*raft.NetworkTransport
	out  *stream
	door *door

	rpcs      chan raft.RPC
	heartbeat atomic.Pointer[func(raft.RPC)]
	stop      chan struct{}
	stopOnce  sync.Once

	mu        sync.Mutex
	pipelines map[*pipeline]struct{}
	inbound   map[*inbound]struct{}
	large     raftscan.Large
	closed    bool

	silent atomic.Bool
}

// inbound is what comes over one connection.
type inbound struct {
	*raft.NetworkTransport
	conn *conn
}

// inboundStream is the raft.StreamLayer of an inbound.
type inboundStream struct{ *peerport.Listener }

// Dial implements raft.StreamLayer.
func (inboundStream) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, peerport.ErrUnreachable
}

// New makes the transport of a node. Close ends it.
func New(c Config, n Node) *Transport {
	d := &door{c, n}
	t := &Transport{
		out: newStream(d), door: d,
		rpcs: make(chan raft.RPC), stop: make(chan struct{}),
		pipelines: make(map[*pipeline]struct{}), inbound: make(map[*inbound]struct{}),
	}
	t.NetworkTransport = t.network(t.out)
	return t
}

// network is hashicorp/raft's transport over a stream.
func (t *Transport) network(s raft.StreamLayer) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: maxPool, Timeout: t.door.Timeout,
		Logger: raftlogger.New(t.door.Log, "raft-net"), MsgpackUseNewTimeFormat: true,
	})
}

// Header is what this node's requests and answers begin with.
func (t *Transport) Header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(t.door.ID), Addr: []byte(t.door.Advertise)}
}

// Serve takes connections of other nodes until the listener is closed.
func (t *Transport) Serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		pc, ok := c.(*peerport.Conn)
		if !ok {
			c.Close()
			continue
		}
		go func() {
			rc, err := t.door.introduce(pc, peerproof.Acceptor, time.Now().Add(peerport.HandshakeTimeout))
			if err != nil {
				pc.Close()
				t.door.Log.Debug("refused a connection for Raft", "node", pc.Node, "err", err)
				return
			}
			t.door.acquaint(rc, peerproof.Acceptor)
			t.take(rc)
		}()
	}
}

// take serves one connection until it is closed. There are no more of them than the
// port lets in.
func (t *Transport) take(c *conn) {
	in := &inbound{conn: c}
	sub := peerport.NewListener(advertised(t.LocalAddr()))
	t.mu.Lock()
	closed := t.closed
	if !closed {
		in.NetworkTransport = t.network(inboundStream{sub})
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
	scanned := raftscan.New(c, raftscan.Options{
		From: standing.Sender{Node: c.Node, Proven: t.door.connProven(c)}, Timeout: t.door.Timeout, Large: &t.large, Stop: t.stop,
		Excess: func(err error) {
			t.door.node.CutOff(standing.Sender{Node: c.Node, Proven: t.door.connProven(c)}, err.Error())
		},
		Closed: func() {
			in.NetworkTransport.Close()
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.inbound, in)
		},
	})
	go func() {
		for {
			select {
			case rpc := <-in.Consumer():
				if t.admit(c, rpc) {
					t.pass(c, rpc)
				}
			case <-scanned.Ended():
				return
			}
		}
	}()
	sub.Deliver(scanned)
}

// pass gives an admitted request to Raft. One that came without proof is counted until
// it is answered: Raft may have begun with it when its sender is known to be unsealed.
func (t *Transport) pass(c *conn, rpc raft.RPC) {
	if !t.door.connProven(c) {
		answer, to := make(chan raft.RPCResponse, 1), rpc.RespChan
		rpc.RespChan = answer
		t.door.Standings.Begin(c.Node, 1)
		go func() {
			defer t.door.Standings.Begin(c.Node, -1)
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
		rpc.Respond(nil, raft.ErrTransportShutdown)
	}
}

// admit lets a request through the door, or answers it.
func (t *Transport) admit(c *conn, rpc raft.RPC) bool {
	err := t.door.request(c.Node, t.door.connProven(c), rpc.Command)
	switch {
	case errors.Is(err, errInstalled):
		// All of it is read, or the rest would be taken for the next request.
		if _, err = io.Copy(io.Discard, rpc.Reader); err == nil {
			rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: t.Header(), Term: t.door.currentTerm(), Success: true}, nil)
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
func (t *Transport) Consumer() <-chan raft.RPC { return t.rpcs }

// SetHeartbeatHandler implements raft.Transport.
func (t *Transport) SetHeartbeatHandler(f func(raft.RPC)) { t.heartbeat.Store(&f) }

// Close implements raft.WithClose.
func (t *Transport) Close() error {
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

// Hush keeps this node from sending entries and heartbeats, so that the others elect
// another leader.
func (t *Transport) Hush(silent bool) { t.silent.Store(silent) }

// lane is the target at which a node is asked now, in the proven lane or not.
func (t *Transport) lane(node raft.ServerID, target raft.ServerAddress) (to raft.ServerAddress, proven bool) {
	if t.door.knownUnsealed(string(node)) {
		return target + provenLane, true
	}
	return target, false
}

// inLane makes a request in the lane in which a node is asked now. It makes it again for
// as long as nothing was sent, because a connection had to give way.
func (t *Transport) inLane(node raft.ServerID, target raft.ServerAddress, request func(raft.ServerAddress) error) (proven bool, err error) {
	for range maxPool + 2 { // those in the pool, a new one, and one in the other lane
		var to raft.ServerAddress
		to, proven = t.lane(node, target)
		if err = request(to); !errors.Is(err, ErrRetired) {
			break
		}
	}
	return proven, err
}

// ask sends a request to a node and refuses the answer of an impostor. When it becomes
// known meanwhile that the node is unsealed, or is not any more, the request is sent
// again, in the other lane.
func (t *Transport) ask(node raft.ServerID, target raft.ServerAddress, request func(raft.ServerAddress) error) error {
	for again := false; ; again = true {
		t.out.renew(target)
		proven, err := t.inLane(node, target, request)
		if err == nil {
			err = t.authentic(node, proven)
		}
		if again || !errors.Is(err, ErrImpostor) {
			return err
		}
		if _, now := t.lane(node, target); now == proven {
			return err
		}
	}
}

// authentic refuses an answer that came over connections without proof, if the node is
// known to be unsealed.
func (t *Transport) authentic(node raft.ServerID, proven bool) error {
	return t.door.notImpostor(string(node), proven)
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.silent.Load() {
		return errHushed
	}
	held := false
	if len(args.Entries) > 0 && !t.door.storing(string(id)) {
		args.Entries, held = alreadyCommitted(args)
	}
	args.Entries = raftscan.Appendable(args.Entries)
	err := t.ask(id, target, func(target raft.ServerAddress) error {
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
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.ask(id, target, func(target raft.ServerAddress) error {
		if err := t.NetworkTransport.RequestVote(id, target, args, resp); err != nil {
			return err
		}
		resp.Granted = resp.Granted && t.door.vote(string(id))
		return t.door.term(string(id), args.Term, resp.Term)
	})
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.ask(id, target, func(target raft.ServerAddress) error {
		if err := t.NetworkTransport.RequestPreVote(id, target, args, resp); err != nil {
			return err
		}
		resp.Granted = resp.Granted && t.door.vote(string(id))
		return t.door.term(string(id), args.Term, resp.Term)
	})
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	// A connection in that lane serves one request, so nothing of data was read when one
	// had to give way.
	proven, err := t.inLane(id, target+snapshotsLane, func(to raft.ServerAddress) error {
		return t.NetworkTransport.InstallSnapshot(id, to, args, resp, data)
	})
	if err != nil {
		return err
	}
	if err := t.door.term(string(id), args.Term, resp.Term); err != nil {
		return err
	}
	return t.authentic(id, proven)
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.ask(id, target, func(target raft.ServerAddress) error { return t.NetworkTransport.TimeoutNow(id, target, args, resp) })
}

// AppendEntriesPipeline implements raft.Transport. The answers of a pipeline go to
// Raft without a look at their terms, so there is none to a node that may not tell
// this one of a newer term, nor to an impostor; Raft does without.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if !t.door.believed(string(id)) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	p := &pipeline{t: t}
	proven, err := t.inLane(id, target+pipelineLane, func(to raft.ServerAddress) (err error) {
		p.target = to
		p.AppendPipeline, err = t.NetworkTransport.AppendEntriesPipeline(id, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := t.authentic(id, proven); err != nil {
		p.AppendPipeline.Close()
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		p.AppendPipeline.Close()
		return nil, raft.ErrTransportShutdown
	}
	t.pipelines[p] = struct{}{}
	return p, nil
}

// ClosePipelines ends every pipeline and whoever waits in one, and opens no
// more.
func (t *Transport) ClosePipelines() {
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
	t      *Transport
	target raft.ServerAddress // with its lanes
}

// AppendEntries implements raft.AppendPipeline. It waits for the answer before
// at most, which comes, if only as an error, within the timeout.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.t.silent.Load() {
		return nil, errHushed
	}
	if len(p.t.out.outdated(p.target)) > 0 {
		return nil, ErrRetired // Raft opens another one
	}
	args.Entries = raftscan.Appendable(args.Entries)
	stuck := time.AfterFunc(2*p.t.door.Timeout, func() { p.Close() })
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
