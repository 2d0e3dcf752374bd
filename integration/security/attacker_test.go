package security

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// claim sends entries to an honest node as its leader of that term would, under the
// name in head.
func (th *thief) claim(node string, head raft.RPCHeader, term uint64, prev *raft.Log, entries []*raft.Log, commit uint64) (*raft.AppendEntriesResponse, error) {
	r := &raft.AppendEntriesRequest{RPCHeader: head, Term: term, Entries: entries, LeaderCommitIndex: commit}
	if prev != nil {
		r.PrevLogEntry, r.PrevLogTerm = prev.Index, prev.Term
	}
	var resp raft.AppendEntriesResponse
	err := th.raft.AppendEntries(raft.ServerID(node), raft.ServerAddress(th.peers[node]), r, &resp)
	return &resp, err
}

// newest is the newest term that an honest node or the thief has heard of.
func (th *thief) newest() uint64 {
	th.mu.Lock()
	term := th.term
	th.mu.Unlock()
	for _, id := range th.nodes() {
		// A leader of a term that is over learns of the one under way.
		if r, err := th.claim(id, th.header(), 1, nil, nil, 0); err == nil {
			term = max(term, r.Term)
		}
	}
	return term
}

// after are entries that follow a log, of one term.
func after(log []*raft.Log, term uint64, entries ...*raft.Log) []*raft.Log {
	for i, e := range entries {
		e.Index, e.Term = log[len(log)-1].Index+uint64(i)+1, term
	}
	return entries
}

// TestThiefWithIdentityAsLeader has the TLS identity of the node that led. It sends
// what leaders send.
func TestThiefWithIdentityAsLeader(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{leads: true})
	th := x.thief()
	th.open()
	x.serves("after the leader is gone")
	log := x.logOf(th)
	last := log[len(log)-1]
	signed := authentic(log)
	if len(signed) < 5 {
		t.Fatalf("void: the thief knows %d authentic entries", len(signed))
	}

	// Forgeries that can be read, and old entries again: in vain, if they are stored.
	forged := x.forgeries(signed)
	term := th.newest() + 1
	var entries []*raft.Log
	for _, what := range slices.Sorted(maps.Keys(forged)) {
		entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: forged[what]})
	}
	for _, data := range signed {
		entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: data})
	}
	entries = after(log, term, entries...)
	for _, id := range th.nodes() {
		r, err := th.claim(id, th.header(), term, last, entries, entries[len(entries)-1].Index)
		t.Logf("%d forged and %d old entries for %s: success %v, %v", len(forged), len(signed), id, r.Success, err)
	}
	x.unharmed("after forged entries")
	x.serves("after forged entries")
	x.unharmed("after forged entries, with an honest leader")

	// What would stop a node that has it in its log, or turn others out.
	alone := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(th.id), Address: raft.ServerAddress(th.addr)}}})
	newer, err := proto.Marshal(&fsmpb.Entry{Schema: 99})
	if err != nil {
		t.Fatal(err)
	}
	for what, e := range map[string]*raft.Log{
		"garbage":                {Type: raft.LogCommand, Data: []byte("garbage")},
		"nothing":                {Type: raft.LogCommand},
		"an unknown schema":      {Type: raft.LogCommand, Data: newer},
		"an unknown field":       {Type: raft.LogCommand, Data: append(slices.Clone(forged["a wrong hash"]), 0xf8, 0x07, 1)},
		"four megabytes":         {Type: raft.LogCommand, Data: make([]byte, 4<<20)},
		"the thief alone":        {Type: raft.LogConfiguration, Data: alone},
		"no configuration":       {Type: raft.LogConfiguration, Data: []byte{0xff, 0xff}},
		"a node added":           {Type: raft.LogAddPeerDeprecated, Data: alone},
		"an unknown kind":        {Type: 99, Data: forged["a wrong hash"]},
		"an entry without index": {Type: raft.LogNoop},
	} {
		log := x.logOf(th)
		term := th.newest() + 1
		entries := after(log, term, e)
		if what == "an entry without index" {
			e.Index = 0
		}
		for _, id := range th.nodes() {
			if r, err := th.claim(id, th.header(), term, log[len(log)-1], entries, e.Index); err == nil && r.Success {
				t.Errorf("%s was taken by %s", what, id)
			}
		}
		x.serves("after " + what)
	}
	x.unharmed("after entries that cannot be read")

	// What is committed stays: the key is not enabled again by leaving the entry out
	// that disabled it, whether a node goes on or starts again.
	log = x.logOf(th)
	at := slices.IndexFunc(log, disables)
	if at < 0 {
		t.Fatal("the log has no entry that disables the key")
	}
	term = th.newest() + 1
	for _, id := range th.nodes() {
		noop := &raft.Log{Index: log[at].Index, Term: term, Type: raft.LogNoop}
		if r, err := th.claim(id, th.header(), term, log[at-1], []*raft.Log{noop}, noop.Index); err == nil && r.Success {
			t.Errorf("%s let the thief rewrite what was committed", id)
		}
	}
	x.serves("after committed entries were to be rewritten")
	x.unharmed("after committed entries were to be rewritten")
	x.named()
	for _, n := range x.honest {
		x.settle()
		n.Kill()
		n.Start()
		n.Unseal()
		x.c.WaitReady(n)
		x.unharmed("after " + n.ID + " started again")
	}
	x.serves("after restarts")
	x.end(th)
}

