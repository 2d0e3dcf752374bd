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

const carolARN = "arn:aws:iam::" + testAccount + ":user/carol"

// grantsOf lists a key's grants as the account's root user.
func (r *room) grantsOf(id string) []kmsapi.GrantListEntry {
	r.t.Helper()
	return must[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id}).Grants
}

func idsOf(grants []kmsapi.GrantListEntry) (ids []string) {
	for _, g := range grants {
		ids = append(ids, *g.GrantId)
	}
	return ids
}

func TestCreateGrant(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	r.cluster.clock.advance(90 * time.Second)
	pairs := contextOf("a", "1", "", "")
	out := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &arn, GranteePrincipal: new(aliceARN), RetiringPrincipal: new(bobARN),
		Operations: []string{"Decrypt", "Encrypt", "Decrypt"}, Constraints: subset(pairs), Name: new("my/grant:1_-")})
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(*out.GrantId) || !regexp.MustCompile(`^[A-Za-z0-9+/]+=*$`).MatchString(*out.GrantToken) {
		t.Errorf("grant %s with token %s", *out.GrantId, *out.GrantToken)
	}
	rec := r.lastRecord()
	want := map[string]string{
		"keyId": arn, "granteePrincipal": aliceARN, "retiringPrincipal": bobARN, "name": "my/grant:1_-", "operations": "Decrypt", "constraints": "encryptionContextSubset.a",
	}
	for _, f := range rec.RequestParameters {
		if w := want[f.Name]; w == "" || !strings.Contains(f.String(), w) {
			t.Errorf("the record has %v, want %q in it", f, w)
		}
		delete(want, f.Name)
	}
	if len(want) > 0 || rec.ReadOnly || len(rec.Resources) != 1 || rec.Resources[0].Arn != arn {
		t.Errorf("the record lacks %v, or is wrong: %v", want, rec)
	}
	elements := map[string]string{}
	for _, f := range rec.ResponseElements {
		elements[f.Name] = f.GetText()
	}
	if d := cmp.Diff(map[string]string{"grantId": *out.GrantId, "keyId": arn}, elements); d != "" {
		t.Errorf("response elements (-want +got):\n%s", d)
	}
	if strings.Contains(rec.String(), *out.GrantToken) {
		t.Error("the record holds the token")
	}
	entry := kmsapi.GrantListEntry{
		KeyId: &arn, GrantId: out.GrantId, Name: new("my/grant:1_-"), CreationDate: ops.TimeOf(r.cluster.clock.Now().UnixNano()), GranteePrincipal: new(aliceARN),
		RetiringPrincipal: new(bobARN), IssuingAccount: new("arn:aws:iam::" + testAccount + ":root"), Operations: []string{"Decrypt", "Encrypt"}, Constraints: subset(pairs),
	}
	if d := cmp.Diff([]kmsapi.GrantListEntry{entry}, r.grantsOf(id)); d != "" {
		t.Errorf("ListGrants (-want +got):\n%s", d)
	}
	// The rest left out: no name is an empty one.
	bare := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"DescribeKey"}, Constraints: &kmsapi.GrantConstraints{}})
	got := must[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GrantId: bare.GrantId}).Grants
	entry = kmsapi.GrantListEntry{
		KeyId: &arn, GrantId: bare.GrantId, Name: new(""), CreationDate: entry.CreationDate, GranteePrincipal: new(aliceARN),
		IssuingAccount: entry.IssuingAccount, Operations: []string{"DescribeKey"},
	}
	if d := cmp.Diff([]kmsapi.GrantListEntry{entry}, got); d != "" {
		t.Errorf("a bare grant (-want +got):\n%s", d)
	}
	// What a grant allowed is named in the records of those who use it.
	alice := r.user(aliceARN)
	if _, err := callAs[kmsapi.DescribeKeyOutput](r, r.first, alice, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if got := r.lastRecord().Additional[0].GetList().Items; !slices.Equal(got, []string{"kms:DescribeKey Allow grant " + *bare.GrantId}) {
		t.Errorf("the record of a use has the decisions %q", got)
	}
}

