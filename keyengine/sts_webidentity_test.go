package keyengine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
	"github.com/conclavekms/conclave/keyengine/issuertest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// serviceAccount is what Kubernetes calls a service account in its tokens.
const serviceAccount = "system:serviceaccount:shop:payments"

// allowIssuers has all engines fetch the keys of an issuer of this test.
func (c *testCluster) allowIssuers(i *issuertest.Issuer) {
	c.t.Helper()
	for _, e := range c.engines {
		e.services.Issuers.Close()
		e.services.Issuers = webidentity.NewIssuers(webidentity.Config{AllowPrivate: true, Roots: i.Roots(), Timeout: 30 * time.Second}, c.Clock.Now)
	}
}

// register registers an issuer for an audience. The keys are read from the issuer if there are
// none.
func (c *testCluster) register(i *issuertest.Issuer, keys []byte, audiences ...string) {
	c.t.Helper()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: &fsmpb.OidcProvider{
		Account: uint64(testAccountNumber), Url: i.Name(), ClientIds: audiences, Created: c.Clock.Now().UnixNano(), Jwks: keys,
	}}})
}

// editProvider changes the registration of an issuer.
func (c *testCluster) editProvider(i *issuertest.Issuer, edit func(*fsmpb.OidcProvider)) {
	c.t.Helper()
	p, _ := fsm.Object[*fsmpb.OidcProvider](c.State(), fsm.OidcProviderID(testAccountNumber, i.Name()))
	p = proto.CloneOf(p)
	edit(p)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: p}})
}

func providerARN(i *issuertest.Issuer) string {
	return "arn:aws:iam::111122223333:oidc-provider/" + i.Name()
}

