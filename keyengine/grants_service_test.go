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

// from is a request that is made for a resource.
func (r *room) from(e *Engine, id iam.Identity, source, op string, in any) (any, error) {
	c := r.caller(id)
	c.SourceArn = source
	return e.Do(r.t.Context(), c, OperationNamed(op), in)
}

// grantToService makes a grant as the account's root user.
func (r *room) grantToService(key, service, source string, ops ...string) *kmsapi.CreateGrantOutput {
	r.t.Helper()
	return must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteeServicePrincipal: &service, RetiringServicePrincipal: &service,
		Operations: ops, Constraints: &kmsapi.GrantConstraints{SourceArn: &source}})
}

// TestSourceArn: a grant that is narrowed to one resource admits only requests that
// are made for it, whatever the operation and the kind of key, on every node from the
// moment on that CreateGrant has returned.
func TestSourceArn(t *testing.T) {
	r := newRoom(t, "n1", "n2", "n3")
	backup := r.user(backupService)
	nodes := []*Engine{r.first, r.engines["n2"], r.engines["n3"]}
	symmetric, _ := r.newKey()
	signing, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	hmac, _ := r.newKeyOf("HMAC_256", kmsapi.UsageMac)
	for _, n := range []string{"n2", "n3"} {
		r.cluster.replica(n).freeze() // so far behind that they have seen no grant
		defer r.cluster.replica(n).thaw()
	}
	r.grantToService(symmetric, backupService, tableARN, "Encrypt", "GenerateDataKey", "DescribeKey")
	r.grantToService(signing, backupService, tableARN, "Sign", "GetPublicKey", "DescribeKey")
	r.grantToService(hmac, backupService, tableARN, "GenerateMac")
	for i, e := range nodes {
		for _, req := range []struct {
			op string
			in any
		}{
			{"Encrypt", &kmsapi.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x")}},
			{"GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &symmetric, KeySpec: new(kmsapi.DataKeyAES256)}},
			{"DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &symmetric}},
			{"Sign", r.signInput(signing)},
			{"GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &signing}},
			{"DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &signing}},
			{"GenerateMac", r.macInput(hmac)},
		} {
			if _, err := r.from(e, backup, tableARN, req.op, req.in); err != nil {
				t.Errorf("node %d, %s for the resource: %v", i+1, req.op, err)
			}
			for _, source := range []string{"", otherTable, tableARN + "/index", strings.ToUpper(tableARN[:3]) + tableARN[3:], strings.Replace(tableARN, "Orders", "*", 1), "*"} {
				_, err := r.from(e, backup, source, req.op, req.in)
				if !errors.Is(err, kmsapi.ErrAccessDenied) && !(errors.Is(err, kmsapi.ErrValidation) && !kmsapi.PatternOf("sourceArn").Match(source)) {
					t.Errorf("node %d, %s for %q: %v", i+1, req.op, source, err)
				}
			}
		}
		r.cluster.clock.advance(1e10) // refusals are limited by time
	}
}

// TestSourceArnOfOrdinaryCallers: nobody but a service says what a request is made
// for, and a grant to somebody else that is narrowed to a resource gives nothing.
func TestSourceArnOfOrdinaryCallers(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	alice, backup := r.user(aliceARN), r.user(backupService)
	grant := func(grantee string) {
		must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: &grantee, Operations: []string{"Encrypt", "DescribeKey"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}})
	}
	grant(aliceARN)
	in := &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}
	for _, source := range []string{"", tableARN, otherTable} {
		for op, in := range map[string]any{"Encrypt": in, "DescribeKey": &kmsapi.DescribeKeyInput{KeyId: &id}} {
			_, err := r.from(r.first, alice, source, op, in)
			wantError(t, err, kmsapi.ErrAccessDenied, "…")
		}
	}
	// Not even where the caller needs no grant, so that no request has a source that
	// it may not have.
	_, err := r.from(r.first, r.root, tableARN, "Encrypt", in)
	wantError(t, err, kmsapi.ErrAccessDenied, request.ErrNoSource.Message)
	if _, err := r.from(r.first, r.root, "", "Encrypt", in); err != nil {
		t.Error(err)
	}
	// A service has what it was granted, and nothing of what everybody has.
	if _, err := r.from(r.first, backup, tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("a service without a grant: %v", err)
	}
	r.setPolicy(id, r.policyFor(rootStatement, `{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`))
	if _, err := r.from(r.first, backup, tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("a service and a policy for everybody: %v", err)
	}
	r.grantToService(id, backupService, tableARN, "Encrypt")
	if _, err := r.from(r.first, backup, tableARN, "Encrypt", in); err != nil {
		t.Error(err)
	}
	if _, err := r.from(r.first, r.user(otherService), tableARN, "Encrypt", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("another service: %v", err)
	}
	r.setPolicy(id, r.policyFor(rootStatement, `{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}`))
	_, err = r.from(r.first, backup, tableARN, "Encrypt", in)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	for op, in := range map[string]any{"ListKeys": &kmsapi.ListKeysInput{}, "CreateKey": &kmsapi.CreateKeyInput{}, "GenerateRandom": &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))},
		"ListGrants": &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService)}, "PutKeyPolicy": &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: new(r.policyFor(rootStatement))}} {
		if _, err := r.from(r.first, backup, tableARN, op, in); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s by a service: %v", op, err)
		}
	}
}

