package awsmodel

import (
	"fmt"
	"slices"
	"strings"
)

// needed are members that AWS's service needs although its model does not say so,
// always or in some requests. It finds the first one when nothing is wrong with the
// others. (A dry run may do without the ciphertext if it says so.)
var needed = map[string][]need{
	"Decrypt":   {{"CiphertextBlob", nil}},
	"ReEncrypt": {{"CiphertextBlob", nil}},
	"CreateCustomKeyStore": {
		{"CloudHsmClusterId", inHSM}, {"KeyStorePassword", inHSM},
		{"XksProxyConnectivity", external}, {"XksProxyUriEndpoint", external}, {"XksProxyUriPath", external},
	},
}

type need struct {
	member string
	when   func(body map[string]any) bool // always if nil
}

// Custom key stores of either type, whose members are of that type alone: that is
// looked at before.
func external(body map[string]any) bool {
	return body["CustomKeyStoreType"] == "EXTERNAL_KEY_STORE" &&
		body["CloudHsmClusterId"] == nil && body["TrustAnchorCertificate"] == nil && body["KeyStorePassword"] == nil
}

func inHSM(body map[string]any) bool {
	for name, v := range body {
		if strings.HasPrefix(name, "Xks") && v != nil {
			return false
		}
	}
	return body["CustomKeyStoreType"] != "EXTERNAL_KEY_STORE"
}

// A body of a request holds what its JSON is made from: texts, ints, bools, byte
// slices for blobs, float64s for times, []any and map[string]any. Anything else
// than what the member's shape asks for is a value of a wrong type.

// Judge is what AWS says of the members of a request, by its model: the exception
// and its message; no exception where nothing is wrong with them.
func (m *Model) Judge(op string, body map[string]any) (code, message string) {
	j := judgement{model: m}
	j.structure(m.Shapes[m.Operations[op].Input.Shape], body, "")
	for _, n := range needed[op] {
		if body[n.member] == nil && j.violations == nil && (n.when == nil || n.when(body)) {
			j.null(m.member(m.Operations[op].Input, n.member), lowerFirst(n.member))
		}
	}
	switch n := len(j.violations); {
	case j.misread:
		return "SerializationException", ""
	case n == 0:
		return "", ""
	case n == 1:
		return "ValidationException", "1 validation error detected: " + j.violations[0]
	default:
		return "ValidationException", fmt.Sprintf("%d validation errors detected: %s", n, strings.Join(j.violations, "; "))
	}
}

type judgement struct {
	model      *Model
	misread    bool // a value is of a wrong type
	violations []string
}

func (j *judgement) add(value, path, constraint string) {
	j.violations = append(j.violations, value+" at '"+path+"' failed to satisfy constraint: "+constraint)
}

func (j *judgement) structure(s *Shape, v map[string]any, prefix string) {
	for _, mm := range s.Members {
		shape, path := j.model.Shapes[mm.Shape], prefix+lowerFirst(mm.Name)
		if v[mm.Name] != nil {
			j.value(shape, v[mm.Name], path)
		} else if slices.Contains(s.Required, mm.Name) {
			j.null(shape, path)
		}
	}
}

// null is a member that is not there and must be.
func (j *judgement) null(s *Shape, path string) {
	shown := "Value null"
	if s.Sensitive {
		shown = "Value"
	}
	j.add(shown, path, "Member must not be null")
}

// lowerFirst is how AWS's messages write members. None that a request has begins
// with two capitals.
func lowerFirst(name string) string { return strings.ToLower(name[:1]) + name[1:] }

func (j *judgement) value(s *Shape, v any, path string) {
	ok := false
	switch s.Type {
	case "string":
		var text string
		if text, ok = v.(string); ok {
			for _, c := range s.Broken(text) {
				j.add(s.shown(text), path, c)
			}
		}
	case "integer":
		var n int
		if n, ok = v.(int); ok && n == int(int32(n)) {
			if c := s.Bounds("value", n); c != "" {
				j.add(s.shown(fmt.Sprint(n)), path, c)
			}
		} else {
			ok = false
		}
	case "blob":
		var b []byte
		if b, ok = v.([]byte); ok {
			if c := s.Bounds("length", len(b)); c != "" {
				j.add("Value", path, c)
			}
		}
	case "boolean":
		_, ok = v.(bool)
	case "timestamp":
		_, ok = v.(float64)
	case "structure":
		var members map[string]any
		if members, ok = v.(map[string]any); ok {
			j.structure(s, members, path+".")
		}
	case "list":
		var list []any
		if list, ok = v.([]any); ok {
			j.list(s, list, path)
		}
	case "map":
		var pairs map[string]any
		if pairs, ok = v.(map[string]any); ok {
			j.pairs(s, pairs, path)
		}
	}
	j.misread = j.misread || !ok
}

func (j *judgement) list(s *Shape, list []any, path string) {
	item := j.model.Shapes[s.Member.Shape]
	if item.Type != "string" {
		for i, v := range list {
			j.value(item, v, fmt.Sprintf("%s.%d.member", path, i+1))
		}
		return
	}
	// Lists of texts are shown whole, with what one item breaks.
	texts := make([]string, len(list))
	for i, v := range list {
		text, ok := v.(string)
		j.misread = j.misread || !ok
		texts[i] = text
	}
	shown := "Value '[" + strings.Join(texts, ", ") + "]'"
	if c := s.Bounds("length", len(list)); c != "" {
		j.add(shown, path, c)
	}
	for _, text := range texts {
		if broken := item.Broken(text); broken != nil {
			if item.Max != nil && item.Bounds("length", len(text)) != "" {
				// Both bounds are named, whichever it is.
				broken = []string{fmt.Sprintf("Member must have length less than or equal to %d, Member must have length greater than or equal to %d", *item.Max, *item.Min)}
			}
			j.add(shown, path, "Member must satisfy constraint: ["+strings.Join(broken, ", ")+"]")
			return
		}
	}
}

func (j *judgement) pairs(s *Shape, pairs map[string]any, path string) {
	size := 0
	for k, v := range pairs {
		text, ok := v.(string)
		j.misread = j.misread || !ok
		size += len(k) + len(text)
	}
	if most := Totals[s.Name]; most != 0 && size > most {
		j.add("Value", path, fmt.Sprintf("Member must have keys and values of at most %d bytes in all", most))
	}
}

// Broken are the constraints that a text breaks.
func (s *Shape) Broken(text string) (cs []string) {
	if c := s.Bounds("length", len([]rune(text))); c != "" {
		cs = append(cs, c)
	}
	if s.Enum != nil && !slices.Contains(s.Enum, text) {
		cs = append(cs, "Member must satisfy enum value set: ["+strings.Join(s.Enum, ", ")+"]")
	}
	if s.pattern != nil && !s.pattern.MatchString(text) {
		cs = append(cs, "Member must satisfy regular expression pattern: "+s.Pattern)
	}
	return cs
}

// Bounds is the constraint on a length or a value that n breaks, if any.
func (s *Shape) Bounds(of string, n int) string {
	if s.Min != nil && n < *s.Min {
		return fmt.Sprintf("Member must have %s greater than or equal to %d", of, *s.Min)
	}
	if s.Max != nil && n > *s.Max {
		return fmt.Sprintf("Member must have %s less than or equal to %d", of, *s.Max)
	}
	return ""
}

func (s *Shape) shown(text string) string {
	if s.Sensitive {
		return "Value"
	}
	return "Value '" + text + "'"
}
