package kmsapi_test

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// model is what this test needs of AWS's service model, of which the tests in integration hold
// every limit against the answers of a server.
type model struct {
	Operations map[string]struct{ Input, Output *reference }
	Shapes     map[string]*shape
}

type reference struct{ Shape string }

type shape struct {
	Type      string
	Sensitive bool
	Required  []string
	Members   map[string]reference
	Member    reference // of a list
}

func loadModel(t *testing.T) *model {
	t.Helper()
	all := new(model)
	for _, name := range []string{"kms-2014-11-01.json", "kms-additions-2026-10-26.json"} {
		b, err := os.ReadFile("../../integration/awsmodel/" + name)
		if err != nil {
			t.Fatal(err)
		}
		m := new(model)
		if err := json.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		if all.Shapes == nil {
			all = m
			continue
		}
		for name, op := range m.Operations {
			all.Operations[name] = op
		}
		for name, s := range m.Shapes {
			if known := all.Shapes[name]; known != nil {
				for member, ref := range s.Members {
					known.Members[member] = ref
				}
				continue
			}
			all.Shapes[name] = s
		}
	}
	return all
}

// TestSchemasAreWhole: every member of every operation, at every depth, is one of AWS's model,
// and all of the model's are there; what the model calls sensitive is secret, and nothing else;
// and no record shows a blob or a grant token.
func TestSchemasAreWhole(t *testing.T) {
	m := loadModel(t)
	ops := keyengine.OperationsOf(keyengine.KMS)
	for _, op := range ops {
		of, ok := m.Operations[op.Name]
		if !ok {
			t.Errorf("AWS has no %s", op.Name)
			continue
		}
		m.compare(t, op.Name, of.Input, op.Input(), true)
		m.compare(t, op.Name, of.Output, op.Output(), false)
	}
	if len(ops) < 54 {
		t.Errorf("only %d operations", len(ops))
	}
}

func (m *model) compare(t *testing.T, path string, ref *reference, s *kmsapi.Schema, input bool) {
	var of shape
	if ref != nil {
		of = *m.Shapes[ref.Shape]
	}
	for name := range of.Members {
		if _, ok := s.Index([]byte(name)); !ok {
			t.Errorf("%s lacks %s", path, name)
		}
	}
	for i := range s.Members {
		member := &s.Members[i]
		at := path + "." + member.Name
		theirs, ok := of.Members[member.Name]
		if !ok {
			t.Errorf("AWS has no %s", at)
			continue
		}
		kind := m.Shapes[theirs.Shape]
		if want := kinds[member.Kind]; kind.Type != want {
			t.Errorf("%s is a %s, AWS's a %s", at, want, kind.Type)
		}
		// The model has one type for plaintext and this public key.
		if member.Secret != kind.Sensitive && at != "GetParametersForImport.PublicKey" {
			t.Errorf("%s: secret is %v, AWS's sensitive %v", at, member.Secret, kind.Sensitive)
		}
		if input && member.Required != slices.Contains(of.Required, member.Name) {
			t.Errorf("%s: required is %v", at, member.Required)
		}
		if member.Audited && (member.Secret || member.Kind == kmsapi.KindBlob || member.Name == "GrantTokens") {
			t.Errorf("records show %s", at)
		}
		switch member.Kind {
		case kmsapi.KindStructure:
			m.compare(t, at, &theirs, member.Inner, input)
		case kmsapi.KindStructureList:
			m.compare(t, at, &kind.Member, member.Inner, input)
		}
	}
}

// kinds are the model's names of the kinds.
var kinds = map[kmsapi.Kind]string{
	kmsapi.KindText: "string", kmsapi.KindNumber: "integer", kmsapi.KindFlag: "boolean", kmsapi.KindBlob: "blob", kmsapi.KindTime: "timestamp",
	kmsapi.KindTextList: "list", kmsapi.KindTextMap: "map", kmsapi.KindStructure: "structure", kmsapi.KindStructureList: "list",
}
