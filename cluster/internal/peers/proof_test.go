package peers

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// proves is a Node that does nothing but prove itself, if it is unsealed.
type proves struct {
	Node
	sealed bool
}

func (p proves) State() *fsm.State { return fsm.New(fsm.Config{}).Current() }

func (p proves) Sign(domain string, digest [32]byte) (uint32, []byte, error) {
	if p.sealed {
		return 0, nil, commit.ErrSealed
	}
	return clustertest.SignOrigin(domain, digest)
}

// asked is the client of a service that answers with that function.
type asked struct {
	clusterpb.PeerClient
	answer func(nonce []byte) *clusterpb.ClockResponse
}

func (a asked) Clock(_ context.Context, in *clusterpb.ClockRequest, _ ...grpc.CallOption) (*clusterpb.ClockResponse, error) {
	return a.answer(in.Nonce), nil
}

// Nothing goes to a leader that does not prove, now and to this node, that it is unsealed.
func TestChallenge(t *testing.T) {
	initialised := clustertest.Cluster()
	prove := func(node Node, verifier string, nonce []byte) *clusterpb.ClockResponse {
		r := &clusterpb.ClockResponse{Node: "n2"}
		(&server{node: node}).prove(r, verifier, nonce)
		return r
	}
	var earlier *clusterpb.ClockResponse
	honest := func(nonce []byte) *clusterpb.ClockResponse { return prove(proves{}, "n1", nonce) }
	for _, tt := range []struct {
		name    string
		cluster *fsmpb.Cluster
		answer  func(nonce []byte) *clusterpb.ClockResponse
		ok      bool
	}{
		{"an unsealed leader", initialised, func(nonce []byte) *clusterpb.ClockResponse {
			earlier = honest(nonce)
			return earlier
		}, true},
		{"its answer of before", initialised, func([]byte) *clusterpb.ClockResponse { return earlier }, false},
		{"its answer to another node", initialised, func(nonce []byte) *clusterpb.ClockResponse { return prove(proves{}, "n3", nonce) }, false},
		{"a sealed leader", initialised, func(nonce []byte) *clusterpb.ClockResponse { return prove(proves{sealed: true}, "n1", nonce) }, false},
		{"another node", initialised, func(nonce []byte) *clusterpb.ClockResponse {
			r := &clusterpb.ClockResponse{Node: "n3"}
			(&server{node: proves{}}).prove(r, "n1", nonce)
			return r
		}, false},
		{"a sealed leader before the cluster is initialised", nil, func(nonce []byte) *clusterpb.ClockResponse {
			return prove(proves{sealed: true}, "n1", nonce)
		}, true},
	} {
		p := New(Config{ID: "n1", Cluster: func() *fsmpb.Cluster { return tt.cluster }})
		err := p.Challenge(t.Context(), "n2", asked{answer: tt.answer})
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, commit.ErrSealed) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
