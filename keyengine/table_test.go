package keyengine

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestTable holds every row to what a row must have. A record's mapping cannot be
// forgotten: a member that says neither log nor nolog panics at start.
func TestTable(t *testing.T) {
	onNoKey := append(slices.Clone(keyless), storeOperations...)
	for _, op := range Operations() {
		t.Run(op.Name, func(t *testing.T) {
			if OperationNamed(op.Name) != op {
				t.Error("is not found by its name")
			}
			if len(op.Actions) == 0 {
				t.Error("asks for no permission")
			}
			for _, a := range op.Actions {
				if !strings.HasPrefix(a, "kms:") || op.Name != "ReEncrypt" && a != "kms:"+op.Name {
					t.Errorf("has the action %s", a)
				}
			}
			if noRules := op.States == (request.StateRules{}); noRules != slices.Contains(onNoKey, op.Name) {
				t.Errorf("has rules for key states: %v", !noRules)
			}
			in, out := reflect.TypeOf(op.NewInput()), reflect.TypeOf(op.NewOutput())
			if in.Elem().Name() != op.Name+"Input" {
				t.Errorf("has input %v", in)
			}
			if no := out == reflect.TypeFor[*request.None](); !no && out.Elem().Name() != op.Name+"Output" || op.HasOutput() != (!no || op.Object) {
				t.Errorf("has output %v: %v", out, op.HasOutput())
			}
		})
	}
	if OperationNamed("Encrypt ") != nil || OperationNamed("encrypt") != nil || OperationNamed("") != nil {
		t.Error("a wrong name finds an operation")
	}
}

// TestRecords shows what records hold of each kind of request, and that they
// hold none of what must never be there.
func TestRecords(t *testing.T) {
	r := newRoom(t)
	plaintext := []byte("PLAINTEXT-CANARY-0123456789")
	id, arn := r.newKey()
	must[request.None](r, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &id})
	rec := r.lastRecord()
	if len(rec.Resources) != 2 || rec.Resources[0].Arn != arn || rec.Resources[1].Arn != "arn:aws:kms:eu-west-1:111122223333:alias/app" || rec.ReadOnly {
		t.Errorf("CreateAlias's record names %v", rec.Resources)
	}
	context := map[string]string{"purpose": "CONTEXT"}
	enc := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/app"), Plaintext: plaintext, EncryptionContext: context})
	rec = r.lastRecord()
	params := map[string]string{}
	for _, f := range rec.RequestParameters {
		params[f.Name] = f.String()
	}
	for name, want := range map[string]string{"keyId": "alias/app", "encryptionContext": "CONTEXT", "encryptionAlgorithm": "SYMMETRIC_DEFAULT"} {
		if !strings.Contains(params[name], want) {
			t.Errorf("Encrypt's record has %s %q, want %s in it", name, params[name], want)
		}
	}
	if !rec.ReadOnly || rec.ResponseElements != nil || rec.Resources[len(rec.Resources)-1].Arn != arn || rec.Identity.Arn != "arn:aws:iam::111122223333:root" ||
		rec.SourceIp != "192.0.2.1" || rec.UserAgent != "test/1" || rec.Transport != "aws" || rec.Node != "n1" || rec.Region != testRegion || rec.RecipientAccountId != testAccount {
		t.Errorf("Encrypt's record: %v", rec)
	}
	var authorization string
	for _, f := range rec.Additional {
		if f.Name == "authorization" {
			authorization = f.GetList().Items[0]
		}
	}
	if authorization != "kms:Encrypt Allow key-policy statement 0 Enable IAM User Permissions" {
		t.Errorf("Encrypt's record has the decision %q", authorization)
	}
	must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context})
	rec = r.lastRecord()
	found := false
	for _, f := range rec.RequestParameters {
		found = found || f.Name == "keyId" && f.GetText() == arn
	}
	if !found {
		t.Errorf("Decrypt's record does not name the key: %v", rec.RequestParameters)
	}
	k := must[kmsapi.GenerateDataKeyOutput](r, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
	random := must[kmsapi.GenerateRandomOutput](r, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32))})
	if rec = r.lastRecord(); len(rec.RequestParameters) != 0 || len(rec.Resources) != 0 {
		t.Errorf("GenerateRandom's record: %v", rec)
	}
	re := must[kmsapi.ReEncryptOutput](r, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: context, DestinationKeyId: &id})
	if rec = r.lastRecord(); len(rec.Additional) != 3 || rec.Additional[2].Name != "destinationKeyMaterialId" {
		t.Errorf("ReEncrypt's record: %v", rec.Additional)
	}
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, GrantTokens: []string{"TOKEN-CANARY"}})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	_, err = call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: append(bytes.Clone(enc.CiphertextBlob), 1), Recipient: &kmsapi.RecipientInfo{AttestationDocument: plaintext}})
	wantError(t, err, kmsapi.ErrUnsupported, "…")
	doc := r.policyFor(rootStatement, `{"Sid":"POLICYCANARY","Effect":"Deny","Principal":"*","Action":"kms:Sign","Resource":"*"}`)
	r.setPolicy(id, doc)
	must[kmsapi.GetKeyPolicyOutput](r, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id})

	for _, e := range r.cluster.audit.entries {
		if string(e.Body) == "behind" {
			continue
		}
		plain, err := r.first.vault.OpenBody(e)
		if err != nil {
			t.Fatal(err)
		}
		for name, secret := range map[string][]byte{
			"plaintext": plaintext, "ciphertext": enc.CiphertextBlob[75:], "re-encrypted": re.CiphertextBlob[75:], "data key": k.Plaintext,
			"data key's ciphertext": k.CiphertextBlob[75:], "random bytes": random.Plaintext, "grant token": []byte("TOKEN-CANARY"), "answer of GetKeyPolicy": []byte("POLICYCANARY"),
		} {
			encoded := []byte(base64.StdEncoding.EncodeToString(secret))
			if bytes.Contains(plain, secret) || bytes.Contains(plain, encoded) || bytes.Contains(e.Body, secret) {
				t.Errorf("the record %d holds the %s", e.Index, name)
			}
		}
		if bytes.Contains(e.Body, []byte("CONTEXT")) {
			t.Errorf("the sealed record %d can be read", e.Index)
		}
	}
}

