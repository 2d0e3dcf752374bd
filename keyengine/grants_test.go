package keyengine

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func equals(pairs map[string]string) *kmsapi.GrantConstraints {
	return &kmsapi.GrantConstraints{EncryptionContextEquals: pairs}
}

func subset(pairs map[string]string) *kmsapi.GrantConstraints {
	return &kmsapi.GrantConstraints{EncryptionContextSubset: pairs}
}

// contextOf returns an encryption context from keys and values in turn.
func contextOf(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// The constraints of a grant apply to each operation with an encryption context.
func TestGrantConstraints(t *testing.T) {
	t.Parallel()
	both := contextOf("a", "1", "b", "2")
	tests := []struct {
		name       string
		constraint *kmsapi.GrantConstraints
		context    map[string]string
		want       bool
	}{
		{"none, none", nil, nil, true},
		{"none, any", nil, both, true},
		{"equals, same", equals(both), both, true},
		{"equals, none", equals(both), nil, false},
		{"equals, empty", equals(both), contextOf(), false},
		{"equals, less", equals(both), contextOf("a", "1"), false},
		{"equals, more", equals(both), contextOf("a", "1", "b", "2", "c", "3"), false},
		{"equals, other value", equals(both), contextOf("a", "1", "b", "3"), false},
		{"equals, other key", equals(both), contextOf("a", "1", "c", "2"), false},
		{"equals, other case of a key", equals(both), contextOf("A", "1", "b", "2"), true},
		{"equals, other case of a value", equals(contextOf("a", "x")), contextOf("a", "X"), false},
		{"equals, other case of a letter that is not ASCII", equals(contextOf("\u00e9", "1")), contextOf("\u00c9", "1"), false},
		{"equals, a sign that folds to a letter", equals(contextOf("k", "1")), contextOf("\u212a", "1"), false},
		{"equals, both cases of a key for one", equals(contextOf("a", "1")), contextOf("a", "1", "A", "1"), false},
		{"equals, one for both cases of a key", equals(contextOf("a", "1", "A", "1")), contextOf("a", "1", "b", "2"), false},
		{"equals, both cases of a key", equals(contextOf("a", "1", "A", "2")), contextOf("A", "1", "a", "2"), true},
		{"equals, both cases of a key, one value", equals(contextOf("a", "1", "A", "2")), contextOf("A", "1", "a", "1"), false},
		{"equals, empty value", equals(contextOf("a", "")), contextOf("a", ""), true},
		{"equals, empty value for a missing key", equals(contextOf("a", "")), contextOf("b", ""), false},
		{"equals, same in another form of Unicode", equals(contextOf("a", "\u00e9")), contextOf("a", "e\u0301"), false},
		{"subset, same", subset(both), both, true},
		{"subset, more", subset(both), contextOf("a", "1", "b", "2", "c", "3"), true},
		{"subset, less", subset(both), contextOf("a", "1"), false},
		{"subset, none", subset(both), nil, false},
		{"subset, other value", subset(contextOf("a", "x")), contextOf("a", "X"), false},
		{"subset, other case of a key", subset(contextOf("a", "x")), contextOf("A", "x", "b", "y"), true},
		{"subset, both cases of a key", subset(contextOf("aa", "x", "aA", "x")), contextOf("AA", "x"), false},
		{"subset, both cases of a key in other cases", subset(contextOf("aa", "x", "aA", "x")), contextOf("AA", "x", "Aa", "x", "aa", "y"), true},
		{"subset, empty value for a missing key", subset(contextOf("a", "")), contextOf("b", ""), false},
	}
	c := newTestCluster(t)
	c.exist(aliceARN)
	open, _ := c.newKey()
	alice := c.newUser(aliceARN)
	c.setPolicy(open, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, _ := c.newKey()
			must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Constraints: tt.constraint,
				Operations: []string{"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
					"GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "DescribeKey"}})
			blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: tt.context}).CiphertextBlob
			byOpen := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &open, Plaintext: []byte("x")}).CiphertextBlob
			good := map[string]string{}
			if constraints := tt.constraint; constraints != nil && constraints.EncryptionContextEquals != nil {
				good = constraints.EncryptionContextEquals
			} else if constraints != nil {
				good = constraints.EncryptionContextSubset
			}
			goodBlob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: good}).CiphertextBlob
			for _, req := range []struct {
				op, name string
				in       any
				want     bool
			}{
				{"Encrypt", "", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: tt.context}, tt.want},
				{"Encrypt", "dry run", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: tt.context, DryRun: new(true)}, tt.want},
				{"Decrypt", "", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: tt.context}, tt.want},
				{"Decrypt", "with key", &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob, EncryptionContext: tt.context}, tt.want},
				{"Decrypt", "without the ciphertext", &kmsapi.DecryptInput{KeyId: &id, EncryptionContext: tt.context, DryRun: new(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, tt.want},
				{"ReEncrypt", "source", &kmsapi.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: tt.context, DestinationKeyId: &open}, tt.want},
				{"ReEncrypt", "destination", &kmsapi.ReEncryptInput{CiphertextBlob: byOpen, DestinationKeyId: &id, DestinationEncryptionContext: tt.context}, tt.want},
				{"ReEncrypt", "source good, destination to test", &kmsapi.ReEncryptInput{CiphertextBlob: goodBlob, SourceEncryptionContext: good, DestinationKeyId: &id, DestinationEncryptionContext: tt.context}, tt.want},
				{"ReEncrypt", "source to test, destination good", &kmsapi.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: tt.context, DestinationKeyId: &id, DestinationEncryptionContext: good}, tt.want},
				{"GenerateDataKey", "", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256), EncryptionContext: tt.context}, tt.want},
				{"GenerateDataKeyWithoutPlaintext", "", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256), EncryptionContext: tt.context}, tt.want},
				{"GenerateDataKeyPair", "", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256"), EncryptionContext: tt.context}, tt.want},
				{"GenerateDataKeyPairWithoutPlaintext", "", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256"), EncryptionContext: tt.context}, tt.want},
				{"DescribeKey", "", &kmsapi.DescribeKeyInput{KeyId: &id}, true},
			} {
				_, err := c.engine.Do(t.Context(), c.caller(alice), OperationNamed(KMS, req.op), req.in)
				allowed := err == nil || errors.Is(err, kmsapi.ErrDryRun)
				if allowed != req.want || !allowed && !errors.Is(err, kmsapi.ErrAccessDenied) {
					t.Errorf("%s %s: got error %v, want allowed %v", req.op, req.name, err, req.want)
				}
			}
			c.Clock.Advance(1e10) // refusals are limited by time
		})
	}
}

