package policy

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxKeyPolicySize is the size of the largest key policy, in bytes.
const MaxKeyPolicySize = 32768

// The two versions of the language. The only difference is that the newer one
// has variables.
const (
	version2008 = "2008-10-17"
	version2012 = "2012-10-17"
)

// Parse parses a key policy and compiles it for Evaluate. It accepts only what
// Evaluate fully implements. The error is a *SyntaxError that wraps
// ErrMalformed, ErrUnsupported, ErrInvalidPrincipal or ErrTooLong. Parse keeps
// no reference to doc.
//
// Parse cannot check that the principals exist, for which there is
// Document.Principals, or that somebody can still change the policy, for which
// there is LockoutSafe.
func Parse(doc []byte) (*Document, error) {
	if len(doc) > MaxKeyPolicySize {
		return nil, &SyntaxError{ErrTooLong, NoStatement, "", fmt.Sprintf("%d bytes, at most %d are allowed", len(doc), MaxKeyPolicySize)}
	}
	root, err := readJSON(doc)
	if err != nil {
		return nil, err
	}
	if root.kind != jsontext.KindBeginObject {
		return nil, malformed(NoStatement, "", "the document is not a JSON object")
	}
	version, statements := version2008, []node(nil)
	for _, m := range root.members {
		switch m.name {
		case "Version":
			if !isString(m.value) || m.value.text != version2008 && m.value.text != version2012 {
				return nil, malformed(NoStatement, "Version", fmt.Sprintf("want %q or %q", version2012, version2008))
			}
			version = m.value.text
		case "Id":
			if !isString(m.value) {
				return nil, malformed(NoStatement, "Id", "not a string")
			}
		case "Statement":
			switch m.value.kind {
			case jsontext.KindBeginObject:
				statements = []node{m.value}
			case jsontext.KindBeginArray:
				statements = m.value.items
			default:
				return nil, malformed(NoStatement, "Statement", "neither an object nor a list of objects")
			}
		default:
			return nil, malformed(NoStatement, "", "unknown element "+quoted(m.name))
		}
	}
	if len(statements) == 0 {
		return nil, malformed(NoStatement, "Statement", "a policy needs at least one")
	}
	d, known := &Document{}, make(map[Principal]bool)
	for i := range statements {
		s, deny, err := parseStatement(i, &statements[i], version)
		if err != nil {
			return nil, err
		}
		if deny {
			d.denies = append(d.denies, s)
		} else {
			d.allows = append(d.allows, s)
		}
		for _, p := range s.principals.named {
			if !known[p] {
				known[p] = true
				d.principals = append(d.principals, p)
			}
		}
	}
	return d, nil
}

// parseStatement reads one statement and reports whether it denies.
func parseStatement(index int, n *node, version string) (s statement, deny bool, err error) {
	fail := func(element, detail string) (statement, bool, error) {
		return statement{}, false, malformed(index, element, detail)
	}
	if n.kind != jsontext.KindBeginObject {
		return fail("", "not an object")
	}
	// Elements that are valid in IAM but not evaluated yet are reported first,
	// so that the author does not look for other errors, such as a "missing"
	// Principal where there is a NotPrincipal.
	for _, m := range n.members {
		switch m.name {
		case "Condition", "NotPrincipal", "NotAction", "NotResource":
			return statement{}, false, unsupported(index, m.name, "")
		}
	}
	s.index = index
	var hasEffect, hasPrincipal bool
	for _, m := range n.members {
		switch m.name {
		case "Sid":
			if !isString(m.value) {
				return fail("Sid", "not a string")
			}
			s.sid = m.value.text
		case "Effect":
			if !isString(m.value) || m.value.text != "Allow" && m.value.text != "Deny" {
				return fail("Effect", `want "Allow" or "Deny", in exactly this form`)
			}
			hasEffect, deny = true, m.value.text == "Deny"
		case "Principal":
			if s.principals, err = parsePrincipals(index, &m.value); err != nil {
				return statement{}, false, err
			}
			hasPrincipal = true
		case "Action":
			if s.actions, err = parseActions(index, &m.value); err != nil {
				return statement{}, false, err
			}
		case "Resource":
			if s.resources, err = parseResources(index, &m.value, version); err != nil {
				return statement{}, false, err
			}
		default:
			return fail("", "unknown element "+quoted(m.name))
		}
	}
	if !hasEffect {
		return fail("Effect", "missing")
	}
	if !hasPrincipal {
		return fail("Principal", "missing; every statement of a key policy needs one")
	}
	// A statement without Action or without Resource has no patterns and thus
	// never matches: AWS accepts it, and it has no effect.
	return s, deny, nil
}

