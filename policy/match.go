package policy

import (
	"encoding/base64"
	"slices"
	"strconv"
	"time"
)

// An evaluation is one request on its way to a decision. It remembers what it
// asked the Context for.
type evaluation struct {
	req      Request // not pointers, so that they stay on the stack of Evaluate
	policies Policies
	known    [8]contextValues // the first keys that were asked for
	asked    int              // how many of them
	more     []contextValues  // further ones
	now      time.Time        // in whole seconds; zero until asked for
	absent   *[]string        // collects the keys without values, if not nil
}

type contextValues struct {
	name   string
	values []string
}

// values returns the values of a condition key, by its name in lower case. A
// key without values is as good as absent.
func (e *evaluation) values(name, key string) []string {
	values := e.lookup(name)
	if len(values) == 0 && e.absent != nil && !slices.Contains(*e.absent, key) {
		*e.absent = append(*e.absent, key)
	}
	return values
}

func (e *evaluation) lookup(name string) []string {
	if e.req.Context == nil {
		return nil
	}
	for i := range e.known[:e.asked] {
		if e.known[i].name == name {
			return e.known[i].values
		}
	}
	for i := range e.more {
		if e.more[i].name == name {
			return e.more[i].values
		}
	}
	v := contextValues{name: name}
	if c := clockOf(name); c != noClock {
		v.values = []string{e.clockText(c)}
	} else {
		v.values = e.req.Context.Values(name)
	}
	if e.asked < len(e.known) {
		e.known[e.asked] = v
		e.asked++
	} else {
		e.more = append(e.more, v)
	}
	return v.values
}

// time returns the request's time in whole seconds. There must be a Context.
func (e *evaluation) time() time.Time {
	if e.now.IsZero() {
		e.now = time.Unix(e.req.Context.Now().Unix(), 0).UTC()
	}
	return e.now
}

// clockText returns the time as text, which is right for one second.
func (e *evaluation) clockText(c clock) string {
	now := e.time()
	e.req.Context.Holds(now, now.Add(time.Second))
	if c == clockEpoch {
		return strconv.FormatInt(now.Unix(), 10)
	}
	return now.Format(time.RFC3339)
}

// A truth is the outcome of a condition. It is unknown if the condition cannot
// be evaluated as its author meant it. An Allow then does not match, and a Deny
// does.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// negate turns yes into no and no into yes.
func (t truth) negate() truth { return yes - t }

// applies reports whether a statement matches the request, as reachDirect or, for
// an Allow of a resource's policy, as the way in which it reaches the caller.
// It is reachNone if the statement does not match, or does not reach the caller
// better than by than. The parts that ask nothing of the Context come first.
// If step is not nil, applies notes in it which part failed.
func (e *evaluation) applies(d *Document, s *statement, than reach, step *Step) reach {
	if !s.actions.match(e.req.Action) {
		step.failed(ElementAction)
		return reachNone
	}
	by := reachDirect
	if d.kind.hasPrincipals() {
		caller := &e.req.Principal
		if !s.deny {
			by = s.principals.allows(caller)
		} else if !s.principals.denies(caller, e.policies.Boundary != nil) {
			by = reachNone
		}
		if by <= than {
			step.failed(ElementPrincipal)
			return reachNone
		}
	}
	enough := yes
	if s.deny {
		enough = unknown
	}
	if e.covers(&s.resources) < enough {
		step.failed(ElementResource)
		return reachNone
	}
	for i := range s.conditions {
		c := &s.conditions[i]
		if e.holds(c) < enough {
			step.failedCondition(c)
			return reachNone
		}
	}
	return by
}

// covers reports whether a Resource or NotResource element covers the request's
// resource. A Resource pattern whose variable has no value matches nothing; it
// is unknown what a NotResource pattern with one spares.
func (e *evaluation) covers(s *resourceSet) truth {
	if s.any {
		return yes
	}
	if len(s.patterns) == 0 {
		return no
	}
	result := no
	for i := range s.patterns {
		switch t := e.matchText(&s.patterns[i], e.req.Resource); {
		case t == yes:
			return truthOf(!s.not)
		case t == unknown && s.not:
			result = unknown
		}
	}
	if s.not {
		return result.negate()
	}
	return result
}

// holds evaluates a condition.
func (e *evaluation) holds(c *condition) truth {
	if c.clock != noClock && len(c.instants) > 0 && e.req.Context != nil {
		return e.clockHolds(c)
	}
	if c.clock != noClock && c.family == familyNull && e.req.Context != nil {
		return truthOf(c.bools[0]) // there always is a time
	}
	values := e.values(c.name, c.key)
	if c.family == familyNull {
		return truthOf(len(values) == 0 && c.bools[1] || len(values) > 0 && c.bools[0])
	}
	if len(values) == 0 {
		return truthOf(c.quantifier == allValues || c.ifExists || c.negated && c.quantifier == single)
	}
	switch c.quantifier {
	case anyValue:
		result := no
		for _, v := range values {
			if result = max(result, e.satisfies(c, v)); result == yes {
				break
			}
		}
		return result
	case allValues:
		result := yes
		for _, v := range values {
			if result = min(result, e.satisfies(c, v)); result == no {
				break
			}
		}
		return result
	default:
		if len(values) > 1 {
			return unknown
		}
		return e.satisfies(c, values[0])
	}
}

