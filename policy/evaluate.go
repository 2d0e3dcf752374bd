package policy

import "strings"

// A Request is a request to be decided.
type Request struct {
	Principal Principal // the caller
	Action    string    // such as "kms:Encrypt"
	// Resource is the ARN of the key, even if the caller named it by an alias.
	// For an action on an alias it is the alias's ARN, and for an action on no
	// resource, such as kms:CreateKey, it is "*".
	Resource string
}

// Policies are the policies that apply to a request, by kind.
type Policies struct {
	// Key is the policy of the key that Request.Resource names. It is nil for
	// resources that have no policy of their own: an alias, and "*". A request
	// for a key without its policy is denied.
	Key *Document
	// Grantee is the grantee of a grant on the key that allows the action; nil
	// if there is none. It counts like a principal in an Allow of the key
	// policy.
	Grantee *Principal
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
	default:
		return "request"
	}
}

// A Decision is the outcome of a request, with its reason. The zero Decision
// denies.
type Decision struct {
	Effect Effect
	Reason Reason
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
//   - A matching Deny decides. A Deny for an account denies all of its
//     principals; one for a role denies all of its sessions.
//   - In the key's own account, an Allow for the principal itself, for its role
//     or for "*" is enough. An Allow for the account (its root ARN or bare id)
//     delegates: it lets the account's own policies decide. There are none yet,
//     so it allows the account's root user only.
//   - In another account, two Allows are needed: one in the key policy, for the
//     principal or its account, and one in the account's own policies.
//   - A grant allows what an Allow of the key policy for its grantee would.
//   - A service is denied by a Deny for "*" and allowed only by a grant: no key
//     policy can name one yet, "*" does not include services, and a service has no
//     account with policies.
//   - Where there is no key policy (for aliases, kms:CreateKey and the like),
//     the account's own policies decide.
//
// Evaluate does not know the rules outside of policies: which operations work
// across accounts, that kms:RetireGrant in a key policy has no effect, and what
// a grant allows. The caller has to apply those. Evaluate is safe for
// concurrent use and allocates nothing.
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
	// An Allow for the account, or any Allow for another account's principal,
	// suffices only if the identity policies allow too. Only if they do not
	// does it matter how an Allow reaches the caller, so the search stops at
	// the first Allow that suffices.
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
		decision = identity // the key policy allows its part
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

// identityDecision evaluates the caller's own policies. An account's root user
// needs none, and nobody else has any yet.
func identityDecision(caller *Principal) Decision {
	d := Decision{ImplicitDeny, ReasonIdentityPolicy, NoStatement, ""}
	if caller.Kind == KindRoot {
		d.Effect = Allow
	}
	return d
}

// LockoutSafe reports whether the caller could replace the key policy again
// once policies are in force. If not, AWS refuses the new key policy with
// LockoutMessage. A principal of another account can never replace a key
// policy.
func LockoutSafe(policies Policies, caller Principal, keyARN string) bool {
	key, ok := splitARN(keyARN)
	return ok && key.Partition == caller.Partition && key.Account == caller.Account &&
		Evaluate(Request{Principal: caller, Action: "kms:PutKeyPolicy", Resource: keyARN}, policies).Allowed()
}
