package keyengine

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// listGrants returns the grants of a key, as the root user lists them.
func (c *testCluster) listGrants(id string) []kmsapi.GrantListEntry {
	c.t.Helper()
	return must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id}).Grants
}

func grantIDs(grants []kmsapi.GrantListEntry) (ids []string) {
	for _, g := range grants {
		ids = append(ids, *g.GrantId)
	}
	return ids
}

func TestCreateGrant(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN, bobARN)
	id, arn := c.newKey()
	c.Clock.Advance(90 * time.Second)
	pairs := contextOf("a", "1", "", "")
	out := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &arn, GranteePrincipal: new(aliceARN), RetiringPrincipal: new(bobARN),
		Operations: []string{"Decrypt", "Encrypt", "Decrypt"}, Constraints: subset(pairs), Name: new("my/grant:1_-")})
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(*out.GrantId) || !regexp.MustCompile(`^[A-Za-z0-9+/]+=*$`).MatchString(*out.GrantToken) {
		t.Errorf("got grant id %s, token %s; want 64 hex digits and base64", *out.GrantId, *out.GrantToken)
	}
	rec := c.lastRecord()
	want := map[string]string{
		"keyId": arn, "granteePrincipal": aliceARN, "retiringPrincipal": bobARN, "name": "my/grant:1_-", "operations": "Decrypt", "constraints": "encryptionContextSubset.a",
	}
	for _, f := range rec.RequestParameters {
		if w := want[f.Name]; w == "" || !strings.Contains(f.String(), w) {
			t.Errorf("the record has request parameter %v, want %q in it", f, w)
		}
		delete(want, f.Name)
	}
	if len(want) > 0 || rec.ReadOnly || len(rec.Resources) != 1 || rec.Resources[0].Arn != arn {
		t.Errorf("the record lacks request parameters %v, or is wrong: %v", want, rec)
	}
	elements := map[string]string{}
	for _, f := range rec.ResponseElements {
		elements[f.Name] = f.GetText()
	}
	if d := cmp.Diff(map[string]string{"grantId": *out.GrantId, "keyId": arn}, elements); d != "" {
		t.Errorf("response elements of the record (-want +got):\n%s", d)
	}
	if strings.Contains(rec.String(), *out.GrantToken) {
		t.Error("the record has the grant token")
	}
	entry := kmsapi.GrantListEntry{
		KeyId: &arn, GrantId: out.GrantId, Name: new("my/grant:1_-"), CreationDate: ops.TimeOf(c.Clock.Now().UnixNano()), GranteePrincipal: new(aliceARN),
		RetiringPrincipal: new(bobARN), IssuingAccount: new("arn:aws:iam::" + testAccount + ":root"), Operations: []string{"Decrypt", "Encrypt"}, Constraints: subset(pairs),
	}
	if d := cmp.Diff([]kmsapi.GrantListEntry{entry}, c.listGrants(id)); d != "" {
		t.Errorf("ListGrants (-want +got):\n%s", d)
	}
	// A grant with nothing but what is required. It has an empty name.
	bare := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"DescribeKey"}, Constraints: &kmsapi.GrantConstraints{}})
	got := must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GrantId: bare.GrantId}).Grants
	entry = kmsapi.GrantListEntry{
		KeyId: &arn, GrantId: bare.GrantId, Name: new(""), CreationDate: entry.CreationDate, GranteePrincipal: new(aliceARN),
		IssuingAccount: entry.IssuingAccount, Operations: []string{"DescribeKey"},
	}
	if d := cmp.Diff([]kmsapi.GrantListEntry{entry}, got); d != "" {
		t.Errorf("ListGrants of a grant without optional members (-want +got):\n%s", d)
	}
	// The record of a request that a grant allowed names the grant.
	alice := c.newUser(aliceARN)
	if _, err := callAs[kmsapi.DescribeKeyOutput](c, c.engine, alice, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if got := c.lastRecord().Additional[0].GetList().Items; !slices.Equal(got, []string{"kms:DescribeKey Allow grant " + *bare.GrantId}) {
		t.Errorf("the record of a request that the grant allowed has decisions %q", got)
	}
}

func TestCreateGrantErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, arn := c.newKey()
	rsa := *must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("RSA_2048"), KeyUsage: new(kmsapi.UsageEncrypt)}).KeyMetadata.KeyId
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &id})
	long := strings.Repeat("é", 384)
	nine := map[string]string{}
	for i := range 9 {
		nine[fmt.Sprint(i)] = ""
	}
	in := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}}
		f(in)
		return in
	}
	service := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteeServicePrincipal: new(backupService), RetiringServicePrincipal: new(backupService), Operations: []string{"Encrypt"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}}
		f(in)
		return in
	}
	const (
		invalid     = "ARN does not refer to a valid principal"
		emptyEquals = "EncryptionContextEquals must have 1 to 8 pairs. Leave it out for a grant that is good in every encryption context."
	)
	tests := map[string]struct {
		in      *kmsapi.CreateGrantInput
		kind    *kmsapi.Error
		message string
	}{
		"unknown operation": {in(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"Encrypt", "PutKeyPolicy"} }), kmsapi.ErrValidation, "…"},
		"no operations":     {in(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{} }), kmsapi.ErrValidation, "A grant needs at least one operation."},
		"nothing":           {&kmsapi.CreateGrantInput{}, kmsapi.ErrValidation, "…"},
		"bad name":          {in(func(in *kmsapi.CreateGrantInput) { in.Name = new("a b") }), kmsapi.ErrValidation, "…"},
		"empty name":        {in(func(in *kmsapi.CreateGrantInput) { in.Name = new("") }), kmsapi.ErrValidation, "…"},
		"everybody":         {in(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new("*") }), kmsapi.ErrValidation, "…"},
		"bare account":      {in(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new(testAccount) }), kmsapi.ErrInvalidArn, invalid},
		"group": {in(func(in *kmsapi.CreateGrantInput) {
			in.GranteePrincipal = new("arn:aws:iam::" + testAccount + ":group/g")
		}), kmsapi.ErrInvalidArn, invalid},
		"service": {in(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new("ec2.amazonaws.com") }), kmsapi.ErrInvalidArn, invalid},
		"other partition": {in(func(in *kmsapi.CreateGrantInput) {
			in.GranteePrincipal = new("arn:aws-cn:iam::" + testAccount + ":user/a")
		}), kmsapi.ErrInvalidArn, invalid},
		"a key as grantee": {in(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = &arn }), kmsapi.ErrInvalidArn, invalid},
		"retiring group": {in(func(in *kmsapi.CreateGrantInput) {
			in.RetiringPrincipal = new("arn:aws:iam::" + testAccount + ":group/g")
		}), kmsapi.ErrInvalidArn, invalid},
		"both constraints": {in(func(in *kmsapi.CreateGrantInput) {
			in.Constraints = &kmsapi.GrantConstraints{EncryptionContextEquals: contextOf("a", "1"), EncryptionContextSubset: contextOf("a", "1")}
		}), kmsapi.ErrValidation, "A grant has EncryptionContextEquals or EncryptionContextSubset, not both."},
		"empty equals": {in(func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(contextOf()) }), kmsapi.ErrValidation, emptyEquals},
		"both empty": {in(func(in *kmsapi.CreateGrantInput) {
			in.Constraints = &kmsapi.GrantConstraints{EncryptionContextEquals: contextOf(), EncryptionContextSubset: contextOf()}
		}), kmsapi.ErrValidation, emptyEquals},
		"empty equals beside a source": {in(func(in *kmsapi.CreateGrantInput) {
			in.Constraints = &kmsapi.GrantConstraints{EncryptionContextEquals: contextOf(), SourceArn: new(tableARN)}
		}), kmsapi.ErrValidation, emptyEquals},
		"nothing but CreateGrant": {in(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"CreateGrant"} }), kmsapi.ErrValidation,
			"Grants must not contain only the CreateGrant operation."},
		"CreateGrant twice": {in(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"CreateGrant", "CreateGrant"} }), kmsapi.ErrValidation,
			"Grants must not contain only the CreateGrant operation."},
		"no grantee": {in(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = nil }), kmsapi.ErrValidation, "You must specify either GranteePrincipal or GranteeServicePrincipal."},
		"two grantees": {service(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new(aliceARN) }), kmsapi.ErrValidation,
			"You can specify either GranteePrincipal or GranteeServicePrincipal, but not both."},
		"two who may retire": {service(func(in *kmsapi.CreateGrantInput) { in.RetiringPrincipal = new(aliceARN) }), kmsapi.ErrValidation,
			"You can specify either RetiringPrincipal or RetiringServicePrincipal, but not both."},
		"a service without source": {service(func(in *kmsapi.CreateGrantInput) { in.Constraints = subset(contextOf("a", "1")) }), kmsapi.ErrValidation,
			"A grant with GranteeServicePrincipal must have a SourceArn constraint."},
		"a service without constraints": {service(func(in *kmsapi.CreateGrantInput) { in.Constraints = nil }), kmsapi.ErrValidation,
			"A grant with GranteeServicePrincipal must have a SourceArn constraint."},
		"a service whom nobody may retire": {service(func(in *kmsapi.CreateGrantInput) { in.RetiringServicePrincipal = nil }), kmsapi.ErrValidation,
			"A grant with GranteeServicePrincipal must have a RetiringPrincipal or a RetiringServicePrincipal."},
		"no service":     {service(func(in *kmsapi.CreateGrantInput) { in.GranteeServicePrincipal = new("example.com") }), kmsapi.ErrValidation, "…"},
		"ARN as service": {service(func(in *kmsapi.CreateGrantInput) { in.GranteeServicePrincipal = new(aliceARN) }), kmsapi.ErrValidation, "…"},
		"no source": {service(func(in *kmsapi.CreateGrantInput) {
			in.Constraints.SourceArn = new("arn:aws:s3:::bucket-without-account")
		}), kmsapi.ErrValidation, "…"},
		"nine pairs":  {in(func(in *kmsapi.CreateGrantInput) { in.Constraints = subset(nine) }), kmsapi.ErrValidation, "EncryptionContextSubset must have 1 to 8 pairs."},
		"long value":  {in(func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(contextOf("a", long+"x")) }), kmsapi.ErrValidation, "A value of EncryptionContextEquals has more than 384 characters."},
		"no text":     {in(func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(contextOf("a", "\xff")) }), kmsapi.ErrValidation, "…"},
		"by alias":    {in(func(in *kmsapi.CreateGrantInput) { in.KeyId = new("alias/app") }), kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		"no such key": {in(func(in *kmsapi.CreateGrantInput) { in.KeyId = new("12345678-1234-1234-1234-123456789012") }), kmsapi.ErrNotFound, "…"},
		"other account": {in(func(in *kmsapi.CreateGrantInput) {
			in.KeyId = new(strings.Replace(arn, testAccount, "444455556666", 1))
		}), kmsapi.ErrAccessDenied, "…"},
		"sign with a symmetric key": {in(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"Encrypt", "Sign"} }), kmsapi.ErrValidation,
			"Grant operation Sign is not valid for " + arn + ", whose key spec is SYMMETRIC_DEFAULT and key usage ENCRYPT_DECRYPT."},
		"constraint on an asymmetric key": {in(func(in *kmsapi.CreateGrantInput) { in.KeyId, in.Constraints = &rsa, subset(contextOf("a", "1")) }), kmsapi.ErrValidation,
			"Encryption context constraints are not valid for " + *c.describe(rsa).Arn + ": it has no encryption context."},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	if n := len(c.listGrants(id)) + len(c.listGrants(rsa)); n != 0 {
		t.Errorf("refused requests made %d grants, want 0", n)
	}
	// The largest constraint.
	delete(nine, "0")
	nine["1"] = long
	must[kmsapi.CreateGrantOutput](c, "CreateGrant", in(func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(nine) }))
	// Members are checked before the key is looked up.
	_, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", in(func(in *kmsapi.CreateGrantInput) { in.KeyId, in.GranteePrincipal = new("x"), new("y") }))
	wantError(t, err, kmsapi.ErrInvalidArn, invalid)
}

