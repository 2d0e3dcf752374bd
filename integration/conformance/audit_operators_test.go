package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine/auditevents"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// A call is one call of the gRPC API that is not an operation of AWS.
type call struct {
	name string // as in auditevents.Calls
	do   func(context.Context) error
	// fails is the type of its error; "" for success.
	fails string
	// records are the events that it leaves, each with ! and the error's name if it has one.
	records []string
}

// elsewhere are the calls that need other machines or more than one node, with the tests of
// their records.
var elsewhere = map[string]string{
	"Joining/GetJoinAuthority": "TestJoin in keyengine/joining", "Joining/JoinCluster": "TestJoin in keyengine/joining",
	"Operator/GetNewShares": "TestRekey in keyengine", "Operator/InstallCRL": "certificates_test.go in integration",
	"Cluster/PromoteNode": "TestGrowReplaceShrink in integration/faults", "Session/Create": "how this test reads the log",
	"Cluster/ImportNodeCA": "TestImport in keyengine/joining", "Credentials/RevokeSessions": "TestRevokeSessions in keyengine", "Operator/Challenge": "a part of SubmitShare",
}

// TestAuditCoverageOfCalls makes every call of operators and callers, with success and with each
// refusal that depends on the cluster: each leaves the records that docs/audit-events.md says,
// with who asked from where.
func TestAuditCoverageOfCalls(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	c.Finalize()
	c.Eventually("waiting for the records of the unsealing, which come a little later", func(context.Context) error {
		left := map[string]bool{"Unseal": true, "StartNode": true}
		for _, rec := range n.ReadLog(0) {
			delete(left, rec.Name)
		}
		if len(left) > 0 {
			return fmt.Errorf("%v are not there", left)
		}
		return nil
	})
	w := &callWorld{t: t, c: c, n: n, next: harness.Records(t, n)}
	left := maps.Clone(auditevents.Calls)
	for name, test := range elsewhere {
		if _, ok := left[name]; !ok || test == "" {
			t.Errorf("there is no call %s", name)
		}
		delete(left, name)
	}
	for _, k := range slices.Concat(w.reads(), w.ceremonies(), w.members(), w.callers()) {
		delete(left, k.name)
		w.make(k)
	}
	w.seal()
	for _, name := range []string{"Init", "Seal", "SubmitShare", "ResetShares"} {
		delete(left, "Operator/"+name)
	}
	for name := range left {
		t.Errorf("%s has no row: say what it leaves in the audit log", name)
	}
	started := false
	for _, line := range harness.ReadAudit(t, n, 0) {
		started = started || line.EventName == "StartNode" && strings.Contains(line.Raw, `"release"`)
	}
	if !started {
		t.Error("there is no record of the node's start and its settings")
	}
}

type callWorld struct {
	t     *testing.T
	c     *harness.Cluster
	n     *harness.Node
	next  uint64 // the first record that was not read yet
	glass *kmspb.BreakGlass
	nonce []byte // of the ceremony that replaces keys
}

// make makes a call and reads what it left.
func (w *callWorld) make(k call) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), harness.Patience)
	defer cancel()
	err := k.do(ctx)
	f, _ := client.FromError(err)
	if (err == nil) != (k.fails == "") || err != nil && f.Type != k.fails {
		w.t.Errorf("%s: got %v, want %q", k.name, err, k.fails)
	}
	var got []string
	listed := auditevents.Calls[k.name].Events
	for _, line := range harness.ReadAudit(w.t, w.n, w.next) {
		w.next++
		if !slices.Contains(listed, line.EventName) {
			if line.EventName != "ReadAudit" && line.EventName != "CreateSession" && line.UserIdentity.Type != "AWSService" {
				w.t.Errorf("%s: a record that its row does not have: %s", k.name, line.Raw)
			}
			continue
		}
		if line.EventName == "ReadAudit" && k.name != "Audit/Read" {
			continue
		}
		got = append(got, strings.TrimSuffix(line.EventName+"!"+line.ErrorCode, "!"))
		kind := map[string]string{auditevents.Operator: "ConclaveOperator", auditevents.Call: "Root"}[line.EventType]
		if line.UserIdentity.Type != kind || line.SourceIPAddress != "127.0.0.1" {
			w.t.Errorf("%s: the record does not say who asked from where: %s", k.name, line.Raw)
		}
	}
	if k.name == "Audit/Read" && len(got) > 0 {
		got = got[:len(got)-1] // the last one is this test's own
	}
	if !slices.Equal(got, k.records) {
		w.t.Errorf("%s (%s): records %q, want %q", k.name, k.fails, got, k.records)
	}
}

// does makes a call of a method of a client, whose answer does not matter.
func does[In, Out any](method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := method(ctx, in)
		return err
	}
}

