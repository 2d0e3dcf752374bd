package keyengine

import (
	"crypto/sha256"
	"encoding/base32"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
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

// idOf returns the unique id of a user or a role, or of the role of a session: the one in the
// state, or else the one that putUser and putRole would give to it.
func (c *testCluster) idOf(p policy.Principal) string {
	if id, ok := binding.Find(c.State(), p, nil); ok {
		id, _, _ := strings.Cut(id, ":")
		return id
	}
	prefix, name := "AROA", p.Name
	if p.Kind == policy.KindUser {
		prefix = "AIDA"
	}
	if p.Account != testAccount || p.Kind != policy.KindAssumedRole && strings.Count(p.ARN, "/") > 1 {
		name = p.ARN
	}
	return uniqueID(prefix, name)
}

// bindings returns what a policy that names principals is stored with.
func (c *testCluster) bindings(kind policy.Kind, text string) (list []*fsmpb.Binding) {
	c.t.Helper()
	doc, err := policy.Parse(kind, []byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range doc.Principals() {
		if p.HasID() {
			list = append(list, &fsmpb.Binding{Name: p.ARN, Id: c.idOf(p)})
		}
	}
	slices.SortFunc(list, func(a, b *fsmpb.Binding) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// party returns what a grant has in the place of a principal, and its account.
func (c *testCluster) party(arn string) (string, uint64) {
	c.t.Helper()
	p, err := policy.ParseCaller(arn)
	if err != nil {
		c.t.Fatal(err)
	}
	if !p.HasID() {
		return arn, 0
	}
	p.ID = c.idOf(p)
	account, _ := fsm.ParseAccount(p.Account)
	return p.UniqueID(), uint64(account)
}

// exist makes the users and the roles, given by their ARNs, that do not exist.
func (c *testCluster) exist(arns ...string) {
	c.t.Helper()
	for _, arn := range arns {
		p, err := policy.ParsePrincipal(arn)
		if err != nil {
			c.t.Fatal(err)
		}
		if _, ok := binding.Find(c.State(), p, nil); ok {
			continue
		}
		account, _ := fsm.ParseAccount(p.Account)
		if !fsm.AccountExists(c.State(), account) {
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: &fsmpb.Account{Account: uint64(account), Name: account.String(), Created: 1}}})
		}
		_, path, _ := strings.Cut(p.ARN, "/")
		path = "/" + strings.TrimSuffix(path, p.Name)
		switch p.Kind {
		case policy.KindUser:
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: &fsmpb.User{Account: uint64(account), Name: p.Name, Path: path, Id: c.idOf(p), Created: 1}}})
		case policy.KindRole:
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: &fsmpb.Role{
				Account: uint64(account), Name: p.Name, Path: path, Id: c.idOf(p), Created: 1, MaxSession: 3600,
				Trust: policyDocument(`{"Effect":"Allow","Principal":{"AWS":"` + p.Account + `"},"Action":"sts:AssumeRole"}`),
			}}})
		case policy.KindAssumedRole:
			c.exist(p.Role)
		}
	}
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
	id, err := iam.ForwardedIdentity(p, testAccountNumber, s.AccessKey, [32]byte{}, "", b, nil)
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
