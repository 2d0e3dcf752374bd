package request

import "github.com/conclavekms/conclave/fsm/fsmpb"

// RequestContext is an encryption context as grant constraints see it: AWS compares
// keys without case there and values with it. Only the letters A to Z have another
// case here, which AWS does not say: what is more alike than that is not alike.
type RequestContext struct {
	Pairs map[string]string
	// folded counts the pairs with their keys in lower case, once some grant asks
	// for more than an exact match: there may be 50,000 grants to look at.
	folded map[contextPair]int
}

type contextPair struct{ key, value string }

// Admits tells whether a grant's encryption context constraints let an action happen
// in a context.
func (c *RequestContext) Admits(g *fsmpb.Grant, action string) bool {
	if operationOf(action) == OperationDescribeKey {
		return true // has no context
	}
	return (g.ContextEquals == nil || c.is(g.ContextEquals)) && (g.ContextSubset == nil || c.has(g.ContextSubset))
}

// is tells whether the context has the constraint's pairs and no others.
func (c *RequestContext) is(constraint *fsmpb.GrantContext) bool {
	return len(constraint.Pairs) == len(c.Pairs) && c.has(constraint)
}

// has tells whether the context has all of the constraint's pairs: as often, if
// there are several that differ only by the case of their keys.
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
			return false // CreateGrant made no such constraint
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

// lowerASCII is s with the letters A to Z in lower case, and all else as it is.
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

func ContextMap(c *fsmpb.GrantContext) map[string]string {
	m := make(map[string]string, len(c.GetPairs()))
	for _, p := range c.GetPairs() {
		m[p.Key] = p.Value
	}
	return m
}

// MaxConstraintPairs is how many pairs a constraint may have.
const MaxConstraintPairs = 8