// Grants on each kind of key accept the operations of that kind and no others.
func TestGrantOperationsOfKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	const common = " CreateGrant DescribeKey RetireGrant"
	for _, tt := range []struct{ spec, usage, want string }{
		{kmsapi.SpecSymmetric, kmsapi.UsageEncrypt, "Decrypt Encrypt GenerateDataKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo"},
		{"RSA_2048", kmsapi.UsageEncrypt, "Decrypt Encrypt GetPublicKey ReEncryptFrom ReEncryptTo"},
		{"RSA_2048", kmsapi.UsageSign, "GetPublicKey Sign Verify"},
		{"ECC_NIST_P256", kmsapi.UsageSign, "GetPublicKey Sign Verify"},
		{"ECC_NIST_P256", kmsapi.UsageAgree, "DeriveSharedSecret GetPublicKey"},
		{"ML_DSA_44", kmsapi.UsageSign, "GetPublicKey Sign Verify"},
		{"ML_KEM_768", kmsapi.UsageEncapsulate, "Decapsulate Encapsulate GetPublicKey"},
		{"HMAC_256", kmsapi.UsageMac, "GenerateMac VerifyMac"},
	} {
		id := *must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: &tt.usage}).KeyMetadata.KeyId
		var got []string
		for _, op := range kmsapi.EnumOf("GrantOperation").Values() {
			ops := []string{op}
			if op == "CreateGrant" {
				ops = append(ops, "DescribeKey") // not by itself
			}
			_, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: ops})
			if err == nil {
				got = append(got, op)
			} else if !errors.Is(err, kmsapi.ErrValidation) {
				t.Errorf("grant of %s on %s: %v", op, tt.spec, err)
			}
		}
		want := strings.Fields(tt.want + common)
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("grants on %s %s accept %v, want %v", tt.spec, tt.usage, got, want)
		}
	}
}

