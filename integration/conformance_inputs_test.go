package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestConformanceInputs sends, for each operation and each member of its request,
// down to those of structures, lists and maps, requests in which that member alone
// is wrong, in every way that the model knows of, and requests that go to the very
// bounds. What has to be answered is computed from the model.
func TestConformanceInputs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("many cases that take the same ways, one after the other: make test runs it")
	}
	m := loadModel(t)
	c := harness.Found(t, 1, harness.Options{})
	f := newFace(t, c, c.Nodes[0])
	g := newDynamic(c.Nodes[0])
	for _, op := range m.names() {
		cases := m.cases(op)
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			f := f.of(t)
			for _, tc := range cases {
				code, message := m.judge(op, tc.body)
				f.judged(op, tc, code, message)
				if code != "SerializationException" {
					g.judged(t, op, tc, message)
				}
			}
		})
	}
	t.Cleanup(c.NoFaults)
}

// judged sends a request on the AWS face. No code is expected of requests with
// nothing wrong in their members; whether they succeed is another matter.
func (f *face) judged(op string, tc inputCase, code, message string) {
	t := f.t
	t.Helper()
	body, err := json.Marshal(tc.body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.send(f.signed("TrentService."+op, string(body)))
	switch {
	case err != nil:
		t.Errorf("%s: %v", tc.what, err)
	case code == "":
		if a.Type == "SerializationException" || violated(a.Message) || a.status >= 500 {
			t.Errorf("%s: got %d %s: %.300q, but nothing is wrong with the members\n%.200s", tc.what, a.status, a.Type, a.Message, body)
		}
	case a.status != 400 || a.Type != code:
		t.Errorf("%s: got %d %s: %.300q, want %s: %.300q\n%.200s", tc.what, a.status, a.Type, a.Message, code, message, body)
	case code == "ValidationException" && a.Message != message:
		t.Errorf("%s: got the message\n%.600q, want\n%.600q", tc.what, a.Message, message)
	case a.Message == "":
		t.Errorf("%s: the %s says nothing", tc.what, code)
	}
}

// violated reports whether a message is one on members that are wrong.
func violated(message string) bool {
	return strings.Contains(message, " validation error detected: ") || strings.Contains(message, " validation errors detected: ")
}

// inputCase is a request, which has something wrong in one place, or everywhere.
type inputCase struct {
	what string
	body map[string]any
}

// cases of an operation: each member wrong alone, all at once, and nothing at all.
func (m *awsModel) cases(op string) []inputCase {
	in := m.Shapes[m.Operations[op].Input.Shape]
	var cases []inputCase
	m.members(in, op, func(v map[string]any) map[string]any { return v }, &cases)
	all := make(map[string]any)
	for _, mm := range in.Members {
		if wrong := m.violations(m.Shapes[mm.shape]); len(wrong) > 0 {
			all[mm.name] = wrong[0]
		}
	}
	return append(cases, inputCase{"nothing", map[string]any{}}, inputCase{"all members wrong", all})
}

// members adds the cases of a structure's members; put makes a body around it.
func (m *awsModel) members(s *awsShape, path string, put func(map[string]any) map[string]any, cases *[]inputCase) {
	for _, mm := range s.Members {
		with := func(v any) map[string]any {
			b := m.least(s)
			b[mm.name] = v
			return put(b)
		}
		without := m.least(s)
		delete(without, mm.name)
		*cases = append(*cases, inputCase{path + "." + mm.name + " missing", put(without)})
		m.shape(m.Shapes[mm.shape], path+"."+mm.name, with, cases)
		*cases = append(*cases, inputCase{path + "." + mm.name + " null", with(nil)})
	}
}

// shape adds the cases of a value; put makes a body around it.
func (m *awsModel) shape(s *awsShape, path string, put func(any) map[string]any, cases *[]inputCase) {
	for _, values := range [][]any{m.mistyped(s), m.violations(s), m.good(s)} {
		for _, v := range values {
			what := fmt.Sprintf("%s = %T %.60s", path, v, fmt.Sprint(v))
			*cases = append(*cases, inputCase{what, put(v)})
		}
	}
	switch s.Type {
	case "structure":
		m.members(s, path, func(b map[string]any) map[string]any { return put(b) }, cases)
	case "list":
		item := m.Shapes[s.Member.Shape]
		fine := m.good(item)[0]
		m.shape(item, path+"[1]", func(v any) map[string]any { return put([]any{v}) }, cases)
		m.shape(item, path+"[2]", func(v any) map[string]any { return put([]any{fine, v}) }, cases)
		*cases = append(*cases, inputCase{path + " with null", put([]any{nil})})
	case "map":
		m.shape(m.Shapes[s.Value.Shape], path+".k", func(v any) map[string]any { return put(map[string]any{"k": v}) }, cases)
		*cases = append(*cases, inputCase{path + " with null", put(map[string]any{"k": nil})})
	}
}

// least is a structure with the members that it must have, and nothing wrong.
func (m *awsModel) least(s *awsShape) map[string]any {
	v := make(map[string]any)
	for _, mm := range s.Members {
		if slices.Contains(s.Required, mm.name) || slices.ContainsFunc(needed[strings.TrimSuffix(s.name, "Request")], func(n need) bool {
			return n.member == mm.name && n.when == nil
		}) {
			v[mm.name] = m.good(m.Shapes[mm.shape])[0]
		}
	}
	return v
}

// mistyped are values of each type that the shape is not of.
func (m *awsModel) mistyped(s *awsShape) []any {
	all := map[string]any{"string": "eA==", "integer": 1, "boolean": true, "list": []any{"x"}, "structure": map[string]any{"k": "v"}}
	switch s.Type {
	case "blob": // which is a text of base64
		delete(all, "string")
		for _, kind := range []string{"%", "-_8=", "eA", "eA==\n"} {
			all["text "+kind] = kind
		}
	case "integer":
		all["fraction"], all["large"], all["text"] = 1.5, 1<<31, "1"
	case "timestamp":
		all["text"] = "2020-01-01T00:00:00Z"
		delete(all, "integer") // seconds without a fraction
	case "map":
		delete(all, "structure")
	}
	delete(all, s.Type)
	return slices.Collect(maps.Values(all))
}

// violations are values of the right type which the model does not allow, and some
// that it might not.
func (m *awsModel) violations(s *awsShape) (values []any) {
	switch s.Type {
	case "string":
		if s.Enum != nil {
			return []any{"NONSENSE", "", strings.ToLower(s.Enum[0] + "x"), s.Enum[0] + " ", strings.ToLower(s.Enum[len(s.Enum)-1]) + "_"}
		}
		if s.Min != nil && *s.Min > 0 {
			values = append(values, s.text(*s.Min-1))
		}
		if s.Max != nil {
			values = append(values, s.text(*s.Max+1))
		}
		if s.pattern != nil {
			some := s.text(s.some())
			for _, strange := range []string{" ", "\n", "\x00", "ü", "\u0100", "'", "😀"} {
				values = append(values, some[:len(some)-1]+strange, strange+some[1:])
			}
		}
	case "integer":
		for _, n := range []int{*s.Min - 1, *s.Max + 1, 0, -1, -1 << 31, 1<<31 - 1} {
			values = append(values, n)
		}
	case "blob":
		if s.Min != nil {
			values = append(values, make([]byte, *s.Min-1))
		}
		values = append(values, make([]byte, *s.Max+1))
	case "list":
		if s.Max != nil {
			values = append(values, slices.Repeat([]any{m.good(m.Shapes[s.Member.Shape])[0]}, *s.Max+1))
		}
	case "map":
		if most := totals[s.name]; most != 0 {
			values = append(values, map[string]any{"k": strings.Repeat("v", most)})
		}
	}
	return values
}

// good are values that a shape allows: the first an ordinary one, then those at
// its bounds.
func (m *awsModel) good(s *awsShape) (values []any) {
	switch s.Type {
	case "string":
		if s.Enum != nil {
			for _, v := range s.Enum {
				values = append(values, v)
			}
			return values
		}
		for _, n := range []*int{ptrTo(s.some()), s.Min, s.Max} {
			if n != nil && s.broken(s.text(*n)) == nil { // the shortest may be too short for the pattern
				values = append(values, s.text(*n))
			}
		}
		if s.pattern == nil && s.Max != nil {
			values = append(values, strings.Repeat("ü", *s.Max)) // characters count, not bytes
		}
	case "integer":
		return []any{*s.Min, *s.Max}
	case "blob":
		return []any{make([]byte, *s.Min), make([]byte, *s.Max)}
	case "boolean":
		return []any{false, true}
	case "timestamp":
		return []any{4102444800.0, 1.5, 0.0}
	case "structure":
		return []any{m.least(s)}
	case "list":
		one := m.good(m.Shapes[s.Member.Shape])[0]
		values = []any{[]any{one}, []any{}}
		if s.Max != nil {
			values = append(values, slices.Repeat([]any{one}, *s.Max))
		}
	case "map":
		values = []any{map[string]any{"k": "v"}, map[string]any{}, map[string]any{"": ""}}
		if most := totals[s.name]; most != 0 {
			values = append(values, map[string]any{"k": strings.Repeat("v", most-1)})
		}
	}
	return values
}

func ptrTo[T any](v T) *T { return &v }

// some is a length that fits a shape's pattern.
func (s *awsShape) some() int {
	if s.Min == nil {
		return 1
	}
	n := *s.Min
	for s.pattern != nil && n < *s.Max && !s.pattern.MatchString(s.text(n)) {
		n++
	}
	return max(n, 1)
}

// text is a text of n characters that matches the shape's pattern, if one of that
// length can.
func (s *awsShape) text(n int) string {
	before, fill, after := "", "a", ""
	switch s.name {
	case "AccountIdType":
		fill = "1"
	case "RegionType":
		after = "-test-1"
	case "CloudHsmClusterIdType":
		before = "cluster-"
	case "XksProxyUriEndpointType":
		before = "https://"
	case "XksProxyUriPathType":
		before, after = "/", "/kms/xks/v1"
	case "XksProxyVpcEndpointServiceNameType":
		before = "com.amazonaws.vpce.eu-test-1.vpce-svc-"
	case "XksProxyAuthenticationAccessKeyIdType":
		fill = "A"
	}
	whole := before + strings.Repeat(fill, max(0, n-len(before)-len(after))) + after
	return whole[:max(0, n)]
}
