package keyengine

import (
	"crypto/sha256"
	"encoding/base32"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/policy"
)

// This file has the methods of testCluster with which tests write users, groups, roles and
// managed policies into the state, and get identities of them, without requests to IAM.

// uniqueID returns the unique id of an entity that tests name.
func uniqueID(prefix, name string) string {
	sum := sha256.Sum256([]byte(name))
	return prefix + base32.StdEncoding.EncodeToString(sum[:10]) + "A"
}

// inline is an inline policy.
func inline(statements ...string) []*fsmpb.InlinePolicy {
	return []*fsmpb.InlinePolicy{{Name: "inline", Document: policyDocument(statements...)}}
}

// allow is a statement of an identity policy.
func allow(action, resource string) string {
	return `{"Effect":"Allow","Action":"` + action + `","Resource":"` + resource + `"}`
}

// deny is a statement of an identity policy.
func deny(action, resource string) string {
	return `{"Effect":"Deny","Action":"` + action + `","Resource":"` + resource + `"}`
}

// putUser writes a user with the given name, as edit changes it.
func (c *testCluster) putUser(name string, edit func(*fsmpb.User)) {
	c.t.Helper()
	u, _ := fsm.Object[*fsmpb.User](c.State(), fsm.EntityID(testAccountNumber, name))
	if u == nil {
		u = &fsmpb.User{Account: uint64(testAccountNumber), Name: name, Path: "/", Id: uniqueID("AIDA", name), Created: 1}
	}
	u = proto.CloneOf(u)
	edit(u)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}})
}

// newIAMUser writes a user and returns an identity that was proved with a certificate.
func (c *testCluster) newIAMUser(name string, edit func(*fsmpb.User)) iam.Identity {
	c.t.Helper()
	c.putUser(name, edit)
	uri := "spiffe://test/user/" + name
	c.Change(putSigned(c.t, c.engine, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE,
		Principal: uniqueID("AIDA", name), Active: true, Created: 1,
	}))
	return c.identity(uri)
}

// putGroup writes a group and returns its unique id.
func (c *testCluster) putGroup(name string, edit func(*fsmpb.Group)) string {
	c.t.Helper()
	g, _ := fsm.Object[*fsmpb.Group](c.State(), fsm.EntityID(testAccountNumber, name))
	if g == nil {
		g = &fsmpb.Group{Account: uint64(testAccountNumber), Name: name, Path: "/", Id: uniqueID("AGPA", name), Created: 1}
	}
	g = proto.CloneOf(g)
	edit(g)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutGroup{PutGroup: g}})
	return g.Id
}

// putRole writes a role, which anybody in the account may assume.
func (c *testCluster) putRole(name string, edit func(*fsmpb.Role)) {
	c.t.Helper()
	r, _ := fsm.Object[*fsmpb.Role](c.State(), fsm.EntityID(testAccountNumber, name))
	if r == nil {
		r = &fsmpb.Role{
			Account: uint64(testAccountNumber), Name: name, Path: "/", Id: uniqueID("AROA", name), Created: 1, MaxSession: 3600,
			Trust: policyDocument(`{"Effect":"Allow","Principal":{"AWS":"` + testAccount + `"},"Action":"sts:AssumeRole"}`),
		}
	}
	r = proto.CloneOf(r)
	edit(r)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: r}})
}

// newSession returns an identity with temporary credentials of a role, for an hour from now.
func (c *testCluster) newSession(role string, edit func(*iampb.Session)) iam.Identity {
	c.t.Helper()
	now := c.Clock.Now()
	s := &iampb.Session{
		Account: uint64(testAccountNumber), AccessKey: "ASIAAAAAAAAAAAAAAAAA", Role: uniqueID("AROA", role), Name: "session",
		Issued: now.UnixNano(), Expires: now.Add(time.Hour).UnixNano(),
	}
	edit(s)
	b, err := proto.Marshal(s)
	if err != nil {
		c.t.Fatal(err)
	}
	p, err := policy.ParsePrincipal("arn:aws:sts::" + testAccount + ":assumed-role/" + role + "/session")
	if err != nil {
		c.t.Fatal(err)
	}
	id, err := iam.ForwardedIdentity(p, testAccountNumber, s.AccessKey, [32]byte{}, "", b)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// managedARN returns the ARN of a managed policy that putManaged writes.
func managedARN(name string) string { return "arn:aws:iam::" + testAccount + ":policy/" + name }

// putManaged writes a managed policy, or makes a new version of it the default one.
func (c *testCluster) putManaged(name string, statements ...string) {
	c.t.Helper()
	p, _ := fsm.Object[*fsmpb.Policy](c.State(), fsm.EntityID(testAccountNumber, name))
	if p == nil {
		p = &fsmpb.Policy{Account: uint64(testAccountNumber), Name: name, Path: "/", Id: uniqueID("ANPA", name), Created: 1}
	}
	p = proto.CloneOf(p)
	p.Newest++
	p.DefaultVersion, p.Versions = p.Newest, append(p.Versions, p.Newest)
	v := &fsmpb.PolicyVersion{Account: p.Account, Policy: name, Number: p.Newest, Document: policyDocument(statements...), Created: 1}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutPolicy{PutPolicy: p}}, &fsmpb.Change{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: v}})
}
