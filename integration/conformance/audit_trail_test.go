package conformance

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
)

// trailOutcomes has a row for each operation of CloudTrail.
var trailOutcomes = map[string]struct {
	ok, invalid, failed harness.Members
	failure             string
}{
	"LookupEvents": {
		ok: harness.Members{"MaxResults": 1}, invalid: harness.Members{"LookupAttributes": []harness.Members{{"AttributeKey": "EventName"}}},
		failed: harness.Members{"MaxResults": 51}, failure: "InvalidMaxResultsException",
	},
}

// TestAuditCoverageOfCloudTrail is TestAuditCoverage for the operations of CloudTrail, by both
// names that clients have for them.
func TestAuditCoverageOfCloudTrail(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	f := harness.NewFace(t, c, n)
	f.Service = "cloudtrail"
	eve := *f // somebody without permissions
	eve.As = newUser(t, f, "eve")

	type expected struct{ operation, kind, code string }
	want := make(map[string]expected) // by request id
	ask := func(f *harness.Face, prefix, operation, kind string, in harness.Members, code string) {
		t.Helper()
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Send(f.Signed(prefix+"CloudTrail_20131101."+operation, string(raw)))
		if err != nil {
			t.Fatalf("%s, %s: %v", operation, kind, err)
		}
		if a.Type != code || (code == "") != (a.Status == http.StatusOK) {
			t.Errorf("%s, %s: got %d %s (%s), want %q", operation, kind, a.Status, a.Type, a.Message, code)
		}
		want[a.Header.Get("x-amzn-RequestId")] = expected{operation, kind, a.Type}
	}
	from := harness.Records(t, n)
	for _, op := range keyengine.OperationsOf(keyengine.CloudTrail) {
		row, ok := trailOutcomes[op.Name]
		if !ok {
			t.Errorf("%s has no row in trailOutcomes: say how it succeeds and fails", op.Name)
		}
		for _, prefix := range []string{"com.amazonaws.cloudtrail.v20131101.", ""} {
			ask(f, prefix, op.Name, "invalid", row.invalid, "ValidationException")
			ask(f, prefix, op.Name, "failed", row.failed, row.failure)
			ask(&eve, prefix, op.Name, "denied", row.ok, "AccessDeniedException")
			ask(f, prefix, op.Name, "ok", row.ok, "")
		}
	}
	seen := make(map[string]int)
	for _, line := range harness.ReadAudit(t, n, from) {
		w, ok := want[line.RequestID]
		if !ok {
			continue
		}
		seen[line.RequestID]++
		code := w.code
		if code == "AccessDeniedException" {
			code = "AccessDenied" // as CloudTrail writes it
		}
		if line.EventName != w.operation || line.ErrorCode != code || line.EventSource != "cloudtrail.amazonaws.com" || line.EventType != "AwsApiCall" || !line.ReadOnly {
			t.Errorf("%s, %s, answered %q: %s", w.operation, w.kind, w.code, line.Raw)
		}
	}
	for id, w := range want {
		if seen[id] != 1 {
			t.Errorf("%s, %s: %d records, want one", w.operation, w.kind, seen[id])
		}
	}

	// What is not there is refused in JSON.
	kms := *f
	kms.Service = "kms"
	f.Refuses("another operation", f.Signed("com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101.DeleteTrail", "{}"), http.StatusBadRequest, "UnknownOperationException")
	f.Refuses("an operation of KMS", f.Signed("TrentService.ListKeys", "{}"), http.StatusBadRequest, "UnknownOperationException")
	kms.Refuses("signed for KMS", kms.Signed("CloudTrail_20131101.LookupEvents", "{}"), http.StatusBadRequest, "UnknownOperationException")
	f.Refuses("no target", f.Signed("", "{}"), http.StatusBadRequest, "UnknownOperationException")
}
