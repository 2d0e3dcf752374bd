package grpcapi

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func methods(t testing.TB) []*method {
	t.Helper()
	service := kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS")
	var all []*method
	for _, op := range keyengine.Operations() {
		m, err := newMethod(op, service.Methods().ByName(protoreflect.Name(op.Name)))
		if err != nil {
			t.Fatalf("%s: %v", op.Name, err)
		}
		all = append(all, m)
	}
	return all
}

// fill sets a struct's exported members at random; one in three stays absent,
// unless all is set.
func fill(r *rand.Rand, v reflect.Value, all bool) {
	for _, f := range members(v.Type()) {
		if all || r.IntN(3) > 0 {
			fillValue(r, v.FieldByIndex(f.Index), all)
		}
	}
}

func fillValue(r *rand.Rand, v reflect.Value, all bool) {
	text := func() string { return strings.Repeat("é", r.IntN(4)) + fmt.Sprint(r.Uint32()) }
	switch p := v.Addr().Interface().(type) {
	case **string:
		*p = new(text())
	case **int32:
		*p = new(int32(r.Uint32()))
	case **bool:
		*p = new(r.IntN(2) == 0)
	case *[]byte:
		*p = []byte(text())
	case *[]string:
		*p = []string{text(), ""}
	case *map[string]string:
		*p = map[string]string{text(): text(), "": ""}
	case **time.Time:
		*p = new(time.Unix(r.Int64N(1<<33), r.Int64N(1e9)).UTC())
	case **timestamppb.Timestamp:
		*p = timestamppb.New(time.Unix(r.Int64N(1<<33), r.Int64N(1e9)))
	default:
		switch v.Kind() {
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem(), all)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for i := range 2 {
				e := v.Index(i)
				if e.Kind() == reflect.Pointer {
					e.Set(reflect.New(e.Type().Elem()))
					e = e.Elem()
				}
				fill(r, e, all)
			}
		default:
			panic(fmt.Sprintf("no value for %v", v.Type()))
		}
	}
}

// TestEveryOperationBothWays carries random messages of every operation to the
// other face and back: nothing is lost, nothing appears.
func TestEveryOperationBothWays(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, m := range methods(t) {
		t.Run(m.op.Name, func(t *testing.T) {
			for i := range 200 {
				// A request, over the wire, to the engine and back.
				req := m.request.New().Interface()
				fill(r, reflect.ValueOf(req).Elem(), i == 0)
				wire, err := proto.Marshal(req)
				if err != nil {
					t.Fatal(err)
				}
				got := m.request.New().Interface()
				if err := proto.Unmarshal(wire, got); err != nil {
					t.Fatal(err)
				}
				in, err := m.decode(got)
				if err != nil {
					t.Fatal(err)
				}
				back := roundTrip(t, req, in)
				if d := cmp.Diff(req, back, protocmp.Transform()); d != "" {
					t.Fatalf("request changed (-sent +came back):\n%s", d)
				}
				if i == 0 {
					allSet(t, reflect.ValueOf(in).Elem())
				}

				if !m.op.HasOutput() {
					if out, err := m.encode(m.op.NewOutput()); err != nil || reflect.TypeOf(out).Elem() != m.response {
						t.Fatalf("got %T, %v", out, err)
					}
					continue
				}
				// An answer, from the engine over the wire and back.
				out := m.op.NewOutput()
				fill(r, reflect.ValueOf(out).Elem(), i == 0)
				msg, err := m.encode(out)
				if err != nil {
					t.Fatal(err)
				}
				if wire, err = proto.Marshal(msg.(proto.Message)); err != nil {
					t.Fatal(err)
				}
				arrived := reflect.New(m.response)
				if err := proto.Unmarshal(wire, arrived.Interface().(proto.Message)); err != nil {
					t.Fatal(err)
				}
				again := reflect.New(reflect.TypeOf(out).Elem())
				reverse(t, again.Elem(), arrived.Elem())
				if d := cmp.Diff(out, again.Interface()); d != "" {
					t.Fatalf("answer changed (-sent +came back):\n%s", d)
				}
			}
		})
	}
}

