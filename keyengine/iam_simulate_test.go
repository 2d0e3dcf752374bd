package keyengine

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const simulatedKey = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"

// simulate simulates policies for kms:Encrypt with a key.
func (c *testCluster) simulate(in *iamapi.SimulateCustomPolicyInput) *iamapi.EvaluationResult {
	c.t.Helper()
	if in.ActionNames == nil {
		in.ActionNames = []string{"kms:Encrypt"}
	}
	if in.ResourceArns == nil {
		in.ResourceArns = []string{simulatedKey}
	}
	out := must[iamapi.SimulateCustomPolicyOutput](c, "SimulateCustomPolicy", in)
	if len(out.EvaluationResults) != 1 {
		c.t.Fatalf("there are %d results", len(out.EvaluationResults))
	}
	return &out.EvaluationResults[0]
}

// entry returns a condition key with a value of type string.
func entry(name string, values ...string) iamapi.ContextEntry {
	kind := "string"
	if len(values) != 1 {
		kind = "stringList"
	}
	return iamapi.ContextEntry{ContextKeyName: &name, ContextKeyType: &kind, ContextKeyValues: values}
}

func TestSimulateCustomPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	allowed, denied := identityPolicy("Allow", "kms:Encrypt", "*"), identityPolicy("Deny", "kms:*", "*")
	onlyTeam := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/Team":"blue"},"Bool":{"aws:SecureTransport":"true"}}}]}`
	const caller = "arn:aws:iam::444455556666:user/ann"
	for _, tt := range []struct {
		name     string
		in       iamapi.SimulateCustomPolicyInput
		decision string
		matched  []string
		missing  []string
		bounds   string
	}{
		{"allowed", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}}, "allowed", []string{"PolicyInputList.1"}, nil, ""},
		{"denied", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed, denied}}, "explicitDeny", []string{"PolicyInputList.2"}, nil, ""},
		{"nothing", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "kms:Decrypt", "*")}}, "implicitDeny", nil, nil, ""},
		{"twice", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed, allowed}}, "allowed", []string{"PolicyInputList.1", "PolicyInputList.2"}, nil, ""},
		{"all resources", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, ResourceArns: []string{"*"}}, "allowed", []string{"PolicyInputList.1"}, nil, ""},
		{"another service", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "s3:*", "arn:aws:s3:::b/*")}, ActionNames: []string{"s3:GetObject"}, ResourceArns: []string{"arn:aws:s3:::b/k"}},
			"allowed", []string{"PolicyInputList.1"}, nil, ""},
		{"missing", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{onlyTeam}}, "implicitDeny", nil, []string{"aws:PrincipalTag/Team"}, ""},
		{"still missing", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{onlyTeam}, ContextEntries: []iamapi.ContextEntry{entry("aws:PrincipalTag/Team", "blue")}}, "implicitDeny", nil, []string{"aws:SecureTransport"}, ""},
		{"given", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{onlyTeam}, ContextEntries: []iamapi.ContextEntry{entry("AWS:principaltag/TEAM", "blue"), entry("aws:SecureTransport", "true")}},
			"allowed", []string{"PolicyInputList.1"}, nil, ""},
		{"wrong", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{onlyTeam}, ContextEntries: []iamapi.ContextEntry{entry("aws:principaltag/team", "red"), entry("aws:SecureTransport", "true")}},
			"implicitDeny", nil, nil, ""},
		{"within the boundary", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, PermissionsBoundaryPolicyInputList: []string{allowed}}, "allowed", []string{"PolicyInputList.1"}, nil, "true"},
		{"outside of the boundary", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, PermissionsBoundaryPolicyInputList: []string{identityPolicy("Allow", "iam:*", "*")}}, "implicitDeny", nil, nil, "false"},
		{"denied by the boundary", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, PermissionsBoundaryPolicyInputList: []string{denied}}, "explicitDeny", []string{"PermissionsBoundaryPolicyInputList.1"}, nil, "false"},
		{"resource policy", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "iam:*", "*")}, CallerArn: new(aliceARN), ResourcePolicy: new(policyDocument(statement("Allow", aliceARN, "kms:Encrypt")))},
			"allowed", []string{"ResourcePolicy"}, nil, ""},
		{"resource policy alone", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, CallerArn: new(aliceARN), ResourcePolicy: new(policyDocument(statement("Allow", bobARN, "kms:Encrypt")))}, "implicitDeny", nil, nil, ""},
		{"resource policy that delegates", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, CallerArn: new(aliceARN), ResourcePolicy: new(policyDocument(rootStatement))}, "allowed", []string{"ResourcePolicy", "PolicyInputList.1"}, nil, ""},
		{"of another account", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "iam:*", "*")}, CallerArn: new(caller), ResourcePolicy: new(policyDocument(statement("Allow", caller, "kms:Encrypt")))}, "implicitDeny", nil, nil, ""},
		{"both accounts", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{allowed}, CallerArn: new(caller), ResourcePolicy: new(policyDocument(statement("Allow", caller, "kms:Encrypt")))}, "allowed", []string{"ResourcePolicy", "PolicyInputList.1"}, nil, ""},
		{"time", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{
			`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}}}}`},
			ContextEntries: []iamapi.ContextEntry{entry("aws:CurrentTime", "2019-12-31T23:59:59Z")}}, "allowed", []string{"PolicyInputList.1"}, nil, ""},
		{"trust policy", iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "iam:*", "*")}, CallerArn: new(aliceARN), ActionNames: []string{"sts:AssumeRole"},
			ResourceArns: []string{"arn:aws:iam::111122223333:role/app"}, ResourcePolicy: new(trusts(aliceARN, ""))}, "allowed", []string{"ResourcePolicy"}, nil, ""},
	} {
		r := c.simulate(&tt.in)
		var matched []string
		for _, s := range r.MatchedStatements {
			matched = append(matched, *s.SourcePolicyId)
		}
		bounds := ""
		if d := r.PermissionsBoundaryDecisionDetail; d != nil {
			bounds = map[bool]string{true: "true", false: "false"}[*d.AllowedByPermissionsBoundary]
		}
		if *r.EvalDecision != tt.decision || !slices.Equal(matched, tt.matched) || !slices.Equal(r.MissingContextValues, tt.missing) || bounds != tt.bounds {
			t.Errorf("%s: got %s by %v, missing %v, boundary %q", tt.name, *r.EvalDecision, matched, r.MissingContextValues, bounds)
		}
	}
}