// TestSourceArnAndContext: a grant may be narrowed both ways, and both hold.
func TestSourceArnAndContext(t *testing.T) {
	r := newRoom(t)
	backup := r.user(backupService)
	for kind, c := range map[string]*kmsapi.GrantConstraints{"equals": equals(contextOf("app", "one")), "subset": subset(contextOf("app", "one"))} {
		id, arn := r.newKey()
		c.SourceArn = new(tableARN)
		out := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(backupService), RetiringPrincipal: new(bobARN),
			Operations: []string{"Encrypt"}, Constraints: c})
		want := kmsapi.GrantListEntry{KeyId: &arn, GrantId: out.GrantId, Name: new(""), CreationDate: ops.TimeOf(r.cluster.clock.Now().UnixNano()), GranteeServicePrincipal: new(backupService),
			RetiringPrincipal: new(bobARN), IssuingAccount: new("arn:aws:iam::" + testAccount + ":root"), Operations: []string{"Encrypt"}, Constraints: c}
		if d := cmp.Diff([]kmsapi.GrantListEntry{want}, r.grantsOf(id)); d != "" {
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
			_, err := r.from(r.first, backup, tt.source, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: tt.context})
			if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s, for %q in %v: %v, want allowed: %v", kind, tt.source, tt.context, err, tt.want)
			}
		}
	}
}

// TestEmptyConstraintMaps: Terraform's provider sends the map that it has nothing for
// as an empty one.
func TestEmptyConstraintMaps(t *testing.T) {
	r := newRoom(t)
	for name, tt := range map[string]struct{ sent, want *kmsapi.GrantConstraints }{
		"empty subset beside equals": {&kmsapi.GrantConstraints{EncryptionContextEquals: contextOf("a", "1"), EncryptionContextSubset: contextOf()}, equals(contextOf("a", "1"))},
		"empty equals beside subset": {&kmsapi.GrantConstraints{EncryptionContextSubset: contextOf("a", "1"), EncryptionContextEquals: contextOf()}, subset(contextOf("a", "1"))},
		"empty subset":               {subset(contextOf()), nil},
		"empty subset and a source":  {&kmsapi.GrantConstraints{EncryptionContextSubset: contextOf(), SourceArn: new(tableARN)}, &kmsapi.GrantConstraints{SourceArn: new(tableARN)}},
	} {
		id, _ := r.newKey()
		must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, Constraints: tt.sent})
		if d := cmp.Diff(tt.want, r.grantsOf(id)[0].Constraints); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestGrantsOfServices: what the members for services do in lists and at a grant's
