package keyengine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The life of a user, from its creation to its deletion.
func TestUserLife(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	u := must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{
		UserName: new("Ann"), Path: new("/team/"), Tags: []iamapi.Tag{{Key: new("Team"), Value: new("blue")}}, PermissionsBoundary: new(awsAdmin),
	}).User
	if *u.Path != "/team/" || *u.UserName != "Ann" || *u.Arn != arnOf("user/team/Ann") || len(*u.UserId) != 21 || !strings.HasPrefix(*u.UserId, "AIDA") ||
		u.CreateDate == nil || len(u.Tags) != 1 || *u.Tags[0].Value != "blue" || *u.PermissionsBoundary.PermissionsBoundaryArn != awsAdmin || *u.PermissionsBoundary.PermissionsBoundaryType != "Policy" {
		t.Errorf("CreateUser: got %+v", u)
	}
	rec := c.lastRecord()
	if rec.EventSource != "iam.amazonaws.com" || rec.EventName != "CreateUser" || rec.ReadOnly || len(rec.Resources) != 1 || rec.Resources[0].Arn != *u.Arn {
		t.Errorf("the record of CreateUser is %v", rec)
	}
	if s := fmt.Sprint(rec.ResponseElements); !strings.Contains(s, *u.UserId) || !strings.Contains(s, `"user"`) {
		t.Errorf("the record of CreateUser has response %s", s)
	}
	c.fails("CreateUser", &iamapi.CreateUserInput{UserName: new("Ann")}, iamapi.ErrEntityAlreadyExists, "User with name Ann already exists.")
	c.fails("CreateUser", &iamapi.CreateUserInput{UserName: new("ANN")}, iamapi.ErrEntityAlreadyExists, "User with name ANN already exists.")
	c.fails("GetUser", &iamapi.GetUserInput{UserName: new("ann")}, iamapi.ErrNoSuchEntity, "The user with name ann cannot be found.")

	must[request.None](c, "TagUser", &iamapi.TagUserInput{UserName: new("Ann"), Tags: []iamapi.Tag{{Key: new("team"), Value: new("red")}, {Key: new("a"), Value: new("")}}})
	tags := must[iamapi.ListUserTagsOutput](c, "ListUserTags", &iamapi.ListUserTagsInput{UserName: new("Ann")}).Tags
	if len(tags) != 2 || *tags[0].Key != "a" || *tags[1].Key != "team" || *tags[1].Value != "red" {
		t.Errorf("ListUserTags: got %v", tags)
	}
	must[request.None](c, "UntagUser", &iamapi.UntagUserInput{UserName: new("Ann"), TagKeys: []string{"TEAM", "none"}})
	must[request.None](c, "DeleteUserPermissionsBoundary", &iamapi.DeleteUserPermissionsBoundaryInput{UserName: new("Ann")})
	must[request.None](c, "PutUserPermissionsBoundary", &iamapi.PutUserPermissionsBoundaryInput{UserName: new("Ann"), PermissionsBoundary: new("arn:aws:iam::aws:policy/IAMFullAccess")})
	got := must[iamapi.GetUserOutput](c, "GetUser", &iamapi.GetUserInput{UserName: new("Ann")}).User
	if len(got.Tags) != 1 || *got.PermissionsBoundary.PermissionsBoundaryArn != "arn:aws:iam::aws:policy/IAMFullAccess" || *got.UserId != *u.UserId || !got.CreateDate.Equal(*u.CreateDate) {
		t.Errorf("GetUser: got %+v", got)
	}

	// Renaming keeps the unique id and everything that is attached.
	key := c.newAccessKey(new("Ann"))
	must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("g")})
	must[request.None](c, "AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("g"), UserName: new("Ann")})
	must[request.None](c, "AttachUserPolicy", &iamapi.AttachUserPolicyInput{UserName: new("Ann"), PolicyArn: new(awsAdmin)})
	must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: new("Ann"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: new("Ann"), NewUserName: new("Bob"), NewPath: new("/")})
	c.fails("GetUser", &iamapi.GetUserInput{UserName: new("Ann")}, iamapi.ErrNoSuchEntity, "…")
	id := c.signIn(c.engine, key)
	me, err := callAs[iamapi.GetUserOutput](c, c.engine, id, "GetUser", &iamapi.GetUserInput{})
	if err != nil || *me.User.UserName != "Bob" || *me.User.UserId != *u.UserId || *me.User.Arn != arnOf("user/Bob") {
		t.Errorf("GetUser of the renamed user: got %+v, error %v", me, err)
	}
	if rec := c.lastRecord(); rec.Identity.UserName != "Bob" || rec.Identity.PrincipalId != *u.UserId || rec.Identity.Type != "IAMUser" || rec.Identity.AccessKeyId != key.AccessKeyID {
		t.Errorf("the record of the renamed user has identity %v", rec.Identity)
	}
	// A change of case alone concerns a single object.
	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: new("Bob"), NewUserName: new("BOB")})
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("eve")})
	c.fails("UpdateUser", &iamapi.UpdateUserInput{UserName: new("eve"), NewUserName: new("bob")}, iamapi.ErrEntityAlreadyExists, "User with name bob already exists.")
	members := must[iamapi.GetGroupOutput](c, "GetGroup", &iamapi.GetGroupInput{GroupName: new("g")}).Users
	in := must[iamapi.ListGroupsForUserOutput](c, "ListGroupsForUser", &iamapi.ListGroupsForUserInput{UserName: new("BOB")}).Groups
	if len(members) != 1 || *members[0].UserName != "BOB" || len(in) != 1 || *in[0].GroupName != "g" {
		t.Errorf("the renamed user is in %v, and the group has %v", in, members)
	}

	// Nothing that is left may be attached.
	bob := func() *iamapi.DeleteUserInput { return &iamapi.DeleteUserInput{UserName: new("BOB")} }
	c.fails("DeleteUser", bob(), iamapi.ErrDeleteConflict, "Cannot delete entity, must delete access keys first.")
	must[request.None](c, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: new("BOB"), AccessKeyId: &key.AccessKeyID})
	c.fails("DeleteUser", bob(), iamapi.ErrDeleteConflict, "Cannot delete entity, must remove users from group first.")
	must[request.None](c, "RemoveUserFromGroup", &iamapi.RemoveUserFromGroupInput{GroupName: new("g"), UserName: new("BOB")})
	c.fails("RemoveUserFromGroup", &iamapi.RemoveUserFromGroupInput{GroupName: new("g"), UserName: new("BOB")}, iamapi.ErrNoSuchEntity, "User BOB is not in group g.")
	c.fails("DeleteUser", bob(), iamapi.ErrDeleteConflict, "Cannot delete entity, must detach all policies first.")
	must[request.None](c, "DetachUserPolicy", &iamapi.DetachUserPolicyInput{UserName: new("BOB"), PolicyArn: new(awsAdmin)})
	c.fails("DeleteUser", bob(), iamapi.ErrDeleteConflict, "Cannot delete entity, must delete policies first.")
	must[request.None](c, "DeleteUserPolicy", &iamapi.DeleteUserPolicyInput{UserName: new("BOB"), PolicyName: new("p")})
	must[request.None](c, "DeleteUser", bob())
	c.fails("DeleteUser", bob(), iamapi.ErrNoSuchEntity, "The user with name BOB cannot be found.")
	c.refused(c.engine, id, "after the user was deleted")
	// A new user of that name is another one.
	if next := must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("BOB")}).User; *next.UserId == *u.UserId {
		t.Error("a unique id was given twice")
	}
}

