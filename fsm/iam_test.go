package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// otherAccount is an account beside the cluster's own.
const otherAccount Account = 444455556666

func uniqueID(prefix string, n int) string { return fmt.Sprintf("%s%017d", prefix, n) }

// with applies edits to a new message.
func with[M any](m M, edits []func(M)) M {
	for _, e := range edits {
		e(m)
	}
	return m
}

func testUser(name string, n int, edits ...func(*fsmpb.User)) *fsmpb.User {
	return with(&fsmpb.User{Account: uint64(account), Name: name, Path: "/", Id: uniqueID("AIDA", n), Created: start}, edits)
}

func testGroup(name string, n int, edits ...func(*fsmpb.Group)) *fsmpb.Group {
	return with(&fsmpb.Group{Account: uint64(account), Name: name, Path: "/", Id: uniqueID("AGPA", n), Created: start}, edits)
}

func testRole(name string, n int, edits ...func(*fsmpb.Role)) *fsmpb.Role {
	return with(&fsmpb.Role{Account: uint64(account), Name: name, Path: "/", Id: uniqueID("AROA", n), Created: start, Trust: "{}"}, edits)
}

// testPolicy has one version.
func testPolicy(name string, n int, edits ...func(*fsmpb.Policy)) *fsmpb.Policy {
	return with(&fsmpb.Policy{
		Account: uint64(account), Name: name, Path: "/", Id: uniqueID("ANPA", n), Created: start, DefaultVersion: 1, Newest: 1, Versions: []uint32{1},
	}, edits)
}

func testProvider(edits ...func(*fsmpb.OidcProvider)) *fsmpb.OidcProvider {
	return with(&fsmpb.OidcProvider{Account: uint64(account), Url: "issuer.test/a", Created: start, RevokedBefore: 5}, edits)
}

func testAccount(a Account, edits ...func(*fsmpb.Account)) *fsmpb.Account {
	return with(&fsmpb.Account{Account: uint64(a), Name: "other", Created: start}, edits)
}

func policyARN(name string) string { return "arn:aws:iam::" + account.String() + ":policy/" + name }

func putAccount(m *fsmpb.Account) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: m}}
}

func putUser(m *fsmpb.User) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: m}}
}

func putGroup(m *fsmpb.Group) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutGroup{PutGroup: m}}
}

func putRole(m *fsmpb.Role) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: m}}
}

func putManaged(m *fsmpb.Policy) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutPolicy{PutPolicy: m}}
}

func putMapping(pattern string, edits ...func(*fsmpb.CertificateMapping)) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutCertificateMapping{PutCertificateMapping: with(&fsmpb.CertificateMapping{
		Account: uint64(account), Pattern: pattern, PrincipalAccount: uint64(account), Principal: uniqueID("AIDA", 1), Created: start,
	}, edits)}}
}

func putProvider(m *fsmpb.OidcProvider) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: m}}
}

func putVersion(policy string, number uint32) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: &fsmpb.PolicyVersion{
		Account: uint64(account), Policy: policy, Number: number, Document: "{}", Created: start,
	}}}
}

// managedPolicy returns the changes that create a policy with its versions.
func managedPolicy(p *fsmpb.Policy) []*fsmpb.Change {
	changes := []*fsmpb.Change{putManaged(p)}
	for _, v := range p.Versions {
		changes = append(changes, edited(putVersion(p.Name, v), (*fsmpb.Change).GetPutPolicyVersion, func(v *fsmpb.PolicyVersion) { v.Account = p.Account }))
	}
	return changes
}

func entityNamed(name string) *fsmpb.EntityID {
	return &fsmpb.EntityID{Account: uint64(account), Name: name}
}

func deleteUser(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: entityNamed(name)}}
}

func deleteGroup(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteGroup{DeleteGroup: entityNamed(name)}}
}

func deleteRole(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: entityNamed(name)}}
}

func deletePolicy(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeletePolicy{DeletePolicy: entityNamed(name)}}
}

func deleteProvider(url string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteOidcProvider{DeleteOidcProvider: entityNamed(url)}}
}

func deleteMapping(pattern string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteCertificateMapping{DeleteCertificateMapping: &fsmpb.CertificateMappingID{Account: uint64(account), Pattern: pattern}}}
}

func deleteVersion(policy string, number uint32) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeletePolicyVersion{DeletePolicyVersion: &fsmpb.PolicyVersionID{Account: uint64(account), Policy: policy, Number: number}}}
}

func deleteCredential(id string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: uint64(account), Id: id}}}
}

// addIAM adds to the world another account, the users Ann, who has everything, and bob, who
// has nothing, the groups devs, with Ann in it, and empty, the role app, the managed policies
// Read, with the versions 2 and 3 of three, and spare, an identity provider and a certificate
// mapping.
func (w *world) addIAM(t *testing.T) {
	t.Helper()
	wantVerdicts(t, w.propose(
		record(slices.Concat([]*fsmpb.Change{putAccount(testAccount(otherAccount))},
			managedPolicy(testPolicy("Read", 1, func(p *fsmpb.Policy) { p.Path, p.Newest, p.Versions = "/team/", 3, []uint32{1, 2, 3} })),
			managedPolicy(testPolicy("spare", 2)))...),
		record(putGroup(testGroup("devs", 1, func(g *fsmpb.Group) { g.Policies = []string{policyARN("team/Read")} })), putGroup(testGroup("empty", 2)),
			putUser(ann()), credential(annsKey), putUser(testUser("bob", 2)), putRole(app()), putProvider(testProvider()), putMapping("spiffe://test/a")),
		record(deleteVersion("Read", 1), putManaged(readPolicy())),
		// The same names and unique ids in another account are others'.
		record(putUser(testUser("Ann", 1, func(u *fsmpb.User) { u.Account = uint64(otherAccount) }))),
	), Accepted, Accepted, Accepted, Accepted)
}

const annsKey = "AKIAANN"

func ann() *fsmpb.User {
	return testUser("Ann", 1, func(u *fsmpb.User) {
		u.Groups, u.Policies, u.Boundary = []string{uniqueID("AGPA", 1)}, []string{policyARN("team/Read"), "arn:aws:iam::aws:policy/ReadOnlyAccess"}, policyARN("team/Read")
		u.Inline = []*fsmpb.InlinePolicy{{Name: "own", Document: "{}"}}
		u.AccessKeys = []string{annsKey}
	})
}

