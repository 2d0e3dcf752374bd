package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// TestRequestsOfAnotherGroup: each request about a Raft group that the node does not serve is
// refused, before the node does anything for it.
func TestRequestsOfAnotherGroup(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	f := c.followers()[0]
	client, err := f.peers.Client(c.leader().id)
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 10*time.Second)
	for group, refused := range map[uint32]bool{wire.Group: false, 1: true, 1 << 31: true} {
		for name, call := range map[string]func() error{
			"Hello": func() error {
				_, err := client.Hello(ctx, &clusterpb.HelloRequest{Group: group, Node: f.id})
				return err
			},
			"Execute": func() error {
				_, err := client.Execute(ctx, &clusterpb.ExecuteRequest{Group: group})
				return err
			},
			"Clock": func() error {
				_, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: group})
				return err
			},
			"Probe": func() error {
				_, err := client.Probe(ctx, &clusterpb.ProbeRequest{Group: group})
				return err
			},
			"ReadIndex": func() error {
				_, err := client.ReadIndex(ctx, &clusterpb.ReadIndexRequest{Group: group})
				return err
			},
			"Attest": func() error {
				_, err := client.Attest(ctx, &clusterpb.AttestRequest{Group: group})
				return err
			},
			"AskUnseal": func() error {
				_, err := client.AskUnseal(ctx, &clusterpb.AskUnsealRequest{Group: group})
				return err
			},
			"ChallengeUnseal": func() error {
				_, err := client.ChallengeUnseal(ctx, &clusterpb.ChallengeUnsealRequest{Group: group})
				return err
			},
			"DeliverUnseal": func() error {
				_, err := client.DeliverUnseal(ctx, &clusterpb.DeliverUnsealRequest{Group: group})
				return err
			},
			"FetchAudit": func() error {
				stream, err := client.FetchAudit(ctx, &clusterpb.FetchAuditRequest{Group: group})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			},
			"Submit": func() error {
				stream, err := client.Submit(ctx)
				if err != nil {
					return err
				}
				if err := stream.Send(&clusterpb.SubmitRequest{
					Group: group, Message: &clusterpb.SubmitRequest_Batch{Batch: &fsmpb.Batch{Node: f.id, Seq: 1}},
				}); err != nil {
					return err
				}
				if !refused {
					return stream.CloseSend()
				}
				_, err = stream.Recv()
				return err
			},
		} {
			err := call()
			got := status.Code(err) == codes.InvalidArgument && strings.Contains(err.Error(), wire.ErrGroup.Error())
			if got != refused {
				t.Errorf("%s about group %d: %v", name, group, err)
			}
		}
	}
}

// TestDataDirOfAnotherLayout: data of another group, or from before there were groups, is not
// taken for a new node's empty directory, and nothing is made beside it.
func TestDataDirOfAnotherLayout(t *testing.T) {
	for name, want := range map[string]string{
		"raft": "empty directory", "audit": "empty directory", "groups/1": "group 0 alone", "groups/x": "group 0 alone",
		"groups/0": "", "groups": "", ".": "",
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := openDataDir(dir, "n1", time.Now())
		if want == "" {
			if err != nil || d.hasJoined() {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if there, err := os.ReadDir(dir); err != nil || len(there) != 1 {
			t.Errorf("%s: there is %v now (%v)", name, there, err)
		}
	}

	dir := t.TempDir()
	d, err := openDataDir(dir, "n1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.joined(); err != nil {
		t.Fatal(err)
	}
	if d, err = openDataDir(dir, "n1", time.Now()); err != nil || !d.hasJoined() {
		t.Errorf("the node's own: %v", err)
	}
	d.file.Joined = append(d.file.Joined, 1)
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	if _, err := openDataDir(dir, "n1", time.Now()); !errors.Is(err, ErrDataDir) || !errors.Is(err, wire.ErrGroup) {
		t.Errorf("with Raft state of group 1 somewhere: %v", err)
	}
	if got, want := GroupDir("data"), filepath.Join("data", "groups", "0"); got != want {
		t.Errorf("group 0 is in %s, not in %s", got, want)
	}
}
