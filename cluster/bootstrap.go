package cluster

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// helloAgain is how long to wait before a node that did not answer is asked
	// again: at first, and at most.
	helloAgain    = 50 * time.Millisecond
	maxHelloAgain = time.Second
	// firstTerm is the Raft term of the founding.
	firstTerm = 1
)

// survey is what the part of the log that is not applied yet says of nodes. A
// node that starts has applied only its snapshot; asked about another node, it
// must not forget what is in its log behind that.
type survey struct {
	from, to uint64
	done     chan struct{}
	nodes    map[string]sighting // each node that registered or sent a batch
	bytes    int64
	// cluster is the one that the disk's state is of: from the snapshot, or founded in
	// the log; nil before it is founded.
	cluster *fsmpb.Cluster
}

// sighting is what a log says of a node.
type sighting struct {
	incarnation uint64 // the newest
	watermark   uint64 // the highest
}

// run looks through the log. What no unsealed leader signed says nothing of nodes,
// once the cluster is founded: whoever led may have put it there.
func (s *survey) run(ctx context.Context, st *raftlog.Store) {
	defer close(s.done)
	founded := s.from // up to there nobody could sign
	entries := func(from, to uint64, f func(uint64, []byte)) bool {
		for i := from; i <= to && ctx.Err() == nil; i++ {
			var l raft.Log
			if err := st.GetLog(i, &l); err != nil {
				if errors.Is(err, raft.ErrLogNotFound) {
					continue // behind a snapshot that was installed
				}
				return false // the store reported it
			}
			if l.Type == raft.LogCommand {
				f(i, l.Data)
			} else {
				s.bytes += int64(len(l.Data))
			}
		}
		return ctx.Err() == nil
	}
	if !entries(s.from, s.to, func(i uint64, b []byte) {
		s.bytes += int64(len(b))
		if s.cluster == nil {
			surveyEntry(b, s.nodes)
			s.cluster, founded = fsm.EntryFounds(b), i+1
		}
	}) {
		return
	}
	// The newest first: they say the most, and the others need not be verified.
	for i := s.to; s.cluster != nil && i >= max(founded, 1); i-- {
		if !entries(i, i, func(_ uint64, b []byte) {
			seen := make(map[string]sighting)
			surveyEntry(b, seen)
			for node, is := range seen {
				if was := s.nodes[node]; (is.incarnation > was.incarnation || is.watermark > was.watermark) && fsm.EntrySigned(s.cluster, b) {
					s.nodes[node] = sighting{max(was.incarnation, is.incarnation), max(was.watermark, is.watermark)}
				}
			}
		}) {
			return
		}
	}
	st.AdjustAppended(s.bytes)
}

// Field numbers of fsm.proto that the survey reads without decoding records.
const (
	entryBatches, entryRegister = 10, 11
	batchesBatch                = 1
	batchWatermark              = 5
	registerWatermark           = 9
	// Of both messages.
	nodeName, nodeIncarnation = 1, 2
)

// surveyEntry notes the nodes of one entry. Bytes that make no sense are passed
// over: the state machine will stop at them.
func surveyEntry(b []byte, nodes map[string]sighting) {
	fields(b, func(num protowire.Number, v []byte, _ uint64) {
		switch num {
		case entryBatches:
			fields(v, func(num protowire.Number, v []byte, _ uint64) {
				if num == batchesBatch {
					note(v, batchWatermark, nodes)
				}
			})
		case entryRegister:
			note(v, registerWatermark, nodes)
		}
	})
}

func note(b []byte, watermark protowire.Number, nodes map[string]sighting) {
	var node string
	var seen sighting
	fields(b, func(num protowire.Number, v []byte, n uint64) {
		switch num {
		case nodeName:
			node = string(v)
		case nodeIncarnation:
			seen.incarnation = n
		case watermark:
			seen.watermark = n
		}
	})
	if node != "" {
		before := nodes[node]
		nodes[node] = sighting{max(before.incarnation, seen.incarnation), max(before.watermark, seen.watermark)}
	}
}

func fields(b []byte, f func(num protowire.Number, bytes []byte, n uint64)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			f(num, v, 0)
			b = b[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return
			}
			f(num, nil, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return
			}
			b = b[n:]
		}
	}
}

