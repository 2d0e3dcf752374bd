package peers

import (
	"errors"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/fsm/wire"
)

// A record is encoded once, where it is proposed, and its bytes are passed on: to the
// leader in a batch, and from there in an entry. Otherwise decoding and re-encoding every
// batch would be most of the leader's work.

// Field numbers of clusterpb.SubmitRequest.
const (
	submitBatch      protowire.Number = 1
	submitRegister   protowire.Number = 2
	submitGeneration protowire.Number = 3
	submitMAC        protowire.Number = 4
	submitGroup      protowire.Number = 15
)

// wireMessage is an encoded message between nodes, in one or more parts. A received message
// owns its parts.
type wireMessage struct{ parts [][]byte }

// submitMessage returns a SubmitRequest with an encoded batch or registration.
func submitMessage(field protowire.Number, encoded []byte, generation uint32, mac []byte) *wireMessage {
	head := protowire.AppendTag(nil, field, protowire.BytesType)
	tail := protowire.AppendVarint(protowire.AppendTag(nil, submitGroup, protowire.VarintType), uint64(wire.Group))
	if len(mac) > 0 {
		tail = protowire.AppendVarint(protowire.AppendTag(tail, submitGeneration, protowire.VarintType), uint64(generation))
		tail = protowire.AppendBytes(protowire.AppendTag(tail, submitMAC, protowire.BytesType), mac)
	}
	return &wireMessage{[][]byte{protowire.AppendVarint(head, uint64(len(encoded))), encoded, tail}}
}

// codec is gRPC's codec for protobuf, extended to wireMessages.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
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
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*wireMessage)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	m.parts = [][]byte{data.Materialize()}
	return nil
}

var errMalformed = errors.New("malformed message")

// received is a SubmitRequest with its batch or registration still encoded, and the MAC
// that authenticates it.
type received struct {
	batch, register []byte
	generation      uint32
	mac             []byte
	group           uint32
}

// readSubmit splits a SubmitRequest into its fields. Fields that are unknown to this
// release are skipped, as they do not enter the log.
func readSubmit(m *wireMessage) (r received, err error) {
	for b := m.parts[0]; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return received{}, errMalformed
		}
		value := b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, value); n < 0 {
			return received{}, errMalformed
		}
		b = value[n:]
		switch {
		case (num == submitBatch || num == submitRegister) && typ == protowire.BytesType:
			if r.batch != nil || r.register != nil {
				return received{}, errors.New("more than one message in a frame")
			}
			value, _ = protowire.ConsumeBytes(value) // not nil, even if empty
			if num == submitBatch {
				r.batch = value
			} else {
				r.register = value
			}
		case num == submitGeneration && typ == protowire.VarintType:
			g, _ := protowire.ConsumeVarint(value)
			r.generation = uint32(g)
		case num == submitMAC && typ == protowire.BytesType:
			r.mac, _ = protowire.ConsumeBytes(value)
		case num == submitGroup && typ == protowire.VarintType:
			g, _ := protowire.ConsumeVarint(value)
			r.group = uint32(g)
		}
	}
	if r.batch == nil && r.register == nil {
		return received{}, errors.New("empty message")
	}
	return r, nil
}
