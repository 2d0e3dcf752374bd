package iamapi_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// operations returns the operations whose inputs and outputs are in the package.
func operations() []*keyengine.Operation {
	return append(keyengine.OperationsOf(keyengine.IAM), keyengine.OperationsOf(keyengine.STS)...)
}

// own are the operations that AWS does not have.
var own = []string{"RevokeOpenIDConnectProviderSessions", "RevokeRoleSessions", "UpdateOpenIDConnectProviderKeys"}

// model is what these tests need of AWS's service models.
type model struct {
	Operations map[string]struct{ Input, Output *reference }
	Shapes     map[string]*shape
}

type reference struct{ Shape string }

type shape struct {
	Type       string
	Sensitive  bool
	Exception  bool
	Error      struct{ Code string }
	Required   []string
	Members    map[string]reference
	Member     reference // of a list
	Key, Value reference // of a map
	Min, Max   *int
	Pattern    string
	Enum       []string
}

// loadModels returns AWS's models by the names of the services.
func loadModels(t *testing.T) map[string]*model {
	t.Helper()
	all := make(map[string]*model)
	for service, name := range map[string]string{"iam": "iam-2010-05-08.json", "sts": "sts-2011-06-15.json"} {
		b, err := os.ReadFile("../../integration/awsmodel/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all[service] = new(model)
		if err := json.Unmarshal(b, all[service]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// secrets are the members that are secret here but not sensitive in AWS's model.
var secrets = []string{"SessionToken"}

// TestModel: members, their kinds and constraints are those of AWS's models, at every depth.
func TestModel(t *testing.T) {
	models := loadModels(t)
	left := make(map[string]bool)
	for service, m := range models {
		for name := range m.Operations {
			left[service+":"+name] = true
		}
	}
	for _, op := range operations() {
		m := models[string(op.Service)]
		of, ok := m.Operations[op.Name]
		if !ok && slices.Contains(own, op.Name) {
			continue
		}
		if !ok {
			t.Errorf("AWS has no %s:%s", op.Service, op.Name)
			continue
		}
		delete(left, string(op.Service)+":"+op.Name)
		if op.HasOutput() != (of.Output != nil) {
			t.Errorf("%s: has an output: %v", op.Name, op.HasOutput())
		}
		m.compare(t, op.Name, of.Input, op.Input(), true)
		m.compare(t, op.Name, of.Output, op.Output(), false)
	}
	if len(left) > 0 {
		t.Errorf("not compared: %v", left)
	}
}

func (m *model) compare(t *testing.T, path string, ref *reference, s *kmsapi.Schema, input bool) {
	t.Helper()
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
		ref, ok := of.Members[member.Name]
		if !ok {
			t.Errorf("AWS has no %s", at)
			continue
		}
		theirs := m.Shapes[ref.Shape]
		m.kind(t, at, member, theirs)
		if want := theirs.Sensitive || slices.Contains(secrets, member.Name); member.Secret != want {
			t.Errorf("%s: secret is %v", at, member.Secret)
		}
		if member.Audited && (member.Secret || member.Kind == kmsapi.KindBlob) {
			t.Errorf("records show %s", at)
		}
		if input {
			if member.Required != slices.Contains(of.Required, member.Name) {
				t.Errorf("%s: required is %v", at, member.Required)
			}
			m.constraints(t, at, member, theirs)
		}
		switch member.Kind {
		case kmsapi.KindStructure:
			m.compare(t, at, &ref, member.Inner, input)
		case kmsapi.KindStructureList:
			m.compare(t, at, &theirs.Member, member.Inner, input)
		}
	}
}

// kinds are the model's types of the kinds, with those of what lists and maps hold.
var kinds = map[kmsapi.Kind]string{
	kmsapi.KindText: "string", kmsapi.KindNumber: "integer", kmsapi.KindFlag: "boolean", kmsapi.KindBlob: "blob", kmsapi.KindTime: "timestamp",
	kmsapi.KindTextList: "list of string", kmsapi.KindStructureList: "list of structure", kmsapi.KindStructure: "structure",
	kmsapi.KindTextMap: "map of string", kmsapi.KindNumberMap: "map of integer",
}

func (m *model) kind(t *testing.T, at string, member *kmsapi.Member, of *shape) {
	t.Helper()
	theirs := of.Type
	switch of.Type {
	case "list":
		theirs += " of " + m.Shapes[of.Member.Shape].Type
	case "map":
		theirs += " of " + m.Shapes[of.Value.Shape].Type
	}
	if kinds[member.Kind] != theirs {
		t.Errorf("%s is a %s, AWS's a %s", at, kinds[member.Kind], theirs)
	}
}

func (m *model) constraints(t *testing.T, at string, member *kmsapi.Member, of *shape) {
	t.Helper()
	bounds, other := member.Length, member.Range
	if of.Type == "integer" {
		bounds, other = other, bounds
	}
	if other.Set {
		t.Errorf("%s has both a length and a range", at)
	}
	if got, want := text(bounds), of.bounds(); got != want {
		t.Errorf("%s: bounds are %s, AWS's %s", at, got, want)
	}
	var enum []string
	if member.Enum != nil {
		enum = member.Enum.Values()
	}
	if !slices.Equal(enum, of.Enum) {
		t.Errorf("%s: values are %v, AWS's %v", at, enum, of.Enum)
	}
	pattern := ""
	if member.Pattern != nil {
		pattern = member.Pattern.String()
	}
	if pattern != of.Pattern {
		t.Errorf("%s: pattern is %s, AWS's %s", at, pattern, of.Pattern)
	}
	if member.Kind == kmsapi.KindTextList {
		each := member.Each
		if each == nil {
			each = new(kmsapi.Member)
		}
		m.constraints(t, at+"[]", each, m.Shapes[of.Member.Shape])
	}
}

// text returns bounds in the form of the tags, or "" if there are none.
func text(b kmsapi.Bounds) string {
	if !b.Set {
		return ""
	}
	return fmt.Sprintf("%d..%d", b.Min, b.Max)
}

func (s *shape) bounds() string {
	if s.Min == nil && s.Max == nil {
		return ""
	}
	low, high := 0, int(^uint(0)>>1)
	if s.Min != nil {
		low = *s.Min
	}
	if s.Max != nil {
		high = *s.Max
	}
	return fmt.Sprintf("%d..%d", low, high)
}

// TestPatterns holds the code that matches patterns against the expressions of AWS's models,
// with random texts of the characters at the bounds of their classes. An expression with a
// lookahead, which Go does not have, is compared with what it means.
func TestPatterns(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	alphabet := []rune("aZ09_+=,.@-:/ v1\t\n\r\x00\x1f!~\x7f\u0080\u0085\u00a0\u00a1\u00ff\u0100\ud7ff\ue000\ufffd\ufffe\uffff\U00010000\U0010ffff\u2028é€")
	found := make(map[string]*kmsapi.Pattern)
	for _, op := range operations() {
		collect(op.Input(), found)
	}
	if len(found) < 15 {
		t.Fatalf("only %d patterns", len(found))
	}
	escape := regexp.MustCompile(`\\u([0-9A-F]{4,5})`)
	for expr, p := range found {
		java := expr
		if strings.Contains(expr, `(?!-)`) {
			java = `[a-z0-9]([a-z0-9]|-[a-z0-9])+`
		}
		if strings.HasSuffix(java, `\u10000-\u10FFFF]+`) {
			java = strings.TrimSuffix(java, `\u10000-\u10FFFF]+`) + `\x{10000}-\x{10FFFF}]+`
		}
		of, err := regexp.Compile(`\A(?:` + escape.ReplaceAllString(java, `\x{$1}`) + `)\z`)
		if err != nil {
			t.Fatal(err)
		}
		matched := 0
		for range 20000 {
			s := make([]rune, rng.IntN(5))
			for i := range s {
				s[i] = alphabet[rng.IntN(len(alphabet))]
				if rng.IntN(2) == 0 {
					s[i] = alphabet[rng.IntN(16)]
				}
			}
			want := of.MatchString(string(s))
			if strings.Contains(expr, `(?!-)`) && len(s) < 3 {
				want = false
			}
			if want {
				matched++
			}
			if got := p.Match(string(s)); got != want {
				t.Fatalf("%s matches %s: got %v", expr, strconv.QuoteToASCII(string(s)), got)
			}
		}
		if matched == 0 {
			t.Errorf("no text matched %s", expr)
		}
	}
}

func collect(s *kmsapi.Schema, found map[string]*kmsapi.Pattern) {
	for i := range s.Members {
		m := &s.Members[i]
		for _, m := range []*kmsapi.Member{m, m.Each} {
			if m != nil && m.Pattern != nil {
				found[m.Pattern.String()] = m.Pattern
			}
		}
		if m.Inner != nil {
			collect(m.Inner, found)
		}
	}
}

// TestErrors: every error has a code that AWS's answers have, and only one name.
func TestErrors(t *testing.T) {
	known := make(map[string]bool)
	for _, m := range loadModels(t) {
		for _, s := range m.Shapes {
			if s.Exception {
				known[s.Error.Code] = true
			}
		}
	}
	seen := make(map[kmsapi.Code]bool)
	for _, e := range append(slices.Clone(iamapi.Errors()), kmsapi.Errors()...) {
		if seen[e.Code] {
			t.Errorf("%s has two names", e.Code)
		}
		seen[e.Code] = true
	}
	for _, e := range iamapi.Errors() {
		if !known[string(e.Code)] {
			t.Errorf("AWS has no %s", e.Code)
		}
	}
}

// TestNarrows: what restricts a request, or what is created, closes the structure that it is
// in.
func TestNarrows(t *testing.T) {
	for _, in := range []any{
		iamapi.AssumeRoleInput{}, iamapi.AssumeRoleWithWebIdentityInput{}, iamapi.GetSessionTokenInput{}, iamapi.CreateUserInput{}, iamapi.CreateRoleInput{},
		iamapi.PutUserPolicyInput{}, iamapi.PutGroupPolicyInput{}, iamapi.PutRolePolicyInput{}, iamapi.CreatePolicyInput{}, iamapi.CreatePolicyVersionInput{},
		iamapi.PutUserPermissionsBoundaryInput{}, iamapi.PutRolePermissionsBoundaryInput{}, iamapi.UpdateAssumeRolePolicyInput{}, iamapi.ListPoliciesInput{},
		iamapi.GetAccountAuthorizationDetailsInput{}, iamapi.SimulateCustomPolicyInput{}, iamapi.SimulatePrincipalPolicyInput{},
	} {
		for _, op := range operations() {
			if op.Input().Type == reflect.TypeOf(in) && !op.Input().Closed {
				t.Errorf("%s is open", op.Name)
			}
		}
	}
}
