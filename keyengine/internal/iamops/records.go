package iamops

import (
	"strconv"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// What records say of successful answers, as CloudTrail's do. They have no secrets.

// fields are the members of a structure that an answer has.
type fields map[string]string

func (f fields) text(name string, s *string) {
	if s != nil {
		f[name] = *s
	}
}

func (f fields) time(name string, t *time.Time) {
	if t != nil {
		f[name] = auditfield.FormatTime(*t)
	}
}

func (f fields) number(name string, n *int32) {
	if n != nil {
		f[name] = strconv.Itoa(int(*n))
	}
}

func (f fields) flag(name string, b *bool) {
	if b != nil {
		f[name] = strconv.FormatBool(*b)
	}
}

// as returns the record of an answer that consists of the structure.
func (f fields) as(name string) []*auditpb.Field {
	return []*auditpb.Field{auditfield.TextMap(name, f)}
}

func recordUser(out *iamapi.CreateUserOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, u := fields{}, out.User
	f.text("path", u.Path)
	f.text("userName", u.UserName)
	f.text("userId", u.UserId)
	f.text("arn", u.Arn)
	f.time("createDate", u.CreateDate)
	return f.as("user")
}

func recordGroup(out *iamapi.CreateGroupOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, g := fields{}, out.Group
	f.text("path", g.Path)
	f.text("groupName", g.GroupName)
	f.text("groupId", g.GroupId)
	f.text("arn", g.Arn)
	f.time("createDate", g.CreateDate)
	return f.as("group")
}

func recordRole(out *iamapi.CreateRoleOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, r := fields{}, out.Role
	f.text("path", r.Path)
	f.text("roleName", r.RoleName)
	f.text("roleId", r.RoleId)
	f.text("arn", r.Arn)
	f.time("createDate", r.CreateDate)
	f.number("maxSessionDuration", r.MaxSessionDuration)
	return f.as("role")
}

func recordPolicy(out *iamapi.CreatePolicyOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, p := fields{}, out.Policy
	f.text("path", p.Path)
	f.text("policyName", p.PolicyName)
	f.text("policyId", p.PolicyId)
	f.text("arn", p.Arn)
	f.text("defaultVersionId", p.DefaultVersionId)
	f.time("createDate", p.CreateDate)
	return f.as("policy")
}

func recordVersion(out *iamapi.CreatePolicyVersionOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, v := fields{}, out.PolicyVersion
	f.text("versionId", v.VersionId)
	f.flag("isDefaultVersion", v.IsDefaultVersion)
	f.time("createDate", v.CreateDate)
	return f.as("policyVersion")
}

func recordAccessKey(out *iamapi.CreateAccessKeyOutput, _ []*auditpb.Resource) []*auditpb.Field {
	f, k := fields{}, out.AccessKey
	f.text("userName", k.UserName)
	f.text("accessKeyId", k.AccessKeyId)
	f.text("status", k.Status)
	f.time("createDate", k.CreateDate)
	return f.as("accessKey")
}

func recordProvider(out *iamapi.CreateOpenIDConnectProviderOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("openIDConnectProviderArn", *out.OpenIDConnectProviderArn)}
}