// TestThiefLeavesWordInTheLog puts entries into the honest nodes' logs that have no
// effect, but say of each that it had more on its disk than it has. A node that starts
// is told what the others' logs say of it.
func TestThiefLeavesWordInTheLog(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{})
	th := x.thief()
	th.open()
	log := x.logOf(th)
	term := th.newest() + 1
	var entries []*raft.Log
	for _, n := range x.honest {
		data, err := wire.EncodeEntry(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: n.ID, Incarnation: 1 << 62, Watermark: 1 << 62}}})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: data})
	}
	entries = after(log, term, entries...)
	for _, id := range th.nodes() {
		r, err := th.claim(id, th.header(), term, log[len(log)-1], entries, entries[len(entries)-1].Index)
		t.Logf("registrations for %s: success %v, %v", id, r.Success, err)
	}
	x.serves("after forged registrations")
	for _, n := range x.honest {
		x.settle()
		n.Kill()
		if err := n.TryStart(); err != nil {
			t.Fatalf("%s does not start, by the word of a forged entry: %v", n.ID, err)
		}
		n.Unseal()
		x.c.WaitReady(n)
	}
	x.serves("after restarts")
	x.unharmed("after restarts")
	x.end(th)
}

// disables reports whether an entry disables a key.
func disables(l *raft.Log) bool {
	var e fsmpb.Entry
	if l.Type != raft.LogCommand || proto.Unmarshal(l.Data, &e) != nil {
		return false
	}
	for _, b := range e.GetBatches().GetBatches() {
		for _, r := range b.Records {
			for _, c := range r.Changes {
				if c.GetPutKey().GetState() == fsmpb.KeyState_KEY_STATE_DISABLED {
					return true
				}
			}
		}
	}
	return false
}

// TestThiefTellsNodesDifferentThings gives each honest node another entry at the same
// place, and enough behind it that they compare their states.
func TestThiefTellsNodesDifferentThings(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{})
	th := x.thief()
	th.open()
	log := x.logOf(th)
	term := th.newest() + 1
	empty, err := proto.Marshal(&fsmpb.Entry{Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range th.nodes() {
		entries := []*raft.Log{{Type: raft.LogNoop}}
		if i == 0 {
			entries[0] = &raft.Log{Type: raft.LogCommand, Data: empty}
		}
		for len(log)+len(entries) < 1010 {
			entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: empty})
		}
		entries = after(log, term, entries...)
		r, err := th.claim(id, th.header(), term, log[len(log)-1], entries, entries[len(entries)-1].Index)
		t.Logf("%d entries for %s: success %v, %v", len(entries), id, r.Success, err)
	}
	x.serves("after the thief told them different things")
	x.serves("after they compared their states")
	x.unharmed("after the thief told them different things")
	x.end(th)
}

