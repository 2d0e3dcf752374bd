package keyengine

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// newKey makes an access key as a client does, and gives it as Init's result does.
func newKey(t *testing.T, e *Engine, c *iam.Caller, res *ceremony.InitResult) *ceremony.InitResult {
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
	if _, err := to.Open(accessKeyInfo("AKIAAAAAAAAAAAAAAAAA"), sealed); err == nil {
		t.Error("the secret opens as that of another access key")
	}
	secret, err := to.Open(accessKeyInfo(id), sealed)
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

func sessionCaller(t *testing.T, c *fakeCluster, e *Engine, res *ceremony.InitResult) (string, *iam.Caller) {
	t.Helper()
	token, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	id, err := e.AuthenticateSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return token, &iam.Caller{Identity: id, RequestID: randomID()}
}

// TestRotateAccessKey: a new access key takes the place of the old one, which is of no
// use on any node from then on, nor is a session that was opened with it, also where
// the state is behind.
func TestRotateAccessKey(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	old := rootCaller(t, b, res)
	_, oldSession := sessionCaller(t, c, b, res)

	made := newKey(t, a, rootCaller(t, a, res), res)
	if made.AccessKeyID == res.AccessKeyID || made.SecretAccessKey == res.SecretAccessKey || len(made.SecretAccessKey) != iam.SecretLen {
		t.Fatalf("made %v", made)
	}
	by := rootCaller(t, b, made)
	c.replica("b").freeze()
	if err := a.DeleteCredential(t.Context(), rootCaller(t, a, made), res.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*iam.Caller{"signature": old, "session": oldSession} {
		c.replica("b").freeze()
		if _, err := b.ReadAudit(t.Context(), who, 0); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("%s, on a node that was behind: %v", name, err)
		}
		if err := b.RevokeSessions(t.Context(), who); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.replica("b").thaw()
	for _, e := range []*Engine{a, b} {
		if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("the old access key: %v", err)
		}
		if _, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now())); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("a session of it: %v", err)
		}
	}
	if _, err := b.ReadAudit(t.Context(), by, 0); err != nil {
		t.Errorf("the new access key: %v", err)
	}
	var names []string
	for _, r := range records(t, c, a) {
		if strings.HasSuffix(r.EventName, "AccessKey") || strings.HasSuffix(r.EventName, "Credential") {
			names = append(names, r.EventName+" by "+r.Identity.AccessKeyId)
		}
		if strings.Contains(r.String(), made.SecretAccessKey) {
			t.Errorf("the secret is in the record %v", r)
		}
	}
	if want := []string{"CreateAccessKey by " + res.AccessKeyID, "DeleteCredential by " + made.AccessKeyID}; !slices.Equal(names, want) {
		t.Errorf("records %q, want %q", names, want)
	}
}

// TestLastCredential: root cannot lock itself out, nor by two calls at the same time.
func TestLastCredential(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	root := rootCaller(t, a, res)
	if err := a.DeleteCredential(t.Context(), root, res.AccessKeyID); !errors.Is(err, kmsapi.ErrInvalidState) {
		t.Errorf("the only one: %v", err)
	}
	if err := a.DeleteCredential(t.Context(), root, "AKIAAAAAAAAAAAAAAAAA"); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	made := newKey(t, a, root, res)
	if _, _, err := a.CreateAccessKey(t.Context(), root, pointOf(t, a)); !errors.Is(err, kmsapi.ErrLimitExceeded) {
		t.Errorf("a third access key: %v", err)
	}
	if _, _, err := a.CreateAccessKey(t.Context(), root, []byte("key")); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("a wrong answer key: %v", err)
	}
	// One call deletes the other access key, and one its own on a node that does not
	// know of that yet.
	behind := rootCaller(t, b, res)
	c.replica("b").freeze()
	if err := a.DeleteCredential(t.Context(), rootCaller(t, a, res), made.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteCredential(t.Context(), behind, res.AccessKeyID); !errors.Is(err, kmsapi.ErrInvalidState) {
		t.Errorf("the last one, on a node that is behind: %v", err)
	}
	if cr, _ := c.state().Credential(testAccountNumber, res.AccessKeyID); cr == nil {
		t.Error("no credential is left")
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

// TestRevokeSessions: sessions end on every node, behind or not; the access key works
// on, without a refusal in between, and opens others.
func TestRevokeSessions(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	token, inSession := sessionCaller(t, c, b, res)
	direct := rootCaller(t, b, res)
	c.replica("b").freeze()
	if err := a.RevokeSessions(t.Context(), rootCaller(t, a, res)); err != nil {
		t.Fatal(err)
	}
	// Authenticated by a node that knows nothing of it yet.
	stale, err := b.AuthenticateSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*iam.Caller{"before": inSession, "after": {Identity: stale, RequestID: randomID()}} {
		c.replica("b").freeze()
		if _, err := b.ReadAudit(t.Context(), who, 0); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("a session, authenticated %s: %v", name, err)
		}
	}
	c.replica("b").freeze()
	if _, err := b.ReadAudit(t.Context(), direct, 0); err != nil {
		t.Errorf("the access key itself: %v", err)
	}
	c.replica("b").thaw()
	for _, e := range []*Engine{a, b} {
		if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, iam.ErrUnrecognized) {
			t.Errorf("the token: %v", err)
		}
	}
	again, _ := sessionCaller(t, c, b, res)
	if _, err := a.AuthenticateSession(t.Context(), again); err != nil {
		t.Errorf("a session of afterwards: %v", err)
	}
	// From within a session, which ends itself.
	_, own := sessionCaller(t, c, a, res)
	if err := a.RevokeSessions(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	if err := a.RevokeSessions(t.Context(), own); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("its own session: %v", err)
	}
	if _, err := a.AuthenticateSession(t.Context(), again); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("the other one: %v", err)
	}
}

// TestCredentialsAreRoots: nobody but root sees, makes or deletes credentials.
func TestCredentialsAreRoots(t *testing.T) {
	c, e, res := openCluster(t)
	const uri = "conclave://operator/ann"
	c.change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: "arn:aws:iam::111122223333:user/ann", Active: true, Created: 1,
	}))
	id, err := e.AuthenticateCertificate(t.Context(), uri)
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
			t.Errorf("%s: %v", name, err)
		}
	}
	// A certificate that stands for root is one credential of it.
	const second = "conclave://operator/root"
	c.change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: second, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
	}))
	root := rootCaller(t, e, res)
	list, err := e.Credentials(t.Context(), root)
	if err != nil || len(list) != 2 || list[0].ID != res.AccessKeyID || list[0].Certificate || list[1].ID != second || !list[1].Certificate {
		t.Errorf("root's credentials: %v, %v", list, err)
	}
	if id, err = e.AuthenticateCertificate(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	root.RequestID = randomID()
	if err := e.DeleteCredential(t.Context(), root, second); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Credentials(t.Context(), &iam.Caller{Identity: id, RequestID: randomID()}); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("a certificate that stands for root no longer: %v", err)
	}
}