// Groups: their users, renaming and deletion.
func TestGroupLife(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	g := must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: new("Admins"), Path: new("/x/")}).Group
	if *g.Arn != arnOf("group/x/Admins") || !strings.HasPrefix(*g.GroupId, "AGPA") || *g.Path != "/x/" {
		t.Errorf("CreateGroup: got %+v", g)
	}
	c.fails("CreateGroup", &iamapi.CreateGroupInput{GroupName: new("admins")}, iamapi.ErrEntityAlreadyExists, "Group with name admins already exists.")
	ann := c.newPerson("ann")
	key, _ := c.newKey()
	mayUse := func() error {
		_, err := callAs[kmsapi.DescribeKeyOutput](c, c.engine, ann.identity, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
		return err
	}
	must[request.None](c, "PutGroupPolicy", &iamapi.PutGroupPolicyInput{GroupName: new("Admins"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	wantError(t, mayUse(), kmsapi.ErrAccessDenied, "…")
	for range 2 {
		must[request.None](c, "AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("Admins"), UserName: new("ann")})
		if err := mayUse(); err != nil {
			t.Errorf("a user of the group: %v", err)
		}
	}
	c.fails("AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("no"), UserName: new("ann")}, iamapi.ErrNoSuchEntity, "The group with name no cannot be found.")
	c.fails("AddUserToGroup", &iamapi.AddUserToGroupInput{GroupName: new("Admins"), UserName: new("no")}, iamapi.ErrNoSuchEntity, "The user with name no cannot be found.")
	c.fails("DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("Admins")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must remove users from group first.")

	// A renamed group keeps its users, and its count of them.
	must[request.None](c, "UpdateGroup", &iamapi.UpdateGroupInput{GroupName: new("Admins"), NewGroupName: new("operators"), NewPath: new("/y/")})
	if err := mayUse(); err != nil {
		t.Errorf("a user of the renamed group: %v", err)
	}
	got := must[iamapi.GetGroupOutput](c, "GetGroup", &iamapi.GetGroupInput{GroupName: new("operators")})
	if *got.Group.GroupId != *g.GroupId || *got.Group.Arn != arnOf("group/y/operators") || len(got.Users) != 1 {
		t.Errorf("GetGroup of the renamed group: got %+v", got)
	}
	if n, _ := fsm.Count(c.State(), fsmpb.Kind_KIND_GROUP_MEMBERS, fsm.GroupMembersID(testAccountNumber, *g.GroupId)); n != 1 {
		t.Errorf("the renamed group counts %d users, want 1", n)
	}
	c.fails("DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("operators")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must remove users from group first.")
	must[request.None](c, "RemoveUserFromGroup", &iamapi.RemoveUserFromGroupInput{GroupName: new("operators"), UserName: new("ann")})
	wantError(t, mayUse(), kmsapi.ErrAccessDenied, "…")
	c.fails("DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("operators")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must delete policies first.")
	must[request.None](c, "DeleteGroupPolicy", &iamapi.DeleteGroupPolicyInput{GroupName: new("operators"), PolicyName: new("p")})
	must[request.None](c, "AttachGroupPolicy", &iamapi.AttachGroupPolicyInput{GroupName: new("operators"), PolicyArn: new(awsAdmin)})
	if err := mayUse(); err == nil {
		t.Error("a user that was removed has the policies of the group")
	}
	c.fails("DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("operators")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must detach all policies first.")
	must[request.None](c, "DetachGroupPolicy", &iamapi.DetachGroupPolicyInput{GroupName: new("operators"), PolicyArn: new(awsAdmin)})
	must[request.None](c, "DeleteGroup", &iamapi.DeleteGroupInput{GroupName: new("operators")})
	c.fails("GetGroup", &iamapi.GetGroupInput{GroupName: new("operators")}, iamapi.ErrNoSuchEntity, "The group with name operators cannot be found.")
	for _, m := range slices.Collect(fsm.Objects[*fsmpb.GroupMembers](c.State(), nil, "")) {
		t.Errorf("a deleted group has left %v", m)
	}
}

// Lists of users, groups and roles have pages, and show what is below a path.
func TestListsOfEntities(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	var want []string
	for i := range 7 {
		name, path := fmt.Sprintf("U%d", i), "/"
		if i%2 == 0 {
			name, path = fmt.Sprintf("u%d", i), "/even/"
		}
		want = append(want, name)
		must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: &name, Path: &path})
		must[iamapi.CreateGroupOutput](c, "CreateGroup", &iamapi.CreateGroupInput{GroupName: &name, Path: &path})
		must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: &name, Path: &path, AssumeRolePolicyDocument: new(trust(`{"AWS":"` + testAccount + `"}`))})
	}
	lists := map[string]func(prefix, marker *string, most *int32) ([]string, *string, *bool){
		"users": func(prefix, marker *string, most *int32) (names []string, _ *string, _ *bool) {
			out := must[iamapi.ListUsersOutput](c, "ListUsers", &iamapi.ListUsersInput{PathPrefix: prefix, Marker: marker, MaxItems: most})
			for _, u := range out.Users {
				names = append(names, *u.UserName)
			}
			return names, out.Marker, out.IsTruncated
		},
		"groups": func(prefix, marker *string, most *int32) (names []string, _ *string, _ *bool) {
			out := must[iamapi.ListGroupsOutput](c, "ListGroups", &iamapi.ListGroupsInput{PathPrefix: prefix, Marker: marker, MaxItems: most})
			for _, u := range out.Groups {
				names = append(names, *u.GroupName)
			}
			return names, out.Marker, out.IsTruncated
		},
		"roles": func(prefix, marker *string, most *int32) (names []string, _ *string, _ *bool) {
			out := must[iamapi.ListRolesOutput](c, "ListRoles", &iamapi.ListRolesInput{PathPrefix: prefix, Marker: marker, MaxItems: most})
			for _, u := range out.Roles {
				names = append(names, *u.RoleName)
			}
			return names, out.Marker, out.IsTruncated
		},
	}
	for kind, list := range lists {
		p := pages(t, func(after *string) ([]string, *string, *bool, error) {
			names, marker, truncated := list(nil, after, new(int32(3)))
			return names, marker, truncated, nil
		})
		if all := slices.Concat(p...); sizes(p) != "3 3 1" || !slices.Equal(all, want) {
			t.Errorf("%s: got %v", kind, p)
		}
		if names, _, _ := list(new("/even/"), nil, nil); !slices.Equal(names, []string{"u0", "u2", "u4", "u6"}) {
			t.Errorf("%s below /even/: got %v", kind, names)
		}
		if names, _, _ := list(new("/odd/"), nil, nil); len(names) != 0 {
			t.Errorf("%s below /odd/: got %v", kind, names)
		}
	}
	// A marker is of one request.
	first := must[iamapi.ListUsersOutput](c, "ListUsers", &iamapi.ListUsersInput{MaxItems: new(int32(1))})
	c.fails("ListUsers", &iamapi.ListUsersInput{Marker: first.Marker, PathPrefix: new("/even/")}, kmsapi.ErrValidation, "Invalid Marker.")
	c.fails("ListRoles", &iamapi.ListRolesInput{Marker: first.Marker}, kmsapi.ErrValidation, "Invalid Marker.")
}

// Access keys: whose they are when nobody is named, their status and their number.
func TestAccessKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	ann := c.newPerson("ann", allow("iam:*", arnOf("user/ann")))
	list := func(name *string, by *person) (out []string) {
		t.Helper()
		who := c.root
		if by != nil {
			who = by.identity
		}
		l, err := callAs[iamapi.ListAccessKeysOutput](c, c.engine, who, "ListAccessKeys", &iamapi.ListAccessKeysInput{UserName: name})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range l.AccessKeyMetadata {
			out = append(out, *k.AccessKeyId+" "+*k.Status)
		}
		slices.Sort(out)
		return out
	}
	first := ann.key.AccessKeyID
	if got := list(nil, ann); !slices.Equal(got, []string{first + " Active"}) || !slices.Equal(got, list(new("ann"), nil)) {
		t.Errorf("ann lists %v", got)
	}
	// The caller's own key is made for who names nobody.
	out, err := callAs[iamapi.CreateAccessKeyOutput](c, c.engine, ann.identity, "CreateAccessKey", &iamapi.CreateAccessKeyInput{})
	if err != nil || *out.AccessKey.UserName != "ann" || *out.AccessKey.Status != "Active" || len(*out.AccessKey.SecretAccessKey) != 40 {
		t.Fatalf("CreateAccessKey for herself: got %+v, error %v", out, err)
	}
	if s := c.lastRecord().String(); strings.Contains(s, *out.AccessKey.SecretAccessKey) || !strings.Contains(s, *out.AccessKey.AccessKeyId) {
		t.Errorf("the record of CreateAccessKey is %s", s)
	}
	second := *out.AccessKey.AccessKeyId
	c.fails("CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: new("ann")}, iamapi.ErrLimitExceeded, "Cannot exceed quota for AccessKeysPerUser: 2")
	must[request.None](c, "UpdateAccessKey", &iamapi.UpdateAccessKeyInput{UserName: new("ann"), AccessKeyId: &first, Status: new("Inactive")})
	c.refused(c.engine, ann.identity, "with an inactive access key")
	both := []string{first + " Inactive", second + " Active"}
	slices.Sort(both)
	if got := list(new("ann"), nil); !slices.Equal(got, both) {
		t.Errorf("got access keys %v", got)
	}
	c.fails("CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: new("ann")}, iamapi.ErrLimitExceeded, "…")
	must[request.None](c, "UpdateAccessKey", &iamapi.UpdateAccessKeyInput{UserName: new("ann"), AccessKeyId: &first, Status: new("Active")})
	if _, err := callAs[iamapi.GetUserOutput](c, c.engine, ann.identity, "GetUser", &iamapi.GetUserInput{}); err != nil {
		t.Errorf("with an access key that is active again: %v", err)
	}
	c.fails("UpdateAccessKey", &iamapi.UpdateAccessKeyInput{UserName: new("ann"), AccessKeyId: &first, Status: new("Expired")}, kmsapi.ErrValidation, "…")
	bob := c.newPerson("bob")
	for _, name := range []string{"UpdateAccessKey", "DeleteAccessKey"} {
		in := map[string]any{
			"UpdateAccessKey": &iamapi.UpdateAccessKeyInput{UserName: new("bob"), AccessKeyId: &first, Status: new("Inactive")},
			"DeleteAccessKey": &iamapi.DeleteAccessKeyInput{UserName: new("bob"), AccessKeyId: &first},
		}[name]
		c.fails(name, in, iamapi.ErrNoSuchEntity, "The Access Key with id "+first+" cannot be found.")
	}
	_, err = callAs[request.None](c, c.engine, bob.identity, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: new("ann"), AccessKeyId: &first})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: "+bob.arn+" is not authorized to perform: iam:DeleteAccessKey on resource: "+ann.arn+" because no identity-based policy allows the iam:DeleteAccessKey action")
	must[request.None](c, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: new("ann"), AccessKeyId: &first})
	c.refused(c.engine, ann.identity, "with a deleted access key")
	if got := list(new("ann"), nil); !slices.Equal(got, []string{second + " Active"}) {
		t.Errorf("got access keys %v", got)
	}
}

