package bootstrap

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/level"
)

// TestLevelIsProven: a node that claims a level that would stop others has to be unsealed. At
// level 1 the proof is the one that the release before 0.2 knows.
func TestLevelIsProven(t *testing.T) {
	at := func(l uint32) *clusterpb.HelloResponse {
		return &clusterpb.HelloResponse{Node: "n1", Registered: true, Watermark: 5, Incarnation: 2, Level: l}
	}
	without := helloDigest("n2", []byte("nonce"), at(0))
	if helloDigest("n2", []byte("nonce"), at(1)) != without {
		t.Error("level 1 is signed, and the release before 0.2 does not know it")
	}
	if a, b := helloDigest("n2", []byte("nonce"), at(2)), helloDigest("n2", []byte("nonce"), at(3)); a == without || a == b {
		t.Error("the level is not signed")
	}
}

// TestLevelOfTheCluster: a node stops if another one says that the cluster writes what it
// cannot read, and says what to do.
func TestLevelOfTheCluster(t *testing.T) {
	j := New(Config{Node: "n1", Known: level.Range{Oldest: 2, Newest: 3}, State: fsm.New(fsm.Config{}).Current, Disk: emptyDisk(t)})
	for l, want := range map[uint32]string{
		0: "upgrade by one release at a time", // a node that does not say it has level 1
		1: "upgrade by one release at a time",
		2: "", 3: "",
		4: "a newer release wrote it, start that one (node n2 runs release 0.4.0)",
	} {
		err := j.object(helloResult{node: "n2", r: &clusterpb.HelloResponse{Level: l, Version: "0.4.0"}}, false)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrRelease) || !strings.Contains(err.Error(), want)) {
			t.Errorf("level %d: %v, want %q", l, err, want)
		}
	}
}

// TestOldReleaseGetsNoAnswer: a node that does not say which schemas it knows does not look
// at the level either. Above level 1 it is refused, with the reason.
func TestOldReleaseGetsNoAnswer(t *testing.T) {
	state := fsm.New(fsm.Config{})
	j := New(Config{
		Node: "n1", Known: level.Known, Release: "0.2.0", Disk: emptyDisk(t), Patience: time.Second, State: state.Current, Watermark: state.Watermark,
		Unsealed: func() bool { return false }, Sign: clustertest.SignOrigin, Log: slog.New(slog.DiscardHandler),
		Configuration: func() (uint64, raft.Configuration) { return 0, raft.Configuration{} },
	})
	old, now := &clusterpb.HelloRequest{Node: "n2", Nonce: peerproof.NewNonce()}, &clusterpb.HelloRequest{Node: "n2", SchemaMin: 1, SchemaMax: 1}
	if r, err := j.Answer(t.Context(), old); err != nil || r.Level != 1 || r.SchemaMax != level.Newest {
		t.Errorf("at level 1: %v, %v", r, err)
	}
	if err := j.refuse(old, 2); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "start release 0.2.0") {
		t.Errorf("at level 2: %v", err)
	}
	if err := j.refuse(now, 2); err != nil {
		t.Errorf("a node that looks at the level itself: %v", err)
	}
}
