package keyengine

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// createAccessKey creates an access key as a client does, and returns it like the result of
// Init.
func createAccessKey(t *testing.T, e *Engine, c *iam.Caller, res *ceremony.InitResult) *ceremony.InitResult {
	t.Helper()
	to, err := keymat.NewReceiver(e.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Destroy()
	c.RequestID = randomID()
	id, sealed, err := e.CreateAccessKey(t.Context(), c, to.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Open(iam.SecretInfo("AKIAAAAAAAAAAAAAAAAA"), sealed); err == nil {
		t.Error("the sealed secret opens as that of another access key")
	}
	secret, err := to.Open(iam.SecretInfo(id), sealed)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Destroy()
	made := &ceremony.InitResult{AccessKeyID: id, RootARN: res.RootARN}
	if err := secret.With(func(b []byte) error {
		made.SecretAccessKey = string(b)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return made
}

func sessionCaller(t *testing.T, c *testCluster, e *Engine, res *ceremony.InitResult) (string, *iam.Caller) {
	t.Helper()
	token, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	id, err := e.AuthenticateSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return token, &iam.Caller{Identity: id, RequestID: randomID()}
}

// Temporary credentials of the root user make no credentials that outlast them, as in IAM.
func TestRootSessionsMakeNoCredentials(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	caller := func() *iam.Caller { return c.caller(c.withTemporary(c.engine, c.sessionToken(c.root))) }
	to, err := keymat.NewReceiver(c.engine.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Destroy()
	ctx := t.Context()
	for name, do := range map[string]func() error{
		"ListCredentials":  func() error { _, err := c.engine.Credentials(ctx, caller()); return err },
		"CreateAccessKey":  func() error { _, _, err := c.engine.CreateAccessKey(ctx, caller(), to.Public()); return err },
		"DeleteCredential": func() error { return c.engine.DeleteCredential(ctx, caller(), c.initResult.AccessKeyID) },
		"RevokeSessions":   func() error { return c.engine.RevokeSessions(ctx, caller()) },
		"CreateAccount": func() error {
			_, _, err := c.engine.CreateAccount(ctx, caller(), otherAccount.String(), "other", to.Public())
			return err
		},
		"CreateCertificateMapping": func() error {
			_, err := c.engine.CreateCertificateMapping(ctx, caller(), "spiffe://test/a", "arn:aws:iam::"+testAccount+":role/app")
			return err
		},
	} {
		if err := do(); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s: got error %v, want AccessDeniedException", name, err)
		}
		if rec := c.lastRecord(); rec.EventName != name || rec.ErrorCode != string(kmsapi.ErrAccessDenied.Code) {
			t.Errorf("%s: the record says %s, %q", name, rec.EventName, rec.ErrorCode)
		}
	}
	if _, err := c.engine.Accounts(ctx, caller()); err != nil {
		t.Errorf("ListAccounts: %v", err)
	}
}

// TestRotateAccessKey creates an access key and deletes the old one with it. From then on no node
// accepts the old one, or a session that it opened, also if the node's state is behind.
func TestRotateAccessKey(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	res, n1, n2 := c.initResult, c.engine, c.engines["n2"]
	old := rootCaller(t, n2, res)
	_, oldSession := sessionCaller(t, c, n2, res)

	made := createAccessKey(t, n1, rootCaller(t, n1, res), res)
	if made.AccessKeyID == res.AccessKeyID || made.SecretAccessKey == res.SecretAccessKey || len(made.SecretAccessKey) != iam.SecretLen {
		t.Fatalf("CreateAccessKey made %v", made)
	}
	by := rootCaller(t, n2, made)
	c.Replica("n2").FallBehind()
	if err := n1.DeleteCredential(t.Context(), rootCaller(t, n1, made), res.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*iam.Caller{"signature": old, "session": oldSession} {
		c.Replica("n2").FallBehind()
		if _, err := n2.ReadAudit(t.Context(), who, 0); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("%s, on a node that is behind: got error %v, want ErrUnrecognized", name, err)
		}
		if err := n2.RevokeSessions(t.Context(), who); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("%s: got error %v, want ErrUnrecognized", name, err)
		}
	}
	c.Replica("n2").CatchUp()
	for _, e := range []*Engine{n1, n2} {
		if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("with the old access key: got error %v, want ErrUnrecognized", err)
		}
		if _, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now())); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("OpenSession with the old access key: got error %v, want ErrUnrecognized", err)
		}
	}
	if _, err := n2.ReadAudit(t.Context(), by, 0); err != nil {
		t.Errorf("with the new access key: %v", err)
	}
	var names []string
	for _, r := range nodeOf(n1).Records() {
		if strings.HasSuffix(r.EventName, "AccessKey") || strings.HasSuffix(r.EventName, "Credential") {
			names = append(names, r.EventName+" by "+r.Identity.AccessKeyId)
		}
		if strings.Contains(r.String(), made.SecretAccessKey) {
			t.Errorf("the secret is in record %v", r)
		}
	}
	if want := []string{"CreateAccessKey by " + res.AccessKeyID, "DeleteCredential by " + made.AccessKeyID}; !slices.Equal(names, want) {
		t.Errorf("got records %q, want %q", names, want)
	}
}