// A grant of one operation allows only that operation.
func TestGrantedOperations(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN, bobARN)
	alice := c.newUser(aliceARN)
	blobOf := func(id string) []byte {
		return must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	}
	open, _ := c.newKey()
	c.setPolicy(open, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
	ops := []string{"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair",
		"GenerateDataKeyPairWithoutPlaintext", "DescribeKey", "CreateGrant", "RetireGrant"}
	for _, granted := range ops {
		id, _ := c.newKey()
		allowed := []string{granted}
		if granted == "CreateGrant" {
			allowed = append(allowed, "DescribeKey") // not by itself
		}
		grant := c.createGrant(id, aliceARN, allowed...)
		requests := map[string]any{
			"Encrypt": &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "Decrypt": &kmsapi.DecryptInput{CiphertextBlob: blobOf(id)},
			"ReEncryptFrom":                       &kmsapi.ReEncryptInput{CiphertextBlob: blobOf(id), DestinationKeyId: &open},
			"ReEncryptTo":                         &kmsapi.ReEncryptInput{CiphertextBlob: blobOf(open), DestinationKeyId: &id},
			"GenerateDataKey":                     &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256)},
			"GenerateDataKeyWithoutPlaintext":     &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256)},
			"GenerateDataKeyPair":                 &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
			"GenerateDataKeyPairWithoutPlaintext": &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
			"DescribeKey":                         &kmsapi.DescribeKeyInput{KeyId: &id},
			"CreateGrant":                         &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"CreateGrant", "DescribeKey"}},
			"RetireGrant":                         &kmsapi.RetireGrantInput{KeyId: &id, GrantId: grant.GrantId, DryRun: new(true)},
			// Operations that no grant allows.
			"GetKeyPolicy": &kmsapi.GetKeyPolicyInput{KeyId: &id}, "PutKeyPolicy": &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: new(policyDocument(rootStatement)), BypassPolicyLockoutSafetyCheck: new(true)},
			"DisableKey": &kmsapi.DisableKeyInput{KeyId: &id}, "ScheduleKeyDeletion": &kmsapi.ScheduleKeyDeletionInput{KeyId: &id}, "ListGrants": &kmsapi.ListGrantsInput{KeyId: &id},
			"RevokeGrant": &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: grant.GrantId}, "TagResource": &kmsapi.TagResourceInput{KeyId: &id, Tags: manyTags(1)},
		}
		for name, in := range requests {
			op := OperationNamed(KMS, name)
			if op == nil {
				op = OperationNamed(KMS, "ReEncrypt")
			}
			_, err := c.engine.Do(t.Context(), c.caller(alice), op, in)
			if want := slices.Contains(allowed, name); want != (err == nil || errors.Is(err, kmsapi.ErrDryRun)) || !want && !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s with a grant of %s: got error %v", name, granted, err)
			}
		}
		c.Clock.Advance(1e10)
	}
}

