package stsops

import (
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Actions that a trust policy has to allow in addition.
const (
	actionTagSession        = "sts:TagSession"
	actionSetSourceIdentity = "sts:SetSourceIdentity"
)

const (
	// defaultLife is how long a session of a role lasts if the request does not say, and the
	// longest that a role allows unless it was set.
	defaultLife = 3600
	// maxChained is the longest life of a session that was opened with a session of a role.
	maxChained = 3600
)

var errRoot = kmsapi.Errorf(kmsapi.ErrAccessDenied, "Roles may not be assumed by root accounts.")

func assumeRole(ev *request.Evaluation, in *iamapi.AssumeRoleInput) (*iamapi.AssumeRoleOutput, error) {
	role, err := roleOf(ev, *in.RoleArn)
	if err != nil {
		return nil, err
	}
	ev.Resource("AWS::IAM::Role", *in.RoleArn)
	if ev.Principal().Kind == policy.KindRoot {
		return nil, errRoot
	}
	if in.SerialNumber != nil || in.TokenCode != nil {
		return nil, errNoMFA
	}
	if len(in.ProvidedContexts) > 0 {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Context assertions are not supported.")
	}
	from := ev.Who().Session
	if from.GetRole() == "" {
		from = nil // of a user, and neither chained nor tagged
	}
	s := &iampb.Session{Name: *in.RoleSessionName, Chained: from != nil, SourceIdentity: from.GetSourceIdentity()}
	p := passed{policy: in.Policy, policyARNs: in.PolicyArns, tags: in.Tags, transitive: in.TransitiveTagKeys}
	if err := p.tag(from, s); err != nil {
		return nil, err
	}
	if v := in.SourceIdentity; v != nil {
		if s.SourceIdentity != "" && s.SourceIdentity != *v {
			return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The source identity of the calling session is already set and cannot be changed.")
		}
		s.SourceIdentity = *v
	}
	conditions := map[string][]string{"sts:rolesessionname": {s.Name}}
	if in.ExternalId != nil {
		conditions["sts:externalid"] = []string{*in.ExternalId}
	}
	c, size, err := p.open(ev, role, nil, s, *in.RoleArn, in.DurationSeconds, conditions)
	if err != nil {
		return nil, err
	}
	return &iamapi.AssumeRoleOutput{
		Credentials: c, AssumedRoleUser: assumedRole(ev, role, s), PackedPolicySize: size, SourceIdentity: optional(s.SourceIdentity),
	}, nil
}

// open opens the session s of a role for the caller, if the role's trust policy allows it,
// and returns the credentials and the size of what was passed, in percent. provider is that
// of a web identity, or nil; see openRole for the other arguments.
func (p *passed) open(ev *request.Evaluation, role *fsmpb.Role, provider *fsmpb.OidcProvider, s *iampb.Session, arn string, duration *int32, conditions map[string][]string) (*iamapi.Credentials, *int32, error) {
	life, err := openRole(ev, role, s, arn, duration, conditions)
	if err != nil {
		return nil, nil, err
	}
	if err := p.restrict(ev, fsm.Account(role.Account), s); err != nil {
		return nil, nil, err
	}
	size, err := packed(s)
	if err != nil {
		return nil, nil, err
	}
	begin(ev, s, life, role, provider)
	c, err := credentials(ev, s)
	return c, size, err
}

// openRole checks whether the caller may open the session s of a role, which has its name,
// tags and source identity, sets its role, and returns how long it lasts. conditions are the
// condition keys of the request; openRole adds those that all ways to assume a role have.
func openRole(ev *request.Evaluation, role *fsmpb.Role, s *iampb.Session, arn string, duration *int32, conditions map[string][]string) (time.Duration, error) {
	if s.SourceIdentity != "" {
		conditions["sts:sourceidentity"] = []string{s.SourceIdentity}
	}
	if len(s.Transitive) > 0 {
		conditions["sts:transitivetagkeys"] = s.Transitive
	}
	actions := []string{ev.Op.Action()}
	if len(s.Tags) > 0 {
		actions = append(actions, actionTagSession)
	}
	if s.SourceIdentity != "" {
		actions = append(actions, actionSetSourceIdentity)
	}
	for _, action := range actions {
		if err := ev.AuthoriseRole(role, arn, action, &request.Conditions{More: conditions}); err != nil {
			return 0, err
		}
	}
	life := int32(defaultLife)
	if duration != nil {
		life = *duration
	}
	most := int32(role.MaxSession)
	if most == 0 {
		most = defaultLife
	}
	switch {
	case duration == nil:
		life = min(life, most)
	case s.Chained && life > maxChained:
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	case life > most:
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	s.Account, s.Role = role.Account, role.Id
	return time.Duration(life) * time.Second, nil
}

func assumedRole(ev *request.Evaluation, role *fsmpb.Role, s *iampb.Session) *iamapi.AssumedRoleUser {
	return &iamapi.AssumedRoleUser{
		AssumedRoleId: new(role.Id + ":" + s.Name), Arn: new(iam.SessionARN(ev.Cluster().GetPartition(), role, s.Name)),
	}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func recordAssumeRole(out *iamapi.AssumeRoleOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return recordSession(out.Credentials, out.AssumedRoleUser, out.PackedPolicySize, out.SourceIdentity)
}

// recordSession returns what records have of a new session of a role.
func recordSession(c *iamapi.Credentials, u *iamapi.AssumedRoleUser, size *int32, identity *string) []*auditpb.Field {
	fields := []*auditpb.Field{
		recordCredentials(c),
		auditfield.TextMap("assumedRoleUser", map[string]string{"assumedRoleId": *u.AssumedRoleId, "arn": *u.Arn}),
		auditfield.Number("packedPolicySize", int(*size)),
	}
	if identity != nil {
		fields = append(fields, auditfield.Text("sourceIdentity", *identity))
	}
	return fields
}
