package keyengine

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The life of a role, from its creation to its deletion.
func TestRoleLife(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	doc := trust(`{"AWS":"` + arnOf("root") + `"}`)
	r := must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{
		RoleName: new("app"), Path: new("/svc/"), AssumeRolePolicyDocument: &doc, Description: new("d"), MaxSessionDuration: new(int32(7200)),
		PermissionsBoundary: new(awsAdmin), Tags: []iamapi.Tag{{Key: new("k"), Value: new("v")}},
	}).Role
	if *r.Arn != arnOf("role/svc/app") || !strings.HasPrefix(*r.RoleId, "AROA") || *r.AssumeRolePolicyDocument != doc || *r.Description != "d" || *r.MaxSessionDuration != 7200 ||
		len(r.Tags) != 1 || *r.PermissionsBoundary.PermissionsBoundaryArn != awsAdmin {
		t.Errorf("CreateRole: got %+v", r)
	}
	if rec := c.lastRecord(); strings.Contains(rec.String(), "responseElements") || !strings.Contains(rec.String(), *r.RoleId) {
		t.Errorf("the record of CreateRole is %v", rec)
	}
	c.fails("CreateRole", &iamapi.CreateRoleInput{RoleName: new("APP"), AssumeRolePolicyDocument: &doc}, iamapi.ErrEntityAlreadyExists, "Role with name APP already exists.")
	if d := must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: new("plain"), AssumeRolePolicyDocument: &doc}).Role; *d.MaxSessionDuration != 3600 || *d.Path != "/" || d.Description != nil {
		t.Errorf("CreateRole with defaults: got %+v", d)
	}

	must[iamapi.UpdateRoleOutput](c, "UpdateRole", &iamapi.UpdateRoleInput{RoleName: new("app"), MaxSessionDuration: new(int32(3600))})
	up := must[iamapi.UpdateRoleDescriptionOutput](c, "UpdateRoleDescription", &iamapi.UpdateRoleDescriptionInput{RoleName: new("app"), Description: new("")}).Role
	if up.Description != nil || *up.MaxSessionDuration != 3600 {
		t.Errorf("UpdateRoleDescription: got %+v", up)
	}
	ann := c.newPerson("ann")
	narrow := trust(`{"AWS":["` + ann.arn + `","` + testAccount + `"]}`)
	must[request.None](c, "UpdateAssumeRolePolicy", &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("app"), PolicyDocument: &narrow})
	must[request.None](c, "TagRole", &iamapi.TagRoleInput{RoleName: new("app"), Tags: []iamapi.Tag{{Key: new("x"), Value: new("y")}}})
	must[request.None](c, "UntagRole", &iamapi.UntagRoleInput{RoleName: new("app"), TagKeys: []string{"k"}})
	must[request.None](c, "DeleteRolePermissionsBoundary", &iamapi.DeleteRolePermissionsBoundaryInput{RoleName: new("app")})
	got := must[iamapi.GetRoleOutput](c, "GetRole", &iamapi.GetRoleInput{RoleName: new("app")}).Role
	if *got.AssumeRolePolicyDocument != narrow || len(got.Tags) != 1 || *got.Tags[0].Key != "x" || got.PermissionsBoundary != nil {
		t.Errorf("GetRole: got %+v", got)
	}

	// The principals of a trust policy must exist.
	for principal, element := range map[string]string{
		arnOf("user/nobody"): "AWS", arnOf("role/nobody"): "AWS", "arn:aws:iam::444455556666:root": "AWS", "444455556666": "AWS",
		"arn:aws:sts::" + testAccount + ":assumed-role/nobody/session": "AWS", arnOf("oidc-provider/issuer.example"): "Federated", "arn:aws-cn:iam::" + testAccount + ":user/ann": "AWS",
	} {
		c.fails("UpdateAssumeRolePolicy", &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("app"), PolicyDocument: new(trust(`{"` + element + `":"` + principal + `"}`))},
			iamapi.ErrMalformedPolicyDocument, `Invalid principal in policy: "`+element+`":"`+principal+`"`)
	}
	for name, doc := range map[string]string{
		"not JSON": "{", "no principal": policyDocument(allow("sts:AssumeRole", "*")), "another service": strings.Replace(doc, "sts:AssumeRole", "kms:Encrypt", 1),
		"a principal without an ARN": trust(`{"AWS":"ann"}`),
	} {
		c.fails("UpdateAssumeRolePolicy", &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("app"), PolicyDocument: &doc}, iamapi.ErrMalformedPolicyDocument, "…")
		c.fails("CreateRole", &iamapi.CreateRoleInput{RoleName: new(strings.ReplaceAll(name, " ", "-")), AssumeRolePolicyDocument: &doc}, iamapi.ErrMalformedPolicyDocument, "…")
	}
	long := strings.Replace(doc, `"Version"`, `"Id":"`+strings.Repeat("x", 2048)+`","Version"`, 1)
	c.fails("UpdateAssumeRolePolicy", &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("app"), PolicyDocument: &long}, iamapi.ErrLimitExceeded, "Cannot exceed quota for ACLSizePerRole: 2048")

	must[request.None](c, "PutRolePolicy", &iamapi.PutRolePolicyInput{RoleName: new("app"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	must[request.None](c, "AttachRolePolicy", &iamapi.AttachRolePolicyInput{RoleName: new("app"), PolicyArn: new(awsAdmin)})
	c.fails("DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must detach all policies first.")
	must[request.None](c, "DetachRolePolicy", &iamapi.DetachRolePolicyInput{RoleName: new("app"), PolicyArn: new(awsAdmin)})
	c.fails("DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")}, iamapi.ErrDeleteConflict, "Cannot delete entity, must delete policies first.")
	must[request.None](c, "DeleteRolePolicy", &iamapi.DeleteRolePolicyInput{RoleName: new("app"), PolicyName: new("p")})
	must[request.None](c, "DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")})
	for name, in := range map[string]any{
		"GetRole": &iamapi.GetRoleInput{RoleName: new("app")}, "DeleteRole": &iamapi.DeleteRoleInput{RoleName: new("app")},
		"UpdateRole": &iamapi.UpdateRoleInput{RoleName: new("app")}, "RevokeRoleSessions": &iamapi.RevokeRoleSessionsInput{RoleName: new("app")},
		"ListInstanceProfilesForRole": &iamapi.ListInstanceProfilesForRoleInput{RoleName: new("app")},
	} {
		c.fails(name, in, iamapi.ErrNoSuchEntity, "The role with name app cannot be found.")
	}
}

