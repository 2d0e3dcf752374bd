package keyengine

import (
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// BenchmarkEvaluateEncrypt is what the engine itself takes for an Encrypt of 1
// KiB: everything but the commit.
func BenchmarkEvaluateEncrypt(b *testing.B) {
	r := newRoom(b)
	id, _ := r.newKey()
	op := OperationNamed("Encrypt")
	in := &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 1024), EncryptionContext: map[string]string{"purpose": "bench"}}
	benchmarkEvaluate(b, r, op, in)
}

func BenchmarkEvaluateDecrypt(b *testing.B) {
	r := newRoom(b)
	id, _ := r.newKey()
	context := map[string]string{"purpose": "bench"}
	enc := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 1024), EncryptionContext: context})
	benchmarkEvaluate(b, r, OperationNamed("Decrypt"), &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context})
}

func BenchmarkEvaluateGenerateDataKey(b *testing.B) {
	r := newRoom(b)
	id, _ := r.newKey()
	in := &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new(kmsapi.DataKeyAES256), EncryptionContext: map[string]string{"purpose": "bench"}}
	benchmarkEvaluate(b, r, OperationNamed("GenerateDataKey"), in)
}

func benchmarkEvaluate(b *testing.B, r *room, op *request.Operation, in any) {
	c, s := r.caller(r.root), r.cluster.state()
	b.ReportAllocs()
	for b.Loop() {
		if ev := request.Evaluate(b.Context(), r.first.services, s, c, op, in); ev.Err != nil || ev.Record == nil {
			b.Fatal(ev.Err)
		}
	}
}