func app() *fsmpb.Role {
	return testRole("app", 1, func(r *fsmpb.Role) { r.RevokedBefore, r.Boundary = 5, policyARN("team/Read") })
}

// readPolicy is the policy Read as the world has it.
func readPolicy() *fsmpb.Policy {
	return testPolicy("Read", 1, func(p *fsmpb.Policy) {
		p.Path, p.Newest, p.Versions, p.DefaultVersion = "/team/", 3, []uint32{2, 3}, 2
	})
}

// completeIAM has an object of each kind, with all fields set.
func completeIAM() []*fsmpb.Change {
	tags := []*fsmpb.Tag{{Key: "a", Value: "b"}}
	inline := []*fsmpb.InlinePolicy{{Name: "i", Document: `{"Id":"i"}`}}
	arns := []string{policyARN("p/all")}
	return append(managedPolicy(testPolicy("all", 1, func(p *fsmpb.Policy) {
		p.Path, p.Updated, p.Description, p.Tags = "/p/", start+1, "d", tags
	})),
		putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Alias = "others-2" })),
		putGroup(testGroup("devs", 1, func(g *fsmpb.Group) { g.Policies, g.Inline = arns, inline })),
		putUser(testUser("ann", 1, func(u *fsmpb.User) {
			u.Boundary, u.Policies, u.Inline, u.Tags, u.Groups, u.AccessKeys = arns[0], arns, inline, tags, []string{uniqueID("AGPA", 1)}, []string{annsKey}
		})),
		putRole(testRole("app", 1, func(r *fsmpb.Role) {
			r.Boundary, r.Policies, r.Inline, r.Tags, r.Description, r.MaxSession, r.RevokedBefore = arns[0], arns, inline, tags, "d", 3600, 7
			r.TrustBindings = []*fsmpb.Binding{{Name: "arn:aws:iam::000000000000:user/a", Id: uniqueID("AIDA", 1)}}
		})),
		putProvider(testProvider(func(p *fsmpb.OidcProvider) {
			p.ClientIds, p.Thumbprints, p.Tags, p.Jwks = []string{"c"}, []string{"t"}, tags, []byte("{}")
		})),
		putMapping("spiffe://test/a"),
	)
}

// userWith returns a record that changes a user who has nothing.
func userWith(edits ...func(*fsmpb.User)) func(*world) *fsmpb.Record {
	return func(*world) *fsmpb.Record { return record(putUser(testUser("bob", 2, edits...))) }
}

func policyWith(edits ...func(*fsmpb.Policy)) func(*world) *fsmpb.Record {
	return func(*world) *fsmpb.Record { return record(putManaged(with(readPolicy(), edits))) }
}

func annAs(edits ...func(*fsmpb.User)) *fsmpb.Change { return putUser(with(ann(), edits)) }

func called(name string) func(*fsmpb.User) { return func(u *fsmpb.User) { u.Name = name } }

func inGroups(ids ...string) func(*fsmpb.User) { return func(u *fsmpb.User) { u.Groups = ids } }

func withPolicies(arns ...string) func(*fsmpb.User) {
	return func(u *fsmpb.User) { u.Policies = arns }
}

func tagged(keys ...string) func(*fsmpb.User) {
	return func(u *fsmpb.User) {
		for _, k := range keys {
			u.Tags = append(u.Tags, &fsmpb.Tag{Key: k})
		}
	}
}

func withInline(name, doc string) func(*fsmpb.User) {
	return func(u *fsmpb.User) { u.Inline = []*fsmpb.InlinePolicy{{Name: name, Document: doc}} }
}

// padded returns a policy document of n bytes.
func padded(n int) string { return `{"Id":"` + strings.Repeat("x", n-9) + `"}` }

// large makes a user that is encoded in n bytes.
func large(n int) func(*fsmpb.User) {
	return func(u *fsmpb.User) {
		for i := 0; proto.Size(u) < n-40000; i++ {
			u.Inline = append(u.Inline, &fsmpb.InlinePolicy{Name: fmt.Sprintf("p%03d", i), Document: padded(32768)})
		}
		u.Tags = []*fsmpb.Tag{{Key: "k", Value: strings.Repeat("x", 20000)}}
		u.Tags[0].Value += strings.Repeat("x", n-proto.Size(u))
	}
}

func manyTags(n int) func(*fsmpb.User) {
	return func(u *fsmpb.User) {
		for i := range n {
			u.Tags = append(u.Tags, &fsmpb.Tag{Key: fmt.Sprintf("t%04d", i)})
		}
	}
}

