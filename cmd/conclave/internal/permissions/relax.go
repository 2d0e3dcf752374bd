package permissions

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/policy"
)

// Whether a condition holds is known only when a request is made, unless it is about the
// principal itself. A document is therefore read in two ways: certain, where no such condition
// of an Allow holds and all of a Deny do, and possible, where it is the other way round. What
// the certain reading allows is always allowed, and what the possible reading denies never is.

// document is a policy in the two readings.
type document struct {
	name              string // for people
	certain, possible *policy.Document
	// conditions are the conditions of the statements, by position, that decide only when a
	// request is made, and denies those of them that deny.
	conditions map[int]string
	denies     map[int]string
}

// inert is the action of statements that stand for those left out, so that the positions of
// the others stay the same.
const inert = "none:None"

// readDocument parses a policy. known reports whether the value of a condition key, in lower
// case, is known before a request is made.
func readDocument(name string, kind policy.Kind, doc string, known func(key string) bool) (*document, error) {
	if _, err := policy.Parse(kind, []byte(doc)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// Members are not repeated and have the right types, as Parse has accepted the document.
	var whole map[string]json.RawMessage
	if err := json.Unmarshal([]byte(doc), &whole); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(whole["Statement"], &list) != nil {
		list = make([]map[string]json.RawMessage, 1)
		if err := json.Unmarshal(whole["Statement"], &list[0]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	d := &document{name: name, conditions: make(map[int]string), denies: make(map[int]string)}
	certain, possible := slices.Clone(list), slices.Clone(list)
	for i, s := range list {
		if conditionKnown(s["Condition"], known) {
			continue
		}
		stripped, left := without(s, "Condition"), without(s, "Condition", "NotAction")
		left["Action"] = json.RawMessage(`"` + inert + `"`)
		var effect string
		if err := json.Unmarshal(s["Effect"], &effect); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if effect == "Allow" {
			certain[i], possible[i] = left, stripped
			d.conditions[i] = string(s["Condition"])
		} else {
			certain[i], possible[i] = stripped, left
			d.denies[i] = string(s["Condition"])
		}
	}
	var err error
	if d.certain, err = reparse(kind, whole, certain); err == nil {
		d.possible, err = reparse(kind, whole, possible)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// without returns a statement without some elements.
func without(s map[string]json.RawMessage, elements ...string) map[string]json.RawMessage {
	out := make(map[string]json.RawMessage, len(s))
	for k, v := range s {
		if !slices.Contains(elements, k) {
			out[k] = v
		}
	}
	return out
}

func reparse(kind policy.Kind, whole map[string]json.RawMessage, statements []map[string]json.RawMessage) (*policy.Document, error) {
	list, err := json.Marshal(statements)
	if err != nil {
		return nil, err
	}
	m := without(whole)
	m["Statement"] = list
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return policy.Parse(kind, doc)
}

// conditionKnown reports whether all keys of a Condition element are known. One with variables
// in its values is not: they may be anything.
func conditionKnown(raw json.RawMessage, known func(key string) bool) bool {
	if raw == nil {
		return true
	}
	var operators map[string]map[string]json.RawMessage
	if json.Unmarshal(raw, &operators) != nil {
		return false
	}
	for _, keys := range operators {
		for key, values := range keys {
			if !known(strings.ToLower(key)) || strings.Contains(string(values), "${") {
				return false
			}
		}
	}
	return true
}