func TestSimulationPositions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	doc := "{\n \"Version\": \"2012-10-17\",\n  \"Statement\" : [ {\"Effect\":\"Allow\",\"Action\":\"iam:*\",\"Resource\":\"*\"},\n" +
		"  {\"Sid\": \"Second\", \"Effect\": \"Allow\", \"Action\": \"kms:*\",\n   \"Resource\": [\"*\", \"arn:aws:kms:*:*:key/\u00fc\"]} , {\"Effect\":\"Allow\",\"Action\":\"s3:*\",\"Resource\":\"*\"}\n]}"
	s := c.simulate(&iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{doc}}).MatchedStatements
	if len(s) != 1 || *s[0].StartPosition.Line != 4 || *s[0].StartPosition.Column != 3 || *s[0].EndPosition.Line != 5 || *s[0].EndPosition.Column != 47 {
		t.Errorf("got %d statements, %d:%d to %d:%d", len(s), *s[0].StartPosition.Line, *s[0].StartPosition.Column, *s[0].EndPosition.Line, *s[0].EndPosition.Column)
	}
	single := `{"Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"},"Version":"2012-10-17"}`
	s = c.simulate(&iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{single}}).MatchedStatements
	if len(s) != 1 || *s[0].StartPosition.Column != 14 || *s[0].EndPosition.Column != 64 {
		t.Errorf("a single statement: got column %d to %d", *s[0].StartPosition.Column, *s[0].EndPosition.Column)
	}
}

