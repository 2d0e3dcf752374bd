package simulateops

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/policy"
)

func getContextKeysForCustomPolicy(ev *request.Evaluation, in *iamapi.GetContextKeysForCustomPolicyInput) (*iamapi.GetContextKeysForCustomPolicyOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	list, err := parse(policy.IdentityPolicy, "PolicyInputList", in.PolicyInputList)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetContextKeysForCustomPolicyOutput{ContextKeyNames: contextKeys(list)}, nil
}

func getContextKeysForPrincipalPolicy(ev *request.Evaluation, in *iamapi.GetContextKeysForPrincipalPolicyInput) (*iamapi.GetContextKeysForPrincipalPolicyOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), *in.PolicySourceArn); err != nil {
		return nil, err
	}
	s, err := sourceOf(ev, *in.PolicySourceArn)
	if err != nil {
		return nil, err
	}
	list, err := parse(policy.IdentityPolicy, "PolicyInputList", in.PolicyInputList)
	if err != nil {
		return nil, err
	}
	own, _, err := s.policies(ev)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetContextKeysForPrincipalPolicyOutput{ContextKeyNames: contextKeys(append(own, list...))}, nil
}

// contextKeys returns the condition keys that policies use, each once, whatever its case.
func contextKeys(policies []*named) []string {
	seen := make(map[string]bool)
	keys := []string{}
	for _, p := range policies {
		for _, k := range p.document.ContextKeys() {
			if name := fsm.EntityName(k); !seen[name] {
				seen[name] = true
				keys = append(keys, k)
			}
		}
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
