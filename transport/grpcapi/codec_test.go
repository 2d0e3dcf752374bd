package grpcapi

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestSecretsAreWiped: once an answer is encoded, the message has no secret any
// more, and the encoded bytes have it.
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

// TestFramesAreWiped: nothing of a request is left in the frames in which it was
// received, and nothing of an answer in the buffers that were given to the connection.
func TestFramesAreWiped(t *testing.T) {
	all := make(answers)
	for _, m := range methods(t) {
		all[m.response] = m.out
	}
	secret := bytes.Repeat([]byte("a secret of thirty-two bytes ..."), 100)
	whole, err := proto.Marshal(&kmspb.EncryptRequest{Plaintext: secret})
	if err != nil {
		t.Fatal(err)
	}
	for _, frames := range []mem.BufferSlice{
		{mem.SliceBuffer(bytes.Clone(whole))},
		{mem.SliceBuffer(bytes.Clone(whole[:700])), mem.SliceBuffer(bytes.Clone(whole[700:]))},
	} {
		var in kmspb.EncryptRequest
		if err := newCodec(all).Unmarshal(frames, &in); err != nil || !bytes.Equal(in.GetPlaintext(), secret) {
			t.Errorf("%d frames were read as %q, %v", len(frames), in.GetPlaintext(), err)
		}
		if left := frames.Materialize(); !bytes.Equal(left, make([]byte, len(left))) {
			t.Errorf("%d frames were not wiped", len(frames))
		}
	}
	for _, size := range []int{32, len(secret)} {
		data, err := newCodec(all).Marshal(&kmspb.DecryptResponse{Plaintext: bytes.Clone(secret[:size])})
		if err != nil {
			t.Fatal(err)
		}
		bytesOf := data[0].ReadOnlyData()
		if data.Free(); !bytes.Equal(bytesOf, make([]byte, len(bytesOf))) {
			t.Errorf("an answer with %d bytes was not wiped", size)
		}
	}
}
