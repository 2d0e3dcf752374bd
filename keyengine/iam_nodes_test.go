package keyengine

import (
	"errors"
	"testing"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// What one node has changed has effect on all others at once, also on one whose state is
// behind: no stale permission, no stale refusal, no stale answer.
func TestChangesTakeEffectEverywhere(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	n2 := c.engines["n2"]
	key, _ := c.newKey()
	behind := func(change string, in any) {
		t.Helper()
		c.Replica("n2").FallBehind()
		if _, err := c.engine.Do(t.Context(), c.caller(c.root), operationNamed(change), in); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
	}
	ann := c.newPerson("ann")
	describe := func() error {
		_, err := callAs[kmsapi.DescribeKeyOutput](c, n2, ann.identity, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
		return err
	}
	may := func(what string) {
		t.Helper()
		if err := describe(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	mayNot := func(what string) {
		t.Helper()
		if err := describe(); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s: got error %v, want AccessDeniedException", what, err)
		}
	}
	mayNot("without a policy")
	arn := c.newPolicy("p", allow("kms:*", "*"))
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})

	behind("PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &ann.name, PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	may("after PutUserPolicy")
	behind("DeleteUserPolicy", &iamapi.DeleteUserPolicyInput{UserName: &ann.name, PolicyName: new("p")})
	mayNot("after DeleteUserPolicy")
	behind("AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn})
	may("after AttachUserPolicy")
	behind("CreatePolicyVersion", &iamapi.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: new(policyDocument(allow("kms:Encrypt", "*"))), SetAsDefault: new(true)})
	mayNot("after CreatePolicyVersion")
	behind("SetDefaultPolicyVersion", &iamapi.SetDefaultPolicyVersionInput{PolicyArn: &arn, VersionId: new("v1")})
	may("after SetDefaultPolicyVersion")
	behind("PutUserPermissionsBoundary", &iamapi.PutUserPermissionsBoundaryInput{UserName: &ann.name, PermissionsBoundary: new("arn:aws:iam::aws:policy/IAMReadOnlyAccess")})
	mayNot("after PutUserPermissionsBoundary")
	behind("DeleteUserPermissionsBoundary", &iamapi.DeleteUserPermissionsBoundaryInput{UserName: &ann.name})
	may("after DeleteUserPermissionsBoundary")
	behind("DetachUserPolicy", &iamapi.DetachUserPolicyInput{UserName: &ann.name, PolicyArn: &arn})
	mayNot("after DetachUserPolicy")
	behind("AddUserToGroup", &iamapi.AddUserToGroupInput{UserName: &ann.name, GroupName: new("g")})
	mayNot("in a group without policies")
	behind("AttachGroupPolicy", &iamapi.AttachGroupPolicyInput{GroupName: new("g"), PolicyArn: &arn})
	may("after AttachGroupPolicy")
	behind("UpdateGroup", &iamapi.UpdateGroupInput{GroupName: new("g"), NewGroupName: new("h")})
	may("after UpdateGroup")
	behind("RemoveUserFromGroup", &iamapi.RemoveUserFromGroupInput{UserName: &ann.name, GroupName: new("h")})
	mayNot("after RemoveUserFromGroup")

	// Answers are not stale either.
	behind("UpdateUser", &iamapi.UpdateUserInput{UserName: &ann.name, NewUserName: new("anna")})
	if _, err := callAs[iamapi.GetUserOutput](c, n2, c.root, "GetUser", &iamapi.GetUserInput{UserName: new("anna")}); err != nil {
		t.Errorf("GetUser by the new name: %v", err)
	}
	c.Replica("n2").FallBehind()
	c.newRole("app")
	if out, err := callAs[iamapi.ListRolesOutput](c, n2, c.root, "ListRoles", &iamapi.ListRolesInput{}); err != nil || len(out.Roles) != 1 {
		t.Errorf("ListRoles: got %+v, error %v", out, err)
	}
	// A name is taken as soon as it was given.
	c.Replica("n2").FallBehind()
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("bob")})
	_, err := callAs[iamapi.CreateUserOutput](c, n2, c.root, "CreateUser", &iamapi.CreateUserInput{UserName: new("Bob")})
	wantError(t, err, iamapi.ErrEntityAlreadyExists, "…")
	// A policy that is being attached on one node cannot be deleted on the other.
	c.Replica("n2").FallBehind()
	must[request.None](c, "AttachRolePolicy", &iamapi.AttachRolePolicyInput{RoleName: new("app"), PolicyArn: &arn})
	_, err = callAs[request.None](c, n2, c.root, "DeletePolicy", &iamapi.DeletePolicyInput{PolicyArn: &arn})
	wantError(t, err, iamapi.ErrDeleteConflict, "…")
	// Nor can a group be deleted that somebody has just been put into.
	c.Replica("n2").FallBehind()
	must[request.None](c, "AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("h"), UserName: new("bob")})
	must[request.None](c, "DetachGroupPolicy", &iamapi.DetachGroupPolicyInput{GroupName: new("h"), PolicyArn: &arn})
	_, err = callAs[request.None](c, n2, c.root, "DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("h")})
	wantError(t, err, iamapi.ErrDeleteConflict, "Cannot delete entity, must remove users from group first.")
}

// An access key works at once on a node that is behind, and no longer works there at once when
// it is made inactive or is deleted, or its user is.
func TestAccessKeysOnANodeThatIsBehind(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	n2 := c.engines["n2"]
	get := func(id iam.Identity) error {
		_, err := callAs[iamapi.GetUserOutput](c, n2, id, "GetUser", &iamapi.GetUserInput{})
		return err
	}
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("ann")})
	must[request.None](c, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: new("ann"), PolicyArn: new(awsAdmin)})
	for name, end := range map[string]func(id string){
		"UpdateAccessKey": func(id string) {
			must[request.None](c, "UpdateAccessKey", &iamapi.UpdateAccessKeyInput{UserName: new("ann"), AccessKeyId: &id, Status: new("Inactive")})
		},
		"DeleteAccessKey": func(id string) {
			must[request.None](c, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: new("ann"), AccessKeyId: &id})
		},
	} {
		c.Replica("n2").FallBehind()
		key := c.newAccessKey(new("ann"))
		id := c.signIn(n2, key)
		if err := get(id); err != nil {
			t.Errorf("with a key that the node has not seen yet: %v", err)
		}
		c.Replica("n2").FallBehind()
		end(key.AccessKeyID)
		if err := get(id); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("after %s, on a node that is behind: got error %v, want ErrUnrecognized", name, err)
		}
		c.Replica("n2").CatchUp()
		if _, err := n2.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(key, testRegion, "text")); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("signing in after %s: got error %v, want ErrUnrecognized", name, err)
		}
	}
}