// The rules of IAM. They are about [world.addIAM].
var iamRuleCases = []ruleCase{
	// Accounts.
	{"it names an account that does not exist", "user", changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Account = 777788889999 }))),
		changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Account = 777788889999 })), putAccount(testAccount(777788889999)))},
	{"it names an account that does not exist", "read in another", func(*world) *fsmpb.Record {
		return reads(record(), fsmpb.Kind_KIND_USER, EntityID(777788889999, "x"), 3)
	}, func(w *world) *fsmpb.Record {
		_, v := Object[*fsmpb.User](w.fsm.Current(), EntityID(otherAccount, "ann"))
		return reads(record(), fsmpb.Kind_KIND_USER, EntityID(otherAccount, "ann"), v)
	}},
	{"an account has no valid number", "", changing(putAccount(testAccount(accounts))), changing(putAccount(testAccount(accounts - 1)))},
	{"an account has no creation date", "", changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Created = 0 }))), changing(putAccount(testAccount(1)))},
	{"an account has no valid name or alias", "name", changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Name = strings.Repeat("x", 256) }))),
		changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Name = strings.Repeat("x", 255) })))},
	{"an account has no valid name or alias", "alias", changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Alias = "A" }))),
		changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Alias = strings.Repeat("a", 63) })))},
	{"an account has no valid name or alias", "long alias", changing(putAccount(testAccount(1, func(a *fsmpb.Account) { a.Alias = strings.Repeat("a", 64) }))), nil},
	{"an account has no valid name or alias", "number of the cluster's", changing(putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Alias = account.String() }))),
		changing(putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Alias = account.String()[1:] })))},
	{"it changes the creation date of an account", "", changing(putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Created++ }))),
		changing(putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Name = "x" })))},

	// Names.
	{"a user has no valid name", "zero byte", changing(putUser(testUser("x\x00y", 9))), changing(putUser(testUser("x_+=,.@-Y0", 9)))},
	{"a user has no valid name", "slash", changing(putUser(testUser("x/y", 9))), nil},
	{"a user has no valid name", "not ASCII", changing(putUser(testUser("Ä", 9))), nil},
	{"a user has no valid name", "deleted", changing(deleteUser("x/y")), changing(deleteUser("bob"))},
	{"a group has no valid name", "", changing(putGroup(testGroup("x y", 9))), changing(putGroup(testGroup("xy", 9)))},
	{"a group has no valid name", "deleted", changing(deleteGroup("x y")), changing(deleteGroup("empty"))},
	{"a role has no valid name", "", changing(putRole(testRole("x:y", 9))), changing(putRole(testRole("xy", 9)))},
	{"a role has no valid name", "deleted", changing(deleteRole("x:y")), changing(deleteRole("app"))},
	{"a managed policy has no valid name", "", changing(managedPolicy(testPolicy("x\x00\x00\x00\x00\x01", 9))...), changing(managedPolicy(testPolicy("x", 9))...)},
	{"a managed policy has no valid name", "deleted", changing(deletePolicy("x/y")), changing(deletePolicy("spare"))},
	{"a version of a managed policy has no valid policy or number", "number", changing(putVersion("Read", 0)), nil},
	{"a version of a managed policy has no valid policy or number", "policy", changing(putVersion("Read\x00\x00\x00\x00\x02", 1)), nil},
	{"a version of a managed policy has no valid policy", "", changing(deleteVersion("Read\x00\x00\x00\x00\x02", 1)), nil},
	{"an identity provider has no valid URL", "", changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.Url = "issuer.test/\x00" }))),
		changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.Url = "issuer.test/~b?c" })))},
	{"an identity provider has no valid name", "", changing(deleteProvider("issuer.test/ ")), changing(deleteProvider("issuer.test/a"))},

	// Entities.
	{"an entity has more than 262144 bytes", "", userWith(large(262145)), userWith(large(262144))},
	{"an entity has no unique id of its kind", "short", changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Id = "AIDA00000000009" }))),
		changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Id = "AIDA000000000009" })))},
	{"an entity has no unique id of its kind", "long", changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Id = "AIDA" + strings.Repeat("0", 125) }))),
		changing(putUser(testUser("x", 9, func(u *fsmpb.User) { u.Id = "AIDA" + strings.Repeat("0", 124) })))},
	{"an entity has no unique id of its kind", "of another", changing(putGroup(testGroup("x", 9, func(g *fsmpb.Group) { g.Id = uniqueID("AIDA", 9) }))), nil},
	{"an entity has no unique id of its kind", "lower case", changing(putRole(testRole("x", 9, func(r *fsmpb.Role) { r.Id = "AROAabcdefghijklm" }))), nil},
	{"an entity has no valid path", "", userWith(func(u *fsmpb.User) { u.Path = "/a" }), userWith(func(u *fsmpb.User) { u.Path = "/a/" })},
	{"an entity has no valid path", "long", userWith(func(u *fsmpb.User) { u.Path = "/" + strings.Repeat("a", 511) + "/" }), userWith(func(u *fsmpb.User) { u.Path = "/" + strings.Repeat("a", 510) + "/" })},
	{"an entity has no valid path", "space", userWith(func(u *fsmpb.User) { u.Path = "/ /" }), userWith(func(u *fsmpb.User) { u.Path = "/:/" })},
	{"it gives an entity the unique id of another one", "user", changing(putUser(testUser("x", 1))), changing(putUser(testUser("x", 9)))},
	{"it gives an entity the unique id of another one", "group", changing(putGroup(testGroup("x", 1))), nil},
	{"it gives an entity the unique id of another one", "role", changing(putRole(testRole("x", 1))), nil},
	{"it gives an entity the unique id of another one", "policy", changing(managedPolicy(testPolicy("x", 1))...), nil},
	{"it gives an entity the unique id of another one", "in the record", changing(putUser(testUser("x", 9)), putUser(testUser("y", 9))), changing(putUser(testUser("x", 9)), putUser(testUser("y", 10)))},
	{"it gives an entity the unique id of another one", "renamed twice", changing(deleteUser("bob"), putUser(testUser("x", 2)), putUser(testUser("y", 2))), changing(deleteUser("bob"), putUser(testUser("y", 2)))},
	{"it gives an entity the unique id of another one", "and keeps it", changing(putUser(testUser("bob", 2)), putUser(testUser("x", 2))), changing(putUser(testUser("BOB", 2)))},
	{"it changes the unique id or creation date of an entity", "id", changing(putUser(testUser("bob", 9))), nil},
	{"it changes the unique id or creation date of an entity", "date", userWith(func(u *fsmpb.User) { u.Created++ }), userWith(func(u *fsmpb.User) { u.Path = "/x/" })},
	{"it changes the unique id or creation date of an entity", "renamed", changing(deleteUser("bob"), putUser(testUser("x", 2, func(u *fsmpb.User) { u.Created++ }))), nil},

	// What entities have.
	{"the policies or tags of an entity are not in order, or too many", "policies", userWith(withPolicies("arn:aws:iam::aws:policy/B", "arn:aws:iam::aws:policy/A")),
		userWith(withPolicies("arn:aws:iam::aws:policy/A", "arn:aws:iam::aws:policy/B"))},
	{"the policies or tags of an entity are not in order, or too many", "a policy twice", userWith(withPolicies(policyARN("spare"), policyARN("spare"))), userWith(withPolicies(policyARN("spare")))},
	{"the policies or tags of an entity are not in order, or too many", "tags", userWith(tagged("b", "a")), userWith(tagged("a", "b"))},
	{"the policies or tags of an entity are not in order, or too many", "many tags", userWith(manyTags(257)), userWith(manyTags(256))},
	{"the policies or tags of an entity are not in order, or too many", "inline", changing(putGroup(testGroup("empty", 2, func(g *fsmpb.Group) {
		g.Inline = []*fsmpb.InlinePolicy{{Name: "b", Document: "{}"}, {Name: "a", Document: "{}"}}
	}))), changing(putGroup(testGroup("empty", 2, func(g *fsmpb.Group) {
		g.Inline = []*fsmpb.InlinePolicy{{Name: "a", Document: "{}"}, {Name: "b", Document: "{}"}}
	})))},
	{"an inline policy has no valid name or document", "no name", userWith(withInline("", "{}")), userWith(withInline(strings.Repeat("x", 128), padded(32768)))},
	{"an inline policy has no valid name or document", "long name", userWith(withInline(strings.Repeat("x", 129), "{}")), nil},
	{"an inline policy has no valid name or document", "name", userWith(withInline("a/b", "{}")), nil},
	{"an inline policy has no valid name or document", "document", userWith(withInline("x", "[]")), nil},
	{"an inline policy has no valid name or document", "long", userWith(withInline("x", padded(32769))), nil},
	{"it attaches a managed policy that does not exist", "user", userWith(withPolicies(policyARN("none"))), userWith(withPolicies(policyARN("spare")))},
	{"it attaches a managed policy that does not exist", "boundary", userWith(func(u *fsmpb.User) { u.Boundary = policyARN("none") }), userWith(func(u *fsmpb.User) { u.Boundary = policyARN("spare") })},
	{"it attaches a managed policy that does not exist", "without its path", userWith(withPolicies(policyARN("Read"))), userWith(withPolicies(policyARN("team/Read")))},
	{"it attaches a managed policy that does not exist", "in another case", userWith(withPolicies(policyARN("team/READ"))), nil},
	{"it attaches a managed policy that does not exist", "of another partition", userWith(withPolicies("arn:aws-cn:iam::" + account.String() + ":policy/spare")), nil},
	{"it attaches a managed policy that does not exist", "of another account", userWith(withPolicies("arn:aws:iam::" + otherAccount.String() + ":policy/spare")), nil},
	{"it attaches a managed policy that does not exist", "no ARN", userWith(withPolicies("spare")), nil},
	{"it attaches a managed policy that does not exist", "a role", userWith(withPolicies("arn:aws:iam::aws:role/x")), nil},
	{"it attaches a managed policy that does not exist", "role", changing(putRole(testRole("x", 9, func(r *fsmpb.Role) { r.Policies = []string{policyARN("none")} }))), nil},
	{"it attaches a managed policy that does not exist", "group", changing(putGroup(testGroup("x", 9, func(g *fsmpb.Group) { g.Policies = []string{policyARN("none")} }))),
		changing(append(managedPolicy(testPolicy("none", 9)), putGroup(testGroup("x", 9, func(g *fsmpb.Group) { g.Policies = []string{policyARN("none")} })))...)},
	{"it attaches a managed policy that does not exist", "deleted", changing(deletePolicy("spare"), putUser(testUser("bob", 2, withPolicies(policyARN("spare"))))), changing(deletePolicy("spare"))},
	{"the groups or access keys of a user are not in order, or too many", "groups", userWith(inGroups(uniqueID("AGPA", 2), uniqueID("AGPA", 1))), userWith(inGroups(uniqueID("AGPA", 1), uniqueID("AGPA", 2)))},
	{"the groups or access keys of a user are not in order, or too many", "twice", userWith(func(u *fsmpb.User) { u.AccessKeys = []string{"B", "A", "B"} }), userWith(func(u *fsmpb.User) { u.AccessKeys = []string{"B", "A"} })},
	{"it puts a user into a group that does not exist", "none", userWith(inGroups(uniqueID("AGPA", 9))),
		func(w *world) *fsmpb.Record {
			return record(putGroup(testGroup("x", 9)), putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 9)))))
		}},
	{"it puts a user into a group that does not exist", "deleted", changing(deleteGroup("empty"), putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 2))))),
		changing(deleteGroup("empty"), putGroup(testGroup("full", 2)), putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 2)))))},
	{"it puts a user into a group that does not exist", "of another account", changing(putUser(testUser("Ann", 1, func(u *fsmpb.User) { u.Account, u.Groups = uint64(otherAccount), []string{uniqueID("AGPA", 1)} }))), nil},
	{"it deletes a user who has access keys", "", changing(deleteUser("ann")), changing(deleteUser("ann"), deleteCredential(annsKey))},
	{"a trust policy is not a JSON object of at most 32768 bytes", "", changing(putRole(testRole("x", 9, func(r *fsmpb.Role) { r.Trust = "" }))),
		changing(putRole(testRole("x", 9, func(r *fsmpb.Role) { r.Trust = padded(32768) })))},
	{"a binding of a policy has no valid name or unique id", "trust", changing(putRole(testRole("x", 9, func(r *fsmpb.Role) { r.TrustBindings = []*fsmpb.Binding{{Name: "a"}} }))), nil},
	{"it restores sessions that were revoked", "role", changing(putRole(with(app(), []func(*fsmpb.Role){func(r *fsmpb.Role) { r.RevokedBefore-- }}))),
		changing(putRole(with(app(), []func(*fsmpb.Role){func(r *fsmpb.Role) { r.RevokedBefore++ }})))},
	{"it restores sessions that were revoked", "renamed", changing(deleteRole("app"), putRole(testRole("x", 1))), changing(deleteRole("app"), putRole(testRole("x", 9)))},
	{"it restores sessions that were revoked", "provider", changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.RevokedBefore-- }))),
		changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.RevokedBefore++ })))},
	{"an identity provider is too large", "", changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.Jwks = make([]byte, 262144) }))),
		changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.Jwks = make([]byte, 262000) })))},
	{"an identity provider is too large", "clients", changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.ClientIds = make([]string, 257) }))),
		changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.ClientIds = make([]string, 256) })))},
	{"a certificate mapping has no valid pattern", "node", changing(putMapping("conclave://node/n1")), changing(putMapping("conclave://operator/n1"))},
	{"a certificate mapping has no valid pattern", "operators", changing(putMapping("conclave://operator/*")), nil},
	{"a certificate mapping has no principal", "", changing(putMapping("spiffe://test/b", func(m *fsmpb.CertificateMapping) { m.Principal = "" })), changing(putMapping("spiffe://test/b"))},
	{"a certificate mapping has no creation date", "", changing(putMapping("spiffe://test/b", func(m *fsmpb.CertificateMapping) { m.Created = 0 })), nil},
	{"it changes a certificate mapping", "", changing(putMapping("spiffe://test/a")), nil},
	{"it changes the creation date of an identity provider", "", changing(putProvider(testProvider(func(p *fsmpb.OidcProvider) { p.Created++ }))), nil},

	// Managed policies and their versions.
	{"the versions or tags of a managed policy are not in order, or too many", "", policyWith(func(p *fsmpb.Policy) { p.Versions = []uint32{3, 2} }), policyWith()},
	{"the default version of a managed policy does not exist", "", policyWith(func(p *fsmpb.Policy) { p.DefaultVersion = 1 }), policyWith(func(p *fsmpb.Policy) { p.DefaultVersion = 3 })},
	{"the default version of a managed policy does not exist", "none", policyWith(func(p *fsmpb.Policy) { p.Versions = nil }), nil},
	{"the new versions of a managed policy have not the next numbers", "a used one", changing(putVersion("Read", 1), putManaged(with(readPolicy(), []func(*fsmpb.Policy){func(p *fsmpb.Policy) { p.Versions = []uint32{1, 2, 3} }}))),
		changing(putVersion("Read", 4), putManaged(with(readPolicy(), []func(*fsmpb.Policy){func(p *fsmpb.Policy) { p.Versions, p.Newest = []uint32{2, 3, 4}, 4 }})))},
	{"the new versions of a managed policy have not the next numbers", "gap", changing(putVersion("Read", 5), putManaged(with(readPolicy(), []func(*fsmpb.Policy){func(p *fsmpb.Policy) { p.Versions, p.Newest = []uint32{2, 3, 5}, 5 }}))), nil},
	{"the new versions of a managed policy have not the next numbers", "newest", policyWith(func(p *fsmpb.Policy) { p.Newest = 1<<32 - 1 }), nil},
	{"the new versions of a managed policy have not the next numbers", "newest, back", policyWith(func(p *fsmpb.Policy) { p.Newest = 2 }), nil},
	{"a managed policy has other versions than it lists", "one that it lost", policyWith(func(p *fsmpb.Policy) { p.Versions = []uint32{2} }),
		changing(putManaged(with(readPolicy(), []func(*fsmpb.Policy){func(p *fsmpb.Policy) { p.Versions = []uint32{2} }})), deleteVersion("read", 3))},
	{"a managed policy has other versions than it lists", "one that is not stored", policyWith(func(p *fsmpb.Policy) { p.Versions, p.Newest = []uint32{2, 3, 4}, 4 }), nil},
	{"a managed policy has other versions than it lists", "one that it does not list", changing(putVersion("Read", 4)), nil},
	{"it changes the name or path of a managed policy", "path", policyWith(func(p *fsmpb.Policy) { p.Path = "/" }), policyWith(func(p *fsmpb.Policy) { p.Updated = start + 1 })},
	{"it changes the name or path of a managed policy", "name", policyWith(func(p *fsmpb.Policy) { p.Name = "read" }), nil},
	{"it stores a version of a managed policy that does not exist", "", changing(putVersion("none", 1)), nil},
	{"it stores a version of a managed policy that does not exist", "deleted", changing(deletePolicy("spare"), putVersion("spare", 2)), nil},
	{"it changes a version of a managed policy", "", changing(edited(putVersion("Read", 2), (*fsmpb.Change).GetPutPolicyVersion, func(v *fsmpb.PolicyVersion) { v.Document = `{"Id":"x"}` })), nil},
	{"a version of a managed policy is not a JSON object of at most 32768 bytes", "", changing(putManaged(testPolicy("x", 9)), edited(putVersion("x", 1), (*fsmpb.Change).GetPutPolicyVersion, func(v *fsmpb.PolicyVersion) { v.Document = padded(32769) })),
		changing(putManaged(testPolicy("x", 9)), edited(putVersion("x", 1), (*fsmpb.Change).GetPutPolicyVersion, func(v *fsmpb.PolicyVersion) { v.Document = padded(32768) }))},
	{"it deletes a version that a managed policy lists", "", changing(deleteVersion("Read", 3)), nil},
	{"it deletes a version that a managed policy lists", "the default", changing(deleteVersion("Read", 2), putManaged(readPolicy())), nil},
	{"it deletes a version that a managed policy lists", "of a deleted policy", changing(deletePolicy("spare"), deleteVersion("spare", 1)), changing(deletePolicy("spare"))},
}

