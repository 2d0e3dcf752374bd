package sdk

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/harness"
)

const arnOf = "arn:aws:iam::" + harness.Account + ":"

// allow is a policy of one statement for an identity.
func allow(resource string, actions ...string) *string {
	return aws.String(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["%s"],"Resource":"%s"}]}`, strings.Join(actions, `","`), resource))
}

// trust is a role's policy for one principal, such as "AWS":"ARN". The condition may be "".
func trust(principal, action, condition string) *string {
	if condition != "" {
		condition = `,"Condition":` + condition
	}
	return aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{` + principal + `},"Action":"` + action + `"` + condition + `}]}`)
}

// identities has AWS's clients of IAM on all nodes of a cluster. Each call goes to another
// node than the one before, where its effect has to be known at once.
type identities struct {
	*testing.T
	c     *harness.Cluster
	iam   []*iam.Client
	calls int
}

func newIdentities(t *testing.T, c *harness.Cluster) *identities {
	i := &identities{T: t, c: c}
	for n := range c.Nodes {
		i.iam = append(i.iam, iam.NewFromConfig(configOf(t, c, n, credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.Secret(), ""))))
	}
	return i
}

// configOf is the configuration of a client of a node.
func configOf(t *testing.T, c *harness.Cluster, n int, p aws.CredentialsProvider) aws.Config {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: harness.RootsOf(t, c)}}
	t.Cleanup(transport.CloseIdleConnections)
	return aws.Config{
		BaseEndpoint: aws.String("https://" + c.Nodes[n].AWS), Region: harness.Region, Credentials: p,
		HTTPClient: &http.Client{Transport: transport, Timeout: 30 * time.Second}, Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
}

func (i *identities) next() *iam.Client {
	i.calls++
	return i.iam[i.calls%len(i.iam)]
}

// iamCall calls an operation, which has to succeed.
func iamCall[In, Out any](i *identities, op func(*iam.Client, context.Context, *In, ...func(*iam.Options)) (*Out, error), in *In) *Out {
	i.Helper()
	out, err := op(i.next(), i.Context(), in)
	if err != nil {
		i.Fatalf("%T: %v", in, err)
	}
	return out
}

// iamFails calls an operation, which has to fail with an error of the type E.
func iamFails[E error, In, Out any](i *identities, op func(*iam.Client, context.Context, *In, ...func(*iam.Options)) (*Out, error), in *In) {
	i.Helper()
	_, err := op(i.next(), i.Context(), in)
	if _, ok := errors.AsType[E](err); !ok {
		i.Errorf("%T: %v, want %T", in, err, *new(E))
	}
}

// pages reads a list by a paginator, a page on each node in turn, and returns a name of each
// of its items.
func pages[Out any](i *identities, more func() bool, next func(context.Context, ...func(*iam.Options)) (*Out, error), names func(*Out) []string) []string {
	i.Helper()
	all := []string{}
	for n := 0; more(); n++ {
		page, err := next(i.Context())
		if err != nil {
			i.Fatal(err)
		}
		if n > 100 {
			i.Fatal("the list does not end")
		}
		all = append(all, names(page)...)
	}
	return all
}

// same checks a value.
func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// document decodes a policy document, which IAM answers percent-encoded.
func document(t *testing.T, encoded *string) string {
	t.Helper()
	if strings.ContainsAny(*encoded, "{\" ") {
		t.Errorf("a document is not percent-encoded: %s", *encoded)
	}
	doc, err := url.PathUnescape(*encoded)
	if err != nil {
		t.Error(err)
	}
	return doc
}

// TestAWSSDKIdentities manages users, groups, roles and policies with AWS's Go SDK on three
// nodes, from making them to deleting them, and uses what was made.
func TestAWSSDKIdentities(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	i := newIdentities(t, c)
	for _, part := range []struct {
		name string
		run  func(*identities)
	}{
		{"users", identitiesUsers}, {"access keys", identitiesKeys}, {"groups", identitiesGroups}, {"policies", identitiesPolicies},
		{"roles", identitiesRoles}, {"providers", identitiesProviders}, {"lists", identitiesLists}, {"refusals", identitiesRefusals}, {"explanations", identitiesExplanations},
	} {
		t.Run(part.name, func(t *testing.T) {
			i.T = t
			part.run(i)
		})
	}
	i.T = t
	c.NoFaults()
}

