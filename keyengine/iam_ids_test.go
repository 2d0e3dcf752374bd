package keyengine

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// deletePerson deletes a user whose only access key is that of newPerson.
func (c *testCluster) deletePerson(p *person) {
	c.t.Helper()
	must[request.None](c, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: &p.name, AccessKeyId: &p.key.AccessKeyID})
	must[request.None](c, "DeleteUser", &iamapi.DeleteUserInput{UserName: &p.name})
}

// mayEncrypt checks whether an identity may encrypt with a key on each node.
func (c *testCluster) mayEncrypt(id iam.Identity, key string, want bool, what string) {
	c.t.Helper()
	for name, e := range c.engines {
		_, err := callAs[kmsapi.EncryptOutput](c, e, id, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
		if (err == nil) != want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
			c.t.Errorf("%s: got error %v on %s, want allowed %v", what, err, name, want)
		}
	}
}

func (c *testCluster) policyOf(key string) string {
	c.t.Helper()
	return *must[kmsapi.GetKeyPolicyOutput](c, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &key}).Policy
}

// A key policy is for the users and roles that it named when it was stored. It shows what they
// are called now, or their unique ids once they are deleted, and can be stored again like that.
func TestKeyPolicyIsForUniqueIDs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	alice, bob := c.newPerson("alice"), c.newPerson("bob")
	c.newRole("app")
	key, _ := c.newKey()
	app := arnOf("role/app")
	doc := policyDocument(rootStatement, statement("Allow", alice.arn, "kms:Encrypt"), statement("Allow", bob.arn, "kms:Encrypt"), statement("Deny", app, "kms:Encrypt"))
	put := func(doc string) error {
		_, err := call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &key, Policy: &doc})
		return err
	}
	if err := put(doc); err != nil {
		t.Fatal(err)
	}
	session := c.assume(bob.identityWith(c, allow("sts:AssumeRole", "*")), assumeInput(app))
	must[request.None](c, "PutRolePolicy", &iamapi.PutRolePolicyInput{RoleName: new("app"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	c.mayEncrypt(alice.identity, key, true, "the user")
	c.mayEncrypt(bob.identity, key, true, "the other user")
	c.mayEncrypt(session, key, false, "a session of the role that is denied")
	if got := c.policyOf(key); got != doc {
		t.Errorf("GetKeyPolicy: got  %s\nwant %s", got, doc)
	}

	// A renamed user keeps its access, and the policy shows the new name.
	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: &bob.name, NewUserName: new("robert"), NewPath: new("/staff/")})
	other := c.newPerson("bob")
	c.mayEncrypt(bob.identity, key, true, "the renamed user")
	c.mayEncrypt(other.identity, key, false, "another user with its former name")
	renamed := strings.ReplaceAll(doc, bob.arn, arnOf("user/staff/robert"))
	if got := c.policyOf(key); got != renamed {
		t.Errorf("GetKeyPolicy after a user was renamed: got  %s\nwant %s", got, renamed)
	}

	// Who is made again under the same name is somebody else.
	must[request.None](c, "DeleteRolePolicy", &iamapi.DeleteRolePolicyInput{RoleName: new("app"), PolicyName: new("p")})
	role := *must[iamapi.GetRoleOutput](c, "GetRole", &iamapi.GetRoleInput{RoleName: new("app")}).Role.RoleId
	c.deletePerson(alice)
	must[request.None](c, "DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")})
	shown := strings.NewReplacer(alice.arn, alice.id, app, role).Replace(renamed)
	if got := c.policyOf(key); got != shown {
		t.Errorf("GetKeyPolicy after users were deleted: got  %s\nwant %s", got, shown)
	}
	again := c.newPerson("alice")
	c.newRole("app")
	must[request.None](c, "PutRolePolicy", &iamapi.PutRolePolicyInput{RoleName: new("app"), PolicyName: new("p"), PolicyDocument: new(policyDocument(allow("kms:*", "*")))})
	c.mayEncrypt(again.identity, key, false, "the next user of that name")
	c.refused(c.engine, session, "a session of a role that was deleted and made again")
	c.mayEncrypt(c.assume(bob.identity, assumeInput(app)), key, true, "a session of the next role of that name, which is not denied")
	if got := c.policyOf(key); got != shown {
		t.Errorf("GetKeyPolicy after users were made again: got  %s\nwant %s", got, shown)
	}

	// What is shown can be stored again, and a change of another statement with it.
	for _, doc := range []string{shown, strings.Replace(shown, "kms:Encrypt", "kms:*", 1), shown} {
		if err := put(doc); err != nil {
			t.Errorf("storing the policy as it was shown: %v", err)
		}
		if got := c.policyOf(key); got != doc {
			t.Errorf("GetKeyPolicy: got  %s\nwant %s", got, doc)
		}
	}
	c.mayEncrypt(again.identity, key, false, "the next user, after the policy was stored again")
	c.mayEncrypt(bob.identity, key, true, "the renamed user, after the policy was stored again")
	for name, who := range map[string]string{
		"of one who exists": again.id, "of one whom the policy names": bob.id, "of nobody": "AIDA234567ABCDEFGHIJK", "of a role as a session": role + ":one", "of a user as a role": "AROA" + alice.id[4:],
	} {
		wantError(t, put(policyDocument(rootStatement, statement("Allow", who, "kms:Encrypt"))), kmsapi.ErrMalformedPolicy, policy.InvalidPrincipalMessage)
		if got := c.policyOf(key); got != shown {
			t.Errorf("after a refused policy with a unique id %s, the policy is %s", name, got)
		}
	}
	// The name is that of the new user when it is stored again.
	if err := put(strings.ReplaceAll(shown, alice.id, alice.arn)); err != nil {
		t.Fatal(err)
	}
	c.mayEncrypt(again.identity, key, true, "the new user, once the policy names it")
	// A unique id that the policy no longer has is one of nobody.
	wantError(t, put(shown), kmsapi.ErrMalformedPolicy, policy.InvalidPrincipalMessage)
	_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{Policy: &shown})
	wantError(t, err, kmsapi.ErrMalformedPolicy, policy.InvalidPrincipalMessage)

	made := *must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{Policy: new(policyDocument(rootStatement, statement("Allow", again.arn, "kms:Encrypt")))}).KeyMetadata.KeyId
	c.mayEncrypt(again.identity, made, true, "with a policy of CreateKey")
	c.deletePerson(again)
	c.mayEncrypt(c.newPerson("alice").identity, made, false, "the third user of that name, with a policy of CreateKey")
}

