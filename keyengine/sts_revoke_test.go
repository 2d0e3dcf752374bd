package keyengine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/issuertest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func deleteUser(a fsm.Account, name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: uint64(a), Name: name}}}
}

// revokeRole ends the sessions of a role.
func (c *testCluster) revokeRole(name string) {
	c.t.Helper()
	must[request.None](c, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: &name})
}

// What ends a session, or takes its permissions, does so on all nodes at once, also on one
// that has not heard of it yet.
func TestSessionsEndEverywhere(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end  func(c *testCluster)
		want *kmsapi.Error
		user bool // the session is one of GetSessionToken
	}{
		"role revoked": {func(c *testCluster) { c.revokeRole("app") }, kmsapi.ErrExpiredToken, false},
		"role deleted": {func(c *testCluster) {
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "app"}}})
		}, kmsapi.ErrUnrecognizedClient, false},
		"permission taken": {func(c *testCluster) { c.editRole(testAccountNumber, "app", func(r *fsmpb.Role) { r.Inline = nil }) }, kmsapi.ErrAccessDenied, false},
		"key deactivated":  {func(c *testCluster) { c.deactivate(aliceCredential) }, kmsapi.ErrUnrecognizedClient, true},
		"key revoked": {func(c *testCluster) {
			cred := c.Credential(aliceCredential)
			cred.SessionEpoch++
			c.Change(putSigned(c.t, c.engine, cred))
		}, kmsapi.ErrUnrecognizedClient, true},
		"user deleted": {func(c *testCluster) { c.Change(deleteUser(testAccountNumber, "alice")) }, kmsapi.ErrUnrecognizedClient, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, withNodes(3))
			key, _ := c.newKey()
			c.setPolicy(key, policyDocument(rootStatement))
			alice := c.storeUser(testAccountNumber, "alice", identityPolicy("Allow", "kms:Encrypt", "*"))
			role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), identityPolicy("Allow", "kms:Encrypt", "*"))
			var cr *iamapi.Credentials
			if tt.user {
				out, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, alice, "GetSessionToken", &iamapi.GetSessionTokenInput{})
				if err != nil {
					t.Fatal(err)
				}
				cr = out.Credentials
			} else {
				cr = c.assumed(alice, assumeInput(role)).Credentials
			}
			ids := make(map[string]iam.Identity)
			for node, e := range c.engines {
				ids[node] = c.withTemporary(e, cr)
				if _, err := callAs[kmsapi.EncryptOutput](c, e, ids[node], "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); err != nil {
					t.Fatalf("on %s: %v", node, err)
				}
			}
			c.Replica("n3").FallBehind()
			tt.end(c)
			for node, e := range c.engines {
				_, err := callAs[kmsapi.EncryptOutput](c, e, ids[node], "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
				if !errors.Is(err, tt.want) {
					t.Errorf("on %s: got error %v, want %s", node, err, tt.want.Code)
				}
				c.Replica("n3").FallBehind()
				if tt.want == kmsapi.ErrAccessDenied {
					continue
				}
				if _, err := e.AuthenticateSigV4(t.Context(), proofOf(cr)); !errors.Is(err, tt.want) {
					t.Errorf("signing in on %s: got error %v, want %s", node, err, tt.want.Code)
				}
			}
		})
	}
}

var aliceCredential = "spiffe://test/" + uniqueID("AIDA", testAccountNumber.String()+"alice")

// deactivate makes a credential inactive.
func (c *testCluster) deactivate(id string) {
	c.t.Helper()
	cred := c.Credential(id)
	cred.Active = false
	c.Change(putSigned(c.t, c.engine, cred))
}

// A revocation ends the sessions that were opened before it, whatever the clocks of the nodes
// that opened them, and none that were opened after it.
func TestRevocationAndClocks(t *testing.T) {
	t.Parallel()
	for _, level := range []uint32{1, 2} {
		t.Run(fmt.Sprint("level ", level), func(t *testing.T) {
			t.Parallel()
			testRevocationAndClocks(t, level)
		})
	}
}

