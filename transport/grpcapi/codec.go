package grpcapi

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec is the protobuf codec with two additions: it tells handlers about bytes
// that are no message, see received, and wipes the secrets of an answer that has
// been written out. What TLS and HTTP/2 have of it in their buffers is out of
// reach.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*received); ok {
		in.err = c.CodecV2.Unmarshal(data, in.msg)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := c.CodecV2.Marshal(v)
	wipe(v)
	return data, err
}

// wipe clears the secrets of a message that has some.
func wipe(m any) {
	if p, ok := m.(interface{ GetPlaintext() []byte }); ok {
		clear(p.GetPlaintext())
	}
	if p, ok := m.(interface{ GetPrivateKeyPlaintext() []byte }); ok {
		clear(p.GetPrivateKeyPlaintext())
	}
	if p, ok := m.(interface{ GetSharedSecret() []byte }); ok {
		clear(p.GetSharedSecret())
	}
}
