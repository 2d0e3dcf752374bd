package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	testRoot    = "arn:aws:iam::111122223333:root"
	testUser    = "arn:aws:iam::111122223333:user/alice"
	testForeign = "arn:aws:iam::444455556666:root"
	testAlias   = "arn:aws:kms:us-east-1:111122223333:alias/app"
)

// TestEvaluateWithoutKeyPolicy: a request that concerns no key is decided by
// identity policies, which a root user does not need; a key without its policy
// is denied to everybody.
func TestEvaluateWithoutKeyPolicy(t *testing.T) {
	for _, tt := range []struct {
		principal, action, resource, want string
	}{
		{testRoot, "kms:CreateKey", "*", "Allow identity-policy"},
		{testRoot, "kms:CreateAlias", testAlias, "Allow identity-policy"},
		{testUser, "kms:CreateKey", "*", "ImplicitDeny identity-policy"},
		{testUser, "kms:CreateAlias", testAlias, "ImplicitDeny identity-policy"},
		{testForeign, "kms:CreateAlias", testAlias, "ImplicitDeny request"},
		{"arn:aws-cn:iam::111122223333:root", "kms:CreateAlias", testAlias, "ImplicitDeny request"},
		{testRoot, "kms:Encrypt", testKey, "ImplicitDeny request"},
		{testUser, "kms:Encrypt", testKey, "ImplicitDeny request"},
		{testRoot, "kms:Encrypt", "", "ImplicitDeny request"},
		{testRoot, "kms:Encrypt", "key/x", "ImplicitDeny request"},
		{testRoot, "kms:Encrypt", "arn:aws:kms", "ImplicitDeny request"},
		{testRoot, "", "*", "ImplicitDeny request"},
		{"111122223333", "kms:CreateKey", "*", "ImplicitDeny request"},
	} {
		d := Evaluate(Request{mustPrincipal(t, tt.principal), tt.action, tt.resource, nil}, Policies{})
		if got := fmt.Sprint(d.Effect, " ", d.Reason); got != tt.want || d.Statement != NoStatement {
			t.Errorf("%s, %q on %q: got %s by statement %d, want %s by none", tt.principal, tt.action, tt.resource, got, d.Statement, tt.want)
		}
	}
	if d := Evaluate(Request{Action: "kms:CreateKey", Resource: "*"}, Policies{}); d.Allowed() {
		t.Error("nobody may create keys")
	}
}

// TestIncompletePrincipal: a Principal that lacks a part is denied, even if
// everybody is allowed.
func TestIncompletePrincipal(t *testing.T) {
	all := Policies{Resource: mustParse(t, `{"Statement":`+goodStatement+`}`)}
	whole := mustPrincipal(t, testRoot)
	if d := Evaluate(Request{whole, "kms:Encrypt", testKey, nil}, all); !d.Allowed() {
		t.Fatalf("the whole principal: %s", show(d))
	}
	for name, cut := range map[string]func(*Principal){
		"ARN":       func(p *Principal) { p.ARN = "" },
		"Kind":      func(p *Principal) { p.Kind = KindNone },
		"Partition": func(p *Principal) { p.Partition = "" },
		"Account":   func(p *Principal) { p.Account = "" },
	} {
		p := whole
		cut(&p)
		if d := Evaluate(Request{p, "kms:Encrypt", testKey, nil}, all); d.Effect != ImplicitDeny || d.Reason != ReasonRequest {
			t.Errorf("without %s: %s", name, show(d))
		}
	}
}

func TestZeroValuesDeny(t *testing.T) {
	if (Decision{}).Allowed() {
		t.Error("the zero Decision allows")
	}
	if d := Evaluate(Request{}, Policies{}); d.Allowed() {
		t.Error("the zero Request is allowed")
	}
	if d := Evaluate(Request{mustPrincipal(t, testRoot), "kms:Encrypt", testKey, nil}, Policies{Resource: &Document{}}); d.Allowed() {
		t.Error("the zero Document allows")
	}
}