// TestDeniedIsRecorded: a refusal leaves a record with its reason.
func TestDeniedIsRecorded(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	alice := r.user("arn:aws:iam::111122223333:user/alice")
	_, err := callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	message := "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: kms:Encrypt on resource: " + arn +
		" because no identity-based policy allows the kms:Encrypt action"
	wantError(t, err, kmsapi.ErrAccessDenied, message)
	rec := r.lastRecord()
	if rec.ErrorCode != "AccessDeniedException" || rec.ErrorMessage != message || rec.Identity.Arn != "arn:aws:iam::111122223333:user/alice" || rec.Resources[0].Arn != arn {
		t.Errorf("record of a denial: %v", rec)
	}
	for name, in := range map[string]any{
		"CreateKey": &kmsapi.CreateKeyInput{}, "ListKeys": &kmsapi.ListKeysInput{}, "ListAliases": &kmsapi.ListAliasesInput{}, "GenerateRandom": &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))},
		"CreateAlias": &kmsapi.CreateAliasInput{AliasName: new("alias/x"), TargetKeyId: &id},
	} {
		_, err := callAs[request.None](r, r.first, alice, name, in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
		if rec := r.lastRecord(); rec.ErrorCode != "AccessDeniedException" || rec.EventName != name {
			t.Errorf("%s left a record of %s with %q", name, rec.EventName, rec.ErrorCode)
		}
	}
	// The key policy's word is enough for a user, and a deny wins over it.
	r.setPolicy(id, r.policyFor(rootStatement, statement("Allow", "arn:aws:iam::111122223333:user/alice", "kms:Encrypt")))
	if _, err := callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Errorf("with an Allow: %v", err)
	}
	r.setPolicy(id, r.policyFor(rootStatement, statement("Allow", "arn:aws:iam::111122223333:user/alice", "kms:*"), statement("Deny", "*", "kms:Encrypt")))
	_, err = callAs[kmsapi.EncryptOutput](r, r.first, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: kms:Encrypt on resource: "+arn+
		" with an explicit deny in a resource-based policy")
}

// TestNarrowingMembers: what every operation's members of these names do is to
// restrict, and so the inputs that have them are closed to what is not known. Which
// structures are, the faces' tests list.
func TestNarrowingMembers(t *testing.T) {
	names := []string{"Constraints", "DryRun", "DryRunModifiers", "EncryptionContext", "SourceEncryptionContext", "DestinationEncryptionContext",
		"GranteePrincipal", "GranteeServicePrincipal", "RetiringServicePrincipal", "Policy", "Recipient", "ValidTo"}
	optional := []string{"GranteePrincipal", "GranteeServicePrincipal", "RetiringServicePrincipal"} // of CreateGrant, where they name somebody
	seen := map[string]bool{}
	for _, op := range Operations() {
		for _, m := range op.Input().Members {
			seen[m.Name] = true
			if slices.Contains(names, m.Name) && !m.Narrows && (op.Name != "CreateGrant" || !slices.Contains(optional, m.Name)) {
				t.Errorf("%s.%s is not marked to narrow", op.Name, m.Name)
			}
		}
	}
	for _, name := range names {
		if !seen[name] {
			t.Errorf("no operation has a member %s", name)
		}
	}
}
