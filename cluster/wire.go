package cluster

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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

var (
	errMalformed    = errors.New("malformed message")
	errUnknownField = errors.New("unknown field")
)

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

// wireField is what a field of a flat message looks like when encoded.
type wireField struct {
	typ   protowire.Type
	text  bool
	known bool
}

// wireForm is how a message looks when encoded: its fields by number.
type wireForm []wireField

// wireFormOf is m's form. It panics for fields that have more than one.
func wireFormOf(m proto.Message) wireForm {
	var form wireForm
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		f := wireField{known: true}
		switch fd.Kind() {
		case protoreflect.StringKind:
			f.typ, f.text = protowire.BytesType, true
		case protoreflect.BytesKind, protoreflect.MessageKind:
			f.typ = protowire.BytesType
		case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Int64Kind, protoreflect.EnumKind:
			if f.typ = protowire.VarintType; fd.IsList() {
				panic(fmt.Sprintf("%s may be packed or not", fd.FullName()))
			}
		default:
			panic(fmt.Sprintf("%s is a %s", fd.FullName(), fd.Kind()))
		}
		for len(form) <= int(fd.Number()) {
			form = append(form, wireField{})
		}
		form[fd.Number()] = f
	}
	return form
}

// walk holds an encoded message against its form, and hands each field to visit:
// a number, or bytes. Whatever passes can be decoded, as far as the messages
// inside can, and has no unknown field.
func (form wireForm) walk(b []byte, visit func(field protowire.Number, number uint64, bytes []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		if int(num) >= len(form) || !form[num].known || form[num].typ != typ {
			return errUnknownField
		}
		b = b[n:]
		var number uint64
		var bytes []byte
		if typ == protowire.VarintType {
			number, n = protowire.ConsumeVarint(b)
		} else {
			bytes, n = protowire.ConsumeBytes(b)
		}
		if n < 0 || form[num].text && !utf8.Valid(bytes) {
			return errMalformed
		}
		b = b[n:]
		if err := visit(num, number, bytes); err != nil {
			return err
		}
	}
	return nil
}