// checkIAM computes from the entities alone what the state says about them.
func checkIAM(t *testing.T, s *State) {
	t.Helper()
	type set struct {
		kind fsmpb.Kind
		id   string
	}
	counts := make(map[set]uint32)
	ids := make(map[string]bool)
	entity := func(account uint64, id string, found bool) {
		t.Helper()
		one := Account(account).String() + id
		if ids[one] {
			t.Fatalf("index %d: two entities have the unique id %s", s.index, one)
		}
		if ids[one] = true; !found {
			t.Fatalf("index %d: the entity with the unique id %s is not found by it", s.index, one)
		}
	}
	attached := func(account uint64, arns ...string) {
		t.Helper()
		used := make(map[string]bool)
		for _, arn := range arns {
			if path, own := strings.CutPrefix(arn, "arn:aws:iam::"+Account(account).String()+":policy/"); own {
				used[EntityName(path[strings.LastIndex(path, "/")+1:])] = true
			}
		}
		for name := range used {
			id := EntityID(Account(account), name)
			if p, _ := Object[*fsmpb.Policy](s, id); p == nil {
				t.Fatalf("index %d: the policy %s is attached and does not exist", s.index, name)
			}
			counts[set{fsmpb.Kind_KIND_POLICY_USES, string(id)}]++
		}
	}
	texts := 0
	// Having finds the object by its texts, each time after the one before it.
	found := func(a uint64, attached []string, more []string, has func(a Account, text string) bool) {
		t.Helper()
		for _, text := range append(slices.Clone(attached), more...) {
			if texts++; !has(Account(a), text) {
				t.Fatalf("index %d: an object of %d is not found by %q", s.index, a, text)
			}
		}
	}
	bounded := func(boundary string) []string {
		if boundary == "" {
			return nil
		}
		return []string{BoundedBy(boundary)}
	}
	users := 0
	for u := range Objects[*fsmpb.User](s, nil, "") {
		users++
		entity(u.Account, u.Id, UserByID(s, Account(u.Account), u.Id) == u)
		attached(u.Account, append(slices.Clone(u.Policies), u.Boundary)...)
		found(u.Account, u.Policies, append(bounded(u.Boundary), u.Groups...), func(a Account, text string) bool { return having(s, a, text, u) })
		for _, id := range u.Groups {
			if GroupByID(s, Account(u.Account), id) == nil {
				t.Fatalf("index %d: %s is in a group that does not exist", s.index, u.Name)
			}
			counts[set{fsmpb.Kind_KIND_GROUP_MEMBERS, string(GroupMembersID(Account(u.Account), id))}]++
		}
	}
	for g := range Objects[*fsmpb.Group](s, nil, "") {
		entity(g.Account, g.Id, GroupByID(s, Account(g.Account), g.Id) == g)
		attached(g.Account, g.Policies...)
		found(g.Account, g.Policies, nil, func(a Account, text string) bool { return having(s, a, text, g) })
	}
	for r := range Objects[*fsmpb.Role](s, nil, "") {
		entity(r.Account, r.Id, RoleByID(s, Account(r.Account), r.Id) == r)
		attached(r.Account, append(slices.Clone(r.Policies), r.Boundary)...)
		found(r.Account, r.Policies, bounded(r.Boundary), func(a Account, text string) bool { return having(s, a, text, r) })
	}
	for c := range Objects[*fsmpb.Credential](s, nil, "") {
		if strings.HasPrefix(c.Principal, "arn:") {
			found(c.Account, nil, []string{c.Principal}, func(a Account, text string) bool {
				return slices.Contains(slices.Collect(Having[*fsmpb.Credential](s, a, text, "")), c)
			})
		}
	}
	if n := s.db.texts.Len(); n != texts {
		t.Fatalf("index %d: objects are found by %d texts, and have %d", s.index, n, texts)
	}
	versions := 0
	for p := range Objects[*fsmpb.Policy](s, nil, "") {
		for _, v := range p.Versions {
			if o, _ := Object[*fsmpb.PolicyVersion](s, PolicyVersionID(Account(p.Account), p.Name, v)); o == nil {
				t.Fatalf("index %d: version %d of %s does not exist", s.index, v, p.Name)
			}
		}
		versions += len(p.Versions)
	}
	for range Objects[*fsmpb.PolicyVersion](s, nil, "") {
		versions--
	}
	if versions != 0 || usersByID.in(s.db).Len() != users {
		t.Fatalf("index %d: %d versions of policies too many, %d of %d users in their index", s.index, -versions, usersByID.in(s.db).Len(), users)
	}
	for _, kind := range []fsmpb.Kind{fsmpb.Kind_KIND_GROUP_MEMBERS, fsmpb.Kind_KIND_POLICY_USES} {
		for m := range scan[proto.Message](s, kind, nil, nil) {
			id, _ := registry[kind].id(m)
			if one := (set{kind, string(id)}); registry[kind].counted(m) != counts[one] {
				t.Fatalf("index %d: %v %q counts %d, there are %d", s.index, kind, id, registry[kind].counted(m), counts[one])
			} else {
				delete(counts, one)
			}
		}
	}
	if len(counts) != 0 {
		t.Fatalf("index %d: nothing counts %v", s.index, counts)
	}
}