// Which callers a grant to a grantee allows.
func TestGrantees(t *testing.T) {
	t.Parallel()
	const (
		role    = "arn:aws:iam::" + testAccount + ":role/app"
		session = "arn:aws:sts::" + testAccount + ":assumed-role/app/one"
		another = "arn:aws:sts::" + testAccount + ":assumed-role/app/two"
		root    = "arn:aws:iam::" + testAccount + ":root"
		fed     = "arn:aws:sts::" + testAccount + ":federated-user/fred"
		foreign = "arn:aws:iam::444455556666:root"
		theirs  = "arn:aws:iam::444455556666:user/eve"
	)
	for _, tt := range []struct {
		grantee, caller string
		want            bool
	}{
		{aliceARN, aliceARN, true},
		{aliceARN, bobARN, false},
		{aliceARN, "arn:aws:iam::" + testAccount + ":user/Alice", false},
		{aliceARN, "arn:aws:iam::444455556666:user/alice", false},
		{"arn:aws:iam::" + testAccount + ":user/team/alice", aliceARN, false},
		{role, session, true},
		{role, another, true},
		{session, session, true},
		{session, another, false},
		{fed, fed, true},
		{root, aliceARN, false}, // the account's own policies decide, and there are none
		{foreign, foreign, true},
		{foreign, theirs, false},
		{theirs, theirs, false}, // its own account has to allow it too
	} {
		c := newTestCluster(t)
		id, arn := c.newKey()
		c.setPolicy(id, policyDocument(statement("Allow", bobARN+"2", "kms:*")))
		c.putGrant(id, grantHex(1), tt.grantee, "Encrypt")
		_, err := callAs[kmsapi.EncryptOutput](c, c.engine, c.newUser(tt.caller), "Encrypt", &kmsapi.EncryptInput{KeyId: &arn, Plaintext: []byte("x")})
		if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("grant to %s, request of %s: got error %v, want allowed %v", tt.grantee, tt.caller, err, tt.want)
		}
	}
	// A grant also allows the root user something that the policy does not.
	c := newTestCluster(t)
	id, arn := c.newKey()
	c.setPolicy(id, policyDocument(statement("Allow", bobARN, "kms:*")))
	c.putGrant(id, grantHex(1), root, "Encrypt")
	must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &arn, Plaintext: []byte("x")})
}

