package conformance

import (
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
)

// An identityOutcome is how an operation of IAM or STS is brought to each of its outcomes.
// Requests are as the query protocol has them, with names for what is found out on the way.
type identityOutcome struct {
	operation string
	// ok is a request that succeeds after those of the rows before it.
	ok string
	// failed is a request that fails for another reason than access, with the error; "" for one
	// that names a user, group, role, policy or provider that there is none of.
	failed, failure string
	// invalid is a request that breaks a rule of its members, if an empty one does not.
	invalid string
	// These say why the operation cannot be invalid or denied, fail or succeed; "" if it can.
	neverInvalid, neverDenied, neverFails, neverOK string
}

const (
	noMembers   = "it has no members"
	nothingElse = "there is nothing else that it could fail for"
	someDoc     = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}`
	someTrust   = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"ACCOUNT"},"Action":"sts:AssumeRole"}]}`
	ofAWS       = "PermissionsBoundary=arn:aws:iam::aws:policy/AdministratorAccess"
	badMarker   = "Marker=bm8"
	noItems     = "MaxItems=0"
	isList      = "ValidationError" // for the marker
)

// identityOutcomes has a row for each operation of IAM and STS, in the order in which they are
// asked for.
var identityOutcomes = []identityOutcome{
	{operation: "CreateUser", ok: "UserName=ann", failed: "UserName=bob&PermissionsBoundary=POLICY", failure: "NoSuchEntity"},
	{operation: "CreateGroup", ok: "GroupName=g", failed: "GroupName=g2&Path=/a*/", failure: "InvalidInput"},
	{operation: "CreateRole", ok: "RoleName=r&AssumeRolePolicyDocument=TRUST", failed: "RoleName=r2&AssumeRolePolicyDocument=DOCUMENT", failure: "MalformedPolicyDocument"},
	{operation: "CreatePolicy", ok: "PolicyName=p&PolicyDocument=DOCUMENT", failed: "PolicyName=p2&PolicyDocument={}", failure: "MalformedPolicyDocument"},
	{operation: "CreateOpenIDConnectProvider", ok: "Url=https://issuer.example&ClientIDList.member.1=x", failed: "Url=https://a.example&ClientIDList.member.1=x&ClientIDList.member.2=x", failure: "InvalidInput"},

	{operation: "GetUser", ok: "UserName=ann", invalid: "UserName="},
	{operation: "ListUsers", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "TagUser", ok: "UserName=ann&Tags.member.1.Key=k&Tags.member.1.Value=v"},
	{operation: "ListUserTags", ok: "UserName=ann"},
	{operation: "UntagUser", ok: "UserName=ann&TagKeys.member.1=k"},
	{operation: "PutUserPermissionsBoundary", ok: "UserName=ann&" + ofAWS},
	{operation: "DeleteUserPermissionsBoundary", ok: "UserName=ann"},
	{operation: "PutUserPolicy", ok: "UserName=ann&PolicyName=in&PolicyDocument=DOCUMENT"},
	{operation: "GetUserPolicy", ok: "UserName=ann&PolicyName=in"},
	{operation: "ListUserPolicies", ok: "UserName=ann"},
	{operation: "DeleteUserPolicy", ok: "UserName=ann&PolicyName=in"},
	{operation: "AttachUserPolicy", ok: "UserName=ann&PolicyArn=POLICY"},
	{operation: "ListAttachedUserPolicies", ok: "UserName=ann"},
	{operation: "ListEntitiesForPolicy", ok: "PolicyArn=POLICY"},
	{operation: "DetachUserPolicy", ok: "UserName=ann&PolicyArn=POLICY"},
	{operation: "AddUserToGroup", ok: "UserName=ann&GroupName=g"},
	{operation: "ListGroupsForUser", ok: "UserName=ann"},
	{operation: "RemoveUserFromGroup", ok: "UserName=ann&GroupName=g"},
	{operation: "CreateAccessKey", ok: "UserName=ann", invalid: "UserName="},
	{operation: "ListAccessKeys", ok: "UserName=ann", invalid: noItems},
	{operation: "GetAccessKeyLastUsed", ok: "AccessKeyId=KEY", failed: "AccessKeyId=AKIAAAAAAAAAAAAAAAAA", failure: "NoSuchEntity"},
	{operation: "UpdateAccessKey", ok: "UserName=ann&AccessKeyId=KEY&Status=Inactive"},
	{operation: "DeleteAccessKey", ok: "UserName=ann&AccessKeyId=KEY"},
	{operation: "UpdateUser", ok: "UserName=ann&NewPath=/new/"},

	{operation: "GetGroup", ok: "GroupName=g"},
	{operation: "ListGroups", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "PutGroupPolicy", ok: "GroupName=g&PolicyName=in&PolicyDocument=DOCUMENT"},
	{operation: "GetGroupPolicy", ok: "GroupName=g&PolicyName=in"},
	{operation: "ListGroupPolicies", ok: "GroupName=g"},
	{operation: "DeleteGroupPolicy", ok: "GroupName=g&PolicyName=in"},
	{operation: "AttachGroupPolicy", ok: "GroupName=g&PolicyArn=POLICY"},
	{operation: "ListAttachedGroupPolicies", ok: "GroupName=g"},
	{operation: "DetachGroupPolicy", ok: "GroupName=g&PolicyArn=POLICY"},
	{operation: "UpdateGroup", ok: "GroupName=g&NewPath=/new/"},

	{operation: "GetRole", ok: "RoleName=r"},
	{operation: "ListRoles", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "UpdateRole", ok: "RoleName=r&Description=d"},
	{operation: "UpdateRoleDescription", ok: "RoleName=r&Description=d"},
	{operation: "UpdateAssumeRolePolicy", ok: "RoleName=r&PolicyDocument=TRUST"},
	{operation: "PutRolePermissionsBoundary", ok: "RoleName=r&" + ofAWS},
	{operation: "DeleteRolePermissionsBoundary", ok: "RoleName=r"},
	{operation: "TagRole", ok: "RoleName=r&Tags.member.1.Key=k&Tags.member.1.Value=v"},
	{operation: "ListRoleTags", ok: "RoleName=r"},
	{operation: "UntagRole", ok: "RoleName=r&TagKeys.member.1=k"},
	{operation: "PutRolePolicy", ok: "RoleName=r&PolicyName=in&PolicyDocument=DOCUMENT"},
	{operation: "GetRolePolicy", ok: "RoleName=r&PolicyName=in"},
	{operation: "ListRolePolicies", ok: "RoleName=r"},
	{operation: "DeleteRolePolicy", ok: "RoleName=r&PolicyName=in"},
	{operation: "AttachRolePolicy", ok: "RoleName=r&PolicyArn=POLICY"},
	{operation: "ListAttachedRolePolicies", ok: "RoleName=r"},
	{operation: "DetachRolePolicy", ok: "RoleName=r&PolicyArn=POLICY"},
	{operation: "ListInstanceProfilesForRole", ok: "RoleName=r"},
	{operation: "RevokeRoleSessions", ok: "RoleName=r"},

	{operation: "GetPolicy", ok: "PolicyArn=POLICY"},
	{operation: "ListPolicies", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "CreatePolicyVersion", ok: "PolicyArn=POLICY&PolicyDocument=DOCUMENT"},
	{operation: "GetPolicyVersion", ok: "PolicyArn=POLICY&VersionId=v2"},
	{operation: "ListPolicyVersions", ok: "PolicyArn=POLICY"},
	{operation: "SetDefaultPolicyVersion", ok: "PolicyArn=POLICY&VersionId=v2"},
	{operation: "DeletePolicyVersion", ok: "PolicyArn=POLICY&VersionId=v1"},
	{operation: "TagPolicy", ok: "PolicyArn=POLICY&Tags.member.1.Key=k&Tags.member.1.Value=v"},
	{operation: "ListPolicyTags", ok: "PolicyArn=POLICY"},
	{operation: "UntagPolicy", ok: "PolicyArn=POLICY&TagKeys.member.1=k"},

	{operation: "GetOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER"},
	{operation: "ListOpenIDConnectProviders", neverInvalid: noMembers, neverFails: nothingElse},
	{operation: "AddClientIDToOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER&ClientID=y"},
	{operation: "RemoveClientIDFromOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER&ClientID=y"},
	{operation: "UpdateOpenIDConnectProviderThumbprint", ok: "OpenIDConnectProviderArn=PROVIDER&ThumbprintList.member.1=" + "0123456789012345678901234567890123456789"},
	{operation: "UpdateOpenIDConnectProviderKeys", ok: "OpenIDConnectProviderArn=PROVIDER&JSONWebKeySet="},
	{operation: "TagOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER&Tags.member.1.Key=k&Tags.member.1.Value=v"},
	{operation: "ListOpenIDConnectProviderTags", ok: "OpenIDConnectProviderArn=PROVIDER"},
	{operation: "UntagOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER&TagKeys.member.1=k"},
	{operation: "RevokeOpenIDConnectProviderSessions", ok: "OpenIDConnectProviderArn=PROVIDER"},

	{operation: "SimulatePrincipalPolicy", ok: "PolicySourceArn=USER&ActionNames.member.1=kms:Encrypt"},
	{operation: "GetContextKeysForPrincipalPolicy", ok: "PolicySourceArn=USER"},
	{operation: "SimulateCustomPolicy", ok: "PolicyInputList.member.1=DOCUMENT&ActionNames.member.1=kms:Encrypt",
		failed: "PolicyInputList.member.1={}&ActionNames.member.1=kms:Encrypt", failure: "InvalidInput"},
	{operation: "GetContextKeysForCustomPolicy", ok: "PolicyInputList.member.1=DOCUMENT", failed: "PolicyInputList.member.1={}", failure: "InvalidInput"},

	{operation: "GetAccountSummary", neverInvalid: noMembers, neverFails: nothingElse},
	{operation: "GetAccountAuthorizationDetails", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "CreateAccountAlias", ok: "AccountAlias=acme", neverFails: nothingElse},
	{operation: "ListAccountAliases", invalid: noItems, failed: badMarker, failure: isList},
	{operation: "DeleteAccountAlias", ok: "AccountAlias=acme", failed: "AccountAlias=other", failure: "NoSuchEntity"},

	{operation: "ListSSHPublicKeys", ok: "UserName=ann", invalid: noItems},
	{operation: "ListMFADevices", ok: "UserName=ann", invalid: noItems},
	{operation: "ListSigningCertificates", ok: "UserName=ann", invalid: noItems},
	{operation: "ListServiceSpecificCredentials", ok: "UserName=ann", invalid: noItems},
	{operation: "GetLoginProfile", ok: "UserName=ann", invalid: "UserName=", neverOK: "nobody has a password"},
	{operation: "DeleteLoginProfile", ok: "UserName=ann", invalid: "UserName=", neverOK: "nobody has a password"},
	{operation: "ListVirtualMFADevices", invalid: noItems, neverFails: nothingElse},
	{operation: "ListInstanceProfiles", invalid: noItems, neverFails: nothingElse},
	{operation: "ListServerCertificates", invalid: noItems, neverFails: nothingElse},
	{operation: "ListSAMLProviders", neverInvalid: noMembers, neverFails: nothingElse},

	{operation: "GetCallerIdentity", neverInvalid: noMembers, neverDenied: "it needs no permission", neverFails: nothingElse},
	{operation: "GetSessionToken", invalid: "DurationSeconds=1", neverDenied: "it needs no permission", failed: "SerialNumber=arn:aws:iam::ACCOUNT:mfa/x&TokenCode=123456", failure: "AccessDenied"},
	{operation: "GetAccessKeyInfo", ok: "AccessKeyId=KEY", failed: "AccessKeyId=AAAAAAAAAAAAAAAAAAAA", failure: "ValidationError"},
	{operation: "AssumeRole", ok: "RoleArn=ROLE&RoleSessionName=test", failed: "RoleArn=ROLE&RoleSessionName=test&DurationSeconds=43200", failure: "ValidationError"},
	{operation: "DecodeAuthorizationMessage", ok: "EncodedMessage=MESSAGE", failed: "EncodedMessage=x", failure: "InvalidAuthorizationMessageException"},

	{operation: "DeleteUser", ok: "UserName=ann"},
	{operation: "DeleteGroup", ok: "GroupName=g"},
	{operation: "DeleteRole", ok: "RoleName=r"},
	{operation: "DeletePolicy", ok: "PolicyArn=POLICY"},
	{operation: "DeleteOpenIDConnectProvider", ok: "OpenIDConnectProviderArn=PROVIDER"},
}

