package keyengine

import (
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// BenchmarkEvaluateEncrypt measures an Encrypt of 1 KiB without the commit.
func BenchmarkEvaluateEncrypt(b *testing.B) {
	c := newTestCluster(b)
	id, _ := c.newKey()
	op := OperationNamed(KMS, "Encrypt")
	in := &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 1024), EncryptionContext: map[string]string{"purpose": "bench"}}
	benchmarkEvaluate(b, c, op, in)
}

func BenchmarkEvaluateDecrypt(b *testing.B) {
	c := newTestCluster(b)
	id, _ := c.newKey()
	context := map[string]string{"purpose": "bench"}
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 1024), EncryptionContext: context})
	benchmarkEvaluate(b, c, OperationNamed(KMS, "Decrypt"), &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context})
}

func BenchmarkEvaluateGenerateDataKey(b *testing.B) {
	c := newTestCluster(b)
	id, _ := c.newKey()
	in := &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256), EncryptionContext: map[string]string{"purpose": "bench"}}
	benchmarkEvaluate(b, c, OperationNamed(KMS, "GenerateDataKey"), in)
}

// BenchmarkAuthorise compares an Encrypt of the root user with that of a user who has two
// managed policies with five statements each.
func BenchmarkAuthorise(b *testing.B) {
	c := newTestCluster(b)
	id, _ := c.newKey()
	in := &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 1024), EncryptionContext: map[string]string{"purpose": "bench"}}
	c.putManaged("use",
		allow("kms:Describe*", "*"), allow("kms:List*", "*"), allow("kms:GenerateDataKey*", "arn:aws:kms:*:"+testAccount+":key/*"),
		allow("kms:Encrypt", "arn:aws:kms:*:"+testAccount+":key/*"), allow("kms:Decrypt", "arn:aws:kms:*:"+testAccount+":key/*"))
	c.putManaged("guard",
		deny("kms:ScheduleKeyDeletion", "*"), deny("kms:PutKeyPolicy", "*"), deny("kms:DisableKey", "*"),
		`{"Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"StringNotEquals":{"aws:RequestedRegion":"`+testRegion+`"}}}`,
		`{"Effect":"Deny","Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:purpose":"other"}}}`)
	user := c.newIAMUser("app", func(u *fsmpb.User) { u.Policies = []string{managedARN("guard"), managedARN("use")} })
	b.Run("root", func(b *testing.B) { benchmarkEvaluateAs(b, c, c.root, OperationNamed(KMS, "Encrypt"), in) })
	b.Run("user", func(b *testing.B) { benchmarkEvaluateAs(b, c, user, OperationNamed(KMS, "Encrypt"), in) })
}

func benchmarkEvaluate(b *testing.B, c *testCluster, op *request.Operation, in any) {
	benchmarkEvaluateAs(b, c, c.root, op, in)
}

func benchmarkEvaluateAs(b *testing.B, c *testCluster, who iam.Identity, op *request.Operation, in any) {
	caller, s := c.caller(who), c.State()
	b.ReportAllocs()
	for b.Loop() {
		if ev := request.Evaluate(b.Context(), c.engine.services, s, caller, op, in); ev.Err != nil || ev.Record == nil {
			b.Fatal(ev.Err)
		}
	}
}