func testRevocationAndClocks(t *testing.T, level uint32) {
	c := newTestCluster(t, withNodes(2))
	if level > 1 {
		c.finalize()
	}
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	n2 := c.engines["n2"]
	setClock(n2, enginetest.NewClock(c.Clock.Now().Add(time.Minute)))
	who := func(id iam.Identity) error {
		_, err := callAs[iamapi.GetCallerIdentityOutput](c, c.engine, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
		return err
	}
	out, err := callAs[iamapi.AssumeRoleOutput](c, n2, alice, "AssumeRole", assumeInput(role))
	if err != nil {
		t.Fatal(err)
	}
	before := c.withTemporary(c.engine, out.Credentials)
	if err := who(before); err != nil {
		t.Fatal(err)
	}
	c.revokeRole("app")
	if err := who(before); !errors.Is(err, kmsapi.ErrExpiredToken) {
		t.Errorf("a session of a node whose clock is ahead: got error %v, want ErrExpiredToken", err)
	}
	if err := who(c.assume(alice, assumeInput(role))); err != nil {
		t.Errorf("a session that was opened after the revocation: %v", err)
	}
}

// Of sessions that are opened in the same second as a revocation, those before it end and
// those after it do not, at once and without time passing; also if another revocation follows
// in that second, on a node whose clock is behind.
func TestRevocationInOneSecond(t *testing.T) {
	t.Parallel()
	for _, level := range []uint32{1, 2} {
		t.Run(fmt.Sprint("level ", level), func(t *testing.T) {
			t.Parallel()
			testRevocationInOneSecond(t, level)
		})
	}
}

func testRevocationInOneSecond(t *testing.T, level uint32) {
	c := newTestCluster(t, withNodes(2))
	if level > 1 {
		c.finalize()
	}
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	n2 := c.engines["n2"]
	setClock(n2, enginetest.NewClock(c.Clock.Now().Add(-time.Second)))
	who := func(id iam.Identity) error {
		_, err := callAs[iamapi.GetCallerIdentityOutput](c, c.engine, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
		return err
	}
	opened := []iam.Identity{c.assume(alice, assumeInput(role))}
	for i, e := range []*Engine{c.engine, n2, c.engine} {
		name := "app"
		if _, err := callAs[request.None](c, e, c.root, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: &name}); err != nil {
			t.Fatal(err)
		}
		for j, id := range opened {
			if err := who(id); !errors.Is(err, kmsapi.ErrExpiredToken) {
				t.Errorf("after revocation %d, session %d: got error %v, want ErrExpiredToken", i, j, err)
			}
		}
		next := c.assume(alice, assumeInput(role))
		if err := who(next); err != nil {
			t.Errorf("a session that was opened after revocation %d: %v", i, err)
		}
		opened = append(opened, next)
	}
}

// A revocation of a role's sessions and one of the provider's end the same sessions, whatever
// the clocks of the nodes: one that is opened between the two has the first behind it and the
// second before it. So has one whose provider is deleted and registered again.
func TestRevocationOfTwo(t *testing.T) {
	t.Parallel()
	roleFirst := func(c *testCluster, e *Engine, i *issuertest.Issuer) error {
		_, err := callAs[request.None](c, e, c.root, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("app")})
		return err
	}
	providerFirst := func(c *testCluster, e *Engine, i *issuertest.Issuer) error {
		_, err := callAs[request.None](c, e, c.root, "RevokeOpenIDConnectProviderSessions", &iamapi.RevokeOpenIDConnectProviderSessionsInput{OpenIDConnectProviderArn: new(providerARN(i))})
		return err
	}
	again := func(c *testCluster, e *Engine, i *issuertest.Issuer) error {
		if _, err := callAs[request.None](c, e, c.root, "DeleteOpenIDConnectProvider", &iamapi.DeleteOpenIDConnectProviderInput{OpenIDConnectProviderArn: new(providerARN(i))}); err != nil {
			return err
		}
		if _, err := callAs[iamapi.CreateOpenIDConnectProviderOutput](c, e, c.root, "CreateOpenIDConnectProvider", &iamapi.CreateOpenIDConnectProviderInput{
			Url: new("https://" + i.Name()), ClientIDList: []string{"conclave"},
		}); err != nil {
			return err
		}
		_, err := callAs[request.None](c, e, c.root, "UpdateOpenIDConnectProviderKeys", &iamapi.UpdateOpenIDConnectProviderKeysInput{
			OpenIDConnectProviderArn: new(providerARN(i)), JSONWebKeySet: new(string(i.Keys())),
		})
		return err
	}
	type revocation func(*testCluster, *Engine, *issuertest.Issuer) error
	for name, tt := range map[string]struct {
		first, second revocation
		want          *kmsapi.Error
	}{
		"role, provider":     {roleFirst, providerFirst, kmsapi.ErrExpiredToken},
		"provider, role":     {providerFirst, roleFirst, kmsapi.ErrExpiredToken},
		"role, registration": {roleFirst, again, kmsapi.ErrUnrecognizedClient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, c := issuertest.New(t), newTestCluster(t, withNodes(2))
			c.finalize()
			// By a node whose clock is ahead.
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: &fsmpb.OidcProvider{
				Account: uint64(testAccountNumber), Url: i.Name(), ClientIds: []string{"conclave"}, Jwks: i.Keys(),
				Created: c.Clock.Now().Add(time.Second).UnixNano(),
			}}})
			role := c.storeRole(testAccountNumber, "app", trustsWeb(i, ""), "")
			token := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
			n2 := c.engines["n2"]
			setClock(n2, enginetest.NewClock(c.Clock.Now().Add(-time.Second)))
			open := func() iam.Identity {
				out, err := c.web(c.engine, role, token)
				if err != nil {
					t.Fatal(err)
				}
				return c.withTemporary(c.engine, out.Credentials)
			}
			who := func(id iam.Identity) error {
				_, err := callAs[iamapi.GetCallerIdentityOutput](c, c.engine, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
				return err
			}
			if err := tt.first(c, c.engine, i); err != nil {
				t.Fatal(err)
			}
			between := open()
			if err := who(between); err != nil {
				t.Fatalf("a session that was opened after the first revocation: %v", err)
			}
			if err := tt.second(c, n2, i); err != nil {
				t.Fatal(err)
			}
			if err := who(between); !errors.Is(err, tt.want) {
				t.Errorf("a session that was opened before the second revocation: got error %v, want %s", err, tt.want.Code)
			}
			if err := who(open()); err != nil {
				t.Errorf("a session that was opened after both: %v", err)
			}
		})
	}
}

