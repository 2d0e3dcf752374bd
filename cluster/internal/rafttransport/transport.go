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

// Transport is Raft's network transport. It passes all requests and answers through the
// door, and cannot hang.
//
// The embedded transport sends the requests of this node's Raft. Requests of other nodes
// arrive through a separate transport for each connection, so that the door knows which
// connection a request came over: Raft believes the id in the request, whatever it is.
//
// A hang could happen as follows. When a follower reports a newer term, Raft stops reading
// the answers of the pipeline to it while the sender may be waiting for room in the
// pipeline, for ever. That would leak the sender and keep Raft from shutting down.
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
	rounds rounds
}

// inbound receives the requests on one connection.
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

// New returns the transport of a node. Close ends it.
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

// network returns hashicorp/raft's transport over a stream.
func (t *Transport) network(s raft.StreamLayer) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: maxPool, Timeout: t.door.Timeout,
		Logger: raftlogger.New(t.door.Log, "raft-net"), MsgpackUseNewTimeFormat: true,
	})
}

// Header returns the header of this node's requests and answers.
func (t *Transport) Header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(t.door.ID), Addr: []byte(t.door.Advertise)}
}

// Serve accepts connections of other nodes until the listener is closed.
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

// take serves one connection until it is closed. The port limits the number of connections.
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

// pass gives an admitted request to Raft. A request that came without proof is counted
// until it is answered: Raft may already be processing it when its sender becomes known to
// be unsealed.
func (t *Transport) pass(c *conn, rpc raft.RPC) {
	if !t.door.connProven(c) {
		answer, to := make(chan raft.RPCResponse, 1), rpc.RespChan
		rpc.RespChan = answer
		t.door.Standings.Begin(c.Node, 1)
		go func() {
			defer t.door.Standings.Begin(c.Node, -1)
			select {
			case r := <-answer:
				to <- r // never blocks
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

// admit decides whether a request passes the door, and answers it if it does not.
func (t *Transport) admit(c *conn, rpc raft.RPC) bool {
	err := t.door.request(c.Node, t.door.connProven(c), rpc.Command)
	switch {
	case errors.Is(err, errInstalled):
		// The rest of the request is read, since it would be taken for the next request.
		if _, err = io.Copy(io.Discard, rpc.Reader); err == nil {
			rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: t.Header(), Term: t.door.currentTerm(), Success: true}, nil)
		} else {
			rpc.Respond(nil, err)
		}
		return false
	case errors.Is(err, errNotYet):
		if _, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
			// The leader goes back by one entry, which it sends alone, as a configuration is
			// always the first of a request. It comes with the leader's commit index. Without
			// that, a node that has restarted applies nothing, and could never check this one.
			rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: t.Header(), Term: t.door.currentTerm(), LastLog: t.door.node.Raft().LastIndex()}, nil)
			return false
		}
		rpc.Respond(nil, err)
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

// errHushed is returned to Raft for entries and heartbeats that were not sent.
var errHushed = errors.New("nothing is sent while the disk does not answer")

// Hush stops this node from sending entries and heartbeats, so that the others elect
// another leader, or lets it send again.
func (t *Transport) Hush(silent bool) { t.silent.Store(silent) }

// lane returns the target for the next request to a node: the proven lane if the node is
// known to be unsealed.
func (t *Transport) lane(node raft.ServerID, target raft.ServerAddress) (to raft.ServerAddress, proven bool) {
	if t.door.knownUnsealed(string(node)) {
		return target + provenLane, true
	}
	return target, false
}

// inLane makes a request in the node's current lane. If the connection was retired before
// anything was sent, it tries again.
func (t *Transport) inLane(node raft.ServerID, target raft.ServerAddress, request func(raft.ServerAddress) error) (proven bool, err error) {
	for range maxPool + 2 { // the connections in the pool, a new one, and one in the other lane
		var to raft.ServerAddress
		to, proven = t.lane(node, target)
		if err = request(to); !errors.Is(err, ErrRetired) {
			break
		}
	}
	return proven, err
}

// ask sends a request to a node and refuses the answer of an impostor. If the node's lane
// changes meanwhile, because the node becomes known to be unsealed or no longer is, the
// request is sent again in the other lane.
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

// authentic refuses an answer that came over a connection without proof if the node is
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
	sent := t.rounds.tick()
	err := t.ask(id, target, func(target raft.ServerAddress) error {
		if err := t.NetworkTransport.AppendEntries(id, target, args, resp); err != nil {
			return err
		}
		return t.door.term(string(id), args.Term, resp.Term)
	})
	if err == nil && resp.Term == args.Term {
		t.rounds.confirmed(id, sent, args.Term)
	}
	if err == nil && held && len(args.Entries) == 0 {
		time.Sleep(heldPause) // Raft tries again at once
	}
	return err
}

// heldPause is the pause between two requests to a node whose acknowledgements do not
// count.
const heldPause = 20 * time.Millisecond

// alreadyCommitted returns the entries of a request that are committed already, and whether
// there are others. Only these are sent to a node whose acknowledgements do not count: it
// could claim to have stored entries that it has not.
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
	// A connection in this lane serves one request, so no data has been read if the
	// connection was retired before the request.
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

// AppendEntriesPipeline implements raft.Transport. The answers of a pipeline reach Raft
// without a check of their terms. So there is no pipeline to a node that may not depose
// this one, nor to an impostor; Raft works without.
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

// ClosePipelines ends all pipelines, including their blocked senders, and prevents new
// ones.
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

// AppendEntries implements raft.AppendPipeline. It waits at most for the answer to the
// previous request, which arrives, or fails, within the timeout.
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
