package grpcapi

import (
	"reflect"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is the protobuf codec with three additions. It tells handlers about bytes
// that are not a valid message; see received. It wipes the frames that a request came
// in. And it wipes an answer that may hold secrets: the message once it is encoded,
// and the bytes once they were handed to the connection. The buffers of TLS and
// HTTP/2 cannot be wiped until they are reused; see docs/guarantees.md.
type codec struct {
	encoding.CodecV2
	answers answers
}

func newCodec(a answers) codec { return codec{encoding.GetCodecV2(protocodec.Name), a} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	defer wipeFrames(data)
	if len(data) > 1 {
		// Joined here, because the codec would join them in a buffer that it does not
		// wipe.
		whole := data.Materialize()
		defer clear(whole)
		data = mem.BufferSlice{mem.SliceBuffer(whole)}
	}
	if in, ok := v.(*received); ok {
		in.err = c.CodecV2.Unmarshal(data, in.msg)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// wipeFrames overwrites received frames. They are not needed once they are
// decoded, and the transport wipes none of its buffers.
func wipeFrames(data mem.BufferSlice) {
	for _, b := range data {
		clear(b.ReadOnlyData())
	}
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok || !c.answers.has(v) {
		return c.CodecV2.Marshal(v)
	}
	defer c.answers.wipe(v)
	pool := wipingPool{mem.DefaultBufferPool()}
	buf := pool.Get(max(proto.Size(m), minPooled))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], m)
	if err != nil {
		pool.Put(buf)
		return nil, err
	}
	*buf = out
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// minPooled is larger than what gRPC considers too small to return to a pool.
const minPooled = 2 << 10

// wipingPool overwrites buffers that are returned to it.
type wipingPool struct{ mem.BufferPool }

func (p wipingPool) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	p.BufferPool.Put(b)
}

// answers are the messages that may hold secrets, by the type of their struct.
type answers map[reflect.Type]*message

// has reports whether v is such a message.
func (a answers) has(v any) bool {
	t := reflect.TypeOf(v)
	return t != nil && t.Kind() == reflect.Pointer && a[t.Elem()] != nil
}

// wipe overwrites the secrets of an answer. Messages that do not belong to an operation
// have none.
func (a answers) wipe(v any) {
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && !p.IsNil() {
		if m := a[p.Type().Elem()]; m != nil {
			m.wipe(p.Elem(), false)
		}
	}
}
