package request

import (
	"strings"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// recovery has the actions, besides those of IAM, that break-glass credentials of an account's
// root user may perform: finding the keys of the account and replacing their policies. No
// policy is evaluated for them, as they are for keys whose policies let nobody in. What uses a
// key is not among them, so no use of a key is ever by break-glass credentials: they let
// somebody in, under a name of their own, and that shows in the audit log.
var recovery = map[string]bool{
	"kms:DescribeKey":       true,
	"kms:GetKeyPolicy":      true,
	"kms:ListAliases":       true,
	"kms:ListKeyPolicies":   true,
	"kms:ListKeys":          true,
	"kms:PutKeyPolicy":      true,
	"sts:GetCallerIdentity": true,
}

// decideBreakGlass decides a request with break-glass credentials. It leaves the actions of IAM
// to be decided as for every root user, and denies everything that it does not know.
func decideBreakGlass(req policy.Request) (policy.Decision, bool) {
	d := policy.Decision{Effect: policy.ExplicitDeny, Reason: policy.ReasonBreakGlass, Statement: policy.NoStatement}
	switch {
	case recovery[req.Action]:
		if req.Resource == "*" || ownResource(req) {
			d.Effect = policy.Allow
		}
	case strings.HasPrefix(req.Action, "iam:"):
		return policy.Decision{}, false
	}
	return d, true
}

// ownResource reports whether a resource belongs to the account of the caller.
func ownResource(req policy.Request) bool {
	arn, err := policy.ParseARN(req.Resource)
	return err == nil && arn.Account == req.Principal.Account && arn.Partition == req.Principal.Partition
}

// checkBreakGlass refuses operations that break-glass credentials may not perform, whether or not
// the operation needs a permission.
func checkBreakGlass(ev *Evaluation) error {
	if ev.who.BreakGlassUntil == 0 || ev.Op.Service == IAM {
		return nil
	}
	for _, action := range ev.Op.Actions {
		if !recovery[action] {
			return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: %s because break-glass credentials only recover access", ev.Principal(), action)
		}
	}
	return nil
}
