package forward_test

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/internal/forward"
	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestEveryInputTravels: what the inputs and outputs of all operations can hold
// arrives as it was.
func TestEveryInputTravels(t *testing.T) {
	for _, op := range keyengine.Operations() {
		for kind, of := range map[string]struct {
			schema *kmsapi.Schema
			fresh  func() any
		}{"input": {op.Input(), op.NewInput}, "output": {op.Output(), op.NewOutput}} {
			want, got := of.fresh(), of.fresh()
			n := 0
			fillValue(t, reflect.ValueOf(want).Elem(), &n)
			packed, err := forward.Pack(of.schema, want)
			if err != nil {
				t.Fatalf("%s of %s: %v", kind, op.Name, err)
			}
			b, err := proto.Marshal(packed)
			if err != nil {
				t.Fatal(err)
			}
			back := new(forwardpb.Struct)
			if err := proto.Unmarshal(b, back); err != nil {
				t.Fatal(err)
			}
			if err := forward.Unpack(of.schema, got, back); err != nil {
				t.Fatalf("%s of %s: %v", kind, op.Name, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s of %s: got %+v, want %+v", kind, op.Name, got, want)
			}
		}
	}
}

// fillValue gives every member a value of its own.
func fillValue(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(*n), 5).UTC()))
		return
	case v.Type() == reflect.TypeFor[[]byte]():
		v.SetBytes([]byte{byte(*n)})
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(t, v.Elem(), n)
	case reflect.String:
		v.SetString(fmt.Sprint(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(-*n))
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(t, v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fillValue(t, v.Index(0), n)
		fillValue(t, v.Index(1), n)
	case reflect.Map:
		if v.Type().Elem().Kind() == reflect.Int32 {
			v.Set(reflect.ValueOf(map[string]int32{fmt.Sprint(*n): int32(-*n), "": 0}))
			return
		}
		v.Set(reflect.ValueOf(map[string]string{fmt.Sprint(*n): "x", "": ""}))
	default:
		t.Fatalf("a %v", v.Type())
	}
}

// Wipe overwrites every blob, however deep.
func TestWipe(t *testing.T) {
	blob := func() *forwardpb.Value { return &forwardpb.Value{Kind: &forwardpb.Value_Blob{Blob: []byte("secret")}} }
	var all []*forwardpb.Value
	member := func(v *forwardpb.Value) *forwardpb.Member { return &forwardpb.Member{Name: "x", Value: v} }
	top, inner, listed := blob(), blob(), blob()
	all = append(all, top, inner, listed)
	forward.Wipe(&forwardpb.Struct{Members: []*forwardpb.Member{
		member(nil), member(top),
		member(&forwardpb.Value{Kind: &forwardpb.Value_Struct{Struct: &forwardpb.Struct{Members: []*forwardpb.Member{member(inner)}}}}),
		member(&forwardpb.Value{Kind: &forwardpb.Value_List{List: &forwardpb.List{Values: []*forwardpb.Value{nil, listed}}}}),
	}})
	for i, v := range all {
		if !bytes.Equal(v.GetBlob(), make([]byte, 6)) {
			t.Errorf("blob %d is %q", i, v.GetBlob())
		}
	}
	forward.Wipe(nil)
}
