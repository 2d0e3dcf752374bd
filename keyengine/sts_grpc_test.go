package keyengine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// proofWith returns the proof for a session of gRPC that is made with temporary credentials.
func (c *testCluster) proofWith(cr *iamapi.Credentials) iam.SessionProof {
	p := enginetest.SessionProof(&ceremony.InitResult{AccessKeyID: *cr.AccessKeyId, SecretAccessKey: *cr.SecretAccessKey}, c.Clock.Now())
	p.SessionToken = *cr.SessionToken
	return p
}

// sessionToken returns temporary credentials of a user.
func (c *testCluster) sessionToken(as iam.Identity) *iamapi.Credentials {
	c.t.Helper()
	out, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, as, "GetSessionToken", &iamapi.GetSessionTokenInput{})
	if err != nil {
		c.t.Fatal(err)
	}
	return out.Credentials
}

func TestTemporaryCredentialsOpenSessions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	in := assumeInput(role)
	in.DurationSeconds = new(int32(900))
	cr := c.assumed(alice, in).Credentials
	token, expires, err := c.engine.OpenSession(t.Context(), c.proofWith(cr))
	if err != nil {
		t.Fatal(err)
	}
	if end := *cr.Expiration; expires.After(end) || end.Sub(expires) > time.Second {
		t.Errorf("the session ends at %v, and the credentials at %v", expires, end)
	}
	const arn = "arn:aws:sts::111122223333:assumed-role/app/test"
	records := nodeOf(c.engine).Records()
	if r := records[len(records)-1]; r.EventName != "CreateSession" || r.Identity.AccessKeyId != *cr.AccessKeyId || r.Identity.Arn != arn {
		t.Errorf("unexpected record: %v", r)
	}
	for node, e := range c.engines {
		id, err := e.AuthenticateSession(t.Context(), token)
		if err != nil || id.Principal().ARN != arn || id.Session() == "" {
			t.Fatalf("on %s: got identity %v, error %v", node, id, err)
		}
		out, err := callAs[iamapi.GetCallerIdentityOutput](c, e, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
		if err != nil || *out.Arn != arn {
			t.Errorf("on %s: got %v, %v", node, out, err)
		}
		if !e.KnowsToken(token) {
			t.Errorf("%s does not know the token", node)
		}
	}
	// A long-lived credential's session lasts as long as sessions do.
	if _, expires, err = c.engine.OpenSession(t.Context(), c.proofWith(c.sessionToken(alice))); err != nil || !expires.Equal(c.Clock.Now().Add(iam.SessionLife).Truncate(time.Second)) {
		t.Errorf("the user's session ends at %v (%v)", expires, err)
	}
	c.Advance(15 * time.Minute)
	for node, e := range c.engines {
		if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, kmsapi.ErrExpiredToken) {
			t.Errorf("on %s, after the end of the credentials: got error %v, want ErrExpiredToken", node, err)
		}
		if e.KnowsToken(token) {
			t.Errorf("%s knows the token after its end", node)
		}
	}
	if _, _, err := c.engine.OpenSession(t.Context(), c.proofWith(cr)); !errors.Is(err, kmsapi.ErrExpiredToken) {
		t.Errorf("a proof after the end of the credentials: got error %v, want ErrExpiredToken", err)
	}
}