// The last use of an access key is known, with its service and Region, also of a request that
// was refused, and not of one that another key made.
func TestAccessKeyLastUsed(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withRegions(testRegion, "us-east-1"))
	ann := c.newPerson("ann", allow("kms:*", "*"))
	key, _ := c.newKey()
	last := func(id string) string {
		t.Helper()
		out := must[iamapi.GetAccessKeyLastUsedOutput](c, "GetAccessKeyLastUsed", &iamapi.GetAccessKeyLastUsedInput{AccessKeyId: &id})
		if out.UserName == nil || *out.UserName != "ann" {
			t.Errorf("GetAccessKeyLastUsed: got user %v", out.UserName)
		}
		u, at := out.AccessKeyLastUsed, "never"
		if u.LastUsedDate != nil {
			at = u.LastUsedDate.Format("15:04:05")
		}
		return *u.ServiceName + " " + *u.Region + " " + at
	}
	if got := last(ann.key.AccessKeyID); got != "N/A N/A never" {
		t.Errorf("an unused key: got %q", got)
	}
	do := func(region, name string, in any) {
		t.Helper()
		c.Clock.Advance(time.Second)
		caller := c.caller(ann.identity)
		caller.Region = region
		_, _ = c.engines["n2"].Do(t.Context(), caller, operationNamed(name), in)
	}
	now := func() string { return c.Clock.Now().UTC().Format("15:04:05") }
	do(testRegion, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
	if got, want := last(ann.key.AccessKeyID), "kms "+testRegion+" "+now(); got != want {
		t.Errorf("after DescribeKey: got %q, want %q", got, want)
	}
	do("us-east-1", "ListKeys", &kmsapi.ListKeysInput{})
	if got, want := last(ann.key.AccessKeyID), "kms us-east-1 "+now(); got != want {
		t.Errorf("after ListKeys in another Region: got %q, want %q", got, want)
	}
	do(testRegion, "ListUsers", &iamapi.ListUsersInput{}) // refused
	want := "iam " + testRegion + " " + now()
	if got := last(ann.key.AccessKeyID); got != want {
		t.Errorf("after a refused ListUsers: got %q, want %q", got, want)
	}
	second := c.newAccessKey(new("ann"))
	if got := last(second.AccessKeyID); got != "N/A N/A never" {
		t.Errorf("a new key: got %q", got)
	}
	if got := last(ann.key.AccessKeyID); got != want {
		t.Errorf("the key after requests of others: got %q, want %q", got, want)
	}
	c.fails("GetAccessKeyLastUsed", &iamapi.GetAccessKeyLastUsedInput{AccessKeyId: new("AKIAAAAAAAAAAAAAAAAA")}, iamapi.ErrNoSuchEntity, "The Access Key with id AKIAAAAAAAAAAAAAAAAA cannot be found.")
	// Uses of keys are counted as before beside it.
	do(testRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	if u := must[kmsapi.GetKeyLastUsageOutput](c, "GetKeyLastUsage", &kmsapi.GetKeyLastUsageInput{KeyId: &key}).KeyLastUsage; u.Operation == nil || *u.Operation != "Encrypt" {
		t.Errorf("GetKeyLastUsage: got %+v", u)
	}
}

// The root user has access keys too, is asked about when it names nobody, and may delete its last
// credential.
func TestRootAccessKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(1, 1))
	root := rootCaller(t, c.engine, c.initResult)
	do := func(name string, in any) (any, error) {
		root.RequestID = randomID()
		return c.engine.Do(t.Context(), root, operationNamed(name), in)
	}
	got, err := do("GetUser", &iamapi.GetUserInput{})
	if u := got.(*iamapi.GetUserOutput).User; err != nil || *u.Arn != arnOf("root") || *u.UserId != testAccount || u.UserName != nil || u.CreateDate == nil {
		t.Errorf("GetUser of the root user: got %+v, error %v", u, err)
	}
	only := c.initResult.AccessKeyID
	made, err := do("CreateAccessKey", &iamapi.CreateAccessKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	second := *made.(*iamapi.CreateAccessKeyOutput).AccessKey.AccessKeyId
	_, err = do("CreateAccessKey", &iamapi.CreateAccessKeyInput{})
	wantError(t, err, iamapi.ErrLimitExceeded, "Cannot exceed quota for AccessKeysPerUser: 2")
	if _, err = do("UpdateAccessKey", &iamapi.UpdateAccessKeyInput{AccessKeyId: &second, Status: new("Inactive")}); err != nil {
		t.Fatal(err)
	}
	l, err := do("ListAccessKeys", &iamapi.ListAccessKeysInput{})
	if err != nil || len(l.(*iamapi.ListAccessKeysOutput).AccessKeyMetadata) != 2 {
		t.Errorf("ListAccessKeys: got %v, error %v", l, err)
	}
	for _, id := range []string{second, only} {
		if _, err = do("DeleteAccessKey", &iamapi.DeleteAccessKeyInput{AccessKeyId: &id}); err != nil {
			t.Error(err)
		}
	}
	if _, err = do("ListAccessKeys", &iamapi.ListAccessKeysInput{}); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("without credentials: got error %v, want ErrUnrecognized", err)
	}
}

