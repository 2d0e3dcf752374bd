package cluster

import (
	"errors"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// A record is encoded once, where it is proposed, and its bytes travel: to the
// leader in a batch, and from there in an entry. Decoding every batch on the
// leader only to encode it again would be most of the leader's work.

// Fields of clusterpb.SubmitRequest.
const (
	submitBatch    protowire.Number = 1
	submitRegister protowire.Number = 2
)

// wireMessage is a message between nodes as its bytes, in one piece or more.
// Those that it received belong to whoever has it.
type wireMessage struct{ parts [][]byte }

// submitBatchMessage is a SubmitRequest with that batch.
func submitBatchMessage(b *batch) *wireMessage {
	head := protowire.AppendTag(nil, submitBatch, protowire.BytesType)
	return &wireMessage{[][]byte{protowire.AppendVarint(head, uint64(len(b.encoded))), b.encoded}}
}

// peerCodec is gRPC's own for protobuf, which also takes wireMessages.
type peerCodec struct{ encoding.CodecV2 }

func newPeerCodec() peerCodec { return peerCodec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements encoding.CodecV2.
func (c peerCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*wireMessage)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out := make(mem.BufferSlice, len(m.parts))
	for i, p := range m.parts {
		out[i] = mem.SliceBuffer(p)
	}
	return out, nil
}

// Unmarshal implements encoding.CodecV2.
func (c peerCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*wireMessage)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	m.parts = [][]byte{data.Materialize()}
	return nil
}

var errMalformed = errors.New("malformed message")

// readSubmit takes a received SubmitRequest apart: into its batch or its
// registration, both still encoded. Fields that this release does not know are
// passed over, as they enter no log.
func readSubmit(m *wireMessage) (batch, register []byte, err error) {
	for b := m.parts[0]; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, nil, errMalformed
		}
		value := b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, value); n < 0 {
			return nil, nil, errMalformed
		}
		b = value[n:]
		if num != submitBatch && num != submitRegister || typ != protowire.BytesType {
			continue
		}
		if batch != nil || register != nil {
			return nil, nil, errors.New("more than one message in one")
		}
		value, _ = protowire.ConsumeBytes(value) // not nil, even if empty
		if num == submitBatch {
			batch = value
		} else {
			register = value
		}
	}
	if batch == nil && register == nil {
		return nil, nil, errors.New("empty message")
	}
	return batch, register, nil
}