func identitiesUsers(i *identities) {
	name, renamed := aws.String("Alice"), aws.String("alice+2")
	made := iamCall(i, (*iam.Client).CreateUser, &iam.CreateUserInput{UserName: name, Path: aws.String("/team/a/"), Tags: []types.Tag{{Key: aws.String("stage"), Value: aws.String("täst")}}}).User
	same(i.T, "ARN", *made.Arn, arnOf+"user/team/a/Alice")
	if !strings.HasPrefix(*made.UserId, "AIDA") || time.Since(*made.CreateDate).Abs() > time.Hour {
		i.Errorf("the user has the id %s and was made at %v", *made.UserId, made.CreateDate)
	}
	if err := iam.NewUserExistsWaiter(i.next()).Wait(i.Context(), &iam.GetUserInput{UserName: name}, time.Minute); err != nil {
		i.Error(err)
	}
	same(i.T, "tags", iamCall(i, (*iam.Client).GetUser, &iam.GetUserInput{UserName: name}).User.Tags[0].Value, made.Tags[0].Value)
	iamFails[*types.EntityAlreadyExistsException](i, (*iam.Client).CreateUser, &iam.CreateUserInput{UserName: aws.String("ALICE")})

	iamCall(i, (*iam.Client).TagUser, &iam.TagUserInput{UserName: name, Tags: []types.Tag{{Key: aws.String("more"), Value: aws.String("")}}})
	iamCall(i, (*iam.Client).UntagUser, &iam.UntagUserInput{UserName: name, TagKeys: []string{"stage"}})
	tags := iamCall(i, (*iam.Client).ListUserTags, &iam.ListUserTagsInput{UserName: name}).Tags
	if len(tags) != 1 || *tags[0].Key != "more" || *tags[0].Value != "" {
		i.Errorf("the tags are %v", tags)
	}

	iamCall(i, (*iam.Client).PutUserPolicy, &iam.PutUserPolicyInput{UserName: name, PolicyName: aws.String("own"), PolicyDocument: allow("*", "kms:ListKeys")})
	got := iamCall(i, (*iam.Client).GetUserPolicy, &iam.GetUserPolicyInput{UserName: name, PolicyName: aws.String("own")})
	same(i.T, "the policy", document(i.T, got.PolicyDocument), *allow("*", "kms:ListKeys"))
	iamFails[*types.MalformedPolicyDocumentException](i, (*iam.Client).PutUserPolicy, &iam.PutUserPolicyInput{UserName: name, PolicyName: aws.String("bad"), PolicyDocument: aws.String(`{"Statement":[]}`)})
	iamFails[*types.LimitExceededException](i, (*iam.Client).PutUserPolicy, &iam.PutUserPolicyInput{
		UserName: name, PolicyName: aws.String("long"), PolicyDocument: allow("*", slices.Repeat([]string{"kms:DescribeKey"}, 200)...),
	})

	iamCall(i, (*iam.Client).UpdateUser, &iam.UpdateUserInput{UserName: name, NewUserName: renamed, NewPath: aws.String("/moved/")})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetUser, &iam.GetUserInput{UserName: name})
	user := iamCall(i, (*iam.Client).GetUser, &iam.GetUserInput{UserName: renamed}).User
	same(i.T, "ARN", *user.Arn, arnOf+"user/moved/alice+2")
	same(i.T, "id", *user.UserId, *made.UserId)

	iamFails[*types.DeleteConflictException](i, (*iam.Client).DeleteUser, &iam.DeleteUserInput{UserName: renamed})
	iamCall(i, (*iam.Client).DeleteUserPolicy, &iam.DeleteUserPolicyInput{UserName: renamed, PolicyName: aws.String("own")})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetUserPolicy, &iam.GetUserPolicyInput{UserName: renamed, PolicyName: aws.String("own")})
	iamCall(i, (*iam.Client).DeleteUser, &iam.DeleteUserInput{UserName: renamed})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetUser, &iam.GetUserInput{UserName: renamed})
}