func TestExplain(t *testing.T) {
	policies := Policies{Resource: mustParse(t, `{"Statement":[
		{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:Encrypt","Resource":"*"},
		{"Effect":"Deny","Principal":"*","Action":"kms:Sign","Resource":"*"}]}`)}
	const user = "User: " + testUser + " is not authorized to perform: "
	for _, tt := range []struct{ principal, action, resource, want string }{
		{testRoot, "kms:Encrypt", testKey, ""},
		{testUser, "kms:Encrypt", testKey, user + "kms:Encrypt on resource: " + testKey + " because no identity-based policy allows the kms:Encrypt action"},
		{testUser, "kms:Decrypt", testKey, user + "kms:Decrypt on resource: " + testKey + " because no resource-based policy allows the kms:Decrypt action"},
		{testUser, "kms:Sign", testKey, user + "kms:Sign on resource: " + testKey + " with an explicit deny in a resource-based policy"},
		{testUser, "kms:Sign", "x", user + "kms:Sign on resource: x"},
	} {
		req := Request{mustPrincipal(t, tt.principal), tt.action, tt.resource, nil}
		if diff := cmp.Diff(tt.want, Evaluate(req, policies).Explain(req)); diff != "" {
			t.Errorf("%s by %s (-want +got):\n%s", tt.action, tt.principal, diff)
		}
	}
	req := Request{mustPrincipal(t, testUser), "kms:Sign", testKey, nil}
	if got, want := (Decision{Effect: ExplicitDeny, Reason: ReasonIdentityPolicy}).Explain(req),
		user+"kms:Sign on resource: "+testKey+" with an explicit deny in an identity-based policy"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLockoutSafe(t *testing.T) {
	statement := func(effect, principal, action string) string {
		return fmt.Sprintf(`{"Effect":%q,"Principal":{"AWS":%q},"Action":%q,"Resource":"*"}`, effect, principal, action)
	}
	doc := func(statements ...string) string { return `{"Statement":[` + strings.Join(statements, ",") + `]}` }
	for _, tt := range []struct {
		name, caller, doc string
		want              bool
	}{
		{"root by default policy", testRoot, DefaultKeyPolicy("aws", "111122223333"), true},
		{"root by bare account", testRoot, doc(statement("Allow", "111122223333", "kms:PutKeyPolicy")), true},
		{"root by everybody", testRoot, doc(statement("Allow", "*", "kms:Put*")), true},
		{"root left out", testRoot, doc(statement("Allow", testUser, "kms:*")), false},
		{"user without identity policy", testUser, DefaultKeyPolicy("aws", "111122223333"), false},
		{"user named", testUser, doc(statement("Allow", testUser, "kms:*")), true},
		{"user named for too little", testUser, doc(statement("Allow", testUser, "kms:Encrypt")), false},
		{"denied", testRoot, doc(statement("Allow", testRoot, "kms:*"), statement("Deny", "*", "kms:PutKeyPolicy")), false},
		{"denied by account", testUser, doc(statement("Allow", testUser, "kms:*"), statement("Deny", "111122223333", "kms:put*")), false},
		{"denied to others", testUser, doc(statement("Allow", testUser, "kms:*"), statement("Deny", "444455556666", "*")), true},
		{"foreign root", testForeign, doc(statement("Allow", testForeign, "kms:*")), false},
		{"foreign partition", "arn:aws-cn:iam::111122223333:root", doc(statement("Allow", "111122223333", "kms:*")), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := LockoutSafe(Policies{Resource: mustParse(t, tt.doc)}, mustPrincipal(t, tt.caller), testKey, nil)
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	root := mustPrincipal(t, testRoot)
	if LockoutSafe(Policies{}, root, testKey, nil) {
		t.Error("safe without a policy")
	}
	if LockoutSafe(Policies{Resource: mustParse(t, DefaultKeyPolicy("aws", "111122223333"))}, root, "not an ARN", nil) {
		t.Error("safe without a key")
	}
	other := doc(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"` + testAlias + `"}`)
	if LockoutSafe(Policies{Resource: mustParse(t, other)}, root, testKey, nil) {
		t.Error("safe by a statement about another resource")
	}
}

// typical is a policy such as administrators write.
const typical = `{"Version":"2012-10-17","Statement":[
	{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"},
	{"Sid":"Admins","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/admin"]},"Action":["kms:Create*","kms:Describe*","kms:Enable*","kms:List*","kms:Put*","kms:Update*","kms:Revoke*","kms:Disable*","kms:Get*","kms:Delete*","kms:TagResource","kms:UntagResource","kms:ScheduleKeyDeletion","kms:CancelKeyDeletion"],"Resource":"*"},
	{"Sid":"Use","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/app","arn:aws:iam::111122223333:user/alice"]},"Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"*"},
	{"Sid":"NoDelete","Effect":"Deny","Principal":"*","Action":["kms:ScheduleKeyDeletion","kms:DeleteImportedKeyMaterial"],"Resource":"arn:aws:kms:*:111122223333:key/*"}]}`

// hostile fills a policy with patterns that each take as long as possible to
// not match a key's ARN: half its length, and a different last byte.
func hostile() string {
	pattern := "arn:*" + strings.Repeat("-", 36) + "@*"
	resources := strings.Repeat(`"`+pattern+`",`, (MaxKeyPolicySize-150)/(len(pattern)+3))
	return `{"Statement":{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":[` + strings.TrimSuffix(resources, ",") + `]}}`
}

// fixedContext is a Context that costs nothing.
type fixedContext map[string][]string

func (c fixedContext) Values(key string) []string { return c[key] }
func (c fixedContext) Now() time.Time             { return time.Unix(1782907200, 0) }
func (c fixedContext) Holds(from, to time.Time)   {}

var usualContext = fixedContext{
	"aws:securetransport": {"true"}, "aws:sourceip": {"10.1.2.3"}, "aws:principaltag/team": {"blue"}, "aws:resourcetag/team": {"blue"},
	"aws:tagkeys": {"team", "cost"}, "kms:encryptioncontext:stage": {"prod"}, "aws:principalarn": {"arn:aws:iam::111122223333:role/app"},
}

// conditional is an identity policy with the usual conditions.
const conditional = `{"Version":"2012-10-17","Statement":[
	{"Sid":"Use","Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"arn:aws:kms:*:111122223333:key/*",
		"Condition":{"StringEquals":{"kms:EncryptionContext:stage":["prod","test"]},"Bool":{"aws:SecureTransport":"true"}}},
	{"Sid":"Network","Effect":"Deny","Action":"*","Resource":"*","Condition":{"NotIpAddress":{"aws:SourceIp":["10.0.0.0/8","192.168.0.0/16","2001:db8::/32"]}}},
	{"Sid":"Time","Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2027-01-01T00:00:00Z"}}},
	{"Sid":"Tags","Effect":"Allow","Action":"kms:TagResource","Resource":"*","Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":["team","cost","owner"]}}}]}`

// many is one of ten policies of 20 statements, all of which apply to the
// request and none of which decides it before the last.
func many(n int) string {
	statements := make([]string, 20)
	for i := range statements {
		effect, team := "Deny", "red"
		if n == 9 && i == 19 {
			effect, team = "Allow", "blue"
		}
		statements[i] = fmt.Sprintf(`{"Sid":"S%d","Effect":%q,"Action":["kms:List*","kms:GenerateDataKey"],"Resource":["arn:aws:kms:*:444455556666:key/*","arn:aws:kms:*:111122223333:key/*"],
			"Condition":{"StringEquals":{"aws:ResourceTag/team":[%q,"green"]},"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`, i, effect, team)
	}
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// typicalCases are what requests cost usually and at worst.
func typicalCases(t testing.TB) map[string]struct {
	req      Request
	policies Policies
} {
	session := mustPrincipal(t, "arn:aws:sts::111122223333:assumed-role/app/i-0123456789abcdef0")
	user := mustPrincipal(t, testUser)
	account := mustParse(t, DefaultKeyPolicy("aws", "111122223333"))
	identity := func(docs ...string) (list []*Document) {
		for _, d := range docs {
			list = append(list, mustKind(t, IdentityPolicy, []byte(d)))
		}
		return list
	}
	var ten []string
	for i := range 10 {
		ten = append(ten, many(i))
	}
	variables := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/*","Condition":{"StringEquals":{"aws:ResourceTag/team":"${aws:PrincipalTag/team}"}}}}`
	const action = "kms:GenerateDataKey"
	return map[string]struct {
		req      Request
		policies Policies
	}{
		"default":     {Request{mustPrincipal(t, testRoot), action, testKey, usualContext}, Policies{Resource: account}},
		"typical":     {Request{session, action, testKey, usualContext}, Policies{Resource: mustParse(t, typical)}},
		"hostile":     {Request{session, action, testKey, usualContext}, Policies{Resource: mustParse(t, hostile())}},
		"conditions":  {Request{user, action, testKey, usualContext}, Policies{Resource: account, Identity: identity(conditional)}},
		"ten-of-20":   {Request{user, action, testKey, usualContext}, Policies{Resource: account, Identity: identity(ten...)}},
		"variables":   {Request{user, action, testKey, usualContext}, Policies{Resource: account, Identity: identity(variables)}},
		"all-limited": {Request{session, action, testKey, usualContext}, Policies{Resource: account, Identity: identity(conditional), Boundary: identity(conditional)[0], Session: identity(conditional)}},
	}
}

func TestEvaluateAllocatesLittle(t *testing.T) {
	for name, c := range typicalCases(t) {
		most := 0.0
		if name == "variables" {
			most = 5
		}
		if n := testing.AllocsPerRun(100, func() { Evaluate(c.req, c.policies) }); n > most {
			t.Errorf("%s: %v allocations, want at most %v", name, n, most)
		}
		want := Allow
		if name == "hostile" {
			want = ImplicitDeny
		}
		if d := Evaluate(c.req, c.policies); d.Effect != want {
			t.Errorf("%s: %s, want %s", name, show(d), want)
		}
	}
}

// TestHostilePolicyIsBounded takes the best of several runs, so that it does
// not fail on a busy machine. A matcher that backtracks would take for ever.
func TestHostilePolicyIsBounded(t *testing.T) {
	long := strings.Repeat("a", 8191) + "b"
	list := make([]string, 64)
	for i := range list {
		list[i] = strings.Repeat("a", 255)
	}
	context := fixedContext{"kms:encryptioncontext:a": {long}, "aws:tagkeys": list, "aws:username": {long}}
	fill := func(before, item, after string) string {
		n := (MaxKeyPolicySize - len(before) - len(after)) / (len(item) + 1)
		return before + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + after
	}
	const deny = `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*","Condition":`
	for name, doc := range map[string]string{
		"resources":         hostile(),
		"stars":             fill(deny+`{"StringLike":{"kms:EncryptionContext:a":[`, `"`+strings.Repeat("*a", 40)+`c*"`, `]}}}}`),
		"question marks":    deny + `{"StringLike":{"kms:EncryptionContext:a":["*` + strings.Repeat("a?", maxFloating) + `c*"]}}}}`,
		"one question mark": fill(deny+`{"StringLike":{"kms:EncryptionContext:a":[`, `"*`+strings.Repeat("a", 4000)+`?c*"`, `]}}}}`),
		"sets":              fill(deny+`{"ForAnyValue:StringLike":{"aws:TagKeys":[`, `"*`+strings.Repeat("a", 20)+`c*"`, `]}}}}`),
		"variables":         fill(deny+`{"StringLike":{"kms:EncryptionContext:a":[`, `"`+strings.Repeat("${aws:username}", 16)+`"`, `]}}}}`),
		"empty statements":  fill(`{"Statement":[`, `{"Effect":"Deny","Principal":"*"}`, `]}`),
	} {
		policies := Policies{Resource: mustParse(t, doc)}
		req := Request{mustPrincipal(t, testUser), "kms:GenerateDataKey", testKey, context}
		best := time.Hour
		for range 3 {
			start := time.Now()
			if d := Evaluate(req, policies); d.Effect != ImplicitDeny {
				t.Fatalf("%s: got %s", name, show(d))
			}
			best = min(best, time.Since(start))
		}
		t.Logf("%s: %v", name, best)
		if best > time.Second/2 {
			t.Errorf("%s: one evaluation took %v", name, best)
		}
	}
}

// BenchmarkEvaluate: default, typical and conditions are to take less than 5 µs,
// and ten-of-20, ten documents of 20 statements with conditions that all apply,
// less than 50 µs.
func BenchmarkEvaluate(b *testing.B) {
	for name, c := range typicalCases(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Evaluate(c.req, c.policies)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	doc := []byte(typical)
	b.ReportAllocs()
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := Parse(KeyPolicy, doc); err != nil {
			b.Fatal(err)
		}
	}
}

// TestGrantee: a grant allows what an Allow for its grantee would, after every
// Deny, and for nobody else.
func TestGrantee(t *testing.T) {
	const (
		role    = "arn:aws:iam::111122223333:role/app"
		session = "arn:aws:sts::111122223333:assumed-role/app/one"
		foreign = "arn:aws:iam::444455556666:user/bob"
		nothing = `{"Effect":"Allow","Principal":"*","Action":"kms:Nothing","Resource":"*"}`
	)
	for _, tt := range []struct {
		name, statement, grantee, caller, want string
	}{
		{"user", nothing, testUser, testUser, "Allow grant"},
		{"another user", nothing, "arn:aws:iam::111122223333:user/alic", testUser, "ImplicitDeny key-policy"},
		{"role", nothing, role, session, "Allow grant"},
		{"session", nothing, session, session, "Allow grant"},
		{"another session", nothing, "arn:aws:sts::111122223333:assumed-role/app/two", session, "ImplicitDeny key-policy"},
		{"session is not its role", nothing, session, role, "ImplicitDeny key-policy"},
		{"account, for its root user", nothing, testRoot, testRoot, "Allow grant"},
		{"account, for a user", nothing, testRoot, testUser, "ImplicitDeny identity-policy"},
		{"another account, for its root user", nothing, testForeign, testForeign, "Allow grant"},
		{"another account's user, whom that account does not allow", nothing, foreign, foreign, "ImplicitDeny identity-policy"},
		{"another partition's account", nothing, "arn:aws-cn:iam::111122223333:root", testRoot, "ImplicitDeny key-policy"},
		{"deny for the user", `{"Effect":"Deny","Principal":{"AWS":"` + testUser + `"},"Action":"kms:Encrypt","Resource":"*"}`, testUser, testUser, "ExplicitDeny key-policy"},
		{"deny for all", `{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}`, testRoot, testRoot, "ExplicitDeny key-policy"},
		{"allowed by policy too", `{"Effect":"Allow","Principal":{"AWS":"` + testUser + `"},"Action":"kms:Encrypt","Resource":"*"}`, testUser, testUser, "Allow key-policy"},
	} {
		grantee := mustPrincipal(t, tt.grantee)
		d := Evaluate(Request{mustPrincipal(t, tt.caller), "kms:Encrypt", testKey, nil}, Policies{Resource: mustParse(t, `{"Statement":`+tt.statement+`}`), Grantee: &grantee})
		if got := fmt.Sprint(d.Effect, " ", d.Reason); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	user := mustPrincipal(t, testUser)
	for name, p := range map[string]Policies{"no key policy": {Grantee: &user}, "nobody": {Resource: &Document{}, Grantee: &Principal{}}} {
		if d := Evaluate(Request{user, "kms:Encrypt", testKey, nil}, p); d.Allowed() {
			t.Errorf("%s: allowed", name)
		}
	}
}

// TestService: a service has what grants to it allow. Of policies for others or for
// everybody, only denials apply to it.
func TestService(t *testing.T) {
	service, err := ParseService("backup.eu-central-1.example.com")
	if err != nil {
		t.Fatal(err)
	}
	other, err := ParseService("Backup.eu-central-1.example.com")
	if err != nil {
		t.Fatal(err)
	}
	root, user := mustPrincipal(t, testRoot), mustPrincipal(t, testUser)
	bare := mustPrincipal(t, "111122223333")
	named := func(effect, principal string) *Document {
		return mustParse(t, `{"Statement":{"Effect":"`+effect+`","Principal":`+principal+`,"Action":"kms:*","Resource":"*"}}`)
	}
	nothing := &Document{}
	for name, tt := range map[string]struct {
		key     *Document
		grantee *Principal
		want    string
	}{
		"nothing":                       {nothing, nil, "ImplicitDeny key-policy"},
		"grant":                         {nothing, &service, "Allow grant"},
		"grant to another":              {nothing, &other, "ImplicitDeny key-policy"},
		"grant to a user":               {nothing, &user, "ImplicitDeny key-policy"},
		"grant to an account":           {nothing, &root, "ImplicitDeny key-policy"},
		"grant to an account by id":     {nothing, &bare, "ImplicitDeny key-policy"},
		"grant to nobody":               {nothing, &Principal{}, "ImplicitDeny key-policy"},
		"allowed to everybody":          {named("Allow", `"*"`), nil, "ImplicitDeny key-policy"},
		"allowed to an account":         {named("Allow", `{"AWS":"111122223333"}`), nil, "ImplicitDeny key-policy"},
		"grant, denied to everybody":    {named("Deny", `"*"`), &service, "ExplicitDeny key-policy"},
		"grant, denied to an account":   {named("Deny", `{"AWS":"111122223333"}`), &service, "Allow grant"},
		"grant on a key without policy": {nil, &service, "ImplicitDeny request"},
	} {
		d := Evaluate(Request{service, "kms:Encrypt", testKey, nil}, Policies{Resource: tt.key, Grantee: tt.grantee})
		if got := fmt.Sprint(d.Effect, " ", d.Reason); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
	if d := Evaluate(Request{service, "kms:CreateKey", "*", nil}, Policies{}); d.Allowed() {
		t.Error("a service may make keys")
	}
	// A grant to a service allows nobody else.
	if d := Evaluate(Request{user, "kms:Encrypt", testKey, nil}, Policies{Resource: nothing, Grantee: &service}); d.Allowed() {
		t.Error("a user has what a service was granted")
	}
	if LockoutSafe(Policies{Resource: nothing, Grantee: &service}, service, testKey, nil) {
		t.Error("a service keeps a key manageable")
	}
}
