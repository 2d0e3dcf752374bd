package lint

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/policy"
)

// A statement is a statement of a document that Parse has accepted.
type statement struct {
	index                 int
	Sid, Effect           string
	Principal             principals
	NotPrincipal          *principals
	Action, NotAction     list
	Resource, NotResource list
	Condition             map[string]map[string]list
}

func (s *statement) deny() bool { return s.Effect == "Deny" }

// texts returns all texts that may have variables.
func (s *statement) texts() []string {
	texts := slices.Concat(s.Resource, s.NotResource)
	for _, c := range s.each() {
		texts = append(texts, c.values...)
	}
	return texts
}

// A condition is one key of one operator.
type condition struct {
	operator, key string
	values        list
}

// each returns the conditions in the order of their operators and keys.
func (s *statement) each() (conditions []condition) {
	for _, operator := range slices.Sorted(maps.Keys(s.Condition)) {
		for _, key := range slices.Sorted(maps.Keys(s.Condition[operator])) {
			conditions = append(conditions, condition{operator, key, s.Condition[operator][key]})
		}
	}
	return conditions
}

// base returns the operator without its prefix and suffix.
func (c condition) base() string {
	base := strings.TrimPrefix(strings.TrimPrefix(c.operator, "ForAnyValue:"), "ForAllValues:")
	return strings.TrimSuffix(base, "IfExists")
}

// positive reports whether the condition limits a statement to requests that
// have the key with one of the values.
func (c condition) positive() bool {
	return !strings.Contains(c.base(), "Not") && c.base() != "Null" && !strings.HasSuffix(c.operator, "IfExists") && !strings.HasPrefix(c.operator, "ForAllValues:")
}

// A list is a value or a list of values, as text.
type list []string

// UnmarshalJSON reads a string, a number, a boolean, or a list of these.
func (l *list) UnmarshalJSON(b []byte) error {
	items := []json.RawMessage{b}
	if b[0] == '[' {
		if err := json.Unmarshal(b, &items); err != nil {
			return err
		}
	}
	for _, item := range items {
		text := string(item)
		if item[0] == '"' {
			if err := json.Unmarshal(item, &text); err != nil {
				return err
			}
		}
		*l = append(*l, text)
	}
	return nil
}

// principals is a Principal or NotPrincipal element.
type principals struct {
	AWS, Service, Federated list
}

// UnmarshalJSON reads "*" or an object.
func (p *principals) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		p.AWS = list{"*"}
		return nil
	}
	type object principals // without this method
	return json.Unmarshal(b, (*object)(p))
}

// read decodes the statements of a document that Parse has accepted, so that
// it cannot fail.
func (l *linter) read(doc []byte) {
	var outer struct {
		Version   *string
		Statement json.RawMessage
	}
	err := json.Unmarshal(doc, &outer)
	if err == nil && outer.Statement[0] == '[' {
		err = json.Unmarshal(outer.Statement, &l.statements)
	} else if err == nil {
		l.statements = make([]statement, 1)
		err = json.Unmarshal(outer.Statement, &l.statements[0])
	}
	if err != nil {
		panic("lint: a document that was parsed cannot be read: " + err.Error())
	}
	for i := range l.statements {
		s := &l.statements[i]
		s.index = i
		for _, actions := range []list{s.Action, s.NotAction} {
			for j := range actions { // their case does not matter
				actions[j] = strings.ToLower(actions[j])
			}
		}
	}
	l.noVersion = outer.Version == nil
	l.old = l.noVersion || *outer.Version == "2008-10-17"
}

// syntaxFinding is the finding for a document that cannot be parsed.
func syntaxFinding(err error) Finding {
	f := Finding{Error, "syntax", policy.NoStatement, "", "", err.Error()}
	if se, ok := errors.AsType[*policy.SyntaxError](err); ok {
		f.Statement, f.Element = se.Statement, se.Element
		f.Message = se.Err.Error()
		if se.Detail != "" {
			f.Message += ": " + se.Detail
		}
	}
	return f
}
