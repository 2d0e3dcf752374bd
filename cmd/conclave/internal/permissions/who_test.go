package permissions

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	account = "111122223333"
	keyARN  = "arn:aws:kms:us-east-1:" + account + ":key/1234abcd-12ab-34cd-56ef-1234567890ab"
	iamARN  = "arn:aws:iam::" + account + ":"
)

// allows is a document of a user, group or role with one statement. A condition may be "".
func allows(effect, action, condition string) string {
	if condition != "" {
		condition = `,"Condition":` + condition
	}
	return `{"Version":"2012-10-17","Statement":{"Effect":"` + effect + `","Action":"` + action + `","Resource":"*"` + condition + `}}`
}

func user(name, doc string) *iampb.UserDetail {
	u := &iampb.UserDetail{UserName: &name, Arn: proto.String(iamARN + "user/" + name)}
	if doc != "" {
		u.UserPolicyList = []*iampb.PolicyDetail{{PolicyName: proto.String("own"), PolicyDocument: &doc}}
	}
	return u
}

// rootStatement lets the account decide.
const rootStatement = `{"Sid":"Account","Effect":"Allow","Principal":{"AWS":"` + iamARN + `root"},"Action":"kms:*","Resource":"*"}`

// who lists who may do kms:Encrypt and kms:Decrypt, one line each, without the root user.
func who(t *testing.T, statements []string, grants []*kmspb.GrantListEntry, d *iampb.GetAccountAuthorizationDetailsResponse) string {
	t.Helper()
	arn, err := policy.ParseARN(keyARN)
	if err != nil {
		t.Fatal(err)
	}
	key := &Key{
		ARN: arn, Policy: `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`, Grants: grants, Actions: []string{"kms:Encrypt", "kms:Decrypt"},
		Values: map[string][]string{"kms:resourcealiases": {"alias/app"}}, Tagged: true,
	}
	list, err := Who(key, d)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, x := range list {
		if x.Principal == iamARN+"root" && x.If == "" {
			continue
		}
		fmt.Fprintf(&b, "%s %s by %s", strings.TrimPrefix(x.Principal, iamARN), strings.ReplaceAll(strings.Join(x.Actions, ","), "kms:", ""), x.By)
		if x.If != "" {
			b.WriteString(" if " + x.If)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestWho(t *testing.T) {
	t.Parallel()
	const vpc = `{"StringEquals":{"aws:SourceVpc":"vpc-1"}}`
	statement := func(effect, principal, action, condition string) string {
		if condition != "" {
			condition = `,"Condition":` + condition
		}
		return `{"Effect":"` + effect + `","Principal":` + principal + `,"Action":"` + action + `","Resource":"*"` + condition + `}`
	}
	aws := func(arn string) string { return `{"AWS":"` + arn + `"}` }
	inGroup := user("carol", "")
	inGroup.GroupList = []string{"crypto"}
	bounded := user("dave", allows("Allow", "kms:*", ""))
	bounded.PermissionsBoundary = &iampb.AttachedPermissionsBoundary{PermissionsBoundaryArn: proto.String(iamARN + "policy/limit")}
	tagged := user("erin", allows("Allow", "kms:Decrypt", `{"StringEquals":{"aws:PrincipalTag/Team":"shop"}}`))
	tagged.Tags = []*iampb.Tag{{Key: proto.String("team"), Value: proto.String("shop")}}
	admin := user("admin", "")
	admin.AttachedManagedPolicies = []*iampb.AttachedPolicy{{PolicyArn: proto.String("arn:aws:iam::aws:policy/AdministratorAccess")}}
	role := &iampb.RoleDetail{RoleName: proto.String("app"), Arn: proto.String(iamARN + "role/eng/app")}
	limit := allows("Allow", "kms:Decrypt", "")
	details := func(users ...*iampb.UserDetail) *iampb.GetAccountAuthorizationDetailsResponse {
		return &iampb.GetAccountAuthorizationDetailsResponse{
			UserDetailList: users, RoleDetailList: []*iampb.RoleDetail{role},
			GroupDetailList: []*iampb.GroupDetail{{
				GroupName: proto.String("crypto"), Arn: proto.String(iamARN + "group/crypto"),
				GroupPolicyList: []*iampb.PolicyDetail{{PolicyName: proto.String("enc"), PolicyDocument: proto.String(allows("Allow", "kms:Encrypt", ""))}},
			}},
			Policies: []*iampb.ManagedPolicyDetail{{Arn: proto.String(iamARN + "policy/limit"), PolicyVersionList: []*iampb.PolicyVersion{
				{Document: proto.String(allows("Allow", "*", "")), VersionId: proto.String("v1")},
				{Document: &limit, IsDefaultVersion: proto.Bool(true), VersionId: proto.String("v2")},
			}}},
		}
	}
	for _, tt := range []struct {
		name   string
		policy []string
		grants []*kmspb.GrantListEntry
		users  []*iampb.UserDetail
		want   string
	}{
		{"identity policies", []string{rootStatement}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Encrypt", "")), user("bob", ""), inGroup, bounded, admin},
			"user/alice Encrypt by policy own of user alice, statement 1\n" +
				"user/carol Encrypt by policy enc of group crypto, statement 1\n" +
				"user/dave Decrypt by policy own of user dave, statement 1\n" +
				"user/admin Encrypt,Decrypt by policy arn:aws:iam::aws:policy/AdministratorAccess, statement 1\n"},
		{"no delegation", []string{statement("Allow", aws(iamARN+"user/bob"), "kms:Decrypt", "")}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:*", "")), user("bob", "")},
			"user/bob Decrypt by key policy, statement 1\n"},
		{"role with a path", []string{statement("Allow", aws(iamARN+"role/eng/app"), "kms:Decrypt", "")}, nil, nil, "role/eng/app Decrypt by key policy, statement 1\n"},
		{"tag of the principal", []string{rootStatement}, nil, []*iampb.UserDetail{tagged}, "user/erin Decrypt by policy own of user erin, statement 1\n"},
		{"alias of the key", []string{rootStatement}, nil, []*iampb.UserDetail{
			user("alice", allows("Allow", "kms:Decrypt", `{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/app"}}`)),
			user("bob", allows("Allow", "kms:Decrypt", `{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/other"}}`)),
			user("eve", allows("Allow", "kms:Decrypt", `{"StringEquals":{"aws:ResourceTag/Team":"shop"}}`)),
		}, "user/alice Decrypt by policy own of user alice, statement 1\n"},
		{"condition of the user", []string{rootStatement}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Decrypt", vpc))},
			"user/alice Decrypt by policy own of user alice, statement 1 if " + vpc + "\n"},
		{"condition of the key", []string{strings.Replace(rootStatement, `"Resource":"*"`, `"Resource":"*","Condition":`+vpc, 1)}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Decrypt", ""))},
			"root Encrypt,Decrypt by key policy, statement Account if " + vpc + "\n" +
				"user/alice Decrypt by policy own of user alice, statement 1 if " + vpc + "\n"},
		{"a variable is not known", []string{rootStatement}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Decrypt", `{"StringEquals":{"aws:username":"${aws:SourceIdentity}"}}`))},
			`user/alice Decrypt by policy own of user alice, statement 1 if {"StringEquals":{"aws:username":"${aws:SourceIdentity}"}}` + "\n"},
		{"denied", []string{rootStatement, statement("Deny", aws(iamARN+"user/alice"), "kms:Decrypt", "")}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:*", ""))},
			"user/alice Encrypt by policy own of user alice, statement 1\n"},
		{"denied sometimes", []string{rootStatement, statement("Deny", `"*"`, "kms:Decrypt", `{"StringNotEquals":{"aws:SourceVpc":"vpc-1"}}`)}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Decrypt", ""))},
			"root Decrypt by key policy, statement Account if not {\"StringNotEquals\":{\"aws:SourceVpc\":\"vpc-1\"}}\n" +
				"user/alice Decrypt by policy own of user alice, statement 1 if not {\"StringNotEquals\":{\"aws:SourceVpc\":\"vpc-1\"}}\n"},
		{"without and with a condition", []string{rootStatement, statement("Allow", aws(iamARN+"user/alice"), "kms:Decrypt", vpc)}, nil, []*iampb.UserDetail{user("alice", allows("Allow", "kms:Decrypt", ""))},
			"user/alice Decrypt by policy own of user alice, statement 1\n"},
		{"elsewhere", []string{rootStatement, statement("Allow", aws("arn:aws:iam::444455556666:root"), "kms:Decrypt", ""), statement("Allow", aws("arn:aws:iam::444455556666:role/x"), "kms:Encrypt", vpc)}, nil, nil,
			"arn:aws:iam::444455556666:root Decrypt by key policy, statement 2, with policies of the other account\n" +
				"arn:aws:iam::444455556666:role/x Encrypt by key policy, statement 3, with policies of the other account if " + vpc + "\n" +
				"arn:aws:iam::444455556666:role/x Decrypt by key policy, statement 2, with policies of the other account\n"},
		{"everybody", []string{statement("Allow", `"*"`, "kms:Encrypt", "")}, nil, nil,
			"role/eng/app Encrypt by key policy, statement 1\neverybody Encrypt by key policy, statement 1, with policies of the other account\n"},
		{"grants", []string{rootStatement, statement("Deny", aws(iamARN+"user/bob"), "kms:Encrypt", "")}, []*kmspb.GrantListEntry{
			{GrantId: proto.String("g1"), GranteePrincipal: proto.String(iamARN + "user/alice"), Operations: []string{"Decrypt", "Verify"}},
			{GrantId: proto.String("g2"), Name: proto.String("shop"), GranteePrincipal: proto.String("arn:aws:iam::444455556666:role/x"), Operations: []string{"Encrypt"},
				Constraints: &kmspb.GrantConstraints{EncryptionContextSubset: map[string]string{"app": "shop"}}},
			{GrantId: proto.String("g3"), GranteePrincipal: proto.String(iamARN + "user/bob"), Operations: []string{"Encrypt", "Decrypt"}},
			{GrantId: proto.String("g4"), GranteeServicePrincipal: proto.String("backup.amazonaws.com"), Operations: []string{"Decrypt"}},
		}, []*iampb.UserDetail{user("alice", ""), user("bob", "")},
			"user/alice Decrypt by grant g1\n" +
				"arn:aws:iam::444455556666:role/x Encrypt by grant g2 shop if {\"EncryptionContextSubset\":{\"app\":\"shop\"}}\n" +
				"user/bob Decrypt by grant g3\n" +
				"backup.amazonaws.com Decrypt by grant g4\n"},
		{"deleted users and roles", []string{rootStatement, statement("Allow", `{"AWS":["AIDA234567ABCDEFGHIJK","AROA234567ABCDEFGHIJK","AROA234567ABCDEFGHIJK:s1"]}`, "kms:Encrypt", "")}, []*kmspb.GrantListEntry{
			{GrantId: proto.String("g1"), GranteePrincipal: proto.String("AIDA234567ABCDEFGHIJK"), Operations: []string{"Decrypt"}},
			{GrantId: proto.String("g2"), GranteePrincipal: proto.String("AROA234567ABCDEFGHIJK:s1"), Operations: []string{"Decrypt"}},
		}, []*iampb.UserDetail{user("alice", "")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, who(t, tt.policy, tt.grants, details(tt.users...))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestWhoNeedsDocuments: a document that cannot be read is an error, and not one that allows
// nothing.
func TestWhoNeedsDocuments(t *testing.T) {
	t.Parallel()
	arn, err := policy.ParseARN(keyARN)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{``, `{}`, `{"Statement":[{"Effect":"Allow"}]}`, `{"Statement":[],"Statement":[]}`} {
		if _, err := Who(&Key{ARN: arn, Policy: bad}, &iampb.GetAccountAuthorizationDetailsResponse{}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	key := &Key{ARN: arn, Policy: `{"Version":"2012-10-17","Statement":[` + rootStatement + `]}`, Actions: []string{"kms:Encrypt"}}
	missing := user("alice", "")
	missing.AttachedManagedPolicies = []*iampb.AttachedPolicy{{PolicyArn: proto.String(iamARN + "policy/gone")}}
	if _, err := Who(key, &iampb.GetAccountAuthorizationDetailsResponse{UserDetailList: []*iampb.UserDetail{missing}}); err == nil {
		t.Error("a policy without a document is taken for one that allows nothing")
	}
}