// trustsWeb returns a trust policy that lets the identities of an issuer assume a role, within
// conditions whose keys are without the issuer.
func trustsWeb(i *issuertest.Issuer, condition string) string {
	if condition != "" {
		condition = `,"Condition":` + strings.ReplaceAll(condition, "ISSUER", i.Name())
	}
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"` + providerARN(i) + `"},` +
		`"Action":["sts:AssumeRoleWithWebIdentity","sts:TagSession","sts:SetSourceIdentity"]` + condition + `}]}`
}

// web assumes a role with a token on a node.
func (c *testCluster) web(e *Engine, role, token string) (*iamapi.AssumeRoleWithWebIdentityOutput, error) {
	return callAs[iamapi.AssumeRoleWithWebIdentityOutput](c, e, iam.Identity{}, "AssumeRoleWithWebIdentity", &iamapi.AssumeRoleWithWebIdentityInput{
		RoleArn: &role, RoleSessionName: new("pod"), WebIdentityToken: &token,
	})
}

func TestWebIdentity(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"issuer", "file"} {
		t.Run("keys from the "+from, func(t *testing.T) {
			t.Parallel()
			i, c := issuertest.New(t), newTestCluster(t)
			c.allowIssuers(i)
			key, _ := c.newKey()
			c.setPolicy(key, policyDocument(rootStatement))
			keys := map[string][]byte{"file": i.Keys(), "issuer": nil}[from]
			c.register(i, keys, "sts.amazonaws.com", "conclave")
			role := c.storeRole(testAccountNumber, "app", trustsWeb(i, `{"StringEquals":{"ISSUER:sub":"`+serviceAccount+`","ISSUER:aud":"conclave"}}`),
				`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"`+i.Name()+`:sub":"`+serviceAccount+`"}}}]}`)
			out, err := c.web(c.engine, role, i.Sign(i.Claims(c.Clock.Now(), serviceAccount, "conclave")))
			if err != nil {
				t.Fatal(err)
			}
			if *out.SubjectFromWebIdentityToken != serviceAccount || *out.Provider != providerARN(i) || *out.Audience != "conclave" ||
				*out.AssumedRoleUser.Arn != "arn:aws:sts::111122223333:assumed-role/app/pod" {
				t.Errorf("got %s, %s, %s, %s", *out.SubjectFromWebIdentityToken, *out.Provider, *out.Audience, *out.AssumedRoleUser.Arn)
			}
			rec := c.lastRecord()
			if id := rec.Identity; id.Type != "WebIdentityUser" || id.PrincipalId != providerARN(i)+":conclave:"+serviceAccount || id.UserName != serviceAccount || id.Arn != "" {
				t.Errorf("the record has identity %v", id)
			}
			if text := rec.String(); strings.Contains(text, *out.Credentials.SecretAccessKey) || strings.Contains(text, "eyJ") {
				t.Error("the record has the token or the secret")
			}
			if n := i.Requests.Load(); (n == 0) != (from == "file") {
				t.Errorf("the issuer was asked %d times", n)
			}
			id := c.withTemporary(c.engine, out.Credentials)
			if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, id, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); err != nil {
				t.Error(err)
			}
			federated := auditfield.TextMap("webIdFederationData", map[string]string{"federatedProvider": providerARN(i)})
			if got := c.lastRecord().Identity.SessionContext; !slices.ContainsFunc(got, func(f *auditpb.Field) bool { return proto.Equal(f, federated) }) {
				t.Errorf("the session's record has the context %v, want %v in it", got, federated)
			}
		})
	}
}

// Requests whose token proves nothing are refused without a record, and those that the trust
// policy refuses are recorded.
func TestRefusedWebIdentities(t *testing.T) {
	t.Parallel()
	i, stranger, c := issuertest.New(t), issuertest.New(t), newTestCluster(t)
	c.allowIssuers(i)
	c.allowManyRefusals()
	c.register(i, nil, "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, `{"StringEquals":{"ISSUER:sub":"`+serviceAccount+`"},"ForAnyValue:StringEquals":{"ISSUER:amr":"hardware"}}`), "")
	now := c.Clock.Now()
	good := i.Claims(now, serviceAccount, "conclave").With(issuertest.Claims{"amr": []string{"password", "hardware"}})
	if _, err := c.web(c.engine, role, i.Sign(good)); err != nil {
		t.Fatal(err)
	}
	const denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
	for name, tt := range map[string]struct {
		role, token string
		kind        *kmsapi.Error
		message     string
		recorded    bool
	}{
		"other issuer":        {role, stranger.Sign(stranger.Claims(now, serviceAccount, "conclave")), iamapi.ErrInvalidIdentityToken, "No OpenIDConnect provider found in your account for " + stranger.URL, false},
		"claims to be it":     {role, stranger.Sign(good), iamapi.ErrInvalidIdentityToken, "…", false},
		"audience":            {role, i.Sign(good.With(issuertest.Claims{"aud": "other"})), iamapi.ErrInvalidIdentityToken, "Incorrect token audience", false},
		"no audience":         {role, i.Sign(good.With(issuertest.Claims{"aud": nil})), iamapi.ErrInvalidIdentityToken, "Incorrect token audience", false},
		"expired":             {role, i.Sign(good.With(issuertest.Claims{"exp": now.Unix()})), kmsapi.ErrExpiredToken, "…", false},
		"not yet":             {role, i.Sign(good.With(issuertest.Claims{"nbf": now.Unix() + 301})), iamapi.ErrInvalidIdentityToken, "…", false},
		"not a token":         {role, "token", iamapi.ErrInvalidIdentityToken, "…", false},
		"account":             {"arn:aws:iam::444455556666:role/app", i.Sign(good), iamapi.ErrInvalidIdentityToken, "…", false},
		"not a role":          {aliceARN, i.Sign(good), kmsapi.ErrValidation, "…", false},
		"invalid":             {"x", i.Sign(good), kmsapi.ErrValidation, "…", false},
		"subject":             {role, i.Sign(good.With(issuertest.Claims{"sub": "system:serviceaccount:shop:other"})), kmsapi.ErrAccessDenied, denied, true},
		"subject in capitals": {role, i.Sign(good.With(issuertest.Claims{"sub": "x", "SUB": serviceAccount})), kmsapi.ErrAccessDenied, denied, true},
		"amr":                 {role, i.Sign(good.With(issuertest.Claims{"amr": "password"})), kmsapi.ErrAccessDenied, denied, true},
		"absent role":         {"arn:aws:iam::111122223333:role/absent", i.Sign(good), kmsapi.ErrAccessDenied, denied, true},
		"several audiences":   {"arn:aws:iam::111122223333:role/absent", i.Sign(good.With(issuertest.Claims{"aud": []string{"x", "conclave"}})), kmsapi.ErrAccessDenied, denied, true},
	} {
		records := c.Audit.Size()
		_, err := c.web(c.engine, tt.role, tt.token)
		if err == nil {
			t.Errorf("%s: it is accepted", name)
			continue
		}
		wantError(t, err, tt.kind, tt.message)
		events := c.countRecordsSince(records, "AssumeRoleWithWebIdentity")
		if (events > 0) != tt.recorded {
			t.Errorf("%s: there are %d records", name, events)
		}
	}
}

// countRecordsSince returns the number of audit records of an event from an index on.
func (c *testCluster) countRecordsSince(from uint64, event string) (n int) {
	c.t.Helper()
	for i := from; i < c.Audit.Size(); i++ {
		e := c.Audit.Entries()[i]
		if b, err := c.engine.vault.OpenBody(e); err == nil && strings.Contains(string(b), event) {
			n++
		}
	}
	return n
}

// The tags and the source identity in AWS's claims of a token are those of the session.
func TestWebIdentityTags(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t)
	c.allowIssuers(i)
	c.register(i, i.Keys(), "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, `{"StringEquals":{"aws:RequestTag/Team":"blue"},"ForAllValues:StringEquals":{"aws:TagKeys":["Team"]}}`), "")
	untagged := c.storeRole(testAccountNumber, "untagged", strings.ReplaceAll(trustsWeb(i, ""), `"sts:TagSession",`, ""), "")
	next := c.storeRole(testAccountNumber, "next", trusts("arn:aws:iam::111122223333:role/app", `{"StringEquals":{"aws:PrincipalTag/Team":"blue","aws:SourceIdentity":"ann"}}`), "")
	tagged := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave").With(issuertest.Claims{
		"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"Team": []string{"blue"}}}, "https://aws.amazon.com/source_identity": "ann",
	}))
	out, err := c.web(c.engine, role, tagged)
	if err != nil {
		t.Fatal(err)
	}
	if out.SourceIdentity == nil || *out.SourceIdentity != "ann" {
		t.Error("the session does not have the source identity")
	}
	c.assume(c.withTemporary(c.engine, out.Credentials), assumeInput(next))
	_, err = c.web(c.engine, role, i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave")))
	wantError(t, err, kmsapi.ErrAccessDenied, "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	for _, claims := range []issuertest.Claims{
		{"https://aws.amazon.com/source_identity": "an ill-formed identity"},
		{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"Team": []string{strings.Repeat("b", 257)}}}},
		{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"": []string{"b"}}}},
	} {
		_, err = c.web(c.engine, role, i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave").With(claims)))
		wantError(t, err, iamapi.ErrInvalidIdentityToken, "The tags or the source identity in the token are not valid.")
	}
	long := strings.Repeat("s", 400)
	_, err = c.web(c.engine, "arn:aws:iam::111122223333:role/absent", i.Sign(i.Claims(c.Clock.Now(), long, "conclave")))
	wantError(t, err, kmsapi.ErrAccessDenied, "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	_, err = c.web(c.engine, untagged, tagged)
	wantError(t, err, kmsapi.ErrAccessDenied, "Not authorized to perform sts:TagSession")
}

// A token that expires before its request is recorded opens no session, also if the node's own
// clock is behind.
func TestWebIdentityExpiresByClusterTime(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t)
	c.register(i, i.Keys(), "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, ""), "")
	token := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
	c.Replica("n1").FallBehind()
	c.Advance(time.Hour)
	c.Clock.Advance(-time.Hour)
	_, err := c.web(c.engine, role, token)
	wantError(t, err, kmsapi.ErrExpiredToken, "…")
}

// What a web identity may do, and what its sessions may do, depends on its issuer's
// registration. All nodes notice a change of that at once, also those that are behind.
func TestProviderEverywhere(t *testing.T) {
	t.Parallel()
	remove := func(i *issuertest.Issuer) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_DeleteOidcProvider{DeleteOidcProvider: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: i.Name()}}}
	}
	for name, tt := range map[string]struct {
		change  func(c *testCluster, i *issuertest.Issuer)
		session *kmsapi.Error // what becomes of a session; nil if it goes on
		token   *kmsapi.Error // what becomes of the token
	}{
		"removed": {func(c *testCluster, i *issuertest.Issuer) { c.Change(remove(i)) }, kmsapi.ErrUnrecognizedClient, iamapi.ErrInvalidIdentityToken},
		"registered again": {func(c *testCluster, i *issuertest.Issuer) {
			c.Change(remove(i))
			c.Clock.Advance(time.Second)
			c.register(i, i.Keys(), "conclave")
		}, kmsapi.ErrExpiredToken, nil},
		"sessions revoked": {func(c *testCluster, i *issuertest.Issuer) {
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.RevokedBefore = c.Clock.Now().Add(time.Second).UnixNano() })
		}, kmsapi.ErrExpiredToken, nil},
		"audience removed": {func(c *testCluster, i *issuertest.Issuer) {
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.ClientIds = []string{"other"} })
		}, nil, iamapi.ErrInvalidIdentityToken},
		"keys replaced": {func(c *testCluster, i *issuertest.Issuer) {
			i.Rotate("ES256")
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.Jwks = i.Keys() })
		}, nil, iamapi.ErrInvalidIdentityToken},
		"trust taken away": {func(c *testCluster, i *issuertest.Issuer) {
			c.editTrust(testAccountNumber, "app", trusts(aliceARN, ""))
		}, nil, kmsapi.ErrAccessDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, c := issuertest.New(t), newTestCluster(t, withNodes(2))
			c.register(i, i.Keys(), "conclave")
			role := c.storeRole(testAccountNumber, "app", trustsWeb(i, ""), "")
			token := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
			n2 := c.engines["n2"]
			out, err := c.web(n2, role, token)
			if err != nil {
				t.Fatal(err)
			}
			id := c.withTemporary(n2, out.Credentials)
			who := func() error {
				_, err := callAs[iamapi.GetCallerIdentityOutput](c, n2, id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
				return err
			}
			if err := who(); err != nil {
				t.Fatal(err)
			}
			for _, ask := range []struct {
				what string
				do   func() error
				want *kmsapi.Error
			}{
				{"session", who, tt.session},
				{"token", func() error { _, err := c.web(n2, role, token); return err }, tt.token},
			} {
				c.Replica("n2").FallBehind()
				if ask.what == "session" {
					tt.change(c, i)
				} else {
					c.Replica("n2").CatchUp()
				}
				if err := ask.do(); ask.want == nil && err != nil || ask.want != nil && !errors.Is(err, ask.want) {
					t.Errorf("%s: got error %v, want %v", ask.what, err, ask.want)
				}
			}
			if tt.token != nil {
				return
			}
			// A session that is opened now is not ended by what came before.
			out, err = c.web(n2, role, i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave")))
			if err != nil {
				t.Fatal(err)
			}
			id = c.withTemporary(n2, out.Credentials)
			if err := who(); err != nil {
				t.Errorf("a new session: %v", err)
			}
		})
	}
}

// A token is refused at once on a node that has not heard that its issuer's registration has
// changed, and accepted on one that has not heard of the issuer yet.
func TestWebIdentityOnANodeThatIsBehind(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t, withNodes(2))
	n2 := c.engines["n2"]
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	token := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
	for _, step := range []struct {
		name   string
		change func()
		good   bool
	}{
		{"registered", func() {
			c.register(i, i.Keys(), "other")
			c.editTrust(testAccountNumber, "app", trustsWeb(i, ""))
		}, false},
		{"audience added", func() {
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.ClientIds = []string{"other", "conclave"} })
		}, true},
		{"keys replaced", func() {
			i.Rotate("RS256")
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.Jwks = i.Keys() })
			token = i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
		}, true},
		{"trust changed", func() {
			c.editTrust(testAccountNumber, "app", trustsWeb(i, `{"StringEquals":{"ISSUER:sub":"bob"}}`))
		}, false},
		{"trust restored", func() {
			c.editTrust(testAccountNumber, "app", trustsWeb(i, ""))
		}, true},
		{"audience removed", func() {
			c.editProvider(i, func(p *fsmpb.OidcProvider) { p.ClientIds = []string{"other"} })
		}, false},
	} {
		c.Replica("n2").FallBehind()
		step.change()
		if _, err := c.web(n2, role, token); (err == nil) != step.good {
			t.Errorf("%s: got error %v, want success %v", step.name, err, step.good)
		}
	}
}

// While a request holds up the log, no issuer is asked. The leader has asked it before.
func TestIssuersAreNotAskedWhileTheLogIsHeldUp(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t, withNodes(2))
	c.allowIssuers(i)
	c.register(i, nil, "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, ""), "")
	n := 0
	r := c.Replica("n2")
	r.BeforeCommit = func(*fsmpb.Record) {
		// What the request depends on changes each time, until the leader carries it out.
		n++
		c.editRole(testAccountNumber, "app", func(r *fsmpb.Role) { r.Description = fmt.Sprint(n) })
	}
	if _, err := c.web(c.engines["n2"], role, i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))); err != nil {
		t.Fatal(err)
	}
	if r.Forwarded.Load() != 1 {
		t.Errorf("the request was forwarded %d times, want once", r.Forwarded.Load())
	}
	if rec := c.lastRecord(); rec.EventName != "AssumeRoleWithWebIdentity" || rec.Identity.Type != "WebIdentityUser" || rec.Node != "n1" {
		t.Errorf("the record is %v", rec)
	}
}

func TestIssuerThatCannotBeReached(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t)
	c.allowIssuers(i)
	i.Break(true)
	c.register(i, nil, "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, ""), "")
	token := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave"))
	_, err := c.web(c.engine, role, token)
	wantError(t, err, iamapi.ErrIDPCommunication, "…")
	i.Break(false)
	c.Clock.Advance(5 * time.Second)
	if _, err := c.web(c.engine, role, token); err != nil {
		t.Errorf("once the issuer is back: %v", err)
	}
}

// Strangers that are refused are throttled by their address and do not keep others out, and
// refusals of those whom one issuer vouches for are recorded at a limited rate.
func TestWebIdentityLimits(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newTestCluster(t)
	c.register(i, i.Keys(), "conclave")
	role := c.storeRole(testAccountNumber, "app", trustsWeb(i, `{"StringEquals":{"ISSUER:sub":"ann"}}`), "")
	c.engine.limits = newLimits(Config{Clock: c.Clock, RefusalRate: 1, RefusalBurst: 5})
	good, denied := i.Sign(i.Claims(c.Clock.Now(), "ann", "conclave")), i.Sign(i.Claims(c.Clock.Now(), "eve", "conclave"))
	from := func(ip, token string) error {
		caller := c.caller(iam.Identity{})
		caller.SourceIP = ip
		_, err := callFor[iamapi.AssumeRoleWithWebIdentityOutput](c, c.engine, caller, "AssumeRoleWithWebIdentity", &iamapi.AssumeRoleWithWebIdentityInput{
			RoleArn: &role, RoleSessionName: new("pod"), WebIdentityToken: &token,
		})
		return err
	}
	for n := range 6 {
		if err := from("2001:db8::1", "garbage"); errors.Is(err, kmsapi.ErrThrottling) != (n == 5) {
			t.Errorf("request %d without a token: got error %v", n+1, err)
		}
	}
	if err := from("2001:db8::ffff:2", good); !errors.Is(err, kmsapi.ErrThrottling) {
		t.Errorf("from the same network: got error %v, want ErrThrottling", err)
	}
	for _, ip := range []string{"2001:db8:0:1::1", "192.0.2.7"} {
		if err := from(ip, good); err != nil {
			t.Errorf("from %s: %v", ip, err)
		}
	}
	before := c.Audit.Size()
	for n := range 20 {
		err := from(fmt.Sprintf("192.0.2.%d", 10+n), denied)
		if want := []*kmsapi.Error{kmsapi.ErrAccessDenied, kmsapi.ErrThrottling}[min(n/5, 1)]; !errors.Is(err, want) {
			t.Errorf("denial %d: got error %v, want %v", n+1, err, want)
		}
	}
	if n := c.Audit.Size() - before; n != 5 {
		t.Errorf("20 denials have %d records, want 5", n)
	}
	if err := from("192.0.2.99", good); err != nil {
		t.Errorf("a good token of the same issuer: %v", err)
	}
	c.engine.recordThrottled(t.Context())
	var counts []string
	for _, r := range nodeOf(c.engine).Records() {
		if r.EventName == "ThrottleRequests" {
			counts = append(counts, r.Identity.Type+" "+r.SourceIp[:4]+" "+fmt.Sprint(r.ServiceEventDetails[0].GetNumber()))
		}
	}
	slices.Sort(counts)
	if want := []string{"Unknown 2001 2", "WebIdentityUser 192. 15"}; !slices.Equal(counts, want) {
		t.Errorf("the records of throttled requests are %v, want %v", counts, want)
	}
}
