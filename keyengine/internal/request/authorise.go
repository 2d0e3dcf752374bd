package request

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Authorise checks whether the caller may perform an action on the key, in an encryption
// context if the action has one. The decision depends on the key's policy and those of the
// caller, and on grants if the policies do not decide.
func (ev *Evaluation) Authorise(t *Target, action string, context map[string]string) error {
	rc := &RequestContext{Pairs: context}
	return authoriseKey(ev, &Conditions{target: t, encryption: context}, action, func(g *fsmpb.Grant) bool { return rc.Admits(g, action) })
}

// AuthoriseNewGrant is Authorise for CreateGrant. A grant covers the request if it covers the
// grant that is to be created.
func AuthoriseNewGrant(ev *Evaluation, t *Target, g *fsmpb.Grant) error {
	return authoriseKey(ev, ofGrant(t, g), ActionCreateGrant, func(parent *fsmpb.Grant) bool { return Covers(parent, g) })
}

// ofGrant returns the conditions of a request for a grant, whose constraint counts as the
// encryption context.
func ofGrant(t *Target, g *fsmpb.Grant) *Conditions {
	return &Conditions{target: t, grant: g, encryption: ContextMap(cmp.Or(g.ContextEquals, g.ContextSubset))}
}

// authoriseKey checks whether the caller may perform an action on the key of the conditions.
// Grants for which good is true cover the request.
func authoriseKey(ev *Evaluation, c *Conditions, action string, good func(*fsmpb.Grant) bool) error {
	t := c.target
	c.ev, c.action, c.resource = ev, action, t.ARN
	p, v := ev.KeyPolicy(t.ID)
	if p == nil {
		return fmt.Errorf("key %s has no policy", t.ID)
	}
	doc, err := ev.Policies.bound(policy.KeyPolicy, p.Document, p.Bindings, func() string {
		return "policy of key " + t.ID.String() + ", version " + strconv.FormatUint(v, 10)
	})
	if err != nil {
		return err
	}
	req := policy.Request{
		Principal: ev.Principal(), Action: action, Resource: t.ARN, Context: c,
	}
	d, err := decide(ev, req, doc, nil)
	if err != nil {
		return err
	}
	if d.Effect == policy.ImplicitDeny && grantable(action) {
		by, g, err := granted(ev, t, req, doc, good)
		if err != nil {
			return err
		}
		if g != nil {
			return ev.Decided(req, by, g)
		}
	}
	return ev.Decided(req, d, nil)
}

// Authorised finds the key with the given KeyId and checks whether the caller may perform
// an action on it.
func (ev *Evaluation) Authorised(keyID string, f Forms, action string, context map[string]string) (*Target, error) {
	t, err := ev.Resolve(keyID, f, action)
	if err != nil {
		return nil, err
	}
	return t, ev.Authorise(t, action, context)
}

// Managed finds the key of a management operation, and checks that the caller may perform
// the operation and that the key's state allows it.
func (ev *Evaluation) Managed(keyID string) (*Target, error) {
	t, err := ev.Authorised(keyID, KeyForms, ev.Op.Action(), nil)
	if err != nil {
		return nil, err
	}
	return t, ev.Op.States.Check(t.ARN, t.Key.State)
}

// AuthoriseAccount authorises what no key policy decides: operations without a key
// (resource "*"), and alias operations with respect to the alias.
func (ev *Evaluation) AuthoriseAccount(action, resource string) error {
	return ev.AuthoriseResource(action, resource, &Conditions{})
}

// AuthoriseResource is AuthoriseAccount for resources that have tags or further condition
// keys.
func (ev *Evaluation) AuthoriseResource(action, resource string, c *Conditions) error {
	c.ev, c.action, c.resource = ev, action, resource
	req := policy.Request{Principal: ev.Principal(), Action: action, Resource: resource, Context: c}
	d, err := decide(ev, req, nil, nil)
	if err != nil {
		return err
	}
	return ev.Decided(req, d, nil)
}

// Decided notes a decision for the record, with the grant that allowed it, if any, and
// returns the caller's error if it is a denial.
func (ev *Evaluation) Decided(req policy.Request, d policy.Decision, g *fsmpb.Grant) error {
	ev.decisions = append(ev.decisions, decision{req.Action, req.Resource, g, ev.ownRules.name(ev, d), d})
	ev.Caller.Trace.Decided(d.Allowed())
	if d.Allowed() {
		ev.denied = nil
		return nil
	}
	return ev.denial(d.Explain(req))
}

