package keyengine

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// This file has the methods of testCluster with which tests of STS put users, roles and
// accounts into the state, and sign in with temporary credentials.

// otherAccount is an account beside that of the cluster; see putAccount.
const otherAccount fsm.Account = 444455556666

func (c *testCluster) putAccount(a fsm.Account) {
	c.t.Helper()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: &fsmpb.Account{Account: uint64(a), Name: "other", Created: 1}}})
}

// rootOf gives the root user of an account a certificate and authenticates with it.
func (c *testCluster) rootOf(a fsm.Account) iam.Identity {
	c.t.Helper()
	return c.certificate(a, "arn:aws:iam::"+a.String()+":root")
}

// certificate gives a principal of an account a certificate and authenticates with it.
func (c *testCluster) certificate(a fsm.Account, principal string) iam.Identity {
	c.t.Helper()
	uri := "spiffe://test/" + principal
	c.Change(putSigned(c.t, c.engine, &fsmpb.Credential{
		Account: uint64(a), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: principal, Active: true, Created: 1,
	}))
	return c.identity(uri)
}

// putUser makes a user with an inline policy, "" for none, and authenticates as it.
func (c *testCluster) storeUser(a fsm.Account, name, doc string) iam.Identity {
	c.t.Helper()
	u := &fsmpb.User{Account: uint64(a), Name: name, Path: "/", Id: uniqueID("AIDA", a.String()+name), Created: 1}
	if doc != "" {
		u.Inline = []*fsmpb.InlinePolicy{{Name: "own", Document: doc}}
	}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}})
	return c.certificate(a, u.Id)
}

// putRole makes a role with a trust policy and an inline policy, "" for none, and returns its
// ARN.
func (c *testCluster) storeRole(a fsm.Account, name, trust, doc string) string {
	c.t.Helper()
	r := &fsmpb.Role{Account: uint64(a), Name: name, Path: "/", Id: uniqueID("AROA", a.String()+name), Created: 1, Trust: trust, MaxSession: 7200}
	r.TrustBindings = c.bindings(policy.TrustPolicy, trust)
	if doc != "" {
		r.Inline = []*fsmpb.InlinePolicy{{Name: "own", Document: doc}}
	}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: r}})
	return iam.RoleARN("aws", r)
}

// editRole changes a role.
func (c *testCluster) editRole(a fsm.Account, name string, edit func(*fsmpb.Role)) {
	c.t.Helper()
	r, _ := fsm.Object[*fsmpb.Role](c.State(), fsm.EntityID(a, name))
	if r == nil {
		c.t.Fatalf("no role %q", name)
	}
	r = proto.CloneOf(r)
	edit(r)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: r}})
}

// editTrust changes the trust policy of a role.
func (c *testCluster) editTrust(a fsm.Account, name, trust string) {
	c.t.Helper()
	c.editRole(a, name, func(r *fsmpb.Role) { r.Trust, r.TrustBindings = trust, c.bindings(policy.TrustPolicy, trust) })
}

// putPolicy makes a managed policy and returns its ARN.
func (c *testCluster) putPolicy(a fsm.Account, name, doc string) string {
	c.t.Helper()
	p := &fsmpb.Policy{Account: uint64(a), Name: name, Path: "/", Id: uniqueID("ANPA", a.String()+name), Created: 1, DefaultVersion: 1, Versions: []uint32{1}, Newest: 1}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutPolicy{PutPolicy: p}},
		&fsmpb.Change{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: &fsmpb.PolicyVersion{Account: uint64(a), Policy: name, Number: 1, Document: doc, Created: 1}}})
	return iam.PolicyARN("aws", p)
}

// trusts returns a trust policy that lets a principal assume a role, and pass tags and a
// source identity. A condition may be "".
func trusts(principal, condition string) string {
	if condition != "" {
		condition = `,"Condition":` + condition
	}
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + principal + `"},` +
		`"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"]` + condition + `}]}`
}

// identityPolicy returns a policy of a user or role with one statement.
func identityPolicy(effect, action, resource string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"` + effect + `","Action":"` + action + `","Resource":"` + resource + `"}]}`
}

// proofOf returns a proof that is made with temporary credentials, or with an access key if
// they have no token.
func proofOf(cr *iamapi.Credentials) sigv4.Proof {
	p := sigv4.Proof{AccessKeyID: *cr.AccessKeyId, Date: enginetest.SignatureDate, Region: testRegion, Service: "sts", StringToSign: []byte("to be signed")}
	if cr.SessionToken != nil {
		p.SessionToken = *cr.SessionToken
	}
	key := make([]byte, sigv4.KeySize)
	sigv4.Derive(key, []byte(*cr.SecretAccessKey), p.Date, p.Region, p.Service)
	h := hmac.New(sha256.New, key)
	h.Write(p.StringToSign)
	p.Signature = h.Sum(nil)
	return p
}

// withTemporary authenticates on a node with temporary credentials.
func (c *testCluster) withTemporary(e *Engine, cr *iamapi.Credentials) iam.Identity {
	c.t.Helper()
	id, err := e.AuthenticateSigV4(context.Background(), proofOf(cr))
	if err != nil {
		c.t.Fatalf("signing in with %s: %v", *cr.AccessKeyId, err)
	}
	if kind, _, ok := accesskey.Parse(*cr.AccessKeyId); !ok || kind != accesskey.Session {
		c.t.Fatalf("temporary credentials have the access key id %s", *cr.AccessKeyId)
	}
	return id
}

// assume assumes a role and returns the session's identity.
func (c *testCluster) assume(as iam.Identity, in *iamapi.AssumeRoleInput) iam.Identity {
	c.t.Helper()
	return c.withTemporary(c.engine, c.assumed(as, in).Credentials)
}

// assumed assumes a role.
func (c *testCluster) assumed(as iam.Identity, in *iamapi.AssumeRoleInput) *iamapi.AssumeRoleOutput {
	c.t.Helper()
	out, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, as, "AssumeRole", in)
	if err != nil {
		c.t.Fatalf("AssumeRole %s: %v", *in.RoleArn, err)
	}
	return out
}

// assumeInput returns the input of AssumeRole for a role.
func assumeInput(role string) *iamapi.AssumeRoleInput {
	return &iamapi.AssumeRoleInput{RoleArn: &role, RoleSessionName: new("test")}
}