// user makes a user with an access key, and returns the key's credentials.
func (i *identities) user(name string, policy *string) aws.CredentialsProvider {
	i.Helper()
	iamCall(i, (*iam.Client).CreateUser, &iam.CreateUserInput{UserName: &name})
	if policy != nil {
		iamCall(i, (*iam.Client).PutUserPolicy, &iam.PutUserPolicyInput{UserName: &name, PolicyName: aws.String("own"), PolicyDocument: policy})
	}
	key := iamCall(i, (*iam.Client).CreateAccessKey, &iam.CreateAccessKeyInput{UserName: &name}).AccessKey
	return credentials.NewStaticCredentialsProvider(*key.AccessKeyId, *key.SecretAccessKey, "")
}

// callers returns what GetCallerIdentity answers on each node with credentials: ARNs, or
// codes of errors.
func (i *identities) callers(p aws.CredentialsProvider) []string {
	i.Helper()
	var all []string
	for n := range i.c.Nodes {
		out, err := sts.NewFromConfig(configOf(i.T, i.c, n, p)).GetCallerIdentity(i.Context(), &sts.GetCallerIdentityInput{})
		if err != nil {
			all = append(all, errorCode(err))
		} else {
			all = append(all, *out.Arn)
		}
	}
	return slices.Compact(all)
}

func identitiesKeys(i *identities) {
	name := aws.String("keyed")
	creds := i.user(*name, nil)
	same(i.T, "the caller", i.callers(creds), []string{arnOf + "user/keyed"})
	second := iamCall(i, (*iam.Client).CreateAccessKey, &iam.CreateAccessKeyInput{UserName: name}).AccessKey
	iamFails[*types.LimitExceededException](i, (*iam.Client).CreateAccessKey, &iam.CreateAccessKeyInput{UserName: name})
	p := iam.NewListAccessKeysPaginator(i.next(), &iam.ListAccessKeysInput{UserName: name, MaxItems: aws.Int32(1)})
	listed := pages(i, p.HasMorePages, p.NextPage, func(out *iam.ListAccessKeysOutput) (ids []string) {
		for _, k := range out.AccessKeyMetadata {
			ids = append(ids, *k.AccessKeyId+" "+string(k.Status))
		}
		return ids
	})
	first, err := creds.Retrieve(i.Context())
	if err != nil {
		i.Fatal(err)
	}
	want := []string{first.AccessKeyID + " Active", *second.AccessKeyId + " Active"}
	slices.Sort(want)
	slices.Sort(listed)
	same(i.T, "access keys", listed, want)

	iamCall(i, (*iam.Client).UpdateAccessKey, &iam.UpdateAccessKeyInput{UserName: name, AccessKeyId: &first.AccessKeyID, Status: types.StatusTypeInactive})
	same(i.T, "the caller with an inactive key", i.callers(creds), []string{"InvalidClientTokenId"})
	iamCall(i, (*iam.Client).UpdateAccessKey, &iam.UpdateAccessKeyInput{UserName: name, AccessKeyId: &first.AccessKeyID, Status: types.StatusTypeActive})
	same(i.T, "the caller with an active key", i.callers(creds), []string{arnOf + "user/keyed"})
	for _, id := range []*string{&first.AccessKeyID, second.AccessKeyId} {
		iamFails[*types.DeleteConflictException](i, (*iam.Client).DeleteUser, &iam.DeleteUserInput{UserName: name})
		iamCall(i, (*iam.Client).DeleteAccessKey, &iam.DeleteAccessKeyInput{UserName: name, AccessKeyId: id})
	}
	same(i.T, "the caller with a deleted key", i.callers(creds), []string{"InvalidClientTokenId"})
	iamCall(i, (*iam.Client).DeleteUser, &iam.DeleteUserInput{UserName: name})
}

