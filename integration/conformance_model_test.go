package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine"
)

// awsModel is AWS's own description of its API, which the conformance tests and
// docs/compatibility.md are generated from. testdata/README.md says where it is from.
type awsModel struct {
	Operations map[string]*awsOperation
	Shapes     map[string]*awsShape
}

type awsOperation struct {
	Name          string
	Input, Output *shapeRef
}

type shapeRef struct{ Shape string }

// awsShape is a type of the model's.
type awsShape struct {
	name      string
	Type      string
	Members   modelMembers
	Required  []string
	Enum      []string
	Min, Max  *int
	Pattern   string
	Sensitive bool
	Exception bool
	// What lists and maps hold.
	Member, Key, Value shapeRef

	pattern *regexp.Regexp
}

// modelMembers are the members of a structure in the model's order, which is that
// of the violations that an answer reports.
type modelMembers []struct{ name, shape string }

// UnmarshalJSON keeps the order.
func (m *modelMembers) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var ref shapeRef
		if err := d.Decode(&ref); err != nil {
			return err
		}
		*m = append(*m, struct{ name, shape string }{name.(string), ref.Shape})
	}
	return nil
}

func loadModel(t *testing.T) *awsModel {
	t.Helper()
	m := readModel(t, "kms-2014-11-01.json")
	m.add(t, readModel(t, "kms-additions-2026-10-26.json"))
	if len(m.Operations) != 56 {
		t.Fatalf("the model has %d operations", len(m.Operations))
	}
	for name, s := range m.Shapes {
		s.name = name
		s.asAnswered()
		if s.Pattern == "" {
			continue
		}
		// AWS matches the whole text, and writes characters as Java does.
		var err error
		expr := regexp.MustCompile(`\\u([0-9A-F]{4})`).ReplaceAllString(s.Pattern, `\x{$1}`)
		expr = strings.ReplaceAll(expr, `\p{ASCII}`, `[\x00-\x7F]`)
		if s.pattern, err = regexp.Compile(`\A(?:` + expr + `)\z`); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for key, bounds := range narrower {
		o, member, _ := strings.Cut(key, ".")
		s := *m.member(m.Operations[o].Input, member)
		s.name, s.Min, s.Max = key, &bounds[0], &bounds[1]
		m.Shapes[key] = &s
		in := m.Shapes[m.Operations[o].Input.Shape]
		for i := range in.Members {
			if in.Members[i].name == member {
				in.Members[i].shape = key
			}
		}
	}
	return m
}

func readModel(t *testing.T, name string) *awsModel {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	m := new(awsModel)
	if err := json.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// member is the shape of a structure's member.
func (m *awsModel) member(of *shapeRef, name string) *awsShape {
	for _, mm := range m.Shapes[of.Shape].Members {
		if mm.name == name {
			return m.Shapes[mm.shape]
		}
	}
	panic(fmt.Sprintf("%s has no member %s", of.Shape, name))
}

// names are those of the model's operations.
func (m *awsModel) names() []string { return slices.Sorted(maps.Keys(m.Operations)) }

// narrower are members whose bounds AWS's service has narrower than its model.
var narrower = map[string][2]int{
	"ScheduleKeyDeletion.PendingWindowInDays": {7, 30},
}

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

// totals are what maps may have of bytes in keys and values, where the model has
// no bound. These bounds are Conclave's own.
var totals = map[string]int{
	"EncryptionContextType": 8192,
}

// TestModelIsServed: the operations are those of AWS's model, each with an answer
// where AWS has one.
func TestModelIsServed(t *testing.T) {
	m := loadModel(t)
	for _, name := range m.names() {
		if keyengine.OperationNamed(name) == nil {
			t.Errorf("%s is not served", name)
		}
	}
	for _, op := range keyengine.Operations() {
		o := m.Operations[op.Name]
		if o == nil {
			t.Errorf("%s is served, and is no operation of AWS's", op.Name)
		} else if op.HasOutput() != (o.Output != nil) {
			t.Errorf("%s: has an output: %v", op.Name, op.HasOutput())
		}
	}
}

// A body of a request holds what its JSON is made from: texts, ints, bools, byte
// slices for blobs, float64s for times, []any and map[string]any. Anything else
// than what the member's shape asks for is a value of a wrong type.

// judge is what AWS says of the members of a request, by its model: the exception
// and its message; no exception where nothing is wrong with them.
func (m *awsModel) judge(op string, body map[string]any) (code, message string) {
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
	model      *awsModel
	misread    bool // a value is of a wrong type
	violations []string
}

func (j *judgement) add(value, path, constraint string) {
	j.violations = append(j.violations, value+" at '"+path+"' failed to satisfy constraint: "+constraint)
}

func (j *judgement) structure(s *awsShape, v map[string]any, prefix string) {
	for _, mm := range s.Members {
		shape, path := j.model.Shapes[mm.shape], prefix+lowerFirst(mm.name)
		if v[mm.name] != nil {
			j.value(shape, v[mm.name], path)
		} else if slices.Contains(s.Required, mm.name) {
			j.null(shape, path)
		}
	}
}

// null is a member that is not there and must be.
func (j *judgement) null(s *awsShape, path string) {
	shown := "Value null"
	if s.Sensitive {
		shown = "Value"
	}
	j.add(shown, path, "Member must not be null")
}

// lowerFirst is how AWS's messages write members. None that a request has begins
// with two capitals.
func lowerFirst(name string) string { return strings.ToLower(name[:1]) + name[1:] }

func (j *judgement) value(s *awsShape, v any, path string) {
	ok := false
	switch s.Type {
	case "string":
		var text string
		if text, ok = v.(string); ok {
			for _, c := range s.broken(text) {
				j.add(s.shown(text), path, c)
			}
		}
	case "integer":
		var n int
		if n, ok = v.(int); ok && n == int(int32(n)) {
			if c := s.bounds("value", n); c != "" {
				j.add(s.shown(fmt.Sprint(n)), path, c)
			}
		} else {
			ok = false
		}
	case "blob":
		var b []byte
		if b, ok = v.([]byte); ok {
			if c := s.bounds("length", len(b)); c != "" {
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

func (j *judgement) list(s *awsShape, list []any, path string) {
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
	if c := s.bounds("length", len(list)); c != "" {
		j.add(shown, path, c)
	}
	for _, text := range texts {
		if broken := item.broken(text); broken != nil {
			if item.Max != nil && item.bounds("length", len(text)) != "" {
				// Both bounds are named, whichever it is.
				broken = []string{fmt.Sprintf("Member must have length less than or equal to %d, Member must have length greater than or equal to %d", *item.Max, *item.Min)}
			}
			j.add(shown, path, "Member must satisfy constraint: ["+strings.Join(broken, ", ")+"]")
			return
		}
	}
}

func (j *judgement) pairs(s *awsShape, pairs map[string]any, path string) {
	size := 0
	for k, v := range pairs {
		text, ok := v.(string)
		j.misread = j.misread || !ok
		size += len(k) + len(text)
	}
	if most := totals[s.name]; most != 0 && size > most {
		j.add("Value", path, fmt.Sprintf("Member must have keys and values of at most %d bytes in all", most))
	}
}

// broken are the constraints that a text breaks.
func (s *awsShape) broken(text string) (cs []string) {
	if c := s.bounds("length", len([]rune(text))); c != "" {
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

func (s *awsShape) bounds(of string, n int) string {
	if s.Min != nil && n < *s.Min {
		return fmt.Sprintf("Member must have %s greater than or equal to %d", of, *s.Min)
	}
	if s.Max != nil && n > *s.Max {
		return fmt.Sprintf("Member must have %s less than or equal to %d", of, *s.Max)
	}
	return ""
}

func (s *awsShape) shown(text string) string {
	if s.Sensitive {
		return "Value"
	}
	return "Value '" + text + "'"
}