// end, and what records say of a service.
func TestGrantsOfServices(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	backup, other := r.user(backupService), r.user(otherService)
	first := r.grantToService(id, backupService, tableARN, "Encrypt", "RetireGrant")
	second := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringServicePrincipal: new(backupService), Operations: []string{"Encrypt"}})
	third := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(otherService), RetiringPrincipal: new(bobARN),
		Operations: []string{"Encrypt", "RetireGrant"}, Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}})

	got := idsOf(must[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService)}).Grants)
	if d := cmp.Diff([]string{*first.GrantId}, got); d != "" {
		t.Errorf("grants to the service (-want +got):\n%s", d)
	}
	if n := len(must[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService), GrantId: third.GrantId}).Grants); n != 0 {
		t.Errorf("one service's filter lists %d grants of another", n)
	}
	_, err := call[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteeServicePrincipal: new(backupService), GranteePrincipal: new(aliceARN)})
	wantError(t, err, kmsapi.ErrValidation, "You can specify either GranteePrincipal or GranteeServicePrincipal, but not both.")

	// Only a service itself sees what it may retire: its name is no account's.
	mine := &kmsapi.ListRetirableGrantsInput{RetiringServicePrincipal: new(backupService)}
	list, err := callAs[kmsapi.ListRetirableGrantsOutput](r, r.first, backup, "ListRetirableGrants", mine)
	if err != nil || len(list.Grants) != 2 || list.Grants[0].RetiringPrincipal != nil || *list.Grants[0].RetiringServicePrincipal != backupService {
		t.Errorf("the service's retirable grants: %v, %v", list, err)
	}
	for name, who := range map[string]iam.Identity{"another service": other, "the account": r.root, "a user": r.user(aliceARN)} {
		if _, err := callAs[kmsapi.ListRetirableGrantsOutput](r, r.first, who, "ListRetirableGrants", mine); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s lists the service's retirable grants: %v", name, err)
		}
	}
	_, err = callAs[kmsapi.ListRetirableGrantsOutput](r, r.first, backup, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(bobARN)})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, err = call[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{})
	wantError(t, err, kmsapi.ErrValidation, "You must specify either RetiringPrincipal or RetiringServicePrincipal.")
	_, err = call[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringServicePrincipal: new(backupService), RetiringPrincipal: new(bobARN)})
	wantError(t, err, kmsapi.ErrValidation, "You can specify either RetiringPrincipal or RetiringServicePrincipal, but not both.")

	if _, err := r.from(r.first, backup, tableARN, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	rec := r.lastRecord()
	if i := rec.Identity; i.Type != "AWSService" || i.InvokedBy != backupService || i.Arn != "" || i.AccountId != "" || !strings.Contains(fmt.Sprint(rec.Additional), tableARN) {
		t.Errorf("the record of a service's request: %v, %v", rec.Identity, rec.Additional)
	}

	// A grant's source says nothing on who may retire it.
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
		{"the account that made it", r.root, first, kmsapi.ErrDryRun},
	} {
		_, err := callAs[request.None](r, r.first, tt.who, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: tt.grant.GrantId, DryRun: new(true)})
		if !errors.Is(err, tt.want) {
			t.Errorf("RetireGrant, %s: %v, want %v", tt.name, err, tt.want.Code)
		}
	}
	if _, err := callAs[request.None](r, r.first, backup, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: second.GrantToken}); err != nil {
		t.Error(err)
	}
}

// TestChildSource: who may make grants only by one that is narrowed to a resource
// makes them for that resource, and only in requests for it.
func TestChildSource(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	backup := r.user(backupService)
	r.grantToService(id, backupService, tableARN, "Encrypt", "CreateGrant")
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
		_, err := r.from(r.first, backup, tt.source, "CreateGrant", tt.in)
		if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("%s: %v, want allowed: %v", tt.name, err, tt.want)
		}
	}
	for _, g := range r.grantsOf(id) {
		if *g.IssuingAccount != "arn:aws:iam::"+testAccount+":root" {
			t.Errorf("a grant was issued by %s", *g.IssuingAccount)
		}
	}
}
