package ops

import (
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func getKeyPolicy(ev *request.Evaluation, in *kmsapi.GetKeyPolicyInput) (*kmsapi.GetKeyPolicyOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := onlyPolicy(in.PolicyName); err != nil {
		return nil, err
	}
	p, _ := ev.KeyPolicy(t.ID)
	if p == nil {
		return nil, fmt.Errorf("key %s has no policy", t.ID)
	}
	text := binding.Document(ev.State, p.Document, p.Bindings, ev.Note)
	return &kmsapi.GetKeyPolicyOutput{Policy: &text, PolicyName: new(kmsapi.DefaultPolicyName)}, nil
}

func putKeyPolicy(ev *request.Evaluation, in *kmsapi.PutKeyPolicyInput) (*request.None, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := onlyPolicy(in.PolicyName); err != nil {
		return nil, err
	}
	was, _ := ev.KeyPolicy(t.ID)
	if was == nil {
		return nil, fmt.Errorf("key %s has no policy", t.ID)
	}
	bindings, err := request.CheckPolicy(ev, *in.Policy, t, was, request.IsSet(in.BypassPolicyLockoutSafetyCheck))
	if err != nil {
		return nil, err
	}
	putPolicy(ev, t.ID, *in.Policy, bindings)
	return &request.None{}, nil
}

func listKeyPolicies(ev *request.Evaluation, in *kmsapi.ListKeyPoliciesInput) (*kmsapi.ListKeyPoliciesOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 100, 1000, in.Marker, t.ARN)
	if err != nil {
		return nil, err
	}
	out := &kmsapi.ListKeyPoliciesOutput{PolicyNames: []string{}}
	out.NextMarker, out.Truncated, err = request.Fill(p, slices.Values([]string{kmsapi.DefaultPolicyName}), func(name string) string {
		return name
	}, func(name string) {
		out.PolicyNames = append(out.PolicyNames, name)
	})
	return out, err
}

// onlyPolicy checks the name of a key's policy. A key has a single one.
func onlyPolicy(name *string) error {
	if name != nil && *name != kmsapi.DefaultPolicyName {
		return kmsapi.Errorf(kmsapi.ErrNotFound, "No such policy exists")
	}
	return nil
}

func putPolicy(ev *request.Evaluation, id fsm.KeyID, doc string, bindings []*fsmpb.Binding) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Document: doc, Bindings: bindings,
	}}})
}
