package grpcapi

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
)

// FuzzDecode: any bytes as a request of any operation are either a valid request
// or refused, and a valid request has everything that the bytes contain.
func FuzzDecode(f *testing.F) {
	all := methods(f)
	for i := range all {
		f.Add(uint8(i), []byte{0x0a, 1, 'k', 0x12, 2, 1, 2, 0x1a, 6, 0x0a, 1, 'a', 0x12, 1, 'b'})
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		m := all[int(which)%len(all)]
		msg := m.request.New().Interface()
		if proto.Unmarshal(b, msg) != nil {
			return
		}
		in, err := m.decode(msg)
		if err != nil {
			return
		}
		// Nothing that was set is lost.
		back := msg.ProtoReflect().New().Interface()
		reverse(t, reflect.ValueOf(back).Elem(), reflect.ValueOf(in).Elem())
		if !proto.Equal(msg, back) {
			t.Errorf("%s: %v became %v", m.op.Name, msg, back)
		}
	})
}