// A CreateGrant request that is repeated with the same name returns the same grant, with another
// token. A request that differs or has no name makes another grant.
func TestNamedGrants(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.exist(aliceARN, bobARN, carolARN)
	id, _ := c.newKey()
	other, _ := c.newKey()
	in := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringPrincipal: new(bobARN), Name: new("n"),
			Operations: []string{"Encrypt", "Decrypt"}, Constraints: subset(contextOf("a", "1", "b", "2"))}
		f(in)
		return in
	}
	same := func(*kmsapi.CreateGrantInput) {}
	first := must[kmsapi.CreateGrantOutput](c, "CreateGrant", in(same))
	for name, f := range map[string]func(*kmsapi.CreateGrantInput){
		"same": same, "operations in another order, twice": func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"Decrypt", "Encrypt", "Decrypt"} },
		"key by ARN": func(in *kmsapi.CreateGrantInput) { in.KeyId = new(*c.describe(id).Arn) }, "with a token": func(in *kmsapi.CreateGrantInput) { in.GrantTokens = []string{*first.GrantToken} },
	} {
		out, err := callAs[kmsapi.CreateGrantOutput](c, c.engines["n2"], c.root, "CreateGrant", in(f))
		if err != nil || *out.GrantId != *first.GrantId || *out.GrantToken == *first.GrantToken {
			t.Errorf("%s: got %v, error %v, want grant %s with a new token", name, out, err, *first.GrantId)
			continue
		}
		if _, grant, err := c.engine.vault.GrantOfToken(*out.GrantToken); err != nil || string(grant[:]) != string(bytesOfGrant(*first.GrantId)) {
			t.Errorf("%s: the new token is for grant %x (%v), want %s", name, grant, err, *first.GrantId)
		}
	}
	if n := len(c.listGrants(id)); n != 1 {
		t.Fatalf("the key has %d grants, want 1", n)
	}
	seen := map[string]string{*first.GrantId: "first"}
	for name, f := range map[string]func(*kmsapi.CreateGrantInput){
		"name": func(in *kmsapi.CreateGrantInput) { in.Name = new("N") }, "no name": func(in *kmsapi.CreateGrantInput) { in.Name = nil },
		"no name again": func(in *kmsapi.CreateGrantInput) { in.Name = nil }, "grantee": func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new(bobARN) },
		"retiring": func(in *kmsapi.CreateGrantInput) { in.RetiringPrincipal = new(carolARN) }, "no retiring": func(in *kmsapi.CreateGrantInput) { in.RetiringPrincipal = nil },
		"operations": func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"Encrypt"} }, "kind of constraint": func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(contextOf("a", "1", "b", "2")) },
		"constraint": func(in *kmsapi.CreateGrantInput) { in.Constraints = subset(contextOf("a", "1", "b", "3")) }, "no constraint": func(in *kmsapi.CreateGrantInput) { in.Constraints = nil },
		"key":    func(in *kmsapi.CreateGrantInput) { in.KeyId = &other },
		"source": func(in *kmsapi.CreateGrantInput) { in.Constraints.SourceArn = new(tableARN) }, "other source": func(in *kmsapi.CreateGrantInput) { in.Constraints.SourceArn = new(otherTable) },
		"source alone": func(in *kmsapi.CreateGrantInput) { in.Constraints = &kmsapi.GrantConstraints{SourceArn: new(tableARN)} },
		"other source alone": func(in *kmsapi.CreateGrantInput) {
			in.Constraints = &kmsapi.GrantConstraints{SourceArn: new(otherTable)}
		},
		"retiring service": func(in *kmsapi.CreateGrantInput) {
			in.RetiringPrincipal, in.RetiringServicePrincipal = nil, new(backupService)
		},
		"service": func(in *kmsapi.CreateGrantInput) {
			in.GranteePrincipal, in.GranteeServicePrincipal, in.Constraints.SourceArn = nil, new(backupService), new(tableARN)
		},
	} {
		out := must[kmsapi.CreateGrantOutput](c, "CreateGrant", in(f))
		if was := seen[*out.GrantId]; was != "" {
			t.Errorf("with another %s: got the grant of %s, want a new one", name, was)
		}
		seen[*out.GrantId] = name
	}
	// A grant that another account made is not returned.
	theirs := c.grantChange(other, grantHex(1), aliceARN, "Encrypt")
	theirs.GetPutGrant().Name, theirs.GetPutGrant().Issuer = "n", "444455556666"
	c.Change(theirs)
	ours := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &other, GranteePrincipal: new(aliceARN), Name: new("n"), Operations: []string{"Encrypt"}})
	if *ours.GrantId == grantHex(1) {
		t.Error("CreateGrant returned the grant of another account's request")
	}
	// A grant that was revoked is not returned.
	must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: first.GrantId})
	if out := must[kmsapi.CreateGrantOutput](c, "CreateGrant", in(same)); *out.GrantId == *first.GrantId {
		t.Error("CreateGrant returned a revoked grant")
	}
}

// Of concurrent requests with the same name on several nodes, one makes the grant, and all
// return it.
func TestConcurrentNamedGrants(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.exist(aliceARN)
	id, _ := c.newKey()
	type result struct {
		id  string
		err error
	}
	results := make(chan result)
	const n = 8
	for i := range n {
		e := c.engines[[]string{"n1", "n2"}[i%2]]
		caller := c.caller(c.root)
		go func() {
			out, err := e.Do(t.Context(), caller, OperationNamed(KMS, "CreateGrant"),
				&kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, Name: new("n")})
			if err != nil {
				results <- result{err: err}
				return
			}
			results <- result{id: *out.(*kmsapi.CreateGrantOutput).GrantId}
		}()
	}
	ids := map[string]bool{}
	for range n {
		got := <-results
		if got.err != nil {
			t.Error(got.err)
		}
		ids[got.id] = true
	}
	if grants := c.listGrants(id); len(ids) != 1 || len(grants) != 1 {
		t.Errorf("the requests returned %d different grants, and there are %d; want 1", len(ids), len(grants))
	}
}