// identityWith returns the identity of a person who also has the permissions in statements.
func (p *person) identityWith(c *testCluster, statements ...string) iam.Identity {
	c.t.Helper()
	must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &p.name, PolicyName: new("more"), PolicyDocument: new(policyDocument(statements...))})
	return p.identity
}

// A session named in a key policy is one of the role that had the name.
func TestSessionInKeyPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	ann := c.newPerson("ann")
	ann.identityWith(c, allow("sts:AssumeRole", "*"))
	app := c.newRole("app")
	id := *must[iamapi.GetRoleOutput](c, "GetRole", &iamapi.GetRoleInput{RoleName: new("app")}).Role.RoleId
	session := "arn:aws:sts::" + testAccount + ":assumed-role/app/test"
	key, _ := c.newKey()
	doc := policyDocument(rootStatement, statement("Allow", session, "kms:Encrypt"))
	must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &key, Policy: &doc})
	c.mayEncrypt(c.assume(ann.identity, assumeInput(app)), key, true, "the session")
	must[request.None](c, "DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")})
	if got, want := c.policyOf(key), strings.ReplaceAll(doc, session, id+":test"); got != want {
		t.Errorf("GetKeyPolicy: got  %s\nwant %s", got, want)
	}
	c.newRole("app")
	c.mayEncrypt(c.assume(ann.identity, assumeInput(app)), key, false, "a session of that name of the next role")
	must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &key, Policy: new(c.policyOf(key))})
}

