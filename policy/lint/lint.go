// Package lint finds what is allowed in a policy but probably not meant:
// principals that are broader than they look, conditions that do not do what
// they seem to, statements without effect, and policies that lock their owners
// out. It decides nothing: a policy with findings is evaluated all the same.
//
// Like package policy it does no I/O and reads no clock, and the same document
// always gives the same findings.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/policy"
)

// Severity says how bad a finding is.
type Severity uint8

// The severities.
const (
	Suggestion Severity = iota // can be simpler or clearer
	Warning                    // probably not what was meant
	Error                      // refused when it is set, or open to everybody
)

// String returns the severity in lower case.
func (s Severity) String() string {
	switch s {
	case Error:
		return "error"
	case Warning:
		return "warning"
	default:
		return "suggestion"
	}
}

// A Finding is one thing that is wrong with a document.
type Finding struct {
	Severity Severity
	Code     string // what kind of finding it is, such as "public-principal"; does not change between releases
	// Statement is the statement's position, from 0, or policy.NoStatement.
	Statement int
	Sid       string // of the statement
	Element   string // of the policy that the finding is about, such as "Condition.StringLike"; may be empty
	Message   string // for people, in one sentence or two
}

// String returns the finding in one line.
func (f Finding) String() string {
	where := ""
	if f.Statement != policy.NoStatement {
		where = fmt.Sprintf("Statement[%d]", f.Statement)
		if f.Sid != "" {
			where += fmt.Sprintf(" %q", f.Sid)
		}
		if f.Element != "" {
			where += "." + f.Element
		}
		where += ": "
	} else if f.Element != "" {
		where = f.Element + ": "
	}
	return fmt.Sprintf("%s: %s%s (%s)", f.Severity, where, f.Message, f.Code)
}

// A KeyType is the type of a condition key's values.
type KeyType uint8

// The types of condition keys. The zero type is not known, and everything goes
// with it.
const (
	TypeUnknown KeyType = iota
	TypeString
	TypeARN
	TypeBool
	TypeNumeric
	TypeDate
	TypeIP
	TypeBinary
)

// A Key is a condition key that exists.
type Key struct {
	// Name is the name in any case. One that ends in '/' or ':' stands for all
	// keys that begin with it, such as aws:ResourceTag/ for each tag.
	Name        string
	Type        KeyType
	Multivalued bool // a request can have several values
}

// Known is what the caller of Lint knows about the world that a policy is for.
// With the zero Known, only the document itself is looked at.
type Known struct {
	Account string   // the account that the document belongs to; empty: any
	Actions []string // all actions that exist, such as "kms:Encrypt"; nil: not checked
	Keys    []Key    // all condition keys that exist; nil: not checked
}

// multivalued are the keys of AWS with several values, for callers that do not
// say.
var multivalued = []Key{
	{Name: "aws:CalledVia", Multivalued: true}, {Name: "aws:PrincipalOrgPaths", Multivalued: true}, {Name: "aws:PrincipalServiceNamesList", Multivalued: true},
	{Name: "aws:ResourceOrgPaths", Multivalued: true}, {Name: "aws:SourceOrgPaths", Multivalued: true}, {Name: "aws:TagKeys", Multivalued: true},
	{Name: "kms:EncryptionContextKeys", Multivalued: true}, {Name: "kms:GrantOperations", Multivalued: true}, {Name: "kms:ResourceAliases", Multivalued: true},
}

// key finds a condition key among those that are known. It is false if the key
// does not exist.
func (k *Known) key(name string) (Key, bool) {
	find := func(keys []Key) (Key, bool) {
		for _, key := range keys {
			n := len(key.Name)
			prefix := strings.HasSuffix(key.Name, "/") || strings.HasSuffix(key.Name, ":")
			if len(name) > n && prefix && strings.EqualFold(name[:n], key.Name) || strings.EqualFold(name, key.Name) {
				return key, true
			}
		}
		return Key{}, false
	}
	if key, ok := find(k.Keys); ok {
		return key, true
	}
	key, ok := find(multivalued)
	return key, ok || k.Keys == nil
}

// Lint returns what it finds, in the order of the document. A document that
// cannot be parsed as its kind has one finding, which says why. Lint never
// writes to known.
func Lint(kind policy.Kind, doc []byte, known Known) []Finding {
	parsed, err := policy.Parse(kind, doc)
	if err != nil {
		return []Finding{syntaxFinding(err)}
	}
	l := &linter{kind: kind, known: &known, parsed: parsed}
	l.read(doc)
	for _, a := range known.Actions {
		l.actions = append(l.actions, strings.ToLower(a))
	}
	l.version()
	for i := range l.statements {
		s := &l.statements[i]
		l.principals(s)
		l.breadth(s)
		l.effect(s)
		l.names(s)
		l.conditions(s)
	}
	l.coverage()
	if kind == policy.KeyPolicy {
		l.lockout()
	}
	slices.SortStableFunc(l.findings, func(a, b Finding) int { return cmp.Compare(a.Statement, b.Statement) })
	return l.findings
}

// A linter is one document on its way to findings.
type linter struct {
	kind       policy.Kind
	known      *Known
	parsed     *policy.Document
	actions    []string // those of known, in lower case
	steps      int      // in which patterns were compared
	old        bool     // the version has no variables
	noVersion  bool
	statements []statement
	findings   []Finding
}

func (l *linter) add(severity Severity, code string, s *statement, element, format string, args ...any) {
	f := Finding{severity, code, policy.NoStatement, "", element, fmt.Sprintf(format, args...)}
	if s != nil {
		f.Statement, f.Sid = s.index, s.Sid
	}
	l.findings = append(l.findings, f)
}

// version finds a missing version, and variables in a version without them.
func (l *linter) version() {
	if l.noVersion {
		l.add(Suggestion, "no-version", nil, "Version", `a document without Version has that of 2008, which has no variables; write "2012-10-17"`)
	}
	if !l.old {
		return
	}
	for i := range l.statements {
		s := &l.statements[i]
		for _, text := range s.texts() {
			if strings.Contains(text, "${") {
				l.add(Warning, "variable-in-old-version", s, "", "%q is text, not a variable, in this version of the language", shorten(text))
				break
			}
		}
	}
}

// shorten cuts a text for a message.
func shorten(s string) string {
	const most = 64
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