// TestThiefDenies tries without end to keep the honest nodes from having a leader.
func TestThiefDenies(t *testing.T) {
	t.Parallel()
	for what, act := range map[string]func(x *heist, th *thief, node string, term uint64){
		"claims to lead": func(_ *heist, th *thief, node string, term uint64) {
			_, _ = th.claim(node, th.header(), term, nil, nil, 0)
		},
		"claims that another leads": func(x *heist, th *thief, node string, term uint64) {
			for _, n := range x.honest {
				if n.ID != node {
					head := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(n.ID), Addr: []byte(n.Peer)}
					_, _ = th.claim(node, head, term, nil, nil, 0)
					_, _ = th.claim(node, head, term, nil, []*raft.Log{{Index: 1, Term: term, Type: raft.LogCommand, Data: []byte("garbage")}}, 1)
				}
			}
		},
		"asks for votes": func(_ *heist, th *thief, node string, term uint64) {
			_ = th.raft.RequestVote(raft.ServerID(node), raft.ServerAddress(th.peers[node]), &raft.RequestVoteRequest{
				RPCHeader: th.header(), Term: term, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40, LeadershipTransfer: true,
			}, new(raft.RequestVoteResponse))
			_ = th.raft.RequestPreVote(raft.ServerID(node), raft.ServerAddress(th.peers[node]), &raft.RequestPreVoteRequest{
				RPCHeader: th.header(), Term: term, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40,
			}, new(raft.RequestPreVoteResponse))
		},
		"calls elections": func(_ *heist, th *thief, node string, _ uint64) {
			_ = th.raft.TimeoutNow(raft.ServerID(node), raft.ServerAddress(th.peers[node]), &raft.TimeoutNowRequest{RPCHeader: th.header()}, new(raft.TimeoutNowResponse))
		},
		"sends snapshots": func(_ *heist, th *thief, node string, term uint64) {
			_ = th.install(node, th.header(), term, &raft.SnapshotMeta{Index: 1 << 40, Term: term}, []byte("a snapshot"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			x := steal(t, theft{leads: true})
			th := x.thief()
			th.open()
			x.serves("before")
			done := make(chan struct{})
			ctx, stop := context.WithCancel(t.Context())
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					term := th.newest() + 1
					for _, node := range th.nodes() {
						act(x, th, node, term)
					}
					select {
					case <-time.After(30 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}()
			x.serves("while the thief " + what)
			// Once more: not in a lucky moment.
			time.Sleep(time.Second)
			x.serves("while the thief goes on")
			stop()
			<-done
			x.serves("after the thief stopped")
			if n := th.was("Submit") + th.was("Execute"); n > 0 {
				t.Errorf("the thief was sent %d batches and requests", n)
			}
			x.end(th)
		})
	}
}

// TestThiefEndsTerms claims the last term that there is: nobody could be elected
// after it.
func TestThiefEndsTerms(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{})
	th := x.thief()
	th.open()
	before := th.newest()
	for _, id := range th.nodes() {
		_, err := th.claim(id, th.header(), math.MaxUint64, nil, nil, 0)
		verr := th.raft.RequestVote(raft.ServerID(id), raft.ServerAddress(th.peers[id]), &raft.RequestVoteRequest{
			RPCHeader: th.header(), Term: math.MaxUint64 - 1, LeadershipTransfer: true,
		}, new(raft.RequestVoteResponse))
		t.Logf("the last terms at %s: %v, %v", id, err, verr)
	}
	x.serves("after the last term")
	for _, n := range x.honest {
		s, err := n.Status(t.Context())
		if term := s.GetRaft().GetTerm(); err != nil || term < before || term > before+1000 {
			t.Errorf("%s is in term %d, and was in %d: %v", n.ID, term, before, err)
		}
	}
	x.end(th)
}

// install sends an honest node a snapshot as its leader would.
func (th *thief) install(node string, head raft.RPCHeader, term uint64, meta *raft.SnapshotMeta, data []byte) error {
	configuration := raft.EncodeConfiguration(meta.Configuration)
	return th.installRaw(node, head, term, meta, configuration, data)
}

func (th *thief) installRaw(node string, head raft.RPCHeader, term uint64, meta *raft.SnapshotMeta, configuration, data []byte) error {
	var resp raft.InstallSnapshotResponse
	err := th.raft.InstallSnapshot(raft.ServerID(node), raft.ServerAddress(th.peers[node]), &raft.InstallSnapshotRequest{
		RPCHeader: head, SnapshotVersion: 1, Term: term, Leader: head.Addr, LastLogIndex: meta.Index, LastLogTerm: meta.Term,
		Configuration: configuration, ConfigurationIndex: meta.ConfigurationIndex, Size: int64(len(data)),
	}, &resp, bytes.NewReader(data))
	if err == nil && !resp.Success {
		err = errors.New("not taken")
	}
	return err
}