// A trust policy is for the users and roles that it named when it was stored.
func TestTrustPolicyIsForUniqueIDs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	alice, bob := c.newPerson("alice"), c.newPerson("bob")
	doc := trust(`{"AWS":["` + alice.arn + `","` + bob.arn + `"]}`)
	must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: new("app"), AssumeRolePolicyDocument: &doc})
	assumes := func(who *person, want bool, what string) {
		t.Helper()
		for name, e := range c.engines {
			_, err := callAs[iamapi.AssumeRoleOutput](c, e, who.identity, "AssumeRole", assumeInput(arnOf("role/app")))
			if (err == nil) != want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s: got error %v on %s, want allowed %v", what, err, name, want)
			}
		}
	}
	shows := func(want string) {
		t.Helper()
		got := []string{*must[iamapi.GetRoleOutput](c, "GetRole", &iamapi.GetRoleInput{RoleName: new("app")}).Role.AssumeRolePolicyDocument}
		for _, r := range must[iamapi.ListRolesOutput](c, "ListRoles", &iamapi.ListRolesInput{}).Roles {
			got = append(got, *r.AssumeRolePolicyDocument)
		}
		for _, r := range must[iamapi.GetAccountAuthorizationDetailsOutput](c, "GetAccountAuthorizationDetails", &iamapi.GetAccountAuthorizationDetailsInput{}).RoleDetailList {
			got = append(got, *r.AssumeRolePolicyDocument)
		}
		got = append(got, *must[iamapi.UpdateRoleDescriptionOutput](c, "UpdateRoleDescription", &iamapi.UpdateRoleDescriptionInput{RoleName: new("app"), Description: new("d")}).Role.AssumeRolePolicyDocument)
		if !slices.Equal(got, []string{want, want, want, want}) {
			t.Errorf("the trust policy is shown as %q, want %s", got, want)
		}
	}
	assumes(alice, true, "the user")
	shows(doc)
	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: &bob.name, NewUserName: new("robert")})
	assumes(bob, true, "the renamed user")
	c.deletePerson(alice)
	shown := strings.NewReplacer(alice.arn, alice.id, bob.arn, arnOf("user/robert")).Replace(doc)
	shows(shown)
	again := c.newPerson("alice")
	assumes(again, false, "the next user of that name")
	update := func(doc string) error {
		_, err := call[request.None](c, "UpdateAssumeRolePolicy", &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("app"), PolicyDocument: &doc})
		return err
	}
	if err := update(shown); err != nil {
		t.Errorf("storing the policy as it was shown: %v", err)
	}
	shows(shown)
	assumes(again, false, "the next user, after the policy was stored again")
	for _, id := range []string{again.id, bob.id, "AROA234567ABCDEFGHIJK"} {
		wantError(t, update(trust(`{"AWS":"`+id+`"}`)), iamapi.ErrMalformedPolicyDocument, `Invalid principal in policy: "AWS":"`+id+`"`)
	}
	if err := update(doc); err == nil {
		t.Error("a policy with the former name of a user was stored")
	}
	if err := update(strings.ReplaceAll(shown, alice.id, again.arn)); err != nil {
		t.Error(err)
	}
	assumes(again, true, "the next user, once the policy names it")
}

