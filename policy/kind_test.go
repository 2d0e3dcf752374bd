package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestParseKinds: each kind of document has elements that it needs, and others
// that it cannot have.
func TestParseKinds(t *testing.T) {
	statement := func(members ...string) string { return `{"Effect":"Deny",` + strings.Join(members, ",") + `}` }
	const (
		principal = `"Principal":{"AWS":"111122223333"}`
		spared    = `"NotPrincipal":{"AWS":"111122223333"}`
		action    = `"Action":"kms:*"`
		sts       = `"Action":["sts:AssumeRole","STS:Tag*"]`
		resource  = `"Resource":"*"`
	)
	all := []Kind{KeyPolicy, IdentityPolicy, TrustPolicy, SessionPolicy}
	own := []Kind{IdentityPolicy, SessionPolicy}
	for _, tt := range []struct {
		statement string
		taken     []Kind
	}{
		{statement(action, resource), own},
		{statement(`"NotAction":"kms:*"`, `"NotResource":"*"`), own},
		{statement(principal, action, resource), []Kind{KeyPolicy}},
		{statement(spared, action, resource), []Kind{KeyPolicy}},
		{statement(principal, sts), []Kind{KeyPolicy, TrustPolicy}},
		{statement(spared, sts), []Kind{KeyPolicy, TrustPolicy}},
		{statement(principal, sts, resource), []Kind{KeyPolicy}},
		{statement(principal), []Kind{KeyPolicy}},
		{statement(principal, resource), []Kind{KeyPolicy}},
		{statement(action), nil},
		{statement(resource), nil},
		{statement(`"Sid":"Ab9"`, action, resource), own},
		{statement(`"Sid":""`, action, resource), own},
		{statement(`"Sid":"a b"`, action, resource), nil},
		{statement(`"Sid":"é"`, sts, principal), []Kind{KeyPolicy}},
		{statement(action, resource) + `,` + statement(action, resource), own},
		{statement(`"Sid":"a"`, action, resource) + `,` + statement(`"Sid":"a"`, action, resource), nil},
		{statement(`"Sid":"a"`, action, resource) + `,` + statement(`"Sid":"A"`, action, resource), own},
		{statement(`"Sid":"a"`, principal, sts) + `,` + statement(`"Sid":"a"`, principal, sts), []Kind{KeyPolicy}},
		{statement(principal, `"Action":"*"`), []Kind{KeyPolicy}},
		{statement(principal, `"NotAction":"sts:*"`), []Kind{KeyPolicy, TrustPolicy}},
		{statement(action, `"Resource":"arn:aws:s3:::bucket/a b/é*"`), own},
		{statement(principal, action, `"Resource":"arn:aws:s3:::bucket/a b"`), nil},
		{statement(action, `"Resource":"arn:aws:s3:::bucket "`), nil},
		{statement(action, resource, `"Condition":{"ForAllValues:StringEquals":{"aws:RequestTag/a":"b"}}`), own},
	} {
		for _, kind := range all {
			taken := false
			for _, k := range tt.taken {
				taken = taken || k == kind
			}
			_, err := Parse(kind, []byte(`{"Version":"2012-10-17","Statement":[`+tt.statement+`]}`))
			if taken != (err == nil) {
				t.Errorf("%s as a %s: %v", tt.statement, kind, err)
			}
		}
	}
	long := `{"Statement":` + statement(action, resource) + strings.Repeat(" ", MaxKeyPolicySize) + `}`
	if _, err := Parse(IdentityPolicy, []byte(long)); err != nil {
		t.Errorf("an identity policy longer than a key policy: %v", err)
	}
	if _, err := Parse(SessionPolicy, []byte(long+strings.Repeat(" ", MaxPolicySize))); !errors.Is(err, ErrTooLong) {
		t.Errorf("a session policy that is too long: %v", err)
	}
}

func TestSize(t *testing.T) {
	for doc, want := range map[string]int{
		"": 0, " \t\r\n": 0, `{ "a" : "b c" }`: 10, `{"é":"ü"}`: 9, "\u00a0": 1,
	} {
		if got := Size([]byte(doc)); got != want {
			t.Errorf("Size(%q) = %d, want %d", doc, got, want)
		}
	}
}

