// Package awsmodel is AWS's own description of AWS KMS: operations, shapes, what its
// service says of the members of a request, and requests in which something is wrong.
// README.md says where the files are from.
package awsmodel

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

//go:embed *.json
var files embed.FS

// Model is AWS's own description of its API, which the conformance tests and
// docs/compatibility.md are generated from.
type Model struct {
	Operations map[string]*Operation
	Shapes     map[string]*Shape
}

// Operation is one of the API, with the shapes of its request and its answer.
type Operation struct {
	Name          string
	Input, Output *ShapeRef
}

// ShapeRef is the name of a shape.
type ShapeRef struct{ Shape string }

// Shape is a type of the model's.
type Shape struct {
	Name      string `json:"-"`
	Type      string
	Members   Members
	Required  []string
	Enum      []string
	Min, Max  *int
	Pattern   string
	Sensitive bool
	Exception bool
	// What lists and maps hold.
	Member, Key, Value ShapeRef

	pattern *regexp.Regexp
}

// Members are the members of a structure in the model's order, which is that
// of the violations that an answer reports.
type Members []Member

// Member is a member of a structure, with the name of its shape.
type Member struct{ Name, Shape string }

// UnmarshalJSON keeps the order.
func (m *Members) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var ref ShapeRef
		if err := d.Decode(&ref); err != nil {
			return err
		}
		*m = append(*m, Member{name.(string), ref.Shape})
	}
	return nil
}

// Load is the model with what AWS added to it later, and with what its answers show.
func Load(t testing.TB) *Model {
	t.Helper()
	m := readModel(t, "kms-2014-11-01.json")
	m.add(t, readModel(t, "kms-additions-2026-10-26.json"))
	if len(m.Operations) != 56 {
		t.Fatalf("the model has %d operations", len(m.Operations))
	}
	for name, s := range m.Shapes {
		s.Name = name
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
		s.Name, s.Min, s.Max = key, &bounds[0], &bounds[1]
		m.Shapes[key] = &s
		in := m.Shapes[m.Operations[o].Input.Shape]
		for i := range in.Members {
			if in.Members[i].Name == member {
				in.Members[i].Shape = key
			}
		}
	}
	return m
}

func readModel(t testing.TB, name string) *Model {
	t.Helper()
	b, err := files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	m := new(Model)
	if err := json.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// member is the shape of a structure's member.
func (m *Model) member(of *ShapeRef, name string) *Shape {
	for _, mm := range m.Shapes[of.Shape].Members {
		if mm.Name == name {
			return m.Shapes[mm.Shape]
		}
	}
	panic(fmt.Sprintf("%s has no member %s", of.Shape, name))
}

// Names are those of the model's operations.
func (m *Model) Names() []string { return slices.Sorted(maps.Keys(m.Operations)) }

// narrower are members whose bounds AWS's service has narrower than its model.
var narrower = map[string][2]int{
	"ScheduleKeyDeletion.PendingWindowInDays": {7, 30},
}

// Totals are what maps may have of bytes in keys and values, where the model has
// no bound. These bounds are Conclave's own.
var Totals = map[string]int{
	"EncryptionContextType": 8192,
}

// add adds what came after the model: operations and shapes that it does not have,
// and enums and members at the end of those that it has.
func (m *Model) add(t testing.TB, later *Model) {
	t.Helper()
	for name, o := range later.Operations {
		if m.Operations[name] != nil {
			t.Fatalf("the model has %s already", name)
		}
		m.Operations[name] = o
	}
	for name, more := range later.Shapes {
		s := m.Shapes[name]
		if s == nil {
			m.Shapes[name] = more
			continue
		}
		for _, v := range more.Enum {
			if slices.Contains(s.Enum, v) {
				t.Fatalf("%s has %s already", name, v)
			}
		}
		for _, mm := range more.Members {
			if s.has(mm.Name) {
				t.Fatalf("%s has %s already", name, mm.Name)
			}
		}
		s.Enum, s.Members = append(s.Enum, more.Enum...), append(s.Members, more.Members...)
	}
}

func (s *Shape) has(member string) bool {
	return slices.ContainsFunc(s.Members, func(mm Member) bool { return mm.Name == member })
}
