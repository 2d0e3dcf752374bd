package grpcapi

import (
	"reflect"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is the protobuf codec with three additions: it tells handlers about bytes
// that are no message, see received; it wipes the frames that a request came in; and
// it wipes an answer that may hold secrets, as a message once that is encoded, and as
// bytes once these were handed to the connection. What TLS and HTTP/2 keep in their
// own buffers, until they use them again, is out of reach: see docs/guarantees.md.
type codec struct {
	encoding.CodecV2
	answers answers
}

func newCodec(a answers) codec { return codec{encoding.GetCodecV2(protocodec.Name), a} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	defer wipeFrames(data)
	if len(data) > 1 {
		// Put together here, as the codec would do it in a buffer that it does not wipe.
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

// wipeFrames overwrites what was received. Nobody reads it once it is decoded, and
// the transport wipes none of its buffers.
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

// minPooled is above what gRPC considers too small to give back to a pool.
const minPooled = 2 << 10

// wipingPool overwrites what it is given back.
type wipingPool struct{ mem.BufferPool }

func (p wipingPool) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	p.BufferPool.Put(b)
}

// answers are the messages that may hold secrets, by the type of the struct.
type answers map[reflect.Type]*message

// has reports whether v is such a message.
func (a answers) has(v any) bool {
	t := reflect.TypeOf(v)
	return t != nil && t.Kind() == reflect.Pointer && a[t.Elem()] != nil
}

// wipe overwrites the secrets of an answer. Messages that are no operation's have none.
func (a answers) wipe(v any) {
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && !p.IsNil() {
		if m := a[p.Type().Elem()]; m != nil {
			m.wipe(p.Elem(), false)
		}
	}
}