// Sessions of a role are ended up to a time, and never begin again.
func TestRevokeRoleSessions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.newRole("app")
	revoked := func() int64 {
		r, _ := fsm.Object[*fsmpb.Role](c.State(), fsm.EntityID(testAccountNumber, "app"))
		return r.RevokedBefore
	}
	now := c.Clock.Now()
	past := now.Add(-time.Hour)
	must[request.None](c, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("app"), OlderThan: &past})
	if got := revoked(); got != past.UnixNano() {
		t.Errorf("sessions are revoked before %d, want %d", got, past.UnixNano())
	}
	future := now.Add(time.Hour)
	must[request.None](c, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("app"), OlderThan: &future})
	at := revoked()
	if at <= now.UnixNano() || at >= future.UnixNano() {
		t.Errorf("sessions are revoked before %d, want just after %d", at, now.UnixNano())
	}
	must[request.None](c, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("app"), OlderThan: &past})
	if got := revoked(); got != at {
		t.Errorf("sessions that were revoked are valid again: before %d, was %d", got, at)
	}
}

// A role that was made with requests is assumed by a user that was made with requests. The
// records of its session name the role, as CloudTrail's do.
func TestRoleInUse(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	ann := c.newPerson("ann", allow("sts:AssumeRole", "*"))
	role := must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: new("app"), Path: new("/svc/"), AssumeRolePolicyDocument: new(trust(`{"AWS":"` + ann.arn + `"}`))}).Role
	key, _ := c.newKey()
	session := c.assume(ann.identity, &iamapi.AssumeRoleInput{RoleArn: role.Arn, RoleSessionName: new("job-1")})
	n2 := c.engines["n2"]
	describe := func() error {
		_, err := callAs[kmsapi.DescribeKeyOutput](c, n2, session, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
		return err
	}
	wantError(t, describe(), kmsapi.ErrAccessDenied, "…")
	c.Replica("n2").FallBehind()
	must[request.None](c, "PutRolePolicy", &iamapi.PutRolePolicyInput{RoleName: new("app"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	if err := describe(); err != nil {
		t.Errorf("with a policy: %v", err)
	}
	id := c.lastRecord().Identity
	if id.Type != "AssumedRole" || id.PrincipalId != *role.RoleId+":job-1" || id.Arn != "arn:aws:sts::"+testAccount+":assumed-role/app/job-1" ||
		!strings.HasPrefix(id.AccessKeyId, "ASIA") || id.UserName != "" || id.Certificate != "" {
		t.Errorf("the record's identity is %v", id)
	}
	context := make(map[string]map[string]string)
	for _, f := range id.SessionContext {
		context[f.Name] = make(map[string]string)
		for _, p := range f.GetMap().GetPairs() {
			context[f.Name][p.Key] = p.Value
		}
	}
	want := map[string]string{"type": "Role", "principalId": *role.RoleId, "arn": *role.Arn, "accountId": testAccount, "userName": "app"}
	if got := context["sessionIssuer"]; !maps.Equal(got, want) || context["attributes"]["mfaAuthenticated"] != "false" || context["attributes"]["creationDate"] == "" {
		t.Errorf("the record's session context is %v", context)
	}
	_, err := callAs[iamapi.GetUserOutput](c, n2, session, "GetUser", &iamapi.GetUserInput{})
	wantError(t, err, kmsapi.ErrValidation, "Must specify userName when calling with non-User credentials")
	c.Replica("n2").FallBehind()
	must[request.None](c, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("app")})
	wantError(t, describe(), kmsapi.ErrExpiredToken, "…")
}

// What there is none of is empty, for tools that ask before they delete something.
func TestEmptyLists(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	ann := c.newPerson("ann")
	c.newRole("app")
	for name, in := range map[string]any{
		"ListSSHPublicKeys": &iamapi.ListSSHPublicKeysInput{UserName: &ann.name}, "ListMFADevices": &iamapi.ListMFADevicesInput{UserName: &ann.name},
		"ListSigningCertificates":        &iamapi.ListSigningCertificatesInput{UserName: &ann.name},
		"ListServiceSpecificCredentials": &iamapi.ListServiceSpecificCredentialsInput{UserName: &ann.name},
		"ListVirtualMFADevices":          &iamapi.ListVirtualMFADevicesInput{}, "ListInstanceProfiles": &iamapi.ListInstanceProfilesInput{},
		"ListServerCertificates": &iamapi.ListServerCertificatesInput{}, "ListSAMLProviders": &iamapi.ListSAMLProvidersInput{},
		"ListInstanceProfilesForRole": &iamapi.ListInstanceProfilesForRoleInput{RoleName: new("app")},
	} {
		if _, err := c.engine.Do(t.Context(), c.caller(c.root), operationNamed(name), in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.engine.Do(t.Context(), c.caller(ann.identity), operationNamed(name), in); err == nil {
			t.Errorf("%s needs no permission", name)
		}
	}
	c.fails("ListMFADevices", &iamapi.ListMFADevicesInput{UserName: new("no")}, iamapi.ErrNoSuchEntity, "The user with name no cannot be found.")
	for _, name := range []string{"GetLoginProfile", "DeleteLoginProfile"} {
		in := map[string]any{"GetLoginProfile": &iamapi.GetLoginProfileInput{UserName: &ann.name}, "DeleteLoginProfile": &iamapi.DeleteLoginProfileInput{UserName: &ann.name}}[name]
		c.fails(name, in, iamapi.ErrNoSuchEntity, "Login Profile for User ann cannot be found.")
	}
}

// Identity providers: what they are created with, and what changes.
func TestOpenIDConnectProviders(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	const issuer = "oidc.example.com/id/1"
	arn := arnOf("oidc-provider/" + issuer)
	thumb := strings.Repeat("aB", 20)
	out := must[iamapi.CreateOpenIDConnectProviderOutput](c, "CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{
		Url: new("https://" + issuer), ClientIDList: []string{"sts.amazonaws.com"}, ThumbprintList: []string{thumb}, Tags: []iamapi.Tag{{Key: new("k"), Value: new("v")}},
	})
	if *out.OpenIDConnectProviderArn != arn || len(out.Tags) != 1 {
		t.Errorf("got %+v", out)
	}
	c.fails("CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://" + issuer)}, iamapi.ErrEntityAlreadyExists, "Provider with url https://"+issuer+" already exists.")
	for _, url := range []string{"http://a.example", "https://", "https:///x", "a.example", "https://a.example/?q", "https://u:p@a.example", "https://a.example/#x", "https://a.example/*", "https://a b.example"} {
		c.fails("CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: &url}, iamapi.ErrInvalidInput, "…")
	}
	c.fails("CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://b.example"), ClientIDList: []string{"a", "a"}}, iamapi.ErrInvalidInput, "…")
	c.fails("CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{Url: new("https://b.example"), ClientIDList: make101()}, iamapi.ErrLimitExceeded, "…")
	must[request.None](c, "AddClientIDToOpenIDConnectProvider", &iamapi.AddClientIDToOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn, ClientID: new("b")})
	must[request.None](c, "RemoveClientIDFromOpenIDConnectProvider", &iamapi.RemoveClientIDFromOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn, ClientID: new("sts.amazonaws.com")})
	must[request.None](c, "UpdateOpenIDConnectProviderThumbprint", &iamapi.UpdateOpenIDConnectProviderThumbprintInput{OpenIDConnectProviderArn: &arn, ThumbprintList: []string{strings.Repeat("0", 40)}})
	must[request.None](c, "TagOpenIDConnectProvider", &iamapi.TagOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn, Tags: []iamapi.Tag{{Key: new("a"), Value: new("b")}}})
	must[request.None](c, "UntagOpenIDConnectProvider", &iamapi.UntagOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn, TagKeys: []string{"k"}})
	got := must[iamapi.GetOpenIDConnectProviderOutput](c, "GetOpenIDConnectProvider", &iamapi.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn})
	if *got.Url != issuer || len(got.ClientIDList) != 1 || got.ClientIDList[0] != "b" || got.ThumbprintList[0] != strings.Repeat("0", 40) || len(got.Tags) != 1 || *got.Tags[0].Key != "a" {
		t.Errorf("GetOpenIDConnectProvider: got %+v", got)
	}
	const jwks = `{"keys":[{"kty":"EC","crv":"P-256","x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}]}`
	for keys, ok := range map[string]bool{
		"": true, jwks: true, `{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"}]}`: false, `{"keys":[]}`: false, "x": false, `{"keys":[{"n":"AQ"}]}`: false,
		`{"keys":[{"kty":"EC","d":"AQ"}]}`: false, `{"keys":[{"kty":"oct","k":"AQ"}]}`: false,
	} {
		_, err := call[request.None](c, "UpdateOpenIDConnectProviderKeys", &iamapi.UpdateOpenIDConnectProviderKeysInput{OpenIDConnectProviderArn: &arn, JSONWebKeySet: &keys})
		if ok && err != nil {
			t.Errorf("keys %q: %v", keys, err)
		} else if !ok {
			wantError(t, err, iamapi.ErrInvalidInput, "…")
		}
	}
	must[request.None](c, "RevokeOpenIDConnectProviderSessions", &iamapi.RevokeOpenIDConnectProviderSessionsInput{OpenIDConnectProviderArn: &arn})
	must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: new("web"), AssumeRolePolicyDocument: new(strings.Replace(trust(`{"Federated":"`+arn+`"}`), "AssumeRole", "AssumeRoleWithWebIdentity", 1))})
	l := must[iamapi.ListOpenIDConnectProvidersOutput](c, "ListOpenIDConnectProviders", &iamapi.ListOpenIDConnectProvidersInput{}).OpenIDConnectProviderList
	if len(l) != 1 || *l[0].Arn != arn {
		t.Errorf("ListOpenIDConnectProviders: got %v", l)
	}
	must[request.None](c, "DeleteOpenIDConnectProvider", &iamapi.DeleteOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn})
	c.fails("GetOpenIDConnectProvider", &iamapi.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: &arn}, iamapi.ErrNoSuchEntity, "OpenIDConnect Provider not found for arn "+arn)
	c.fails("GetOpenIDConnectProvider", &iamapi.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: new("arn:aws:iam::444455556666:oidc-provider/a")}, kmsapi.ErrAccessDenied, "…")
	c.fails("GetOpenIDConnectProvider", &iamapi.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: new(arnOf("user/oidc-provider"))}, iamapi.ErrInvalidInput, "…")
}

func make101() []string {
	ids := make([]string, 101)
	for i := range ids {
		ids[i] = strings.Repeat("x", i+1)
	}
	return ids
}