// snapshotIn is the newest snapshot of a data directory.
func snapshotIn(t *testing.T, data string) (meta *raft.SnapshotMeta, state []byte, path string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(data, "groups", "0", "raft", "snapshots", "*-*-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(name, "meta.json"))
		if err != nil || strings.HasSuffix(name, ".tmp") {
			continue
		}
		m := new(raft.SnapshotMeta)
		if err := json.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		if meta == nil || m.Index > meta.Index {
			meta, path = m, name
		}
	}
	if meta == nil {
		t.Fatalf("no snapshot in %s", data)
	}
	if state, err = os.ReadFile(filepath.Join(path, "state.bin")); err != nil {
		t.Fatal(err)
	}
	return meta, state, path
}

// TestThiefWithSnapshots has a disk, an older copy of it and the TLS identity. It
// sends the honest nodes what an unsealed node attested once, and what none did.
func TestThiefWithSnapshots(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{old: true})
	th := x.thief()
	th.open()
	old, oldState, _ := snapshotIn(t, x.old)
	now, state, _ := snapshotIn(t, x.disk)
	alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(th.id), Address: raft.ServerAddress(th.addr)}}}
	later := func(m raft.SnapshotMeta) *raft.SnapshotMeta { m.Index += 1000; return &m }
	others := func(m raft.SnapshotMeta) *raft.SnapshotMeta { m.Configuration = alone; return &m }
	newer := func(m raft.SnapshotMeta) *raft.SnapshotMeta { m.Term = 1 << 40; return &m }
	for _, tt := range []struct {
		what  string
		meta  *raft.SnapshotMeta
		state []byte
	}{
		{"an edited snapshot", now, enabledAgain(t, state, nil)},
		{"an edited old one", old, enabledAgain(t, oldState, nil)},
		{"an old one that is said to be new", later(*old), oldState},
		{"garbage", later(*now), []byte("garbage")},
		{"an old one", old, oldState},
		{"one with other nodes", others(*now), state},
		{"one that is said to be of a term to come", newer(*now), state},
	} {
		for _, id := range th.nodes() {
			if err := th.install(id, th.header(), th.newest()+1, tt.meta, tt.state); err == nil {
				t.Errorf("%s was taken by %s", tt.what, id)
			}
		}
		x.unharmed("after " + tt.what)
		x.serves("after " + tt.what)
		x.unharmed("after " + tt.what + ", with an honest leader")
	}
	x.end(th)
}

// TestThiefEndsNodes sends real processes what Raft itself does not survive.
func TestThiefEndsNodes(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{processes: true})
	th := x.thief()
	th.open()
	log := x.logOf(th)
	last := log[len(log)-1]
	for _, id := range th.nodes() {
		term := th.newest() + 1
		err := th.installRaw(id, th.header(), term, &raft.SnapshotMeta{Index: last.Index + 10, Term: term}, []byte{0xff, 0xff}, []byte("garbage"))
		t.Logf("a snapshot with a configuration that cannot be read, for %s: %v", id, err)
	}
	x.serves("after a configuration that cannot be read")
	log = x.logOf(th)
	last = log[len(log)-1]
	for _, id := range th.nodes() {
		term := th.newest() + 1
		gap := &raft.Log{Index: last.Index + 100, Term: term, Type: raft.LogNoop}
		r, err := th.claim(id, th.header(), term, last, []*raft.Log{gap}, gap.Index)
		t.Logf("a gap in the log of %s: success %v, %v", id, r.Success, err)
	}
	x.serves("after a gap in the log")
	x.end(th)
}

