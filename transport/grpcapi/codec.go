package grpcapi

import (
	"reflect"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec is the protobuf codec with two additions: it tells handlers about bytes
// that are no message, see received, and wipes the secrets of an answer that has
// been written out. What TLS and HTTP/2 have of it in their buffers is out of
// reach.
type codec struct {
	encoding.CodecV2
	answers answers
}

func newCodec(a answers) codec { return codec{encoding.GetCodecV2(protocodec.Name), a} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*received); ok {
		in.err = c.CodecV2.Unmarshal(data, in.msg)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := c.CodecV2.Marshal(v)
	c.answers.wipe(v)
	return data, err
}

// answers are the messages that may hold secrets, by the type of the struct.
type answers map[reflect.Type]*message

// wipe overwrites the secrets of an answer. Messages that are no operation's have none.
func (a answers) wipe(v any) {
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && !p.IsNil() {
		if m := a[p.Type().Elem()]; m != nil {
			m.wipe(p.Elem(), false)
		}
	}
}