func TestListGrants(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withRegions(threeRegions()...))
	c.exist(aliceARN, bobARN, carolARN)
	id, arn := c.newKey()
	other, otherARN := c.newKey()
	var all, toAlice, retirable []string
	for i := range 7 {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new([]string{aliceARN, bobARN}[i%2]), Operations: []string{"Encrypt"}}
		if i >= 2 {
			in.RetiringPrincipal = new(carolARN)
		}
		out := must[kmsapi.CreateGrantOutput](c, "CreateGrant", in)
		all = append(all, *out.GrantId)
		if i%2 == 0 {
			toAlice = append(toAlice, *out.GrantId)
		}
		if i >= 2 {
			retirable = append(retirable, arn+" "+*out.GrantId)
		}
	}
	on := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &other, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, RetiringPrincipal: new(carolARN)})
	retirable = append(retirable, otherARN+" "+*on.GrantId)
	slices.Sort(all)
	slices.Sort(toAlice)
	slices.Sort(retirable)
	list := func(in kmsapi.ListGrantsInput) func(*string) ([]string, *string, *bool, error) {
		return func(m *string) ([]string, *string, *bool, error) {
			in.KeyId, in.Marker = &id, m
			out, err := callAs[kmsapi.ListGrantsOutput](c, c.engines["n2"], c.root, "ListGrants", &in)
			if err != nil {
				return nil, nil, nil, err
			}
			return grantIDs(out.Grants), out.NextMarker, out.Truncated, nil
		}
	}
	listRetirable := func(who string, limit *int32) func(*string) ([]string, *string, *bool, error) {
		return func(m *string) (names []string, _ *string, _ *bool, err error) {
			out, err := call[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: &who, Limit: limit, Marker: m})
			if err != nil {
				return nil, nil, nil, err
			}
			for _, g := range out.Grants {
				names = append(names, *g.KeyId+" "+*g.GrantId)
			}
			return names, out.NextMarker, out.Truncated, nil
		}
	}
	for _, tt := range []struct {
		name  string
		next  func(*string) ([]string, *string, *bool, error)
		want  []string
		sizes string
	}{
		{"all", list(kmsapi.ListGrantsInput{}), all, "7"},
		{"three at a time", list(kmsapi.ListGrantsInput{Limit: new(int32(3))}), all, "3 3 1"},
		{"one at a time", list(kmsapi.ListGrantsInput{Limit: new(int32(1))}), all, "1 1 1 1 1 1 1"},
		{"a limit over the most", list(kmsapi.ListGrantsInput{Limit: new(int32(1000))}), all, "7"},
		{"to alice", list(kmsapi.ListGrantsInput{GranteePrincipal: new(aliceARN)}), toAlice, "4"},
		{"to alice, three at a time", list(kmsapi.ListGrantsInput{GranteePrincipal: new(aliceARN), Limit: new(int32(3))}), toAlice, "3 1"},
		{"to nobody", list(kmsapi.ListGrantsInput{GranteePrincipal: new(carolARN)}), nil, "0"},
		{"by id", list(kmsapi.ListGrantsInput{GrantId: &all[3], Limit: new(int32(1))}), all[3:4], "1"},
		{"by id and grantee", list(kmsapi.ListGrantsInput{GrantId: &toAlice[0], GranteePrincipal: new(aliceARN)}), toAlice[:1], "1"},
		{"by id and another's", list(kmsapi.ListGrantsInput{GrantId: &toAlice[0], GranteePrincipal: new(bobARN)}), nil, "0"},
		{"by another key's id", list(kmsapi.ListGrantsInput{GrantId: on.GrantId}), nil, "0"},
		{"retirable", listRetirable(carolARN, nil), retirable, "6"},
		{"retirable, four at a time", listRetirable(carolARN, new(int32(4))), retirable, "4 2"},
		{"retirable, one at a time", listRetirable(carolARN, new(int32(1))), retirable, "1 1 1 1 1 1"},
		{"retirable by nobody", listRetirable(carolARN+"2", nil), nil, "0"},
	} {
		got := pages(t, tt.next)
		if flat := slices.Concat(got...); !slices.Equal(flat, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, flat, tt.want)
		}
		if s := sizes(got); s != tt.sizes {
			t.Errorf("%s: got pages of %s, want %s", tt.name, s, tt.sizes)
		}
	}
	// A marker is valid only for the list that it came from.
	marker := must[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, Limit: new(int32(1))}).NextMarker
	retirableMarker := must[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN), Limit: new(int32(1))}).NextMarker
	for name, in := range map[string]any{
		"another key": &kmsapi.ListGrantsInput{KeyId: &other, Marker: marker}, "another grantee": &kmsapi.ListGrantsInput{KeyId: &id, GranteePrincipal: new(aliceARN), Marker: marker},
		"another grant": &kmsapi.ListGrantsInput{KeyId: &id, GrantId: &all[0], Marker: marker}, "another operation": &kmsapi.ListGrantsInput{KeyId: &id, Marker: retirableMarker},
		"made up": &kmsapi.ListGrantsInput{KeyId: &id, Marker: new("AAAA")}, "another principal": &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(bobARN), Marker: retirableMarker},
		"that of ListGrants": &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN), Marker: marker},
	} {
		name, op := name, "ListGrants"
		if _, ok := in.(*kmsapi.ListRetirableGrantsInput); ok {
			op = "ListRetirableGrants"
		}
		if _, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in); !errors.Is(err, kmsapi.ErrInvalidMarker) {
			t.Errorf("a marker for %s: got error %v, want InvalidMarkerException", name, err)
		}
	}
	for _, bad := range []string{"x", strings.ToUpper(all[0][:1]) + "F" + all[0][2:], all[0][:62], all[0] + "00", strings.Repeat("g", 64)} {
		_, err := call[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GrantId: &bad})
		wantError(t, err, kmsapi.ErrInvalidGrantID, "")
	}
	_, err := call[kmsapi.ListGrantsOutput](c, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteePrincipal: new("alice")})
	wantError(t, err, kmsapi.ErrInvalidArn, "…")
	_, err = call[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new("carol")})
	wantError(t, err, kmsapi.ErrInvalidArn, "…")
	// Only what principals of the caller's account may retire is listed, and nothing of other
	// Regions.
	_, err = call[kmsapi.ListRetirableGrantsOutput](c, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new("arn:aws:iam::444455556666:user/carol")})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, err = callAs[kmsapi.ListRetirableGrantsOutput](c, c.engine, c.newUser(carolARN), "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN)})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if got := mustIn[kmsapi.ListRetirableGrantsOutput](c, secondRegion, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN)}).Grants; len(got) != 0 {
		t.Errorf("ListRetirableGrants in another Region returned %d grants, want 0", len(got))
	}
	foreign := "arn:aws:iam::444455556666:root"
	stranger := c.newUser(foreign)
	must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringPrincipal: &foreign, Operations: []string{"Encrypt"}})
	theirs, err := callAs[kmsapi.ListRetirableGrantsOutput](c, c.engine, stranger, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: &foreign})
	if err != nil || len(theirs.Grants) != 1 || *theirs.Grants[0].KeyId != arn {
		t.Errorf("ListRetirableGrants by another account: got %v, error %v; want one grant", theirs, err)
	}
}

