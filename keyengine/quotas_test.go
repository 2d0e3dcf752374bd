package keyengine

import (
	"fmt"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestQuotas: each quota that is set holds, and the others are AWS's.
func TestQuotas(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	if r.first.services.Quotas != request.DefaultQuotas {
		t.Errorf("by default, the quotas are %+v", r.first.services.Quotas)
	}
	for _, name := range []string{"keys", "key-stores", "aliases-per-key", "tags-per-key", "grants-per-key", "rotations-per-key"} {
		if err := r.first.services.Quotas.Set(name, 2); err != nil {
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
			_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in(i))
			if i < 2 && err != nil {
				t.Errorf("%s within its quota: %v", tt.op, err)
			} else if i == 2 {
				wantError(t, err, tt.kind, "…")
			}
		}
	}
	r.newKey()
	r.cluster.advance(2e9) // keys are counted once a second
	_, err := call[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{})
	wantError(t, err, kmsapi.ErrLimitExceeded, "The account has 2 KMS keys and cannot have more.")

	for name, n := range map[string]int{"keys": 0, "key-stores": -1, "aliases-per-key": request.MaxQuota + 1, "": 1, "locks": 1} {
		if err := r.first.services.Quotas.Set(name, n); err == nil {
			t.Errorf("the quota %q can be %d", name, n)
		}
	}
}
