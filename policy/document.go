package policy

import "slices"

// A Document is a parsed key policy. It does not change and may be shared.
type Document struct {
	// Denies are evaluated first, so they are kept separately.
	denies, allows []statement
	principals     []Principal
}

// A statement says which principals may or may not perform which actions on
// which resources. It matches a request if all three parts do. Each part is a
// list of alternatives, and an empty one never matches.
type statement struct {
	index      int // position in the document, for the audit record
	sid        string
	principals principalSet
	actions    []glob
	resources  []glob
}

// Principals returns the principals that the document names in Allow and Deny
// statements, each once and in the order of the document, without "*". An
// account has KindRoot, whether it was written as an ARN or as a bare id; in
// the latter case its ARN and Partition are empty. AWS refuses a document that
// names a principal that does not exist, with InvalidPrincipalMessage.
func (d *Document) Principals() []Principal { return slices.Clone(d.principals) }

// concerns reports whether the statement applies to this action on this
// resource.
func (s *statement) concerns(action, resource string) bool {
	return matchAny(s.actions, action) && matchAny(s.resources, resource)
}

func matchAny(globs []glob, text string) bool {
	for i := range globs {
		if globs[i].match(text) {
			return true
		}
	}
	return false
}

// A principalSet is a statement's Principal element.
type principalSet struct {
	everybody bool
	named     []Principal
}

// reach says how an Allow reaches a caller.
type reach uint8

const (
	reachNone    reach = iota
	reachAccount       // through the account: its identity policies decide
	reachDirect        // by name, by role, or as everybody
)

// allows says how an Allow for the set reaches c.
func (set *principalSet) allows(c *Principal) reach {
	if set.everybody {
		return reachDirect
	}
	best := reachNone
	for i := range set.named {
		switch by := set.named[i].reaches(c); by {
		case reachDirect:
			return by
		case reachAccount:
			best = by
		}
	}
	return best
}

// reaches says how an Allow for p, in a policy or a grant, reaches c.
func (p *Principal) reaches(c *Principal) reach {
	switch {
	case p.Kind == KindRoot:
		if p.isAccountOf(c) {
			return reachAccount
		}
	case p.Kind == KindNone: // not a principal
	case p.ARN == c.ARN && p.Kind == c.Kind, p.Kind == KindRole && c.Kind == KindAssumedRole && p.ARN == c.Role:
		return reachDirect
	}
	return reachNone
}

// denies reports whether a Deny for the set reaches c. An account stands for
// all of its principals, and a role for all sessions of a role with that name.
// The names of roles are unique in an account regardless of their paths, so
// this is right even if the caller's session lacks the path of its role.
func (set *principalSet) denies(c *Principal) bool {
	if set.everybody {
		return true
	}
	for i := range set.named {
		p := &set.named[i]
		switch p.Kind {
		case KindRoot:
			if p.isAccountOf(c) {
				return true
			}
		case KindRole:
			if c.Kind == KindAssumedRole && p.Name == c.Name && p.Account == c.Account && p.Partition == c.Partition {
				return true
			}
		}
		if p.ARN == c.ARN {
			return true
		}
	}
	return false
}

// isAccountOf reports whether p, of KindRoot, is the account that c belongs to.
// A bare account id has no partition and stands for that account in every
// partition.
func (p *Principal) isAccountOf(c *Principal) bool {
	return p.Account == c.Account && (p.Partition == "" || p.Partition == c.Partition)
}
