package rafttransport

import (
	"errors"
	"io"
	"math"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// What would stop all nodes, or turn them out, is refused.
func TestEntries(t *testing.T) {
	good, err := wire.EncodeEntry(&fsmpb.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	alone := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:1", Suffrage: raft.Voter}}})
	n := newTestNode()
	d := n.transport(t).door
	now := raft.EncodeConfiguration(n.Configuration())
	for name, tt := range map[string]struct {
		log *raft.Log
		ok  bool
	}{
		"a good entry":           {&raft.Log{Type: raft.LogCommand, Data: good}, true},
		"a barrier":              {&raft.Log{Type: raft.LogBarrier}, true},
		"no operation":           {&raft.Log{Type: raft.LogNoop}, true},
		"configuration in force": {&raft.Log{Type: raft.LogConfiguration, Data: now}, true},
		"of a later term":        {&raft.Log{Type: raft.LogBarrier, Term: 6}, false},
		"a gap":                  {&raft.Log{Type: raft.LogBarrier}, false},
		"garbage":                {&raft.Log{Type: raft.LogCommand, Data: []byte("garbage")}, false},
		"empty":                  {&raft.Log{Type: raft.LogCommand}, false},
		"oversized":              {&raft.Log{Type: raft.LogCommand, Data: make([]byte, wire.MaxEntry+1)}, false},
		"honest nodes out":       {&raft.Log{Type: raft.LogConfiguration, Data: alone}, false},
		"unreadable nodes":       {&raft.Log{Type: raft.LogConfiguration, Data: []byte("\xff\xff")}, false},
		"an old type":            {&raft.Log{Type: raft.LogAddPeerDeprecated, Data: alone}, false},
		"an unknown type":        {&raft.Log{Type: 99, Data: good}, false},
	} {
		tt.log.Index = 8
		if name == "a gap" {
			tt.log.Index = 9
		}
		err := d.checkEntries(&raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 6, Entries: []*raft.Log{{Index: 7, Type: raft.LogNoop}, tt.log}})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request is its sender's own.
func TestSenders(t *testing.T) {
	d := newTestNode().transport(t).door
	header := func(id, addr string) raft.RPCHeader {
		return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id), Addr: []byte(addr)}
	}
	for name, tt := range map[string]struct {
		h  raft.RPCHeader
		ok bool
	}{
		"its own":                 {header("n3", "192.0.2.3:1"), true},
		"its own, at a new place": {header("n3", "127.0.0.1:1"), true},
		"the leader's":            {header("n2", "192.0.2.2:1"), false},
		"its id, its address":     {header("n3", "192.0.2.2:1"), false},
		"nobody's":                {header("", "192.0.2.3:1"), false},
		"nowhere":                 {header("n3", ""), false},
	} {
		if err := d.checkSender("n3", tt.h); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Heartbeats that change a node's term or role are Raft's own goroutine's business:
// taken beside it, a leader that was paused stores entries in its successor's term.
func TestHeartbeatsThatChangeSomething(t *testing.T) {
	leader, follower := newTestNode(), newTestNode()
	leader.start(t, true)
	follower.start(t, false)
	l, f := leader.transport(t).door, follower.transport(t).door
	beat := func(d *door, term uint64) bool { return d.routine(&raft.AppendEntriesRequest{Term: term}) }
	if !beat(f, f.currentTerm()) {
		t.Error("a follower's heartbeat of the present term waits")
	}
	if beat(f, f.currentTerm()+1) || beat(l, l.currentTerm()) || beat(l, l.currentTerm()+1) {
		t.Error("a heartbeat that changes something is taken beside Raft")
	}
	if f.routine(&raft.RequestVoteRequest{Term: f.currentTerm()}) {
		t.Error("a vote is taken beside Raft")
	}
}

// A node without proof makes an unsealed one step down at most once in a while.
func TestTermsOfOthers(t *testing.T) {
	tr := newTestNode().transport(t)
	d := tr.door
	d.Standings.Prove("n2", time.Now())
	if err := errors.Join(d.term("n2", 5, 6), d.term("n2", 5, 6), d.term("unknown", 5, 5)); err != nil {
		t.Error(err)
	}
	if err := d.term("n2", 5, 5+maxTermStep+1); !errors.Is(err, errTerm) {
		t.Errorf("far ahead: %v", err)
	}
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n2"), Addr: []byte("192.0.2.2:1")}
	if err := d.request("n2", true, &raft.RequestVoteRequest{RPCHeader: header, Term: d.currentTerm() + 1}); err != nil {
		t.Errorf("a request in the next term: %v", err)
	}
	if err := d.request("n2", true, &raft.RequestVoteRequest{RPCHeader: header, Term: math.MaxUint64}); !errors.Is(err, errTerm) {
		t.Errorf("a request at the end of the terms: %v", err)
	}
	d.Standings.Forget("n2")
	if err := d.term("n2", 5, 6); err != nil {
		t.Errorf("the first time: %v", err)
	}
	if err := d.term("n2", 6, 7); !errors.Is(err, errTerm) {
		t.Errorf("the second time: %v", err)
	}
	if _, err := tr.AppendEntriesPipeline("n2", "192.0.2.2:1"); !errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
		t.Errorf("a pipeline to it: %v", err)
	}
}

// TestSignedConfigurations: a configuration counts only if an unsealed node signed it, at its
// own place in the log.
func TestSignedConfigurations(t *testing.T) {
	n := newTestNode()
	n.start(t, true)
	d := n.transport(t).door
	store := keptLog{raft.NewInmemStore(), d}
	next := raft.EncodeConfiguration(raft.Configuration{Servers: n.servers[:2]})
	entry := func() *raft.Log { return &raft.Log{Index: 8, Term: 3, Type: raft.LogConfiguration, Data: next} }
	signed := entry()
	if err := store.StoreLog(signed); err != nil {
		t.Fatal(err)
	}
	if index, c := d.History.Latest(); index != 8 || len(c.Servers) != 2 {
		t.Errorf("the newest configuration is that of index %d, of %d servers", index, len(c.Servers))
	}
	change := func(f func(l *raft.Log)) *raft.Log {
		l := *signed
		l.Extensions = append([]byte(nil), signed.Extensions...)
		f(&l)
		return &l
	}
	for what, v := range map[string]struct {
		log  *raft.Log
		want string // "ok", "later" or "no"
	}{
		"signed":               {signed, "ok"},
		"not signed":           {entry(), "no"},
		"at another index":     {change(func(l *raft.Log) { l.Index++ }), "no"},
		"of another term":      {change(func(l *raft.Log) { l.Term++ }), "no"},
		"of others":            {change(func(l *raft.Log) { l.Data = raft.EncodeConfiguration(raft.Configuration{Servers: n.servers[1:]}) }), "no"},
		"a flipped bit":        {change(func(l *raft.Log) { l.Extensions[9] ^= 1 }), "no"},
		"a short signature":    {change(func(l *raft.Log) { l.Extensions = l.Extensions[:30] }), "no"},
		"by a key of tomorrow": {change(func(l *raft.Log) { l.Extensions[3] = 9 }), "later"},
	} {
		err := d.checkConfiguration(v.log)
		got := "no"
		switch {
		case err == nil:
			got = "ok"
		case errors.Is(err, errNotYet):
			got = "later"
		}
		if got != v.want {
			t.Errorf("%s: %s (%v), want %s", what, got, err, v.want)
		}
	}
	n.cluster.Store(nil)
	if err := d.checkConfiguration(signed); !errors.Is(err, errNotYet) {
		t.Errorf("before the initialisation is applied: %v", err)
	}
	n.cluster.Store(clustertest.Cluster())
	// A snapshot has no signature: only a leader that is known to be unsealed is believed.
	if err := d.checkSnapshotConfiguration("n2", true, next); err == nil {
		t.Error("a snapshot of a leader without proof changes the configuration")
	}
	d.Standings.Prove("n2", time.Now())
	if err := d.checkSnapshotConfiguration("n2", false, next); err == nil {
		t.Error("a snapshot over a connection without proof changes the configuration")
	}
	if err := d.checkSnapshotConfiguration("n2", true, next); err != nil {
		t.Error(err)
	}
	if err := store.DeleteRange(8, 8); err == nil {
		if index, _ := d.History.Latest(); index != 0 {
			t.Errorf("the configuration of index %d was removed", index)
		}
	}
}

// nothingFSM is a state machine without a state.
type nothingFSM struct{}

func (nothingFSM) Apply(*raft.Log) any                 { return nil }
func (nothingFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("there is nothing") }
func (nothingFSM) Restore(r io.ReadCloser) error       { return r.Close() }

// TestEntriesAfterASnapshot: a leader that did not get the answer to the first entries after a
// snapshot sends them again, to a node that has nothing before them in its log. Raft refuses
// them for ever; with the door, it accepts them.
func TestEntriesAfterASnapshot(t *testing.T) {
	n := newTestNode()
	d := n.transport(t).door
	d.Standings.Prove("n2", time.Now())
	addr, trans := raft.NewInmemTransport("192.0.2.1:1")
	leader, leading := raft.NewInmemTransport("192.0.2.2:1")
	leading.Connect(addr, trans)
	trans.Connect(leader, leading)
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	sink, err := snapshots.Create(1, 18, 2, n.Configuration(), 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	entries := func(terms ...uint64) (list []*raft.Log) {
		for i, term := range terms {
			list = append(list, &raft.Log{Index: 19 + uint64(i), Term: term, Type: raft.LogNoop})
		}
		return list
	}
	if err := errors.Join(store.StoreLogs(entries(3, 3)), store.SetUint64([]byte("CurrentTerm"), 3)); err != nil {
		t.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "n1", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout = time.Minute, time.Minute // it only follows
	if n.raft, err = raft.NewRaft(conf, nothingFSM{}, store, store, snapshots, trans); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.raft.Shutdown().Error() })

	send := func(term, prev, prevTerm uint64, list []*raft.Log, door bool) bool {
		t.Helper()
		r := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n2"), Addr: []byte(leader)},
			Term:      term, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: list,
		}
		if door {
			if err := d.request("n2", true, r); err != nil {
				t.Fatal(err)
			}
		}
		var answer raft.AppendEntriesResponse
		if err := leading.AppendEntries("n1", addr, r, &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Success
	}
	n.applied, n.snapshotIndex, n.snapshotTerm = 18, 18, 2
	if send(3, 18, 2, entries(3, 3, 3), false) {
		t.Error("this Raft accepts such entries by itself: continueSnapshot is needed no more")
	}
	for name, set := range map[string]func(){
		"the snapshot has another term": func() { n.snapshotTerm = 1 },
		"the snapshot ends elsewhere":   func() { n.snapshotIndex = 17 },
		"the snapshot was not restored": func() { n.applied = 17 },
		"there is no snapshot":          func() { n.snapshotIndex, n.snapshotTerm = 0, 0 },
	} {
		n.applied, n.snapshotIndex, n.snapshotTerm = 20, 18, 2
		if set(); send(3, 18, 2, entries(3, 3, 3), true) {
			t.Errorf("%s: the entries were accepted", name)
		}
	}
	n.applied, n.snapshotIndex, n.snapshotTerm = 18, 18, 2
	if !send(3, 18, 2, entries(3, 3, 3), true) || n.raft.LastIndex() != 21 {
		t.Errorf("the entries were not accepted; the last one is %d", n.raft.LastIndex())
	}
	// Raft still compares the entries themselves.
	if !send(4, 18, 2, entries(3, 4), true) || n.raft.LastIndex() != 20 {
		t.Errorf("entries of another leader were not accepted; the last one is %d", n.raft.LastIndex())
	}
	var last raft.Log
	if err := store.GetLog(20, &last); err != nil || last.Term != 4 {
		t.Errorf("entry 20 has term %d (%v), want 4", last.Term, err)
	}
}
