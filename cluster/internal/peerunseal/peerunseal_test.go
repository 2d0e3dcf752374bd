package peerunseal

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

var session = [32]byte{1, 2, 3}

// fakeNode is the node at the address in the Raft configuration, as a peer sees it.
type fakeNode struct {
	clusterpb.PeerClient // panics for what is not expected
	g                    *giver
	answer               *clusterpb.ChallengeUnsealResponse
	err                  error
	nonce                []byte
	part                 []byte
}

func (f *fakeNode) ChallengeUnseal(_ context.Context, r *clusterpb.ChallengeUnsealRequest, _ ...grpc.CallOption) (*clusterpb.ChallengeUnsealResponse, error) {
	f.nonce = r.Nonce
	if f.err != nil {
		return nil, f.err
	}
	a := proto.CloneOf(f.answer)
	if a.StateProof == nil {
		a.StateProof = stateProof(r.Nonce, "n2", "n1", a.StateIndex, f.g.state.Hash())
	}
	return a, nil
}

func (f *fakeNode) DeliverUnseal(_ context.Context, r *clusterpb.DeliverUnsealRequest, _ ...grpc.CallOption) (*clusterpb.DeliverUnsealResponse, error) {
	if string(r.Nonce) != string(f.nonce) {
		return nil, errors.New("another nonce")
	}
	f.part = r.Part
	return &clusterpb.DeliverUnsealResponse{}, nil
}

// fakeEngine is the engine of the peer.
type fakeEngine struct {
	unwilling string
	refusal   error
	released  []Asker
	suspects  []string
	during    func() // called by Release
}

func (e *fakeEngine) Willing() string { return e.unwilling }
func (e *fakeEngine) Release(_ context.Context, to Asker, nonce, answer []byte) ([]byte, error) {
	if e.during != nil {
		e.during()
	}
	if e.refusal != nil {
		return nil, e.refusal
	}
	e.released = append(e.released, to)
	return append([]byte("part for "), answer...), nil
}
func (e *fakeEngine) Suspect(node, reason string) { e.suspects = append(e.suspects, node+": "+reason) }
func (e *fakeEngine) Answer(string, []byte) ([32]byte, []byte, error) {
	return [32]byte{}, nil, errors.New("not asking")
}
func (e *fakeEngine) Accept(context.Context, string, []byte, []byte) error { return nil }

// giver is a peer, n1, that n2 asks.
type giver struct {
	*Peers
	state   *fsm.State
	node    *fakeNode
	engine  *fakeEngine
	members map[string]string
	proved  time.Time
	mark    uint64
	barrier error
	dialled []string
	dialErr error
	ended   int
}

func newGiver(t *testing.T) *giver {
	t.Helper()
	m := fsm.New(fsm.Config{})
	g := &giver{state: m.Current(), engine: new(fakeEngine), members: map[string]string{"n1": "one:1", "n2": "two:2", "n3": "three:3"}}
	g.node = &fakeNode{g: g, answer: &clusterpb.ChallengeUnsealResponse{Session: session[:], Answer: []byte("answer"), Incarnation: 8, DiskIndex: 20, StateIndex: 30}}
	g.Peers = New(Config{
		ID: "n1", Heartbeat: 500 * time.Millisecond,
		Members: func() map[string]string { return g.members },
		At: func(_ context.Context, node, addr string) (clusterpb.PeerClient, func(), error) {
			g.dialled = append(g.dialled, node+" at "+addr)
			return g.node, func() { g.ended++ }, g.dialErr
		},
		ProvedAt: func(string) time.Time { return g.proved },
		Registered: func(node string) *fsmpb.RegisterNode {
			if node == "n2" {
				return &fsmpb.RegisterNode{Node: node, Incarnation: 7, Watermark: 10}
			}
			return nil
		},
		StateAt: func(index uint64) *fsm.State {
			if index == 30 {
				return g.state
			}
			return nil
		},
		WaitApplied: func(context.Context, uint64) error { return nil },
		Watermark:   func(string) (uint64, bool) { return g.mark, true },
		Barrier:     func(context.Context) error { return g.barrier },
		Log:         slog.New(slog.DiscardHandler),
	})
	g.mark = 15
	g.SetUnsealer(g.engine)
	return g
}