func TestCreateGrantErrors(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	rsa := *must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("RSA_2048"), KeyUsage: new(kmsapi.UsageEncrypt)}).KeyMetadata.KeyId
	must[request.None](r, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &id})
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
			"Encryption context constraints are not valid for " + *r.describe(rsa).Arn + ": it has no encryption context."},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	if n := len(r.grantsOf(id)) + len(r.grantsOf(rsa)); n != 0 {
		t.Errorf("refused requests made %d grants", n)
	}
	// The largest that there may be.
	delete(nine, "0")
	nine["1"] = long
	must[kmsapi.CreateGrantOutput](r, "CreateGrant", in(func(in *kmsapi.CreateGrantInput) { in.Constraints = equals(nine) }))
	// Members are looked at before the key, the key before the caller's right.
	_, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", in(func(in *kmsapi.CreateGrantInput) { in.KeyId, in.GranteePrincipal = new("x"), new("y") }))
	wantError(t, err, kmsapi.ErrInvalidArn, invalid)
}

// TestGrantOperationsOfKeys: each kind of key takes what it can do, and no more.
func TestGrantOperationsOfKeys(t *testing.T) {
	r := newRoom(t)
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
		id := *must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &tt.spec, KeyUsage: &tt.usage}).KeyMetadata.KeyId
		var got []string
		for _, op := range kmsapi.EnumOf("GrantOperation").Values() {
			ops := []string{op}
			if op == "CreateGrant" {
				ops = append(ops, "DescribeKey") // not by itself
			}
			_, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: ops})
			if err == nil {
				got = append(got, op)
			} else if !errors.Is(err, kmsapi.ErrValidation) {
				t.Errorf("%s on %s: %v", op, tt.spec, err)
			}
		}
		want := strings.Fields(tt.want + common)
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s %s takes %v, want %v", tt.spec, tt.usage, got, want)
		}
	}
}

// TestNamedGrants: a repeat of a named request gives the same grant and another
// token; anything else, and anything without a name, another grant.
func TestNamedGrants(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	other, _ := r.newKey()
	in := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringPrincipal: new(bobARN), Name: new("n"),
			Operations: []string{"Encrypt", "Decrypt"}, Constraints: subset(contextOf("a", "1", "b", "2"))}
		f(in)
		return in
	}
	same := func(*kmsapi.CreateGrantInput) {}
	first := must[kmsapi.CreateGrantOutput](r, "CreateGrant", in(same))
	for name, f := range map[string]func(*kmsapi.CreateGrantInput){
		"same": same, "operations in another order, twice": func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"Decrypt", "Encrypt", "Decrypt"} },
		"key by ARN": func(in *kmsapi.CreateGrantInput) { in.KeyId = new(*r.describe(id).Arn) }, "with a token": func(in *kmsapi.CreateGrantInput) { in.GrantTokens = []string{*first.GrantToken} },
	} {
		out, err := callAs[kmsapi.CreateGrantOutput](r, r.engines["n2"], r.root, "CreateGrant", in(f))
		if err != nil || *out.GrantId != *first.GrantId || *out.GrantToken == *first.GrantToken {
			t.Errorf("%s: got %v, %v, want grant %s with a new token", name, out, err, *first.GrantId)
			continue
		}
		if _, grant, err := r.first.vault.GrantOfToken(*out.GrantToken); err != nil || string(grant[:]) != string(bytesOfGrant(*first.GrantId)) {
			t.Errorf("%s: the new token names %x: %v", name, grant, err)
		}
	}
	if n := len(r.grantsOf(id)); n != 1 {
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
		out := must[kmsapi.CreateGrantOutput](r, "CreateGrant", in(f))
		if was := seen[*out.GrantId]; was != "" {
			t.Errorf("another %s: the grant of %s", name, was)
		}
		seen[*out.GrantId] = name
	}
	// Nor is it that of another account's request.
	theirs := r.grantChange(other, grantHex(1), aliceARN, "Encrypt")
	theirs.GetPutGrant().Name, theirs.GetPutGrant().Issuer = "n", "444455556666"
	r.cluster.change(theirs)
	ours := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &other, GranteePrincipal: new(aliceARN), Name: new("n"), Operations: []string{"Encrypt"}})
	if *ours.GrantId == grantHex(1) {
		t.Error("a request found the grant of another account's")
	}
	// One that was revoked does not come back.
	must[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: first.GrantId})
	if out := must[kmsapi.CreateGrantOutput](r, "CreateGrant", in(same)); *out.GrantId == *first.GrantId {
		t.Error("a revoked grant came back under its id")
	}
}

