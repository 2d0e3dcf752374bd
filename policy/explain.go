package policy

// Explain returns the message of a denial, worded as in AWS's
// AccessDeniedException, since clients and people look for these words. It is
// empty for an Allow. The message names the principal, action and resource of
// the request and reveals nothing about the policy.
func (d Decision) Explain(req Request) string {
	if d.Allowed() {
		return ""
	}
	kind := ""
	switch d.Reason {
	case ReasonKeyPolicy:
		kind = "resource-based policy"
	case ReasonIdentityPolicy:
		kind = "identity-based policy"
	}
	why := ""
	switch {
	case kind == "":
	case d.Effect == ExplicitDeny && d.Reason == ReasonIdentityPolicy:
		why = " with an explicit deny in an " + kind
	case d.Effect == ExplicitDeny:
		why = " with an explicit deny in a " + kind
	default:
		why = " because no " + kind + " allows the " + req.Action + " action"
	}
	return "User: " + req.Principal.String() + " is not authorized to perform: " + req.Action +
		" on resource: " + req.Resource + why
}
