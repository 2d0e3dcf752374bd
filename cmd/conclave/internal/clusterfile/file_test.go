package clusterfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// write writes a file and what it refers to.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func read(t *testing.T, text string) *File {
	t.Helper()
	f, err := Read(write(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const minimal = `
account: 000000000000
regions: [eu-west-1]
shares: 3
threshold: 2
`

// TestMinimal: what people write without quotation marks means what they think, and a file with
// shares only is enough.
func TestMinimal(t *testing.T) {
	f := read(t, minimal+`
policies:
  - name: p
    document: {Version: 2012-10-17, Statement: [{Effect: Allow, Action: "*", Resource: "*", Condition: {NumericLessThan: {"aws:MultiFactorAuthAge": 12345678901234567}}}]}
`)
	if f.Account != "000000000000" || f.Partition != "aws" || f.Policies[0].Path != "/" {
		t.Errorf("got %+v", f)
	}
	want := `{"Statement":[{"Action":"*","Condition":{"NumericLessThan":{"aws:MultiFactorAuthAge":12345678901234567}},"Effect":"Allow","Resource":"*"}],"Version":"2012-10-17"}`
	if got := string(f.Policies[0].Document); got != want {
		t.Errorf("the document is %s, want %s", got, want)
	}
	req := f.Init()
	if req.Shares != 3 || req.Threshold != 2 || req.Custodians != nil || f.Names() != nil {
		t.Errorf("the request is %v", req)
	}
}

// TestCustodians: with custodians, the request says no number of shares, which an older node
// would take for shares in the clear.
func TestCustodians(t *testing.T) {
	p, err := custodian.Generate()
	if err != nil {
		t.Fatal(err)
	}
	name := write(t, "account: \"111122223333\"\nregions: [eu-west-1]\nthreshold: 1\ncustodians: [{name: alice, key_file: alice.pub}]\n")
	if _, err := Read(name); err == nil || !strings.Contains(err.Error(), "alice.pub") {
		t.Errorf("without the key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(name), "alice.pub"), []byte(p.Public()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Read(name)
	if err != nil {
		t.Fatal(err)
	}
	if req := f.Init(); req.Shares != 0 || len(req.Custodians) != 1 || req.Custodians[0].Name != "alice" || strings.TrimSpace(string(req.Custodians[0].PublicKey)) != p.Public() {
		t.Errorf("the request is %v", req)
	}
}

// bomb is a small text that would be large if its aliases were written out.
func bomb() string {
	text := "policies:\n  - name: p\n    document:\n      a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		text += fmt.Sprintf("      a%[1]d: &a%[1]d [%s]\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	return text
}

func TestRefusedFiles(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "EOF"},
		"no YAML":            {"a: [", "line 1"},
		"a list":             {"- a", "line 1: cannot unmarshal"},
		"unknown member":     {minimal + "user: []", "line 6: field user not found"},
		"unknown within":     {minimal + "users: [{nam: x}]", "line 6: field nam not found"},
		"member twice":       {minimal + "shares: 4", "line 6"},
		"no regions":         {"account: \"111122223333\"\nshares: 1\nthreshold: 1", "regions must be given"},
		"region twice":       {strings.Replace(minimal, "[eu-west-1]", "[eu-west-1, eu-west-1]", 1), "twice"},
		"region of any name": {strings.Replace(minimal, "[eu-west-1]", "[eu-west-1, here]", 1), "unlike \"here\""},
		"whole key":          {strings.Replace(minimal, "threshold: 2", "threshold: 1", 1), "gives each of them the whole key"},
		"negative":           {strings.Replace(minimal, "threshold: 2", "threshold: -1", 1), "threshold must be"},
		"too many":           {strings.Replace(minimal, "shares: 3", "shares: 17", 1), "1 to 16"},
		"both":               {minimal + "custodians: [{name: a, key: x}]", "leave it out"},
		"no key":             {minimal + "custodians: [{name: a}]", "needs a key or a key_file"},
		"same name":          {minimal + "groups: [{name: a}, {name: A}]", "groups[1] \"A\": another one has this name"},
		"policy is a list":   {minimal + "policies: [{name: p, document: [1]}]", "a policy is JSON in a string, or an object"},
		"no document":        {minimal + "policies: [{name: p}]", "policyDocument"},
		"bad document":       {minimal + "policies: [{name: p, document: '{}'}]", "document: malformed policy"},
		"no alias":           {minimal + "keys: [{spec: RSA_2048}]", "keys[0]: it has no aliases"},
		"AWS's alias":        {minimal + "keys: [{aliases: [aws/x], spec: RSA_2048, policy: '{}'}]", "policy: malformed"},
		"same account":       {minimal + "accounts: [{id: '000000000000', name: x}]", "differ from that of the first"},
		"principal":          {minimal + "certificates: [{uri: 'spiffe://a/b', principal: group/x}]", "neither user/NAME nor role/NAME"},
		"aliases":            {minimal + bomb(), "line 9"},
		"long":               {"# " + strings.Repeat("x", maxFile), "longer than"},
	} {
		if _, err := Read(write(t, c.text)); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "clusterfile.") {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}

// TestCompare: another cluster, or one whose shares were replaced, is not taken for that of the
// file.
func TestCompare(t *testing.T) {
	f := read(t, strings.Replace(minimal, "[eu-west-1]", "[eu-west-1, us-east-1, eu-west-2]", 1))
	state := func() *kmspb.SealState {
		return &kmspb.SealState{
			ClusterId: "id", Account: "000000000000", Region: "eu-west-1", MoreRegions: []string{"eu-west-2", "us-east-1"}, Partition: "aws", Threshold: 2, Shares: 3,
		}
	}
	if d := cmp.Diff(Item{Kind: "cluster", Name: "id", State: Unchanged}, f.Compare(state())); d != "" {
		t.Errorf("the same (-want +got):\n%s", d)
	}
	for want, edit := range map[string]func(*kmspb.SealState){
		"account is":    func(s *kmspb.SealState) { s.Account = "111122223333" },
		"regions is":    func(s *kmspb.SealState) { s.Region, s.MoreRegions[1] = "us-east-1", "eu-west-1" },
		"partition is":  func(s *kmspb.SealState) { s.Partition = "aws-cn" },
		"any_region is": func(s *kmspb.SealState) { s.AnyRegion = true },
		"threshold is":  func(s *kmspb.SealState) { s.Threshold = 3 },
		"shares is":     func(s *kmspb.SealState) { s.Shares = 4 },
	} {
		s := state()
		edit(s)
		if it := f.Compare(s); it.State != Differs || !strings.HasPrefix(it.Detail, want) {
			t.Errorf("got %v, want %q", it, want)
		}
	}
}

func TestSameJSON(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{`{"a":1,"b":[2]}`, ` { "b" : [2], "a" : 1 } `, true},
		{`{"a":[1,2]}`, `{"a":[2,1]}`, false},
		{`{"a":12345678901234567890}`, `{"a":12345678901234567891}`, false},
		{`{"a":"1"}`, `{"a":1}`, false},
		{`{"a":1}`, `{"a":1`, false},
	} {
		if got := sameJSON([]byte(c.a), []byte(c.b)); got != c.want {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
	}
}

// TestTags: the tags of a file are all that an object shall have; a file without any does not say.
func TestTags(t *testing.T) {
	for want, c := range map[string]struct{ is, want map[string]string }{
		"":                                {map[string]string{"a": "1"}, nil},
		`tag a is "2", and`:               {map[string]string{"a": "2"}, map[string]string{"a": "1"}},
		`tag a is "", and`:                {nil, map[string]string{"a": ""}},
		"tag b is not in the file":        {map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "1"}},
		"tag a is not in the file; tag b": {map[string]string{"a": "1", "b": "2"}, map[string]string{}},
	} {
		it := Item{State: Unchanged}
		it.compareTags(c.is, c.want)
		if (it.State == Differs) != (want != "") || !strings.HasPrefix(it.Detail, want) {
			t.Errorf("got %v, want %q", it, want)
		}
	}
}
