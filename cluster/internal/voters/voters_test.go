package voters

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clockguard"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// asker is a sealed node a of the cluster of a, b and c, before the cluster is initialised.
type asker struct{ Node }

func (asker) Voters() []string  { return []string{"a", "b", "c"} }
func (asker) CanLead() bool     { return true }
func (asker) LastIndex() uint64 { return 7 }
func (asker) NoGrowth() bool    { return true }
func (asker) Initialised() bool { return false }
func (asker) Unsealed() bool    { return false }

// others are b and c.
type others map[string]*other

func (o others) Client(node string) (clusterpb.PeerClient, error) {
	if n := o[node]; n != nil {
		return n, nil
	}
	return nil, errors.New("this node")
}

func (o others) Proven(r *clusterpb.ClockResponse, nonce []byte) bool {
	return len(nonce) > 0 && r.Proof != nil
}

// other is a node that answers, or hangs.
type other struct {
	clusterpb.PeerClient
	name   string // that it says it has
	wall   time.Duration
	proves bool
	hangs  bool
	asked  *clusterpb.ClockRequest
}

func (o *other) Clock(ctx context.Context, r *clusterpb.ClockRequest, _ ...grpc.CallOption) (*clusterpb.ClockResponse, error) {
	o.asked = r
	if o.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a := &clusterpb.ClockResponse{Node: o.name, Wall: time.Now().Add(o.wall).UnixNano(), CanLead: true}
	if o.proves {
		a.Proof = []byte{1}
	}
	return a, nil
}

func (o *other) Probe(ctx context.Context, _ *clusterpb.ProbeRequest, _ ...grpc.CallOption) (*clusterpb.ProbeResponse, error) {
	if o.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &clusterpb.ProbeResponse{}, nil
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func newVoters(t *testing.T, o others) *Voters {
	life := lifecycle.New(func(err error) { t.Errorf("fenced: %v", err) })
	t.Cleanup(func() { life.Stop(); life.Wait() })
	return New(Config{
		ID: "a", Heartbeat: time.Second, Clock: systemClock{}, Guard: clockguard.New(systemClock{}, "a"),
		Standings: standing.New(time.Second), Peers: o, Life: life, Log: slog.New(slog.DiscardHandler),
	}, asker{})
}

func nodes[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// TestAnswersCount: a node's answer is taken with its proof and its clock, one in another
// node's name is none, and one that does not come is not waited for.
func TestAnswersCount(t *testing.T) {
	for _, v := range []struct {
		what   string
		b, c   other
		want   []string
		proven []string
		differ bool
	}{
		{"both answer", other{name: "b"}, other{name: "c", proves: true}, []string{"b", "c"}, []string{"c"}, false},
		{"one hangs", other{name: "b", hangs: true}, other{name: "c", proves: true}, []string{"c"}, []string{"c"}, false},
		{"one has the other's name", other{name: "b", proves: true}, other{name: "b", proves: true}, []string{"b"}, []string{"b"}, false},
		{"both have another time", other{name: "b", wall: time.Hour}, other{name: "c", wall: time.Hour}, []string{"b", "c"}, nil, true},
	} {
		o := others{"b": &v.b, "c": &v.c}
		vs := newVoters(t, o)
		infos := vs.ReadClocks(t.Context(), 200*time.Millisecond)
		if got := nodes(infos); !slices.Equal(got, v.want) {
			t.Errorf("%s: answers of %v, want %v", v.what, got, v.want)
		}
		var proven []string
		for id, n := range o {
			if vs.cfg.Standings.Proven(id, time.Now()) {
				proven = append(proven, id)
			}
			if !n.asked.NoGrowth || len(n.asked.Nonce) == 0 {
				t.Errorf("%s: %s was asked %v", v.what, id, n.asked)
			}
			if heard := vs.Heard(id) > 0; heard != slices.Contains(v.want, id) {
				t.Errorf("%s: %s was heard: %v", v.what, id, heard)
			}
		}
		slices.Sort(proven)
		if !slices.Equal(proven, v.proven) {
			t.Errorf("%s: %v are known to be unsealed, want %v", v.what, proven, v.proven)
		}
		if got := vs.cfg.Guard.Disagrees(); got != v.differ {
			t.Errorf("%s: the clock disagrees: %v", v.what, got)
		}
	}
}

// TestProofIsForgotten: a node that does not prove itself when it is asked for proof counts
// as sealed, and one that does not answer as what it was.
func TestProofIsForgotten(t *testing.T) {
	for _, v := range []struct {
		what string
		now  other
		want bool
	}{
		{"it proves itself", other{name: "b", proves: true}, true},
		{"it proves nothing", other{name: "b"}, false},
		{"another node answers", other{name: "c"}, true},
	} {
		vs := newVoters(t, others{"b": &v.now})
		vs.cfg.Standings.Prove("b", time.Now())
		vs.AskForProof("b")
		if got := vs.cfg.Standings.Proven("b", time.Now()); got != v.want {
			t.Errorf("%s: it is known to be unsealed: %v", v.what, got)
		}
	}
}

func TestDisksThatAnswer(t *testing.T) {
	vs := newVoters(t, others{"b": {hangs: true}, "c": {}})
	infos := map[string]*clusterpb.ClockResponse{"b": {}, "c": {}, "a": {}}
	if got := nodes(vs.Answering(t.Context(), infos, 100*time.Millisecond)); !slices.Equal(got, []string{"c"}) {
		t.Errorf("disks of %v answer", got)
	}
}

// TestStatesOfUninitialisedClusters are not compared: nothing of the node is asked for.
func TestStatesOfUninitialisedClusters(t *testing.T) {
	newVoters(t, nil).CompareStates(t.Context(), "b", 5, make([]byte, 32))
}