// queryAnswer is what the tests look at in an answer of the query protocol.
type queryAnswer struct {
	Status    int    `xml:"-"`
	RequestID string `xml:"-"`
	Code      string `xml:"Error>Code"`
	Message   string `xml:"Error>EncodedMessage"`
	AccessKey string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
	Secret    string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
}

// query sends a request of IAM or STS with credentials.
func query(t *testing.T, f *harness.Face, as aws.Credentials, op *keyengine.Operation, request string) (a queryAnswer) {
	t.Helper()
	version := map[keyengine.Service]string{keyengine.IAM: "2010-05-08", keyengine.STS: "2011-06-15"}[op.Service]
	form := url.Values{"Action": {op.Name}, "Version": {version}}
	for pair := range strings.SplitSeq(request, "&") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			form.Set(name, value)
		}
	}
	g := *f
	g.As, g.Service = as, string(op.Service)
	r := g.Request("", form.Encode())
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := g.HTTP.Do(g.Sign(r, form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = xml.Unmarshal(body, &a)
	}
	if err != nil {
		t.Fatalf("%s: %v: %.300q", op.Name, err, body)
	}
	a.Status, a.RequestID = resp.StatusCode, resp.Header.Get("x-amzn-RequestId")
	return a
}

// newUser makes a user without policies.
func newUser(t *testing.T, f *harness.Face, name string) aws.Credentials {
	t.Helper()
	var a queryAnswer
	for _, op := range []string{"CreateUser", "CreateAccessKey"} {
		if a = query(t, f, f.As, keyengine.OperationNamed(keyengine.IAM, op), "UserName="+name); a.Status != http.StatusOK {
			t.Fatalf("%s: %d %s", op, a.Status, a.Code)
		}
	}
	return aws.Credentials{AccessKeyID: a.AccessKey, SecretAccessKey: a.Secret}
}