func identitiesGroups(i *identities) {
	group, user := aws.String("Readers"), aws.String("grouped")
	creds := i.user(*user, nil)
	made := iamCall(i, (*iam.Client).CreateGroup, &iam.CreateGroupInput{GroupName: group, Path: aws.String("/g/")}).Group
	same(i.T, "ARN", *made.Arn, arnOf+"group/g/Readers")
	iamFails[*types.EntityAlreadyExistsException](i, (*iam.Client).CreateGroup, &iam.CreateGroupInput{GroupName: group})

	lists := func() (codes []string) {
		for n := range i.c.Nodes {
			_, err := kms.NewFromConfig(configOf(i.T, i.c, n, creds)).ListKeys(i.Context(), &kms.ListKeysInput{})
			codes = append(codes, errorCode(err))
		}
		return slices.Compact(codes)
	}
	same(i.T, "ListKeys without a group", lists(), []string{"AccessDeniedException"})
	iamCall(i, (*iam.Client).PutGroupPolicy, &iam.PutGroupPolicyInput{GroupName: group, PolicyName: aws.String("list"), PolicyDocument: allow("*", "kms:ListKeys")})
	iamCall(i, (*iam.Client).AddUserToGroup, &iam.AddUserToGroupInput{GroupName: group, UserName: user})
	same(i.T, "ListKeys in the group", lists(), []string{""})
	iamCall(i, (*iam.Client).UpdateGroup, &iam.UpdateGroupInput{GroupName: group, NewGroupName: aws.String("Listers")})
	group = aws.String("Listers")
	same(i.T, "ListKeys in the renamed group", lists(), []string{""})

	for n := range 4 {
		name := fmt.Sprintf("member-%d", n)
		iamCall(i, (*iam.Client).CreateUser, &iam.CreateUserInput{UserName: &name})
		iamCall(i, (*iam.Client).AddUserToGroup, &iam.AddUserToGroupInput{GroupName: group, UserName: &name})
	}
	p := iam.NewGetGroupPaginator(i.next(), &iam.GetGroupInput{GroupName: group, MaxItems: aws.Int32(2)})
	members := pages(i, p.HasMorePages, p.NextPage, func(out *iam.GetGroupOutput) []string { return userNames(out.Users) })
	slices.Sort(members)
	same(i.T, "members", members, []string{"grouped", "member-0", "member-1", "member-2", "member-3"})
	of := iamCall(i, (*iam.Client).ListGroupsForUser, &iam.ListGroupsForUserInput{UserName: user}).Groups
	if len(of) != 1 || *of[0].GroupName != *group {
		i.Errorf("the user is in %v", of)
	}
	iamFails[*types.DeleteConflictException](i, (*iam.Client).DeleteGroup, &iam.DeleteGroupInput{GroupName: group})
	for _, name := range members {
		iamCall(i, (*iam.Client).RemoveUserFromGroup, &iam.RemoveUserFromGroupInput{GroupName: group, UserName: &name})
	}
	same(i.T, "ListKeys after leaving the group", lists(), []string{"AccessDeniedException"})
	iamCall(i, (*iam.Client).DeleteGroupPolicy, &iam.DeleteGroupPolicyInput{GroupName: group, PolicyName: aws.String("list")})
	iamCall(i, (*iam.Client).DeleteGroup, &iam.DeleteGroupInput{GroupName: group})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetGroup, &iam.GetGroupInput{GroupName: group})
}

func userNames(users []types.User) (names []string) {
	for _, u := range users {
		names = append(names, *u.UserName)
	}
	return names
}

