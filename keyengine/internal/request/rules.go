package request

import (
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/policy"
)

// ownRules are the policies of a caller, with their names for the record: an ARN for a
// managed policy, and the ARN of the user, group or role with the policy's name for an
// inline one.
type ownRules struct {
	identity, session           []*policy.Document
	identityNames, sessionNames []string
	boundary                    *policy.Document
	boundaryName                string
}

// nothing is a policy that allows nothing. It stands for a policy that does not exist.
var nothing = &policy.Document{}

// rules returns the policies of the caller. They, and everything that says which they are,
// are added to the read set: a decision depends on all of them, as any could deny.
func (ev *Evaluation) rules() (*ownRules, error) {
	if ev.ownRules != nil {
		return ev.ownRules, nil
	}
	r, err := rulesOf(ev, &ev.who)
	if err == nil {
		ev.ownRules = r
	}
	return r, err
}

// rulesOf returns the policies of a principal.
func rulesOf(ev *Evaluation, who *iam.Entity) (*ownRules, error) {
	r := new(ownRules)
	partition := ev.Cluster().GetPartition()
	switch u, role := who.User, who.Role; {
	case u != nil:
		if err := r.add(ev, iam.UserARN(partition, u), u.Policies, u.Inline); err != nil {
			return nil, err
		}
		for _, id := range u.Groups {
			g := fsm.GroupByID(ev.State, who.Account, id)
			if g == nil {
				return nil, fmt.Errorf("user %s is in the group %s, which does not exist", u.Id, id)
			}
			ev.Note(fsmpb.Kind_KIND_GROUP, fsm.EntityID(who.Account, g.Name), g.Version)
			if err := r.add(ev, iam.GroupARN(partition, g), g.Policies, g.Inline); err != nil {
				return nil, err
			}
		}
		if err := r.limit(ev, u.Boundary); err != nil {
			return nil, err
		}
	case role != nil:
		if err := r.add(ev, iam.RoleARN(partition, role), role.Policies, role.Inline); err != nil {
			return nil, err
		}
		if err := r.limit(ev, role.Boundary); err != nil {
			return nil, err
		}
	}
	if s := who.Session; s != nil {
		if s.Policy != "" {
			doc, err := ev.Policies.parsed(policy.SessionPolicy, s.Policy, "session policy of "+s.AccessKey)
			if err != nil {
				return nil, err
			}
			r.session, r.sessionNames = append(r.session, doc), append(r.sessionNames, "inline")
		}
		for _, arn := range s.Policies {
			doc, err := managedPolicy(ev, policy.SessionPolicy, arn)
			if err != nil {
				return nil, err
			}
			r.session, r.sessionNames = append(r.session, doc), append(r.sessionNames, arn)
		}
	}
	return r, nil
}

// add adds the policies that are attached to a user, group or role, and its inline ones.
func (r *ownRules) add(ev *Evaluation, owner string, attached []string, inline []*fsmpb.InlinePolicy) error {
	for _, arn := range attached {
		doc, err := managedPolicy(ev, policy.IdentityPolicy, arn)
		if err != nil {
			return err
		}
		r.identity, r.identityNames = append(r.identity, doc), append(r.identityNames, arn)
	}
	for _, p := range inline {
		doc, err := ev.Policies.parsed(policy.IdentityPolicy, p.Document, "policy "+p.Name+" of "+owner)
		if err != nil {
			return err
		}
		r.identity, r.identityNames = append(r.identity, doc), append(r.identityNames, owner+" "+p.Name)
	}
	return nil
}

// limit sets the permissions boundary.
func (r *ownRules) limit(ev *Evaluation, arn string) (err error) {
	if arn != "" {
		r.boundary, err = managedPolicy(ev, policy.IdentityPolicy, arn)
		r.boundaryName = arn
	}
	return err
}

// managedPolicy returns the default version of a managed policy. One that does not exist
// allows nothing.
func managedPolicy(ev *Evaluation, kind policy.Kind, arn string) (*policy.Document, error) {
	if text, ok := policy.AWSManaged(arn); ok {
		return ev.Policies.parsed(kind, text, arn)
	}
	p := ManagedPolicy(ev, arn)
	if p == nil {
		return nothing, nil
	}
	// The policy is in the read set, and the text of its default version cannot change
	// without it.
	v, _ := fsm.Object[*fsmpb.PolicyVersion](ev.State, fsm.PolicyVersionID(fsm.Account(p.Account), p.Name, p.DefaultVersion))
	if v == nil {
		return nil, fmt.Errorf("policy %s has no version %d", arn, p.DefaultVersion)
	}
	return ev.Policies.parsed(kind, v.Document, arn)
}

// ManagedPolicy returns the customer managed policy with an ARN, or nil, and adds it to the
// read set.
func ManagedPolicy(ev *Evaluation, arn string) *fsmpb.Policy {
	a, err := policy.ParseARN(arn)
	if err != nil || a.Service != "iam" {
		return nil
	}
	account, ok := fsm.ParseAccount(a.Account)
	rest, isPolicy := strings.CutPrefix(a.Resource, "policy/")
	if !ok || !isPolicy {
		return nil
	}
	p := Read[*fsmpb.Policy](ev, fsm.EntityID(account, rest[strings.LastIndexByte(rest, '/')+1:]))
	if p == nil || iam.PolicyARN(ev.Cluster().GetPartition(), p) != arn {
		return nil
	}
	return p
}

// decide evaluates the policies of the caller together with that of the resource, which is
// nil if it has none, and a grant to the grantee, if there is one.
func (ev *Evaluation) decide(req policy.Request, resource *policy.Document, grantee *policy.Principal) (policy.Decision, error) {
	r, err := ev.rules()
	if err != nil {
		return policy.Decision{Statement: policy.NoStatement}, err
	}
	return policy.Evaluate(req, policy.Policies{Resource: resource, Grantee: grantee, Identity: r.identity, Boundary: r.boundary, Session: r.session}), nil
}

// name returns the name of the policy that a decision rests on, if it is one of the caller's.
func (r *ownRules) name(d policy.Decision) string {
	if r == nil || d.Statement == policy.NoStatement {
		return ""
	}
	switch d.Reason {
	case policy.ReasonIdentityPolicy:
		return r.identityNames[d.Policy]
	case policy.ReasonSessionPolicy:
		return r.sessionNames[d.Policy]
	case policy.ReasonBoundary:
		return r.boundaryName
	}
	return ""
}