// Who may retire a grant, named by its token or its id.
func TestRetireGrant(t *testing.T) {
	t.Parallel()
	const (
		role    = "arn:aws:iam::" + testAccount + ":role/app"
		session = "arn:aws:sts::" + testAccount + ":assumed-role/app/one"
		foreign = "arn:aws:iam::444455556666:root"
		root    = "arn:aws:iam::" + testAccount + ":root"
	)
	c := newTestCluster(t)
	c.exist(aliceARN, bobARN, carolARN)
	id, arn := c.newKey()
	for _, tt := range []struct {
		name, grantee, retiring, ops, issuer string
		caller                               string
		policy                               string
		want                                 bool
	}{
		{"retiring principal", aliceARN, bobARN, "Encrypt", "", bobARN, "", true},
		{"session of the retiring role", aliceARN, role, "Encrypt", "", session, "", true},
		{"role for its session", aliceARN, session, "Encrypt", "", role, "", false},
		{"retiring account", aliceARN, foreign, "Encrypt", "", foreign, "", true},
		{"grantee with RetireGrant", aliceARN, bobARN, "Encrypt RetireGrant", "", aliceARN, "", true},
		{"grantee without", aliceARN, bobARN, "Encrypt DescribeKey CreateGrant", "", aliceARN, "", false},
		{"somebody else", aliceARN, bobARN, "RetireGrant", "", carolARN, "", false},
		{"account that made it", aliceARN, bobARN, "Encrypt", testAccount, root, "", true},
		{"key's account, where another made it", aliceARN, "", "Encrypt", "444455556666", root, "", false},
		{"other account that made it", aliceARN, "", "Encrypt", "444455556666", foreign, "", true},
		{"allowed in the key policy, which has no effect", aliceARN, "", "Encrypt", "", carolARN, statement("Allow", carolARN, "kms:RetireGrant"), false},
		{"denied in the key policy, which has no effect", aliceARN, bobARN, "Encrypt", "", bobARN, statement("Deny", bobARN, "kms:RetireGrant"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.setPolicy(id, policyDocument(rootStatement))
			if tt.policy != "" {
				c.setPolicy(id, policyDocument(rootStatement, tt.policy))
			}
			change := c.grantChange(id, grantHex(1), tt.grantee, strings.Fields(tt.ops)...)
			change.GetPutGrant().Retiring = tt.retiring
			if tt.issuer != "" {
				change.GetPutGrant().Issuer = tt.issuer
			}
			c.Change(change)
			token, err := c.engine.vault.GrantToken(c.keyID(id), [32]byte(bytesOfGrant(grantHex(1))))
			if err != nil {
				t.Fatal(err)
			}
			who := c.newUser(tt.caller)
			for way, in := range map[string]*kmsapi.RetireGrantInput{
				"token": {GrantToken: &token}, "ARN": {KeyId: &arn, GrantId: new(grantHex(1))}, "key id": {KeyId: &id, GrantId: new(grantHex(1))},
			} {
				if way == "key id" && tt.caller == foreign {
					continue // a key id alone is one of the caller's account
				}
				in.DryRun = new(true)
				want := map[bool]*kmsapi.Error{true: kmsapi.ErrDryRun, false: kmsapi.ErrAccessDenied}[tt.want]
				_, err := callAs[request.None](c, c.engine, who, "RetireGrant", in)
				wantError(t, err, want, "…")
				rec := c.lastRecord()
				if last := rec.Additional[len(rec.Additional)-1]; last.Name != "grantId" || last.GetText() != grantHex(1) || len(rec.Resources) != 1 || rec.Resources[0].Arn != arn {
					t.Errorf("by %s: the record does not have the grant and its key: %v", way, rec)
				}
			}
			_, err = callAs[request.None](c, c.engine, who, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: &token})
			if (err == nil) != tt.want {
				t.Errorf("RetireGrant: got error %v, want allowed %v", err, tt.want)
			}
			if n := len(c.listGrants(id)); (n == 0) != tt.want {
				t.Errorf("there are %d grants after RetireGrant, which was allowed: %v", n, tt.want)
			}
			if !tt.want {
				c.deleteGrant(id, grantHex(1))
			}
		})
	}
}

