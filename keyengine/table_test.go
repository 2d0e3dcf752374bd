package keyengine

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestTable checks each row of the table of operations. A member without a tag that says
// whether it is recorded panics when the program starts.
func TestTable(t *testing.T) {
	t.Parallel()
	onNoKey := append(slices.Clone(keyless), storeOperations...)
	for _, op := range Operations() {
		t.Run(op.Name, func(t *testing.T) {
			if OperationNamed(op.Service, op.Name) != op || operationNamed(op.Name) != op {
				t.Error("OperationNamed does not find it")
			}
			if len(op.Actions) == 0 {
				t.Error("it has no policy action")
			}
			for _, a := range op.Actions {
				if prefix := string(op.Service) + ":"; !strings.HasPrefix(a, prefix) || op.Name != "ReEncrypt" && a != prefix+op.Name {
					t.Errorf("it has policy action %s", a)
				}
			}
			if noRules := op.States == (request.StateRules{}); noRules != (op.Service != KMS || slices.Contains(onNoKey, op.Name)) {
				t.Errorf("it has rules for key states: %v", !noRules)
			}
			in, out := reflect.TypeOf(op.NewInput()), reflect.TypeOf(op.NewOutput())
			if in.Elem().Name() != op.Name+"Input" {
				t.Errorf("it has input type %v", in)
			}
			if no := out == reflect.TypeFor[*request.None](); !no && out.Elem().Name() != op.Name+"Output" || op.HasOutput() != (!no || op.Object) {
				t.Errorf("it has output type %v, HasOutput %v", out, op.HasOutput())
			}
		})
	}
	if OperationNamed(KMS, "Encrypt ") != nil || OperationNamed(KMS, "encrypt") != nil || OperationNamed(KMS, "") != nil {
		t.Error("OperationNamed finds an operation by a wrong name")
	}
}

// What audit records have of requests, and that they have no secrets.
func TestRecords(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	plaintext := []byte("PLAINTEXT-CANARY-0123456789")
	id, arn := c.newKey()
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &id})
	rec := c.lastRecord()
	if len(rec.Resources) != 2 || rec.Resources[0].Arn != arn || rec.Resources[1].Arn != "arn:aws:kms:eu-west-1:111122223333:alias/app" || rec.ReadOnly {
		t.Errorf("the record of CreateAlias has resources %v", rec.Resources)
	}
	context := map[string]string{"purpose": "CONTEXT"}
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/app"), Plaintext: plaintext, EncryptionContext: context})
	rec = c.lastRecord()
	params := map[string]string{}
	for _, f := range rec.RequestParameters {
		params[f.Name] = f.String()
	}
	for name, want := range map[string]string{"keyId": "alias/app", "encryptionContext": "CONTEXT", "encryptionAlgorithm": "SYMMETRIC_DEFAULT"} {
		if !strings.Contains(params[name], want) {
			t.Errorf("the record of Encrypt has %s %q, want %s in it", name, params[name], want)
		}
	}
	if !rec.ReadOnly || rec.ResponseElements != nil || rec.Resources[len(rec.Resources)-1].Arn != arn || rec.Identity.Arn != "arn:aws:iam::111122223333:root" ||
		rec.SourceIp != "192.0.2.1" || rec.UserAgent != "test/1" || rec.Transport != "aws" || rec.Node != "n1" || rec.Region != testRegion || rec.RecipientAccountId != testAccount {
		t.Errorf("unexpected record of Encrypt: %v", rec)
	}
	var authorization string
	for _, f := range rec.Additional {
		if f.Name == "authorization" {
			authorization = f.GetList().Items[0]
		}
	}
	if authorization != "kms:Encrypt Allow key-policy statement 0 Enable IAM User Permissions" {
		t.Errorf("the record of Encrypt has decision %q", authorization)
	}
	must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context})
	rec = c.lastRecord()
	found := false
	for _, f := range rec.RequestParameters {
		found = found || f.Name == "keyId" && f.GetText() == arn
	}
	if !found {
		t.Errorf("the record of Decrypt does not have the key: %v", rec.RequestParameters)
	}
	k := must[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
	random := must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32))})
	if rec = c.lastRecord(); len(rec.RequestParameters) != 0 || len(rec.Resources) != 0 {
		t.Errorf("unexpected record of GenerateRandom: %v", rec)
	}
	re := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: context, DestinationKeyId: &id})
	if rec = c.lastRecord(); len(rec.Additional) != 3 || rec.Additional[2].Name != "destinationKeyMaterialId" {
		t.Errorf("unexpected record of ReEncrypt: %v", rec.Additional)
	}
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, GrantTokens: []string{"TOKEN-CANARY"}})
	wantError(t, err, kmsapi.ErrInvalidGrantToken, "")
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: append(bytes.Clone(enc.CiphertextBlob), 1), Recipient: &kmsapi.RecipientInfo{AttestationDocument: plaintext}})
	wantError(t, err, kmsapi.ErrUnsupported, "…")
	doc := policyDocument(rootStatement, `{"Sid":"POLICYCANARY","Effect":"Deny","Principal":"*","Action":"kms:Sign","Resource":"*"}`)
	c.setPolicy(id, doc)
	must[kmsapi.GetKeyPolicyOutput](c, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id})

	for _, e := range c.Audit.Entries() {
		if enginetest.IsChange(e) {
			continue
		}
		plain, err := c.engine.vault.OpenBody(e)
		if err != nil {
			t.Fatal(err)
		}
		for name, secret := range map[string][]byte{
			"plaintext": plaintext, "ciphertext": enc.CiphertextBlob[75:], "re-encrypted": re.CiphertextBlob[75:], "data key": k.Plaintext,
			"data key's ciphertext": k.CiphertextBlob[75:], "random bytes": random.Plaintext, "grant token": []byte("TOKEN-CANARY"), "answer of GetKeyPolicy": []byte("POLICYCANARY"),
		} {
			encoded := []byte(base64.StdEncoding.EncodeToString(secret))
			if bytes.Contains(plain, secret) || bytes.Contains(plain, encoded) || bytes.Contains(e.Body, secret) {
				t.Errorf("record %d has the %s", e.Index, name)
			}
		}
		if bytes.Contains(e.Body, []byte("CONTEXT")) {
			t.Errorf("the encrypted record %d has text in the clear", e.Index)
		}
	}
}

