package cluster

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/rafttransport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// A leader that is sealed and does not step aside is voted out, and does not come
// back, whatever it asks of the others' Rafts.
func TestSealedLeaderIsVotedOut(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	thief := stealLeadership(t, c)
	honest := c.followers()
	start := time.Now()
	leader := func() string {
		var id string
		for _, n := range honest {
			l, _ := n.Leader()
			if l == "" || l == thief.id || id != "" && l != id {
				return ""
			}
			id = l
		}
		return id
	}
	clustertest.Eventually(t, 60*time.Second, "a leader that is unsealed", func() bool { return leader() != "" })
	t.Logf("voted out after %v", time.Since(start).Round(time.Millisecond))
	for _, n := range honest {
		mustPropose(t, n, clustertest.Record())
	}

	// It is no leader any more in its own eyes either; it goes on as a thief would.
	term, first := honest[0].term(), leader()
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(thief.id), Addr: []byte(thief.advertise)}
	last := thief.raft.Load().LastIndex()
	for _, n := range honest {
		id, addr := raft.ServerID(n.id), raft.ServerAddress(n.advertise)
		wire := thief.trans.NetworkTransport // without this node's own door
		for name, ask := range map[string]func() error{
			"a vote": func() error {
				return wire.RequestVote(id, addr, &raft.RequestVoteRequest{
					RPCHeader: header, Term: term + 5, LastLogIndex: last + 9, LastLogTerm: term + 4, LeadershipTransfer: true,
				}, &raft.RequestVoteResponse{})
			},
			"a vote beforehand": func() error {
				return wire.RequestPreVote(id, addr, &raft.RequestPreVoteRequest{
					RPCHeader: header, Term: term + 5, LastLogIndex: last + 9, LastLogTerm: term + 4,
				}, &raft.RequestPreVoteResponse{})
			},
			"to be followed": func() error {
				return wire.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: header, Term: term + 5}, &raft.AppendEntriesResponse{})
			},
			"to be followed at the end of the terms": func() error {
				return wire.AppendEntries(id, addr, &raft.AppendEntriesRequest{RPCHeader: header, Term: math.MaxUint64}, &raft.AppendEntriesResponse{})
			},
			"an election": func() error {
				return wire.TimeoutNow(id, addr, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
			},
		} {
			if err := ask(); err == nil {
				t.Errorf("%s took from a thief: %s", n.id, name)
			}
		}
	}
	for _, n := range honest {
		mustPropose(t, n, clustertest.Record())
	}
	if l, now := leader(), honest[0].term(); l != first || now != term {
		t.Errorf("%s leads in term %d, was %s in term %d", l, now, first, term)
	}
	thief.authority.sealed.Store(false)
	clustertest.Eventually(t, time.Minute, "the node is like others again when it is unsealed", func() bool {
		return honest[0].standings.Proven(thief.id, time.Now())
	})
	mustPropose(t, thief, clustertest.Record())
	c.converged()
	c.noFaults()
}

// While all nodes are sealed they elect a leader as ever, and the first one that is
// unsealed leads.
func TestSealedClusterElects(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	all := c.up()
	for _, n := range all {
		n.seal()
	}
	old := c.leader()
	c.kill(old.id)
	rest := c.up()
	clustertest.Eventually(t, time.Minute, "a sealed leader", func() bool {
		l, _ := rest[0].Leader()
		return l == rest[0].id || l == rest[1].id
	})
	for _, n := range rest {
		n.authority.sealed.Store(false)
		n.SetCanLead(func() bool { return true })
		mustPropose(t, n, clustertest.Record())
	}
	c.start(old.id)
	c.converged()
	c.noFaults()
}

// A request is refused, and its sender named, when it is in another node's name.
func TestRequestsAreTheSenders(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	other := c.followers()[1]
	header := func(id, addr string) raft.RPCHeader {
		return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id), Addr: []byte(addr)}
	}
	resp := &raft.AppendEntriesResponse{}
	err := other.trans.AppendEntries(raft.ServerID(f.id), raft.ServerAddress(f.advertise),
		&raft.AppendEntriesRequest{RPCHeader: header(l.id, l.advertise), Term: f.term()}, resp)
	if err == nil {
		t.Error("a heartbeat in the leader's name was answered")
	}
	if now := time.Now(); !f.cutOffs.Has(standing.Sender{Node: other.id, Proven: true}, now) && !f.cutOffs.Has(standing.Sender{Node: other.id, Proven: false}, now) {
		t.Error("nobody was cut off")
	}
	mustPropose(t, f, clustertest.Record())
}