// A grant is for the users and roles that it was made for, whatever they are called.
func TestGrantIsForUniqueIDs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	alice, bob := c.newPerson("alice"), c.newPerson("bob")
	key, arn := c.newKey()
	grant := func(grantee string) *kmsapi.CreateGrantOutput {
		t.Helper()
		return must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{
			KeyId: &key, GranteePrincipal: &grantee, RetiringPrincipal: &bob.arn, Operations: []string{"Encrypt"}, Name: new("n")})
	}
	first := grant(alice.arn)
	c.mayEncrypt(alice.identity, key, true, "the grantee")
	listed := func(filter *string) (list []string) {
		t.Helper()
		for _, g := range must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &key, GranteePrincipal: filter}).Grants {
			list = append(list, *g.GranteePrincipal+" "+*g.RetiringPrincipal)
		}
		slices.Sort(list)
		return list
	}
	same := func(what string, got []string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	same("grants", listed(nil), alice.arn+" "+bob.arn)

	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: &alice.name, NewUserName: new("alicia")})
	must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: &bob.name, NewUserName: new("robert")})
	alicia, robert := arnOf("user/alicia"), arnOf("user/robert")
	c.mayEncrypt(alice.identity, key, true, "the renamed grantee")
	same("grants after both were renamed", listed(nil), alicia+" "+robert)
	same("grants to the new name", listed(&alicia), alicia+" "+robert)
	same("grants to the former name", listed(&alice.arn))
	if again := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{
		KeyId: &key, GranteePrincipal: &alicia, RetiringPrincipal: &robert, Operations: []string{"Encrypt"}, Name: new("n")}); *again.GrantId != *first.GrantId {
		t.Error("the same request with the new names made another grant")
	}
	next := c.newPerson("alice")
	c.mayEncrypt(next.identity, key, false, "another user with the grantee's former name")

	alice.name = "alicia"
	c.deletePerson(alice)
	again := c.newPerson("alicia")
	c.mayEncrypt(again.identity, key, false, "the next user of the grantee's name")
	same("grants of a deleted user", listed(nil), alice.id+" "+robert)
	same("grants to the name of a deleted user", listed(&alicia))
	same("grants to a unique id", listed(&alice.id), alice.id+" "+robert)
	grant2 := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &alicia, RetiringPrincipal: &robert, Operations: []string{"Encrypt"}, Name: new("n")})
	if *grant2.GrantId == *first.GrantId {
		t.Error("the same request for another user of the name made no other grant")
	}
	c.mayEncrypt(again.identity, key, true, "the next user, with a grant of its own")
	for i, who := range []string{bob.arn, robert} {
		if got := must[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: &who}).Grants; len(got) != 2*i {
			t.Errorf("%s may retire %d grants, want %d", who, len(got), 2*i)
		}
	}
	if _, err := callAs[request.None](c, c.engine, c.newPerson("bob").identity, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: first.GrantId}); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("another user with the former name of the retiring principal: got error %v", err)
	}
	if _, err := callAs[request.None](c, c.engine, bob.identity, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: first.GrantId}); err != nil {
		t.Errorf("the renamed retiring principal: %v", err)
	}
}

// A grant to somebody who does not exist is refused, but only to those who may make grants.
func TestGrantToNobody(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	ann := c.newPerson("ann")
	c.newRole("app")
	key, _ := c.newKey()
	missing := []string{
		arnOf("user/nobody"), arnOf("user/path/ann"), arnOf("user/Ann"), arnOf("role/nobody"), "arn:aws:sts::" + testAccount + ":assumed-role/nobody/s1", "arn:aws:sts::" + testAccount + ":assumed-role/App/s1",
		"arn:aws:iam::444455556666:root", "arn:aws:iam::444455556666:user/ann", ann.id, "arn:aws:sts::" + testAccount + ":federated-user/ann",
	}
	for _, who := range missing {
		for _, in := range []*kmsapi.CreateGrantInput{
			{KeyId: &key, GranteePrincipal: &who, Operations: []string{"Encrypt"}}, {KeyId: &key, GranteePrincipal: &ann.arn, RetiringPrincipal: &who, Operations: []string{"Encrypt"}},
		} {
			c.fails("CreateGrant", in, kmsapi.ErrInvalidArn, "ARN does not refer to a valid principal")
		}
	}
	for _, who := range []string{ann.arn, arnOf("role/app"), "arn:aws:sts::" + testAccount + ":assumed-role/app/s1", arnOf("root")} {
		must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &who, RetiringPrincipal: &who, Operations: []string{"Encrypt"}})
	}
	var answers []string
	for _, who := range []string{ann.arn, arnOf("user/nobody")} {
		_, err := callAs[kmsapi.CreateGrantOutput](c, c.engine, ann.identity, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &who, Operations: []string{"Encrypt"}})
		answers = append(answers, err.Error())
	}
	if answers[0] != answers[1] {
		t.Errorf("who may make no grants is told who exists: %q", answers)
	}
}