func identitiesPolicies(i *identities) {
	made := iamCall(i, (*iam.Client).CreatePolicy, &iam.CreatePolicyInput{
		PolicyName: aws.String("Managed"), Path: aws.String("/p/"), Description: aws.String("of tests"), PolicyDocument: allow("*", "kms:ListKeys"),
	}).Policy
	arn := made.Arn
	same(i.T, "ARN", *arn, arnOf+"policy/p/Managed")
	if err := iam.NewPolicyExistsWaiter(i.next()).Wait(i.Context(), &iam.GetPolicyInput{PolicyArn: arn}, time.Minute); err != nil {
		i.Error(err)
	}
	for n := range 4 {
		iamCall(i, (*iam.Client).CreatePolicyVersion, &iam.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: allow("*", fmt.Sprintf("kms:ListKeys%d", n)), SetAsDefault: n == 1})
	}
	iamFails[*types.LimitExceededException](i, (*iam.Client).CreatePolicyVersion, &iam.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: allow("*", "kms:ListKeys")})
	p := iam.NewListPolicyVersionsPaginator(i.next(), &iam.ListPolicyVersionsInput{PolicyArn: arn, MaxItems: aws.Int32(2)})
	versions := pages(i, p.HasMorePages, p.NextPage, func(out *iam.ListPolicyVersionsOutput) (all []string) {
		for _, v := range out.Versions {
			all = append(all, fmt.Sprint(*v.VersionId, " ", v.IsDefaultVersion))
		}
		return all
	})
	slices.Sort(versions)
	same(i.T, "versions", versions, []string{"v1 false", "v2 false", "v3 true", "v4 false", "v5 false"})
	got := iamCall(i, (*iam.Client).GetPolicyVersion, &iam.GetPolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v2")}).PolicyVersion
	same(i.T, "version 2", document(i.T, got.Document), *allow("*", "kms:ListKeys0"))
	iamFails[*types.DeleteConflictException](i, (*iam.Client).DeletePolicyVersion, &iam.DeletePolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v3")})
	iamCall(i, (*iam.Client).SetDefaultPolicyVersion, &iam.SetDefaultPolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v1")})
	same(i.T, "default version", *iamCall(i, (*iam.Client).GetPolicy, &iam.GetPolicyInput{PolicyArn: arn}).Policy.DefaultVersionId, "v1")

	user := aws.String("managed")
	i.user(*user, nil)
	iamCall(i, (*iam.Client).AttachUserPolicy, &iam.AttachUserPolicyInput{UserName: user, PolicyArn: arn})
	iamCall(i, (*iam.Client).PutUserPermissionsBoundary, &iam.PutUserPermissionsBoundaryInput{UserName: user, PermissionsBoundary: arn})
	attached := iamCall(i, (*iam.Client).ListAttachedUserPolicies, &iam.ListAttachedUserPoliciesInput{UserName: user}).AttachedPolicies
	if len(attached) != 1 || *attached[0].PolicyArn != *arn || *attached[0].PolicyName != "Managed" {
		i.Errorf("the user has %v", attached)
	}
	same(i.T, "boundary", *iamCall(i, (*iam.Client).GetUser, &iam.GetUserInput{UserName: user}).User.PermissionsBoundary.PermissionsBoundaryArn, *arn)
	e := iam.NewListEntitiesForPolicyPaginator(i.next(), &iam.ListEntitiesForPolicyInput{PolicyArn: arn})
	holders := pages(i, e.HasMorePages, e.NextPage, func(out *iam.ListEntitiesForPolicyOutput) (all []string) {
		for _, u := range out.PolicyUsers {
			all = append(all, *u.UserName)
		}
		return all
	})
	same(i.T, "entities", holders, []string{"managed"})
	counted := iamCall(i, (*iam.Client).GetPolicy, &iam.GetPolicyInput{PolicyArn: arn}).Policy
	same(i.T, "attachments", []int32{*counted.AttachmentCount, *counted.PermissionsBoundaryUsageCount}, []int32{1, 1})

	iamFails[*types.DeleteConflictException](i, (*iam.Client).DeletePolicy, &iam.DeletePolicyInput{PolicyArn: arn})
	iamCall(i, (*iam.Client).DetachUserPolicy, &iam.DetachUserPolicyInput{UserName: user, PolicyArn: arn})
	iamCall(i, (*iam.Client).DeleteUserPermissionsBoundary, &iam.DeleteUserPermissionsBoundaryInput{UserName: user})
	for _, v := range []string{"v2", "v3", "v4", "v5"} {
		iamFails[*types.DeleteConflictException](i, (*iam.Client).DeletePolicy, &iam.DeletePolicyInput{PolicyArn: arn})
		iamCall(i, (*iam.Client).DeletePolicyVersion, &iam.DeletePolicyVersionInput{PolicyArn: arn, VersionId: &v})
	}
	iamCall(i, (*iam.Client).DeletePolicy, &iam.DeletePolicyInput{PolicyArn: arn})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetPolicy, &iam.GetPolicyInput{PolicyArn: arn})
}

func identitiesRoles(i *identities) {
	name := aws.String("Worker")
	root := trust(`"AWS":"`+arnOf+`root"`, "sts:AssumeRole", "")
	made := iamCall(i, (*iam.Client).CreateRole, &iam.CreateRoleInput{RoleName: name, AssumeRolePolicyDocument: root, MaxSessionDuration: aws.Int32(7200)}).Role
	same(i.T, "ARN", *made.Arn, arnOf+"role/Worker")
	if err := iam.NewRoleExistsWaiter(i.next()).Wait(i.Context(), &iam.GetRoleInput{RoleName: name}, time.Minute); err != nil {
		i.Error(err)
	}
	iamFails[*types.MalformedPolicyDocumentException](i, (*iam.Client).CreateRole, &iam.CreateRoleInput{RoleName: aws.String("bad"), AssumeRolePolicyDocument: aws.String("no JSON")})
	iamFails[*types.MalformedPolicyDocumentException](i, (*iam.Client).UpdateAssumeRolePolicy, &iam.UpdateAssumeRolePolicyInput{
		RoleName: name, PolicyDocument: trust(`"AWS":"`+arnOf+`user/nobody"`, "sts:AssumeRole", ""),
	})
	i.user("trusted", nil)
	trusted := trust(`"AWS":"`+arnOf+`user/trusted"`, "sts:AssumeRole", `{"StringEquals":{"sts:ExternalId":"x"}}`)
	iamCall(i, (*iam.Client).UpdateAssumeRolePolicy, &iam.UpdateAssumeRolePolicyInput{RoleName: name, PolicyDocument: trusted})
	iamCall(i, (*iam.Client).UpdateRole, &iam.UpdateRoleInput{RoleName: name, Description: aws.String("changed"), MaxSessionDuration: aws.Int32(3600)})
	got := iamCall(i, (*iam.Client).GetRole, &iam.GetRoleInput{RoleName: name}).Role
	same(i.T, "trust policy", document(i.T, got.AssumeRolePolicyDocument), *trusted)
	same(i.T, "description", *got.Description, "changed")
	same(i.T, "longest session", *got.MaxSessionDuration, 3600)

	iamCall(i, (*iam.Client).PutRolePolicy, &iam.PutRolePolicyInput{RoleName: name, PolicyName: aws.String("own"), PolicyDocument: allow("*", "kms:Decrypt")})
	p := iam.NewListRolePoliciesPaginator(i.next(), &iam.ListRolePoliciesInput{RoleName: name})
	same(i.T, "inline policies", pages(i, p.HasMorePages, p.NextPage, func(out *iam.ListRolePoliciesOutput) []string { return out.PolicyNames }), []string{"own"})
	iamCall(i, (*iam.Client).TagRole, &iam.TagRoleInput{RoleName: name, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("1")}}})
	same(i.T, "tags", len(iamCall(i, (*iam.Client).ListRoleTags, &iam.ListRoleTagsInput{RoleName: name}).Tags), 1)
	iamFails[*types.DeleteConflictException](i, (*iam.Client).DeleteRole, &iam.DeleteRoleInput{RoleName: name})
	iamCall(i, (*iam.Client).DeleteRolePolicy, &iam.DeleteRolePolicyInput{RoleName: name, PolicyName: aws.String("own")})
	same(i.T, "instance profiles", len(iamCall(i, (*iam.Client).ListInstanceProfilesForRole, &iam.ListInstanceProfilesForRoleInput{RoleName: name}).InstanceProfiles), 0)
	iamCall(i, (*iam.Client).DeleteRole, &iam.DeleteRoleInput{RoleName: name})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetRole, &iam.GetRoleInput{RoleName: name})
}

