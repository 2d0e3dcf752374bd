package keyengine

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Every operation needs its action on the resource that AWS has for it, and is refused to a
// caller without it, whether or not there is such a resource.
func TestIAMResources(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	ann := c.newPerson("ann")
	c.newRole("app")
	c.newPolicy("p", allow("kms:*", "*"))
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	must[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://a.example")})
	members := map[string]string{
		"UserName": "ann", "GroupName": "g", "RoleName": "app", "PolicyArn": arnOf("policy/p"), "OpenIDConnectProviderArn": arnOf("oidc-provider/a.example"),
		"Url": "https://b.example", "PolicyName": "new", "VersionId": "v1", "AccessKeyId": ann.key.AccessKeyID, "Status": "Active", "ClientID": "x",
		"PolicyDocument": policyDocument(allow("kms:*", "*")), "AssumeRolePolicyDocument": trust(`{"AWS":"` + testAccount + `"}`), "PermissionsBoundary": awsAdmin,
		"Description": "d", "AccountAlias": "acme", "JSONWebKeySet": "",
		"PolicySourceArn": arnOf("user/ann"),
	}
	seen := 0
	for _, op := range OperationsOf(IAM) {
		seen++
		members["AccessKeyId"] = ann.key.AccessKeyID
		in := op.NewInput()
		fillRequired(t, op, in, members)
		resource := resourceOf(op.Name)
		_, err := c.engine.Do(t.Context(), c.caller(ann.identity), op, in)
		told := resource
		if op.Name == "GetAccessKeyLastUsed" {
			told = "*" // it does not say whose the access key is
		}
		wantError(t, err, kmsapi.ErrAccessDenied, fmt.Sprintf("User: %s is not authorized to perform: iam:%s on resource: %s because no identity-based policy allows the iam:%s action", ann.arn, op.Name, told, op.Name))
		must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &ann.name, PolicyName: new("only"), PolicyDocument: new(policyDocument(allow("iam:"+op.Name, resource)))})
		in = op.NewInput()
		fillRequired(t, op, in, members)
		if _, err := c.engine.Do(t.Context(), c.caller(ann.identity), op, in); errors.Is(err, kmsapi.ErrAccessDenied) || errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s with permission for its resource: %v", op.Name, err)
		}
		c.restoreIAM(ann, op.Name)
	}
	if seen < 90 {
		t.Errorf("only %d operations", seen)
	}
}

