package keyengine

import (
	"testing"

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

func benchmarkEvaluate(b *testing.B, c *testCluster, op *request.Operation, in any) {
	caller, s := c.caller(c.root), c.State()
	b.ReportAllocs()
	for b.Loop() {
		if ev := request.Evaluate(b.Context(), c.engine.services, s, caller, op, in); ev.Err != nil || ev.Record == nil {
			b.Fatal(ev.Err)
		}
	}
}