// A refusal is recorded with its reason.
func TestDeniedIsRecorded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	alice := c.newUser("arn:aws:iam::111122223333:user/alice")
	_, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	message := "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: kms:Encrypt on resource: " + arn +
		" because no identity-based policy allows the kms:Encrypt action"
	wantError(t, err, kmsapi.ErrAccessDenied, message)
	rec := c.lastRecord()
	if rec.ErrorCode != "AccessDeniedException" || rec.ErrorMessage != message || rec.Identity.Arn != "arn:aws:iam::111122223333:user/alice" || rec.Resources[0].Arn != arn {
		t.Errorf("unexpected record of a refusal: %v", rec)
	}
	for name, in := range map[string]any{
		"CreateKey": &kmsapi.CreateKeyInput{}, "ListKeys": &kmsapi.ListKeysInput{}, "ListAliases": &kmsapi.ListAliasesInput{}, "GenerateRandom": &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))},
		"CreateAlias": &kmsapi.CreateAliasInput{AliasName: new("alias/x"), TargetKeyId: &id},
	} {
		_, err := callAs[request.None](c, c.engine, alice, name, in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
		if rec := c.lastRecord(); rec.ErrorCode != "AccessDeniedException" || rec.EventName != name {
			t.Errorf("%s: got record of %s with error %q", name, rec.EventName, rec.ErrorCode)
		}
	}
	// The key policy can allow a user something, and a Deny takes precedence.
	c.setPolicy(id, policyDocument(rootStatement, statement("Allow", "arn:aws:iam::111122223333:user/alice", "kms:Encrypt")))
	if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
		t.Errorf("with an Allow in the key policy: %v", err)
	}
	c.setPolicy(id, policyDocument(rootStatement, statement("Allow", "arn:aws:iam::111122223333:user/alice", "kms:*"), statement("Deny", "*", "kms:Encrypt")))
	_, err = callAs[kmsapi.EncryptOutput](c, c.engine, alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: kms:Encrypt on resource: "+arn+
		" with an explicit deny in a resource-based policy")
}