// A denial does not tell whether what the request names exists: it reads the same for a user,
// group, role, policy, identity provider or access key that exists and for one that does not,
// whatever path, tags and boundary the one that exists has.
func TestDenialsDoNotTellWhatExists(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	secret := []iamapi.Tag{{Key: new("secret"), Value: new("yes")}}
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("known"), Path: new("/vault/"), Tags: secret, PermissionsBoundary: new(awsAdmin)})
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("known"), Path: new("/vault/")})
	must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{
		RoleName: new("known"), Path: new("/vault/"), Tags: secret, PermissionsBoundary: new(awsAdmin), AssumeRolePolicyDocument: new(trust(`{"AWS":"` + testAccount + `"}`))})
	must[iamapi.CreatePolicyOutput](c, "CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("known"), Path: new("/vault/"), Tags: secret, PolicyDocument: new(policyDocument(allow("*", "*")))})
	must[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://known.example"), Tags: secret})
	key := c.newAccessKey(new("known")).AccessKeyID
	other := key[:len(key)-4] + "7777"
	rootKey := c.newAccessKey(nil).AccessKeyID
	members := func(name, accessKey string) map[string]string {
		return map[string]string{
			"UserName": name, "GroupName": name, "RoleName": name, "PolicyArn": arnOf("policy/vault/" + name), "OpenIDConnectProviderArn": arnOf("oidc-provider/" + name + ".example"),
			"Url": "https://new.example", "PolicyName": "own", "VersionId": "v1", "AccessKeyId": accessKey, "Status": "Active", "ClientID": "x",
			"PolicyDocument": policyDocument(allow("kms:*", "*")), "AssumeRolePolicyDocument": trust(`{"AWS":"` + testAccount + `"}`), "PermissionsBoundary": awsAdmin,
			"Description": "d", "AccountAlias": "acme", "JSONWebKeySet": "", "PolicySourceArn": arnOf("user/vault/" + name),
		}
	}
	for name, who := range map[string]*person{
		"no policy":           c.newPerson("ann"),
		"a Deny by path":      c.newPerson("bob", deny("iam:*", arnOf("*/vault/*"))),
		"a Deny by tag":       c.newPerson("carol", strings.Replace(deny("iam:*", "*"), `"Resource"`, `"Condition":{"StringEquals":{"aws:ResourceTag/secret":"yes"}},"Resource"`, 1)),
		"a Deny by boundary":  c.newPerson("dave", strings.Replace(deny("iam:*", "*"), `"Resource"`, `"Condition":{"Null":{"iam:PermissionsBoundary":"false"}},"Resource"`, 1)),
		"an Allow by tag":     c.newPerson("eve", strings.Replace(allow("iam:*", "*"), `"Resource"`, `"Condition":{"StringEquals":{"aws:ResourceTag/secret":"no"}},"Resource"`, 1)),
		"an Allow for others": c.newPerson("fred", allow("iam:*", arnOf("user/others/*"))),
	} {
		denial := func(op *Operation, named map[string]string) *kmsapi.Error {
			in := op.NewInput()
			fillRequired(t, op, in, named)
			_, err := c.engine.Do(t.Context(), c.caller(who.identity), op, in)
			denied, ok := errors.AsType[*kmsapi.Error](err)
			if !ok || denied.Code != kmsapi.ErrAccessDenied.Code {
				t.Errorf("%s with %s: got error %v, want a denial", op.Name, name, err)
				return &kmsapi.Error{}
			}
			return denied
		}
		for _, op := range OperationsOf(IAM) {
			known, unknown := denial(op, members("known", key)), denial(op, members("other", other))
			if strings.ReplaceAll(known.Message, "known", "other") != unknown.Message || len(known.Encoded) != len(unknown.Encoded) {
				t.Errorf("%s with %s, of what exists:\n%s\nand of what does not:\n%s", op.Name, name, known.Message, unknown.Message)
			}
			if op.Name == "GetAccessKeyLastUsed" {
				if ofRoot := denial(op, members("", rootKey)); ofRoot.Message != unknown.Message {
					t.Errorf("%s with %s, of the root user's: %s\nand of none: %s", op.Name, name, ofRoot.Message, unknown.Message)
				}
			}
		}
	}
}

// resourceOf returns the ARN that an operation is authorised for, by its name.
func resourceOf(name string) string {
	switch name {
	case "CreateUser", "GetUser", "SimulatePrincipalPolicy", "GetContextKeysForPrincipalPolicy", "ListUserTags", "ListGroupsForUser":
		return arnOf("user/ann")
	case "CreatePolicy":
		return arnOf("policy/new")
	case "ListUsers":
		return arnOf("user/")
	case "ListGroups":
		return arnOf("group/")
	case "ListRoles":
		return arnOf("role/")
	case "ListPolicies":
		return arnOf("policy/")
	case "CreateOpenIDConnectProvider":
		return arnOf("oidc-provider/b.example")
	case "ListOpenIDConnectProviders", "ListVirtualMFADevices", "ListInstanceProfiles", "ListServerCertificates", "ListSAMLProviders", "GetAccountSummary",
		"GetAccountAuthorizationDetails", "ListAccountAliases", "CreateAccountAlias", "DeleteAccountAlias",
		"SimulateCustomPolicy", "GetContextKeysForCustomPolicy":
		return "*"
	case "AddUserToGroup", "RemoveUserFromGroup":
		return arnOf("group/g")
	case "UpdateAssumeRolePolicy", "ListInstanceProfilesForRole":
		return arnOf("role/app")
	}
	for _, of := range []struct{ part, resource string }{
		{"OpenIDConnectProvider", "oidc-provider/a.example"}, {"User", "user/ann"}, {"Group", "group/g"}, {"Role", "role/app"}, {"Policy", "policy/p"}, {"", "user/ann"},
	} {
		if strings.Contains(name, of.part) {
			return arnOf(of.resource)
		}
	}
	return ""
}

// fillRequired sets the required members of an input, and its name of a user.
func fillRequired(t testing.TB, op *Operation, in any, members map[string]string) {
	t.Helper()
	s := op.Input()
	v, err := s.Of(in)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Members {
		m, f := &s.Members[i], v.Field(i)
		if !m.Required && (m.Name != "UserName" || m.Kind != kmsapi.KindText) {
			continue
		}
		switch value, ok := members[m.Name]; {
		case m.Kind == kmsapi.KindText && ok:
			f.Set(reflect.ValueOf(&value))
		case m.Name == "Tags":
			f.Set(reflect.ValueOf([]iamapi.Tag{{Key: new("k"), Value: new("v")}}))
		case m.Name == "TagKeys":
			f.Set(reflect.ValueOf([]string{"k"}))
		case m.Name == "PolicyInputList":
			f.Set(reflect.ValueOf([]string{policyDocument(allow("kms:*", "*"))}))
		case m.Name == "ActionNames":
			f.Set(reflect.ValueOf([]string{"kms:Encrypt"}))
		case m.Name == "ThumbprintList":
			f.Set(reflect.ValueOf([]string{strings.Repeat("0", 40)}))
		default:
			t.Fatalf("%s: there is no value for %s", op.Name, m.Name)
		}
	}
}

// restoreIAM makes good what an operation of TestIAMResources took away.
func (c *testCluster) restoreIAM(p *person, op string) {
	c.t.Helper()
	do := func(name string, in any) {
		_, err := c.engine.Do(c.t.Context(), c.caller(c.root), operationNamed(name), in)
		if err != nil && !errors.Is(err, iamapi.ErrNoSuchEntity) && !errors.Is(err, iamapi.ErrEntityAlreadyExists) {
			c.t.Fatalf("%s after %s: %v", name, op, err)
		}
	}
	do("DeleteUserPermissionsBoundary", &iamapi.DeleteUserPermissionsBoundaryInput{UserName: &p.name})
	do("DeleteUserPolicy", &iamapi.DeleteUserPolicyInput{UserName: &p.name, PolicyName: new("new")})
	do("RemoveUserFromGroup", &iamapi.RemoveUserFromGroupInput{UserName: &p.name, GroupName: new("g")})
	switch op {
	case "CreateAccessKey":
		for _, k := range must[iamapi.ListAccessKeysOutput](c, "ListAccessKeys", &iamapi.ListAccessKeysInput{UserName: &p.name}).AccessKeyMetadata {
			if *k.AccessKeyId != p.key.AccessKeyID {
				do("DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: &p.name, AccessKeyId: k.AccessKeyId})
			}
		}
	case "DeleteAccessKey":
		p.key = c.newAccessKey(&p.name)
		p.identity = c.signIn(c.engine, p.key)
	case "DeleteGroup":
		do("CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	case "DeleteRole":
		do("CreateRole", &iamapi.CreateRoleInput{RoleName: new("app"), AssumeRolePolicyDocument: new(trust(`{"AWS":"` + testAccount + `"}`))})
	case "DeletePolicy":
		do("CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	case "DeleteOpenIDConnectProvider":
		do("CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://a.example")})
	}
}

// Condition keys of IAM, with the values that let a request pass and those that do not.
func TestIAMConditions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, condition string
		op              string
		good, bad       any
	}{
		{"iam:PolicyARN", `{"ArnEquals":{"iam:PolicyARN":"arn:aws:iam::aws:policy/IAMReadOnlyAccess"}}`, "AttachUserPolicy",
			&iamapi.AttachUserPolicyInput{UserName: new("eve"), PolicyArn: new("arn:aws:iam::aws:policy/IAMReadOnlyAccess")},
			&iamapi.AttachUserPolicyInput{UserName: new("eve"), PolicyArn: new(awsAdmin)}},
		{"iam:PolicyARN, detaching", `{"ArnLike":{"iam:PolicyARN":"arn:aws:iam::aws:policy/*ReadOnly*"}}`, "DetachUserPolicy",
			&iamapi.DetachUserPolicyInput{UserName: new("bounded"), PolicyArn: new("arn:aws:iam::aws:policy/IAMReadOnlyAccess")},
			&iamapi.DetachUserPolicyInput{UserName: new("bounded"), PolicyArn: new(awsAdmin)}},
		{"iam:PermissionsBoundary of a new user", `{"StringEquals":{"iam:PermissionsBoundary":"` + awsAdmin + `"}}`, "CreateUser",
			&iamapi.CreateUserInput{UserName: new("new"), PermissionsBoundary: new(awsAdmin)}, &iamapi.CreateUserInput{UserName: new("new2")}},
		{"iam:PermissionsBoundary of a user", `{"StringEquals":{"iam:PermissionsBoundary":"` + awsAdmin + `"}}`, "PutUserPolicy",
			&iamapi.PutUserPolicyInput{UserName: new("bounded"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))},
			&iamapi.PutUserPolicyInput{UserName: new("eve"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))}},
		{"iam:PermissionsBoundary that is set", `{"StringEquals":{"iam:PermissionsBoundary":"` + awsAdmin + `"}}`, "PutUserPermissionsBoundary",
			&iamapi.PutUserPermissionsBoundaryInput{UserName: new("eve"), PermissionsBoundary: new(awsAdmin)},
			&iamapi.PutUserPermissionsBoundaryInput{UserName: new("bounded"), PermissionsBoundary: new("arn:aws:iam::aws:policy/IAMFullAccess")}},
		{"aws:ResourceTag", `{"StringEquals":{"aws:ResourceTag/team":"blue"}}`, "GetUser", &iamapi.GetUserInput{UserName: new("bounded")}, &iamapi.GetUserInput{UserName: new("eve")}},
		{"aws:ResourceTag of a simulation", `{"StringEquals":{"aws:ResourceTag/team":"blue"}}`, "SimulatePrincipalPolicy",
			&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: new(arnOf("user/bounded")), ActionNames: []string{"kms:Encrypt"}},
			&iamapi.SimulatePrincipalPolicyInput{PolicySourceArn: new(arnOf("user/eve")), ActionNames: []string{"kms:Encrypt"}}},
		{"iam:ResourceTag", `{"StringEquals":{"iam:ResourceTag/Team":"blue"}}`, "GetUser", &iamapi.GetUserInput{UserName: new("bounded")}, &iamapi.GetUserInput{UserName: new("eve")}},
		{"aws:RequestTag", `{"StringEquals":{"aws:RequestTag/team":"red"}}`, "TagUser",
			&iamapi.TagUserInput{UserName: new("eve"), Tags: []iamapi.Tag{{Key: new("team"), Value: new("red")}}},
			&iamapi.TagUserInput{UserName: new("eve"), Tags: []iamapi.Tag{{Key: new("team"), Value: new("blue")}}}},
		{"aws:TagKeys", `{"ForAllValues:StringEquals":{"aws:TagKeys":["team"]}}`, "UntagUser",
			&iamapi.UntagUserInput{UserName: new("eve"), TagKeys: []string{"team"}}, &iamapi.UntagUserInput{UserName: new("eve"), TagKeys: []string{"team", "other"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.newPerson("eve")
			must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{
				UserName: new("bounded"), PermissionsBoundary: new(awsAdmin), Tags: []iamapi.Tag{{Key: new("Team"), Value: new("blue")}},
			})
			must[request.None](c, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: new("bounded"), PolicyArn: new("arn:aws:iam::aws:policy/IAMReadOnlyAccess")})
			ann := c.newPerson("ann", `{"Effect":"Allow","Action":"iam:*","Resource":"*","Condition":`+tt.condition+`}`)
			_, err := c.engine.Do(t.Context(), c.caller(ann.identity), operationNamed(tt.op), tt.bad)
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
			if _, err := c.engine.Do(t.Context(), c.caller(ann.identity), operationNamed(tt.op), tt.good); err != nil {
				t.Errorf("with the right value: %v", err)
			}
		})
	}
}

// A rename needs permission for the old name and the new one.
func TestRenamingNeedsBothNames(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("old"), Path: new("/a/")})
	rename := &iamapi.UpdateUserInput{UserName: new("old"), NewUserName: new("new")}
	for name, resource := range map[string]string{"old": "user/a/old", "new": "user/a/new"} {
		by := c.newPerson("only-"+name, allow("iam:UpdateUser", arnOf(resource)))
		_, err := c.engine.Do(t.Context(), c.caller(by.identity), operationNamed("UpdateUser"), rename)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	by := c.newPerson("both", allow("iam:UpdateUser", arnOf("user/a/*")))
	if _, err := c.engine.Do(t.Context(), c.caller(by.identity), operationNamed("UpdateUser"), rename); err != nil {
		t.Error(err)
	}
}