func identitiesProviders(i *identities) {
	made := iamCall(i, (*iam.Client).CreateOpenIDConnectProvider, &iam.CreateOpenIDConnectProviderInput{
		Url: aws.String("https://issuer.example.com/id"), ClientIDList: []string{harness.Audience},
	})
	arn := made.OpenIDConnectProviderArn
	same(i.T, "ARN", *arn, arnOf+"oidc-provider/issuer.example.com/id")
	iamCall(i, (*iam.Client).AddClientIDToOpenIDConnectProvider, &iam.AddClientIDToOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn, ClientID: aws.String("more")})
	iamCall(i, (*iam.Client).RemoveClientIDFromOpenIDConnectProvider, &iam.RemoveClientIDFromOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn, ClientID: aws.String(harness.Audience)})
	got := iamCall(i, (*iam.Client).GetOpenIDConnectProvider, &iam.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn})
	same(i.T, "client ids", got.ClientIDList, []string{"more"})
	same(i.T, "URL", *got.Url, "issuer.example.com/id")
	same(i.T, "providers", len(iamCall(i, (*iam.Client).ListOpenIDConnectProviders, &iam.ListOpenIDConnectProvidersInput{}).OpenIDConnectProviderList), 1)
	iamFails[*types.InvalidInputException](i, (*iam.Client).CreateOpenIDConnectProvider, &iam.CreateOpenIDConnectProviderInput{Url: aws.String("http://issuer.example.com")})
	iamCall(i, (*iam.Client).DeleteOpenIDConnectProvider, &iam.DeleteOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn})
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).GetOpenIDConnectProvider, &iam.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn})
}

