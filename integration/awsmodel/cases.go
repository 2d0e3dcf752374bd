package awsmodel

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Case is a request that has something wrong in one place, or everywhere.
type Case struct {
	What string
	Body map[string]any
}

// Cases of an operation: each member wrong alone, all at once, and nothing at all.
func (m *Model) Cases(op string) []Case {
	in := m.Shapes[m.Operations[op].Input.Shape]
	var cases []Case
	m.members(in, op, func(v map[string]any) map[string]any { return v }, &cases)
	all := make(map[string]any)
	for _, mm := range in.Members {
		if wrong := m.violations(m.Shapes[mm.Shape]); len(wrong) > 0 {
			all[mm.Name] = wrong[0]
		}
	}
	return append(cases, Case{"nothing", map[string]any{}}, Case{"all members wrong", all})
}

// members adds the cases of a structure's members; put makes a body around it.
func (m *Model) members(s *Shape, path string, put func(map[string]any) map[string]any, cases *[]Case) {
	for _, mm := range s.Members {
		with := func(v any) map[string]any {
			b := m.least(s)
			b[mm.Name] = v
			return put(b)
		}
		without := m.least(s)
		delete(without, mm.Name)
		*cases = append(*cases, Case{path + "." + mm.Name + " missing", put(without)})
		m.shape(m.Shapes[mm.Shape], path+"."+mm.Name, with, cases)
		*cases = append(*cases, Case{path + "." + mm.Name + " null", with(nil)})
	}
}

// shape adds the cases of a value; put makes a body around it.
func (m *Model) shape(s *Shape, path string, put func(any) map[string]any, cases *[]Case) {
	for _, values := range [][]any{m.mistyped(s), m.violations(s), m.good(s)} {
		for _, v := range values {
			what := fmt.Sprintf("%s = %T %.60s", path, v, fmt.Sprint(v))
			*cases = append(*cases, Case{what, put(v)})
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
		*cases = append(*cases, Case{path + " with null", put([]any{nil})})
	case "map":
		m.shape(m.Shapes[s.Value.Shape], path+".k", func(v any) map[string]any { return put(map[string]any{"k": v}) }, cases)
		*cases = append(*cases, Case{path + " with null", put(map[string]any{"k": nil})})
	}
}

// least is a structure with the members that it must have, and nothing wrong.
func (m *Model) least(s *Shape) map[string]any {
	v := make(map[string]any)
	for _, mm := range s.Members {
		if slices.Contains(s.Required, mm.Name) || slices.ContainsFunc(needed[strings.TrimSuffix(s.Name, "Request")], func(n need) bool {
			return n.member == mm.Name && n.when == nil
		}) {
			v[mm.Name] = m.good(m.Shapes[mm.Shape])[0]
		}
	}
	return v
}

// mistyped are values of each type that the shape is not of.
func (m *Model) mistyped(s *Shape) []any {
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
func (m *Model) violations(s *Shape) (values []any) {
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
		if most := Totals[s.Name]; most != 0 {
			values = append(values, map[string]any{"k": strings.Repeat("v", most)})
		}
	}
	return values
}

// good are values that a shape allows: the first an ordinary one, then those at
// its bounds.
func (m *Model) good(s *Shape) (values []any) {
	switch s.Type {
	case "string":
		if s.Enum != nil {
			for _, v := range s.Enum {
				values = append(values, v)
			}
			return values
		}
		for _, n := range []*int{ptrTo(s.some()), s.Min, s.Max} {
			if n != nil && s.Broken(s.text(*n)) == nil { // the shortest may be too short for the pattern
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
		if most := Totals[s.Name]; most != 0 {
			values = append(values, map[string]any{"k": strings.Repeat("v", most-1)})
		}
	}
	return values
}

func ptrTo[T any](v T) *T { return &v }

// some is a length that fits a shape's pattern.
func (s *Shape) some() int {
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
func (s *Shape) text(n int) string {
	before, fill, after := "", "a", ""
	switch s.Name {
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