// Temporary credentials open a session only together, and what is sent in the clear with a
// signed request does not stand for its sender.
func TestTemporaryProofs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	cr, other := c.sessionToken(alice), c.sessionToken(alice)
	token, _, err := c.engine.OpenSession(t.Context(), c.proofWith(cr))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		edit func(*iam.SessionProof)
		want error
	}{
		"no session token":           {func(p *iam.SessionProof) { p.SessionToken = "" }, iam.ErrUnrecognized},
		"another's session token":    {func(p *iam.SessionProof) { p.SessionToken = *other.SessionToken }, iam.ErrUnrecognized},
		"another's access key":       {func(p *iam.SessionProof) { p.AccessKeyID = *other.AccessKeyId }, iam.ErrUnrecognized},
		"token of a session of gRPC": {func(p *iam.SessionProof) { p.SessionToken = token }, iam.ErrUnrecognized},
		"long session token":         {func(p *iam.SessionProof) { p.SessionToken = strings.Repeat("A", 1<<20) }, iam.ErrUnrecognized},
		"MAC":                        {func(p *iam.SessionProof) { p.MAC[7] ^= 1 }, iam.ErrSignature},
		"MAC of another secret": {func(p *iam.SessionProof) {
			*p = c.proofWith(&iamapi.Credentials{AccessKeyId: cr.AccessKeyId, SecretAccessKey: other.SecretAccessKey, SessionToken: cr.SessionToken})
		}, iam.ErrSignature},
	} {
		p := c.proofWith(cr)
		tt.edit(&p)
		if _, _, err := c.engine.OpenSession(t.Context(), p); err != tt.want {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
	}
	long := enginetest.SessionProof(c.initResult, c.Clock.Now())
	long.SessionToken = *cr.SessionToken
	if _, _, err := c.engine.OpenSession(t.Context(), long); err != iam.ErrUnrecognized {
		t.Errorf("an access key with a session token: got error %v, want ErrUnrecognized", err)
	}
	for name, bad := range map[string]string{"session token": *cr.SessionToken, "changed": token[:len(token)-3] + "AAA", "format": "Ag" + token[2:], "line end": token[:40] + "\n" + token[40:]} {
		if _, err := c.engine.AuthenticateSession(t.Context(), bad); err != iam.ErrUnrecognized || c.engine.KnowsToken(bad) {
			t.Errorf("%s as a token of gRPC: got error %v, want ErrUnrecognized", name, err)
		}
	}
	if _, err := c.engine.AuthenticateSession(t.Context(), token); err != nil {
		t.Error(err)
	}
}

// What ends temporary credentials ends the sessions of gRPC that they have opened, on all nodes
// at once, and they open no other.
func TestTemporarySessionsEndEverywhere(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end  func(c *testCluster)
		want *kmsapi.Error
		user bool
	}{
		"role revoked": {func(c *testCluster) { c.revokeRole("app") }, kmsapi.ErrExpiredToken, false},
		"role deleted": {func(c *testCluster) {
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "app"}}})
		}, kmsapi.ErrUnrecognizedClient, false},
		"key deactivated": {func(c *testCluster) { c.deactivate(aliceCredential) }, kmsapi.ErrUnrecognizedClient, true},
		"user deleted":    {func(c *testCluster) { c.Change(deleteUser(testAccountNumber, "alice")) }, kmsapi.ErrUnrecognizedClient, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, withNodes(3))
			alice := c.storeUser(testAccountNumber, "alice", "")
			cr := c.sessionToken(alice)
			if !tt.user {
				cr = c.assumed(alice, assumeInput(c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), ""))).Credentials
			}
			token, _, err := c.engine.OpenSession(t.Context(), c.proofWith(cr))
			if err != nil {
				t.Fatal(err)
			}
			ids := make(map[string]iam.Identity)
			for node, e := range c.engines {
				if ids[node], err = e.AuthenticateSession(t.Context(), token); err != nil {
					t.Fatalf("on %s: %v", node, err)
				}
			}
			c.Replica("n3").FallBehind()
			tt.end(c)
			// n3, which has not heard of it, comes first.
			if _, _, err := c.engines["n3"].OpenSession(t.Context(), c.proofWith(cr)); !errors.Is(err, tt.want) {
				t.Errorf("another session on the node that is behind: got error %v, want %s", err, tt.want.Code)
			}
			for node, e := range c.engines {
				if _, err := callAs[iamapi.GetCallerIdentityOutput](c, e, ids[node], "GetCallerIdentity", &iamapi.GetCallerIdentityInput{}); !errors.Is(err, tt.want) {
					t.Errorf("on %s: got error %v, want %s", node, err, tt.want.Code)
				}
				if _, _, err := e.OpenSession(t.Context(), c.proofWith(cr)); !errors.Is(err, tt.want) {
					t.Errorf("another session on %s: got error %v, want %s", node, err, tt.want.Code)
				}
				if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, tt.want) {
					t.Errorf("signing in on %s: got error %v, want %s", node, err, tt.want.Code)
				}
			}
		})
	}
}