// TestLastCredential checks that the root user can delete its last credential, and is then nobody.
func TestLastCredential(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	res, n1 := c.initResult, c.engine
	root := rootCaller(t, n1, res)
	if err := n1.DeleteCredential(t.Context(), root, "AKIAAAAAAAAAAAAAAAAA"); !errors.Is(err, iamapi.ErrNoSuchEntity) {
		t.Errorf("deleting a credential that does not exist: got error %v, want NoSuchEntity", err)
	}
	made := createAccessKey(t, n1, root, res)
	if _, _, err := n1.CreateAccessKey(t.Context(), root, pointOf(t, n1)); !errors.Is(err, iamapi.ErrLimitExceeded) {
		t.Errorf("creating a third access key: got error %v, want LimitExceeded", err)
	}
	if _, _, err := n1.CreateAccessKey(t.Context(), root, []byte("key")); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("with an invalid answer key: got error %v, want ValidationException", err)
	}
	for _, id := range []string{made.AccessKeyID, res.AccessKeyID} {
		if err := n1.DeleteCredential(t.Context(), root, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n1.Credentials(t.Context(), root); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("with the deleted access key: got error %v, want ErrUnrecognized", err)
	}
}

func pointOf(t *testing.T, e *Engine) []byte {
	t.Helper()
	r, err := keymat.NewReceiver(e.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Destroy()
	return r.Public()
}

// TestRevokeSessions checks that sessions end on every node, also where the state is behind, and
// that the access key itself stays valid and opens new sessions.
func TestRevokeSessions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	res, n1, n2 := c.initResult, c.engine, c.engines["n2"]
	token, inSession := sessionCaller(t, c, n2, res)
	direct := rootCaller(t, n2, res)
	c.Replica("n2").FallBehind()
	if err := n1.RevokeSessions(t.Context(), rootCaller(t, n1, res)); err != nil {
		t.Fatal(err)
	}
	// The session is authenticated by a node that has not applied the revocation.
	stale, err := n2.AuthenticateSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*iam.Caller{"before": inSession, "after": {Identity: stale, RequestID: randomID()}} {
		c.Replica("n2").FallBehind()
		if _, err := n2.ReadAudit(t.Context(), who, 0); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("a session authenticated %s the revocation: got error %v, want ErrUnrecognized", name, err)
		}
	}
	c.Replica("n2").FallBehind()
	if _, err := n2.ReadAudit(t.Context(), direct, 0); err != nil {
		t.Errorf("with the access key itself: %v", err)
	}
	c.Replica("n2").CatchUp()
	for _, e := range []*Engine{n1, n2} {
		if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("with the token of a revoked session: got error %v, want ErrUnrecognized", err)
		}
	}
	again, _ := sessionCaller(t, c, n2, res)
	if _, err := n1.AuthenticateSession(t.Context(), again); err != nil {
		t.Errorf("with a session opened after the revocation: %v", err)
	}
	// A session may revoke all sessions, including itself.
	_, own := sessionCaller(t, c, n1, res)
	if err := n1.RevokeSessions(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	if err := n1.RevokeSessions(t.Context(), own); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("the session that revoked all: got error %v, want ErrUnrecognized", err)
	}
	if _, err := n1.AuthenticateSession(t.Context(), again); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("another revoked session: got error %v, want ErrUnrecognized", err)
	}
}

// TestCredentialsAreRoots checks that only the root user lists, creates and deletes credentials.
func TestCredentialsAreRoots(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	const uri = "conclave://operator/ann"
	c.Change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: "arn:aws:iam::111122223333:user/ann", Active: true, Created: 1,
	}))
	id, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	ann := &iam.Caller{Identity: id, RequestID: randomID()}
	_, listed := e.Credentials(t.Context(), ann)
	_, _, created := e.CreateAccessKey(t.Context(), ann, pointOf(t, e))
	for name, err := range map[string]error{
		"list": listed, "create": created, "delete": e.DeleteCredential(t.Context(), ann, res.AccessKeyID), "revoke": e.RevokeSessions(t.Context(), ann),
	} {
		if !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s: got error %v, want AccessDeniedException", name, err)
		}
	}
	// The root user's certificates are among its credentials.
	const second = "conclave://operator/root"
	c.Change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: second, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
	}))
	root := rootCaller(t, e, res)
	list, err := e.Credentials(t.Context(), root)
	if err != nil || len(list) != 2 || list[0].ID != res.AccessKeyID || list[0].Certificate || list[1].ID != second || !list[1].Certificate {
		t.Errorf("got credentials %v, error %v; want the access key and the certificate", list, err)
	}
	if id, err = e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: second}); err != nil {
		t.Fatal(err)
	}
	root.RequestID = randomID()
	if err := e.DeleteCredential(t.Context(), root, second); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Credentials(t.Context(), &iam.Caller{Identity: id, RequestID: randomID()}); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("with a deleted certificate: got error %v, want ErrUnrecognized", err)
	}
}