// What is signed in with a user or a role that was deleted does not come back with the next
// one of the name: neither a session of the role, nor an access key or a session of the user.
func TestSessionsEndWithTheirPrincipal(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	alice := c.newPerson("alice", allow("*", "*"))
	c.newRole("app")
	input := assumeInput(arnOf("role/app"))
	role := c.assume(alice.identity, input)
	token := must[iamapi.GetSessionTokenOutput](c, "GetSessionToken", &iamapi.GetSessionTokenInput{})
	own, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, alice.identity, "GetSessionToken", &iamapi.GetSessionTokenInput{})
	if err != nil {
		t.Fatal(err)
	}
	session := c.withTemporary(c.engine, own.Credentials)
	must[request.None](c, "DeleteRole", &iamapi.DeleteRoleInput{RoleName: new("app")})
	must[request.None](c, "DeleteUserPolicy", &iamapi.DeleteUserPolicyInput{UserName: &alice.name, PolicyName: new("own")})
	c.deletePerson(alice)
	c.newRole("app")
	again := c.newPerson("alice", allow("*", "*"))
	for _, e := range c.engines {
		c.refused(e, role, "a session of a deleted role")
		c.refused(e, session, "a session of a deleted user")
		c.refused(e, alice.identity, "an access key of a deleted user")
		if _, err := e.AuthenticateSigV4(t.Context(), proofOf(own.Credentials)); err == nil {
			t.Error("temporary credentials of a deleted user sign in")
		}
	}
	// Nor with a credential that an honest node would not have left behind.
	c.Change(putSigned(t, c.engine, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "spiffe://test/left", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: alice.id, Active: true, Created: 1,
	}))
	if _, err := c.engine.AuthenticateCertificate(t.Context(), iam.Certificate{URI: "spiffe://test/left"}); err == nil {
		t.Error("a certificate of a deleted user signs in")
	}
	for _, principal := range []string{alice.id, again.id} {
		c.putMapping("spiffe://test/"+principal, principal)
		if _, err := c.engine.AuthenticateCertificate(t.Context(), iam.Certificate{URI: "spiffe://test/" + principal}); err == nil {
			t.Errorf("a certificate signs in that was mapped to %s before it existed", principal)
		}
	}
	c.withTemporary(c.engine, token.Credentials)
	c.assume(again.identity, input)
}