// TestThiefAsPeer has the TLS identity of a node and makes every call that nodes make
// to each other, and answers theirs with lies.
func TestThiefAsPeer(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{})
	th := x.thief()
	th.open()
	x.serves("with a liar for a follower")
	log := x.logOf(th)
	leader := x.c.Leader()
	other := x.honest[0]
	if other == leader {
		other = x.honest[1]
	}
	state := leader.InProcess().Cluster().State()
	me, _ := state.Node(th.id)
	them, _ := state.Node(other.ID)
	var forged fsmpb.Entry
	if err := proto.Unmarshal(x.forgeries(authentic(log))["a disabled key enabled, as "+th.id], &forged); err != nil {
		t.Fatal(err)
	}
	batch := func(node string, incarnation uint64) *clusterpb.SubmitRequest {
		b := proto.CloneOf(forged.GetBatches().Batches[0])
		b.Node, b.Incarnation = node, incarnation
		return &clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: b}}
	}
	register := func(node string) *clusterpb.SubmitRequest {
		return &clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Register{Register: &fsmpb.RegisterNode{Node: node, Incarnation: 1 << 62, Watermark: 1 << 62}}}
	}
	withMAC := func(r *clusterpb.SubmitRequest) *clusterpb.SubmitRequest {
		r.Generation, r.Mac = 1, make([]byte, 32)
		rand.Read(r.Mac)
		return r
	}
	submit := func(ctx context.Context, to clusterpb.PeerClient, r *clusterpb.SubmitRequest) (*clusterpb.SubmitResponse, error) {
		stream, err := to.Submit(ctx)
		if err != nil {
			return nil, err
		}
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return stream.Recv()
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	// By method, so that a new one makes this test fail until the thief has tried it.
	// Each is tried at the leader and at a follower. Submit comes last, as it has the
	// thief cut off.
	attacks := map[string]func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, node *harness.Node){
		"Hello": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			if r, err := to.Hello(ctx, &clusterpb.HelloRequest{Node: other.ID, LastIndex: math.MaxUint64}); err == nil {
				t.Errorf("Hello in another's name: %v", r)
			}
			if _, err := to.Hello(ctx, &clusterpb.HelloRequest{Node: th.id, LastIndex: math.MaxUint64, Bootstrap: []string{th.id + "=" + th.addr}}); err != nil {
				t.Errorf("Hello: %v", err)
			}
		},
		"Clock": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, node *harness.Node) {
			r, err := to.Clock(ctx, &clusterpb.ClockRequest{Nonce: nonce, NoGrowth: true})
			if err != nil || r.Node != node.ID {
				t.Errorf("Clock: %v, %v", r, err)
			}
			o := harness.UntilDefinite(func() harness.Op {
				_, o := x.h.At(node).CreateKey(ctx, "though the thief says that there is no room")
				return o
			})
			if o.Code != "" {
				t.Error(o)
			}
		},
		"ReadIndex": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			if r, err := to.ReadIndex(ctx, &clusterpb.ReadIndexRequest{}); err != nil || r.Index >= 1<<40 {
				t.Errorf("ReadIndex: %v, %v", r, err)
			}
		},
		"Probe": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			// It costs the disk a write, of which callers share one; there is nothing to learn.
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					if _, err := to.Probe(ctx, &clusterpb.ProbeRequest{}); err != nil {
						t.Errorf("Probe: %v", err)
					}
				})
			}
			all.Wait()
		},
		"Attest": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, node *harness.Node) {
			s := node.InProcess().Cluster().State()
			for what, r := range map[string]*clusterpb.AttestRequest{
				"no hash": {Index: s.Index()}, "a wrong hash": {Index: s.Index(), StateHash: make([]byte, 32)}, "an index to come": {Index: 1 << 40, StateHash: make([]byte, 32)},
			} {
				if a, err := to.Attest(ctx, r); err == nil {
					t.Errorf("Attest with %s: %v", what, a)
				}
			}
		},
		"Removed": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, node *harness.Node) {
			false64 := make([]byte, 64)
			rand.Read(false64)
			for what, proof := range map[string][]byte{"no proof": nil, "a false proof": false64} {
				for _, index := range []uint64{0, node.InProcess().Cluster().State().Index(), math.MaxUint64} {
					if _, err := to.Removed(ctx, &clusterpb.RemovedRequest{ConfigurationIndex: index, Generation: 1, Proof: proof}); err == nil {
						t.Errorf("Removed with %s and index %d is believed", what, index)
					}
				}
			}
		},
		"AskUnseal": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			for _, session := range [][]byte{nil, nonce, make([]byte, 1<<16)} {
				if r, err := to.AskUnseal(ctx, &clusterpb.AskUnsealRequest{Session: session}); err == nil && r.Refusal == "" {
					t.Errorf("AskUnseal with a session of %d bytes: a part was given", len(session))
				}
			}
		},
		"ChallengeUnseal": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			for _, n := range [][]byte{nil, nonce, make([]byte, 1<<16)} {
				if r, err := to.ChallengeUnseal(ctx, &clusterpb.ChallengeUnsealRequest{Nonce: n}); err == nil {
					t.Errorf("ChallengeUnseal of a node that did not ask: %v", r)
				}
			}
		},
		"DeliverUnseal": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			for _, part := range [][]byte{nil, nonce, make([]byte, 1<<16)} {
				if _, err := to.DeliverUnseal(ctx, &clusterpb.DeliverUnsealRequest{Nonce: nonce, Part: part}); err == nil {
					t.Errorf("DeliverUnseal of %d bytes to a node that did not ask is accepted", len(part))
				}
			}
		},
		"FetchAudit": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			stream, err := to.FetchAudit(ctx, &clusterpb.FetchAuditRequest{To: math.MaxUint64})
			for err == nil {
				_, err = stream.Recv() // sealed records; what is in them is looked for in the end
			}
		},
		"Execute": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, _ *harness.Node) {
			random := make([]byte, 500)
			rand.Read(random)
			for _, payload := range [][]byte{nil, []byte("{}"), random, []byte(`{"operation":"Decrypt","input":{}}`), []byte(`{"operator":"tester","seal":{}}`), make([]byte, 1<<20+1)} {
				if r, err := to.Execute(ctx, &clusterpb.ExecuteRequest{Payload: payload}); err == nil && !r.NotLeader {
					t.Errorf("Execute of %.40q: %q", payload, r.Payload)
				}
			}
		},
		"Submit": func(ctx context.Context, t *testing.T, to clusterpb.PeerClient, node *harness.Node) {
			for what, r := range map[string]*clusterpb.SubmitRequest{
				"a batch": batch(th.id, me.GetIncarnation()), "a registration": register(th.id),
			} {
				if a, err := submit(ctx, to, r); err != nil || a.Status != clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER {
					t.Errorf("%s without a MAC: %v, %v", what, a, err)
				}
			}
			for what, r := range map[string]*clusterpb.SubmitRequest{
				"another's batch": batch(other.ID, them.GetIncarnation()), "another's registration": register(other.ID), "nothing": {},
				"a batch of " + leader.ID: withMAC(batch(leader.ID, 1)),
			} {
				if a, err := submit(ctx, to, r); err == nil {
					t.Errorf("%s: %v", what, a)
				}
			}
			if a, err := submit(ctx, to, withMAC(batch(th.id, me.GetIncarnation()))); err == nil {
				t.Errorf("a batch with a false MAC: %v", a)
			}
			if a, err := submit(ctx, to, withMAC(register(th.id))); err == nil {
				t.Errorf("a registration with a false MAC: %v", a)
			}
		},
	}
	desc := clusterpb.Peer_ServiceDesc
	var methods []string
	for _, m := range desc.Methods {
		methods = append(methods, m.MethodName)
	}
	for _, s := range desc.Streams {
		methods = append(methods, s.StreamName)
	}
	slices.SortFunc(methods, func(a, b string) int { // Submit last
		return strings.Compare(strings.Replace(a, "Submit", "~", 1), strings.Replace(b, "Submit", "~", 1))
	})
	for _, m := range methods {
		attack := attacks[m]
		if attack == nil {
			t.Errorf("nodes serve %s to each other: the thief has to try it", m)
			continue
		}
		for _, n := range x.honest {
			t.Run(m+" at "+n.ID, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				attack(ctx, t, th.peer(n.ID), n)
			})
		}
		x.c.NoFaults()
	}
	// Keys were made, by honest clients; all else is what it was.
	for what, row := range x.state(x.honest[0]) {
		if _, was := x.before[what]; !was && strings.Contains(what, "key ") {
			x.before[what] = row
		}
	}
	x.unharmed("after all calls")
	x.serves("after all calls")
	x.named()
	if th.was("challenge") == 0 {
		t.Error("void: nobody asked the thief for its clock")
	}

	// The identity is nobody's at the ports for clients.
	for _, n := range x.honest {
		asClient(t, x, th, n)
	}

	// A node that starts again is not kept from it by what the thief says of its past.
	th.mu.Lock()
	th.hello = &clusterpb.HelloResponse{
		Node: th.id, Formed: true, Registered: true, Watermark: 1 << 62, Incarnation: 1 << 62,
		// Nor by who the members are.
		ConfigurationIndex: 1 << 62, Generation: 1, ConfigurationProof: make([]byte, 64),
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(th.id), Address: raft.ServerAddress(th.addr)}}}),
	}
	th.mu.Unlock()
	x.settle()
	other.Kill()
	// Once an honest node is heard, which a busy machine may delay.
	x.c.Eventually(other.ID+" to start whatever the thief says of it", func(context.Context) error { return other.TryStart() })
	other.Unseal()
	x.c.WaitReady(other)
	x.serves("after a restart")
	if th.was("Hello") == 0 {
		t.Error("void: nobody greeted the thief")
	}
	x.end(th)
}