// What is committed stays in the log, and what may be, until a leader comes that is
// unsealed.
func TestLogIsKept(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	l, f := c.leader(), c.followers()[0]
	mustPropose(t, f, clustertest.Record())
	c.converged()
	applied := f.State().Index()
	log := f.trans.KeepLog(f.store.ForRaft())
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	clustertest.Eventually(t, time.Minute, "the leader is known to be unsealed", func() bool { return f.standings.Proven(l.id, time.Now()) })
	// tail is a log with one entry of that type, which is not known to be committed.
	entry, err := wire.EncodeEntry(&fsmpb.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	tail := func(entryType raft.LogType) raft.LogStore {
		store := raft.NewInmemStore()
		if err := store.StoreLog(&raft.Log{Index: last + 1, Type: entryType, Data: entry}); err != nil {
			t.Fatal(err)
		}
		return f.trans.KeepLog(store)
	}
	if err := tail(raft.LogCommand).DeleteRange(last+1, last+1); err != nil {
		t.Errorf("what nobody committed: %v", err)
	}
	l.authority.sealed.Store(true)
	c.setFit(false)
	// Asked now, it proves nothing; what it proved before would count for a while.
	f.voters.AskAgain(l.id, 20*time.Second)
	f.standings.Forget(l.id)
	clustertest.Eventually(t, time.Minute, "the leader is not known to be unsealed", func() bool { return !f.standings.Proven(l.id, time.Now()) })
	if last, err = log.LastIndex(); err != nil {
		t.Fatal(err)
	}
	if err := log.DeleteRange(applied, last); !errors.Is(err, rafttransport.ErrTruncate) {
		t.Errorf("what is committed: %v", err)
	}
	if !f.cutOffs.Has(standing.Sender{Node: l.id}, time.Now()) {
		t.Error("the leader is not cut off")
	}
	if err := tail(raft.LogBarrier).DeleteRange(last+1, last+1); err != nil {
		t.Errorf("a barrier: %v", err)
	}
	if err := tail(raft.LogCommand).DeleteRange(last+1, last+1); !errors.Is(err, rafttransport.ErrTruncate) {
		t.Errorf("a command under a leader without proof: %v", err)
	}
	if n, err := log.LastIndex(); err != nil || n < last {
		t.Errorf("the log ends at %d, %v", n, err)
	}
}

// Nodes compare their states. One that differs is named by the others, and takes
// itself out when most say that it is the one.
func TestStatesAreCompared(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.leader()
	others := c.followers()
	for range 3 {
		mustPropose(t, l, clustertest.Record())
	}
	index := l.State().Index()
	for _, n := range c.up() {
		clustertest.Eventually(t, time.Minute, n.id+" agrees with a majority", func() bool { return n.standings.Agree(index, 3) })
	}
	if l.standings.Agree(index+1000, 3) {
		t.Error("a majority has what is not there yet")
	}
	n := others[0]
	s := n.State()
	wrong := make([]byte, 32)
	n.standings.Compare(l.id, s.Index(), true, time.Now())
	n.voters.CompareStates(t.Context(), others[1].id, s.Index(), wrong)
	if n.Fault() != nil {
		t.Errorf("one of two differs: %v", n.Fault())
	}
	if n.standings.Proven(others[1].id, time.Now()) {
		t.Error("a node whose state differs may lead")
	}
	n.voters.CompareStates(t.Context(), others[1].id, s.Index(), wrong)
	n.voters.CompareStates(t.Context(), l.id, s.Index(), wrong)
	if !errors.Is(n.Fault(), fsm.ErrDiverged) {
		t.Errorf("both differ: %v", n.Fault())
	}
}

// A node that found its state to differ, such as after a fault of its memory, starts again
// from its disk: the state is made anew from the snapshot and the log, and compared again.
func TestDivergedNodeStartsAgain(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.leader()
	for range 3 {
		mustPropose(t, l, clustertest.Record())
	}
	c.converged()
	n, wrong := c.followers()[0], make([]byte, 32)
	for _, o := range c.up() {
		if o != n {
			n.voters.CompareStates(t.Context(), o.id, n.State().Index(), wrong)
		}
	}
	if !errors.Is(<-n.faults, fsm.ErrDiverged) {
		t.Fatalf("fault %v", n.Fault())
	}
	mustPropose(t, l, clustertest.Record()) // the others go on
	c.kill(n.id)
	s, err := OpenStopped(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Replay(t.Context(), fsm.Config{})
	if err = errors.Join(err, s.Close()); err != nil || m.Current().Index() < n.State().Index() {
		t.Fatalf("the disk has the state at %d: %v", m.Current().Index(), err)
	}
	n = c.start(n.id)
	for range 3 {
		mustPropose(t, l, clustertest.Record())
	}
	c.converged()
	index := l.State().Index()
	clustertest.Eventually(t, time.Minute, "agreement with a majority", func() bool { return n.standings.Agree(index, 3) })
	if n.Fault() != nil || n.State().Hash() != l.State().Hash() {
		t.Errorf("after the restart: %v", n.Fault())
	}
}
