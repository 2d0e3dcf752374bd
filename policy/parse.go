package policy

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// The sizes of the largest documents that Parse accepts, in bytes. Whether AWS's
// smaller limits in characters are kept is for the caller to check, with Size.
const (
	MaxKeyPolicySize = 32768
	// MaxPolicySize is the limit for all other kinds. It is above what IAM takes
	// from its callers, as the longest managed policy of AWS itself is.
	MaxPolicySize = 262144
)

// The two versions of the language. The only difference is that the newer one
// has variables.
const (
	version2008 = "2008-10-17"
	version2012 = "2012-10-17"
)

// Size returns the size of a document as AWS counts it for its limits: the
// number of characters that are not white space.
func Size(doc []byte) int {
	n := 0
	for _, r := range string(doc) {
		if r != ' ' && r != '\t' && r != '\n' && r != '\r' {
			n++
		}
	}
	return n
}

// Parse parses a document and compiles it for Evaluate. It accepts only what it
// fully understands: an unknown element or operator, a value of the wrong type
// and a name that appears twice are errors. The error is a *SyntaxError that
// wraps ErrMalformed, ErrInvalidPrincipal or ErrTooLong. Parse keeps no
// reference to doc.
//
// Parse cannot check that the principals exist, for which there is
// Document.Principals, or know their unique ids (Document.Bind), or that somebody can still change a key policy, for
// which there is LockoutSafe.
func Parse(kind Kind, doc []byte) (*Document, error) {
	limit := MaxPolicySize
	if kind == KeyPolicy {
		limit = MaxKeyPolicySize
	}
	if err := checkSize(doc, limit); err != nil {
		return nil, err
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
	d, known, sids, floating := &Document{kind: kind}, make(map[Principal]bool), make(map[string]bool), 0
	for i := range statements {
		p := statementParser{kind: kind, index: i, variables: version == version2012, floating: &floating}
		s, err := p.parse(&statements[i])
		if err != nil {
			return nil, err
		}
		if kind != KeyPolicy && s.sid != "" {
			if sids[s.sid] {
				return nil, p.malformed("Sid", quoted(s.sid)+" is used twice")
			}
			sids[s.sid] = true
		}
		if s.deny {
			d.denies = append(d.denies, s)
		} else {
			d.allows = append(d.allows, s)
		}
		for _, named := range s.principals.named {
			switch {
			case known[named]:
			case named.Kind == KindFederated:
				d.providers = append(d.providers, named)
			case named.Kind != KindService:
				d.principals = append(d.principals, named)
			}
			known[named] = true
		}
	}
	d.keys = contextKeys(d.denies, d.allows)
	return d, nil
}

// checkSize refuses a document of more than limit bytes.
func checkSize(doc []byte, limit int) error {
	if len(doc) > limit {
		return &SyntaxError{ErrTooLong, NoStatement, "", fmt.Sprintf("%d bytes, at most %d are allowed", len(doc), limit)}
	}
	return nil
}

// A statementParser reads one statement.
type statementParser struct {
	kind      Kind
	index     int  // of the statement
	variables bool // the version has variables
	floating  *int // see maxFloating; counts for the whole document
}

func (p *statementParser) malformed(element, detail string) error {
	return malformed(p.index, element, detail)
}

// pattern parses a text that may have variables, and wildcards if wild is set.
func (p *statementParser) pattern(text string, wild bool) (pattern, error) {
	v, err := parsePattern(text, wild, p.variables)
	if err != nil {
		return pattern{}, err
	}
	if *p.floating += v.floating(); *p.floating > maxFloating {
		return pattern{}, fmt.Errorf("the document has more than %d question marks between stars", maxFloating)
	}
	return v, nil
}

// exclusive are the pairs of elements of which a statement has at most one.
var exclusive = [...][2]string{{"Principal", "NotPrincipal"}, {"Action", "NotAction"}, {"Resource", "NotResource"}}

// parse reads a statement.
func (p *statementParser) parse(n *node) (s statement, err error) {
	if n.kind != jsontext.KindBeginObject {
		return s, p.malformed("", "not an object")
	}
	s.index = p.index
	has := make(map[string]bool, len(n.members))
	for _, m := range n.members {
		has[m.name] = true
		switch m.name {
		case "Sid":
			if !isString(m.value) {
				return s, p.malformed("Sid", "not a string")
			}
			s.sid = m.value.text
			if p.kind != KeyPolicy && !only(s.sid, isAlphanumeric) {
				return s, p.malformed("Sid", quoted(s.sid)+" has other characters than letters and digits")
			}
		case "Effect":
			if !isString(m.value) || m.value.text != "Allow" && m.value.text != "Deny" {
				return s, p.malformed("Effect", `want "Allow" or "Deny", in exactly this form`)
			}
			s.deny = m.value.text == "Deny"
		case "Principal", "NotPrincipal":
			s.principals, err = p.parsePrincipals(m.name, &m.value)
			s.principals.not = m.name == "NotPrincipal"
		case "Action", "NotAction":
			s.actions.globs, err = p.parseActions(m.name, &m.value)
			s.actions.not = m.name == "NotAction"
		case "Resource", "NotResource":
			s.resources.patterns, err = p.parseResources(m.name, &m.value)
			s.resources.not = m.name == "NotResource"
		case "Condition":
			s.conditions, err = parseConditions(p, &m.value)
		default:
			err = p.malformed("", "unknown element "+quoted(m.name))
		}
		if err != nil {
			return s, err
		}
	}
	for _, pair := range exclusive {
		if has[pair[0]] && has[pair[1]] {
			return s, p.malformed(pair[1], "in a statement that has "+pair[0]+" too")
		}
	}
	if !has["Effect"] {
		return s, p.malformed("Effect", "missing")
	}
	err = p.checkElements(&s, has)
	return s, err
}

// checkElements checks that a statement has the elements that its kind of
// document needs, and no others.
func (p *statementParser) checkElements(s *statement, has map[string]bool) error {
	principals := has["Principal"] || has["NotPrincipal"]
	actions := has["Action"] || has["NotAction"]
	resources := has["Resource"] || has["NotResource"]
	switch {
	case p.kind.hasPrincipals() && !principals:
		return p.malformed("Principal", "missing; every statement of a "+p.kind.String()+" needs one")
	case !p.kind.hasPrincipals() && principals:
		return p.malformed("Principal", "principals are named only in the policies of resources")
	case s.principals.not && !s.deny:
		return p.malformed("NotPrincipal", "only a Deny can have it")
	case s.principals.not && s.principals.everybody:
		return p.malformed("NotPrincipal", `a Deny for all but "*" denies nobody`)
	case p.kind == KeyPolicy:
		// A statement without Action or without Resource has no patterns and thus
		// never matches: AWS accepts it, and it has no effect.
		return nil
	case !actions:
		return p.malformed("Action", "missing")
	case p.kind == TrustPolicy && resources:
		return p.malformed("Resource", "the resource of a trust policy is its role, and cannot be named")
	case p.kind == TrustPolicy:
		s.resources.any = true
	case !resources:
		return p.malformed("Resource", "missing")
	}
	return nil
}

// parsePrincipals parses "*", {"AWS": "..."} or {"AWS": [...]}, and likewise
// Service and Federated.
func (p *statementParser) parsePrincipals(element string, n *node) (set principalSet, err error) {
	if isString(*n) {
		if n.text != "*" {
			return set, p.malformed(element, quoted(n.text)+` is neither "*" nor an object such as {"AWS": "<ARN>"}`)
		}
		return principalSet{everybody: true}, nil
	}
	if n.kind != jsontext.KindBeginObject || len(n.members) == 0 {
		return set, p.malformed(element, `want "*" or an object such as {"AWS": "<ARN>"}`)
	}
	for _, m := range n.members {
		var parse func(string) (Principal, error)
		switch m.name {
		case "AWS":
			parse = parseNamed
		case "Service":
			parse = ParseService
		case "Federated":
			parse = parseProvider
		case "CanonicalUser":
			return set, p.malformed(element+".CanonicalUser", "only S3 knows such principals")
		default:
			return set, p.malformed(element, "unknown kind of principal "+quoted(m.name))
		}
		names, err := p.stringList(element+"."+m.name, &m.value)
		if err != nil {
			return set, err
		}
		for _, name := range names {
			if name == "*" && m.name == "AWS" {
				set.everybody = true
				continue
			}
			named, err := parse(name)
			if err != nil {
				return set, &SyntaxError{ErrInvalidPrincipal, p.index, element + "." + m.name, strings.TrimPrefix(err.Error(), ErrInvalidPrincipal.Error()+": ")}
			}
			set.named = append(set.named, named)
		}
	}
	return set, nil
}

// parseNamed parses a principal that a document names as AWS.
func parseNamed(s string) (Principal, error) {
	if p, err := ParseUniqueID(s); err == nil {
		return p, nil
	}
	return parsePrincipal(s)
}

// parseActions parses "<service>:<action>" patterns, or "*". It is strict about
// the form, because a Deny with a typo in its Action denies nothing, which
// nobody would notice.
func (p *statementParser) parseActions(element string, n *node) ([]glob, error) {
	actions, err := p.stringList(element, n)
	if err != nil {
		return nil, err
	}
	globs := make([]glob, len(actions))
	for i, a := range actions {
		service, action, ok := strings.Cut(a, ":")
		if a != "*" && (!ok || service == "" || action == "" ||
			!only(service, isActionChar) || !only(action, isActionChar)) {
			return nil, p.malformed(element, quoted(a)+` is neither "*" nor of the form "service:operation", such as "kms:Encrypt"`)
		}
		if p.kind == TrustPolicy && lowerASCII(service) != "sts" {
			return nil, p.malformed(element, quoted(a)+" is not an action of sts, as all of a trust policy are")
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
func (p *statementParser) parseResources(element string, n *node) ([]pattern, error) {
	resources, err := p.stringList(element, n)
	if err != nil {
		return nil, err
	}
	patterns := make([]pattern, len(resources))
	for i, r := range resources {
		complete := strings.Count(r, ":") >= 5 || strings.Contains(r, "*")
		if r != "*" && (!strings.HasPrefix(r, "arn:") || !complete || !p.isResource(r)) {
			return nil, p.malformed(element, quoted(r)+` is neither "*" nor an ARN`)
		}
		if patterns[i], err = p.pattern(r, true); err != nil {
			return nil, p.malformed(element, err.Error())
		}
	}
	return patterns, nil
}

// isResource reports whether a resource has only characters that can occur in
// one: visible ASCII, between which a variable, or a name in another service
// than kms, may have spaces.
func (p *statementParser) isResource(r string) bool {
	if p.kind == KeyPolicy && !strings.Contains(r, "${") {
		return only(r, isVisible)
	}
	return r == strings.TrimSpace(r) && only(r, func(c byte) bool { return c >= ' ' && c != 0x7f })
}

// stringList parses a string or a list of at least one string.
func (p *statementParser) stringList(element string, n *node) ([]string, error) {
	if isString(*n) {
		return []string{n.text}, nil
	}
	if n.kind != jsontext.KindBeginArray || len(n.items) == 0 {
		return nil, p.malformed(element, "want a string or a list of at least one string")
	}
	list := make([]string, len(n.items))
	for i, item := range n.items {
		if !isString(item) {
			return nil, p.malformed(element, "the list contains something other than strings")
		}
		list[i] = item.text
	}
	return list, nil
}

func isString(n node) bool { return n.kind == jsontext.KindString }

func malformed(statement int, element, detail string) error {
	return &SyntaxError{ErrMalformed, statement, element, detail}
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || isDigit(c)
}
