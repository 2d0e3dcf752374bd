package grpcapi

import (
	"context"
	"testing"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// BenchmarkEncrypt measures an Encrypt of 1 KiB over one connection on loopback
// with TLS, including the client, with an engine that answers at once.
func BenchmarkEncrypt(b *testing.B) {
	key := "arn:aws:kms:eu-test-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	algorithm := "SYMMETRIC_DEFAULT"
	w := start(b, true, nil)
	w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		return &kmsapi.EncryptOutput{CiphertextBlob: make([]byte, 1159), KeyId: &key, EncryptionAlgorithm: &algorithm}, nil
	}
	client := kmspb.NewKMSClient(w.dial(nil))
	ctx := withToken(b.Context(), "good")
	in := &kmspb.EncryptRequest{KeyId: &key, Plaintext: make([]byte, 1024)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Encrypt(ctx, in); err != nil {
			b.Fatal(err)
		}
	}
}
