package policy

import (
	"strings"
	"time"
)

// A Request is a request to be decided.
type Request struct {
	Principal Principal // the caller
	Action    string    // such as "kms:Encrypt"
	// Resource is the ARN of the key, even if the caller named it by an alias.
	// For an action on an alias it is the alias's ARN, for AssumeRole the role's,
	// and for an action on no resource, such as kms:CreateKey, it is "*".
	Resource string
	Context  Context // nil: no condition key has a value, and there is no time
}

// A Context gives the values of condition keys. Evaluate asks for a key only if
// the decision depends on it, and once at most.
type Context interface {
	// Values returns the values of a condition key; nil if the request does not
	// have the key. The letters A to Z of the name are in lower case, also those
	// after a slash or a second colon: aws:resourcetag/team. A key with several
	// values can also have none. Evaluate does not write to the values.
	Values(key string) []string
	// Now returns the time of the request. aws:CurrentTime and aws:EpochTime come
	// from it, in whole seconds, and not from Values.
	Now() time.Time
	// Holds tells that the decision depends on the time being in [from, to). A
	// zero Time is no bound. The decision holds while the time is in all of the
	// intervals that were told.
	Holds(from, to time.Time)
}

// Policies are the policies that apply to a request, by kind. Their documents
// were parsed as that kind, or are zero Documents; otherwise, and if a list has
// a nil document, the request is denied.
type Policies struct {
	// Resource is the policy of what Request.Resource names: the policy of a key,
	// or the trust policy of a role that shall be assumed. It is nil for
	// resources that have no policy of their own: an alias, a user, and "*". A
	// request for a key or to assume a role without its policy is denied.
	Resource *Document
	// Grantee is the grantee of a grant on the key that allows the action; nil
	// if there is none. It counts like a principal in an Allow of the key
	// policy.
	Grantee *Principal
	// Identity are the policies of the caller: of a user and its groups, or of
	// the role of a session. An account's root user needs none.
	Identity []*Document
	// Boundary is the caller's permissions boundary; nil if it has none. One
	// whose policy no longer exists is a zero Document, which allows nothing.
	Boundary *Document
	// Session are the policies that were passed when the session was created;
	// empty if there were none. What any of them allows, they allow together.
	Session []*Document
}

// Effect is the outcome of an evaluation.
type Effect uint8

// The outcomes. The zero Effect denies.
const (
	ImplicitDeny Effect = iota // nothing allows the request
	ExplicitDeny               // a statement denies the request
	Allow
)

// String returns the name of the constant.
func (e Effect) String() string {
	switch e {
	case Allow:
		return "Allow"
	case ExplicitDeny:
		return "ExplicitDeny"
	default:
		return "ImplicitDeny"
	}
}

// Reason says on which kind of policy a decision rests.
type Reason uint8

// The kinds of policies. For an Allow or an ExplicitDeny, it is the kind of the
// policy with the statement that decided. For an ImplicitDeny, it is the kind
// of the policy in which an Allow was needed.
const (
	// ReasonRequest: no policy was evaluated, because the request lacks a valid
	// principal, action or resource, or the policy of its key.
	ReasonRequest Reason = iota
	// ReasonKeyPolicy: the key policy (AWS: resource-based policy).
	ReasonKeyPolicy
	// ReasonIdentityPolicy: the policies of the caller (AWS: identity-based
	// policy). An account's root user has all that such a policy could give.
	ReasonIdentityPolicy
	// ReasonGrant: a grant, which can only be the reason of an Allow.
	ReasonGrant
	// ReasonTrustPolicy: the trust policy of a role.
	ReasonTrustPolicy
	// ReasonBoundary: the caller's permissions boundary, which can only be the
	// reason of a denial.
	ReasonBoundary
	// ReasonSessionPolicy: the policies of the caller's session, which can only
	// be the reason of a denial.
	ReasonSessionPolicy
	// ReasonBreakGlass: no policy was evaluated, because the caller uses break-glass
	// credentials, whose permissions are fixed. Evaluate does not return it.
	ReasonBreakGlass
)

// String returns a short name for logs and audit records.
func (r Reason) String() string {
	switch r {
	case ReasonKeyPolicy:
		return "key-policy"
	case ReasonIdentityPolicy:
		return "identity-policy"
	case ReasonGrant:
		return "grant"
	case ReasonTrustPolicy:
		return "trust-policy"
	case ReasonBoundary:
		return "permissions-boundary"
	case ReasonSessionPolicy:
		return "session-policy"
	case ReasonBreakGlass:
		return "break-glass"
	default:
		return "request"
	}
}

