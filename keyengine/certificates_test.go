package keyengine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// mappingTrust is a trust policy for the certificates of a mapping.
func mappingTrust(effect, uri string, conditions ...string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"` + effect + `","Principal":{"Federated":"arn:aws:iam::` + testAccountNumber.String() +
		`:certificate-mapping/` + uri + `"},"Action":["sts:AssumeRole","sts:SetSourceIdentity"]` + strings.Join(conditions, "") + `}]}`
}

// Each operation on certificate mappings needs its permission in the account that administers
// the cluster, and leaves a record, whether it is allowed or not.
func TestCertificateMappingsArePermitted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	c.putAccount(otherAccount)
	outsider := c.storeUser(otherAccount, "admin", policyDocument(everything))
	c.putRole("app", func(*fsmpb.Role) {})
	const pattern, role = "spiffe://test/ns/*", "arn:aws:iam::" + testAccount + ":role/app"
	for _, tt := range []struct {
		name string
		do   func(*iam.Caller) error
	}{
		{"CreateCertificateMapping", func(by *iam.Caller) error {
			_, err := c.engine.CreateCertificateMapping(t.Context(), by, pattern, role)
			return err
		}},
		{"ListCertificateMappings", func(by *iam.Caller) error { _, err := c.engine.CertificateMappings(t.Context(), by); return err }},
		{"DeleteCertificateMapping", func(by *iam.Caller) error { return c.engine.DeleteCertificateMapping(t.Context(), by, pattern) }},
	} {
		action := "conclave:" + tt.name
		may := c.newPerson("may-"+tt.name, allow(action, "*"))
		for who, by := range map[string]iam.Identity{
			"a user with nothing":                 c.newPerson("no-"+tt.name, allow("iam:*", "*")).identity,
			"a user with all but that":            c.newPerson("other-"+tt.name, everything, deny(action, "*")).identity,
			"an administrator of another account": outsider,
		} {
			if err := tt.do(c.caller(by)); !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s by %s: got error %v, want AccessDeniedException", tt.name, who, err)
			}
			if r := c.lastRecord(); r.EventName != tt.name || r.ErrorCode != string(kmsapi.ErrAccessDenied.Code) {
				t.Errorf("%s by %s: the record says %s, %q", tt.name, who, r.EventName, r.ErrorCode)
			}
		}
		if err := tt.do(c.caller(may.identity)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if r := c.lastRecord(); r.EventName != tt.name || r.ErrorCode != "" || r.Identity.UserName != may.name {
			t.Errorf("%s: the record says %s by %s, %q", tt.name, r.EventName, r.Identity.UserName, r.ErrorCode)
		}
	}
}

func (c *testCluster) putMapping(pattern, principal string) {
	c.t.Helper()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCertificateMapping{PutCertificateMapping: &fsmpb.CertificateMapping{
		Account: uint64(testAccountNumber), Pattern: pattern, PrincipalAccount: uint64(testAccountNumber), Principal: principal, Created: 1,
	}}})
}

func (c *testCluster) deleteMapping(pattern string) {
	c.t.Helper()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteCertificateMapping{DeleteCertificateMapping: &fsmpb.CertificateMappingID{
		Account: uint64(testAccountNumber), Pattern: pattern,
	}}})
}