// A Deny in the key policy takes precedence over grants.
func TestDenyDespiteGrant(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(aliceARN, bobARN)
	alice := c.newUser(aliceARN)
	id, arn := c.newKey()
	c.createGrant(id, aliceARN, "Encrypt", "Decrypt", "CreateGrant")
	encrypt := &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}
	if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", encrypt); err != nil {
		t.Fatal(err)
	}
	for _, deny := range []string{statement("Deny", aliceARN, "kms:Encrypt"), statement("Deny", testAccount, "kms:*"), `{"Effect":"Deny","Principal":"*","Action":"kms:Enc*","Resource":"*"}`} {
		c.setPolicy(id, policyDocument(rootStatement, deny))
		_, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", encrypt)
		wantError(t, err, kmsapi.ErrAccessDenied, "User: "+aliceARN+" is not authorized to perform: kms:Encrypt on resource: "+arn+" with an explicit deny in a resource-based policy")
	}
	c.setPolicy(id, policyDocument(rootStatement, statement("Deny", aliceARN, "kms:CreateGrant")))
	_, err := callAs[kmsapi.CreateGrantOutput](c, c.engine, alice, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
}

// A grant is in effect on every node once CreateGrant has returned, and on none once RevokeGrant or
// RetireGrant has returned, also if the state of the node is behind.
func TestGrantsEverywhere(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.exist(aliceARN, bobARN)
	alice := c.newUser(aliceARN)
	id, arn := c.newKey()
	behind, n2 := c.Replica("n2"), c.engines["n2"]
	encrypt := func() error {
		_, err := callAs[kmsapi.EncryptOutput](c, n2, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	for i, end := range []func(g *kmsapi.CreateGrantOutput){
		func(g *kmsapi.CreateGrantOutput) {
			must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: g.GrantId})
		},
		func(g *kmsapi.CreateGrantOutput) {
			must[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{KeyId: &arn, GrantId: g.GrantId})
		},
		func(g *kmsapi.CreateGrantOutput) {
			must[request.None](c, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: g.GrantToken})
		},
	} {
		if err := encrypt(); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Fatalf("case %d: before CreateGrant: got error %v, want AccessDeniedException", i, err)
		}
		behind.FallBehind()
		g := c.createGrant(id, aliceARN, "Encrypt")
		if err := encrypt(); err != nil {
			t.Errorf("case %d: after CreateGrant: %v", i, err)
		}
		behind.CatchUp()
		behind.FallBehind()
		end(g)
		if err := encrypt(); !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Errorf("case %d: after the grant was ended: got error %v, want AccessDeniedException", i, err)
		}
		behind.CatchUp()
		// A node that is behind also lists the grant, and can retire it.
		g = c.createGrant(id, bobARN, "Encrypt")
		behind.FallBehind()
		list, err := callAs[kmsapi.ListGrantsOutput](c, n2, c.root, "ListGrants", &kmsapi.ListGrantsInput{KeyId: &id})
		if err != nil || len(list.Grants) != 1 || *list.Grants[0].GrantId != *g.GrantId {
			t.Errorf("case %d: ListGrants on n2: got %v, error %v; want the new grant", i, list, err)
		}
		if _, err := callAs[request.None](c, n2, c.root, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: g.GrantToken}); err != nil {
			t.Errorf("case %d: RetireGrant on n2: %v", i, err)
		}
		behind.CatchUp()
	}
}

