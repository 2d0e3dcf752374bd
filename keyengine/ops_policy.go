package keyengine

import (
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func getKeyPolicy(ev *eval, in *kmsapi.GetKeyPolicyInput) (*kmsapi.GetKeyPolicyOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := onlyPolicy(in.PolicyName); err != nil {
		return nil, err
	}
	p, _ := ev.keyPolicy(t.id)
	if p == nil {
		return nil, fmt.Errorf("key %s has no policy", t.id)
	}
	return &kmsapi.GetKeyPolicyOutput{Policy: new(p.Document), PolicyName: new(kmsapi.DefaultPolicyName)}, nil
}

func putKeyPolicy(ev *eval, in *kmsapi.PutKeyPolicyInput) (*none, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := onlyPolicy(in.PolicyName); err != nil {
		return nil, err
	}
	if err := checkPolicy(ev, *in.Policy, t.arn, isSet(in.BypassPolicyLockoutSafetyCheck)); err != nil {
		return nil, err
	}
	putPolicy(ev, t.id, *in.Policy)
	return &none{}, nil
}

func listKeyPolicies(ev *eval, in *kmsapi.ListKeyPoliciesInput) (*kmsapi.ListKeyPoliciesOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	p, err := pageOf(ev, in.Limit, 100, 1000, in.Marker, t.arn)
	if err != nil {
		return nil, err
	}
	out := &kmsapi.ListKeyPoliciesOutput{PolicyNames: []string{}}
	out.NextMarker, out.Truncated, err = fill(p, slices.Values([]string{kmsapi.DefaultPolicyName}), func(name string) string {
		return name
	}, func(name string) {
		out.PolicyNames = append(out.PolicyNames, name)
	})
	return out, err
}

// onlyPolicy: a key has one policy.
func onlyPolicy(name *string) error {
	if name != nil && *name != kmsapi.DefaultPolicyName {
		return kmsapi.Errorf(kmsapi.ErrNotFound, "No such policy exists")
	}
	return nil
}

func putPolicy(ev *eval, id fsm.KeyID, doc string) {
	ev.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Document: doc}}})
}