// A simulation of a principal rests on all of its policies, as a request of it does.
func TestSimulatePrincipalPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	key, arn := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	ann := c.newPerson("ann", allow("kms:Encrypt", "*"))
	decrypt := c.newPolicy("decrypt", allow("kms:Decrypt", "*"))
	must[request.None](c, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: &ann.name, PolicyArn: &decrypt})
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("ops")})
	must[request.None](c, "PutGroupPolicy", &iamapi.PutGroupPolicyInput{GroupName: new("ops"), PolicyName: new("sign"), PolicyDocument: new(policyDocument(allow("kms:DescribeKey", "*")))})
	must[request.None](c, "AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("ops"), UserName: &ann.name})
	must[request.None](c, "TagUser", &iamapi.TagUserInput{UserName: &ann.name, Tags: []iamapi.Tag{{Key: new("Team"), Value: new("blue")}}})
	must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &ann.name, PolicyName: new("tagged"), PolicyDocument: new(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:GetKeyPolicy","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/Team":"blue","aws:username":"ann"}}}]}`)})

	actions := []string{"kms:Encrypt", "kms:Decrypt", "kms:DescribeKey", "kms:GetKeyPolicy", "kms:Sign"}
	simulate := func(in *iamapi.SimulatePrincipalPolicyInput) map[string]string {
		t.Helper()
		in.ActionNames, in.ResourceArns = actions, []string{arn}
		got := make(map[string]string)
		for _, r := range must[iamapi.SimulatePrincipalPolicyOutput](c, "SimulatePrincipalPolicy", in).EvaluationResults {
			text := *r.EvalDecision
			for _, s := range r.MatchedStatements {
				text += " " + *s.SourcePolicyType + " " + *s.SourcePolicyId
			}
			got[*r.EvalActionName] = text
		}
		return got
	}
	want := map[string]string{
		"kms:Encrypt": "allowed user user_ann_own", "kms:Decrypt": "allowed user-managed decrypt", "kms:DescribeKey": "allowed group group_ops_sign",
		"kms:GetKeyPolicy": "allowed user user_ann_tagged", "kms:Sign": "implicitDeny",
	}
	if got := simulate(&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &ann.arn}); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	// The same as what becomes of requests.
	_, encrypt := callAs[kmsapi.EncryptOutput](c, c.engine, ann.identity, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	_, describe := callAs[kmsapi.DescribeKeyOutput](c, c.engine, ann.identity, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
	if encrypt != nil || describe != nil {
		t.Errorf("requests: %v, %v", encrypt, describe)
	}

	must[request.None](c, "PutUserPermissionsBoundary", &iamapi.PutUserPermissionsBoundaryInput{UserName: &ann.name, PermissionsBoundary: &decrypt})
	got := simulate(&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &ann.arn})
	if got["kms:Encrypt"] != "implicitDeny" || got["kms:Decrypt"] != "allowed user-managed decrypt" {
		t.Errorf("with a boundary: %v", got)
	}
	got = simulate(&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &ann.arn, PermissionsBoundaryPolicyInputList: []string{identityPolicy("Allow", "*", "*")},
		PolicyInputList: []string{identityPolicy("Deny", "kms:Decrypt", "*")}})
	if got["kms:Encrypt"] != "allowed user user_ann_own" || got["kms:Decrypt"] != "explicitDeny none PolicyInputList.1" {
		t.Errorf("with another boundary and policy: %v", got)
	}
	got = simulate(&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: new(arnOf("group/ops"))})
	if got["kms:DescribeKey"] != "allowed group group_ops_sign" || got["kms:Encrypt"] != "implicitDeny" {
		t.Errorf("of the group: %v", got)
	}
	role := c.newRole("app")
	must[request.None](c, "AttachRolePolicy", &iamapi.AttachRolePolicyInput{RoleName: new("app"), PolicyArn: new(awsAdmin)})
	if got = simulate(&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &role}); got["kms:Sign"] != "allowed aws-managed AdministratorAccess" {
		t.Errorf("of the role: %v", got)
	}
}

