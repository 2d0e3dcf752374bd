package keyengine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	backupService = "backup.eu-central-1.example.com"
	otherService  = "Backup.eu-central-1.example.com"
	tableARN      = "arn:aws:dynamodb:eu-central-1:" + testAccount + ":table/Orders"
	otherTable    = "arn:aws:dynamodb:eu-central-1:" + testAccount + ":table/orders"
)

// callWithSource makes a request on behalf of a resource.
func (c *testCluster) callWithSource(e *Engine, id iam.Identity, source, op string, in any) (any, error) {
	caller := c.caller(id)
	caller.SourceArn = source
	return e.Do(c.t.Context(), caller, OperationNamed(KMS, op), in)
}

// grantToService makes a grant to a service as the root user.
func (c *testCluster) grantToService(key, service, source string, ops ...string) *kmsapi.CreateGrantOutput {
	c.t.Helper()
	return must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteeServicePrincipal: &service, RetiringServicePrincipal: &service,
		Operations: ops, Constraints: &kmsapi.GrantConstraints{SourceArn: &source}})
}

// A grant with a SourceArn allows only requests on behalf of that resource, for all operations and
// kinds of keys, and on every node once CreateGrant has returned.
func TestSourceArn(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(3))
	backup := c.newUser(backupService)
	nodes := []*Engine{c.engine, c.engines["n2"], c.engines["n3"]}
	symmetric, _ := c.newKey()
	signing, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	hmac, _ := c.newKeyOf("HMAC_256", kmsapi.UsageMac)
	for _, n := range []string{"n2", "n3"} {
		c.Replica(n).FallBehind() // so far behind that they have seen no grant
		defer c.Replica(n).CatchUp()
	}
	c.grantToService(symmetric, backupService, tableARN, "Encrypt", "GenerateDataKey", "DescribeKey")
	c.grantToService(signing, backupService, tableARN, "Sign", "GetPublicKey", "DescribeKey")
	c.grantToService(hmac, backupService, tableARN, "GenerateMac")
	for i, e := range nodes {
		for _, req := range []struct {
			op string
			in any
		}{
			{"Encrypt", &kmsapi.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x")}},
			{"GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &symmetric, KeySpec: new(kmsapi.DataKeyAES256)}},
			{"DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &symmetric}},
			{"Sign", c.signInput(signing)},
			{"GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &signing}},
			{"DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &signing}},
			{"GenerateMac", c.macInput(hmac)},
		} {
			if _, err := c.callWithSource(e, backup, tableARN, req.op, req.in); err != nil {
				t.Errorf("n%d, %s with the source of the grant: %v", i+1, req.op, err)
			}
			for _, source := range []string{"", otherTable, tableARN + "/index", strings.ToUpper(tableARN[:3]) + tableARN[3:], strings.Replace(tableARN, "Orders", "*", 1), "*"} {
				_, err := c.callWithSource(e, backup, source, req.op, req.in)
				if !errors.Is(err, kmsapi.ErrAccessDenied) && !(errors.Is(err, kmsapi.ErrValidation) && !kmsapi.PatternOf("sourceArn").Match(source)) {
					t.Errorf("n%d, %s with source %q: got error %v, want AccessDeniedException", i+1, req.op, source, err)
				}
			}
		}
		c.Clock.Advance(1e10) // refusals are limited by time
	}
}

// Only a service may name a source, and a grant with a SourceArn to anybody else allows nothing.
func TestSourceArnOfOrdinaryCallers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, _ := c.newKey()
	alice, backup := c.newUser(aliceARN), c.newUser(backupService)
	grant := func(grantee string) {
		must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: &grantee, Operations: []string{"Encrypt", "DescribeKey"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}})
	}
	grant(aliceARN)
	in := &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}
	for _, source := range []string{"", tableARN, otherTable} {
		for op, in := range map[string]any{"Encrypt": in, "DescribeKey": &kmsapi.DescribeKeyInput{KeyId: &id}} {
			_, err := c.callWithSource(c.engine, alice, source, op, in)
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
		}
	}
	// The same holds for callers who need no grant.
	_, err := c.callWithSource(c.engine, c.root, tableARN, "Encrypt", in)
	wantError(t, err, kmsapi.ErrAccessDenied, request.ErrNoSource.Message)
	if _, err := c.callWithSource(c.engine, c.root, "", "Encrypt", in); err != nil {
		t.Errorf("Encrypt by the root user without a source: %v", err)
	}
	// A service may do only what it was granted, not what a policy allows everybody.
	if _, err := c.callWithSource(c.engine, backup, tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("service without a grant: got error %v, want AccessDeniedException", err)
	}
	c.setPolicy(id, policyDocument(rootStatement, `{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`))
	if _, err := c.callWithSource(c.engine, backup, tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("service with a policy that allows everybody: got error %v, want AccessDeniedException", err)
	}
	c.grantToService(id, backupService, tableARN, "Encrypt")
	if _, err := c.callWithSource(c.engine, backup, tableARN, "Encrypt", in); err != nil {
		t.Errorf("service with a grant: %v", err)
	}
	if _, err := c.callWithSource(c.engine, c.newUser(otherService), tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("another service: got error %v, want AccessDeniedException", err)
	}
	c.setPolicy(id, policyDocument(rootStatement, `{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}`))
	_, err = c.callWithSource(c.engine, backup, tableARN, "Encrypt", in)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	for op, in := range map[string]any{"ListKeys": &kmsapi.ListKeysInput{}, "CreateKey": &kmsapi.CreateKeyInput{}, "GenerateRandom": &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))},
		"ListGrants": &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService)}, "PutKeyPolicy": &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: new(policyDocument(rootStatement))}} {
		if _, err := c.callWithSource(c.engine, backup, tableARN, op, in); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s by a service: got error %v, want AccessDeniedException", op, err)
		}
	}
}