// satisfies reports whether one value of the request satisfies the operator.
func (e *evaluation) satisfies(c *condition, value string) truth {
	result := e.matches(c, value)
	if c.negated {
		return result.negate()
	}
	return result
}

// matches reports whether a value of the request relates to at least one of the
// condition's values as the operator says, disregarding its negation. It is
// unknown if the value is none of the operator's type, and, for a negated
// operator, if a variable has no value.
func (e *evaluation) matches(c *condition, value string) truth {
	switch c.family {
	case familyString, familyFold, familyLike:
		result := no
		for i := range c.patterns {
			t := no
			if c.family == familyFold {
				t = e.equalFold(&c.patterns[i], value)
			} else {
				t = e.matchText(&c.patterns[i], value)
			}
			if t == yes {
				return yes
			}
			result = max(result, t)
		}
		return c.unlessNegated(result)
	case familyARN:
		return e.matchARNs(c, value)
	case familyNumeric:
		d, ok := parseDecimal(value)
		if !ok {
			return unknown
		}
		for i := range c.numbers {
			if c.relation.holds(d.compare(c.numbers[i])) {
				return yes
			}
		}
	case familyDate:
		at, ok := parseInstant(value)
		if !ok {
			return unknown
		}
		for i := range c.instants {
			if c.relation.holds(at.compare(c.instants[i])) {
				return yes
			}
		}
	case familyBool:
		b, ok := parseBool(value)
		if !ok {
			return unknown
		}
		return truthOf(b && c.bools[1] || !b && c.bools[0])
	case familyBinary:
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return unknown
		}
		for i := range c.binaries {
			if c.binaries[i] == string(b) {
				return yes
			}
		}
	case familyIP:
		a, ok := parseAddress(value)
		if !ok {
			return unknown
		}
		for i := range c.prefixes {
			if c.prefixes[i].Contains(a) {
				return yes
			}
		}
	}
	return no
}

// unlessNegated turns unknown, because of a variable without a value, into no
// for an operator that is not negated: the value that contains the variable
// matches nothing.
func (c *condition) unlessNegated(t truth) truth {
	if t == unknown && !c.negated {
		return no
	}
	return t
}

// equalFold compares a value without regard to case.
func (e *evaluation) equalFold(p *pattern, value string) truth {
	want := p.glob.head.text
	if len(p.parts) > 0 {
		var ok bool
		if want, ok = e.expand(p.parts); !ok {
			return unknown
		}
	}
	return truthOf(equalFold(want, value))
}

// matchARNs matches an ARN part by part.
func (e *evaluation) matchARNs(c *condition, value string) truth {
	a, ok := splitARN(value)
	if !ok {
		return unknown
	}
	result := no
	for i := range c.arns {
		p := &c.arns[i]
		t := yes
		if p.whole != nil {
			t = e.matchWholeARN(p.whole.parts, &a)
		} else {
			for j, part := range [...]string{"arn", a.Partition, a.Service, a.Region, a.Account, a.Resource} {
				if t = min(t, e.matchText(&p.parts[j], part)); t == no {
					break
				}
			}
		}
		if t == yes {
			return yes
		}
		result = max(result, t)
	}
	return c.unlessNegated(result)
}

// matchWholeARN matches an ARN whose parts are known only with the values of
// variables.
func (e *evaluation) matchWholeARN(parts []part, a *ARN) truth {
	expanded, ok := e.expand(parts)
	if !ok {
		return unknown
	}
	want, ok := splitARN(expanded)
	if !ok {
		return no
	}
	for _, pair := range [...][2]string{
		{want.Partition, a.Partition}, {want.Service, a.Service}, {want.Region, a.Region}, {want.Account, a.Account}, {want.Resource, a.Resource},
	} {
		g := newGlob(pair[0], false)
		if !g.match(pair[1]) {
			return no
		}
	}
	return yes
}

// clockHolds evaluates a condition on the time of the request, and tells in
// which interval each comparison that it makes has the same result.
func (e *evaluation) clockHolds(c *condition) truth {
	now := e.time()
	at := instant{seconds: now.Unix()}
	result := no
	for _, v := range c.instants {
		e.tell(c.relation, at.seconds, v)
		if c.relation.holds(at.compare(v)) {
			result = yes
			break
		}
	}
	if c.negated {
		return result.negate()
	}
	return result
}

// tell tells the Context in which interval the comparison of now with v has the
// same result.
func (e *evaluation) tell(r relation, now int64, v instant) {
	// The result changes at first, and if the relation is equality, back at last.
	first, last := v.ceil(), int64(0)
	switch r {
	case lessOrEqual, greater:
		first = v.seconds + 1
	case equal:
		if v.nanos > 0 {
			return // never equal to a whole second
		}
		last = first + 1
	}
	var from, to time.Time
	switch {
	case now < first:
		to = time.Unix(first, 0).UTC()
	case r == equal && now < last:
		from, to = time.Unix(first, 0).UTC(), time.Unix(last, 0).UTC()
	case r == equal:
		from = time.Unix(last, 0).UTC()
	default:
		from = time.Unix(first, 0).UTC()
	}
	e.req.Context.Holds(from, to)
}
