package iamops

import (
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// evaluation shortens the rows below.
type evaluation = request.Evaluation

// Table has all operations of this package by name.
var Table = table(rows, emptyLists)

func table(lists ...[]*request.Operation) map[string]*request.Operation {
	t := make(map[string]*request.Operation)
	for _, op := range slices.Concat(lists...) {
		if t[op.Name] != nil {
			panic(fmt.Sprintf("iamops: two operations are called %s", op.Name))
		}
		t[op.Name] = op
	}
	return t
}

// read returns the row of an operation that changes nothing.
func read[In, Out any](name string, run func(*evaluation, *In) (*Out, error)) *request.Operation {
	return request.Define(request.Operation{Service: request.IAM, Name: name, ReadOnly: true}, run, nil)
}

// write returns the row of an operation that changes something and has an output. respond
// returns what records say of it.
func write[In, Out any](name string, run func(*evaluation, *In) (*Out, error), respond func(*Out, []*auditpb.Resource) []*auditpb.Field) *request.Operation {
	return request.Define(request.Operation{Service: request.IAM, Name: name}, run, respond)
}

// act returns the row of an operation that changes something and has no output.
func act[In any](name string, run func(*evaluation, *In) error) *request.Operation {
	return write(name, func(ev *evaluation, in *In) (*request.None, error) {
		if err := run(ev, in); err != nil {
			return nil, err
		}
		return &request.None{}, nil
	}, nil)
}

var rows = []*request.Operation{
	write("CreateUser", createUser, recordUser),
	read("GetUser", getUser),
	read("ListUsers", listUsers),
	act("UpdateUser", updateUser),
	act("DeleteUser", deleteUser),
	act("TagUser", func(ev *evaluation, in *iamapi.TagUserInput) error { return users.tag(ev, *in.UserName, in.Tags) }),
	act("UntagUser", func(ev *evaluation, in *iamapi.UntagUserInput) error {
		return users.untag(ev, *in.UserName, in.TagKeys)
	}),
	read("ListUserTags", func(ev *evaluation, in *iamapi.ListUserTagsInput) (out *iamapi.ListUserTagsOutput, err error) {
		out = new(iamapi.ListUserTagsOutput)
		out.Tags, out.Marker, out.IsTruncated, err = users.listTags(ev, *in.UserName, paging{in.MaxItems, in.Marker})
		return out, err
	}),
	act("PutUserPermissionsBoundary", func(ev *evaluation, in *iamapi.PutUserPermissionsBoundaryInput) error {
		return users.putBoundary(ev, *in.UserName, *in.PermissionsBoundary)
	}),
	act("DeleteUserPermissionsBoundary", func(ev *evaluation, in *iamapi.DeleteUserPermissionsBoundaryInput) error {
		return users.deleteBoundary(ev, *in.UserName)
	}),
	act("PutUserPolicy", func(ev *evaluation, in *iamapi.PutUserPolicyInput) error {
		return users.putInline(ev, *in.UserName, *in.PolicyName, *in.PolicyDocument)
	}),
	read("GetUserPolicy", func(ev *evaluation, in *iamapi.GetUserPolicyInput) (*iamapi.GetUserPolicyOutput, error) {
		document, err := users.getInline(ev, *in.UserName, *in.PolicyName)
		return &iamapi.GetUserPolicyOutput{UserName: in.UserName, PolicyName: in.PolicyName, PolicyDocument: &document}, err
	}),
	read("ListUserPolicies", func(ev *evaluation, in *iamapi.ListUserPoliciesInput) (out *iamapi.ListUserPoliciesOutput, err error) {
		out = new(iamapi.ListUserPoliciesOutput)
		out.PolicyNames, out.Marker, out.IsTruncated, err = users.listInline(ev, *in.UserName, paging{in.MaxItems, in.Marker})
		return out, err
	}),
	act("DeleteUserPolicy", func(ev *evaluation, in *iamapi.DeleteUserPolicyInput) error {
		return users.deleteInline(ev, *in.UserName, *in.PolicyName)
	}),
	act("AttachUserPolicy", func(ev *evaluation, in *iamapi.AttachUserPolicyInput) error {
		return users.attach(ev, *in.UserName, *in.PolicyArn)
	}),
	act("DetachUserPolicy", func(ev *evaluation, in *iamapi.DetachUserPolicyInput) error {
		return users.detach(ev, *in.UserName, *in.PolicyArn)
	}),
	read("ListAttachedUserPolicies", func(ev *evaluation, in *iamapi.ListAttachedUserPoliciesInput) (*iamapi.ListAttachedUserPoliciesOutput, error) {
		a, err := users.listAttached(ev, *in.UserName, in.PathPrefix, paging{in.MaxItems, in.Marker})
		return &iamapi.ListAttachedUserPoliciesOutput{AttachedPolicies: a.policies, IsTruncated: a.truncated, Marker: a.marker}, err
	}),
	read("ListGroupsForUser", listGroupsForUser),

	write("CreateAccessKey", createAccessKey, recordAccessKey),
	read("ListAccessKeys", listAccessKeys),
	act("UpdateAccessKey", updateAccessKey),
	act("DeleteAccessKey", deleteAccessKey),
	read("GetAccessKeyLastUsed", getAccessKeyLastUsed),

	write("CreateGroup", createGroup, recordGroup),
	read("GetGroup", getGroup),
	read("ListGroups", listGroups),
	act("UpdateGroup", updateGroup),
	act("DeleteGroup", deleteGroup),
	act("AddUserToGroup", addUserToGroup),
	act("RemoveUserFromGroup", removeUserFromGroup),
	act("PutGroupPolicy", func(ev *evaluation, in *iamapi.PutGroupPolicyInput) error {
		return groups.putInline(ev, *in.GroupName, *in.PolicyName, *in.PolicyDocument)
	}),
	read("GetGroupPolicy", func(ev *evaluation, in *iamapi.GetGroupPolicyInput) (*iamapi.GetGroupPolicyOutput, error) {
		document, err := groups.getInline(ev, *in.GroupName, *in.PolicyName)
		return &iamapi.GetGroupPolicyOutput{GroupName: in.GroupName, PolicyName: in.PolicyName, PolicyDocument: &document}, err
	}),
	read("ListGroupPolicies", func(ev *evaluation, in *iamapi.ListGroupPoliciesInput) (out *iamapi.ListGroupPoliciesOutput, err error) {
		out = new(iamapi.ListGroupPoliciesOutput)
		out.PolicyNames, out.Marker, out.IsTruncated, err = groups.listInline(ev, *in.GroupName, paging{in.MaxItems, in.Marker})
		return out, err
	}),
	act("DeleteGroupPolicy", func(ev *evaluation, in *iamapi.DeleteGroupPolicyInput) error {
		return groups.deleteInline(ev, *in.GroupName, *in.PolicyName)
	}),
	act("AttachGroupPolicy", func(ev *evaluation, in *iamapi.AttachGroupPolicyInput) error {
		return groups.attach(ev, *in.GroupName, *in.PolicyArn)
	}),
	act("DetachGroupPolicy", func(ev *evaluation, in *iamapi.DetachGroupPolicyInput) error {
		return groups.detach(ev, *in.GroupName, *in.PolicyArn)
	}),
	read("ListAttachedGroupPolicies", func(ev *evaluation, in *iamapi.ListAttachedGroupPoliciesInput) (*iamapi.ListAttachedGroupPoliciesOutput, error) {
		a, err := groups.listAttached(ev, *in.GroupName, in.PathPrefix, paging{in.MaxItems, in.Marker})
		return &iamapi.ListAttachedGroupPoliciesOutput{AttachedPolicies: a.policies, IsTruncated: a.truncated, Marker: a.marker}, err
	}),

	write("CreateRole", createRole, recordRole),
	read("GetRole", getRole),
	read("ListRoles", listRoles),
	write("UpdateRole", updateRole, nil),
	write("UpdateRoleDescription", updateRoleDescription, nil),
	act("DeleteRole", deleteRole),
	act("UpdateAssumeRolePolicy", updateAssumeRolePolicy),
	act("PutRolePermissionsBoundary", func(ev *evaluation, in *iamapi.PutRolePermissionsBoundaryInput) error {
		return roles.putBoundary(ev, *in.RoleName, *in.PermissionsBoundary)
	}),
	act("DeleteRolePermissionsBoundary", func(ev *evaluation, in *iamapi.DeleteRolePermissionsBoundaryInput) error {
		return roles.deleteBoundary(ev, *in.RoleName)
	}),
	act("TagRole", func(ev *evaluation, in *iamapi.TagRoleInput) error { return roles.tag(ev, *in.RoleName, in.Tags) }),
	act("UntagRole", func(ev *evaluation, in *iamapi.UntagRoleInput) error {
		return roles.untag(ev, *in.RoleName, in.TagKeys)
	}),
	read("ListRoleTags", func(ev *evaluation, in *iamapi.ListRoleTagsInput) (out *iamapi.ListRoleTagsOutput, err error) {
		out = new(iamapi.ListRoleTagsOutput)
		out.Tags, out.Marker, out.IsTruncated, err = roles.listTags(ev, *in.RoleName, paging{in.MaxItems, in.Marker})
		return out, err
	}),
	act("PutRolePolicy", func(ev *evaluation, in *iamapi.PutRolePolicyInput) error {
		return roles.putInline(ev, *in.RoleName, *in.PolicyName, *in.PolicyDocument)
	}),
	read("GetRolePolicy", func(ev *evaluation, in *iamapi.GetRolePolicyInput) (*iamapi.GetRolePolicyOutput, error) {
		document, err := roles.getInline(ev, *in.RoleName, *in.PolicyName)
		return &iamapi.GetRolePolicyOutput{RoleName: in.RoleName, PolicyName: in.PolicyName, PolicyDocument: &document}, err
	}),
	read("ListRolePolicies", func(ev *evaluation, in *iamapi.ListRolePoliciesInput) (out *iamapi.ListRolePoliciesOutput, err error) {
		out = new(iamapi.ListRolePoliciesOutput)
		out.PolicyNames, out.Marker, out.IsTruncated, err = roles.listInline(ev, *in.RoleName, paging{in.MaxItems, in.Marker})
		return out, err
	}),
	act("DeleteRolePolicy", func(ev *evaluation, in *iamapi.DeleteRolePolicyInput) error {
		return roles.deleteInline(ev, *in.RoleName, *in.PolicyName)
	}),
	act("AttachRolePolicy", func(ev *evaluation, in *iamapi.AttachRolePolicyInput) error {
		return roles.attach(ev, *in.RoleName, *in.PolicyArn)
	}),
	act("DetachRolePolicy", func(ev *evaluation, in *iamapi.DetachRolePolicyInput) error {
		return roles.detach(ev, *in.RoleName, *in.PolicyArn)
	}),
	read("ListAttachedRolePolicies", func(ev *evaluation, in *iamapi.ListAttachedRolePoliciesInput) (*iamapi.ListAttachedRolePoliciesOutput, error) {
		a, err := roles.listAttached(ev, *in.RoleName, in.PathPrefix, paging{in.MaxItems, in.Marker})
		return &iamapi.ListAttachedRolePoliciesOutput{AttachedPolicies: a.policies, IsTruncated: a.truncated, Marker: a.marker}, err
	}),
	act("RevokeRoleSessions", revokeRoleSessions),

	write("CreatePolicy", createPolicy, recordPolicy),
	read("GetPolicy", getPolicy),
	read("ListPolicies", listPolicies),
	act("DeletePolicy", deletePolicy),
	write("CreatePolicyVersion", createPolicyVersion, recordVersion),
	read("GetPolicyVersion", getPolicyVersion),
	read("ListPolicyVersions", listPolicyVersions),
	act("DeletePolicyVersion", deletePolicyVersion),
	act("SetDefaultPolicyVersion", setDefaultPolicyVersion),
	read("ListEntitiesForPolicy", listEntitiesForPolicy),
	act("TagPolicy", tagPolicy),
	act("UntagPolicy", untagPolicy),
	read("ListPolicyTags", listPolicyTags),

	write("CreateOpenIDConnectProvider", createOpenIDConnectProvider, recordProvider),
	read("GetOpenIDConnectProvider", getOpenIDConnectProvider),
	read("ListOpenIDConnectProviders", listOpenIDConnectProviders),
	act("DeleteOpenIDConnectProvider", deleteOpenIDConnectProvider),
	act("UpdateOpenIDConnectProviderThumbprint", updateOpenIDConnectProviderThumbprint),
	act("AddClientIDToOpenIDConnectProvider", addClientID),
	act("RemoveClientIDFromOpenIDConnectProvider", removeClientID),
	act("TagOpenIDConnectProvider", tagProvider),
	act("UntagOpenIDConnectProvider", untagProvider),
	read("ListOpenIDConnectProviderTags", listProviderTags),
	act("UpdateOpenIDConnectProviderKeys", updateProviderKeys),
	act("RevokeOpenIDConnectProviderSessions", revokeProviderSessions),

	read("GetAccountSummary", getAccountSummary),
	read("GetAccountAuthorizationDetails", getAccountAuthorizationDetails),
	read("ListAccountAliases", listAccountAliases),
	act("CreateAccountAlias", createAccountAlias),
	act("DeleteAccountAlias", deleteAccountAlias),
}