// asClient tries every method of the gRPC API and the AWS API with a node's
// certificate.
func asClient(t *testing.T, x *heist, th *thief, n *harness.Node) {
	t.Helper()
	conn := dialGRPC(t, n, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: th.roots, Certificates: []tls.Certificate{th.cert}})
	open := []string{"Operator/Status", "Operator/Challenge", "STS/AssumeRoleWithWebIdentity"} // to anybody
	tried := 0
	for _, desc := range []grpc.ServiceDesc{kmspb.KMS_ServiceDesc, kmspb.Operator_ServiceDesc, kmspb.Session_ServiceDesc, kmspb.Audit_ServiceDesc, kmspb.Cluster_ServiceDesc, iampb.IAM_ServiceDesc, iampb.STS_ServiceDesc} {
		var methods []string
		for _, m := range desc.Methods {
			methods = append(methods, m.MethodName)
		}
		for _, s := range desc.Streams {
			methods = append(methods, s.StreamName)
		}
		for _, m := range methods {
			tried++
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			var out []byte
			err := conn.Invoke(ctx, "/"+desc.ServiceName+"/"+m, []byte{}, &out, grpc.ForceCodec(rawCodec{}))
			cancel()
			code := status.Code(err)
			short := desc.ServiceName[strings.LastIndexByte(desc.ServiceName, '.')+1:] + "/" + m
			if code != codes.Unauthenticated && code != codes.PermissionDenied && !slices.Contains(open, short) {
				t.Errorf("%s with a node's certificate at %s: %v", short, n.ID, err)
			}
		}
	}
	if tried < 150 {
		t.Errorf("only %d methods were tried", tried)
	}
	f := harness.NewFace(t, x.c, n)
	f.HTTP = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: th.roots, Certificates: []tls.Certificate{th.cert}},
	}}
	f.Refuses("a request with a node's certificate and no signature", f.Request("TrentService.ListKeys", "{}"), http.StatusBadRequest, "MissingAuthenticationTokenException")
}

