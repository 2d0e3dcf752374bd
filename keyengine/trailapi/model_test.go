package trailapi_test

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
)

// shape is what the test needs of a shape of AWS's service model.
type shape struct {
	Type      string
	Exception bool
	Required  []string
	Members   map[string]reference
	Member    reference // of a list
}

type reference struct{ Shape string }

type model struct {
	Operations map[string]struct {
		Input, Output reference
		Errors        []reference
	}
	Shapes map[string]*shape
}

// TestModel: members, their kinds, what is required, and the errors are those of AWS's model.
func TestModel(t *testing.T) {
	b, err := os.ReadFile("../../integration/awsmodel/cloudtrail-2013-11-01.json")
	if err != nil {
		t.Fatal(err)
	}
	m := new(model)
	if err := json.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	ops := keyengine.OperationsOf(keyengine.CloudTrail)
	if len(ops) != len(m.Operations) {
		t.Errorf("there are %d operations, and %d in the model", len(ops), len(m.Operations))
	}
	for _, op := range ops {
		of := m.Operations[op.Name]
		m.compare(t, op.Name, of.Input, op.Input(), true)
		m.compare(t, op.Name, of.Output, op.Output(), false)
		for _, e := range trailapi.Errors() {
			if !slices.Contains(of.Errors, reference{string(e.Code)}) || !m.Shapes[string(e.Code)].Exception {
				t.Errorf("AWS has no %s", e.Code)
			}
		}
	}
}

var kinds = map[kmsapi.Kind]string{
	kmsapi.KindText: "string", kmsapi.KindNumber: "integer", kmsapi.KindTime: "timestamp", kmsapi.KindStructureList: "list",
}

func (m *model) compare(t *testing.T, path string, ref reference, s *kmsapi.Schema, input bool) {
	t.Helper()
	of := m.Shapes[ref.Shape]
	if of == nil || len(of.Members) != len(s.Members) {
		t.Fatalf("%s: AWS has %+v", path, of)
	}
	for i := range s.Members {
		member := &s.Members[i]
		at := path + "." + member.Name
		theirs := m.Shapes[of.Members[member.Name].Shape]
		if theirs == nil {
			t.Errorf("AWS has no %s", at)
			continue
		}
		if kinds[member.Kind] != theirs.Type {
			t.Errorf("%s is a %s, AWS's a %s", at, kinds[member.Kind], theirs.Type)
		}
		if input && member.Required != slices.Contains(of.Required, member.Name) {
			t.Errorf("%s: required is %v", at, member.Required)
		}
		if member.Inner != nil {
			m.compare(t, at, theirs.Member, member.Inner, input)
		}
	}
}
