package keyengine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The life of a managed policy: its versions, what it is attached to, and its deletion.
func TestPolicyLife(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	doc := func(action string) *string { return new(policyDocument(allow(action, "*"))) }
	p := must[iamapi.CreatePolicyOutput](c, "CreatePolicy", &iamapi.CreatePolicyInput{
		PolicyName: new("Use"), Path: new("/team/"), Description: new("d"), PolicyDocument: doc("kms:Encrypt"), Tags: []iamapi.Tag{{Key: new("k"), Value: new("v")}},
	}).Policy
	arn := arnOf("policy/team/Use")
	if *p.Arn != arn || !strings.HasPrefix(*p.PolicyId, "ANPA") || *p.DefaultVersionId != "v1" || *p.AttachmentCount != 0 || *p.PermissionsBoundaryUsageCount != 0 || !*p.IsAttachable || *p.Description != "d" || len(p.Tags) != 1 {
		t.Errorf("CreatePolicy: got %+v", p)
	}
	c.fails("CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("use"), PolicyDocument: doc("kms:Encrypt")}, iamapi.ErrEntityAlreadyExists, "A policy called use already exists. Duplicate names are not allowed.")
	ann := c.newPerson("ann")
	key, _ := c.newKey()
	allowed := func(what string, want bool) {
		t.Helper()
		_, err := callAs[kmsapi.DescribeKeyOutput](c, c.engine, ann.identity, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
		if (err == nil) != want {
			t.Errorf("%s: got error %v, want allowed %v", what, err, want)
		}
	}
	attach := &iamapi.AttachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn}
	for range 2 {
		must[request.None](c, "AttachUserPolicy", attach)
	}
	allowed("with the first version", false)
	v := must[iamapi.CreatePolicyVersionOutput](c, "CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: doc("kms:Describe*")}).PolicyVersion
	if *v.VersionId != "v2" || *v.IsDefaultVersion || v.Document != nil {
		t.Errorf("CreatePolicyVersion: got %+v", v)
	}
	allowed("with a version that is not the default", false)
	must[request.None](c, "SetDefaultPolicyVersion", &iamapi.SetDefaultPolicyVersionInput{PolicyArn: &arn, VersionId: new("v2")})
	allowed("with the second version", true)
	got := must[iamapi.GetPolicyOutput](c, "GetPolicy", &iamapi.GetPolicyInput{PolicyArn: &arn}).Policy
	if *got.DefaultVersionId != "v2" || *got.AttachmentCount != 1 || *got.PolicyId != *p.PolicyId {
		t.Errorf("GetPolicy: got %+v", got)
	}
	one := must[iamapi.GetPolicyVersionOutput](c, "GetPolicyVersion", &iamapi.GetPolicyVersionInput{PolicyArn: &arn, VersionId: new("v1")}).PolicyVersion
	if *one.Document != *doc("kms:Encrypt") || *one.IsDefaultVersion {
		t.Errorf("GetPolicyVersion: got %+v", one)
	}
	c.fails("DeletePolicyVersion", &iamapi.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: new("v2")}, iamapi.ErrDeleteConflict, "Cannot delete the default version of a policy.")
	for _, id := range []string{"v3", "v99", "v4294967297", "v2.x"} {
		for _, name := range []string{"GetPolicyVersion", "DeletePolicyVersion", "SetDefaultPolicyVersion"} {
			in := map[string]any{
				"GetPolicyVersion":        &iamapi.GetPolicyVersionInput{PolicyArn: &arn, VersionId: &id},
				"DeletePolicyVersion":     &iamapi.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: &id},
				"SetDefaultPolicyVersion": &iamapi.SetDefaultPolicyVersionInput{PolicyArn: &arn, VersionId: &id},
			}[name]
			c.fails(name, in, iamapi.ErrNoSuchEntity, "Policy "+arn+" version "+id+" does not exist or is not attachable.")
		}
	}
	for range 3 {
		must[iamapi.CreatePolicyVersionOutput](c, "CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: doc("kms:*"), SetAsDefault: new(true)})
	}
	c.fails("CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: doc("kms:*")}, iamapi.ErrLimitExceeded,
		"A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing version.")
	must[request.None](c, "DeletePolicyVersion", &iamapi.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: new("v2")})
	versions := pages(t, func(after *string) (ids []string, _ *string, _ *bool, _ error) {
		out := must[iamapi.ListPolicyVersionsOutput](c, "ListPolicyVersions", &iamapi.ListPolicyVersionsInput{PolicyArn: &arn, Marker: after, MaxItems: new(int32(3))})
		for _, v := range out.Versions {
			ids = append(ids, fmt.Sprint(*v.VersionId, " ", *v.IsDefaultVersion))
		}
		return ids, out.Marker, out.IsTruncated, nil
	})
	if got, want := slices.Concat(versions...), []string{"v5 true", "v4 false", "v3 false", "v1 false"}; !slices.Equal(got, want) || sizes(versions) != "3 1" {
		t.Errorf("ListPolicyVersions: got %v, want %v", versions, want)
	}
	// A number is not used again.
	if v := must[iamapi.CreatePolicyVersionOutput](c, "CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: doc("kms:*")}).PolicyVersion; *v.VersionId != "v6" {
		t.Errorf("the version after v5 is %s", *v.VersionId)
	}

	// Who has the policy.
	c.newRole("app")
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	must[request.None](c, "AttachGroupPolicy", &iamapi.AttachGroupPolicyInput{GroupName: new("g"), PolicyArn: &arn})
	must[request.None](c, "PutRolePermissionsBoundary", &iamapi.PutRolePermissionsBoundaryInput{RoleName: new("app"), PermissionsBoundary: &arn})
	for filter, want := range map[string]string{"": "[g] [ann] [app]", "Role": "[] [] [app]", "PermissionsPolicy": "[g] [ann] []", "PermissionsBoundary": "[] [] [app]"} {
		in := &iamapi.ListEntitiesForPolicyInput{PolicyArn: &arn}
		switch {
		case strings.HasPrefix(filter, "Permissions"):
			in.PolicyUsageFilter = &filter
		case filter != "":
			in.EntityFilter = &filter
		}
		groups, users, roles := []string{}, []string{}, []string{}
		out := must[iamapi.ListEntitiesForPolicyOutput](c, "ListEntitiesForPolicy", in)
		for _, g := range out.PolicyGroups {
			groups = append(groups, *g.GroupName)
		}
		for _, u := range out.PolicyUsers {
			users = append(users, *u.UserName)
		}
		for _, r := range out.PolicyRoles {
			roles = append(roles, *r.RoleName)
		}
		if got := fmt.Sprint(groups, users, roles); got != want {
			t.Errorf("entities with filter %q: got %s, want %s", filter, got, want)
		}
	}
	if got := must[iamapi.GetPolicyOutput](c, "GetPolicy", &iamapi.GetPolicyInput{PolicyArn: &arn}).Policy; *got.AttachmentCount != 2 || *got.PermissionsBoundaryUsageCount != 1 {
		t.Errorf("GetPolicy: got %d attachments and %d boundaries, want 2 and 1", *got.AttachmentCount, *got.PermissionsBoundaryUsageCount)
	}
	c.fails("DeletePolicy", &iamapi.DeletePolicyInput{PolicyArn: &arn}, iamapi.ErrDeleteConflict, "Cannot delete a policy attached to entities.")
	must[request.None](c, "DetachUserPolicy", &iamapi.DetachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn})
	allowed("after the policy was detached", false)
	c.fails("DetachUserPolicy", &iamapi.DetachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn}, iamapi.ErrNoSuchEntity, "Policy "+arn+" was not found.")
	must[request.None](c, "DetachGroupPolicy", &iamapi.DetachGroupPolicyInput{GroupName: new("g"), PolicyArn: &arn})
	c.fails("DeletePolicy", &iamapi.DeletePolicyInput{PolicyArn: &arn}, iamapi.ErrDeleteConflict, "Cannot delete a policy attached to entities.")
	must[request.None](c, "DeleteRolePermissionsBoundary", &iamapi.DeleteRolePermissionsBoundaryInput{RoleName: new("app")})
	c.fails("DeletePolicy", &iamapi.DeletePolicyInput{PolicyArn: &arn}, iamapi.ErrDeleteConflict, "…")
	for _, v := range must[iamapi.ListPolicyVersionsOutput](c, "ListPolicyVersions", &iamapi.ListPolicyVersionsInput{PolicyArn: &arn}).Versions {
		if !*v.IsDefaultVersion {
			must[request.None](c, "DeletePolicyVersion", &iamapi.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: v.VersionId})
		}
	}
	must[request.None](c, "DeletePolicy", &iamapi.DeletePolicyInput{PolicyArn: &arn})
	c.fails("GetPolicy", &iamapi.GetPolicyInput{PolicyArn: &arn}, iamapi.ErrNoSuchEntity, "Policy "+arn+" was not found.")
	for v := range fsm.Objects[*fsmpb.PolicyVersion](c.State(), nil, "") {
		t.Errorf("the deleted policy has left version %d", v.Number)
	}
}

