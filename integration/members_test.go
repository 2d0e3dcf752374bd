package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestMembersAreChangedByOperators: a change is made by the leader only, is in the audit log
// twice, and what would weaken the cluster is refused with the reason.
func TestMembersAreChangedByOperators(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{Configure: harness.LongElections})
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	l := c.Leader()
	other := c.Nodes[0]
	if other == l {
		other = c.Nodes[1]
	}
	c.Finalize()
	add := &kmspb.AddNodeRequest{NodeId: "spare", PeerAddress: "127.0.0.1:1"}
	if _, err := harness.Administration(other).AddNode(ctx, add); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), l.ID+" leads") {
		t.Errorf("%s, which follows %s, was asked: %v", other.ID, l.ID, err)
	}
	for range 2 { // the second time changes nothing
		if _, err := harness.Administration(l).AddNode(ctx, add); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := harness.Administration(l).PromoteNode(ctx, &kmspb.PromoteNodeRequest{NodeId: "spare"}); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a node that does not run gets a vote: %v", err)
	}
	res, err := harness.Administration(l).Members(ctx, &kmspb.MembersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetVoters() != 3 || res.GetReadyVoters() != 3 || res.GetFailureTolerance() != 1 || len(res.GetMembers()) != 4 {
		t.Errorf("members: %v", res)
	}
	if _, err := harness.Administration(l).RemoveNode(ctx, &kmspb.RemoveNodeRequest{NodeId: l.ID}); err == nil {
		t.Error("the leader removed itself")
	}
	if _, err := harness.Administration(l).SetNodeAddress(ctx, &kmspb.SetNodeAddressRequest{NodeId: "spare", PeerAddress: "127.0.0.1:2"}); err != nil {
		t.Error(err)
	}
	if _, err := harness.Administration(l).RemoveNode(ctx, &kmspb.RemoveNodeRequest{NodeId: "spare"}); err != nil {
		t.Error(err)
	}
	if _, err := harness.Administration(l).TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{NodeId: other.ID}); err != nil {
		t.Error(err)
	}
	want := []string{
		"AddNode begin ok", "AddNode end ok", "AddNode begin ok", "AddNode end ok", "PromoteNode begin ok", "PromoteNode end refused",
		"RemoveNode begin ok", "RemoveNode end refused", "SetNodeAddress begin ok", "SetNodeAddress end ok", "RemoveNode begin ok", "RemoveNode end ok", "TransferLeadership begin ok", "TransferLeadership end ok",
	}
	c.Eventually("the records of all changes", func(context.Context) error {
		var got []string
		for _, r := range harness.ReadAudit(t, other, 0) {
			if !slices.Contains([]string{"AddNode", "PromoteNode", "RemoveNode", "SetNodeAddress", "TransferLeadership"}, r.EventName) {
				continue
			}
			outcome := "ok"
			if r.ErrorCode != "" {
				outcome = "refused"
			}
			got = append(got, fmt.Sprint(r.EventName, " ", r.RequestParameters["phase"], " ", outcome))
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("recorded: %q", got)
		}
		return nil
	})
	c.NoFaults()
}