// A grant may have a SourceArn and an encryption context, and both apply.
func TestSourceArnAndContext(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(bobARN)
	backup := c.newUser(backupService)
	for kind, constraints := range map[string]*kmsapi.GrantConstraints{"equals": equals(contextOf("app", "one")), "subset": subset(contextOf("app", "one"))} {
		id, arn := c.newKey()
		constraints.SourceArn = new(tableARN)
		out := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(backupService), RetiringPrincipal: new(bobARN),
			Operations: []string{"Encrypt"}, Constraints: constraints})
		want := kmsapi.GrantListEntry{KeyId: &arn, GrantId: out.GrantId, Name: new(""), CreationDate: ops.TimeOf(c.Clock.Now().UnixNano()), GranteeServicePrincipal: new(backupService),
			RetiringPrincipal: new(bobARN), IssuingAccount: new("arn:aws:iam::" + testAccount + ":root"), Operations: []string{"Encrypt"}, Constraints: constraints}
		if d := cmp.Diff([]kmsapi.GrantListEntry{want}, c.listGrants(id)); d != "" {
			t.Errorf("ListGrants (-want +got):\n%s", d)
		}
		for _, tt := range []struct {
			source  string
			context map[string]string
			want    bool
		}{
			{tableARN, contextOf("app", "one"), true},
			{tableARN, contextOf("APP", "one"), true},
			{tableARN, contextOf("app", "two"), false},
			{tableARN, nil, false},
			{otherTable, contextOf("app", "one"), false},
			{"", contextOf("app", "one"), false},
		} {
			_, err := c.callWithSource(c.engine, backup, tt.source, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: tt.context})
			if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s, with source %q and context %v: got error %v, want allowed %v", kind, tt.source, tt.context, err, tt.want)
			}
		}
	}
}

// Empty maps in the constraints are accepted beside others, since Terraform's provider sends them.
func TestEmptyConstraintMaps(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	for name, tt := range map[string]struct{ sent, want *kmsapi.GrantConstraints }{
		"empty subset beside equals": {&kmsapi.GrantConstraints{EncryptionContextEquals: contextOf("a", "1"), EncryptionContextSubset: contextOf()}, equals(contextOf("a", "1"))},
		"empty equals beside subset": {&kmsapi.GrantConstraints{EncryptionContextSubset: contextOf("a", "1"), EncryptionContextEquals: contextOf()}, subset(contextOf("a", "1"))},
		"empty subset":               {subset(contextOf()), nil},
		"empty subset and a source":  {&kmsapi.GrantConstraints{EncryptionContextSubset: contextOf(), SourceArn: new(tableARN)}, &kmsapi.GrantConstraints{SourceArn: new(tableARN)}},
	} {
		id, _ := c.newKey()
		must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, Constraints: tt.sent})
		if d := cmp.Diff(tt.want, c.listGrants(id)[0].Constraints); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Services are found in lists of grants, may retire grants, and are named in audit records.