// roundTrip makes a message of req's type of the engine's struct.
func roundTrip(t *testing.T, req proto.Message, in any) proto.Message {
	t.Helper()
	back := req.ProtoReflect().New().Interface()
	reverse(t, reflect.ValueOf(back).Elem(), reflect.ValueOf(in).Elem())
	return back
}

// reverse copies members of the same name without a plan: an independent, slow
// way to compare a plan with.
func reverse(t *testing.T, dst, src reflect.Value) {
	t.Helper()
	for _, s := range members(src.Type()) {
		v := src.FieldByIndex(s.Index)
		if v.IsNil() {
			continue
		}
		var to reflect.Value
		for _, d := range members(dst.Type()) {
			if strings.EqualFold(d.Name, s.Name) {
				to = dst.FieldByIndex(d.Index)
			}
		}
		switch x := v.Interface().(type) {
		case *time.Time:
			to.Set(reflect.ValueOf(timestamppb.New(*x)))
			continue
		case *timestamppb.Timestamp:
			to.Set(reflect.ValueOf(new(x.AsTime())))
			continue
		}
		switch {
		case v.Type() == to.Type():
			to.Set(v)
		case v.Kind() == reflect.Pointer:
			to.Set(reflect.New(to.Type().Elem()))
			reverse(t, to.Elem(), v.Elem())
		default:
			list := reflect.MakeSlice(to.Type(), v.Len(), v.Len())
			for i := range v.Len() {
				e, d := v.Index(i), list.Index(i)
				if e.Kind() == reflect.Pointer {
					e = e.Elem()
				}
				if d.Kind() == reflect.Pointer {
					d.Set(reflect.New(d.Type().Elem()))
					d = d.Elem()
				}
				reverse(t, d, e)
			}
			to.Set(list)
		}
	}
}

func allSet(t *testing.T, v reflect.Value) {
	t.Helper()
	for _, f := range members(v.Type()) {
		if v.FieldByIndex(f.Index).IsNil() {
			t.Errorf("%v.%s is absent although it was sent", v.Type(), f.Name)
		}
	}
}

func methodOf(t testing.TB, name string) *method {
	for _, m := range methods(t) {
		if m.op.Name == name {
			return m
		}
	}
	t.Fatalf("no %s", name)
	return nil
}