func identitiesLists(i *identities) {
	var users, roles, policies []string
	for n := range 7 {
		name := fmt.Sprintf("listed-%d", n)
		iamCall(i, (*iam.Client).CreateUser, &iam.CreateUserInput{UserName: &name, Path: aws.String("/listed/")})
		users = append(users, name)
		if n < 3 {
			iamCall(i, (*iam.Client).CreateRole, &iam.CreateRoleInput{RoleName: &name, Path: aws.String("/listed/"), AssumeRolePolicyDocument: trust(`"AWS":"`+harness.Account+`"`, "sts:AssumeRole", "")})
			iamCall(i, (*iam.Client).CreatePolicy, &iam.CreatePolicyInput{PolicyName: &name, Path: aws.String("/listed/"), PolicyDocument: allow("*", "kms:ListKeys")})
			roles, policies = append(roles, name), append(policies, name)
		}
	}
	prefix := aws.String("/listed/")
	for _, items := range []int32{1, 2, 7, 1000} {
		u := iam.NewListUsersPaginator(i.next(), &iam.ListUsersInput{PathPrefix: prefix, MaxItems: &items})
		same(i.T, "users", pages(i, u.HasMorePages, u.NextPage, func(out *iam.ListUsersOutput) []string { return userNames(out.Users) }), users)
		r := iam.NewListRolesPaginator(i.next(), &iam.ListRolesInput{PathPrefix: prefix, MaxItems: &items})
		same(i.T, "roles", pages(i, r.HasMorePages, r.NextPage, func(out *iam.ListRolesOutput) (names []string) {
			for _, r := range out.Roles {
				names = append(names, *r.RoleName)
			}
			return names
		}), roles)
		p := iam.NewListPoliciesPaginator(i.next(), &iam.ListPoliciesInput{PathPrefix: prefix, MaxItems: &items, Scope: types.PolicyScopeTypeLocal})
		same(i.T, "policies", pages(i, p.HasMorePages, p.NextPage, func(out *iam.ListPoliciesOutput) (names []string) {
			for _, p := range out.Policies {
				names = append(names, *p.PolicyName)
			}
			return names
		}), policies)
	}
	d := iam.NewGetAccountAuthorizationDetailsPaginator(i.next(), &iam.GetAccountAuthorizationDetailsInput{MaxItems: aws.Int32(3)})
	all := pages(i, d.HasMorePages, d.NextPage, func(out *iam.GetAccountAuthorizationDetailsOutput) (names []string) {
		for _, u := range out.UserDetailList {
			names = append(names, *u.UserName)
		}
		return names
	})
	for _, name := range users {
		if !slices.Contains(all, name) {
			i.Errorf("the account's details lack %s: %v", name, all)
		}
	}
}