// What RetireGrant and RevokeGrant refuse.
func TestEndGrantErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN)
	id, arn := c.newKey()
	other, _ := c.newKey()
	out := c.createGrant(id, aliceARN, "Encrypt", "RetireGrant")
	const which = "You must specify either a grant token, or both a key ID and a grant ID."
	unknown := grantHex(9)
	for _, tt := range []struct {
		name    string
		op      string
		in      any
		kind    *kmsapi.Error
		message string
	}{
		{"nothing", "RetireGrant", &kmsapi.RetireGrantInput{}, kmsapi.ErrValidation, which},
		{"key alone", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn}, kmsapi.ErrValidation, which},
		{"grant alone", "RetireGrant", &kmsapi.RetireGrantInput{GrantId: out.GrantId}, kmsapi.ErrValidation, which},
		{"both ways", "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: out.GrantToken, KeyId: &arn, GrantId: out.GrantId}, kmsapi.ErrValidation, which},
		{"token and key", "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: out.GrantToken, KeyId: &arn}, kmsapi.ErrValidation, which},
		{"malformed id", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: new("x")}, kmsapi.ErrInvalidGrantID, ""},
		{"unknown id", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: &unknown}, kmsapi.ErrNotFound, "Grant ID " + unknown + " not found"},
		{"on another key", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &other, GrantId: out.GrantId}, kmsapi.ErrNotFound, "Grant ID " + *out.GrantId + " not found"},
		{"no such key", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: new("x"), GrantId: out.GrantId}, kmsapi.ErrNotFound, "Invalid keyId 'x'"},
		{"by alias", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: new("alias/x"), GrantId: out.GrantId}, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{"long token", "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: new(strings.Repeat("A", 8193))}, kmsapi.ErrValidation, "…"},
		{"dry run", "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: out.GrantId, DryRun: new(true)}, kmsapi.ErrDryRun, request.ErrDryRun.Message},
		{"malformed id", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn, GrantId: new(strings.ToUpper(grantHex(0xab)))}, kmsapi.ErrInvalidGrantID, ""},
		{"unknown id", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn, GrantId: &unknown}, kmsapi.ErrNotFound, "Grant ID " + unknown + " not found"},
		{"on another key", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &other, GrantId: out.GrantId}, kmsapi.ErrNotFound, "Grant ID " + *out.GrantId + " not found"},
		{"no grant", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn}, kmsapi.ErrValidation, "…"},
		{"no such key", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: new("12345678-1234-1234-1234-123456789012"), GrantId: out.GrantId}, kmsapi.ErrNotFound, "…"},
		{"dry run", "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn, GrantId: out.GrantId, DryRun: new(true)}, kmsapi.ErrDryRun, request.ErrDryRun.Message},
		{"dry run", "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &arn, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, DryRun: new(true)}, kmsapi.ErrDryRun, request.ErrDryRun.Message},
		{"dry run of a bad one", "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &arn, GranteePrincipal: new(aliceARN), Operations: []string{"Sign"}, DryRun: new(true)}, kmsapi.ErrValidation, "…"},
	} {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in)
		var told *kmsapi.Error
		if !errors.As(err, &told) || told.Code != tt.kind.Code || tt.message != "…" && told.Message != tt.message {
			t.Errorf("%s, %s: got error %v, want %s: %s", tt.op, tt.name, err, tt.kind.Code, tt.message)
		}
	}
	alice := c.newUser(aliceARN)
	_, err := callAs[request.None](c, c.engine, alice, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn, GrantId: out.GrantId})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if got := grantIDs(c.listGrants(id)); !slices.Equal(got, []string{*out.GrantId}) {
		t.Errorf("after refused requests the key has grants %v, want %s", got, *out.GrantId)
	}
	must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: out.GrantId})
	if rec := c.lastRecord(); rec.ResponseElements != nil || rec.ReadOnly {
		t.Errorf("unexpected record of RevokeGrant: %v", rec)
	}
	for op, in := range map[string]any{"RevokeGrant": &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: out.GrantId}, "RetireGrant": &kmsapi.RetireGrantInput{GrantToken: out.GrantToken}} {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in)
		wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*out.GrantId+" not found")
	}
}