// having reports whether Having finds m by a text, in order, and not when it begins after m.
func having[M entity](s *State, a Account, text string, m M) bool {
	name, last, found := EntityName(m.GetName()), "", false
	for is := range Having[M](s, a, text, "") {
		if at := EntityName(is.GetName()); at <= last || Account(is.GetAccount()) != a {
			return false
		} else {
			last = at
		}
		found = found || is == m
	}
	for is := range Having[M](s, a, text, name) {
		if EntityName(is.GetName()) <= name {
			return false
		}
	}
	return found
}

// randomIAM makes a record of one to three changes of IAM, which often makes sense: it
// changes what is in the state, names what exists, and renames.
func randomIAM(rnd *rand.Rand, s *State) *fsmpb.Record {
	name := func(of string) string {
		n := of + fmt.Sprint(rnd.IntN(8))
		if rnd.IntN(2) == 0 {
			n = strings.ToUpper(n)
		}
		return n
	}
	id := func() int { return rnd.IntN(6) }
	arns := func() (arns []string) {
		for p := range Objects[*fsmpb.Policy](s, AccountID(account), "") {
			if rnd.IntN(3) == 0 {
				arns = append(arns, policyARN(p.Name))
			}
		}
		if rnd.IntN(9) == 0 {
			arns = append(arns, policyARN(name("p")))
		}
		slices.Sort(arns)
		return slices.Compact(arns)
	}
	boundary := func() string {
		if all := arns(); len(all) > 0 && rnd.IntN(3) == 0 {
			return all[0]
		}
		return ""
	}
	memberships := func() (ids []string) {
		for g := range Objects[*fsmpb.Group](s, AccountID(account), "") {
			if rnd.IntN(3) == 0 {
				ids = append(ids, g.Id)
			}
		}
		slices.Sort(ids)
		return ids
	}
	// again returns the entity that has the name, or else any of its kind, renamed.
	again := func(was, any bool) bool { return was && rnd.IntN(4) != 0 || !was && any && rnd.IntN(3) != 0 }
	user := func() (changes []*fsmpb.Change) {
		u := testUser(name("u"), id(), func(u *fsmpb.User) { u.Policies, u.Boundary, u.Groups = arns(), boundary(), memberships() })
		was, _ := Object[*fsmpb.User](s, EntityID(account, u.Name))
		holder := UserByID(s, account, u.Id)
		if again(was != nil, holder != nil) {
			if was != nil {
				u.Id = was.Id
			} else {
				changes = append(changes, deleteUser(holder.Name))
			}
		}
		return append(changes, putUser(u))
	}
	group := func() (changes []*fsmpb.Change) {
		g := testGroup(name("g"), id(), func(g *fsmpb.Group) { g.Policies = arns() })
		was, _ := Object[*fsmpb.Group](s, EntityID(account, g.Name))
		holder := GroupByID(s, account, g.Id)
		if again(was != nil, holder != nil) {
			if was != nil {
				g.Id = was.Id
			} else {
				changes = append(changes, deleteGroup(holder.Name))
			}
		}
		return append(changes, putGroup(g))
	}
	role := func() []*fsmpb.Change {
		r := testRole(name("r"), id(), func(r *fsmpb.Role) { r.Policies, r.Boundary = arns(), boundary() })
		if was, _ := Object[*fsmpb.Role](s, EntityID(account, r.Name)); was != nil {
			r.Id, r.RevokedBefore = was.Id, was.RevokedBefore+int64(rnd.IntN(2))
		}
		return []*fsmpb.Change{putRole(r)}
	}
	managed := func() []*fsmpb.Change {
		p := testPolicy(name("p"), id())
		was, _ := Object[*fsmpb.Policy](s, EntityID(account, p.Name))
		if was == nil {
			return managedPolicy(p)
		}
		p = proto.CloneOf(was)
		if len(p.Versions) > 2 {
			gone := p.Versions[0]
			p.Versions, p.DefaultVersion = p.Versions[1:], p.Newest
			return []*fsmpb.Change{putManaged(p), deleteVersion(p.Name, gone)}
		}
		p.Newest++
		p.Versions = append(p.Versions, p.Newest)
		return []*fsmpb.Change{putVersion(p.Name, p.Newest), putManaged(p)}
	}
	var changes []*fsmpb.Change
	for range 1 + rnd.IntN(2) {
		switch rnd.IntN(10) {
		case 0, 1, 2:
			changes = append(changes, user()...)
		case 3, 4:
			changes = append(changes, group()...)
		case 5:
			changes = append(changes, role()...)
		case 6:
			changes = append(changes, managed()...)
		case 7:
			changes = append(changes, []*fsmpb.Change{
				deleteUser(name("u")), deleteGroup(name("g")), deleteRole(name("r")), deletePolicy(name("p")), deleteProvider("issuer.test/a"), deleteMapping("spiffe://test/a"),
			}[rnd.IntN(6)])
		case 8:
			changes = append(changes, putProvider(testProvider()), putMapping("spiffe://test/"+name("m")))
		case 9:
			changes = append(changes, putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Name = fmt.Sprint(rnd.IntN(9)) })))
		}
	}
	rnd.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
	return record(changes...)
}

