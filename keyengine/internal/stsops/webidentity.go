package stsops

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// AWS's messages about tokens.
var (
	errNotAToken = kmsapi.Errorf(iamapi.ErrInvalidIdentityToken, "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	errKeys      = kmsapi.Errorf(iamapi.ErrInvalidIdentityToken, "Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements")
	errAudience  = kmsapi.Errorf(iamapi.ErrInvalidIdentityToken, "Incorrect token audience")
	errExpired   = kmsapi.Errorf(kmsapi.ErrExpiredToken, "The web identity token that was passed is expired or is not valid. Get a new identity token from the identity provider and then retry the request.")
)

// webIdentity is a web identity whose token was verified.
type webIdentity struct {
	claims   *webidentity.Claims
	audience []string // those of the token that are registered, at least one
}

// proveWebIdentity verifies the token of AssumeRoleWithWebIdentity: its issuer must be
// registered in the account of the role, for an audience of the token. What that depends on
// is added to the read set, and the record must be accepted before the token expires.
func proveWebIdentity(ev *request.Evaluation, input any) (iam.Entity, error) {
	in := input.(*iamapi.AssumeRoleWithWebIdentityInput)
	refused := func(err error) (iam.Entity, error) { return iam.Entity{}, err }
	token, err := webidentity.Parse(*in.WebIdentityToken)
	if err != nil {
		return refused(errNotAToken)
	}
	role, err := policy.ParsePrincipal(*in.RoleArn)
	account, ok := fsm.ParseAccount(role.Account)
	if err != nil || !ok || role.Kind != policy.KindRole {
		return refused(kmsapi.Errorf(kmsapi.ErrValidation, "%s is invalid", *in.RoleArn))
	}
	p := request.Read[*fsmpb.OidcProvider](ev, fsm.OidcProviderID(account, token.Issuer))
	if p == nil || !ev.Issuers.Accepts(token) {
		err := kmsapi.Errorf(iamapi.ErrInvalidIdentityToken, "No OpenIDConnect provider found in your account for https://%s", token.Issuer)
		return refused(request.MayBeBehind(err))
	}
	keys := p.Jwks
	if len(keys) == 0 {
		// The name has all that the keys depend on. Those that are found out once are used
		// for the whole request.
		keys, err = ev.Outside(fmt.Sprintf("keys of %t %s for %s", token.Insecure, token.Issuer, token.KeyID), func() ([]byte, error) {
			return ev.Issuers.Keys(ev.Ctx, token)
		})
	}
	switch {
	case errors.Is(err, webidentity.ErrUnreachable):
		ev.Log.Warn("the keys of an identity provider cannot be fetched", "issuer", token.Issuer, "err", err)
		return refused(kmsapi.Errorf(iamapi.ErrIDPCommunication, "%s", errKeys.Message))
	case err != nil:
		return refused(err)
	}
	claims, err := token.Verify(ev.Ctx, keys, ev.Now())
	switch {
	case errors.Is(err, webidentity.ErrExpired):
		return refused(errExpired)
	case errors.Is(err, webidentity.ErrSignature) && len(p.Jwks) > 0:
		return refused(request.MayBeBehind(errKeys))
	case errors.Is(err, webidentity.ErrSignature):
		return refused(errKeys)
	case err != nil:
		return refused(fmt.Errorf("token of %s: %w", token.Issuer, err))
	}
	w := &webIdentity{claims: claims}
	ev.Proved = w
	for _, a := range claims.Audience {
		if slices.Contains(p.ClientIds, a) {
			w.audience = append(w.audience, a)
		}
	}
	if len(w.audience) == 0 {
		return refused(request.MayBeBehind(errAudience))
	}
	ev.Within(0, claims.Expires.UnixNano())
	principal, err := policy.ParseProvider(iam.ProviderARN(ev.Cluster().GetPartition(), p))
	return iam.Entity{
		Principal: principal, Account: account, Provider: p, Subject: claims.Subject,
		ID: principal.ARN + ":" + w.audience[0] + ":" + claims.Subject,
	}, err
}

func assumeRoleWithWebIdentity(ev *request.Evaluation, in *iamapi.AssumeRoleWithWebIdentityInput) (*iamapi.AssumeRoleWithWebIdentityOutput, error) {
	who, w := ev.Who(), ev.Proved.(*webIdentity)
	role, err := roleOf(ev, *in.RoleArn)
	if err != nil {
		return nil, err
	}
	ev.Resource("AWS::IAM::Role", *in.RoleArn)
	if in.ProviderId != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "ProviderId is for OAuth 2.0 access tokens, which are not supported.")
	}
	s := &iampb.Session{
		Name: *in.RoleSessionName, Provider: who.ARN, Subject: w.claims.Subject, Audience: w.audience[0], Issuer: who.Provider.Url,
		SourceIdentity: w.claims.SourceIdentity,
	}
	p := passed{policy: in.Policy, policyARNs: in.PolicyArns, transitive: w.claims.Transitive}
	for _, k := range slices.Sorted(maps.Keys(w.claims.Tags)) {
		p.tags = append(p.tags, iamapi.Tag{Key: &k, Value: new(w.claims.Tags[k])})
	}
	if !validClaims(w.claims) {
		return nil, kmsapi.Errorf(iamapi.ErrInvalidIdentityToken, "The tags or the source identity in the token are not valid.")
	}
	if err := p.tag(nil, s); err != nil {
		return nil, err
	}
	conditions := map[string][]string{"sts:rolesessionname": {s.Name}}
	issuer := fsm.EntityName(s.Issuer)
	if strings.ContainsAny(issuer, ".:/") { // no issuer is called aws, and none gives AWS's keys their values
		for name, v := range w.claims.Values {
			conditions[issuer+":"+name] = v
		}
	}
	conditions[issuer+":sub"], conditions[issuer+":aud"] = []string{s.Subject}, w.audience
	for _, t := range s.Tags {
		conditions["aws:requesttag/"+fsm.EntityName(t.Key)] = []string{t.Value}
		conditions["aws:tagkeys"] = append(conditions["aws:tagkeys"], t.Key)
	}
	c, size, err := p.open(ev, role, who.Provider, s, *in.RoleArn, in.DurationSeconds, conditions)
	if err != nil {
		return nil, err
	}
	return &iamapi.AssumeRoleWithWebIdentityOutput{
		Credentials: c, AssumedRoleUser: assumedRole(ev, role, s), PackedPolicySize: size, SourceIdentity: optional(s.SourceIdentity),
		SubjectFromWebIdentityToken: &s.Subject, Provider: &s.Provider, Audience: &s.Audience,
	}, nil
}

// validClaims reports whether the tags and the source identity of a token are such as a
// request of AssumeRole may have.
func validClaims(c *webidentity.Claims) bool {
	for k, v := range c.Tags {
		if k == "" || utf8.RuneCountInString(k) > 128 || utf8.RuneCountInString(v) > 256 ||
			!kmsapi.PatternOf("tagKey").Match(k) || !kmsapi.PatternOf("tagValue").Match(v) {
			return false
		}
	}
	s := c.SourceIdentity
	return s == "" || 2 <= len(s) && len(s) <= 64 && kmsapi.PatternOf("sessionName").Match(s)
}

func recordWebIdentity(out *iamapi.AssumeRoleWithWebIdentityOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return append(recordSession(out.Credentials, out.AssumedRoleUser, out.PackedPolicySize, out.SourceIdentity),
		auditfield.Text("subjectFromWebIdentityToken", *out.SubjectFromWebIdentityToken),
		auditfield.Text("provider", *out.Provider), auditfield.Text("audience", *out.Audience))
}