// The policies of AWS are there in every account, and nobody changes them.
func TestAWSManagedPolicies(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.newPolicy("own", allow("kms:*", "*"))
	list := func(scope string) (names []string) {
		p := pages(t, func(after *string) (names []string, _ *string, _ *bool, _ error) {
			out := must[iamapi.ListPoliciesOutput](c, "ListPolicies", &iamapi.ListPoliciesInput{Scope: &scope, Marker: after, MaxItems: new(int32(2))})
			for _, p := range out.Policies {
				names = append(names, *p.PolicyName)
			}
			return names, out.Marker, out.IsTruncated, nil
		})
		return slices.Concat(p...)
	}
	local, all := list("Local"), list("All")
	if !slices.Equal(local, []string{"own"}) || !slices.Contains(list("AWS"), "AdministratorAccess") || !slices.Equal(all, append(local, list("AWS")...)) {
		t.Errorf("got policies %v, of which %v are the account's", all, local)
	}
	got := must[iamapi.GetPolicyOutput](c, "GetPolicy", &iamapi.GetPolicyInput{PolicyArn: new(awsAdmin)}).Policy
	if *got.Arn != awsAdmin || *got.Path != "/" || *got.DefaultVersionId != "v1" || len(*got.PolicyId) != 21 {
		t.Errorf("GetPolicy: got %+v", got)
	}
	v := must[iamapi.GetPolicyVersionOutput](c, "GetPolicyVersion", &iamapi.GetPolicyVersionInput{PolicyArn: new(awsAdmin), VersionId: new("v1")}).PolicyVersion
	if !strings.Contains(*v.Document, `"Action":"*"`) || !*v.IsDefaultVersion {
		t.Errorf("GetPolicyVersion: got %+v", v)
	}
	for name, in := range map[string]any{
		"DeletePolicy":        &iamapi.DeletePolicyInput{PolicyArn: new(awsAdmin)},
		"CreatePolicyVersion": &iamapi.CreatePolicyVersionInput{PolicyArn: new(awsAdmin), PolicyDocument: new(policyDocument(allow("kms:*", "*")))},
		"TagPolicy":           &iamapi.TagPolicyInput{PolicyArn: new(awsAdmin), Tags: []iamapi.Tag{{Key: new("a"), Value: new("b")}}},
	} {
		c.fails(name, in, kmsapi.ErrAccessDenied, "…")
	}
	ann := c.newPerson("ann")
	must[request.None](c, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: &ann.name, PolicyArn: new(awsAdmin)})
	attached := &iamapi.ListPoliciesInput{OnlyAttached: new(true)}
	if out := must[iamapi.ListPoliciesOutput](c, "ListPolicies", attached); len(out.Policies) != 1 || *out.Policies[0].AttachmentCount != 1 {
		t.Errorf("attached policies: got %v", out.Policies)
	}
	for _, arn := range []string{
		"arn:aws-cn:iam::aws:policy/AdministratorAccess", "arn:aws:iam::aws:policy/Nothing", arnOf("policy/none"), "arn:aws:iam::444455556666:policy/own",
		arnOf("policy/team/own"), arnOf("policy/OWN"), arnOf("user/ann"), "arn:aws:iam::aws:policy/", "abcdefghijklmnopqrstuvwxyz",
	} {
		c.fails("AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn}, iamapi.ErrNoSuchEntity, "Policy "+arn+" does not exist or is not attachable.")
		c.fails("PutUserPermissionsBoundary", &iamapi.PutUserPermissionsBoundaryInput{UserName: &ann.name, PermissionsBoundary: &arn}, iamapi.ErrNoSuchEntity, "Scope ARN: "+arn+" does not exist or is not attachable.")
		c.fails("CreateUser", &iamapi.CreateUserInput{UserName: new("x"), PermissionsBoundary: &arn}, iamapi.ErrNoSuchEntity, "…")
	}
	c.fails("GetPolicy", &iamapi.GetPolicyInput{PolicyArn: new("arn:aws:iam::444455556666:policy/own")}, kmsapi.ErrAccessDenied, "…")
	c.fails("GetPolicy", &iamapi.GetPolicyInput{PolicyArn: new(arnOf("user/0123456789"))}, iamapi.ErrInvalidInput, "ARN "+arnOf("user/0123456789")+" is not valid.")
}

