package request

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Authorise checks whether the caller may perform an action on the key, in an encryption
// context if the action has one. The decision depends on the key's policy, and on grants if
// the policy does not decide. The account's root user is the only identity so far.
func (ev *Evaluation) Authorise(t *Target, action string, context map[string]string) error {
	c := &RequestContext{Pairs: context}
	return ev.AuthoriseBy(t, action, func(g *fsmpb.Grant) bool { return c.Admits(g, action) })
}

// AuthoriseBy is Authorise for actions where more than the encryption context determines
// whether a grant covers the request.
func (ev *Evaluation) AuthoriseBy(t *Target, action string, good func(*fsmpb.Grant) bool) error {
	p, v := ev.KeyPolicy(t.ID)
	if p == nil {
		return fmt.Errorf("key %s has no policy", t.ID)
	}
	doc, err := ev.Policies.parsed(t.ID, v, p)
	if err != nil {
		return err
	}
	req := policy.Request{Principal: ev.Caller.Identity.Principal(), Action: action, Resource: t.ARN}
	d := policy.Evaluate(req, policy.Policies{Resource: doc})
	if d.Effect == policy.ImplicitDeny && grantable(action) {
		if by, g := granted(ev, t, req, doc, good); g != nil {
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
	req := policy.Request{Principal: ev.Caller.Identity.Principal(), Action: action, Resource: resource}
	return ev.Decided(req, policy.Evaluate(req, policy.Policies{}), nil)
}

// Decided notes a decision for the record, with the grant that allowed it, if any, and
// returns the caller's error if it is a denial.
func (ev *Evaluation) Decided(req policy.Request, d policy.Decision, g *fsmpb.Grant) error {
	ev.decisions = append(ev.decisions, decision{req.Action, g, d})
	if d.Allowed() {
		return nil
	}
	return &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: d.Explain(req)}
}

// inaccessible denies access without revealing whether the key exists.
func (ev *Evaluation) inaccessible(action, what string) error {
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: %s %s because the resource does not exist in this Region, "+
		"no resource-based policies allow access, or a resource-based policy explicitly denies access",
		ev.Caller.Identity.Principal(), action, what)
}

// ForbiddenCiphertext denies access to a ciphertext whose key is gone or may not be used by
// the caller.
func (ev *Evaluation) ForbiddenCiphertext(action string) error {
	return ev.inaccessible(action, "on the resource associated with this ciphertext")
}

// decision is an authorization decision, for the record.
type decision struct {
	action string
	grant  *fsmpb.Grant // the grant that allowed it, or nil
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
	if d.Statement != policy.NoStatement {
		b = strconv.AppendInt(append(b, " statement "...), int64(d.Statement), 10)
		if d.Sid != "" {
			b = append(append(b, ' '), strings.ToValidUTF8(d.Sid[:min(len(d.Sid), maxSid)], "")...)
		}
	}
	return string(b)
}

// CheckPolicy checks a new policy for a key: it must be valid, name only principals that
// exist, and allow the caller to replace it again unless bypass is set.
func CheckPolicy(ev *Evaluation, text, keyARN string, bypass bool) error {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(text))
	if err != nil {
		return malformed(err)
	}
	// No condition key has a value yet. A Deny whose condition is never true would deny
	// nothing, so the policy is refused.
	if keys := doc.ContextKeys(); len(keys) > 0 {
		return kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "The condition key %s is not supported.", keys[0])
	}
	c := ev.Cluster()
	if len(doc.Providers()) > 0 { // there are none yet
		return kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.InvalidPrincipalMessage)
	}
	for _, p := range doc.Principals() {
		// The account's root user is the only principal so far.
		if p.Kind != policy.KindRoot || p.Account != c.Account || p.Partition != "" && p.Partition != c.Partition {
			return kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.InvalidPrincipalMessage)
		}
	}
	if !bypass && !policy.LockoutSafe(policy.Policies{Resource: doc}, ev.Caller.Identity.Principal(), keyARN, nil) {
		return kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.LockoutMessage)
	}
	return nil
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
