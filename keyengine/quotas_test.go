package keyengine

import (
	"fmt"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Quotas that are set apply, and the defaults are those of AWS.
func TestQuotas(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, _ := c.newKey()
	if c.engine.services.Quotas != request.DefaultQuotas {
		t.Errorf("got default quotas %+v, want %+v", c.engine.services.Quotas, request.DefaultQuotas)
	}
	for _, name := range []string{"keys", "key-stores", "aliases-per-key", "tags-per-key", "grants-per-key", "rotations-per-key"} {
		if err := c.engine.services.Quotas.Set(name, 2); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		op   string
		in   func(i int) any
		kind *kmsapi.Error
	}{
		{"CreateAlias", func(i int) any {
			return &kmsapi.CreateAliasInput{AliasName: new(fmt.Sprintf("alias/%d", i)), TargetKeyId: &id}
		}, kmsapi.ErrLimitExceeded},
		{"TagResource", func(i int) any {
			return &kmsapi.TagResourceInput{KeyId: &id, Tags: []kmsapi.Tag{{TagKey: new(fmt.Sprint(i)), TagValue: new("")}}}
		}, kmsapi.ErrTag},
		{"CreateGrant", func(int) any {
			return &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}}
		}, kmsapi.ErrLimitExceeded},
		{"RotateKeyOnDemand", func(int) any { return &kmsapi.RotateKeyOnDemandInput{KeyId: &id} }, kmsapi.ErrLimitExceeded},
	}
	for _, tt := range tests {
		for i := range 3 {
			_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in(i))
			if i < 2 && err != nil {
				t.Errorf("%s within its quota: %v", tt.op, err)
			} else if i == 2 {
				wantError(t, err, tt.kind, "…")
			}
		}
	}
	c.newKey()
	c.Advance(2e9) // keys are counted once a second
	_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{})
	wantError(t, err, kmsapi.ErrLimitExceeded, "The account has 2 KMS keys and cannot have more.")

	for name, n := range map[string]int{"keys": 0, "key-stores": -1, "aliases-per-key": request.MaxQuota + 1, "": 1, "locks": 1} {
		if err := c.engine.services.Quotas.Set(name, n); err == nil {
			t.Errorf("quota %q can be set to %d", name, n)
		}
	}
}
