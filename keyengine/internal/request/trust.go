package request

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

// AuthoriseRole checks whether the caller may perform an action of STS on a role. The role's
// trust policy decides together with the policies of the caller. r is nil if there is no
// role with that ARN. The caller is then denied with the same message as for a role that it
// may not assume, so that nobody learns the names of roles in this way: the message does not
// say which kind of policy decided.
func (ev *Evaluation) AuthoriseRole(r *fsmpb.Role, arn, action string, c *Conditions) error {
	trust := nothing
	if r != nil {
		var err error
		if trust, err = ev.Policies.bound(policy.TrustPolicy, r.Trust, r.TrustBindings, func() string { return "trust policy of " + arn }); err != nil {
			return err
		}
		c.Tags = r.Tags
	}
	c.ev, c.action, c.resource = ev, action, arn
	req := policy.Request{Principal: ev.Principal(), Action: action, Resource: arn, Context: c}
	d, err := decide(ev, req, trust, nil)
	if err != nil {
		return err
	}
	if r == nil && d.Reason == policy.ReasonKeyPolicy { // of the empty document
		d.Reason = policy.ReasonTrustPolicy
	}
	if err := ev.Decided(req, d, nil); err != nil {
		return ev.denial(policy.Decision{}.Explain(req))
	}
	return nil
}