func TestPresence(t *testing.T) {
	m := methodOf(t, "Encrypt")
	for name, c := range map[string]struct {
		req  *kmspb.EncryptRequest
		want *keyengine.EncryptInput
	}{
		"nothing": {&kmspb.EncryptRequest{}, &keyengine.EncryptInput{}},
		"zeros": {
			&kmspb.EncryptRequest{KeyId: new(""), Plaintext: []byte{}, DryRun: new(false)},
			&keyengine.EncryptInput{KeyId: new(""), Plaintext: []byte{}, DryRun: new(false)},
		},
	} {
		wire, err := proto.Marshal(c.req)
		if err != nil {
			t.Fatal(err)
		}
		msg := new(kmspb.EncryptRequest)
		if err := proto.Unmarshal(wire, msg); err != nil {
			t.Fatal(err)
		}
		in, err := m.decode(msg)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, in); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestUnknownMembersAreRefused: a request of a later version must not be carried
// out without what it asks for beyond this one.
func TestUnknownMembersAreRefused(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	for _, m := range methods(t) {
		msg := m.request.New().Interface()
		if err := proto.Unmarshal(later, msg); err != nil {
			t.Fatal(err)
		}
		if _, err := m.decode(msg); err == nil {
			t.Errorf("%s takes members that it does not know", m.op.Name)
		}
	}
	for name, msg := range map[string]proto.Message{
		"Decrypt":     &kmspb.DecryptRequest{Recipient: &kmspb.RecipientInfo{}},
		"TagResource": &kmspb.TagResourceRequest{Tags: []*kmspb.Tag{{}, {}}},
	} {
		switch m := msg.(type) {
		case *kmspb.DecryptRequest:
			m.Recipient.ProtoReflect().SetUnknown(later)
		case *kmspb.TagResourceRequest:
			m.Tags[1].ProtoReflect().SetUnknown(later)
		}
		if _, err := methodOf(t, name).decode(msg); err == nil {
			t.Errorf("%s takes nested members that it does not know", name)
		}
	}
}

func TestPlansFailToCompile(t *testing.T) {
	type twin struct{ KeyId, Key_Id *string }
	for name, c := range map[string]struct{ dst, src any }{
		"member only in the source":      {&struct{ A *string }{}, &struct{ A, B *string }{}},
		"member only in the destination": {&struct{ A, B *string }{}, &struct{ A *string }{}},
		"another type":                   {&struct{ A *string }{}, &struct{ A *bool }{}},
		"cannot be absent":               {&struct{ A string }{}, &struct{ A string }{}},
		"unsigned":                       {&struct{ A *uint32 }{}, &struct{ A *uint32 }{}},
		"list of numbers":                {&struct{ A []int32 }{}, &struct{ A []int32 }{}},
		"nested lacks":                   {&struct{ A *struct{ B *string } }{}, &struct{ A *struct{ C *string } }{}},
		"nested list lacks":              {&struct{ A []struct{ B *string } }{}, &struct{ A []*struct{ C *string } }{}},
		"two members of one name":        {&struct{ KeyId *string }{}, &twin{}},
		"no struct":                      {new(string), new(string)},
		"no pointer":                     {struct{}{}, struct{}{}},
	} {
		if _, err := compilePlan(reflect.TypeOf(c.dst), reflect.TypeOf(c.src)); err == nil {
			t.Errorf("%s: compiled", name)
		}
	}
}

func TestTimes(t *testing.T) {
	type pb struct{ At *timestamppb.Timestamp }
	type native struct{ At *time.Time }
	p, err := compilePlan(reflect.TypeFor[*native](), reflect.TypeFor[*pb]())
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*timestamppb.Timestamp{{Nanos: -1}, {Nanos: 2e9}, {Seconds: 1 << 60}} {
		var got native
		if err := p.run(reflect.ValueOf(&got).Elem(), reflect.ValueOf(&pb{bad}).Elem()); err == nil {
			t.Errorf("%v is taken as %v", bad, got.At)
		}
	}
}

// TestServiceMatchesEngine: an operation on one side only is an error.
func TestServiceMatchesEngine(t *testing.T) {
	ops := keyengine.Operations()
	if _, err := kmsService(&Server{}, ops[1:]); err == nil || !strings.Contains(err.Error(), ops[0].Name) {
		t.Errorf("without %s: %v", ops[0].Name, err)
	}
	extra := *ops[0]
	extra.Name = "Conjure"
	if _, err := kmsService(&Server{}, append([]*keyengine.Operation{&extra}, ops...)); err == nil || !strings.Contains(err.Error(), "Conjure") {
		t.Errorf("with one more: %v", err)
	}
}

func BenchmarkEncryptAdapter(b *testing.B) {
	m := methodOf(b, "Encrypt")
	req := &kmspb.EncryptRequest{
		KeyId: new("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"), Plaintext: make([]byte, 1024),
		EncryptionContext: map[string]string{"a": "b"}, EncryptionAlgorithm: new("SYMMETRIC_DEFAULT"),
	}
	out := &keyengine.EncryptOutput{CiphertextBlob: make([]byte, 1200), KeyId: req.KeyId, EncryptionAlgorithm: req.EncryptionAlgorithm}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.decode(req); err != nil {
			b.Fatal(err)
		}
		if _, err := m.encode(out); err != nil {
			b.Fatal(err)
		}
	}
}
