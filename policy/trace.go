package policy

// An Element is a part of a statement, any of which can be why it does not
// match a request.
type Element uint8

// The elements, in the order in which they are tried.
const (
	ElementNone      Element = iota // the statement matches
	ElementAction                   // Action or NotAction
	ElementPrincipal                // Principal or NotPrincipal
	ElementResource                 // Resource or NotResource
	ElementCondition
)

// String returns the name of the element, without a Not.
func (e Element) String() string {
	switch e {
	case ElementAction:
		return "Action"
	case ElementPrincipal:
		return "Principal"
	case ElementResource:
		return "Resource"
	case ElementCondition:
		return "Condition"
	default:
		return ""
	}
}

// A Step says what became of one statement.
type Step struct {
	Reason    Reason // the kind of the policy with the statement
	Policy    int    // the policy's position in Policies.Identity or Policies.Session, else 0
	Statement int    // the statement's position in the policy
	Sid       string
	Effect    Effect // Allow or ExplicitDeny
	Matched   bool
	// Delegates is set for an Allow of a resource's policy that matches for the
	// caller's account, and so needs an Allow in an identity policy too.
	Delegates bool
	// Failed is the first element that did not match. For ElementCondition,
	// Operator and Key say which condition, as they are written.
	Failed        Element
	Operator, Key string
	// Absent are the condition keys that the statement asked for and that had no
	// value, as they are written.
	Absent []string
}

func (s *Step) failed(e Element) {
	if s != nil {
		s.Failed = e
	}
}

func (s *Step) failedCondition(c *condition) {
	if s != nil {
		s.Failed, s.Operator, s.Key = ElementCondition, c.text, c.key
	}
}

// Trace decides like Evaluate, and also says of each statement of each policy
// whether it matches, in the order of Policies, in each document as they are
// written. It looks at statements that Evaluate does not need to look at, and
// so asks the Context for more. There are no steps if the request cannot be
// evaluated at all.
func Trace(req Request, policies Policies) (Decision, []Step) {
	e := evaluation{req: req, policies: policies}
	decision := e.decide()
	if decision.Reason == ReasonRequest {
		return decision, nil
	}
	var steps []Step
	trace := func(d *Document, reason Reason, at int) {
		if d == nil {
			return
		}
		denies, allows := d.denies, d.allows
		for len(denies)+len(allows) > 0 {
			list := &denies
			if len(denies) == 0 || len(allows) > 0 && allows[0].index < denies[0].index {
				list = &allows
			}
			s := &(*list)[0]
			*list = (*list)[1:]
			step := Step{Reason: reason, Policy: at, Statement: s.index, Sid: s.sid, Effect: Allow}
			if s.deny {
				step.Effect = ExplicitDeny
			}
			e.absent = &step.Absent
			by := e.applies(d, s, reachNone, &step)
			step.Matched, step.Delegates = by != reachNone, by == reachAccount
			steps = append(steps, step)
		}
	}
	if policies.Resource != nil {
		trace(policies.Resource, policies.resourceReason(), 0)
	}
	for i, d := range policies.Identity {
		trace(d, ReasonIdentityPolicy, i)
	}
	trace(policies.Boundary, ReasonBoundary, 0)
	for i, d := range policies.Session {
		trace(d, ReasonSessionPolicy, i)
	}
	return decision, steps
}