// TestConcurrentNamedGrants: of requests at the same time on several nodes one
// makes the grant and all get it.
func TestConcurrentNamedGrants(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	type result struct {
		id  string
		err error
	}
	results := make(chan result)
	const n = 8
	for i := range n {
		e := r.engines[[]string{"n1", "n2"}[i%2]]
		caller := r.caller(r.root)
		go func() {
			out, err := e.Do(t.Context(), caller, OperationNamed("CreateGrant"),
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
	if grants := r.grantsOf(id); len(ids) != 1 || len(grants) != 1 {
		t.Errorf("%d ids were given out, and there are %d grants", len(ids), len(grants))
	}
}

func TestListGrants(t *testing.T) {
	r := newRoomIn(t, threeRegions(), "n1", "n2")
	id, arn := r.newKey()
	other, otherARN := r.newKey()
	var all, toAlice, retirable []string
	for i := range 7 {
		in := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new([]string{aliceARN, bobARN}[i%2]), Operations: []string{"Encrypt"}}
		if i >= 2 {
			in.RetiringPrincipal = new(carolARN)
		}
		out := must[kmsapi.CreateGrantOutput](r, "CreateGrant", in)
		all = append(all, *out.GrantId)
		if i%2 == 0 {
			toAlice = append(toAlice, *out.GrantId)
		}
		if i >= 2 {
			retirable = append(retirable, arn+" "+*out.GrantId)
		}
	}
	on := must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &other, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, RetiringPrincipal: new(carolARN)})
	retirable = append(retirable, otherARN+" "+*on.GrantId)
	slices.Sort(all)
	slices.Sort(toAlice)
	slices.Sort(retirable)
	list := func(in kmsapi.ListGrantsInput) func(*string) ([]string, *string, *bool, error) {
		return func(m *string) ([]string, *string, *bool, error) {
			in.KeyId, in.Marker = &id, m
			out, err := callAs[kmsapi.ListGrantsOutput](r, r.engines["n2"], r.root, "ListGrants", &in)
			if err != nil {
				return nil, nil, nil, err
			}
			return idsOf(out.Grants), out.NextMarker, out.Truncated, nil
		}
	}
	listRetirable := func(who string, limit *int32) func(*string) ([]string, *string, *bool, error) {
		return func(m *string) (names []string, _ *string, _ *bool, err error) {
			out, err := call[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: &who, Limit: limit, Marker: m})
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
			t.Errorf("%s: pages of %s, want %s", tt.name, s, tt.sizes)
		}
	}
	// A marker is good for the list that it came from only.
	marker := must[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, Limit: new(int32(1))}).NextMarker
	retirableMarker := must[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN), Limit: new(int32(1))}).NextMarker
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
		if _, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), in); !errors.Is(err, kmsapi.ErrInvalidMarker) {
			t.Errorf("a marker for %s: %v", name, err)
		}
	}
	for _, bad := range []string{"x", strings.ToUpper(all[0][:1]) + "F" + all[0][2:], all[0][:62], all[0] + "00", strings.Repeat("g", 64)} {
		_, err := call[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GrantId: &bad})
		wantError(t, err, kmsapi.ErrInvalidGrantID, "")
	}
	_, err := call[kmsapi.ListGrantsOutput](r, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id, GranteePrincipal: new("alice")})
	wantError(t, err, kmsapi.ErrInvalidArn, "…")
	_, err = call[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new("carol")})
	wantError(t, err, kmsapi.ErrInvalidArn, "…")
	// Only principals of the caller's own account, and nothing of other Regions.
	_, err = call[kmsapi.ListRetirableGrantsOutput](r, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new("arn:aws:iam::444455556666:user/carol")})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, err = callAs[kmsapi.ListRetirableGrantsOutput](r, r.first, r.user(carolARN), "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN)})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if got := mustIn[kmsapi.ListRetirableGrantsOutput](r, secondRegion, "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(carolARN)}).Grants; len(got) != 0 {
		t.Errorf("another Region lists %d retirable grants", len(got))
	}
	foreign := "arn:aws:iam::444455556666:root"
	must[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), RetiringPrincipal: &foreign, Operations: []string{"Encrypt"}})
	theirs, err := callAs[kmsapi.ListRetirableGrantsOutput](r, r.first, r.user(foreign), "ListRetirableGrants", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: &foreign})
	if err != nil || len(theirs.Grants) != 1 || *theirs.Grants[0].KeyId != arn {
		t.Errorf("another account lists what it may retire: %v, %v", theirs, err)
	}
}

