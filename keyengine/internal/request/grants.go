package request

import (
	"cmp"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Grants in authorisation. A grant can only allow, and grants are consulted only if no
// policy decides: an explicit deny is final, and an allow by a policy does not depend on
// grants.

const (
	ActionCreateGrant = "kms:CreateGrant"
	ActionRetireGrant = "kms:RetireGrant"

	OperationCreateGrant = "CreateGrant"
	OperationDescribeKey = "DescribeKey"
	OperationRetireGrant = "RetireGrant"
)

// grantable reports whether a grant can allow an action. RetireGrant is not among them: it
// applies to the grant itself, see MayRetire.
func grantable(action string) bool { return kmsapi.EnumOf("GrantOperation").Has(operationOf(action)) }

// operationOf returns the grant operation that corresponds to an action.
func operationOf(action string) string { return strings.TrimPrefix(action, "kms:") }

// granted looks for a grant that allows the caller to perform the action on the key and
// that covers the request: its source must match, and good must be true for it. It returns
// the decision with the grant that it rests on.
func granted(ev *Evaluation, t *Target, req policy.Request, doc *policy.Document, good func(*fsmpb.Grant) bool) (policy.Decision, *fsmpb.Grant, error) {
	var names []string
	var decision policy.Decision
	for _, name := range granteeNames(req.Principal) {
		d, err := evaluateGrant(ev, req, doc, name)
		if err != nil {
			return d, nil, err
		}
		if d.Allowed() {
			names, decision = append(names, name), d // the same for each name
		}
	}
	if len(names) == 0 {
		return decision, nil, nil // no grant could allow it
	}
	g := ev.GrantTo(t.ID, names, func(g *fsmpb.Grant) bool {
		return slices.Contains(g.Operations, operationOf(req.Action)) && fromSource(ev, g) && good(g)
	})
	return decision, g, nil
}

// evaluateGrant returns the decision on a request if there is a grant for it to the
// grantee.
func evaluateGrant(ev *Evaluation, req policy.Request, doc *policy.Document, grantee string) (policy.Decision, error) {
	p, err := policy.ParseUniqueID(grantee)
	if err != nil {
		p, err = policy.ParseCaller(grantee)
	}
	if err != nil {
		return policy.Decision{Statement: policy.NoStatement}, nil
	}
	return decide(ev, req, doc, &p)
}

// fromSource reports whether the request is made for the resource that the grant is limited
// to. Unlike AWS, which ignores this constraint unless a service calls, it must match for
// every grantee. ARNs are compared as text, without wildcards.
func fromSource(ev *Evaluation, g *fsmpb.Grant) bool {
	return g.SourceArn == "" || g.SourceArn == ev.Caller.SourceArn
}

// granteeNames returns the grantees, as grants have them, that could include a caller: itself,
// its role and its account. The policy package decides whether they do.
func granteeNames(p policy.Principal) []string {
	names := []string{cmp.Or(p.UniqueID(), p.ARN)}
	if p.Kind == policy.KindService {
		return names
	}
	if p.Kind == policy.KindAssumedRole && p.ID != "" {
		names = append(names, p.ID)
	}
	if root := RootARN(p.Partition, p.Account); root != p.ARN {
		names = append(names, root)
	}
	return names
}

// Covers reports whether a grant that allows CreateGrant lets its grantee create the grant
// child. It must have no further operations and no other source, and its constraints must
// be at least as strict.
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

// noStatements is a key policy that neither allows nor denies anything.
var noStatements = &policy.Document{}

// MayRetire checks whether the caller may retire a grant: as its retiring principal, as its
// grantee if RetireGrant is among its operations, or by the policies of the account that
// created it. Key policies do not matter here.
func MayRetire(ev *Evaluation, t *Target, g *fsmpb.Grant) error {
	var parties []string
	if g.Retiring != "" {
		parties = append(parties, g.Retiring)
	}
	if slices.Contains(g.Operations, OperationRetireGrant) {
		parties = append(parties, g.Grantee)
	}
	// The account comes last, because its refusal names the missing permission.
	parties = append(parties, RootARN(ev.Cluster().Partition, g.Issuer))
	c := ofGrant(t, g)
	c.ev, c.action, c.resource = ev, ActionRetireGrant, t.ARN
	req := policy.Request{Principal: ev.Principal(), Action: ActionRetireGrant, Resource: t.ARN, Context: c}
	var d policy.Decision
	for _, p := range parties {
		var err error
		if d, err = evaluateGrant(ev, req, noStatements, p); err != nil {
			return err
		}
		if d.Allowed() {
			return ev.Decided(req, d, g)
		}
	}
	return ev.Decided(req, d, nil)
}