// TestIAMIsConsistent: whatever is stored, replaced, deleted and renamed, in one record or in
// several, counts are exact, unique ids are unique and found, and a snapshot brings all of
// it back.
func TestIAMIsConsistent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	m := newMachine(t)
	verdicts, renamed := make(map[Verdict]int), 0
	for range 1500 {
		r := randomIAM(rnd, m.fsm.Current())
		v := m.propose(r)[0]
		verdicts[v]++
		deleted, put := false, false
		for _, c := range r.Changes {
			deleted, put = deleted || c.GetDeleteGroup() != nil, put || c.GetPutGroup() != nil
		}
		if v == Accepted && deleted && put {
			renamed++
		}
		checkIAM(t, m.fsm.Current())
		m.audit.entries, m.events = nil, nil
	}
	t.Logf("%v, %d groups renamed", verdicts, renamed)
	if verdicts[Accepted] < 300 || verdicts[Invalid] < 50 || verdicts[Conflict] < 20 || renamed < 5 {
		t.Errorf("verdicts %v, %d groups renamed: the records are not what this test needs", verdicts, renamed)
	}
	other := blank(t)
	if err := other.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(dump(other.fsm.Current()), dump(m.fsm.Current())) {
		t.Error("the restored state differs")
	}
	checkIAM(t, other.fsm.Current())
}

