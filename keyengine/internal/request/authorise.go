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

// Authorise asks whether the caller may do action to the key, in an encryption
// context if the action has one. The decision depends on the key's policy,
// whichever way it goes, and where that leaves it open on grants; the only
// identity yet is the account's root user.
func (ev *Evaluation) Authorise(t *Target, action string, context map[string]string) error {
	c := &RequestContext{Pairs: context}
	return ev.AuthoriseBy(t, action, func(g *fsmpb.Grant) bool { return c.Admits(g, action) })
}

// AuthoriseBy is authorise where it takes more than an encryption context to tell
// whether a grant of the action is good for the request.
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
	d := policy.Evaluate(req, policy.Policies{Key: doc})
	if d.Effect == policy.ImplicitDeny && grantable(action) {
		if by, g := granted(ev, t, req, doc, good); g != nil {
			return ev.Decided(req, by, g)
		}
	}
	return ev.Decided(req, d, nil)
}

// Authorised finds the key that a KeyId names and asks whether the caller may do
// action to it.
func (ev *Evaluation) Authorised(keyID string, f Forms, action string, context map[string]string) (*Target, error) {
	t, err := ev.Resolve(keyID, f, action)
	if err != nil {
		return nil, err
	}
	return t, ev.Authorise(t, action, context)
}

// Managed finds the key of an operation on keys, checks that the caller may, and
// that the key's state allows it.
func (ev *Evaluation) Managed(keyID string) (*Target, error) {
	t, err := ev.Authorised(keyID, KeyForms, ev.Op.Action(), nil)
	if err != nil {
		return nil, err
	}
	return t, ev.Op.States.Check(t.ARN, t.Key.State)
}

// AuthoriseAccount asks for what no key policy decides: operations on no key
// (resource "*") and the alias side of alias operations.
func (ev *Evaluation) AuthoriseAccount(action, resource string) error {
	req := policy.Request{Principal: ev.Caller.Identity.Principal(), Action: action, Resource: resource}
	return ev.Decided(req, policy.Evaluate(req, policy.Policies{}), nil)
}

// Decided notes a decision for the record, with the grant that it rests on if it
// does, and words it for the caller.
func (ev *Evaluation) Decided(req policy.Request, d policy.Decision, g *fsmpb.Grant) error {
	ev.decisions = append(ev.decisions, decision{req.Action, g, d})
	if d.Allowed() {
		return nil
	}
	return &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: d.Explain(req)}
}

// inaccessible denies without a word on whether there is such a key.
func (ev *Evaluation) inaccessible(action, what string) error {
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: %s %s because the resource does not exist in this Region, "+
		"no resource-based policies allow access, or a resource-based policy explicitly denies access",
		ev.Caller.Identity.Principal(), action, what)
}

// ForbiddenCiphertext denies a ciphertext whose key is gone or not the caller's
// to use.
func (ev *Evaluation) ForbiddenCiphertext(action string) error {
	return ev.inaccessible(action, "on the resource associated with this ciphertext")
}

// decision is what a record says of an authorization.
type decision struct {
	action string
	grant  *fsmpb.Grant // that allowed it, or nil
	policy.Decision
}

// maxSid is how much of a statement's name a record shows: it may be as long as a
// policy.
const maxSid = 128

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

// CheckPolicy checks a policy that a caller wants for a key: that it is one, names
// only principals that exist, and lets the caller replace it again.
func CheckPolicy(ev *Evaluation, text, keyARN string, bypass bool) error {
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		return malformed(err)
	}
	c := ev.Cluster()
	for _, p := range doc.Principals() {
		// The account's root user is the only principal that exists yet.
		if p.Kind != policy.KindRoot || p.Account != c.Account || p.Partition != "" && p.Partition != c.Partition {
			return kmsapi.Errorf(kmsapi.ErrMalformedPolicy, "%s", policy.InvalidPrincipalMessage)
		}
	}
	if !bypass && !policy.LockoutSafe(policy.Policies{Key: doc}, ev.Caller.Identity.Principal(), keyARN) {
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