func TestSimulationsAreAuthorised(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	ann := c.newPerson("ann", allow("iam:SimulatePrincipalPolicy", aliceARN))
	c.newPerson("alice")
	simulate := func(arn string) error {
		_, err := callAs[iamapi.SimulatePrincipalPolicyOutput](c, c.engine, ann.identity, "SimulatePrincipalPolicy",
			&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &arn, ActionNames: []string{"kms:Encrypt"}})
		return err
	}
	if err := simulate(aliceARN); err != nil {
		t.Error(err)
	}
	wantError(t, simulate(ann.arn), kmsapi.ErrAccessDenied, "…")
	wantError(t, simulate("arn:aws:iam::444455556666:user/alice"), kmsapi.ErrAccessDenied, "…")
	for name, in := range map[string]any{
		"SimulateCustomPolicy":             &iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "*", "*")}, ActionNames: []string{"kms:Encrypt"}},
		"GetContextKeysForCustomPolicy":    &iamapi.GetContextKeysForCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "*", "*")}},
		"GetContextKeysForPrincipalPolicy": &iamapi.GetContextKeysForPrincipalPolicyInput{PolicySourceArn: new(aliceARN)},
	} {
		_, err := c.engine.Do(t.Context(), c.caller(ann.identity), operationNamed(name), in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
}

func TestRefusedSimulations(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	good := func(edit func(*iamapi.SimulateCustomPolicyInput)) *iamapi.SimulateCustomPolicyInput {
		in := &iamapi.SimulateCustomPolicyInput{PolicyInputList: []string{identityPolicy("Allow", "*", "*")}, ActionNames: []string{"kms:Encrypt"}, ResourceArns: []string{simulatedKey}}
		edit(in)
		return in
	}
	for name, in := range map[string]*iamapi.SimulateCustomPolicyInput{
		"policy": good(func(in *iamapi.SimulateCustomPolicyInput) { in.PolicyInputList = []string{"{}"} }),
		"key policy": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.PolicyInputList = []string{policyDocument(rootStatement)}
		}),
		"boundary": good(func(in *iamapi.SimulateCustomPolicyInput) { in.PermissionsBoundaryPolicyInputList = []string{"{}"} }),
		"boundaries": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.PermissionsBoundaryPolicyInputList = slices.Repeat(in.PolicyInputList, 2)
		}),
		"action":     good(func(in *iamapi.SimulateCustomPolicyInput) { in.ActionNames = []string{"kms:*"} }),
		"no service": good(func(in *iamapi.SimulateCustomPolicyInput) { in.ActionNames = []string{"Encrypt"} }),
		"resource":   good(func(in *iamapi.SimulateCustomPolicyInput) { in.ResourceArns = []string{"key"} }),
		"caller":     good(func(in *iamapi.SimulateCustomPolicyInput) { in.CallerArn = new("arn:aws:iam::111122223333:root") }),
		"no caller":  good(func(in *iamapi.SimulateCustomPolicyInput) { in.ResourcePolicy = new(policyDocument(rootStatement)) }),
		"resource's": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.CallerArn, in.ResourcePolicy = new(aliceARN), new(identityPolicy("Allow", "*", "*"))
		}),
		"two values": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.ContextEntries = []iamapi.ContextEntry{{ContextKeyName: new("aws:x"), ContextKeyType: new("string"), ContextKeyValues: []string{"a", "b"}}}
		}),
		"twice": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.ContextEntries = []iamapi.ContextEntry{entry("aws:x", "a"), entry("AWS:X", "b")}
		}),
		"unnamed": good(func(in *iamapi.SimulateCustomPolicyInput) { in.ContextEntries = make([]iamapi.ContextEntry, 1) }),
		"wrong time": good(func(in *iamapi.SimulateCustomPolicyInput) {
			in.ContextEntries = []iamapi.ContextEntry{entry("aws:CurrentTime", "soon")}
		}),
	} {
		_, err := call[iamapi.SimulateCustomPolicyOutput](c, "SimulateCustomPolicy", in)
		if err == nil {
			t.Errorf("%s: it is accepted", name)
			continue
		}
		wantError(t, err, iamapi.ErrInvalidInput, "…")
	}
	for arn, kind := range map[string]*kmsapi.Error{
		aliceARN: iamapi.ErrNoSuchEntity, arnOf("role/app"): iamapi.ErrNoSuchEntity, arnOf("group/g"): iamapi.ErrNoSuchEntity, arnOf("policy/p"): iamapi.ErrInvalidInput,
		arnOf("user"): iamapi.ErrInvalidInput,
	} {
		_, err := call[iamapi.SimulatePrincipalPolicyOutput](c, "SimulatePrincipalPolicy", &iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: &arn, ActionNames: []string{"kms:Encrypt"}})
		wantError(t, err, kind, "…")
	}
}

