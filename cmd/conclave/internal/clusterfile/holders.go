package clusterfile

import (
	"slices"

	"github.com/conclavekms/conclave/transport/iampb"
)

// holderCalls are the calls for the policies of a user, a group or a role.
type holderCalls struct {
	kind string
	// attached lists the ARNs of a page of the attached policies.
	attached func(doing, name string, marker *string) (arns []string, next *string, err error)
	attach   func(doing, name, arn string) error
	// inline returns an inline policy, and whether there is one.
	inline func(doing, name, policy string) (document string, found bool, err error)
	put    func(doing, name, policy, document string) error
}

// hold makes the policies of a user, a group or a role.
func (m *maker) hold(h holderCalls, want *Holder) error {
	doing := "giving " + h.kind + " " + want.Name + " its policies"
	if len(want.Policies) > 0 {
		var attached []string
		err := pages(func(marker *string) (*string, error) {
			arns, next, err := h.attached(doing, want.Name, marker)
			attached = append(attached, arns...)
			return next, err
		})
		if err != nil {
			return err
		}
		for _, name := range want.Policies {
			it := Item{Kind: "attachment", Name: shortPolicy(name) + " to " + h.kind + " " + want.Name, State: Unchanged}
			if arn := m.file.policyARN(name); !slices.Contains(attached, arn) {
				if err := h.attach(doing, want.Name, arn); err != nil {
					return err
				}
				it.State = Created
			}
			m.note(it)
		}
	}
	for _, name := range sortedKeys(want.Inline) {
		it := Item{Kind: "inline policy", Name: name + " of " + h.kind + " " + want.Name, State: Unchanged}
		document, found, err := h.inline(doing, want.Name, name)
		switch {
		case err != nil:
			return err
		case found:
			it.compareDocument("document", document, want.Inline[name])
		default:
			if err := h.put(doing, want.Name, name, string(want.Inline[name])); err != nil {
				return err
			}
			it.State = Created
		}
		m.note(it)
	}
	return nil
}

func arns(list []*iampb.AttachedPolicy) (all []string) {
	for _, p := range list {
		all = append(all, p.GetPolicyArn())
	}
	return all
}

func userCalls(m *maker) holderCalls {
	c := m.c.IAM()
	return holderCalls{
		kind: "user",
		attached: func(doing, name string, marker *string) ([]string, *string, error) {
			res, err := ask(m, doing, c.ListAttachedUserPolicies, &iampb.ListAttachedUserPoliciesRequest{UserName: &name, Marker: marker})
			return arns(res.GetAttachedPolicies()), optional(res.GetMarker()), err
		},
		attach: func(doing, name, arn string) error {
			_, err := ask(m, doing, c.AttachUserPolicy, &iampb.AttachUserPolicyRequest{UserName: &name, PolicyArn: &arn})
			return err
		},
		inline: func(doing, name, policy string) (string, bool, error) {
			res, err := look(m, doing, c.GetUserPolicy, &iampb.GetUserPolicyRequest{UserName: &name, PolicyName: &policy})
			return res.GetPolicyDocument(), res != nil, err
		},
		put: func(doing, name, policy, document string) error {
			_, err := ask(m, doing, c.PutUserPolicy, &iampb.PutUserPolicyRequest{UserName: &name, PolicyName: &policy, PolicyDocument: &document})
			return err
		},
	}
}

func groupCalls(m *maker) holderCalls {
	c := m.c.IAM()
	return holderCalls{
		kind: "group",
		attached: func(doing, name string, marker *string) ([]string, *string, error) {
			res, err := ask(m, doing, c.ListAttachedGroupPolicies, &iampb.ListAttachedGroupPoliciesRequest{GroupName: &name, Marker: marker})
			return arns(res.GetAttachedPolicies()), optional(res.GetMarker()), err
		},
		attach: func(doing, name, arn string) error {
			_, err := ask(m, doing, c.AttachGroupPolicy, &iampb.AttachGroupPolicyRequest{GroupName: &name, PolicyArn: &arn})
			return err
		},
		inline: func(doing, name, policy string) (string, bool, error) {
			res, err := look(m, doing, c.GetGroupPolicy, &iampb.GetGroupPolicyRequest{GroupName: &name, PolicyName: &policy})
			return res.GetPolicyDocument(), res != nil, err
		},
		put: func(doing, name, policy, document string) error {
			_, err := ask(m, doing, c.PutGroupPolicy, &iampb.PutGroupPolicyRequest{GroupName: &name, PolicyName: &policy, PolicyDocument: &document})
			return err
		},
	}
}

func roleCalls(m *maker) holderCalls {
	c := m.c.IAM()
	return holderCalls{
		kind: "role",
		attached: func(doing, name string, marker *string) ([]string, *string, error) {
			res, err := ask(m, doing, c.ListAttachedRolePolicies, &iampb.ListAttachedRolePoliciesRequest{RoleName: &name, Marker: marker})
			return arns(res.GetAttachedPolicies()), optional(res.GetMarker()), err
		},
		attach: func(doing, name, arn string) error {
			_, err := ask(m, doing, c.AttachRolePolicy, &iampb.AttachRolePolicyRequest{RoleName: &name, PolicyArn: &arn})
			return err
		},
		inline: func(doing, name, policy string) (string, bool, error) {
			res, err := look(m, doing, c.GetRolePolicy, &iampb.GetRolePolicyRequest{RoleName: &name, PolicyName: &policy})
			return res.GetPolicyDocument(), res != nil, err
		},
		put: func(doing, name, policy, document string) error {
			_, err := ask(m, doing, c.PutRolePolicy, &iampb.PutRolePolicyRequest{RoleName: &name, PolicyName: &policy, PolicyDocument: &document})
			return err
		},
	}
}
