package bootstrap

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// emptyDisk is the disk of a node that was never in a cluster.
func emptyDisk(t *testing.T) *Disk {
	t.Helper()
	st, err := raftlog.Open(t.TempDir(), time.Minute, raftlog.Hooks{}, nil, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	d, err := Inspect(st, raft.NewInmemSnapshotStore())
	if err != nil {
		t.Fatal(err)
	}
	d.Survey(t.Context())
	return d
}

// directly is the peer service of a node without a network between.
type directly struct {
	clusterpb.PeerClient
	to *Joiner
}

func (d directly) Hello(ctx context.Context, r *clusterpb.HelloRequest, _ ...grpc.CallOption) (*clusterpb.HelloResponse, error) {
	return d.to.Answer(ctx, r)
}

// An answer to Hello is proven for one asker, one nonce and what it says.
func TestHelloDigest(t *testing.T) {
	r := &clusterpb.HelloResponse{Node: "n1", Registered: true, Watermark: 5, Incarnation: 2}
	want := helloDigest("n2", []byte("nonce"), r)
	for name, got := range map[string][32]byte{
		"asker":       helloDigest("n9", []byte("nonce"), r),
		"nonce":       helloDigest("n2", []byte("other"), r),
		"node":        helloDigest("n2", []byte("nonce"), &clusterpb.HelloResponse{Node: "n9", Registered: true, Watermark: 5, Incarnation: 2}),
		"registered":  helloDigest("n2", []byte("nonce"), &clusterpb.HelloResponse{Node: "n1", Watermark: 5, Incarnation: 2}),
		"watermark":   helloDigest("n2", []byte("nonce"), &clusterpb.HelloResponse{Node: "n1", Registered: true, Watermark: 6, Incarnation: 2}),
		"incarnation": helloDigest("n2", []byte("nonce"), &clusterpb.HelloResponse{Node: "n1", Registered: true, Watermark: 5, Incarnation: 3}),
	} {
		if got == want {
			t.Errorf("%s is not signed", name)
		}
	}
}

// The asking node believes what an unsealed node says that is up to date, and takes
// nothing else for proven.
func TestAnswerIsProven(t *testing.T) {
	unsealed := func() bool { return true }
	upToDate := func(context.Context) error { return nil }
	for name, tt := range map[string]struct {
		unsealed func() bool
		barrier  func(context.Context) error
		cluster  *fsmpb.Cluster // that the asking node's disk knows
		answerer string
		want     bool
	}{
		"unsealed":               {unsealed, upToDate, clustertest.Cluster(), "n1", true},
		"sealed":                 {func() bool { return false }, upToDate, clustertest.Cluster(), "n1", false},
		"behind":                 {unsealed, func(context.Context) error { return fsm.ErrNoLeader }, clustertest.Cluster(), "n1", false},
		"asker knows no cluster": {unsealed, upToDate, nil, "n1", false},
		"in the name of another": {unsealed, upToDate, clustertest.Cluster(), "n3", false},
	} {
		t.Run(name, func(t *testing.T) {
			empty := fsm.New(fsm.Config{})
			answering := New(Config{
				Node: tt.answerer, Disk: emptyDisk(t), Patience: time.Second, State: empty.Current, Watermark: empty.Watermark,
				Unsealed: tt.unsealed, Barrier: tt.barrier,
				Sign: clustertest.SignOrigin,
				Configuration: func() (uint64, raft.Configuration) {
					return 7, raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1:1"}}}
				},
			})
			disk := emptyDisk(t)
			disk.survey.cluster = tt.cluster
			// A configuration is believed if the answer is, and otherwise a hint.
			learned := "nothing"
			asking := New(Config{
				Node: "n2", Disk: disk, State: empty.Current,
				Learn: func() func(uint64, raft.Configuration, bool) {
					return func(index uint64, c raft.Configuration, proven bool) {
						learned = fmt.Sprint(index, len(c.Servers), proven)
					}
				},
				Client: func(string) (clusterpb.PeerClient, error) { return directly{to: answering}, nil },
			})
			if _, got, err := asking.ask(t.Context(), "n1"); err != nil || got != tt.want {
				t.Errorf("proven = %v, %v; want %v", got, err, tt.want)
			}
			want := fmt.Sprint(7, 1, tt.want)
			if tt.answerer != "n1" {
				want = "nothing"
			}
			if learned != want {
				t.Errorf("learned %s, want %s", learned, want)
			}
		})
	}
}