// Grants follow the state of their key, and are deleted with it.
func TestGrantsAndKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	c.exist(aliceARN, bobARN)
	alice := c.newUser(aliceARN)
	id, arn := c.newKey()
	out := c.createGrant(id, aliceARN, "Encrypt", "RetireGrant")
	encrypt := func() error {
		_, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	wantError(t, encrypt(), kmsapi.ErrDisabled, arn+" is disabled.")
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	wantError(t, encrypt(), kmsapi.ErrInvalidState, arn+" is pending deletion.")
	if n := len(c.listGrants(id)); n != 1 {
		t.Errorf("a key that is pending deletion has %d grants, want 1", n)
	}
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	if err := encrypt(); err != nil {
		t.Errorf("Encrypt by grant after the deletion was cancelled: %v", err)
	}
	// States that are not in TestKeyStates.
	imported, importedARN := c.newKeyForImport(kmsapi.SpecSymmetric, kmsapi.UsageEncrypt)
	primary := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &primary})
	for id, message := range map[string]string{
		imported: importedARN + " is pending import.", primary: multiARN(testRegion, primary) + " is pending replica deletion.",
	} {
		c.putGrant(id, grantHex(1), bobARN, "Encrypt")
		_, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}})
		wantError(t, err, kmsapi.ErrInvalidState, message)
		g := c.listGrants(id)[0].GrantId
		_, err = call[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: g, DryRun: new(true)})
		wantError(t, err, kmsapi.ErrDryRun, "…")
		_, err = call[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &id, GrantId: g, DryRun: new(true)})
		wantError(t, err, kmsapi.ErrDryRun, "…")
	}
	c.deleteKeyIn(testRegion, id)
	if g, _ := c.State().Grant(c.keyID(id), bytesOfGrant(*out.GrantId)); g != nil {
		t.Error("the grant exists after its key was deleted")
	}
	_, err := callAs[request.None](c, c.engine, alice, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: out.GrantToken})
	wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*out.GrantId+" not found")
	wantError(t, encrypt(), kmsapi.ErrNotFound, "…")

	// Each key of a multi-Region set has its own grants.
	multi := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	c.createGrant(multi, aliceARN, "Encrypt")
	in := &kmsapi.EncryptInput{KeyId: &multi, Plaintext: []byte("x")}
	if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", in); err != nil {
		t.Errorf("Encrypt by a grant on the primary key: %v", err)
	}
	caller := c.caller(alice)
	caller.Region = secondRegion
	_, err = c.engine.Do(t.Context(), caller, OperationNamed(KMS, "Encrypt"), in)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &multi, ReplicaRegion: new(thirdRegion)})
	if got := mustIn[kmsapi.ListGrantsOutput](c, thirdRegion, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &multi}).Grants; len(got) != 0 {
		t.Errorf("a new replica has %d grants, want 0", len(got))
	}
	c.deleteKeyIn(secondRegion, multi)
	if n := len(c.listGrants(multi)); n != 1 {
		t.Errorf("after the replica was deleted the primary key has %d grants, want 1", n)
	}
}

// A key may have 50,000 grants. The one that allows a request is found among them, and when a
// grant is revoked another can be made.
func TestGrantQuota(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.exist(aliceARN, bobARN, carolARN)
	alice := c.newUser(aliceARN)
	id, arn := c.newKey()
	k := c.keyID(id)
	for i := 0; i < request.DefaultQuotas.Grants-1; {
		var changes []*fsmpb.Change
		for ; len(changes) < 16 && i < request.DefaultQuotas.Grants-1; i++ {
			change := c.grantChange(id, fmt.Sprintf("%064x", i), fmt.Sprintf("arn:aws:iam::%s:user/u%d", testAccount, i), "Encrypt")
			changes = append(changes, change)
		}
		c.Change(changes...)
	}
	last := c.createGrant(id, aliceARN, "Encrypt")
	if n, _ := c.State().KeyGrants(k); int(n.Count) != request.DefaultQuotas.Grants {
		t.Fatalf("the key has %d grants, want %d", n.Count, request.DefaultQuotas.Grants)
	}
	if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Errorf("Encrypt by one of %d grants: %v", request.DefaultQuotas.Grants, err)
	}
	more := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}}
	full := arn + " has 50000 grants and cannot have more."
	_, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", more)
	wantError(t, err, kmsapi.ErrLimitExceeded, full)
	// A repeated request returns the grant that exists.
	change := c.grantChange(id, grantHex(0xee), carolARN, "Encrypt")
	change.GetPutGrant().Name = "n"
	c.Change(change)
	out, err := call[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(carolARN), Operations: []string{"Encrypt"}, Name: new("n")})
	if err != nil || *out.GrantId != grantHex(0xee) {
		t.Errorf("repeated CreateGrant on a full key: got %v, error %v", out, err)
	}
	c.deleteGrant(id, grantHex(0xee))
	c.Replica("n2").FallBehind()
	must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: last.GrantId})
	if _, err := callAs[kmsapi.CreateGrantOutput](c, c.engines["n2"], c.root, "CreateGrant", more); err != nil {
		t.Errorf("CreateGrant on a node that is behind, after a grant was revoked: %v", err)
	}
}
