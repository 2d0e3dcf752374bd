package keyengine

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/level"
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

	if _, _, err := c.engine.FinalizeUpgrade(t.Context(), enginetest.Operator, func(context.Context) (uint32, []string) { return 2, nil }); err != nil {
		t.Fatal(err)
	}
	must[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", in)
	must[iamapi.GetOpenIDConnectProviderOutput](c, "GetOpenIDConnectProvider", get)
}