// TestIAMHashIsFixed is [TestStateHashIsFixed] for the kinds of IAM: the order in which
// counts change and in which objects go with others is part of the state hash.
func TestIAMHashIsFixed(t *testing.T) {
	defer func(was uint64) { requests = was }(requests)
	requests = 1 << 44
	w := &world{newMachine(t)}
	w.addIAM(t)
	wantVerdicts(t, w.propose(
		record(deleteGroup("devs"), putGroup(testGroup("Developers", 1))),
		record(putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 1), uniqueID("AGPA", 2)), withPolicies(policyARN("spare"), policyARN("team/Read"))))),
		record(putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 1)), withPolicies(policyARN("team/Read"))))),
		record(deletePolicy("spare"), deleteGroup("empty"), deleteProvider("issuer.test/a")),
		record(putUser(testUser("Bob2", 2)), deleteUser("bob")),
		record(deleteUser("ann"), deleteCredential(annsKey), deleteRole("app")),
	), Accepted, Accepted, Accepted, Accepted, Accepted, Accepted)
	const want = "c788b6fec94a0e0efdf9057b203caeeac8a78bd1ac37e98c3513fda62c7d4133"
	if got := fmt.Sprintf("%x", w.fsm.Current().Hash()); got != want {
		t.Errorf("the state hash is %s, was %s", got, want)
	}
	const wantDigest = "107c2d1c3639bff11efd7a21070dd802ecbb04fecb5587331c8fc8fdb9b30a9d"
	if got := fmt.Sprintf("%x", w.fsm.Current().Digest()); got != wantDigest {
		t.Errorf("the digest of the rows is %s, was %s", got, wantDigest)
	}
}

// TestSetsFollowTheirGroup: the set of a group's users is that of its unique id. It survives
// a renaming, in whatever order the record makes the changes, and is deleted with the
// group, which must be empty then.
func TestSetsFollowTheirGroup(t *testing.T) {
	for name, renaming := range map[string][]*fsmpb.Change{
		"deleted first": {deleteGroup("devs"), putGroup(testGroup("ops", 1))},
		"stored first":  {putGroup(testGroup("ops", 1)), deleteGroup("devs")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			set := GroupMembersID(account, uniqueID("AGPA", 1))
			members := func() int {
				n, _ := Count(w.fsm.Current(), fsmpb.Kind_KIND_GROUP_MEMBERS, set)
				return n
			}
			wantVerdicts(t, w.propose(record(deleteGroup("devs"))), Conflict)
			wantVerdicts(t, w.propose(record(renaming...)), Accepted)
			g := GroupByID(w.fsm.Current(), account, uniqueID("AGPA", 1))
			if g.GetName() != "ops" || members() != 1 {
				t.Fatalf("the group is %v, with %d users", g, members())
			}
			wantVerdicts(t, w.propose(record(deleteGroup("ops"))), Conflict)
			wantVerdicts(t, w.propose(record(annAs(inGroups())), record(deleteGroup("ops"))), Accepted, Accepted)
			if v := w.fsm.Current().VersionOf(fsmpb.Kind_KIND_GROUP_MEMBERS, set); v != 0 || GroupByID(w.fsm.Current(), account, g.Id) != nil {
				t.Errorf("the set of the group's users is still there, at version %d", v)
			}
			checkIAM(t, w.fsm.Current())
		})
	}
}

