package grpcapi

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestInitWithCustodians: the keys of all custodians that there can be arrive, and with them the
// number of shares must be left out. A node of the release before would ignore the keys and
// hand out shares in the clear; it refuses 0 shares instead.
func TestInitWithCustodians(t *testing.T) {
	t.Parallel()
	w := start(t, true, nil)
	op := kmspb.NewOperatorClient(w.dial(w.ca.issue(nil, "conclave://operator/alice")))
	req := &kmspb.InitRequest{AnswerKey: []byte("key"), Threshold: 2}
	for range 16 {
		req.Custodians = append(req.Custodians, &kmspb.CustodianKey{Name: "custodian", PublicKey: bytes.Repeat([]byte("k"), custodian.MaxKey)})
	}
	if _, err := op.Init(timed(t), req); err != nil {
		t.Fatal(err)
	}
	p := w.ceremony.params
	if p.Shares != 0 || len(p.Custodians) != 16 || p.Custodians[15].Name != "custodian" || len(p.Custodians[15].Key) != custodian.MaxKey {
		t.Errorf("the engine got %d shares and %d custodians", p.Shares, len(p.Custodians))
	}
	req.Shares = 16
	if _, err := op.Init(timed(t), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("with a number of shares: %v", err)
	}
}