// An account is created by the first account's root user, or by who may; its own root user
// reaches nothing of another account.
func TestAccounts(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.allowManyRefusals()
	e := c.engine
	ann := c.newPerson("ann", allow("conclave:*", "*"))
	bob := c.newPerson("bob", allow("iam:*", "*"))
	const second = "444455556666"
	to, err := keymat.NewReceiver(e.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Destroy()
	_, _, err = e.CreateAccount(t.Context(), c.caller(bob.identity), second, "other", to.Public())
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	for _, number := range []string{"", "1", "44445555666x", "4444555566667"} {
		_, _, err = e.CreateAccount(t.Context(), c.caller(c.root), number, "other", to.Public())
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
	_, _, err = e.CreateAccount(t.Context(), c.caller(c.root), second, "a\nb", to.Public())
	wantError(t, err, kmsapi.ErrValidation, "…")
	_, _, err = e.CreateAccount(t.Context(), c.caller(c.root), testAccount, "again", to.Public())
	wantError(t, err, iamapi.ErrEntityAlreadyExists, "The account "+testAccount+" already exists.")
	id, sealed, err := e.CreateAccount(t.Context(), c.caller(ann.identity), second, "other", to.Public())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = e.CreateAccount(t.Context(), c.caller(ann.identity), second, "other", to.Public())
	wantError(t, err, iamapi.ErrEntityAlreadyExists, "…")
	if err := e.services.Quotas.Set("accounts", 2); err != nil {
		t.Fatal(err)
	}
	_, _, err = e.CreateAccount(t.Context(), c.caller(ann.identity), "777788889999", "third", to.Public())
	wantError(t, err, iamapi.ErrLimitExceeded, "Cannot exceed quota for AccountsPerCluster: 2")
	key := *c.initResult
	key.AccessKeyID = id
	secret, err := to.Open(iam.SecretInfo(id), sealed)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Destroy()
	if err := secret.With(func(b []byte) error { key.SecretAccessKey = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	list, err := e.Accounts(t.Context(), c.caller(ann.identity))
	if err != nil || len(list) != 2 || list[0].Number != testAccount || list[1].Number != second || list[1].Name != "other" || list[1].Created.IsZero() {
		t.Errorf("Accounts: got %+v, error %v", list, err)
	}
	other := c.signIn(c.engines["n2"], &key)
	_, err = e.Accounts(t.Context(), c.caller(other))
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, _, err = e.CreateAccount(t.Context(), c.caller(other), "777788889999", "mine", to.Public())
	wantError(t, err, kmsapi.ErrAccessDenied, "…")

	// The same names in another account are other users.
	made, err := callAs[iamapi.CreateUserOutput](c, e, other, "CreateUser", &iamapi.CreateUserInput{UserName: new("ann")})
	if err != nil || *made.User.Arn != "arn:aws:iam::"+second+":user/ann" {
		t.Fatalf("CreateUser in the second account: got %+v, error %v", made, err)
	}
	if rec := c.lastRecord(); rec.RecipientAccountId != second {
		t.Errorf("the record of a request in the second account is for account %s", rec.RecipientAccountId)
	}
	_, err = callAs[iamapi.GetUserOutput](c, e, other, "GetUser", &iamapi.GetUserInput{UserName: new("bob")})
	wantError(t, err, iamapi.ErrNoSuchEntity, "…")
	got, err := callAs[iamapi.GetUserOutput](c, e, other, "GetUser", &iamapi.GetUserInput{})
	if err != nil || *got.User.Arn != "arn:aws:iam::"+second+":root" {
		t.Errorf("GetUser of the second root user: got %+v, error %v", got, err)
	}
	arn := c.newPolicy("p", allow("*", "*"))
	_, err = callAs[request.None](c, e, other, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: new("ann"), PolicyArn: &arn})
	wantError(t, err, iamapi.ErrNoSuchEntity, "Policy "+arn+" does not exist or is not attachable.")
	for name, in := range map[string]any{
		"GetPolicy": &iamapi.GetPolicyInput{PolicyArn: &arn}, "DeletePolicy": &iamapi.DeletePolicyInput{PolicyArn: &arn},
		"GetPolicyVersion":      &iamapi.GetPolicyVersionInput{PolicyArn: &arn, VersionId: new("v1")},
		"ListEntitiesForPolicy": &iamapi.ListEntitiesForPolicyInput{PolicyArn: &arn},
	} {
		_, err = e.Do(t.Context(), c.caller(other), operationNamed(name), in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	// A role may trust the second account, which exists.
	must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: new("shared"), AssumeRolePolicyDocument: new(trust(`{"AWS":"` + *made.User.Arn + `"}`))})
	if n, _ := c.State().Credential(fsm.Account(444455556666), id); n == nil || n.Principal != "arn:aws:iam::"+second+":root" {
		t.Errorf("the access key of the second root user is %v", n)
	}
}