// TestRenamedEntitiesAreFound by their unique ids, in whatever order the record makes the
// changes, and in a restored state too.
func TestRenamedEntitiesAreFound(t *testing.T) {
	w := newWorld(t)
	wantVerdicts(t, w.propose(record(annAs(called("eve")), deleteUser("ANN"))), Accepted)
	wantVerdicts(t, w.propose(record(annAs(called("Eve")))), Accepted) // in place
	other := blank(t)
	if err := other.restore(w.snapshot()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{w.fsm.Current(), other.fsm.Current()} {
		if u := UserByID(s, account, uniqueID("AIDA", 1)); u.GetName() != "Eve" || u.Groups == nil {
			t.Errorf("the user is %v", u)
		}
		if u, _ := Object[*fsmpb.User](s, EntityID(account, "ANN")); u != nil {
			t.Errorf("the user's old name finds %v", u)
		}
		if u := UserByID(s, otherAccount, uniqueID("AIDA", 1)); u.GetName() != "Ann" {
			t.Errorf("the user of another account is %v", u)
		}
		checkIAM(t, s)
	}
}

// TestPolicyInUse: a managed policy cannot be deleted while anything has it.
func TestPolicyInUse(t *testing.T) {
	w := newWorld(t)
	wantVerdicts(t, w.propose(record(deletePolicy("read"))), Conflict)
	wantVerdicts(t, w.propose(
		record(annAs(func(u *fsmpb.User) { u.Policies, u.Boundary = nil, "" })), record(putGroup(testGroup("devs", 1))),
		record(deletePolicy("read")), // the role's boundary
	), Accepted, Accepted, Conflict)
	wantVerdicts(t, w.propose(
		record(putRole(with(app(), []func(*fsmpb.Role){func(r *fsmpb.Role) { r.Boundary = "" }}))), record(deletePolicy("read")),
	), Accepted, Accepted)
	s := w.fsm.Current()
	for _, v := range []uint32{1, 2, 3} {
		if o, _ := Object[*fsmpb.PolicyVersion](s, PolicyVersionID(account, "Read", v)); o != nil {
			t.Errorf("version %d is still there", v)
		}
	}
	if n, v := Count(s, fsmpb.Kind_KIND_POLICY_USES, EntityID(account, "Read")); n != 0 || v != 0 {
		t.Errorf("the set of its uses is still there: %d, at version %d", n, v)
	}
	if o, _ := Object[*fsmpb.PolicyVersion](s, PolicyVersionID(account, "spare", 1)); o == nil {
		t.Error("the version of another policy is gone")
	}
	checkIAM(t, s)
}

// TestSetsAreTouchedByMoves: the version of a set changes when an object enters or leaves it,
// and at no other change of the object.
func TestSetsAreTouchedByMoves(t *testing.T) {
	w := newWorld(t)
	version := func() Version {
		return w.fsm.Current().VersionOf(fsmpb.Kind_KIND_GROUP_MEMBERS, GroupMembersID(account, uniqueID("AGPA", 1)))
	}
	before := version()
	wantVerdicts(t, w.propose(record(annAs(tagged("a")))), Accepted)
	if v := version(); v != before {
		t.Errorf("tagging a user changed the set of the group's users from version %d to %d", before, v)
	}
	wantVerdicts(t, w.propose(record(putUser(testUser("bob", 2, inGroups(uniqueID("AGPA", 1)))))), Accepted)
	if v := version(); v != w.index {
		t.Errorf("version %d after a user was added, want %d", v, w.index)
	}
}

// TestLargestEntityFitsIntoASnapshot: what apply accepts, a snapshot brings back.
func TestLargestEntityFitsIntoASnapshot(t *testing.T) {
	w := newWorld(t)
	wantVerdicts(t, w.propose(userWith(large(level.LimitsAt(1).Entity))(w)), Accepted)
	other := blank(t)
	if err := other.restore(w.snapshot()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(dump(other.fsm.Current()), dump(w.fsm.Current())) {
		t.Error("the restored state differs")
	}
}

// TestAccounts: the cluster's own account comes first and needs no object, and a snapshot
// with objects of an account that does not exist is refused.
func TestAccounts(t *testing.T) {
	m := newMachine(t)
	accounts := func() []Account { return slices.Collect(Accounts(m.fsm.Current())) }
	if got := accounts(); !slices.Equal(got, []Account{account}) {
		t.Errorf("the accounts are %v", got)
	}
	if s := m.fsm.Current(); !AccountExists(s, account) || AccountExists(s, otherAccount) || AccountExists(s, 0) {
		t.Error("the wrong accounts exist")
	}
	// An alias of the cluster's own account makes it no other account.
	wantVerdicts(t, m.propose(record(putAccount(testAccount(account, func(a *fsmpb.Account) { a.Alias = "ours" })), putAccount(testAccount(otherAccount)), putAccount(testAccount(3)))), Accepted)
	if got := accounts(); !slices.Equal(got, []Account{account, 3, otherAccount}) {
		t.Errorf("the accounts are %v", got)
	}
	if s := m.fsm.Current(); AccountOf(s) != account || !AccountExists(s, account) || !AccountExists(s, otherAccount) || AccountExists(s, 4) {
		t.Error("the wrong accounts exist")
	}
	if got := slices.Collect(Accounts(blank(t).fsm.Current())); got != nil {
		t.Errorf("before init, the accounts are %v", got)
	}

	for _, exists := range []bool{true, false} {
		n := newRestored()
		items := []*fsmpb.SnapshotItem{
			{Item: &fsmpb.SnapshotItem_Cluster{Cluster: with(proto.CloneOf(theCluster().GetPutCluster()), []func(*fsmpb.Cluster){func(c *fsmpb.Cluster) { c.Version = 1 }})}},
			{Item: &fsmpb.SnapshotItem_User{User: testUser("x", 1, func(u *fsmpb.User) { u.Account, u.Version = 5, 1 })}},
		}
		if exists {
			items = append(items, &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Account{Account: testAccount(5, func(a *fsmpb.Account) { a.Version = 1 })}})
		}
		for _, item := range items {
			if err := n.add(item); err != nil {
				t.Fatal(err)
			}
		}
		if a, ok := n.orphan(); ok == exists || ok && a != 5 {
			t.Errorf("the account exists: %v, but an orphan is of %v: %v", exists, a, ok)
		}
	}
}

// TestUnsignedAccounts: before the cluster is initialised, nobody can make accounts, users or
// anything else of IAM, with the record that initialises it or without.
func TestUnsignedAccounts(t *testing.T) {
	for _, c := range completeIAM() {
		for _, changes := range [][]*fsmpb.Change{{c}, {theCluster(), c}} {
			m := blank(t)
			m.unsigned = true
			m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 1}}})
			if r := m.apply(batchEntry(m.unread(record(changes...)))).Batches[0]; r.Status != BatchUnsigned {
				t.Errorf("%v: the batch has status %v", c, r.Status)
			}
		}
	}
}
