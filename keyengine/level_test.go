package keyengine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestFeatureLevel: what a later level allows is refused with what to do, and recorded, until
// the level is raised. An operation that only reads sees that there is nothing.
func TestFeatureLevel(t *testing.T) { // not parallel, as it changes the levels of forms
	defer level.Pretend(map[protoreflect.FullName]uint32{"conclave.fsm.v1.KIND_OIDC_PROVIDER": 2, "conclave.fsm.v1.Change.put_oidc_provider": 2})()
	c := newTestCluster(t)
	in := &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://a.example")}
	_, err := call[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", in)
	wantError(t, err, kmsapi.ErrUnsupported, "…")
	if err == nil || !strings.Contains(err.Error(), "feature level 2, and the cluster's is 1: run `conclave cluster upgrade finalize`") {
		t.Errorf("the error is %v", err)
	}
	if rec := c.lastRecord(); rec.EventName != "CreateOpenIDConnectProvider" || rec.ErrorCode != string(kmsapi.ErrUnsupported.Code) {
		t.Errorf("got record of %s with error %s", rec.EventName, rec.ErrorCode)
	}
	get := &iamapi.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: new("arn:aws:iam::" + testAccount + ":oidc-provider/a.example")}
	_, err = call[iamapi.GetOpenIDConnectProviderOutput](c, "GetOpenIDConnectProvider", get)
	wantError(t, err, iamapi.ErrNoSuchEntity, "…")

	c.finalize()
	must[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", in)
	must[iamapi.GetOpenIDConnectProviderOutput](c, "GetOpenIDConnectProvider", get)
}

// finalize raises the cluster's feature level to the newest one.
func (c *testCluster) finalize() {
	c.t.Helper()
	to := uint32(level.Newest)
	if _, _, err := c.engine.FinalizeUpgrade(c.t.Context(), enginetest.Operator, func(context.Context) (uint32, []string) { return to, nil }); err != nil {
		c.t.Fatal(err)
	}
}

// TestRecordsOfLevelBefore: until the upgrade is finalized, records have no fields that nodes of
// the release before cannot read. A request that another node forwards has them afterwards.
func TestRecordsOfLevelBefore(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	details := iam.TLS{Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Host: "kms.example", KeyExchange: "X25519MLKEM768"}
	n2 := c.engines["n2"]
	var index *uint64 // of the last record, by its answer
	record := func(do func(*iam.Caller) error) *auditpb.Record {
		t.Helper()
		caller := c.caller(c.root)
		caller.TLS = details
		if err := do(caller); err != nil {
			t.Fatal(err)
		}
		index = caller.Record
		return c.lastRecord()
	}
	here := func(caller *iam.Caller) error {
		_, err := callFor[kmsapi.DescribeKeyOutput](c, c.engine, caller, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	forwarded := func(caller *iam.Caller) error {
		_, err := n2.onLeader(t.Context(), caller, operationNamed("DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	refused := func(caller *iam.Caller) error {
		_, err := n2.onLeader(t.Context(), caller, operationNamed("DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: new("12345678-1234-1234-1234-123456789012")})
		if !errors.Is(err, kmsapi.ErrNotFound) {
			t.Errorf("a key that does not exist: %v", err)
		}
		return nil
	}
	for _, do := range []func(*iam.Caller) error{here, forwarded} {
		if rec := record(do); rec.Schema != auditlog.OldRecordSchema || rec.Tls.Host != "" || rec.Tls.KeyExchange != "" || rec.Tls.Cipher != details.Cipher {
			t.Errorf("at level 1, the record has schema %d and TLS %v", rec.Schema, rec.Tls)
		}
	}
	if index != nil {
		t.Errorf("at level 1, a node is told about record %d, which the release before cannot read", *index)
	}
	c.finalize()
	for _, do := range []func(*iam.Caller) error{here, forwarded, refused} {
		if rec := record(do); rec.Schema != auditlog.RecordSchema || rec.Tls.Host != details.Host || rec.Tls.KeyExchange != details.KeyExchange {
			t.Errorf("at level 2, the record has schema %d and TLS %v", rec.Schema, rec.Tls)
		}
		if last := c.Audit.Last(); index == nil || *index != last.Index {
			t.Errorf("at level 2, the answer names record %v; the record is %d", index, last.Index)
		}
	}
}