func TestContextKeysAndProviders(t *testing.T) {
	d := mustParse(t, `{"Version":"2012-10-17","Statement":[
		{"Effect":"Deny","NotPrincipal":{"Federated":["arn:aws:iam::111122223333:oidc-provider/b","arn:aws:iam::111122223333:saml-provider/a"],"Service":"a.b.c","AWS":"111122223333"},"NotAction":"*",
			"NotResource":"arn:aws:kms:*:*:${aws:PrincipalTag/x, 'y'}${*}","Condition":{"Bool":{"aws:SecureTransport":"true"}}},
		{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/b"},"Condition":{"StringLike":{"AWS:securetransport":"${aws:username}"},
			"ArnLike":{"aws:SourceArn":["${aws:PrincipalArn}","arn:aws:a:b:${aws:PrincipalAccount}:c${AWS:USERNAME}"]}}}]}`)
	want := []string{"aws:PrincipalAccount", "aws:PrincipalArn", "aws:PrincipalTag/x", "aws:SecureTransport", "aws:SourceArn", "aws:username"}
	if diff := cmp.Diff(want, d.ContextKeys()); diff != "" {
		t.Errorf("ContextKeys (-want +got):\n%s", diff)
	}
	var names []string
	for _, p := range d.Providers() {
		names = append(names, fmt.Sprint(p.Kind, " ", p.Name, " ", p))
	}
	for _, p := range d.Principals() {
		names = append(names, fmt.Sprint(p.Kind, " ", p))
	}
	want = []string{"Federated b arn:aws:iam::111122223333:oidc-provider/b", "Federated a arn:aws:iam::111122223333:saml-provider/a", "Account 111122223333"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("Providers and Principals (-want +got):\n%s", diff)
	}
}

// TestMisplacedPolicies: a request with policies that are not where they belong
// is denied, whatever they allow: what is missing could be a Deny.
func TestMisplacedPolicies(t *testing.T) {
	key := mustParse(t, `{"Statement":`+goodStatement+`}`)
	identity := mustKind(t, IdentityPolicy, []byte(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))
	req := Request{mustPrincipal(t, testUser), "kms:Encrypt", testKey, nil}
	for name, p := range map[string]Policies{
		"identity policy of a key":  {Resource: identity},
		"key policy of a user":      {Resource: key, Identity: []*Document{key}},
		"key policy of a session":   {Resource: key, Session: []*Document{key}},
		"key policy as a boundary":  {Resource: key, Boundary: key},
		"nil among identity":        {Resource: key, Identity: []*Document{identity, nil}},
		"nil among session":         {Resource: key, Session: []*Document{nil}},
		"nil as the only in a list": {Resource: key, Identity: []*Document{nil}},
	} {
		if d := Evaluate(req, p); d != (Decision{Statement: NoStatement}) {
			t.Errorf("%s: %s", name, show(d))
		}
		if _, steps := Trace(req, p); steps != nil {
			t.Errorf("%s: %d steps", name, len(steps))
		}
	}
	empty := &Document{}
	if d := Evaluate(req, Policies{Resource: key, Identity: []*Document{empty}, Session: []*Document{empty}, Boundary: empty}); !d.Allowed() {
		t.Errorf("with zero documents: %s", show(d))
	}
}