// A Decision is the outcome of a request, with its reason. The zero Decision
// denies.
type Decision struct {
	Effect Effect
	Reason Reason
	// Policy is the position of the policy in Policies.Identity or
	// Policies.Session, if Reason is one of these and a statement decided.
	Policy int
	// Statement is the position, from 0, of the statement that decided, in the
	// policy that Reason names, or NoStatement.
	Statement int
	// Sid is that statement's Sid, if it has one. The author of the policy
	// chose it, and it can be as long as a document.
	Sid string
}

// Allowed reports whether the request is allowed.
func (d Decision) Allowed() bool { return d.Effect == Allow }

// Evaluate decides a request as AWS does:
//
//   - A matching Deny in any of the policies decides. A Deny for an account
//     denies all of its principals; one for a role denies all of its sessions.
//   - In the resource's own account, an Allow of the resource's policy for the
//     principal itself or for "*" is enough. One for the role of a session has to
//     be within the boundary and the session policies. One for the account (its
//     root ARN or bare id) delegates: identity policies have to allow the request
//     too, and boundary and session policies. To the account's root user nothing
//     has to be delegated.
//   - In another account, two Allows are needed: one in the resource's policy, for
//     the principal, its role or its account, and one in the account's own
//     policies, within boundary and session policies.
//   - A grant allows what an Allow of the key policy for its grantee would.
//   - A service or a web identity needs an Allow for itself by name, or, the
//     service, a grant. "*" does not include them in an Allow, but it does in a
//     Deny. They belong to no account with policies.
//   - Where the resource has no policy (aliases, kms:CreateKey, iam and the
//     like), identity policies within boundary and session policies decide.
//
// Evaluate does not know the rules outside of policies: which operations work
// across accounts, that kms:RetireGrant in a key policy has no effect, and what
// a grant allows. The caller has to apply those. Evaluate is safe for
// concurrent use. It allocates nothing unless there are variables or unusually
// many condition keys.
func Evaluate(req Request, policies Policies) Decision {
	e := evaluation{req: req, policies: policies}
	return e.decide()
}

// LockoutSafe reports whether the caller could replace the key policy again
// once policies are in force, in the given context. If not, AWS refuses the new
// key policy with LockoutMessage. A principal of another account can never
// replace a key policy.
func LockoutSafe(policies Policies, caller Principal, keyARN string, context Context) bool {
	key, ok := splitARN(keyARN)
	return ok && key.Partition == caller.Partition && key.Account == caller.Account &&
		Evaluate(Request{caller, "kms:PutKeyPolicy", keyARN, context}, policies).Allowed()
}

// resourceReason is the reason for what the resource's policy decides.
func (p *Policies) resourceReason() Reason {
	if p.Resource.kind == TrustPolicy {
		return ReasonTrustPolicy
	}
	return ReasonKeyPolicy
}

// wellFormed reports whether each policy is of a kind that belongs where it is.
// A policy of another kind could be missing the denials that its author wrote.
func (p *Policies) wellFormed() bool {
	belongs := func(d *Document, resource bool) bool {
		return d != nil && (len(d.allows)+len(d.denies) == 0 || d.kind.hasPrincipals() == resource)
	}
	if p.Resource != nil && !belongs(p.Resource, true) || p.Boundary != nil && !belongs(p.Boundary, false) {
		return false
	}
	for _, list := range [...][]*Document{p.Identity, p.Session} {
		for _, d := range list {
			if !belongs(d, false) {
				return false
			}
		}
	}
	return true
}

// needsPolicy reports whether a resource has a policy of its own that has to
// allow the action: a key, and a role that shall be assumed.
func needsPolicy(action string, resource ARN) bool {
	return strings.HasPrefix(resource.Resource, "key/") ||
		strings.HasPrefix(resource.Resource, "role/") && strings.HasPrefix(lowerASCII(action), "sts:")
}

