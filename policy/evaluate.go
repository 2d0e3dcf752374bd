package policy

import "strings"

// A Request is what is to be decided.
type Request struct {
	Principal Principal // who calls
	Action    string    // what for, such as "kms:Encrypt"
	// Resource is the ARN of the key, also when the caller named it by an
	// alias. For an action on an alias it is the alias's ARN, and for one tied
	// to no resource, such as kms:CreateKey, "*".
	Resource string
}

// Policies are the policies that apply to a request, by kind.
type Policies struct {
	// Key is the policy of the key that Request.Resource names. It is nil for
	// what has no policy of its own: an alias, and "*". A request for a key
	// without its policy is denied.
	Key *Document
	// Grantee is who has a grant on the key that is good for the action; nil
	// when there is none. It counts like a name in an Allow of the key policy.
	Grantee *Principal
}

// Effect is the outcome of an evaluation.
type Effect uint8

// The outcomes. The zero Effect denies.
const (
	ImplicitDeny Effect = iota // nothing allows it
	ExplicitDeny               // a statement denies it
	Allow
)

// String is the name of the constant.
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

// Reason says which kind of policy a decision rests on.
type Reason uint8

// The kinds of policies. For an Allow or an ExplicitDeny the policy of that
// kind holds the statement; for an ImplicitDeny it is the one in which an Allow
// would have been needed.
const (
	// ReasonRequest: no policy was asked, because the request is incomplete:
	// no proper principal, action or resource, or a key without its policy.
	ReasonRequest Reason = iota
	// ReasonKeyPolicy: the key policy (AWS: resource-based policy).
	ReasonKeyPolicy
	// ReasonIdentityPolicy: the policies of the caller (AWS: identity-based
	// policy). An account's root user has all that such a policy could give.
	ReasonIdentityPolicy
	// ReasonGrant: a grant; only ever the reason of an Allow.
	ReasonGrant
)

// String is a short name for logs and audit records.
func (r Reason) String() string {
	switch r {
	case ReasonKeyPolicy:
		return "key-policy"
	case ReasonIdentityPolicy:
		return "identity-policy"
	case ReasonGrant:
		return "grant"
	default:
		return "request"
	}
}

// A Decision is the answer to a request, and why. The zero Decision denies.
type Decision struct {
	Effect Effect
	Reason Reason
	// Statement is the position, from 0, of the statement that decided, in the
	// policy that Reason names, or NoStatement.
	Statement int
	// Sid is that statement's Sid, if it has one. It is text of the policy's
	// author, of up to a document's length.
	Sid string
}

// Allowed reports whether the request may go ahead.
func (d Decision) Allowed() bool { return d.Effect == Allow }

// Evaluate decides a request as AWS does:
//
//   - A Deny that matches ends it. A Deny for an account denies everybody in
//     it; one for a role, all its sessions.
//   - In the key's own account, an Allow for the principal itself, for its role
//     or for "*" is enough. An Allow for the account (its root ARN or bare id)
//     delegates: it lets the account's own policies decide. There are none yet,
//     so it allows the account's root user only.
//   - In another account both are needed: an Allow in the key policy, for the
//     principal or its account, and one in the account's own policies.
//   - A grant allows what an Allow of the key policy for its grantee would.
//   - A service is denied by a Deny for "*" and allowed by a grant to it, and by
//     nothing else: no key policy can name one yet, "*" is not meant for it, and it
//     has no account with policies.
//   - Where there is no key policy to ask (aliases, kms:CreateKey and the like),
//     the account's own policies decide.
//
// Evaluate knows nothing of the rules that lie outside of policies: which
// operations work across accounts, that kms:RetireGrant in a key policy has no
// effect, and what a grant is good for. Those are the caller's. Evaluate may be
// called from any number of goroutines and allocates nothing.
func Evaluate(req Request, policies Policies) Decision {
	none := Decision{Statement: NoStatement}
	caller := &req.Principal
	if !caller.mayCall() || req.Action == "" {
		return none
	}
	resource, isARN := splitARN(req.Resource)
	local := caller.Account == resource.Account && caller.Partition == resource.Partition
	if policies.Key == nil {
		if isARN && (!local || strings.HasPrefix(resource.Resource, "key/")) || !isARN && req.Resource != "*" {
			return none
		}
		return identityDecision(caller)
	}
	if !isARN {
		return none
	}
	for i := range policies.Key.denies {
		s := &policies.Key.denies[i]
		if s.principals.denies(caller) && s.concerns(req.Action, req.Resource) {
			return Decision{ExplicitDeny, ReasonKeyPolicy, s.index, s.sid}
		}
	}
	if caller.Kind == KindService {
		if g := policies.Grantee; g != nil && g.reaches(caller) == reachDirect {
			return Decision{Allow, ReasonGrant, NoStatement, ""}
		}
		return Decision{ImplicitDeny, ReasonKeyPolicy, NoStatement, ""}
	}
	identity := identityDecision(caller)
	// Whether an Allow for the account, or any Allow to another account's
	// principal, is the last word depends on the identity policies. Only when
	// they do not allow is there a difference between the ways in which an
	// Allow reaches the caller, so the search stops at the first that suffices.
	enough := reachDirect
	if identity.Allowed() {
		enough = reachAccount
	}
	decision := Decision{ImplicitDeny, ReasonKeyPolicy, NoStatement, ""}
	for i := range policies.Key.allows {
		s := &policies.Key.allows[i]
		by := s.principals.allows(caller)
		if by == reachNone || !s.concerns(req.Action, req.Resource) {
			continue
		}
		if by >= enough && (local || identity.Allowed()) {
			return Decision{Allow, ReasonKeyPolicy, s.index, s.sid}
		}
		decision = identity // the key policy did its part
	}
	if g := policies.Grantee; g != nil {
		switch by := g.reaches(caller); {
		case by >= enough && (local || identity.Allowed()):
			return Decision{Allow, ReasonGrant, NoStatement, ""}
		case by != reachNone:
			decision = identity
		}
	}
	return decision
}

// identityDecision asks the caller's own policies. An account's root user needs
// none; nobody else has any yet.
func identityDecision(caller *Principal) Decision {
	d := Decision{ImplicitDeny, ReasonIdentityPolicy, NoStatement, ""}
	if caller.Kind == KindRoot {
		d.Effect = Allow
	}
	return d
}

// LockoutSafe reports whether the caller could replace the policy again once
// policies are in force: AWS refuses a new key policy, with LockoutMessage, for
// which this is false. Nobody of another account can ever replace a key policy.
func LockoutSafe(policies Policies, caller Principal, keyARN string) bool {
	key, ok := splitARN(keyARN)
	return ok && key.Partition == caller.Partition && key.Account == caller.Account &&
		Evaluate(Request{Principal: caller, Action: "kms:PutKeyPolicy", Resource: keyARN}, policies).Allowed()
}
