package policy

import (
	"slices"
	"strings"
)

// A Kind says what a document is attached to, and so which elements it may and
// must have.
type Kind uint8

// The kinds of documents.
const (
	// KeyPolicy: the policy of a key. Every statement names principals. One
	// without actions or resources is accepted and has no effect.
	KeyPolicy Kind = iota
	// IdentityPolicy: a managed or inline policy of a user, group or role, or a
	// permissions boundary. It names no principals.
	IdentityPolicy
	// TrustPolicy: the policy of a role, which says who may assume it. It names
	// principals and actions of sts, but no resources.
	TrustPolicy
	// SessionPolicy: a policy that is passed when a role is assumed. It has the
	// form of an IdentityPolicy.
	SessionPolicy
)

// String returns what the kind is called in messages.
func (k Kind) String() string {
	switch k {
	case KeyPolicy:
		return "key policy"
	case TrustPolicy:
		return "trust policy"
	case SessionPolicy:
		return "session policy"
	default:
		return "identity policy"
	}
}

// hasPrincipals reports whether the statements of such a document name
// principals.
func (k Kind) hasPrincipals() bool { return k == KeyPolicy || k == TrustPolicy }

// A Document is a parsed policy. It does not change and may be shared. The zero
// Document has no statements: it neither allows nor denies anything, in place
// of a document of any kind.
type Document struct {
	kind Kind
	// Denies are evaluated first, so they are kept separately.
	denies, allows []statement
	principals     []Principal // of AWS elements
	providers      []Principal // of Federated elements
	keys           []string    // condition keys, sorted
}

// A statement says which principals may or may not perform which actions on
// which resources under which conditions. It matches a request if all of its
// parts do.
type statement struct {
	index      int // position in the document, for the audit record
	sid        string
	deny       bool
	principals principalSet // not of identity policies
	actions    actionSet
	resources  resourceSet
	conditions []condition
}

// An actionSet is an Action or NotAction element. The zero set matches nothing.
type actionSet struct {
	globs []glob
	not   bool // all but these
}

// A resourceSet is a Resource or NotResource element. The zero set matches
// nothing.
type resourceSet struct {
	patterns []pattern
	not      bool // all but these
	any      bool // the element does not exist in this kind of document
}

// Principals returns the principals that the document names as AWS in Principal
// and NotPrincipal elements, each once and in the order of the document,
// without "*". An account has KindRoot, whether it was written as an ARN or as
// a bare id; in the latter case its ARN and Partition are empty. Unique ids are
// as ParseUniqueID returns them. AWS refuses a document that names a principal
// that does not exist, with InvalidPrincipalMessage.
func (d *Document) Principals() []Principal { return slices.Clone(d.principals) }

// Providers returns the identity providers that the document names as
// Federated, each once and in the order of the document.
func (d *Document) Providers() []Principal { return slices.Clone(d.providers) }

// ContextKeys returns the condition keys that the document uses in conditions
// and variables, sorted, each once and as it is first written. Case is ignored
// in their names.
func (d *Document) ContextKeys() []string { return slices.Clone(d.keys) }