// Inline policies, and how long they and managed policies may be.
func TestInlinePoliciesAndSizes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.newPerson("ann")
	c.newRole("app")
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	// sized returns a document of n characters that count.
	sized := func(n int) *string {
		with := func(sid string) string {
			return `{"Version":"2012-10-17","Id":"` + sid + `","Statement":` + "\n  " + `{"Effect":"Allow","Action":"kms:*","Resource":"*"}}`
		}
		fixed := len(strings.NewReplacer(" ", "", "\n", "").Replace(with("")))
		return new(with(strings.Repeat("x", n-fixed)))
	}
	put := map[string]func(name string, doc *string) (string, any){
		"user": func(name string, doc *string) (string, any) {
			return "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: new("ann"), PolicyName: &name, PolicyDocument: doc}
		},
		"group": func(name string, doc *string) (string, any) {
			return "PutGroupPolicy", &iamapi.PutGroupPolicyInput{GroupName: new("g"), PolicyName: &name, PolicyDocument: doc}
		},
		"role": func(name string, doc *string) (string, any) {
			return "PutRolePolicy", &iamapi.PutRolePolicyInput{RoleName: new("app"), PolicyName: &name, PolicyDocument: doc}
		},
	}
	for noun, size := range map[string]int{"user": 2048, "group": 5120, "role": 10240} {
		entity := map[string]string{"user": "ann", "group": "g", "role": "app"}[noun]
		for name, n := range map[string]int{"b": size - 500, "a": 500} {
			op, in := put[noun](name, sized(n))
			must[request.None](c, op, in)
		}
		message := fmt.Sprintf("Maximum policy size of %d bytes exceeded for %s %s", size, noun, entity)
		op, in := put[noun]("c", sized(150))
		c.fails(op, in, iamapi.ErrLimitExceeded, message)
		op, in = put[noun]("a", sized(501))
		c.fails(op, in, iamapi.ErrLimitExceeded, message)
		op, in = put[noun]("a", sized(499))
		must[request.None](c, op, in)
		op, in = put[noun]("a", new("{}"))
		c.fails(op, in, iamapi.ErrMalformedPolicyDocument, "…")
		op, in = put[noun]("a", new(*sized(400)+strings.Repeat(" ", 32768)))
		c.fails(op, in, iamapi.ErrLimitExceeded, "A policy document has at most 32768 bytes, with white space.")
	}
	names := must[iamapi.ListUserPoliciesOutput](c, "ListUserPolicies", &iamapi.ListUserPoliciesInput{UserName: new("ann")})
	if !slices.Equal(names.PolicyNames, []string{"a", "b"}) || *names.IsTruncated {
		t.Errorf("ListUserPolicies: got %+v", names)
	}
	got := must[iamapi.GetRolePolicyOutput](c, "GetRolePolicy", &iamapi.GetRolePolicyInput{RoleName: new("app"), PolicyName: new("a")})
	if *got.PolicyDocument != *sized(499) || *got.PolicyName != "a" || *got.RoleName != "app" {
		t.Errorf("GetRolePolicy: got %+v", got)
	}
	c.fails("GetUserPolicy", &iamapi.GetUserPolicyInput{UserName: new("ann"), PolicyName: new("z")}, iamapi.ErrNoSuchEntity, "The user policy with name z cannot be found.")
	c.fails("DeleteGroupPolicy", &iamapi.DeleteGroupPolicyInput{GroupName: new("g"), PolicyName: new("z")}, iamapi.ErrNoSuchEntity, "The group policy with name z cannot be found.")
	c.fails("DeleteRolePolicy", &iamapi.DeleteRolePolicyInput{RoleName: new("app"), PolicyName: new("z")}, iamapi.ErrNoSuchEntity, "The role policy with name z cannot be found.")

	must[iamapi.CreatePolicyOutput](c, "CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("long"), PolicyDocument: sized(6144)})
	c.fails("CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("longer"), PolicyDocument: sized(6145)}, iamapi.ErrLimitExceeded, "Cannot exceed quota for PolicySize: 6144")
	c.fails("CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: new(arnOf("policy/long")), PolicyDocument: sized(6145)}, iamapi.ErrLimitExceeded, "Cannot exceed quota for PolicySize: 6144")
	c.fails("CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("bad"), PolicyDocument: new(trust(`"*"`))}, iamapi.ErrMalformedPolicyDocument, "…")
}

// The quotas on what an entity has, and tags that are refused.
func TestQuotasOfEntities(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.newPerson("ann")
	for i := range 11 {
		arn := c.newPolicy(fmt.Sprint("p", i), allow("kms:*", "*"))
		in := &iamapi.AttachUserPolicyInput{UserName: new("ann"), PolicyArn: &arn}
		group := fmt.Sprint("g", i)
		must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: &group})
		add := &iamapi.AddUserToGroupInput{GroupName: &group, UserName: new("ann")}
		if i < 10 {
			must[request.None](c, "AttachUserPolicy", in)
			must[request.None](c, "AddUserToGroup", add)
			continue
		}
		c.fails("AttachUserPolicy", in, iamapi.ErrLimitExceeded, "Cannot exceed quota for PoliciesPerUser: 10")
		c.fails("AddUserToGroup", add, iamapi.ErrLimitExceeded, "Cannot exceed quota for GroupsPerUser: 10")
	}
	attached := pages(t, func(after *string) (names []string, _ *string, _ *bool, _ error) {
		out := must[iamapi.ListAttachedUserPoliciesOutput](c, "ListAttachedUserPolicies", &iamapi.ListAttachedUserPoliciesInput{UserName: new("ann"), Marker: after, MaxItems: new(int32(7))})
		for _, p := range out.AttachedPolicies {
			names = append(names, *p.PolicyName)
		}
		return names, out.Marker, out.IsTruncated, nil
	})
	if sizes(attached) != "7 3" || attached[0][0] != "p0" || attached[1][2] != "p9" {
		t.Errorf("ListAttachedUserPolicies: got %v", attached)
	}
	var tags []iamapi.Tag
	for i := range 50 {
		tags = append(tags, iamapi.Tag{Key: new(fmt.Sprint("k", i)), Value: new("")})
	}
	must[request.None](c, "TagUser", &iamapi.TagUserInput{UserName: new("ann"), Tags: tags})
	for _, tt := range []struct {
		tags    []iamapi.Tag
		kind    *kmsapi.Error
		message string
	}{
		{[]iamapi.Tag{{Key: new("one more"), Value: new("")}}, iamapi.ErrLimitExceeded, "The number of tags has reached the maximum limit."},
		{[]iamapi.Tag{{Key: new("k1"), Value: new("a")}, {Key: new("K1"), Value: new("b")}}, iamapi.ErrInvalidInput, "Duplicate tag keys found. Please note that Tag keys are case insensitive."},
		{[]iamapi.Tag{{Key: new("AWS:x"), Value: new("a")}}, iamapi.ErrInvalidInput, "…"},
		{append(tags, tags...), kmsapi.ErrValidation, "…"},
	} {
		c.fails("TagUser", &iamapi.TagUserInput{UserName: new("ann"), Tags: tt.tags}, tt.kind, tt.message)
	}
	must[request.None](c, "TagUser", &iamapi.TagUserInput{UserName: new("ann"), Tags: []iamapi.Tag{{Key: new("K7"), Value: new("x")}}})
	for _, path := range []string{"/a*/", "/a?/", "/a//b/"} {
		c.fails("CreateUser", &iamapi.CreateUserInput{UserName: new("x"), Path: &path}, iamapi.ErrInvalidInput, "…")
		c.fails("UpdateUser", &iamapi.UpdateUserInput{UserName: new("ann"), NewPath: &path}, iamapi.ErrInvalidInput, "…")
	}
	for _, name := range []string{"a b", "a/b", "", strings.Repeat("x", 65)} {
		c.fails("CreateUser", &iamapi.CreateUserInput{UserName: &name}, kmsapi.ErrValidation, "…")
	}
	if err := c.engine.services.Quotas.Set("users", 1); err != nil {
		t.Fatal(err)
	}
	c.Clock.Advance(time.Second) // users are counted once a second
	c.fails("CreateUser", &iamapi.CreateUserInput{UserName: new("one-too-many")}, iamapi.ErrLimitExceeded, "Cannot exceed quota for UsersPerAccount: 1")
}

// The account as a whole: its alias, how much it has, and everything in it.
func TestAccountOverview(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alias := func() []string {
		return must[iamapi.ListAccountAliasesOutput](c, "ListAccountAliases", &iamapi.ListAccountAliasesInput{}).AccountAliases
	}
	if got := alias(); len(got) != 0 {
		t.Errorf("a new account has aliases %v", got)
	}
	c.fails("DeleteAccountAlias", &iamapi.DeleteAccountAliasInput{AccountAlias: new("acme")}, iamapi.ErrNoSuchEntity, "The account alias acme cannot be found.")
	must[request.None](c, "CreateAccountAlias", &iamapi.CreateAccountAliasInput{AccountAlias: new("acme")})
	c.fails("CreateAccountAlias", &iamapi.CreateAccountAliasInput{AccountAlias: new("acme")}, iamapi.ErrEntityAlreadyExists, "The account alias acme already exists.")
	if got := alias(); !slices.Equal(got, []string{"acme"}) {
		t.Errorf("got aliases %v", got)
	}
	must[request.None](c, "DeleteAccountAlias", &iamapi.DeleteAccountAliasInput{AccountAlias: new("acme")})
	if got := alias(); len(got) != 0 {
		t.Errorf("the alias is still there: %v", got)
	}

	for _, name := range []string{"ann", "bob", "eve"} {
		c.newPerson(name, allow("kms:Encrypt", "*"))
	}
	arn := c.newPolicy("p", allow("kms:*", "*"))
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	must[request.None](c, "AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("g"), UserName: new("bob")})
	must[request.None](c, "AttachGroupPolicy", &iamapi.AttachGroupPolicyInput{GroupName: new("g"), PolicyArn: &arn})
	c.newRole("app")
	sum := must[iamapi.GetAccountSummaryOutput](c, "GetAccountSummary", &iamapi.GetAccountSummaryInput{}).SummaryMap
	for name, want := range map[string]int32{"Users": 3, "Groups": 1, "Roles": 1, "Policies": 1, "PolicyVersionsInUse": 1, "AccountAccessKeysPresent": 1, "MFADevices": 0, "AccessKeysPerUserQuota": 2, "PolicySizeQuota": 6144} {
		if got, ok := sum[name]; !ok || got != want {
			t.Errorf("GetAccountSummary: %s is %d, want %d", name, got, want)
		}
	}
	list := func(filter []string, most int32) [][]string {
		return pages(t, func(after *string) (names []string, _ *string, _ *bool, _ error) {
			out := must[iamapi.GetAccountAuthorizationDetailsOutput](c, "GetAccountAuthorizationDetails", &iamapi.GetAccountAuthorizationDetailsInput{Filter: filter, Marker: after, MaxItems: &most})
			for _, u := range out.UserDetailList {
				names = append(names, fmt.Sprint(*u.UserName, u.GroupList, len(u.UserPolicyList)))
			}
			for _, g := range out.GroupDetailList {
				names = append(names, *g.GroupName+" "+*g.AttachedManagedPolicies[0].PolicyName)
			}
			for _, r := range out.RoleDetailList {
				names = append(names, *r.RoleName)
			}
			for _, p := range out.Policies {
				names = append(names, fmt.Sprint(*p.PolicyName, len(p.PolicyVersionList), *p.AttachmentCount))
			}
			return names, out.Marker, out.IsTruncated, nil
		})
	}
	own := []string{"User", "Group", "Role", "LocalManagedPolicy"}
	want := []string{"ann[] 1", "bob[g] 1", "eve[] 1", "g p", "app", "p1 1"}
	for most := range int32(7) {
		if got := slices.Concat(list(own, most+1)...); !slices.Equal(got, want) {
			t.Errorf("details, %d at once: got %q, want %q", most+1, got, want)
		}
	}
	if got := slices.Concat(list([]string{"Role", "AWSManagedPolicy"}, 3)...); got[0] != "app" || !strings.HasPrefix(got[1], "A") || len(got) < 4 {
		t.Errorf("details of roles and the policies of AWS: got %q", got)
	}
}