// TestThiefLiesAboutStoring: the thief says that it has stored what it has not, while
// it keeps the honest follower from storing it, and has that one elected.
func TestThiefLiesAboutStoring(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{})
	th := x.thief()
	th.open()
	x.serves("before")
	acknowledged := 0
	for i := range 8 {
		leader := x.c.Leader()
		follower := x.honest[0]
		if follower == leader {
			follower = x.honest[1]
		}
		at := x.h.At(leader)
		term := th.newest() + 1
		_ = th.raft.RequestVote(raft.ServerID(follower.ID), raft.ServerAddress(follower.Peer), &raft.RequestVoteRequest{
			RPCHeader: th.header(), Term: term, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40, LeadershipTransfer: true,
		}, new(raft.RequestVoteResponse))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		var o harness.Op
		if i%2 == 0 {
			o = at.DisableKey(ctx, x.live)
		} else {
			o = at.EnableKey(ctx, x.live)
		}
		cancel()
		_ = th.raft.TimeoutNow(raft.ServerID(follower.ID), raft.ServerAddress(follower.Peer), &raft.TimeoutNowRequest{RPCHeader: th.header()}, new(raft.TimeoutNowResponse))
		if o.Code == "" {
			acknowledged++
		}
		// What was acknowledged holds on every node.
		want := map[bool]string{true: "Disabled", false: "Enabled"}[i%2 == 0]
		if err := harness.Poll(t.Context(), servesWithin, func(ctx context.Context) error {
			for _, n := range x.honest {
				state, d := x.h.At(n).DescribeKey(ctx, x.live)
				if !d.Definite() {
					return errors.New(d.String())
				}
				if o.Code == "" && state != want {
					t.Errorf("round %d: %s says that the key is %s, and %s was acknowledged", i, n.ID, state, o)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d changes of 8 were acknowledged", acknowledged)
	x.servesAgain(x.honest[0])
	x.end(th)
}
