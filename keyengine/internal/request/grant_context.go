package request

import "github.com/conclavekms/conclave/fsm/fsmpb"

// RequestContext is an encryption context as grant constraints see it: as in AWS, keys are
// compared case-insensitively and values exactly. AWS does not document which letters fold;
// only A to Z do here, as a wider comparison would allow more.
type RequestContext struct {
	Pairs map[string]string
	// folded counts the pairs, with their keys in lower case. It is built when a grant
	// first needs more than an exact match, as there may be 50,000 grants to compare.
	folded map[contextPair]int
}

type contextPair struct{ key, value string }

// Admits reports whether a grant's encryption context constraints allow an action in the
// context.
func (c *RequestContext) Admits(g *fsmpb.Grant, action string) bool {
	if operationOf(action) == OperationDescribeKey {
		return true // the action has no context
	}
	return (g.ContextEquals == nil || c.is(g.ContextEquals)) && (g.ContextSubset == nil || c.has(g.ContextSubset))
}

// is reports whether the context has exactly the pairs of the constraint.
func (c *RequestContext) is(constraint *fsmpb.GrantContext) bool {
	return len(constraint.Pairs) == len(c.Pairs) && c.has(constraint)
}

// has reports whether the context has all pairs of the constraint. Pairs whose keys differ
// only by case must occur as often.
func (c *RequestContext) has(constraint *fsmpb.GrantContext) bool {
	exact := true
	for _, p := range constraint.Pairs {
		if v, ok := c.Pairs[p.Key]; !ok || v != p.Value {
			exact = false
			break
		}
	}
	if exact {
		return true
	}
	if c.folded == nil {
		c.folded = make(map[contextPair]int, len(c.Pairs))
		for k, v := range c.Pairs {
			c.folded[contextPair{lowerASCII(k), v}]++
		}
	}
	var need [MaxConstraintPairs]contextPair
	for i, p := range constraint.Pairs {
		if i >= len(need) {
			return false // CreateGrant makes no such constraint
		}
		need[i] = contextPair{lowerASCII(p.Key), p.Value}
		times := 0
		for _, q := range need[:i+1] {
			if q == need[i] {
				times++
			}
		}
		if c.folded[need[i]] < times {
			return false
		}
	}
	return true
}

// lowerASCII returns s with the letters A to Z in lower case.
func lowerASCII(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if 'A' <= b[j] && b[j] <= 'Z' {
					b[j] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// ContextMap returns a constraint's pairs as a map.
func ContextMap(c *fsmpb.GrantContext) map[string]string {
	m := make(map[string]string, len(c.GetPairs()))
	for _, p := range c.GetPairs() {
		m[p.Key] = p.Value
	}
	return m
}

// MaxConstraintPairs is the maximum number of pairs in a constraint.
const MaxConstraintPairs = 8