// TestGive: a peer gives its part to the node at its address, and to no other, and names
// those that it suspects.
func TestGive(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*giver)
		refusal string // part of it; empty if the part is given
		suspect bool
		fails   bool // with an error instead of a refusal
	}{
		{name: "a node that restarted", change: func(*giver) {}},
		{name: "a node that answered without proof a while ago", change: func(g *giver) { g.proved = time.Now().Add(-time.Minute) }},
		{name: "this node is sealed", change: func(g *giver) { g.engine.unwilling = "it is sealed itself" }, refusal: "sealed itself"},
		{name: "a removed node", change: func(g *giver) { delete(g.members, "n2") }, refusal: "not a member"},
		{name: "a node that is removed meanwhile", change: func(g *giver) {
			members := g.members
			calls := 0
			g.Peers.cfg.Members = func() map[string]string {
				if calls++; calls > 1 {
					return map[string]string{"n1": members["n1"]}
				}
				return members
			}
		}, refusal: "not a member", suspect: true},
		{name: "it was unsealed a moment ago", change: func(g *giver) { g.proved = time.Now().Add(-time.Second) }, refusal: "wait"},
		{name: "it is unsealed", change: func(g *giver) { g.proved = time.Now().Add(time.Hour) }, refusal: "after another process had asked", suspect: true},
		{name: "no majority", change: func(g *giver) { g.barrier = errors.New("no leader") }, fails: true},
		{name: "nobody is at the address", change: func(g *giver) { g.dialErr = errors.New("connection refused") }, refusal: "is not at its address two:2", suspect: true},
		{name: "the node at the address has not asked", change: func(g *giver) { g.node.err = status.Error(codes.FailedPrecondition, "not asking") }, refusal: "has not asked", suspect: true},
		{name: "the node at the address does not answer", change: func(g *giver) { g.node.err = status.Error(codes.Unavailable, "gone") }, fails: true},
		{name: "the node at the address asks for itself", change: func(g *giver) { g.node.answer.Session = make([]byte, 32) }, refusal: "another session", suspect: true},
		{name: "an old process", change: func(g *giver) { g.node.answer.Incarnation = 7 }, refusal: "started before", suspect: true},
		{name: "a rolled-back disk", change: func(g *giver) { g.node.answer.DiskIndex = 14 }, refusal: "had been at index 15", suspect: true},
		{name: "a wiped disk", change: func(g *giver) { g.node.answer.DiskIndex, g.node.answer.StateIndex = 0, 0 }, refusal: "had been at index 15", suspect: true},
		{name: "a state that lags behind", change: func(g *giver) { g.node.answer.StateIndex = 14 }, refusal: "wait"},
		{name: "a state that is no longer kept", change: func(g *giver) { g.node.answer.StateIndex = 16 }, refusal: "no longer kept"},
		{name: "another state", change: func(g *giver) { g.node.answer.StateProof = make([]byte, 32) }, refusal: "differs", suspect: true},
		{name: "a replayed proof", change: func(g *giver) {
			g.node.answer.StateProof = stateProof(make([]byte, 32), "n2", "n1", 30, g.state.Hash())
		}, refusal: "differs", suspect: true},
		{name: "the engine refuses", change: func(g *giver) { g.engine.refusal = suspect("an old return key") }, refusal: "an old return key", suspect: true},
		{name: "it proves meanwhile that it is unsealed", change: func(g *giver) { g.engine.during = func() { g.proved = time.Now().Add(time.Millisecond) } }, refusal: "after another process had asked", suspect: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGiver(t)
			tt.change(g)
			refusal, err := g.Give(t.Context(), "n2", session)
			if (err != nil) != tt.fails || !strings.Contains(refusal, tt.refusal) || (refusal == "") != (tt.refusal == "") {
				t.Fatalf("refusal %q, error %v", refusal, err)
			}
			given := !tt.fails && tt.refusal == ""
			if (g.node.part != nil) != given {
				t.Errorf("the node got %q", g.node.part)
			}
			if given && (len(g.engine.released) != 1 || g.engine.released[0].Address != "two:2" || g.engine.released[0].Incarnation != 8 || strings.Join(g.engine.released[0].Members, ",") != "n1,n2,n3") {
				t.Errorf("released to %v", g.engine.released)
			}
			if (len(g.engine.suspects) > 0) != tt.suspect {
				t.Errorf("suspects %v", g.engine.suspects)
			}
			for _, d := range g.dialled {
				if d != "n2 at two:2" {
					t.Errorf("it connected to %s", d)
				}
			}
			if g.dialErr == nil && g.ended != len(g.dialled) {
				t.Errorf("%d of %d connections were closed", g.ended, len(g.dialled))
			}
			// What is suspicious is recorded once a minute.
			if _, err := g.Give(t.Context(), "n2", session); tt.suspect && len(g.engine.suspects) != 1 {
				t.Errorf("after the second question: %v, suspects %v", err, g.engine.suspects)
			}
		})
	}
}

// TestLimits: a node has one question at a time, and few in a short time.
func TestLimits(t *testing.T) {
	g := newGiver(t)
	started, release := make(chan struct{}), make(chan struct{})
	g.engine.during = func() {
		close(started)
		<-release
	}
	done := make(chan string)
	go func() {
		refusal, _ := g.Give(t.Context(), "n2", session)
		done <- refusal
	}()
	<-started
	if refusal, _ := g.Give(t.Context(), "n2", session); !strings.Contains(refusal, "is being answered") {
		t.Errorf("the second question at once: %q", refusal)
	}
	close(release)
	if refusal := <-done; refusal != "" {
		t.Errorf("the first question: %q", refusal)
	}
	g.engine.during = nil
	refused := ""
	for range burst + 1 {
		refused, _ = g.Give(t.Context(), "n2", session)
	}
	if !strings.Contains(refused, "too often") {
		t.Errorf("after many questions: %q", refused)
	}
	if len(g.engine.suspects) != 0 {
		t.Errorf("suspects %v", g.engine.suspects)
	}
}