// inspectDisk finds how far this disk goes.
func (n *Node) inspectDisk() error {
	last, err := n.store.LastIndex()
	if err != nil {
		return err
	}
	if last > 0 { // what Raft is about to do too, with a panic for an answer
		if err := n.store.GetLog(last, new(raft.Log)); err != nil {
			return err
		}
	}
	snapshots, err := n.snapshots.List()
	if err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	n.survey = &survey{to: last, done: make(chan struct{}), nodes: make(map[string]sighting)}
	if n.survey.from, err = n.store.FirstIndex(); err != nil {
		return err
	}
	if len(snapshots) > 0 {
		n.survey.from = max(n.survey.from, snapshots[0].Index+1)
		last = max(last, snapshots[0].Index)
		if n.survey.cluster, err = n.snapshotCluster(snapshots[0].ID); err != nil {
			return err
		}
	}
	n.lastIndex = last
	return nil
}

func (n *Node) snapshotCluster(id string) (*fsmpb.Cluster, error) {
	_, r, err := n.snapshots.Open(id)
	if err != nil {
		return nil, err
	}
	c, err := fsm.SnapshotCluster(r)
	return c, errors.Join(err, r.Close())
}

// hasState reports whether the disk holds anything that another node may count
// on. A founding that was cut short left at most the first term: it can be done
// again.
func (n *Node) hasState() (bool, error) {
	last, err := n.store.LastIndex()
	if err != nil || last > 0 {
		return last > 0, err
	}
	snapshots, err := n.snapshots.List()
	if err != nil || len(snapshots) > 0 {
		return len(snapshots) > 0, err
	}
	term, err := n.store.GetUint64([]byte("CurrentTerm"))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	_, _, err = n.store.Vote()
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	return term > firstTerm || err == nil, nil
}

// bootstrapSet is the static set of first nodes as nodes compare it.
func (n *Node) bootstrapSet() []string {
	var set []string
	for _, id := range slices.Sorted(maps.Keys(n.cfg.Peers)) {
		set = append(set, id+"="+n.cfg.Peers[id])
	}
	return set
}

// hello answers another node that starts.
func (n *Node) hello(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error) {
	a := &clusterpb.HelloResponse{
		Node: n.cfg.NodeID, Bootstrap: n.bootstrapSet(), Version: n.cfg.Release,
		SchemaMin: wire.SchemaMin, SchemaMax: wire.SchemaMax,
	}
	var err error
	if a.Formed, err = n.hasState(); err != nil {
		return nil, err
	}
	// What is applied and what the log held at the start: between them lies
	// nothing that this node knew when the other one began to ask.
	select {
	case <-n.survey.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// What an unsealed node says after a barrier is all that the cluster knows.
	current := false
	if n.unsealed() && len(r.Nonce) == nonceSize {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Hello/2)
		defer cancel()
		current = n.Barrier(ctx) == nil
	}
	mark, known := n.machine.watermark(r.Node)
	if logged, ok := n.survey.nodes[r.Node]; ok {
		known, mark, a.Incarnation = true, max(mark, logged.watermark), logged.incarnation
	}
	if reg, _ := n.State().Node(r.Node); reg != nil {
		known, mark, a.Incarnation = true, max(mark, reg.Watermark), max(a.Incarnation, reg.Incarnation)
	}
	a.Registered, a.Watermark = known, mark
	if current {
		if g, sig, err := n.sign(helloDomain, helloDigest(r.Node, r.Nonce, a)); err == nil {
			a.Generation, a.Proof = g, sig
		}
	}
	return a, nil
}

// helloDomain separates answers to Hello from what else the origin key signs.
const helloDomain = "conclave hello v1"

// helloDigest is what an unsealed node signs of its answer to a node's nonce.
func helloDigest(asker string, nonce []byte, a *clusterpb.HelloResponse) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(a.Node), []byte(asker), nonce} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	known := uint64(0)
	if a.Registered {
		known = 1
	}
	for _, v := range []uint64{known, a.Watermark, a.Incarnation} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, v))
	}
	return [32]byte(h.Sum(nil))
}

// helloResult is one node's answer.
type helloResult struct {
	node string
	r    *clusterpb.HelloResponse
	// proven says that the node is unsealed and that it knows what the cluster does,
	// as far as this node's disk has the keys to tell.
	proven bool
}