// Pages have each action with each resource once, and a marker is for the caller only.
func TestSimulationPages(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	in := &iamapi.SimulateCustomPolicyInput{
		PolicyInputList: []string{identityPolicy("Allow", "kms:Encrypt", "*")}, ActionNames: []string{"kms:Encrypt", "kms:Decrypt", "kms:Sign"},
		ResourceArns: []string{simulatedKey, "*", strings.Replace(simulatedKey, "1111", "2222", 1)}, MaxItems: new(int32(4)),
	}
	var got []string
	for pages := 1; ; pages++ {
		out := must[iamapi.SimulateCustomPolicyOutput](c, "SimulateCustomPolicy", in)
		for _, r := range out.EvaluationResults {
			got = append(got, *r.EvalActionName+" "+*r.EvalResourceName)
		}
		if !*out.IsTruncated {
			if pages != 3 || out.Marker != nil {
				t.Errorf("there are %d pages", pages)
			}
			break
		}
		in.Marker = out.Marker
	}
	var want []string
	for _, a := range in.ActionNames {
		for _, r := range in.ResourceArns {
			want = append(want, a+" "+r)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	_, err := callAs[iamapi.SimulateCustomPolicyOutput](c, c.engine, c.newPerson("ann", allow("*", "*")).identity, "SimulateCustomPolicy", in)
	wantError(t, err, kmsapi.ErrValidation, "Invalid Marker.")
}

func TestContextKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	one := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/${aws:username}","Condition":{"Bool":{"aws:SecureTransport":"true"}}}]}`
	two := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"Bool":{"AWS:securetransport":"true"},"StringEquals":{"kms:ViaService":"x"}}}]}`
	want := []string{"aws:SecureTransport", "aws:username", "kms:ViaService"}
	out := must[iamapi.GetContextKeysForCustomPolicyOutput](c, "GetContextKeysForCustomPolicy", &iamapi.GetContextKeysForCustomPolicyInput{PolicyInputList: []string{one, two}})
	if !slices.Equal(out.ContextKeyNames, want) {
		t.Errorf("got %v", out.ContextKeyNames)
	}
	ann := c.newPerson("ann")
	must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &ann.name, PolicyName: new("own"), PolicyDocument: &one})
	principal := must[iamapi.GetContextKeysForPrincipalPolicyOutput](c, "GetContextKeysForPrincipalPolicy", &iamapi.GetContextKeysForPrincipalPolicyInput{PolicySourceArn: &ann.arn, PolicyInputList: []string{two}})
	if !slices.Equal(principal.ContextKeyNames, want) {
		t.Errorf("of a principal: got %v", principal.ContextKeyNames)
	}
}

// A simulation on a node that is behind rests on the newest policies.
func TestSimulationsAreCurrent(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.storeUser(testAccountNumber, "alice", "")
	n2 := c.engines["n2"]
	admin := c.storeUser(testAccountNumber, "admin", identityPolicy("Allow", "iam:*", "*"))
	decision := func() string {
		out, err := callAs[iamapi.SimulatePrincipalPolicyOutput](c, n2, admin, "SimulatePrincipalPolicy", &iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: new(aliceARN), ActionNames: []string{"kms:CreateKey"}})
		if err != nil {
			t.Fatal(err)
		}
		return *out.EvaluationResults[0].EvalDecision
	}
	if d := decision(); d != "implicitDeny" {
		t.Errorf("got %s", d)
	}
	c.Replica("n2").FallBehind()
	must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: new("alice"), PolicyName: new("p"), PolicyDocument: new(identityPolicy("Allow", "kms:*", "*"))})
	if d := decision(); d != "allowed" {
		t.Errorf("after the policy was put: got %s", d)
	}
}