// TestRetireGrant: who may, by what.
func TestRetireGrant(t *testing.T) {
	const (
		role    = "arn:aws:iam::" + testAccount + ":role/app"
		session = "arn:aws:sts::" + testAccount + ":assumed-role/app/one"
		foreign = "arn:aws:iam::444455556666:root"
		root    = "arn:aws:iam::" + testAccount + ":root"
	)
	r := newRoom(t)
	id, arn := r.newKey()
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
			r.setPolicy(id, r.policyFor(rootStatement))
			if tt.policy != "" {
				r.setPolicy(id, r.policyFor(rootStatement, tt.policy))
			}
			c := r.grantChange(id, grantHex(1), tt.grantee, strings.Fields(tt.ops)...)
			c.GetPutGrant().Retiring = tt.retiring
			if tt.issuer != "" {
				c.GetPutGrant().Issuer = tt.issuer
			}
			r.cluster.change(c)
			token, err := r.first.vault.GrantToken(r.keyID(id), [32]byte(bytesOfGrant(grantHex(1))))
			if err != nil {
				t.Fatal(err)
			}
			who := r.user(tt.caller)
			for way, in := range map[string]*kmsapi.RetireGrantInput{
				"token": {GrantToken: &token}, "ARN": {KeyId: &arn, GrantId: new(grantHex(1))}, "key id": {KeyId: &id, GrantId: new(grantHex(1))},
			} {
				in.DryRun = new(true)
				want := map[bool]*kmsapi.Error{true: kmsapi.ErrDryRun, false: kmsapi.ErrAccessDenied}[tt.want]
				_, err := callAs[request.None](r, r.first, who, "RetireGrant", in)
				wantError(t, err, want, "…")
				rec := r.lastRecord()
				if last := rec.Additional[len(rec.Additional)-1]; last.Name != "grantId" || last.GetText() != grantHex(1) || len(rec.Resources) != 1 || rec.Resources[0].Arn != arn {
					t.Errorf("by %s: the record does not name the grant and its key: %v", way, rec)
				}
			}
			_, err = callAs[request.None](r, r.first, who, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: &token})
			if (err == nil) != tt.want {
				t.Errorf("got %v", err)
			}
			if n := len(r.grantsOf(id)); (n == 0) != tt.want {
				t.Errorf("there are %d grants left", n)
			}
			if !tt.want {
				r.dropGrant(id, grantHex(1))
			}
		})
	}
}

// TestEndGrantErrors: what RetireGrant and RevokeGrant refuse.
func TestEndGrantErrors(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	other, _ := r.newKey()
	out := r.createGrant(id, aliceARN, "Encrypt", "RetireGrant")
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
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in)
		var told *kmsapi.Error
		if !errors.As(err, &told) || told.Code != tt.kind.Code || tt.message != "…" && told.Message != tt.message {
			t.Errorf("%s, %s: got %v, want %s: %s", tt.op, tt.name, err, tt.kind.Code, tt.message)
		}
	}
	alice := r.user(aliceARN)
	_, err := callAs[request.None](r, r.first, alice, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &arn, GrantId: out.GrantId})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if got := idsOf(r.grantsOf(id)); !slices.Equal(got, []string{*out.GrantId}) {
		t.Errorf("the key has grants %v, want %s", got, *out.GrantId)
	}
	must[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: out.GrantId})
	if rec := r.lastRecord(); rec.ResponseElements != nil || rec.ReadOnly {
		t.Errorf("RevokeGrant's record: %v", rec)
	}
	for op, in := range map[string]any{"RevokeGrant": &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: out.GrantId}, "RetireGrant": &kmsapi.RetireGrantInput{GrantToken: out.GrantToken}} {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), in)
		wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*out.GrantId+" not found")
	}
}