// Sessions end by cluster time.
func TestSessionsExpire(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"role", "user"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			alice := c.storeUser(testAccountNumber, "alice", "")
			var cr *iamapi.Credentials
			if kind == "role" {
				cr = c.assumed(alice, assumeInput(c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), ""))).Credentials
			} else {
				out, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, alice, "GetSessionToken", &iamapi.GetSessionTokenInput{DurationSeconds: new(int32(3600))})
				if err != nil {
					t.Fatal(err)
				}
				cr = out.Credentials
			}
			id := c.withTemporary(c.engine, cr)
			who := func() error {
				_, err := callAs[iamapi.GetCallerIdentityOutput](c, c.engine, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
				return err
			}
			c.Advance(cr.Expiration.Sub(c.Clock.Now()) - time.Second)
			if err := who(); err != nil {
				t.Errorf("a second before the end: %v", err)
			}
			// The node's own state is from before the end, but the record is not.
			c.Replica("n1").FallBehind()
			c.Advance(time.Second)
			if err := who(); !errors.Is(err, kmsapi.ErrExpiredToken) {
				t.Errorf("at the end: got error %v, want ErrExpiredToken", err)
			}
			if _, err := c.engine.AuthenticateSigV4(t.Context(), proofOf(cr)); !errors.Is(err, kmsapi.ErrExpiredToken) {
				t.Errorf("signing in after the end: got error %v, want ErrExpiredToken", err)
			}
		})
	}
}

// Only the cluster's own tokens are accepted, unchanged and with their own access key.
func TestForgedSessions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	one, two := c.assumed(alice, assumeInput(role)).Credentials, c.assumed(alice, assumeInput(role)).Credentials
	c.withTemporary(c.engine, one)
	c.withTemporary(c.engine, two)
	foreign := newTestCluster(t)
	theirs := foreign.assumed(foreign.storeUser(testAccountNumber, "alice", ""), assumeInput(foreign.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), ""))).Credentials
	edited := func(token string, i int) *string {
		b := []byte(token)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return new(string(b))
	}
	other := accesskey.ID(accesskey.Session, testAccountNumber+1, [accesskey.Noise]byte{1})
	long := accesskey.ID(accesskey.LongTerm, testAccountNumber, [accesskey.Noise]byte{1})
	tests := map[string]iamapi.Credentials{
		"no token":               {AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey},
		"token of another key":   {AccessKeyId: one.AccessKeyId, SecretAccessKey: two.SecretAccessKey, SessionToken: two.SessionToken},
		"secret of another key":  {AccessKeyId: one.AccessKeyId, SecretAccessKey: two.SecretAccessKey, SessionToken: one.SessionToken},
		"key of another account": {AccessKeyId: &other, SecretAccessKey: one.SecretAccessKey, SessionToken: one.SessionToken},
		"long-term key":          {AccessKeyId: &long, SecretAccessKey: one.SecretAccessKey, SessionToken: one.SessionToken},
		"another cluster's":      *theirs,
		"white space":            {AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey, SessionToken: new(*one.SessionToken + "\n")},
		"longer":                 {AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey, SessionToken: new(*one.SessionToken + "A")},
		"cut":                    {AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey, SessionToken: new((*one.SessionToken)[:len(*one.SessionToken)-4])},
		"very long":              {AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey, SessionToken: new(strings.Repeat("A", 8192))},
	}
	for i := 0; i < len(*one.SessionToken); i += 7 {
		tests[fmt.Sprintf("changed at %d", i)] = iamapi.Credentials{AccessKeyId: one.AccessKeyId, SecretAccessKey: one.SecretAccessKey, SessionToken: edited(*one.SessionToken, i)}
	}
	for name, cr := range tests {
		_, err := c.engine.AuthenticateSigV4(context.Background(), proofOf(&cr))
		if !errors.Is(err, kmsapi.ErrUnrecognizedClient) && !errors.Is(err, kmsapi.ErrInvalidSignature) {
			t.Errorf("%s: got error %v, want it to be refused", name, err)
		}
	}
}