func TestGrantsOfServices(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN, bobARN)
	id, arn := c.newKey()
	backup, other := c.newUser(backupService), c.newUser(otherService)
	first := c.grantToService(id, backupService, tableARN, "Encrypt", "RetireGrant")
	second := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringServicePrincipal: new(backupService), Operations: []string{"Encrypt"}})
	third := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(otherService), RetiringPrincipal: new(bobARN),
		Operations: []string{"Encrypt", "RetireGrant"}, Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}})

	got := grantIDs(must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService)}).Grants)
	if d := cmp.Diff([]string{*first.GrantId}, got); d != "" {
		t.Errorf("grants to the service (-want +got):\n%s", d)
	}
	if n := len(must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService), GrantId: third.GrantId}).Grants); n != 0 {
		t.Errorf("ListGrants of one service lists %d grants of another, want 0", n)
	}
	_, err := call[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService), GranteePrincipal: new(aliceARN)})
	wantError(t, err, kmsapi.ErrValidation, "You can specify either GranteePrincipal or GranteeServicePrincipal, but not both.")

	// Only the service itself may list what it may retire.
	mine := &kmsapi.ListRetirableGrantsInput{RetiringServicePrincipal: new(backupService)}
	list, err := callAs[kmsapi.ListRetirableGrantsOutput](c, c.engine, backup, "ListRetirableGrants", mine)
	if err != nil || len(list.Grants) != 2 || list.Grants[0].RetiringPrincipal != nil || *list.Grants[0].RetiringServicePrincipal != backupService {
		t.Errorf("retirable grants of the service: got %v, error %v; want two", list, err)
	}
	for name, who := range map[string]iam.Identity{"another service": other, "the account": c.root, "a user": c.newUser(aliceARN)} {
		if _, err := callAs[kmsapi.ListRetirableGrantsOutput](c, c.engine, who, "ListRetirableGrants", mine); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("ListRetirableGrants of the service by %s: got error %v, want AccessDeniedException", name, err)
		}
	}
	_, err = callAs[kmsapi.ListRetirableGrantsOutput](c, c.engine, backup, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(bobARN)})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, err = call[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{})
	wantError(t, err, kmsapi.ErrValidation, "You must specify either RetiringPrincipal or RetiringServicePrincipal.")
	_, err = call[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringServicePrincipal: new(backupService), RetiringPrincipal: new(bobARN)})
	wantError(t, err, kmsapi.ErrValidation, "You can specify either RetiringPrincipal or RetiringServicePrincipal, but not both.")

	if _, err := c.callWithSource(c.engine, backup, tableARN, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	rec := c.lastRecord()
	if i := rec.Identity; i.Type != "AWSService" || i.InvokedBy != backupService || i.Arn != "" || i.AccountId != "" || !strings.Contains(fmt.Sprint(rec.Additional), tableARN) {
		t.Errorf("unexpected record of a service's request: %v, %v", rec.Identity, rec.Additional)
	}

	// A grant's SourceArn does not restrict who may retire it.
	for _, tt := range []struct {
		name  string
		who   iam.Identity
		grant *kmsapi.CreateGrantOutput
		want  *kmsapi.Error
	}{
		{"retiring service", backup, second, kmsapi.ErrDryRun},
		{"another service", other, second, kmsapi.ErrAccessDenied},
		{"grantee service", backup, first, kmsapi.ErrDryRun},
		{"a service that may not", backup, third, kmsapi.ErrAccessDenied},
		{"grantee service with RetireGrant", other, third, kmsapi.ErrDryRun},
		{"the account that made it", c.root, first, kmsapi.ErrDryRun},
	} {
		_, err := callAs[request.None](c, c.engine, tt.who, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: tt.grant.GrantId, DryRun: new(true)})
		if !errors.Is(err, tt.want) {
			t.Errorf("RetireGrant by %s: got error %v, want %v", tt.name, err, tt.want.Code)
		}
	}
	if _, err := callAs[request.None](c, c.engine, backup, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: second.GrantToken}); err != nil {
		t.Errorf("RetireGrant by the service with a token: %v", err)
	}
}

// Whoever may make grants only by a grant with a SourceArn can only make grants with that
// SourceArn, and only in requests on behalf of that resource.
func TestChildSource(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, _ := c.newKey()
	backup := c.newUser(backupService)
	c.grantToService(id, backupService, tableARN, "Encrypt", "CreateGrant")
	child := func(source *string) *kmsapi.CreateGrantInput {
		return &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(otherService), RetiringServicePrincipal: new(backupService), Operations: []string{"Encrypt"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: source}}
	}
	toAlice := child(nil)
	toAlice.GranteePrincipal, toAlice.GranteeServicePrincipal = new(aliceARN), nil
	for _, tt := range []struct {
		name, source string
		in           *kmsapi.CreateGrantInput
		want         bool
	}{
		{"the same", tableARN, child(new(tableARN)), true},
		{"another", tableARN, child(new(otherTable)), false},
		{"none", tableARN, toAlice, false},
		{"the same, in a request for another", otherTable, child(new(tableARN)), false},
		{"the same, in a request for none", "", child(new(tableARN)), false},
	} {
		_, err := c.callWithSource(c.engine, backup, tt.source, "CreateGrant", tt.in)
		if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s: got error %v, want allowed %v", tt.name, err, tt.want)
		}
	}
	for _, g := range c.listGrants(id) {
		if *g.IssuingAccount != "arn:aws:iam::"+testAccount+":root" {
			t.Errorf("a grant has issuer %s, want the account", *g.IssuingAccount)
		}
	}
}