// TestGrantsAndKeys: what becomes of grants when their key does not stay as it is.
func TestGrantsAndKeys(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	alice := r.user(aliceARN)
	id, arn := r.newKey()
	out := r.createGrant(id, aliceARN, "Encrypt", "RetireGrant")
	encrypt := func() error {
		_, err := callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	wantError(t, encrypt(), kmsapi.ErrDisabled, arn+" is disabled.")
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	wantError(t, encrypt(), kmsapi.ErrInvalidState, arn+" is pending deletion.")
	if n := len(r.grantsOf(id)); n != 1 {
		t.Errorf("%d grants on a key that is to be deleted, want 1", n)
	}
	must[kmsapi.CancelKeyDeletionOutput](r, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	if err := encrypt(); err != nil {
		t.Errorf("with the deletion called off: %v", err)
	}
	// States that TestKeyStates has not.
	imported, importedARN := r.keyToImport(kmsapi.SpecSymmetric, kmsapi.UsageEncrypt)
	primary := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &primary})
	for id, message := range map[string]string{
		imported: importedARN + " is pending import.", primary: multiARN(testRegion, primary) + " is pending replica deletion.",
	} {
		r.putGrant(id, grantHex(1), bobARN, "Encrypt")
		_, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}})
		wantError(t, err, kmsapi.ErrInvalidState, message)
		g := r.grantsOf(id)[0].GrantId
		_, err = call[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: g, DryRun: new(true)})
		wantError(t, err, kmsapi.ErrDryRun, "…")
		_, err = call[request.None](r, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &id, GrantId: g, DryRun: new(true)})
		wantError(t, err, kmsapi.ErrDryRun, "…")
	}
	r.deleteIn(testRegion, id)
	if g, _ := r.cluster.state().Grant(r.keyID(id), bytesOfGrant(*out.GrantId)); g != nil {
		t.Error("the grant outlives its key")
	}
	_, err := callAs[request.None](r, r.first, alice, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: out.GrantToken})
	wantError(t, err, kmsapi.ErrNotFound, "Grant ID "+*out.GrantId+" not found")
	wantError(t, encrypt(), kmsapi.ErrNotFound, "…")

	// The keys of a multi-Region set have each their own.
	multi := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	r.createGrant(multi, aliceARN, "Encrypt")
	in := &kmsapi.EncryptInput{KeyId: &multi, Plaintext: []byte("x")}
	if _, err := callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", in); err != nil {
		t.Error(err)
	}
	c := r.caller(alice)
	c.Region = secondRegion
	_, err = r.first.Do(t.Context(), c, OperationNamed("Encrypt"), in)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &multi, ReplicaRegion: new(thirdRegion)})
	if got := mustIn[kmsapi.ListGrantsOutput](r, thirdRegion, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &multi}).Grants; len(got) != 0 {
		t.Errorf("a new replica has %d grants", len(got))
	}
	r.deleteIn(secondRegion, multi)
	if n := len(r.grantsOf(multi)); n != 1 {
		t.Errorf("with the replica gone the primary has %d grants, want 1", n)
	}
}

// TestGrantQuota: a key takes 50,000 grants and not one more; what one of so many
// allows is found, and a refusal does not outlive the revocation that makes room.
func TestGrantQuota(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	alice := r.user(aliceARN)
	id, arn := r.newKey()
	k := r.keyID(id)
	for i := 0; i < request.DefaultQuotas.Grants-1; {
		var changes []*fsmpb.Change
		for ; len(changes) < 16 && i < request.DefaultQuotas.Grants-1; i++ {
			c := r.grantChange(id, fmt.Sprintf("%064x", i), fmt.Sprintf("arn:aws:iam::%s:user/u%d", testAccount, i), "Encrypt")
			changes = append(changes, c)
		}
		r.cluster.change(changes...)
	}
	last := r.createGrant(id, aliceARN, "Encrypt")
	if n, _ := r.cluster.state().KeyGrants(k); int(n.Count) != request.DefaultQuotas.Grants {
		t.Fatalf("the key has %d grants", n.Count)
	}
	if _, err := callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Errorf("by one grant of many: %v", err)
	}
	more := &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}}
	full := arn + " has 50000 grants and cannot have more."
	_, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", more)
	wantError(t, err, kmsapi.ErrLimitExceeded, full)
	// A request for a grant that is there already makes none.
	c := r.grantChange(id, grantHex(0xee), carolARN, "Encrypt")
	c.GetPutGrant().Name = "n"
	r.cluster.change(c)
	out, err := call[kmsapi.CreateGrantOutput](r, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(carolARN), Operations: []string{"Encrypt"}, Name: new("n")})
	if err != nil || *out.GrantId != grantHex(0xee) {
		t.Errorf("a repeated request on a full key: %v, %v", out, err)
	}
	r.dropGrant(id, grantHex(0xee))
	r.cluster.replica("n2").freeze()
	must[request.None](r, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: last.GrantId})
	if _, err := callAs[kmsapi.CreateGrantOutput](r, r.engines["n2"], r.root, "CreateGrant", more); err != nil {
		t.Errorf("on a node that is behind, with room made: %v", err)
	}
}
