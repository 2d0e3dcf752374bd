package conformance

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestAuditBreakGlass: each step of a break-glass ceremony leaves one record, with who did it, from
// where and why, whether it was refused or not. What ends a ceremony by itself is in
// keyengine's tests.
func TestAuditBreakGlass(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	ctx, op := t.Context(), n.Operator()
	const reason = "the policies let nobody in"
	from := harness.Records(t, n)

	var want []string
	step := func(name string, err error, code string) {
		t.Helper()
		f, _ := client.FromError(err)
		if (err == nil) != (code == "") || err != nil && f.Type != code {
			t.Fatalf("%s: got error %v, want %q", name, err, code)
		}
		want = append(want, strings.TrimSpace(name+" "+code))
	}
	begin := func() *kmspb.BreakGlass {
		t.Helper()
		res, err := op.BeginBreakGlass(ctx, &kmspb.BeginBreakGlassRequest{Reason: reason})
		step("BeginBreakGlass", err, "")
		return res.GetCeremony()
	}
	var key *client.BreakGlassKey
	submit := func(b *kmspb.BreakGlass, share, code string) {
		t.Helper()
		_, made, err := client.SubmitBreakGlassShare(ctx, op, b, []byte(share))
		step("SubmitBreakGlassShare", err, code)
		if made != nil {
			key = made
		}
	}
	cancel := func(nonce []byte, code string) {
		t.Helper()
		_, err := op.CancelBreakGlass(ctx, &kmspb.CancelBreakGlassRequest{Nonce: nonce})
		step("CancelBreakGlass", err, code)
	}

	b := begin()
	_, err := op.BeginBreakGlass(ctx, &kmspb.BeginBreakGlassRequest{Reason: reason})
	step("BeginBreakGlass", err, "CeremonyInProgressException")
	submit(b, c.Shares[0], "")
	submit(b, c.Shares[0], "InvalidShareException")
	cancel(make([]byte, 16), "NoCeremonyException")
	cancel(b.GetNonce(), "")
	b = begin()
	for i := range harness.Threshold {
		submit(b, c.Shares[i], "")
	}
	if key == nil {
		t.Fatal("the threshold made no access key")
	}
	want = append(want, "CompleteBreakGlass")
	defer clear(key.Secret)

	var got []string
	for _, line := range harness.ReadAudit(t, n, from) {
		if !strings.Contains(line.EventName, "BreakGlass") {
			continue
		}
		got = append(got, strings.TrimSpace(line.EventName+" "+line.ErrorCode))
		if line.EventType != "ConclaveOperatorEvent" || line.SourceIPAddress != "127.0.0.1" || line.UserIdentity.Type != "ConclaveOperator" {
			t.Errorf("the record does not say which operator did it from where: %s", line.Raw)
		}
		if line.EventName != "CancelBreakGlass" && line.RequestParameters["reason"] != reason {
			t.Errorf("the record does not say why: %s", line.Raw)
		}
		if secret, _ := json.Marshal(string(key.Secret)); strings.Contains(line.Raw, strings.Trim(string(secret), `"`)) {
			t.Error("the secret is in a record")
		}
		if line.EventName == "CompleteBreakGlass" && !strings.Contains(line.Raw, key.ID) {
			t.Errorf("the record does not name the access key: %s", line.Raw)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got records %q, want %q", got, want)
	}
}