// A node that is behind binds a name to the user that has it when the policy or grant is
// stored, and shows what that user is called when the answer is given.
func TestBindingBehind(t *testing.T) {
	t.Parallel()
	recreate := func(c *testCluster) {
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "bob"}}})
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: &fsmpb.User{Account: uint64(testAccountNumber), Name: "bob", Path: "/", Id: uniqueID("AIDA", "next"), Created: 2}}})
	}
	doc := policyDocument(rootStatement, statement("Allow", bobARN, "kms:Encrypt"))
	for name, tt := range map[string]struct {
		op   string
		in   func(key string) any
		what func(c *testCluster, key string) string
	}{
		"policy stored": {"PutKeyPolicy", func(key string) any { return &kmsapi.PutKeyPolicyInput{KeyId: &key, Policy: &doc} }, func(c *testCluster, key string) string {
			p, _ := c.State().KeyPolicy(c.keyID(key))
			return p.Bindings[0].Id
		}},
		"key created": {"CreateKey", func(string) any { return &kmsapi.CreateKeyInput{Policy: &doc} }, func(c *testCluster, key string) string {
			for k := range c.State().Keys(fsm.KeyID{Account: testAccountNumber, Region: testRegion}) {
				id := fsm.KeyID{Account: testAccountNumber, Region: k.Region, ID: [16]byte(k.Id)}
				if p, _ := c.State().KeyPolicy(id); len(p.Bindings) > 0 {
					return p.Bindings[0].Id
				}
			}
			return ""
		}},
		"grant created": {"CreateGrant", func(key string) any {
			return &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}}
		}, func(c *testCluster, key string) string {
			for g := range c.State().Grants(c.keyID(key), nil) {
				return g.Grantee
			}
			return ""
		}},
		"role created": {"CreateRole", func(string) any {
			return &iamapi.CreateRoleInput{RoleName: new("app"), AssumeRolePolicyDocument: new(trust(`{"AWS":"` + bobARN + `"}`))}
		}, func(c *testCluster, key string) string {
			r, _ := fsm.Object[*fsmpb.Role](c.State(), fsm.EntityID(testAccountNumber, "app"))
			return r.TrustBindings[0].Id
		}},
		"trust policy updated": {"UpdateAssumeRolePolicy", func(string) any {
			return &iamapi.UpdateAssumeRolePolicyInput{RoleName: new("old"), PolicyDocument: new(trust(`{"AWS":"` + bobARN + `"}`))}
		}, func(c *testCluster, key string) string {
			r, _ := fsm.Object[*fsmpb.Role](c.State(), fsm.EntityID(testAccountNumber, "old"))
			return r.TrustBindings[0].Id
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, withNodes(2))
			c.exist(bobARN, arnOf("role/old"))
			key, _ := c.newKey()
			c.Replica("n2").FallBehind()
			recreate(c)
			if _, err := c.engines["n2"].Do(t.Context(), c.caller(c.root), operationNamed(tt.op), tt.in(key)); err != nil {
				t.Fatal(err)
			}
			if got := tt.what(c, key); got != uniqueID("AIDA", "next") {
				t.Errorf("the name is bound to %s, want %s", got, uniqueID("AIDA", "next"))
			}
		})
	}
	// The answers of lists are produced on a state that has everything that was committed
	// before the request.
	for name, shown := range map[string]func(c *testCluster, key string) string{
		"GetKeyPolicy": func(c *testCluster, key string) string {
			out, err := callAs[kmsapi.GetKeyPolicyOutput](c, c.engines["n2"], c.root, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &key})
			if err != nil {
				return err.Error()
			}
			return *out.Policy
		},
		"ListGrants": func(c *testCluster, key string) string {
			out, err := callAs[kmsapi.ListGrantsOutput](c, c.engines["n2"], c.root, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &key})
			if err != nil {
				return err.Error()
			}
			return *out.Grants[0].GranteePrincipal
		},
		"GetRole": func(c *testCluster, key string) string {
			out, err := callAs[iamapi.GetRoleOutput](c, c.engines["n2"], c.root, "GetRole", &iamapi.GetRoleInput{RoleName: new("app")})
			if err != nil {
				return err.Error()
			}
			return *out.Role.AssumeRolePolicyDocument
		},
		"ListRoles": func(c *testCluster, key string) string {
			out, err := callAs[iamapi.ListRolesOutput](c, c.engines["n2"], c.root, "ListRoles", &iamapi.ListRolesInput{})
			if err != nil {
				return err.Error()
			}
			return *out.Roles[0].AssumeRolePolicyDocument
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for what, want := range map[string]string{"deleted and made again": uniqueID("AIDA", "bob"), "renamed": arnOf("user/robert")} {
				c := newTestCluster(t, withNodes(2))
				c.exist(bobARN)
				key, _ := c.newKey()
				c.setPolicy(key, doc)
				c.putGrant(key, grantHex(1), bobARN, "Encrypt")
				c.storeRole(testAccountNumber, "app", trusts(bobARN, ""), "")
				c.Replica("n2").FallBehind()
				if what == "renamed" {
					must[request.None](c, "UpdateUser", &iamapi.UpdateUserInput{UserName: new("bob"), NewUserName: new("robert")})
				} else {
					recreate(c)
				}
				if got := shown(c, key); !strings.Contains(got, want) || strings.Contains(got, bobARN) {
					t.Errorf("a user that was %s: got %s, want it with %s", what, got, want)
				}
			}
		})
	}
}