// TestAuditCoverageOfIdentities is TestAuditCoverage for the operations of IAM and STS: those
// with a signature. What AssumeRoleWithWebIdentity records is in the tests of package keyengine.
func TestAuditCoverageOfIdentities(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	f := harness.NewFace(t, c, n)
	named := map[string]string{
		"POLICY": "arn:aws:iam::ACCOUNT:policy/p", "PROVIDER": "arn:aws:iam::ACCOUNT:oidc-provider/issuer.example", "ROLE": "arn:aws:iam::ACCOUNT:role/r",
		"USER":     "arn:aws:iam::ACCOUNT:user/new/ann",
		"DOCUMENT": someDoc, "TRUST": someTrust,
	}
	fill := func(request string) string {
		for _, name := range []string{"POLICY", "PROVIDER", "ROLE", "USER", "DOCUMENT", "TRUST", "KEY", "MESSAGE"} {
			if v, ok := named[name]; ok {
				request = strings.ReplaceAll(request, "="+name, "="+v)
			}
		}
		return strings.ReplaceAll(request, "ACCOUNT", harness.Account)
	}
	missing := strings.NewReplacer("UserName=ann", "UserName=nobody", "GroupName=g", "GroupName=none", "RoleName=r", "RoleName=none",
		"PolicyArn=POLICY", "PolicyArn=POLICY-none", "=PROVIDER", "=PROVIDER.none", "=USER", "=USER-none").Replace

	// Someone who may do everything, and someone who may do nothing.
	admin, eve := newUser(t, f, "admin"), newUser(t, f, "eve")
	if a := query(t, f, f.As, keyengine.OperationNamed(keyengine.IAM, "AttachUserPolicy"), "UserName=admin&PolicyArn=arn:aws:iam::aws:policy/AdministratorAccess"); a.Status != http.StatusOK {
		t.Fatal(a.Code)
	}

	type expected struct {
		op         *keyengine.Operation
		kind, code string
		by         aws.Credentials
	}
	want := make(map[string]expected) // by request id
	ask := func(op *keyengine.Operation, kind, request, code string, by aws.Credentials) {
		t.Helper()
		a := query(t, f, by, op, fill(request))
		if a.Code != code || (code == "") != (a.Status == http.StatusOK) {
			t.Errorf("%s, %s: got %d %s, want %q", op.Name, kind, a.Status, a.Code, code)
		}
		if _, ok := want[a.RequestID]; ok || a.RequestID == "" {
			t.Errorf("%s, %s: request id %q is none, or was there before", op.Name, kind, a.RequestID)
		}
		want[a.RequestID] = expected{op, kind, a.Code, by}
		if a.AccessKey != "" {
			named["KEY"] = a.AccessKey
		}
		if a.Message != "" {
			named["MESSAGE"] = a.Message
		}
	}
	from := harness.Records(t, n)
	seen := make(map[string]bool)
	for _, row := range identityOutcomes {
		op := keyengine.OperationNamed(keyengine.IAM, row.operation)
		if op == nil {
			op = keyengine.OperationNamed(keyengine.STS, row.operation)
		}
		if op == nil {
			t.Errorf("%s has a row and is no operation", row.operation)
			continue
		}
		seen[row.operation] = true
		if row.neverInvalid == "" {
			ask(op, "invalid", row.invalid, "ValidationError", admin)
		}
		if row.neverDenied == "" {
			ask(op, "denied", row.ok, "AccessDenied", eve)
		}
		switch {
		case row.neverFails != "":
		case row.failed == "":
			ask(op, "failed", missing(row.ok), "NoSuchEntity", admin)
		default:
			ask(op, "failed", row.failed, row.failure, admin)
		}
		if row.neverOK == "" {
			ask(op, "ok", row.ok, "", admin)
		}
	}
	for _, service := range []keyengine.Service{keyengine.IAM, keyengine.STS} {
		for _, op := range keyengine.OperationsOf(service) {
			if !seen[op.Name] && !op.Unsigned {
				t.Errorf("%s has no row in identityOutcomes: say how it succeeds and fails", op.Name)
			}
		}
	}

	// Records have the codes of one set for all services.
	recorded := map[string]string{"AccessDeniedException": "AccessDenied", "ValidationError": "ValidationException"}
	records := make(map[string]int)
	for _, line := range harness.ReadAudit(t, n, from) {
		w, ok := want[line.RequestID]
		if !ok {
			continue // this test reads
		}
		records[line.RequestID]++
		code := w.code
		if r, ok := recorded[code]; ok {
			code = r
		}
		if line.EventName != w.op.Name || line.ErrorCode != code {
			t.Errorf("%s, %s, answered %q: the record says %s, %q", w.op.Name, w.kind, w.code, line.EventName, line.ErrorCode)
		}
		if line.EventType != "AwsApiCall" || line.EventSource != string(w.op.Service)+".amazonaws.com" || line.SourceIPAddress != "127.0.0.1" ||
			line.UserIdentity.Type != "IAMUser" || line.UserIdentity.AccessKeyID != w.by.AccessKeyID || line.ReadOnly != w.op.ReadOnly {
			t.Errorf("%s, %s: %s", w.op.Name, w.kind, line.Raw)
		}
		if secret := w.by.SecretAccessKey; strings.Contains(line.Raw, secret) || strings.Contains(line.Raw, "SecretAccessKey") {
			t.Errorf("%s, %s: the record has a secret", w.op.Name, w.kind)
		}
	}
	for id, w := range want {
		if records[id] != 1 {
			t.Errorf("%s, %s: %d records, want one", w.op.Name, w.kind, records[id])
		}
	}
	t.Logf("%d requests of %d operations", len(want), len(seen))
}