func identitiesRefusals(i *identities) {
	creds := i.user("limited", allow("*", "iam:GetUser"))
	limited := iam.NewFromConfig(configOf(i.T, i.c, 0, creds))
	if out, err := limited.GetUser(i.Context(), &iam.GetUserInput{}); err != nil || *out.User.UserName != "limited" {
		i.Errorf("GetUser of oneself: %v", err)
	}
	_, err := limited.CreateUser(i.Context(), &iam.CreateUserInput{UserName: aws.String("more")})
	if errorCode(err) != "AccessDenied" || !strings.Contains(err.Error(), "StatusCode: 403") ||
		!strings.Contains(err.Error(), "User: "+arnOf+"user/limited is not authorized to perform: iam:CreateUser on resource: "+arnOf+"user/more") {
		i.Errorf("CreateUser without permission: %v", err)
	}
	_, err = i.next().CreateUser(i.Context(), &iam.CreateUserInput{UserName: aws.String("no spaces")})
	if errorCode(err) != "ValidationError" {
		i.Errorf("CreateUser with a space: %v, want ValidationError", err)
	}
	if _, err := i.next().CreateLoginProfile(i.Context(), &iam.CreateLoginProfileInput{UserName: aws.String("limited"), Password: aws.String("x")}); errorCode(err) != "InvalidAction" {
		i.Errorf("CreateLoginProfile: %v, want InvalidAction", err)
	}
}

// identitiesExplanations asks what a user may do.
func identitiesExplanations(i *identities) {
	i.user("explained", allow("*", "kms:ListKeys"))
	actions := []string{"kms:ListKeys", "kms:ListAliases"}
	decisions := func(results []types.EvaluationResult) (all []string) {
		for _, r := range results {
			all = append(all, *r.EvalActionName+" "+string(r.EvalDecision))
		}
		return all
	}
	want := []string{"kms:ListKeys allowed", "kms:ListAliases implicitDeny"}
	principal := iamCall(i, (*iam.Client).SimulatePrincipalPolicy, &iam.SimulatePrincipalPolicyInput{PolicySourceArn: aws.String(arnOf + "user/explained"), ActionNames: actions})
	same(i.T, "simulation of the user", decisions(principal.EvaluationResults), want)
	iamFails[*types.NoSuchEntityException](i, (*iam.Client).SimulatePrincipalPolicy, &iam.SimulatePrincipalPolicyInput{PolicySourceArn: aws.String(arnOf + "user/nobody"), ActionNames: actions})
	custom := iamCall(i, (*iam.Client).SimulateCustomPolicy, &iam.SimulateCustomPolicyInput{PolicyInputList: []string{*allow("*", "kms:ListKeys")}, ActionNames: actions})
	same(i.T, "simulation of a policy", decisions(custom.EvaluationResults), want)
	keys := iamCall(i, (*iam.Client).GetContextKeysForCustomPolicy, &iam.GetContextKeysForCustomPolicyInput{
		PolicyInputList: []string{*allow("arn:aws:kms:*:*:alias/${aws:username}", "kms:CreateAlias")},
	})
	same(i.T, "context keys", keys.ContextKeyNames, []string{"aws:username"})
}