// AuthoriseNamed is AuthoriseResource for a resource that the caller named in a way which does
// not tell whether it exists. A denial reads as it would if there were no such resource: told
// is what would be denied then, and absent its conditions.
func (ev *Evaluation) AuthoriseNamed(action, resource string, c *Conditions, told string, absent *Conditions) error {
	err := ev.AuthoriseResource(action, resource, c)
	if err == nil || err != error(ev.denied) {
		return err
	}
	d := ev.decisions[len(ev.decisions)-1].Decision
	absent.ev, absent.action, absent.resource = ev, action, told
	req := policy.Request{Principal: ev.Principal(), Action: action, Resource: told, Context: absent}
	without, err := decide(ev, req, nil, nil)
	if err != nil {
		return err
	}
	if !without.Allowed() {
		d = without
	}
	return ev.denial(d.Explain(req))
}

// denial returns the caller's error for the last decision, which is a denial.
func (ev *Evaluation) denial(message string) error {
	ev.denied = &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: message}
	return ev.denied
}

// inaccessible denies access without revealing whether the key exists.
func inaccessible(ev *Evaluation, action, what string) error {
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: %s %s because the resource does not exist in this Region, "+
		"no resource-based policies allow access, or a resource-based policy explicitly denies access",
		ev.Principal(), action, what)
}

// ForbiddenCiphertext denies access to a ciphertext whose key is gone or may not be used by
// the caller.
func (ev *Evaluation) ForbiddenCiphertext(action string) error {
	return inaccessible(ev, action, "on the resource associated with this ciphertext")
}

// decision is an authorization decision, for the record.
type decision struct {
	action, resource string
	grant            *fsmpb.Grant // the grant that allowed it, or nil
	policy           string       // name of the policy of the caller that decided, or ""
	policy.Decision
}

// maxSid limits the statement ids in records. A policy may have one as long as itself.
const maxSid = 128

// String returns the decision as the audit log has it.
func (d decision) String() string {
	b := make([]byte, 0, 256) // on the stack
	b = append(b, d.action...)
	b = append(append(b, ' '), d.Effect.String()...)
	b = append(append(b, ' '), d.Reason.String()...)
	if d.grant != nil {
		b = hex.AppendEncode(append(b, ' '), d.grant.Id)
	}
	if d.policy != "" {
		b = append(append(b, ' '), d.policy...)
	}
	if d.Statement != policy.NoStatement {
		b = strconv.AppendInt(append(b, " statement "...), int64(d.Statement), 10)
		if d.Sid != "" {
			b = append(append(b, ' '), cut(d.Sid, maxSid)...)
		}
	}
	return string(b)
}

// CheckPolicy checks a new policy for a key: it must be valid, name only principals that
// exist, and allow the caller to replace it again unless bypass is set. replaced is the policy
// in whose place it is put, and nil if the key is not in the state yet. CheckPolicy returns the
// bindings of the new policy.
func CheckPolicy(ev *Evaluation, text string, t *Target, replaced *fsmpb.KeyPolicy, bypass bool) ([]*fsmpb.Binding, error) {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(text))
	if err != nil {
		return nil, malformed(err)
	}
	bindings, invalid := Bind(ev, doc, replaced.GetBindings())
	switch {
	case invalid != nil:
		return nil, kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.InvalidPrincipalMessage)
	case len(bindings) > MaxBindings:
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The policy names more than %d users, roles and sessions of roles.", MaxBindings)
	case bypass:
		return bindings, nil
	}
	if doc, err = doc.Bind(idsOf(bindings)); err != nil {
		return nil, err
	}
	r, err := ownRulesOf(ev)
	if err != nil {
		return nil, err
	}
	c := &Conditions{ev: ev, action: actionPutKeyPolicy, resource: t.ARN, target: t}
	if replaced == nil {
		c.target, c.New = nil, t.Key
	}
	if !policy.LockoutSafe(policy.Policies{Resource: doc, Identity: r.identity, Boundary: r.boundary, Session: r.session}, ev.Principal(), t.ARN, c) {
		return nil, kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.LockoutMessage)
	}
	return bindings, nil
}

const actionPutKeyPolicy = "kms:PutKeyPolicy"

// MalformedDocument returns the error of IAM and STS for a policy document that policy.Parse
// refuses.
func MalformedDocument(err error) error {
	e, ok := errors.AsType[*policy.SyntaxError](err)
	if !ok {
		return err
	}
	return kmsapi.Errorf(iamapi.ErrMalformedPolicyDocument, "%s", e.ClientMessage())
}

func malformed(err error) error {
	e, ok := errors.AsType[*policy.SyntaxError](err)
	if !ok {
		return err
	}
	kind := kmsapi.ErrMalformedPolicy
	if errors.Is(err, policy.ErrTooLong) {
		kind = kmsapi.ErrLimitExceeded
	}
	return kmsapi.Errorf(kind, "%s", e.ClientMessage())
}