// certified returns the identity of a mapped certificate.
func (c *testCluster) certified(uri string) iam.Identity {
	c.t.Helper()
	id, err := c.engine.AuthenticateCertificate(c.t.Context(), iam.Certificate{URI: uri, Serial: "0a1b", NotAfter: c.Clock.Now().Add(time.Hour)})
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// An administrator maps certificates to a user and to a role. The longest pattern decides, the
// trust policy of the role decides too, and deleting the mapping ends what it gave.
func TestCertificateMappings(t *testing.T) {
	t.Parallel()
	f := newReadFixture(t)
	e, root := f.engine, f.caller(f.root)
	code := func(err error) string { c, _ := record.Outcome(err); return c }
	encrypt := func(id iam.Identity) error {
		_, err := e.Do(t.Context(), f.caller(id), OperationNamed(KMS, "Encrypt"), &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")})
		return err
	}
	conditional := `,"Condition":{"StringLike":{"conclave:CertificateUri":"spiffe://test/ns/shop/*"},"StringEquals":{"sts:RoleSessionName":"web"}}`
	f.putUser("ann", func(u *fsmpb.User) { u.Inline = inline(allow("kms:*", "*")) })
	f.putRole("app", func(r *fsmpb.Role) {
		r.Inline = inline(strings.Replace(allow("kms:*", "*"), `"Resource"`,
			`"Condition":{"StringEquals":{"aws:SourceIdentity":"spiffe://test/ns/shop/web"},"Null":{"aws:TokenIssueTime":"true"}},"Resource"`, 1))
		r.Trust = mappingTrust("Allow", "spiffe://test/ns/", conditional)
	})
	arn, err := e.CreateCertificateMapping(t.Context(), root, "spiffe://test/ns/*", "arn:aws:iam::"+testAccountNumber.String()+":role/app")
	if want := "arn:aws:iam::" + testAccountNumber.String() + ":certificate-mapping/spiffe://test/ns/"; err != nil || arn != want {
		t.Fatalf("got ARN %s and error %v, want %s", arn, err, want)
	}
	web := f.certified("spiffe://test/ns/shop/web")
	if err := encrypt(web); err != nil {
		t.Errorf("with a certificate of a role: %v", err)
	}
	recs := nodeOf(e).Records()
	if r := recs[len(recs)-1]; r.Identity.Type != "AssumedRole" || !strings.HasSuffix(r.Identity.Arn, ":assumed-role/app/web") || r.Identity.Certificate != "spiffe://test/ns/shop/web" {
		t.Errorf("unexpected record: %v", r)
	}
	for until, want := range map[time.Time]string{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC): "", f.Clock.Now().Add(-time.Second): "UnrecognizedClientException", {}: "UnrecognizedClientException"} {
		id, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: "spiffe://test/ns/shop/web", Serial: "0a", NotAfter: until})
		if err != nil {
			t.Fatal(err)
		}
		if err := encrypt(id); (err == nil) != (want == "") {
			t.Errorf("with a certificate until %v: got error %v, want %q", until, err, want)
		}
	}
	job := f.certified("spiffe://test/ns/shop/job")
	if err := encrypt(job); code(err) != "AccessDeniedException" {
		t.Errorf("without trust: got error %v, want AccessDeniedException", err)
	}
	recs = nodeOf(e).Records()
	if r := recs[len(recs)-1]; r.Identity.Type != "CertificateUser" || r.Identity.Certificate != "spiffe://test/ns/shop/job" || r.ErrorCode != "AccessDeniedException" {
		t.Errorf("unexpected record of a refusal: %v", r)
	}
	if _, err := e.Accounts(t.Context(), f.caller(job)); code(err) != "AccessDeniedException" {
		t.Errorf("accounts without trust: got error %v, want AccessDeniedException", err)
	}
	const exact = "spiffe://test/ns/shop/job"
	if _, err := e.CreateCertificateMapping(t.Context(), root, exact, "arn:aws:iam::"+testAccountNumber.String()+":user/ann"); err != nil {
		t.Fatal(err)
	}
	if err := encrypt(job); err != nil {
		t.Errorf("with a certificate that a longer pattern maps to a user: %v", err)
	}
	if _, err := e.Do(t.Context(), f.caller(job), OperationNamed(STS, "GetSessionToken"), &iamapi.GetSessionTokenInput{}); code(err) != "AccessDeniedException" && code(err) != "AccessDenied" {
		t.Errorf("GetSessionToken: got error %v, want AccessDenied", err)
	}
	if list, err := e.CertificateMappings(t.Context(), root); err != nil || len(list) != 2 || list[1].Pattern != exact || !strings.HasSuffix(list[1].Principal, ":user/ann") {
		t.Errorf("got list %v and error %v", list, err)
	}
	for _, tt := range []struct{ name, pattern, principal, want string }{
		{"again", exact, "user/ann", "EntityAlreadyExists"},
		{"node", "conclave://node/*", "user/ann", "ValidationException"},
		{"operators", "conclave://operator/*", "user/ann", "ValidationException"},
		{"root user", "spiffe://test/root", "root", "ValidationException"},
		{"nobody", "spiffe://test/nobody", "user/nobody", "NoSuchEntity"},
	} {
		if _, err := e.CreateCertificateMapping(t.Context(), root, tt.pattern, "arn:aws:iam::"+testAccountNumber.String()+":"+tt.principal); !strings.HasPrefix(code(err), tt.want) {
			t.Errorf("%s: got error %v, want %s", tt.name, err, tt.want)
		}
	}
	if _, err := e.CreateCertificateMapping(t.Context(), f.caller(job), "spiffe://test/other", "arn:aws:iam::"+testAccountNumber.String()+":user/ann"); code(err) != "AccessDeniedException" {
		t.Errorf("mapped by a user without permission: got error %v, want AccessDeniedException", err)
	}
	for _, pattern := range []string{exact, "spiffe://test/ns/*"} {
		if err := e.DeleteCertificateMapping(t.Context(), root, pattern); err != nil {
			t.Fatal(err)
		}
	}
	if err := encrypt(web); code(err) != "UnrecognizedClientException" {
		t.Errorf("after its mapping was deleted: got error %v, want UnrecognizedClientException", err)
	}
	if _, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: exact, NotAfter: f.Clock.Now().Add(time.Hour)}); err != iam.ErrUnrecognized {
		t.Errorf("after its mapping was deleted: got error %v, want ErrUnrecognized", err)
	}
	if n, _ := fsm.Object[*fsmpb.CertificateMapping](f.State(), fsm.CertificateMappingID(testAccountNumber, exact)); n != nil {
		t.Error("the mapping is there still")
	}
}
