package iamops

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// attach attaches a managed policy to an entity.
func (k *kind[M]) attach(ev *request.Evaluation, name, policyARN string) error {
	return k.change(ev, name, map[string][]string{keyPolicyARN: {policyARN}}, func(m M) error {
		if !attachable(ev, policyARN) {
			return noSuch("Policy %s does not exist or is not attachable.", policyARN)
		}
		list := k.parts(m).policies
		at, found := slices.BinarySearch(*list, policyARN)
		switch quota := ev.Quotas.AttachedPolicies; {
		case found:
			return nil
		case len(*list) >= quota:
			return quotaExceeded("PoliciesPer"+k.title, quota)
		}
		*list = slices.Insert(*list, at, policyARN)
		return nil
	})
}

// detach detaches a managed policy from an entity.
func (k *kind[M]) detach(ev *request.Evaluation, name, policyARN string) error {
	return k.change(ev, name, map[string][]string{keyPolicyARN: {policyARN}}, func(m M) error {
		list := k.parts(m).policies
		at, found := slices.BinarySearch(*list, policyARN)
		if !found {
			return noSuch("Policy %s was not found.", policyARN)
		}
		*list = slices.Delete(*list, at, at+1)
		return nil
	})
}

// attached is a part of the list of an entity's attached policies.
type attached struct {
	policies  []iamapi.AttachedPolicy
	truncated *bool
	marker    *string
}

// listAttached lists the managed policies that are attached to an entity.
func (k *kind[M]) listAttached(ev *request.Evaluation, name string, pathPrefix *string, l paging) (out attached, err error) {
	m, err := k.find(ev, name, nil)
	if err != nil {
		return out, err
	}
	p, err := l.page(ev, name, or(pathPrefix, "/"))
	if err != nil {
		return out, err
	}
	list := slices.DeleteFunc(attachedPolicies(*k.parts(m).policies), func(a iamapi.AttachedPolicy) bool {
		return !strings.HasPrefix(pathOf(*a.PolicyArn), or(pathPrefix, "/"))
	})
	out.policies = []iamapi.AttachedPolicy{}
	out.marker, out.truncated, err = request.Fill(p, slices.Values(list), attachedName, func(a iamapi.AttachedPolicy) {
		out.policies = append(out.policies, a)
	})
	return out, err
}

// attachedPolicies returns policies by their ARNs, as answers list them: ordered by name.
func attachedPolicies(arns []string) []iamapi.AttachedPolicy {
	list := make([]iamapi.AttachedPolicy, 0, len(arns))
	for _, arn := range arns {
		list = append(list, iamapi.AttachedPolicy{PolicyName: new(nameOf(arn)), PolicyArn: new(arn)})
	}
	slices.SortFunc(list, func(a, b iamapi.AttachedPolicy) int { return strings.Compare(attachedName(a), attachedName(b)) })
	return list
}

// attachedName is the place of a policy in lists of attached policies. A policy of AWS may
// have the name of one of the account.
func attachedName(a iamapi.AttachedPolicy) string {
	if isAWS(*a.PolicyArn) {
		return *a.PolicyName + " "
	}
	return *a.PolicyName
}

// putBoundary sets the permissions boundary of an entity.
func (k *kind[M]) putBoundary(ev *request.Evaluation, name, policyARN string) error {
	return k.change(ev, name, map[string][]string{keyBoundary: {policyARN}}, func(m M) error {
		*k.parts(m).boundary = policyARN
		return checkBoundary(ev, policyARN)
	})
}

// deleteBoundary removes the permissions boundary of an entity, if it has one.
func (k *kind[M]) deleteBoundary(ev *request.Evaluation, name string) error {
	return k.change(ev, name, nil, func(m M) error {
		*k.parts(m).boundary = ""
		return nil
	})
}

// checkBoundary checks that a permissions boundary exists, unless it is empty.
func checkBoundary(ev *request.Evaluation, policyARN string) error {
	if policyARN != "" && !attachable(ev, policyARN) {
		return noSuch("Scope ARN: %s does not exist or is not attachable.", policyARN)
	}
	return nil
}

// boundaryKey returns the condition keys of a request that sets a permissions boundary.
func boundaryKey(policyARN string) map[string][]string {
	if policyARN == "" {
		return nil
	}
	return map[string][]string{keyBoundary: {policyARN}}
}

// boundaryOf returns a permissions boundary as answers have it; nil for "".
func boundaryOf(policyARN string) *iamapi.AttachedPermissionsBoundary {
	if policyARN == "" {
		return nil
	}
	return &iamapi.AttachedPermissionsBoundary{PermissionsBoundaryType: new("Policy"), PermissionsBoundaryArn: &policyARN}
}
