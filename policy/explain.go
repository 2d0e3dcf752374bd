package policy

// Explain returns the message of a denial, worded as in AWS's
// AccessDeniedException, since clients and people look for these words. It is
// empty for an Allow. The message names the principal, action and resource of
// the request and reveals nothing about the policy.
func (d Decision) Explain(req Request) string {
	if d.Allowed() {
		return ""
	}
	if req.Principal.Kind == KindFederated {
		return "Not authorized to perform " + req.Action
	}
	article, kind := "a ", ""
	switch d.Reason {
	case ReasonKeyPolicy:
		kind = "resource-based policy"
	case ReasonIdentityPolicy:
		article, kind = "an ", "identity-based policy"
	case ReasonTrustPolicy:
		article, kind = "the ", "role trust policy"
	case ReasonBoundary:
		kind = "permissions boundary"
	case ReasonSessionPolicy:
		kind = "session policy"
	}
	why := ""
	switch {
	case d.Reason == ReasonBreakGlass:
		why = " because break-glass credentials only recover access"
	case kind == "":
	case d.Effect == ExplicitDeny:
		why = " with an explicit deny in " + article + kind
	default:
		why = " because no " + kind + " allows the " + req.Action + " action"
	}
	return "User: " + req.Principal.String() + " is not authorized to perform: " + req.Action +
		" on resource: " + req.Resource + why
}