// greet asks the other first nodes until each has answered or ctx ends. again
// says which answers are to be asked for anew.
func (n *Node) greet(ctx context.Context, again func(*clusterpb.HelloResponse) bool) <-chan helloResult {
	results := make(chan helloResult)
	var wg sync.WaitGroup
	for _, id := range n.greeted() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for wait := helloAgain; ; wait = min(2*wait, maxHelloAgain) {
				if r, proven, err := n.ask(ctx, id); err == nil {
					select {
					case results <- helloResult{id, r, proven}:
					case <-ctx.Done():
						return
					}
					if !again(r) {
						return
					}
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	n.goroutine(func() {
		wg.Wait()
		close(results)
	})
	return results
}

// greeted are the nodes to ask: the static peers, and whoever is in the Raft
// configuration by now.
func (n *Node) greeted() []string {
	ids := slices.Collect(maps.Keys(n.cfg.Peers))
	ids = appendNew(ids, n.Peers()...)
	return slices.DeleteFunc(ids, func(id string) bool { return id == n.cfg.NodeID })
}

func (n *Node) ask(ctx context.Context, node string) (r *clusterpb.HelloResponse, proven bool, err error) {
	client, err := n.peers.client(node)
	if err != nil {
		return nil, false, err
	}
	n.peers.reset(node)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nonce := newNonce()
	r, err = client.Hello(ctx, &clusterpb.HelloRequest{
		Group: wire.Group, Node: n.cfg.NodeID, LastIndex: n.lastIndex, Bootstrap: n.bootstrapSet(), Nonce: nonce,
	})
	if err != nil {
		return nil, false, err
	}
	select {
	case <-n.survey.done:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	proven = r.Node == node && fsm.VerifyOrigin(n.survey.cluster, r.Generation, helloDomain, helloDigest(n.cfg.NodeID, nonce, r), r.Proof)
	return r, proven, nil
}

// object says why a node's view of the cluster contradicts this node's disk; nil if it does not.
func (n *Node) object(h helloResult, empty bool) error {
	switch {
	case !h.r.Registered:
		return nil
	case !empty && h.r.Incarnation == n.dir.file.Incarnation, n.registered(n.cfg.NodeID, n.dir.file.Incarnation):
		// The answer came late, and what the node knows is of this life already. The
		// state machine compared the former ones' watermarks on its way here.
		return nil
	case empty:
		return fmt.Errorf("%w (node %s knows it)", ErrWipedDisk, h.node)
	case h.r.Watermark > n.lastIndex:
		return fmt.Errorf("%w (node %s knows it up to index %d, and it has %d)", ErrRolledBack, h.node, h.r.Watermark, n.lastIndex)
	}
	return nil
}

// join brings the node into the cluster. It returns when Raft runs, when the node
// must not start, or after Timeouts.Hello, in which case it goes on behind.
func (n *Node) join() error {
	has, err := n.hasState()
	if err != nil {
		return err
	}
	if !has {
		if n.dir.hasJoined() {
			return fmt.Errorf("%w (%s says that there was Raft state)", ErrWipedDisk, identityFile)
		}
		return n.found()
	}
	return n.rejoin()
}

// rejoin starts a node that has state: it listens for objections first, but a
// cluster that starts as a whole must not wait for itself.
func (n *Node) rejoin() error {
	pending := len(n.greeted())
	results := n.greet(n.ctx, func(*clusterpb.HelloResponse) bool { return false })
	var said objections
	patience := time.NewTimer(n.cfg.Timeouts.Hello)
	defer patience.Stop()
	for waiting := pending > 0; waiting; {
		select {
		case h, ok := <-results:
			if !ok {
				waiting = false
				break
			}
			said.hear(h, n.object(h, false))
			if said.final() != nil {
				return said.final()
			}
			// One answer is some assurance; the others get a little longer, and as long
			// as it takes where one objects and could be a thief.
			patience.Reset(n.cfg.Timeouts.Hello / 4)
			if said.open() != nil {
				patience.Reset(objectionHello * n.cfg.Timeouts.Hello)
			}
		case <-patience.C:
			waiting = false
		}
	}
	if err := said.open(); err != nil {
		return err
	}
	n.goroutine(func() {
		for h := range results {
			said.hear(h, n.object(h, false))
			if err := cmp.Or(said.final(), said.open()); err != nil {
				n.fault(err)
			}
		}
	})
	return n.startRaft()
}

// objectionHello is how long a node whose disk another one objects to waits for an
// unsealed node's word, in Timeouts.Hello.
const objectionHello = 5

// objections are what others say against a node's disk. A thief with a node's
// identity may say anything; an unsealed node that knows what the cluster does has
// the last word. Without one, the node believes whoever objects.
type objections struct {
	proven, other error
	cleared       bool
}

func (o *objections) hear(h helloResult, err error) {
	switch {
	case h.proven && err != nil:
		o.proven = err
	case h.proven:
		o.cleared = true
	case err != nil && o.other == nil:
		o.other = fmt.Errorf("%w. No unsealed node was heard that could confirm or deny it: "+
			"if the identity of %s may be stolen, keep that node from the network and start again", err, h.node)
	}
}

// final is an objection that stands.
func (o *objections) final() error { return o.proven }

// open is one that does so far.
func (o *objections) open() error {
	if o.cleared {
		return nil
	}
	return o.other
}

// found waits until the first nodes agree and then writes the first Raft state,
// or, for a node that never founds a cluster, waits to be called.
func (n *Node) found() error {
	switch n.cfg.BootstrapExpect {
	case 0:
		return n.startRaft()
	case 1:
		// Alone: whoever else is listed must not know this node already.
		if err := n.bootstrap(raft.Server{ID: raft.ServerID(n.cfg.NodeID), Address: raft.ServerAddress(n.advertise)}); err != nil {
			return err
		}
		return n.startRaft()
	}
	decided := make(chan error, 1)
	n.goroutine(func() { decided <- n.agree() })
	patience := time.NewTimer(n.cfg.Timeouts.Hello)
	defer patience.Stop()
	select {
	case err := <-decided:
		return err
	case <-patience.C:
	}
	n.log.Info("waiting for the other first nodes", "expect", n.cfg.BootstrapExpect)
	n.goroutine(func() {
		if err := <-decided; err != nil && !errors.Is(err, ErrShutdown) {
			n.fault(err)
		}
	})
	return nil
}

// agree waits for an answer of every first node. Each must have the same set, or
// two clusters could form. A peer that already has Raft state does not block the
// bootstrap: it may have completed one that crashed here. If neither its state nor its
// log knows this node, this disk was not wiped: whatever majority registered this node
// contains one of the others.
func (n *Node) agree() error {
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	set := n.bootstrapSet()
	answers := make(map[string]bool)
	warned := make(map[string]bool)
	same := func(r *clusterpb.HelloResponse) bool { return slices.Equal(r.Bootstrap, set) }
	for h := range n.greet(ctx, func(r *clusterpb.HelloResponse) bool { return !same(r) }) {
		if err := n.object(h, true); err != nil {
			return err
		}
		if !same(h.r) {
			if !warned[h.node] {
				n.log.Error("another first node is configured with another set", "peer", h.node, "theirs", h.r.Bootstrap, "ours", set)
			}
			warned[h.node] = true
			continue
		}
		if answers[h.node] = true; len(answers) == n.cfg.BootstrapExpect-1 {
			break
		}
	}
	if n.ctx.Err() != nil {
		return ErrShutdown
	}
	var servers []raft.Server
	for _, id := range slices.Sorted(maps.Keys(n.cfg.Peers)) {
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(n.cfg.Peers[id])})
	}
	if err := n.bootstrap(servers...); err != nil {
		return err
	}
	return n.startRaft()
}

// bootstrap writes the first Raft state, as raft.BootstrapCluster does, but can
// be repeated after a crash in the middle.
func (n *Node) bootstrap(servers ...raft.Server) error {
	if n.cfg.Hooks.BeforeBootstrap != nil {
		if err := n.cfg.Hooks.BeforeBootstrap(); err != nil {
			return err
		}
	}
	err := n.store.SetUint64([]byte("CurrentTerm"), firstTerm)
	if err == nil {
		err = n.store.StoreLog(&raft.Log{
			Index: 1, Term: firstTerm, Type: raft.LogConfiguration,
			Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers}),
		})
	}
	if err != nil {
		return fmt.Errorf("founding the cluster: %w", err)
	}
	n.lastIndex = max(n.lastIndex, 1)
	n.log.Info("founded the cluster", "servers", len(servers))
	return nil
}