func TestTrace(t *testing.T) {
	policies := Policies{
		Resource: mustParse(t, `{"Statement":[
			{"Sid":"Account","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
			{"Sid":"No Bob","Effect":"Deny","Principal":{"AWS":"arn:aws:iam::111122223333:user/bob"},"Action":"kms:*","Resource":"*"},
			{"Effect":"Allow","Principal":"*","Action":"kms:Sign","Resource":"*"},
			{"Sid":"Other","Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/other"}]}`),
		Identity: []*Document{
			mustKind(t, IdentityPolicy, []byte(`{"Version":"2012-10-17","Statement":[{"Sid":"Tag","Effect":"Allow","Action":"*","Resource":"*",
				"Condition":{"StringEqualsIfExists":{"aws:ResourceTag/Team":"x"},"StringEquals":{"aws:PrincipalTag/Team":["${aws:username}","${aws:username}2"]}}}]}`)),
			mustKind(t, IdentityPolicy, []byte(`{"Statement":[{"Sid":"Tls","Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}},
				{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}]}`)),
		},
		Boundary: mustKind(t, IdentityPolicy, []byte(`{"Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"}}`)),
		Session:  []*Document{mustKind(t, SessionPolicy, []byte(`{"Statement":{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}}`))},
	}
	req := Request{mustPrincipal(t, testUser), "kms:Encrypt", testKey, fixedContext{"aws:principaltag/team": {"blue"}, "aws:securetransport": {"true"}}}
	d, steps := Trace(req, policies)
	if want := "ImplicitDeny session-policy 0 -1 \"\""; show(d) != want {
		t.Errorf("got %s, want %s", show(d), want)
	}
	var got []string
	for _, s := range steps {
		line := fmt.Sprintf("%s %d %d %q %s:", s.Reason, s.Policy, s.Statement, s.Sid, s.Effect)
		if s.Matched {
			line += " matched"
		}
		if s.Delegates {
			line += " delegates"
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(line, " ", s.Failed, " ", s.Operator, " ", s.Key, " ", s.Absent)))
	}
	want := []string{
		`key-policy 0 0 "Account" Allow: matched delegates    []`,
		`key-policy 0 1 "No Bob" ExplicitDeny: Principal   []`,
		`key-policy 0 2 "" Allow: Action   []`,
		`key-policy 0 3 "Other" Allow: Resource   []`,
		`identity-policy 0 0 "Tag" Allow: Condition StringEquals aws:PrincipalTag/Team [aws:ResourceTag/Team aws:username]`,
		`identity-policy 1 0 "Tls" ExplicitDeny: Condition Bool aws:SecureTransport []`,
		`identity-policy 1 1 "" Allow: matched    []`,
		`permissions-boundary 0 0 "" Allow: matched    []`,
		`session-policy 0 0 "" Allow: Action   []`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// TestExplainReasons: the words for each kind of policy are those of AWS.
func TestExplainReasons(t *testing.T) {
	req := Request{mustPrincipal(t, testUser), "kms:Sign", testKey, nil}
	const before = "User: " + testUser + " is not authorized to perform: kms:Sign on resource: " + testKey
	for reason, want := range map[Reason][2]string{
		ReasonKeyPolicy:      {" with an explicit deny in a resource-based policy", " because no resource-based policy allows the kms:Sign action"},
		ReasonIdentityPolicy: {" with an explicit deny in an identity-based policy", " because no identity-based policy allows the kms:Sign action"},
		ReasonTrustPolicy:    {" with an explicit deny in the role trust policy", " because no role trust policy allows the kms:Sign action"},
		ReasonBoundary:       {" with an explicit deny in a permissions boundary", " because no permissions boundary allows the kms:Sign action"},
		ReasonSessionPolicy:  {" with an explicit deny in a session policy", " because no session policy allows the kms:Sign action"},
		ReasonRequest:        {"", ""},
	} {
		for i, effect := range []Effect{ExplicitDeny, ImplicitDeny} {
			if diff := cmp.Diff(before+want[i], Decision{Effect: effect, Reason: reason}.Explain(req)); diff != "" {
				t.Errorf("%s by %s (-want +got):\n%s", effect, reason, diff)
			}
		}
	}
	var err error
	if req.Principal, err = ParseProvider(diffProviders[0]); err != nil {
		t.Fatal(err)
	}
	req.Action = "sts:AssumeRoleWithWebIdentity"
	if got, want := (Decision{Reason: ReasonTrustPolicy}).Explain(req), "Not authorized to perform sts:AssumeRoleWithWebIdentity"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLockoutSafeWithOtherPolicies: what the caller's own policies and the
// context say counts.
func TestLockoutSafeWithOtherPolicies(t *testing.T) {
	account := mustParse(t, DefaultKeyPolicy("aws", "111122223333"))
	put := mustKind(t, IdentityPolicy, []byte(`{"Statement":{"Effect":"Allow","Action":"kms:PutKeyPolicy","Resource":"*"}}`))
	nothing := mustKind(t, IdentityPolicy, []byte(`{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}`))
	tls := mustParse(t, `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}}`)
	user := mustPrincipal(t, testUser)
	for name, tt := range map[string]struct {
		policies Policies
		context  Context
		want     bool
	}{
		"identity policy":               {Policies{Resource: account, Identity: []*Document{put}}, nil, true},
		"identity policy, other action": {Policies{Resource: account, Identity: []*Document{nothing}}, nil, false},
		"boundary":                      {Policies{Resource: account, Identity: []*Document{put}, Boundary: nothing}, nil, false},
		"condition holds":               {Policies{Resource: tls}, fixedContext{"aws:securetransport": {"true"}}, true},
		"condition does not hold":       {Policies{Resource: tls}, fixedContext{}, false},
		"condition without a context":   {Policies{Resource: tls}, nil, false},
	} {
		if got := LockoutSafe(tt.policies, user, testKey, tt.context); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