// parsePrincipals parses "*", {"AWS": "..."} or {"AWS": [...]}.
func parsePrincipals(index int, n *node) (set principalSet, err error) {
	if isString(*n) {
		if n.text != "*" {
			return set, malformed(index, "Principal", quoted(n.text)+` is neither "*" nor an object such as {"AWS": "<ARN>"}`)
		}
		return principalSet{everybody: true}, nil
	}
	if n.kind != jsontext.KindBeginObject || len(n.members) == 0 {
		return set, malformed(index, "Principal", `want "*" or an object such as {"AWS": "<ARN>"}`)
	}
	for _, m := range n.members {
		switch m.name {
		case "AWS":
		case "Service", "Federated", "CanonicalUser":
			return set, unsupported(index, "Principal."+m.name, "such principals do not exist here")
		default:
			return set, malformed(index, "Principal", "unknown kind of principal "+quoted(m.name))
		}
		names, err := stringList(index, "Principal.AWS", &m.value)
		if err != nil {
			return set, err
		}
		for _, name := range names {
			if name == "*" {
				set.everybody = true
				continue
			}
			p, err := parsePrincipal(name)
			if err != nil {
				return set, &SyntaxError{ErrInvalidPrincipal, index, "Principal.AWS", err.Error()}
			}
			set.named = append(set.named, p)
		}
	}
	return set, nil
}

// parseActions parses "<service>:<action>" patterns, or "*". It is strict about
// the form, because a Deny with a typo in its Action denies nothing, which
// nobody would notice.
func parseActions(index int, n *node) ([]glob, error) {
	actions, err := stringList(index, "Action", n)
	if err != nil {
		return nil, err
	}
	globs := make([]glob, len(actions))
	for i, a := range actions {
		service, action, ok := strings.Cut(a, ":")
		if a != "*" && (!ok || service == "" || action == "" ||
			!only(service, isActionChar) || !only(action, isActionChar)) {
			return nil, malformed(index, "Action", quoted(a)+` is neither "*" nor of the form "kms:<operation>"`)
		}
		globs[i] = compileGlob(a, true)
	}
	return globs, nil
}

func isActionChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '_' || c == '*' || c == '?'
}

// parseResources parses ARN patterns, or "*". It too refuses what could never
// match, such as a pattern with a space at its end.
func parseResources(index int, n *node, version string) ([]glob, error) {
	resources, err := stringList(index, "Resource", n)
	if err != nil {
		return nil, err
	}
	globs := make([]glob, len(resources))
	for i, r := range resources {
		if version == version2012 && strings.Contains(r, "${") {
			return nil, unsupported(index, "Resource", "policy variables, here in "+quoted(r))
		}
		complete := strings.Count(r, ":") >= 5 || strings.Contains(r, "*")
		if r != "*" && (!strings.HasPrefix(r, "arn:") || !complete || !only(r, isVisible)) {
			return nil, malformed(index, "Resource", quoted(r)+` is neither "*" nor an ARN`)
		}
		globs[i] = compileGlob(r, false)
	}
	return globs, nil
}

// stringList parses a string or a list of at least one string.
func stringList(index int, element string, n *node) ([]string, error) {
	if isString(*n) {
		return []string{n.text}, nil
	}
	if n.kind != jsontext.KindBeginArray || len(n.items) == 0 {
		return nil, malformed(index, element, "want a string or a list of at least one string")
	}
	list := make([]string, len(n.items))
	for i, item := range n.items {
		if !isString(item) {
			return nil, malformed(index, element, "the list contains something other than strings")
		}
		list[i] = item.text
	}
	return list, nil
}

func isString(n node) bool { return n.kind == jsontext.KindString }

func malformed(statement int, element, detail string) error {
	return &SyntaxError{ErrMalformed, statement, element, detail}
}

func unsupported(statement int, element, detail string) error {
	return &SyntaxError{ErrUnsupported, statement, element, detail}
}