// A request that another one overtakes between its decision and its commit does not exceed the
// quota of access keys, of users or of the root user.
func TestOvertakenRequestsOnAccessKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	// overtaken makes a request on n1 that one on n2 overtakes.
	overtaken := func(name string, in any, by string, other any) error {
		t.Helper()
		r := c.Replica("n1")
		r.BeforeCommit = func(*fsmpb.Record) {
			r.BeforeCommit = nil
			if _, err := c.engines["n2"].Do(t.Context(), c.caller(c.root), operationNamed(by), other); err != nil {
				t.Errorf("%s: %v", by, err)
			}
		}
		_, err := c.engine.Do(t.Context(), c.caller(c.root), operationNamed(name), in)
		return err
	}
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("ann")})
	c.newAccessKey(new("ann"))
	for _, name := range []*string{new("ann"), nil} {
		err := overtaken("CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: name}, "CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: name})
		wantError(t, err, iamapi.ErrLimitExceeded, "Cannot exceed quota for AccessKeysPerUser: 2")
	}
}

// Requests at the same time on two nodes do not exceed the number of access keys, of users or
// of the root user.
func TestConcurrentAccessKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("ann")})
	for _, name := range []*string{new("ann"), nil} {
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for i := range 8 {
			wg.Go(func() {
				e := c.engines[fmt.Sprintf("n%d", 1+i%2)]
				_, err := callAs[iamapi.CreateAccessKeyOutput](c, e, c.root, "CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: name})
				if err != nil {
					wantError(t, err, iamapi.ErrLimitExceeded, "…")
					return
				}
				mu.Lock()
				made++
				mu.Unlock()
			})
		}
		wg.Wait()
		want := 2
		if name == nil {
			want = 1 // besides the one that the cluster was initialised with
		}
		if l := must[iamapi.ListAccessKeysOutput](c, "ListAccessKeys", &iamapi.ListAccessKeysInput{UserName: name}); made != want || len(l.AccessKeyMetadata) != 2 {
			t.Errorf("%d access keys were made, and there are %d; want %d and 2", made, len(l.AccessKeyMetadata), want)
		}
	}
}
