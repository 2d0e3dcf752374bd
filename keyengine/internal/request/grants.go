package request

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// What grants do for authorisation. A grant only ever allows, and is asked only
// where no policy decides: an explicit deny was the end of it, and an allow by
// policy does not depend on grants.

const (
	ActionCreateGrant = "kms:CreateGrant"
	ActionRetireGrant = "kms:RetireGrant"

	OperationCreateGrant = "CreateGrant"
	OperationDescribeKey = "DescribeKey"
	OperationRetireGrant = "RetireGrant"
)

// grantable tells whether a grant can allow an action. (RetireGrant, which is for
// the very grant that has it, is mayRetire's.)
func grantable(action string) bool { return kmsapi.EnumOf("GrantOperation").Has(operationOf(action)) }

// operationOf is the grant operation that stands for an action.
func operationOf(action string) string { return strings.TrimPrefix(action, "kms:") }

// granted looks for a grant that lets the caller do the action on the key and is
// good for the request: for what it is made for, which holds for every action, and
// for what else good asks. The decision is the one that rests on it.
func granted(ev *Evaluation, t *Target, req policy.Request, doc *policy.Document, good func(*fsmpb.Grant) bool) (policy.Decision, *fsmpb.Grant) {
	var names []string
	var decision policy.Decision
	for _, name := range granteeNames(req.Principal) {
		if d := evaluateGrant(req, doc, name); d.Allowed() {
			names, decision = append(names, name), d // the same for each
		}
	}
	if len(names) == 0 {
		return decision, nil // whatever grants there are
	}
	g := ev.GrantTo(t.ID, names, func(g *fsmpb.Grant) bool {
		return slices.Contains(g.Operations, operationOf(req.Action)) && fromSource(ev, g) && good(g)
	})
	return decision, g
}

// evaluateGrant is the decision on a request if a grant for it has that grantee.
func evaluateGrant(req policy.Request, doc *policy.Document, grantee string) policy.Decision {
	p, err := policy.ParseCaller(grantee)
	if err != nil {
		return policy.Decision{Statement: policy.NoStatement}
	}
	return policy.Evaluate(req, policy.Policies{Key: doc, Grantee: &p})
}

// fromSource tells whether the request is made for the resource that the grant is
// limited to. Whoever the grantee is, a request that is made for none is not: AWS
// asks for it only where a service calls, and lets others have the grant as if it
// had no such constraint. ARNs are compared as texts; there are no wildcards.
func fromSource(ev *Evaluation, g *fsmpb.Grant) bool {
	return g.SourceArn == "" || g.SourceArn == ev.Caller.SourceArn
}

// granteeNames are the names of grantees that a caller may be reached by: its own,
// its role's and its account's. Whether it is, the policy package decides.
func granteeNames(p policy.Principal) []string {
	names := []string{p.ARN}
	if p.Kind == policy.KindService {
		return names
	}
	if p.Role != "" {
		names = append(names, p.Role)
	}
	if root := RootARN(p.Partition, p.Account); root != p.ARN {
		names = append(names, root)
	}
	return names
}

// Covers tells whether a grant that allows CreateGrant lets its grantee make
// another: one with no operation that the parent lacks and of constraints that
// admit no context which the parent's do not, and no other source.
func Covers(parent, child *fsmpb.Grant) bool {
	for _, op := range child.Operations {
		if !slices.Contains(parent.Operations, op) {
			return false
		}
	}
	if parent.SourceArn != "" && child.SourceArn != parent.SourceArn {
		return false
	}
	equals := &RequestContext{Pairs: ContextMap(child.ContextEquals)}
	if e := parent.ContextEquals; e != nil && (child.ContextEquals == nil || !equals.is(e)) {
		return false
	}
	subset := &RequestContext{Pairs: ContextMap(child.ContextSubset)}
	s := parent.ContextSubset
	return s == nil || child.ContextEquals != nil && equals.has(s) || child.ContextSubset != nil && subset.has(s)
}

// noStatements stands for a key policy that has no say.
var noStatements = &policy.Document{}

// MayRetire asks whether the caller may retire a grant: as its retiring principal,
// as its grantee if RetireGrant is among its operations, or by what the account
// that made it lets the caller do. Key policies have no say in it.
func (ev *Evaluation) MayRetire(t *Target, g *fsmpb.Grant) error {
	var parties []string
	if g.Retiring != "" {
		parties = append(parties, g.Retiring)
	}
	if slices.Contains(g.Operations, OperationRetireGrant) {
		parties = append(parties, g.Grantee)
	}
	// The account is last: its refusal says what the caller lacks.
	parties = append(parties, RootARN(ev.Cluster().Partition, g.Issuer))
	req := policy.Request{Principal: ev.Caller.Identity.Principal(), Action: ActionRetireGrant, Resource: t.ARN}
	var d policy.Decision
	for _, p := range parties {
		if d = evaluateGrant(req, noStatements, p); d.Allowed() {
			return ev.Decided(req, d, g)
		}
	}
	return ev.Decided(req, d, nil)
}