// decide is Evaluate.
func (e *evaluation) decide() Decision {
	none := Decision{Statement: NoStatement}
	caller := &e.req.Principal
	if !caller.mayCall() || e.req.Action == "" || !e.policies.wellFormed() {
		return none
	}
	resource, isARN := splitARN(e.req.Resource)
	local := caller.Account == resource.Account && caller.Partition == resource.Partition
	if e.policies.Resource == nil {
		// Some resources are AWS's own, or are in an account that their ARNs do
		// not tell.
		local = local || caller.Partition == resource.Partition && (resource.Account == "" || resource.Account == "aws")
		if isARN && (!local || needsPolicy(e.req.Action, resource)) || !isARN && e.req.Resource != "*" {
			return none
		}
	} else if !isARN {
		return none
	}
	if d, denied := e.denied(); denied {
		return d
	}
	if e.policies.Resource == nil {
		return e.ownPolicies()
	}
	best, by := e.reached(local)
	switch {
	case best == reachNone:
		return Decision{ImplicitDeny, e.policies.resourceReason(), 0, NoStatement, ""}
	case caller.Kind == KindService || caller.Kind == KindFederated || local && best == reachDirect:
		return by
	case local && best == reachRole:
		if d := e.limits(); !d.Allowed() {
			return d
		}
		return by
	}
	if d := e.ownPolicies(); !d.Allowed() {
		return d
	}
	return by
}

// denied looks for a Deny that matches, in all of the policies.
func (e *evaluation) denied() (Decision, bool) {
	search := func(d *Document, reason Reason, at int) (Decision, bool) {
		if d != nil {
			for i := range d.denies {
				if s := &d.denies[i]; e.applies(d, s, reachNone, nil) != reachNone {
					return Decision{ExplicitDeny, reason, at, s.index, s.sid}, true
				}
			}
		}
		return Decision{}, false
	}
	if e.policies.Resource != nil {
		if d, found := search(e.policies.Resource, e.policies.resourceReason(), 0); found {
			return d, true
		}
	}
	for i, doc := range e.policies.Identity {
		if d, found := search(doc, ReasonIdentityPolicy, i); found {
			return d, true
		}
	}
	if d, found := search(e.policies.Boundary, ReasonBoundary, 0); found {
		return d, true
	}
	for i, doc := range e.policies.Session {
		if d, found := search(doc, ReasonSessionPolicy, i); found {
			return d, true
		}
	}
	return Decision{}, false
}

// reached finds out how the resource's policy, or a grant, reaches the caller
// best, and through which statement. It stops at the first Allow that needs no
// others, or as many as any: only in the resource's own account does it matter
// how an Allow reaches the caller.
func (e *evaluation) reached(local bool) (best reach, by Decision) {
	enough := reachDirect
	switch {
	case !local:
		enough = reachAccount
	case e.policies.Boundary == nil && len(e.policies.Session) == 0:
		enough = reachRole
	}
	d := e.policies.Resource
	for i := range d.allows {
		s := &d.allows[i]
		if r := e.applies(d, s, best, nil); r > best {
			best, by = r, Decision{Allow, e.policies.resourceReason(), 0, s.index, s.sid}
			if best >= enough {
				return best, by
			}
		}
	}
	if g := e.policies.Grantee; g != nil {
		if r := g.reaches(&e.req.Principal); r > best {
			best, by = r, Decision{Allow, ReasonGrant, 0, NoStatement, ""}
		}
	}
	return best, by
}

// ownPolicies decides by the caller's own policies: identity policies within
// the boundary and the session policies.
func (e *evaluation) ownPolicies() Decision {
	by := Decision{Allow, ReasonIdentityPolicy, 0, NoStatement, ""}
	if e.req.Principal.Kind != KindRoot {
		if by = e.allowedBy(e.policies.Identity, ReasonIdentityPolicy); !by.Allowed() {
			return by
		}
	}
	if d := e.limits(); !d.Allowed() {
		return d
	}
	return by
}

// limits decides by the boundary and the session policies alone.
func (e *evaluation) limits() Decision {
	if b := e.policies.Boundary; b != nil {
		if d := e.allowedBy([]*Document{b}, ReasonBoundary); !d.Allowed() {
			return d
		}
	}
	if len(e.policies.Session) > 0 {
		return e.allowedBy(e.policies.Session, ReasonSessionPolicy)
	}
	return Decision{Effect: Allow}
}

// allowedBy looks for an Allow in policies of one kind.
func (e *evaluation) allowedBy(docs []*Document, reason Reason) Decision {
	for at, d := range docs {
		for i := range d.allows {
			if s := &d.allows[i]; e.applies(d, s, reachNone, nil) != reachNone {
				return Decision{Allow, reason, at, s.index, s.sid}
			}
		}
	}
	return Decision{ImplicitDeny, reason, 0, NoStatement, ""}
}