// Whoever may make grants only by a grant cannot grant more than that grant allows, also not in
// several steps.
func TestEscalationByGrants(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.exist(carolARN)
	alice, bob := c.newUser(aliceARN), c.newUser(bobARN)
	id, arn := c.newKey()
	other, _ := c.newKey()
	app := contextOf("app", "one")
	parent := must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN),
		Operations: []string{"CreateGrant", "Decrypt"}, Constraints: subset(app)})
	// The operations of a second grant cannot be granted by the first one.
	must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt", "DescribeKey"}})
	// Nor is the constraint of the first one lifted by a third one that has none.
	must[kmsapi.CreateGrantOutput](c, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &id, GranteePrincipal: new(aliceARN), Operations: []string{"CreateGrant", "RetireGrant"}})
	try := func(who iam.Identity, key, grantee string, constraints *kmsapi.GrantConstraints, ops ...string) (*kmsapi.CreateGrantOutput, error) {
		return callAs[kmsapi.CreateGrantOutput](c, c.engine, who, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: &grantee, Operations: ops, Constraints: constraints})
	}
	for _, tt := range []struct {
		name       string
		key        string
		constraint *kmsapi.GrantConstraints
		ops        []string
		want       bool
	}{
		{"the same", id, subset(app), []string{"Decrypt"}, true},
		{"the same, to be handed on", id, subset(app), []string{"CreateGrant", "Decrypt"}, true},
		{"stricter", id, subset(contextOf("app", "one", "user", "u")), []string{"Decrypt"}, true},
		{"exact", id, equals(app), []string{"Decrypt"}, true},
		{"exact with more", id, equals(contextOf("app", "one", "x", "y")), []string{"Decrypt"}, true},
		{"no constraint", id, nil, []string{"Decrypt"}, false},
		{"no constraint in a structure", id, &kmsapi.GrantConstraints{}, []string{"Decrypt"}, false},
		{"other value", id, subset(contextOf("app", "two")), []string{"Decrypt"}, false},
		{"other case of a key", id, subset(contextOf("App", "one")), []string{"Decrypt"}, true},
		{"other case of a value", id, subset(contextOf("app", "One")), []string{"Decrypt"}, false},
		{"other exact context", id, equals(contextOf("x", "y")), []string{"Decrypt"}, false},
		{"an operation of another grant", id, subset(app), []string{"Encrypt"}, false},
		{"one of each grant", id, subset(app), []string{"Decrypt", "Encrypt"}, false},
		{"one of each grant that may make grants", id, subset(app), []string{"Decrypt", "RetireGrant"}, false},
		{"an operation of no grant", id, subset(app), []string{"GenerateDataKey"}, false},
		{"all operations", id, subset(app), append([]string(nil), ops.GrantOperations(&fsmpb.Key{Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt})...), false},
		{"one twice and one more", id, subset(app), []string{"Decrypt", "Decrypt", "ReEncryptFrom"}, false},
		{"another key", other, subset(app), []string{"Decrypt"}, false},
	} {
		for _, grantee := range []string{bobARN, aliceARN} {
			_, err := try(alice, tt.key, grantee, tt.constraint, tt.ops...)
			if (err == nil) != tt.want || err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
				t.Errorf("%s, to %s: got error %v, want allowed %v", tt.name, grantee, err, tt.want)
			}
		}
	}
	// Bob can grant what alice granted him, with the same or stricter constraints. Alice's
	// grants to herself gave her nothing new.
	if _, err := try(bob, id, "arn:aws:iam::"+testAccount+":user/carol", equals(app), "Decrypt"); err != nil {
		t.Errorf("grant by the grantee of a child grant: %v", err)
	}
	if _, err := try(bob, id, bobARN, nil, "Decrypt"); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("grant without constraint by the grantee of a child grant: got error %v, want AccessDeniedException", err)
	}
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: contextOf("app", "two")}).CiphertextBlob
	for _, who := range []iam.Identity{alice, bob} {
		_, err := callAs[kmsapi.DecryptOutput](c, c.engine, who, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: contextOf("app", "two")})
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	// A grantee cannot end grants without permission.
	_, err := callAs[request.None](c, c.engine, alice, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: parent.GrantId})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	_, err = callAs[request.None](c, c.engine, bob, "RetireGrant", &kmsapi.RetireGrantInput{GrantToken: parent.GrantToken})
	wantError(t, err, kmsapi.ErrAccessDenied, fmt.Sprintf("User: %s is not authorized to perform: kms:RetireGrant on resource: %s because no identity-based policy allows the kms:RetireGrant action", bobARN, arn))
	// When the parent grant is revoked, its child grants stay in effect.
	must[request.None](c, "RevokeGrant", &kmsapi.RevokeGrantInput{KeyId: &id, GrantId: parent.GrantId})
	blob = must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: app}).CiphertextBlob
	if _, err := callAs[kmsapi.DecryptOutput](c, c.engine, bob, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: app}); err != nil {
		t.Errorf("Decrypt by a child grant whose parent was revoked: %v", err)
	}
}