// reads are the calls that change nothing.
func (w *callWorld) reads() []call {
	op, admin := w.n.Operator(), harness.Administration(w.n)
	return []call{
		{name: "Operator/Status", do: does(op.Status, &kmspb.StatusRequest{})},
		{name: "Operator/GetBreakGlass", do: does(op.GetBreakGlass, &kmspb.GetBreakGlassRequest{})},
		{name: "Operator/GetKeyChange", do: does(op.GetKeyChange, &kmspb.GetKeyChangeRequest{})},
		{name: "Operator/GetShareSet", do: does(op.GetShareSet, &kmspb.GetShareSetRequest{})},
		{name: "Cluster/Members", do: does(admin.Members, &kmspb.MembersRequest{})},
		{name: "Cluster/UpgradeStatus", do: does(admin.UpgradeStatus, &kmspb.UpgradeStatusRequest{})},
		{name: "Cluster/GetPeerUnseal", do: does(admin.GetPeerUnseal, &kmspb.GetPeerUnsealRequest{})},
		{name: "Cluster/ListSeals", do: does(admin.ListSeals, &kmspb.ListSealsRequest{})},
		{name: "Cluster/GetNodeCA", do: does(admin.GetNodeCA, &kmspb.GetNodeCARequest{})},
		{name: "Operator/SaveSnapshot", records: []string{"SaveSnapshot"}, do: func(ctx context.Context) error {
			ss, err := op.SaveSnapshot(ctx, &kmspb.SaveSnapshotRequest{})
			for err == nil {
				_, err = ss.Recv()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}},
		{name: "Operator/CheckSnapshot", records: []string{"CheckSnapshot!ValidationException"}, fails: "ValidationException", do: func(ctx context.Context) error {
			ss, err := op.CheckSnapshot(ctx)
			if err == nil {
				_ = ss.Send(&kmspb.CheckSnapshotRequest{Data: []byte("no backup")}) // CloseAndRecv has the error
				_, err = ss.CloseAndRecv()
			}
			return err
		}},
	}
}

// ceremonies are those of an unsealed node.
func (w *callWorld) ceremonies() []call {
	op := w.n.Operator()
	begin := func(ctx context.Context) error {
		res, err := op.BeginBreakGlass(ctx, &kmspb.BeginBreakGlassRequest{Reason: "a test"})
		if err == nil {
			w.glass = res.GetCeremony()
		}
		return err
	}
	share := func(i int) func(context.Context) error {
		return func(ctx context.Context) error {
			_, _, err := client.SubmitBreakGlassShare(ctx, op, w.glass, []byte(w.c.Shares[i]))
			return err
		}
	}
	cancel := func(ctx context.Context) error {
		_, err := op.CancelBreakGlass(ctx, &kmspb.CancelBreakGlassRequest{Nonce: w.glass.GetNonce()})
		return err
	}
	calls := []call{
		{name: "Operator/BeginBreakGlass", fails: "ValidationException", do: does(op.BeginBreakGlass, &kmspb.BeginBreakGlassRequest{})},
		{name: "Operator/BeginBreakGlass", do: begin, records: []string{"BeginBreakGlass"}},
		{name: "Operator/BeginBreakGlass", do: begin, fails: "CeremonyInProgressException", records: []string{"BeginBreakGlass!CeremonyInProgressException"}},
		{name: "Operator/SubmitBreakGlassShare", do: share(0), records: []string{"SubmitBreakGlassShare"}},
		{name: "Operator/SubmitBreakGlassShare", do: share(0), fails: "InvalidShareException", records: []string{"SubmitBreakGlassShare!InvalidShareException"}},
		{name: "Operator/CancelBreakGlass", do: cancel, records: []string{"CancelBreakGlass"}},
		{name: "Operator/CancelBreakGlass", do: cancel, fails: "NoCeremonyException", records: []string{"CancelBreakGlass!NoCeremonyException"}},
	}
	for kind, event := range map[kmspb.KeyChangeKind]string{
		kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT: "RootRotation", kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING: "KeyringRotation",
	} {
		begin := func(ctx context.Context) error {
			res, err := op.BeginKeyChange(ctx, &kmspb.BeginKeyChangeRequest{Kind: kind})
			if err == nil {
				w.nonce = res.GetCeremony().GetNonce()
			}
			return err
		}
		give := func(i int) func(context.Context) error {
			return func(ctx context.Context) error {
				res, err := op.GetKeyChange(ctx, &kmspb.GetKeyChangeRequest{})
				if err == nil {
					_, _, err = client.SubmitKeyChangeShare(ctx, op, res.GetCeremony(), []byte(w.c.Shares[i]))
				}
				return err
			}
		}
		cancel := func(ctx context.Context) error {
			_, err := op.CancelKeyChange(ctx, &kmspb.CancelKeyChangeRequest{Nonce: w.nonce})
			return err
		}
		calls = append(calls, call{name: "Operator/BeginKeyChange", do: begin, records: []string{"Begin" + event}},
			call{name: "Operator/BeginKeyChange", do: begin, fails: "CeremonyInProgressException", records: []string{"Begin" + event + "!CeremonyInProgressException"}},
			call{name: "Operator/CancelKeyChange", do: cancel, records: []string{"Cancel" + event}},
			call{name: "Operator/CancelKeyChange", do: cancel, fails: "NoCeremonyException", records: []string{"CancelKeyChange!NoCeremonyException"}},
			call{name: "Operator/BeginKeyChange", do: begin, records: []string{"Begin" + event}})
		for i := range harness.Threshold {
			records := []string{"Submit" + event + "Share"}
			if i == harness.Threshold-1 {
				records = append(records, "Complete"+event)
			}
			calls = append(calls, call{name: "Operator/SubmitKeyChangeShare", do: give(i), records: records})
		}
	}
	named := new(kmspb.NameCustodiansRequest)
	for range harness.Shares {
		named.Custodians = append(named.Custodians, &kmspb.NamedCustodian{Name: "custodian " + string(rune('a'+len(named.Custodians)))})
	}
	return append(calls,
		call{name: "Operator/NameCustodians", do: does(op.NameCustodians, named), records: []string{"NameCustodians"}},
		call{name: "Operator/NameCustodians", do: does(op.NameCustodians, &kmspb.NameCustodiansRequest{}), fails: "ValidationException"},
		call{name: "Operator/ConfirmTime", do: does(op.ConfirmTime, &kmspb.ConfirmTimeRequest{}), records: []string{"ConfirmTime"}},
	)
}

// members are the changes of the members, and of how nodes are unsealed.
func (w *callWorld) members() []call {
	admin := harness.Administration(w.n)
	twice := func(name, code string) []string {
		return []string{name, strings.TrimSuffix(name+"!"+code, "!")}
	}
	add := &kmspb.AddNodeRequest{NodeId: "spare", PeerAddress: "127.0.0.1:1"}
	return []call{
		{name: "Cluster/FinalizeUpgrade", do: does(admin.FinalizeUpgrade, &kmspb.FinalizeUpgradeRequest{})},
		{name: "Cluster/AddNode", do: does(admin.AddNode, add), records: twice("AddNode", "")},
		{name: "Cluster/AddNode", do: does(admin.AddNode, &kmspb.AddNodeRequest{NodeId: "other", PeerAddress: "127.0.0.1:1"}), fails: "ValidationException", records: twice("AddNode", "ValidationException")},
		{name: "Cluster/SetNodeAddress", do: does(admin.SetNodeAddress, &kmspb.SetNodeAddressRequest{NodeId: "nobody", PeerAddress: "127.0.0.1:2"}), fails: "ValidationException", records: twice("SetNodeAddress", "ValidationException")},
		{name: "Cluster/RemoveNode", do: does(admin.RemoveNode, &kmspb.RemoveNodeRequest{NodeId: "spare"}), records: twice("RemoveNode", "")},
		{name: "Cluster/TransferLeadership", do: does(admin.TransferLeadership, &kmspb.TransferLeadershipRequest{NodeId: "nobody"}), fails: "KMSInvalidStateException", records: twice("TransferLeadership", "KMSInvalidStateException")},
		{name: "Cluster/SetPeerUnseal", do: does(admin.SetPeerUnseal, &kmspb.SetPeerUnsealRequest{}), records: []string{"SetPeerUnseal"}},
		{name: "Cluster/SetPeerUnseal", do: does(admin.SetPeerUnseal, &kmspb.SetPeerUnsealRequest{Agreements: 2}), fails: "ValidationException"},
		{name: "Cluster/RemoveSeal", do: does(admin.RemoveSeal, &kmspb.RemoveSealRequest{Name: "none"}), fails: "NotFoundException"},
		{name: "Cluster/RemoveNodeCA", do: does(admin.RemoveNodeCA, &kmspb.RemoveNodeCARequest{}), fails: "NotFoundException"},
		{name: "Cluster/CreateJoinToken", do: does(admin.CreateJoinToken, &kmspb.CreateJoinTokenRequest{NodeId: "new", PeerAddress: "127.0.0.1:3"}), fails: "NotFoundException"},
	}
}

// callers are the calls of callers, as the account's root user.
func (w *callWorld) callers() []call {
	root := w.n.Root()
	var made string
	ok := func(name, event string, do func(context.Context) error) call {
		return call{name: name, do: do, records: []string{event}}
	}
	mapping := &kmspb.CreateCertificateMappingRequest{Pattern: "spiffe://example.org/app", Principal: somebody}
	return []call{
		ok("Credentials/List", "ListCredentials", does(root.Credentials().List, &kmspb.ListCredentialsRequest{})),
		ok("Credentials/CreateAccessKey", "CreateAccessKey", func(ctx context.Context) (err error) {
			made, _, err = client.CreateAccessKey(ctx, root.Credentials())
			return err
		}),
		ok("Credentials/Delete", "DeleteCredential", func(ctx context.Context) error {
			_, err := root.Credentials().Delete(ctx, &kmspb.DeleteCredentialRequest{Id: made})
			return err
		}),
		{name: "Credentials/Delete", do: func(ctx context.Context) error {
			_, err := root.Credentials().Delete(ctx, &kmspb.DeleteCredentialRequest{Id: made})
			return err
		}, fails: "NoSuchEntity", records: []string{"DeleteCredential!NoSuchEntity"}},
		ok("Accounts/List", "ListAccounts", does(root.Accounts().List, &kmspb.ListAccountsRequest{})),
		ok("Accounts/Create", "CreateAccount", func(ctx context.Context) error {
			_, _, err := client.CreateAccount(ctx, root.Accounts(), "444455556666", "other")
			return err
		}),
		{name: "CertificateMappings/Create", do: does(root.CertificateMappings().Create, mapping), fails: "NoSuchEntity", records: []string{"CreateCertificateMapping!NoSuchEntity"}},
		ok("CertificateMappings/List", "ListCertificateMappings", does(root.CertificateMappings().List, &kmspb.ListCertificateMappingsRequest{})),
		{name: "CertificateMappings/Delete", do: does(root.CertificateMappings().Delete, &kmspb.DeleteCertificateMappingRequest{Pattern: "spiffe://example.org/x"}), fails: "NoSuchEntity", records: []string{"DeleteCertificateMapping!NoSuchEntity"}},
		ok("Audit/Read", "ReadAudit", func(ctx context.Context) error {
			ss, err := root.Audit().Read(ctx, &kmspb.ReadAuditRequest{From: w.next})
			for err == nil {
				_, err = ss.Recv()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}),
		ok("Audit/GetReceipt", "GetRecordReceipt", does(root.Audit().GetReceipt, &kmspb.GetRecordReceiptRequest{Record: &kmspb.GetRecordReceiptRequest_Index{}})),
		ok("Audit/Search", "SearchAudit", does(root.Audit().Search, &kmspb.SearchAuditRequest{Limit: 1})),
		{name: "Audit/Search", do: does(root.Audit().Search, &kmspb.SearchAuditRequest{}), fails: "ValidationException"},
		ok("Audit/ListSinks", "ListAuditSinks", does(root.Audit().ListSinks, &kmspb.ListAuditSinksRequest{})),
		{name: "Audit/ForgetSink", do: does(root.Audit().ForgetSink, &kmspb.ForgetAuditSinkRequest{}), fails: "ValidationException"},
		{name: "Audit/ForgetSink", do: does(root.Audit().ForgetSink, &kmspb.ForgetAuditSinkRequest{Name: "none"}), fails: "NotFoundException", records: []string{"ForgetAuditSink!NotFoundException"}},
		ok("Usage/Get", "GetUsage", does(root.Usage().Get, &kmspb.GetUsageRequest{})),
		ok("Usage/Keys", "ListKeyUsage", does(root.Usage().Keys, &kmspb.ListKeyUsageRequest{})),
	}
}

// seal seals the node, unseals it again and makes the calls of that, whose records are made
// afterwards.
func (w *callWorld) seal() {
	w.t.Helper()
	op, ctx := w.n.Operator(), w.t.Context()
	if _, _, err := client.Init(ctx, op, &kmspb.InitRequest{Shares: 1, Threshold: 1, Account: harness.Account, Region: harness.Region, Partition: "aws"}); err == nil {
		w.t.Error("a cluster was initialised twice")
	}
	harness.Must[*kmspb.SealResponse](w.t)(op.Seal(ctx, &kmspb.SealRequest{}))
	harness.Must[*kmspb.NodeStatus](w.t)(client.SubmitShare(ctx, op, []byte(w.c.Shares[0])))
	harness.Must[*kmspb.ResetSharesResponse](w.t)(op.ResetShares(ctx, &kmspb.ResetSharesRequest{}))
	w.n.Unseal()
	w.c.WaitReady()
	want := []string{"Seal", "SubmitShare", "ResetShares"}
	for range harness.Threshold {
		want = append(want, "SubmitShare")
	}
	want = append(want, "Unseal")
	w.c.Eventually("recording what happened while the node was sealed", func(context.Context) error {
		var got []string
		for _, line := range harness.ReadAudit(w.t, w.n, w.next) {
			if line.EventType == auditevents.Operator {
				got = append(got, strings.TrimSuffix(line.EventName+"!"+line.ErrorCode, "!"))
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("records %q, want %q", got, want)
		}
		return nil
	})
}
