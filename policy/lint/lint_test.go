package lint

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/policy"
)

var testKnown = Known{
	Account: "111122223333",
	Actions: []string{"kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:PutKeyPolicy", "kms:TagResource", "sts:AssumeRole", "iam:GetUser"},
	Keys: []Key{
		{"aws:SourceIp", TypeIP, false}, {"aws:CurrentTime", TypeDate, false}, {"aws:EpochTime", TypeDate, false}, {"aws:SecureTransport", TypeBool, false},
		{"aws:username", TypeString, false}, {"aws:TagKeys", TypeString, true}, {"aws:ResourceTag/", TypeString, false}, {"aws:SourceArn", TypeARN, false},
		{"kms:EncryptionContext:", TypeString, false}, {"kms:RotationPeriodInDays", TypeNumeric, false}, {"aws:SourceAccount", TypeString, false},
		{"kms:CallerAccount", TypeString, false}, {"sts:ExternalId", TypeString, false}, {"id.example.com:sub", TypeString, false}, {"id.example.com:aud", TypeString, false},
	},
}

const (
	accountStatement = `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}`
	use              = `"Action":"kms:Encrypt","Resource":"*"`
)

func TestLint(t *testing.T) {
	condition := func(c string) string {
		return `{"Effect":"Allow","Action":"kms:Encrypt","Resource":"arn:aws:kms:*:*:key/*","Condition":{` + c + `}}`
	}
	deny := func(c string) string {
		return `{"Effect":"Deny","Action":"kms:Encrypt","Resource":"arn:aws:kms:*:*:key/*","Condition":{` + c + `}}`
	}
	key := func(s string) string { return accountStatement + "," + s }
	for _, tt := range []struct {
		name       string
		kind       policy.Kind
		statements string
		want       []string // severity, code, statement
	}{
		{"default", policy.KeyPolicy, accountStatement, nil},
		{"syntax", policy.KeyPolicy, key(`{"Effect":"Alow"}`), []string{"error syntax 1"}},
		{"syntax of the kind", policy.IdentityPolicy, accountStatement, []string{"error syntax 0"}},

		{"public", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `}`), []string{"error public-principal 1"}},
		{"public in a list", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"AWS":["111122223333","*"]},` + use + `}`), []string{"error public-principal 1"}},
		{"public by another condition", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `,"Condition":{"Bool":{"aws:SecureTransport":"true"}}}`), []string{"warning public-principal 1"}},
		{"public but one", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `,"Condition":{"StringNotEquals":{"kms:CallerAccount":"1"}}}`), []string{"warning public-principal 1"}},
		{"public if absent", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `,"Condition":{"StringEqualsIfExists":{"kms:CallerAccount":"1"}}}`), []string{"warning public-principal 1"}},
		{"public star", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `,"Condition":{"StringLike":{"kms:CallerAccount":"*"}}}`), []string{"warning public-principal 1"}},
		{"limited", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":"*",` + use + `,"Condition":{"StringEquals":{"KMS:calleraccount":"111122223333"}}}`), nil},
		{"denied to all", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*",` + use + `,"Condition":{"Bool":{"aws:SecureTransport":"false"}}}`), nil},
		{"public role", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole"}`, []string{"error public-principal 0"}},
		{"service", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"Service":"a.b.c"},` + use + `}`), []string{"warning confused-deputy 1"}},
		{"service for an account", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"Service":"a.b.c"},` + use + `,"Condition":{"StringEquals":{"aws:SourceAccount":"111122223333"}}}`), nil},
		{"provider", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/id.example.com"},"Action":"sts:*","Condition":{"StringEquals":{"id.example.com:aud":"a"}}}`, []string{"warning any-subject 0"}},
		{"provider, audience", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/id.example.com"},"Action":"sts:*","Condition":{"StringEquals":{"id.example.com:sub":"a"}}}`, []string{"warning any-audience 0"}},
		{"provider, any subject", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/id.example.com"},"Action":"sts:*","Condition":{"StringLike":{"id.example.com:sub":"*"}}}`, []string{"warning any-subject 0"}},
		{"provider, limited", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/id.example.com"},"Action":"sts:*","Condition":{"StringEquals":{"id.example.com:sub":"a","id.example.com:aud":"b"}}}`, nil},
		{"foreign account", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":"sts:AssumeRole"}`, []string{"suggestion no-external-id 0"}},
		{"foreign account, limited", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"sts:ExternalId":"1"}}}`, nil},
		{"own account", policy.TrustPolicy, `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"sts:AssumeRole"}`, nil},
		{"foreign administrator", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":"KMS:*","Resource":"*"}`), []string{"warning foreign-administrator 1"}},
		{"NotPrincipal", policy.KeyPolicy, key(`{"Effect":"Deny","NotPrincipal":{"AWS":"111122223333"},"Action":"kms:Encrypt","Resource":"*"}`), []string{"suggestion not-principal 1"}},

		{"NotAction", policy.IdentityPolicy, `{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`, []string{"warning allow-not-action 0"}},
		{"NotAction denied", policy.IdentityPolicy, `{"Effect":"Deny","NotAction":"iam:*","Resource":"*"}`, nil},
		{"NotResource", policy.IdentityPolicy, `{"Effect":"Allow","Action":"kms:Encrypt","NotResource":"arn:aws:kms:*:*:key/a"}`, []string{"warning allow-not-resource 0"}},
		{"everything", policy.IdentityPolicy, `{"Effect":"Allow","Action":"*","Resource":"*"}`, []string{"warning allow-everything 0"}},
		{"decrypt", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:De*"],"Resource":"*"}`, []string{"warning decrypt-with-all-keys 0"}},
		{"re-encrypt", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:Re*"],"Resource":["*"]}`, []string{"warning decrypt-with-all-keys 0"}},
		{"decrypt with some", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:De*"],"Resource":"arn:aws:kms:*:*:key/*"}`, nil},

		{"no action", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*","Resource":"*"}`), []string{"warning no-effect 1"}},
		{"no resource", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt"}`), []string{"warning no-effect 1"}},
		{"alias", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"arn:aws:kms:*:111122223333:alias/a"}`), []string{"warning no-key 1"}},
		{"bucket", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":["arn:aws:s3:::a","arn:aws:kms:us-east-1:111122223333:key/*","arn:*:k*/?"]}`), []string{"warning no-key 1"}},
		{"unknown action", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:Encrypt","KMS:encrypt*","kms:Encyrpt","s3:Get*","kms:*"],"Resource":"arn:aws:kms:*:*:key/*"}`, []string{"warning unknown-action 0", "suggestion unknown-service 0"}},
		{"unknown key", policy.IdentityPolicy, condition(`"StringEquals":{"aws:userName":"a","aws:user":"b","aws:ResourceTag/x":"c","aws:ResourceTag/":"d","kms:EncryptionContext:x":"e"}`), []string{"warning unknown-key 0"}},

		{"empty condition", policy.IdentityPolicy, condition(``), []string{"suggestion empty-condition 0"}},
		{"empty operator", policy.IdentityPolicy, condition(`"Bool":{}`), []string{"suggestion empty-condition 0"}},
		{"multivalued", policy.IdentityPolicy, condition(`"StringEquals":{"aws:TagKeys":"a"}`), []string{"warning multivalued-key 0"}},
		{"multivalued denied", policy.IdentityPolicy, deny(`"StringNotEqualsIfExists":{"aws:tagkeys":"a"}`), []string{"warning multivalued-key 0"}},
		{"multivalued null", policy.IdentityPolicy, deny(`"Null":{"aws:TagKeys":"true"}`), nil},
		{"any value", policy.IdentityPolicy, condition(`"ForAnyValue:StringEquals":{"aws:TagKeys":"a"}`), nil},
		{"set of one", policy.IdentityPolicy, condition(`"ForAnyValue:StringEquals":{"aws:username":"a"}`), []string{"warning set-of-one 0"}},
		{"all values", policy.IdentityPolicy, condition(`"ForAllValues:StringEquals":{"aws:TagKeys":"a"}`), []string{"warning for-all-values 0"}},
		{"all values required", policy.IdentityPolicy, condition(`"ForAllValues:StringEquals":{"aws:TagKeys":"a"},"Null":{"AWS:TagKeys":false}`), nil},
		{"all values denied", policy.IdentityPolicy, deny(`"ForAllValues:StringEquals":{"aws:TagKeys":"a"}`), nil},
		{"string of an address", policy.IdentityPolicy, condition(`"StringEquals":{"aws:SourceIp":"10.0.0.1"}`), nil},
		{"number of an address", policy.IdentityPolicy, condition(`"NumericEquals":{"aws:SourceIp":"10"}`), []string{"warning wrong-operator 0"}},
		{"address of a name", policy.IdentityPolicy, condition(`"IpAddress":{"aws:username":"10.0.0.1"}`), []string{"warning wrong-operator 0"}},
		{"number of a tag", policy.IdentityPolicy, condition(`"NumericEquals":{"aws:ResourceTag/level":"10"},"NumericLessThan":{"aws:EpochTime":1782907200}`), nil},
		{"wildcard", policy.IdentityPolicy, condition(`"StringEquals":{"aws:username":["a*","${*}"]}`), []string{"warning wildcard-in-equals 0"}},
		{"wildcard like", policy.IdentityPolicy, condition(`"StringLike":{"aws:username":["a*"]},"ArnEquals":{"aws:SourceArn":"arn:aws:s3:::*"}`), nil},

		{"unreachable", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/a"},` + use + `},{"Effect":"Deny","Principal":{"AWS":"111122223333"},"Action":"kms:En*","Resource":"*"}`), []string{"warning unreachable 1"}},
		{"reachable by a condition", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/a"},` + use + `},{"Effect":"Deny","Principal":{"AWS":"111122223333"},"Action":"kms:En*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`), nil},
		{"reachable by another action", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt"],"Resource":"arn:aws:kms:*:*:key/a"},{"Effect":"Deny","Action":"kms:Encrypt","Resource":"*"}`, nil},
		{"redundant", policy.IdentityPolicy, `{"Effect":"Allow","Action":["kms:Encrypt"],"Resource":"arn:aws:kms:*:*:key/a"},{"Effect":"Allow","Action":"kms:E*","Resource":"arn:aws:kms:*:*:key/?"}`, []string{"suggestion redundant 0"}},
		{"repeated", policy.IdentityPolicy, deny(`"Bool":{"aws:SecureTransport":"false"}`) + "," + deny(`"Bool":{"aws:SecureTransport":"false"}`), []string{"suggestion redundant 1"}},
		{"not the account's", policy.KeyPolicy, key(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/a"},` + use + `}`), nil},

		{"locked out", policy.KeyPolicy, `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:Encrypt","Resource":"*"}`, []string{"warning lock-out -1"}},
		{"locked out by a Deny", policy.KeyPolicy, key(`{"Effect":"Deny","Principal":"*","Action":"kms:Put*","Resource":"*"}`), []string{"warning lock-out -1"}},
		{"locked out by NotPrincipal", policy.KeyPolicy, key(`{"Effect":"Deny","NotPrincipal":{"AWS":"arn:aws:iam::111122223333:user/a"},"Action":"kms:Put*","Resource":"*"}`), []string{"warning lock-out -1", "suggestion not-principal 1"}},
		{"locked out by a condition", policy.KeyPolicy, `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}`, []string{"warning lock-out -1"}},
		{"only a user", policy.KeyPolicy, `{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/a"},"Action":"kms:*","Resource":"*"}`, []string{"suggestion no-account-statement -1"}},
		{"only others", policy.KeyPolicy, `{"Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":"kms:Encrypt","Resource":"*"}`, []string{"warning lock-out -1"}},
		{"one key", policy.KeyPolicy, `{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"arn:aws:kms:eu-central-1:111122223333:key/abc"}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			findings := Lint(tt.kind, []byte(`{"Version":"2012-10-17","Statement":[`+tt.statements+`]}`), testKnown)
			var got []string
			for _, f := range findings {
				got = append(got, fmt.Sprintf("%s %s %d", f.Severity, f.Code, f.Statement))
				if f.Message == "" || f.String() == "" {
					t.Errorf("no message: %+v", f)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s%v", diff, findings)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	statement := `{"Effect":"Allow","Action":"kms:Encrypt","Resource":"arn:aws:kms:*:*:key/${aws:username}"}`
	for doc, want := range map[string][]string{
		`{"Version":"2012-10-17","Statement":` + statement + `}`: nil,
		`{"Version":"2008-10-17","Statement":` + statement + `}`: {
			`warning: Statement[0]: "arn:aws:kms:*:*:key/${aws:username}" is text, not a variable, in this version of the language (variable-in-old-version)`},
		`{"Statement":{"Sid":"A","Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:x":"${aws:y}"}}}}`: {
			`suggestion: Version: a document without Version has that of 2008, which has no variables; write "2012-10-17" (no-version)`,
			`warning: Statement[0] "A": "${aws:y}" is text, not a variable, in this version of the language (variable-in-old-version)`},
	} {
		var got []string
		for _, f := range Lint(policy.IdentityPolicy, []byte(doc), Known{}) {
			got = append(got, f.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", doc, diff)
		}
	}
}

// TestCovers: a pattern that covers another one matches all that it matches.
func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		pattern, other string
		want           bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"*", "", true}, {"*", "*", true}, {"*", "a?*", true}, {"a*", "a*b", true}, {"a*b", "a*", false}, {"a*b", "a*c*b", true},
		{"?", "?", true}, {"?", "a", true}, {"?", "*", false}, {"??", "a?", true}, {"a", "?", false}, {"?*", "*", false}, {"?*", "a*", true}, {"kms:*", "kms:describe*", true}, {"*a*", "*ba", true},
	} {
		if got := covers(tt.pattern, tt.other); got != tt.want {
			t.Errorf("covers(%q, %q) = %v, want %v", tt.pattern, tt.other, got, tt.want)
		}
	}
}

func TestFits(t *testing.T) {
	for _, tt := range []struct {
		pattern, shape string
		want           bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"", "", true}, {"", "*", true}, {"", "a", false}, {"*", "*", true}, {"a*", "*b", true}, {"?", "*", true}, {"?", "", false}, {"?", "a", true},
		{"a?c", "ab*", true}, {"a?c", "ab", false}, {"*a", "b*", true}, {"x*a", "b*", false}, {"a:b", "a*b", false}, {"a?b", "a*b", true}, {"*", "a:b", true},
		{"arn:*:s?", "arn:*:kms:*:*:key/*", false}, {"arn:*", "arn:*:kms:*:*:key/*", true}, {"arn:aws:kms:*:*:alias/a", "arn:*:kms:*:*:key/*", false},
		{"arn:aws:kms:*", "arn:*:kms:*:*:key/*", true}, {"arn:aws:kms:*:*:key/a:b", "arn:*:kms:*:*:key/*", false}, {testARN, "arn:*:kms:*:*:key/*", true},
	} {
		if got := fits(tt.pattern, tt.shape); got != tt.want {
			t.Errorf("fits(%q, %q) = %v, want %v", tt.pattern, tt.shape, got, tt.want)
		}
	}
}

const testARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// TestManagedPolicies: no managed policy of AWS, which are long and of all
// kinds, is too much.
func TestManagedPolicies(t *testing.T) {
	f, err := os.Open("../testdata/managed-policies.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	counts := make(map[string]int)
	n := 0
	for ; lines.Scan(); n++ {
		var p struct {
			Name     string          `json:"name"`
			Document json.RawMessage `json:"document"`
		}
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, f := range Lint(policy.IdentityPolicy, p.Document, Known{}) {
			counts[f.Code]++
			if f.Severity == Error {
				t.Errorf("%s: %v", p.Name, f)
			}
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s took %v", p.Name, d)
		}
	}
	t.Log(counts)
	if n < 1500 || lines.Err() != nil || counts["allow-everything"] == 0 || counts["redundant"] == 0 {
		t.Errorf("%d policies, %v, findings %v", n, lines.Err(), counts)
	}
}

// TestLintIsBounded lints the greatest documents, whose statements and patterns
// all have to be compared.
func TestLintIsBounded(t *testing.T) {
	fill := func(before, item, after string) string {
		n := (policy.MaxPolicySize - len(before) - len(after)) / (len(item) + 1)
		return before + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + after
	}
	half := strings.Repeat(`"kms:*a*b*c*d",`, policy.MaxPolicySize/40)
	for name, doc := range map[string]string{
		"statements": fill(`{"Statement":[`, `{"Effect":"Deny","Action":"*","Resource":"*"}`, `]}`),
		"conditions": fill(`{"Statement":[`, `{"Effect":"Deny","Action":"a:b","Resource":"*","Condition":{"Bool":{"a:b":true}}}`, `]}`),
		"patterns":   `{"Statement":[{"Effect":"Deny","Action":[` + half + `"a:b"],"Resource":"*"},{"Effect":"Allow","Action":[` + half + `"a:b"],"Resource":"*"}]}`,
	} {
		start := time.Now()
		findings := Lint(policy.IdentityPolicy, []byte(doc), testKnown)
		d := time.Since(start)
		t.Logf("%s: %d bytes, %d findings, %v", name, len(doc), len(findings), d)
		if d > 20*time.Second || len(findings) > 0 && findings[0].Code == "syntax" {
			t.Errorf("%s took %v", name, d)
		}
	}
}

// FuzzLint: whatever Parse accepts can be linted, and only that has no finding
// about its syntax.
func FuzzLint(f *testing.F) {
	f.Add(uint8(0), []byte(policy.DefaultKeyPolicy("aws", "111122223333")))
	f.Add(uint8(1), []byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":"kms:*","Resource":"*","Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":[1,true,"a*"]},"Bool":{}}}]}`))
	f.Add(uint8(2), []byte(`{"Statement":{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/a"},"Action":"sts:*"}}`))
	f.Add(uint8(0), []byte(`{"Statement":[{"Effect":"Deny","NotPrincipal":{"AWS":["111122223333"]},"Action":"kms:Put?ey*","NotResource":"arn:aws:kms:*:*:key/${aws:x, 'y'}"},{"Effect":"Allow","Principal":"*"}]}`))
	f.Fuzz(func(t *testing.T, kind uint8, doc []byte) {
		if len(doc) > 4096 {
			return
		}
		k := policy.Kind(kind % 4)
		_, err := policy.Parse(k, doc)
		syntax := false
		for _, f := range Lint(k, doc, testKnown) {
			syntax = syntax || f.Code == "syntax"
			if len(f.Message) > 2000 || strings.Contains(f.String(), "%!") {
				t.Errorf("message %q", f)
			}
		}
		if syntax != (err != nil) {
			t.Errorf("finding about syntax: %v; Parse: %v", syntax, err)
		}
	})
}