// contextKeys collects the condition keys of statements.
func contextKeys(lists ...[]statement) []string {
	known := make(map[string]string)
	add := func(key, name string) {
		if _, ok := known[name]; !ok {
			known[name] = key
		}
	}
	addPattern := func(p *pattern) {
		for _, part := range p.parts {
			if part.name != "" {
				add(part.key, part.name)
			}
		}
	}
	for _, statements := range lists {
		for i := range statements {
			s := &statements[i]
			for j := range s.resources.patterns {
				addPattern(&s.resources.patterns[j])
			}
			for j := range s.conditions {
				c := &s.conditions[j]
				add(c.key, c.name)
				for k := range c.patterns {
					addPattern(&c.patterns[k])
				}
				for k := range c.arns {
					a := &c.arns[k]
					if a.whole != nil {
						addPattern(a.whole)
					}
					for l := range a.parts {
						addPattern(&a.parts[l])
					}
				}
			}
		}
	}
	var keys []string
	for _, key := range known {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// match reports whether the element covers an action.
func (s *actionSet) match(action string) bool {
	if len(s.globs) == 0 {
		return false
	}
	for i := range s.globs {
		if s.globs[i].match(action) {
			return !s.not
		}
	}
	return s.not
}

// A principalSet is a Principal or NotPrincipal element.
type principalSet struct {
	everybody bool
	not       bool // all but these; only in a Deny
	named     []Principal
}

// reach says how an Allow reaches a caller.
type reach uint8

const (
	reachNone    reach = iota
	reachAccount       // through the account: its identity policies decide
	reachRole          // through the role of a session: its boundary and session policies limit it
	reachDirect        // by name, or as everybody
)

// allows says how an Allow for the set reaches c. "*" is everybody in any
// account, but not services and web identities, which belong to none.
func (set *principalSet) allows(c *Principal) reach {
	if set.everybody && c.Kind != KindService && c.Kind != KindFederated {
		return reachDirect
	}
	best := reachNone
	for i := range set.named {
		if best = max(best, set.named[i].reaches(c)); best == reachDirect {
			break
		}
	}
	return best
}

// reaches says how an Allow for p, in a policy or a grant, reaches c. An
// account's root user is the account, so nothing has to be delegated to it.
func (p *Principal) reaches(c *Principal) reach {
	switch {
	case p.Kind == KindNone: // not a principal
	case p.Kind == KindRoot:
		switch {
		case !p.isAccountOf(c) || c.Kind == KindFederated:
		case c.Kind == KindRoot:
			return reachDirect
		default:
			return reachAccount
		}
	case p.Kind == KindRole && (p.is(c) || p.isRoleOf(c)):
		return reachRole
	case p.is(c):
		return reachDirect
	}
	return reachNone
}

// is reports whether p, as a policy or a grant names it, is c.
func (p *Principal) is(c *Principal) bool {
	if p.Kind != c.Kind {
		return false
	}
	if p.ID == "" {
		return p.ARN == c.ARN
	}
	return p.ID == c.ID && (p.Kind != KindAssumedRole || p.SessionName() == c.SessionName())
}

// isRoleOf reports whether p, as a policy or a grant names it, is the role that
// the session c belongs to.
func (p *Principal) isRoleOf(c *Principal) bool {
	if p.Kind != KindRole || c.Kind != KindAssumedRole {
		return false
	}
	if p.ID == "" {
		return p.ARN == c.Role
	}
	return p.ID == c.ID
}

// denies reports whether a Deny for the set reaches c. An account stands for
// all of its principals, and a role for all of its sessions: without an ID, for
// all sessions of a role with that name. The names of roles are unique in an
// account regardless of their paths, so this is right even if the caller's
// session lacks the path of its role.
//
// A NotPrincipal spares only those for whom everything is listed that AWS tells
// authors to list, and never a principal that has a permissions boundary.
func (set *principalSet) denies(c *Principal, bounded bool) bool {
	if set.not {
		return bounded || !set.spares(c)
	}
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
			if p.isRoleOf(c) || p.ID == "" && c.Kind == KindAssumedRole && p.Name == c.Name && p.Account == c.Account && p.Partition == c.Partition {
				return true
			}
		}
		if p.is(c) {
			return true
		}
	}
	return false
}

// spares reports whether c is listed in a NotPrincipal with everything that it
// belongs to: a session with its role and account, a user or a role with its
// account.
func (set *principalSet) spares(c *Principal) bool {
	account := c.Kind == KindService || c.Kind == KindFederated // which need none
	self := c.Kind == KindRoot                                  // which is the account
	role := c.Kind != KindAssumedRole                           // all others have none
	for i := range set.named {
		p := &set.named[i]
		switch {
		case p.Kind == KindRoot:
			account = account || p.isAccountOf(c)
		case p.is(c):
			self = true
		case p.isRoleOf(c):
			role = true
		}
	}
	return account && self && role
}

// isAccountOf reports whether p, of KindRoot, is the account that c belongs to.
// A bare account id has no partition and stands for that account in every
// partition.
func (p *Principal) isAccountOf(c *Principal) bool {
	return p.Account == c.Account && (p.Partition == "" || p.Partition == c.Partition)
}
