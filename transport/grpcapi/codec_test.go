package grpcapi

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestSecretsAreWiped: no secret of an answer is left once it is encoded, and what
// was encoded has it.
func TestSecretsAreWiped(t *testing.T) {
	all := make(answers)
	for _, m := range methods(t) {
		all[m.response] = m.out
	}
	secret := []byte("a secret of thirty-two bytes ...")
	for _, m := range []proto.Message{
		&kmspb.DecryptResponse{Plaintext: bytes.Clone(secret)},
		&kmspb.GenerateDataKeyResponse{Plaintext: bytes.Clone(secret)},
		&kmspb.GenerateRandomResponse{Plaintext: bytes.Clone(secret)},
		&kmspb.GenerateDataKeyPairResponse{PrivateKeyPlaintext: bytes.Clone(secret)},
		&kmspb.DeriveSharedSecretResponse{SharedSecret: bytes.Clone(secret)},
		&kmspb.EncapsulateResponse{SharedSecret: bytes.Clone(secret)},
		&kmspb.DecapsulateResponse{SharedSecret: bytes.Clone(secret)},
	} {
		name := m.ProtoReflect().Descriptor().Name()
		data, err := newCodec(all).Marshal(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Contains(data.Materialize(), secret) {
			t.Errorf("%s is encoded without its secret", name)
		}
		if left, _ := proto.Marshal(m); bytes.Contains(left, secret) {
			t.Errorf("%s still has its secret", name)
		}
	}
}
