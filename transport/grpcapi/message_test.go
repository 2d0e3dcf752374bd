package grpcapi

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
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
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func methods(t testing.TB) []*method {
	t.Helper()
	var all []*method
	for _, op := range keyengine.Operations() {
		m, err := newMethod(op, serviceOf(op).proto.Methods().ByName(protoreflect.Name(op.Name)))
		if err != nil {
			t.Fatalf("%s: %v", op.Name, err)
		}
		all = append(all, m)
	}
	return all
}

func serviceOf(op *keyengine.Operation) awsService {
	return awsServices[slices.IndexFunc(awsServices, func(s awsService) bool { return s.name == string(op.Service) })]
}

// path returns the path of an operation's calls.
func (m *method) path() string { return "/" + serviceOf(m.op).desc.ServiceName + "/" + m.op.Name }

// fill sets a struct's exported members to random values. One in three stays
// absent, unless all is set.
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
	case *map[string]int32:
		*p = map[string]int32{text(): int32(r.Uint32()), "": 0}
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

// TestEveryOperationBothWays converts random messages of every operation to
// structures and back: nothing is lost or added. With -short there are fewer messages: the
// race detector has no use for one goroutine.
func TestEveryOperationBothWays(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	each := 200
	if testing.Short() {
		each = 20
	}
	for _, m := range methods(t) {
		t.Run(m.op.Name, func(t *testing.T) {
			for i := range each {
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

// roundTrip converts the engine's struct to a message of req's type.
func roundTrip(t *testing.T, req proto.Message, in any) proto.Message {
	t.Helper()
	back := req.ProtoReflect().New().Interface()
	reverse(t, reflect.ValueOf(back).Elem(), reflect.ValueOf(in).Elem())
	return back
}

// reverse copies members of the same name without a binding: a slow, independent
// implementation to compare with.
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
		want *kmsapi.EncryptInput
	}{
		"nothing": {&kmspb.EncryptRequest{}, &kmsapi.EncryptInput{}},
		"zeros": {
			&kmspb.EncryptRequest{KeyId: new(""), Plaintext: []byte{}, DryRun: new(false)},
			&kmsapi.EncryptInput{KeyId: new(""), Plaintext: []byte{}, DryRun: new(false)},
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
// out without the members that this version does not know.
func TestUnknownMembersAreRefused(t *testing.T) {
	for _, m := range methods(t) {
		msg := m.request.New().Interface()
		if err := proto.Unmarshal(later, msg); err != nil {
			t.Fatal(err)
		}
		if _, err := m.decode(msg); err == nil {
			t.Errorf("%s takes members that it does not know", m.op.Name)
		}
	}
}

// TestNestedUnknownMembersAreRefused: the same holds at any depth, for every message
// in a request.
func TestNestedUnknownMembersAreRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tried := map[protoreflect.FullName]bool{}
	for _, m := range methods(t) {
		for n := 0; ; n++ {
			msg := m.request.New().Interface()
			fill(r, reflect.ValueOf(msg).Elem(), true)
			all := nested(msg.ProtoReflect())
			if n == len(all) {
				break
			}
			all[n].SetUnknown(later)
			tried[all[n].Descriptor().FullName()] = true
			if _, err := m.decode(msg); !errors.Is(err, kmsapi.ErrValidation) {
				t.Errorf("%s with an unknown member in %s: %v", m.op.Name, all[n].Descriptor().Name(), err)
			}
		}
	}
	for _, m := range []proto.Message{&kmspb.Tag{}, &kmspb.RecipientInfo{}, &kmspb.GrantConstraints{}, &timestamppb.Timestamp{}} {
		if name := m.ProtoReflect().Descriptor().FullName(); !tried[name] {
			t.Errorf("no request has a %s", name)
		}
	}
}

// later is a member of a later version.
var later = protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)

// nested returns a message and all messages in it, in a fixed order.
func nested(m protoreflect.Message) []protoreflect.Message {
	all := []protoreflect.Message{m}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.Message() == nil || f.IsMap() || !m.Has(f):
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				all = append(all, nested(m.Get(f).List().Get(j).Message())...)
			}
		default:
			all = append(all, nested(m.Get(f).Message())...)
		}
	}
	return all
}

// FuzzUnknownFields: a request with an unknown field at any depth is refused.
func FuzzUnknownFields(f *testing.F) {
	all := methods(f)
	f.Add(uint8(0), uint16(0), int32(999), uint8(0), []byte("x"))
	f.Add(uint8(9), uint16(1), int32(19), uint8(2), []byte{})
	f.Add(uint8(20), uint16(3), int32(1<<29-1), uint8(5), []byte("12345678"))
	f.Fuzz(func(t *testing.T, which uint8, depth uint16, number int32, wire uint8, value []byte) {
		m := all[int(which)%len(all)]
		msg := m.request.New().Interface()
		fill(rand.New(rand.NewPCG(uint64(depth), 0)), reflect.ValueOf(msg).Elem(), true)
		messages := nested(msg.ProtoReflect())
		at := messages[int(depth)%len(messages)]
		if !protowire.Number(number).IsValid() || at.Descriptor().Fields().ByNumber(protowire.Number(number)) != nil {
			return
		}
		field := protowire.AppendTag(nil, protowire.Number(number), protowire.Type(wire%3))
		switch protowire.Type(wire % 3) {
		case protowire.VarintType:
			field = protowire.AppendVarint(field, uint64(len(value)))
		case protowire.Fixed64Type:
			field = protowire.AppendFixed64(field, uint64(len(value)))
		case protowire.BytesType:
			field = protowire.AppendBytes(field, value)
		}
		at.SetUnknown(field)
		sent, err := proto.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		got := m.request.New().Interface()
		if err := proto.Unmarshal(sent, got); err != nil {
			t.Fatal(err)
		}
		if _, err := m.decode(got); !errors.Is(err, kmsapi.ErrValidation) {
			t.Fatalf("%s with field %d in %s: %v", m.op.Name, number, at.Descriptor().Name(), err)
		}
	})
}

// TestBindingFails: binding fails for messages that do not have the same members. Package
// kmsapi refuses structures that have no schema.
func TestBindingFails(t *testing.T) {
	type twin struct{ KeyId, Key_Id *string }
	text := kmsapi.OutputSchema[struct{ A *string }]()
	nested := kmsapi.OutputSchema[struct{ A *struct{ B *string } }]()
	list := kmsapi.OutputSchema[struct{ A []struct{ B *string } }]()
	for name, c := range map[string]struct {
		schema *kmsapi.Schema
		pb     any
	}{
		"member only in the message":   {text, struct{ A, B *string }{}},
		"member only in the structure": {kmsapi.OutputSchema[struct{ A, B *string }](), struct{ A *string }{}},
		"another type":                 {text, struct{ A *bool }{}},
		"cannot be absent":             {text, struct{ A string }{}},
		"unsigned":                     {kmsapi.OutputSchema[struct{ A *int32 }](), struct{ A *uint32 }{}},
		"list of numbers":              {kmsapi.OutputSchema[struct{ A []string }](), struct{ A []int32 }{}},
		"no timestamp":                 {kmsapi.OutputSchema[struct{ A *time.Time }](), struct{ A *time.Time }{}},
		"nested lacks":                 {nested, struct{ A *struct{ C *string } }{}},
		"nested by value":              {nested, struct{ A struct{ B *string } }{}},
		"nested list lacks":            {list, struct{ A []*struct{ C *string } }{}},
		"nested list by value":         {list, struct{ A []struct{ B *string } }{}},
		"one for a list":               {list, struct{ A *struct{ B *string } }{}},
		"two members of one name":      {kmsapi.OutputSchema[struct{ KeyId *string }](), twin{}},
		"no struct":                    {text, ""},
	} {
		if _, err := bind(c.schema, reflect.TypeOf(c.pb)); err == nil {
			t.Errorf("%s: bound", name)
		}
	}
}

// TestWipe: all blobs of a request are overwritten, and the secrets of an
// answer.
func TestWipe(t *testing.T) {
	blobs := func() *kmspb.GenerateDataKeyResponse {
		return &kmspb.GenerateDataKeyResponse{Plaintext: []byte("secret"), CiphertextBlob: []byte("public")}
	}
	m := methodOf(t, "GenerateDataKey")
	for _, all := range []bool{false, true} {
		got := blobs()
		m.out.wipe(reflect.ValueOf(got).Elem(), all)
		if got.Plaintext[0] != 0 || (got.CiphertextBlob[0] == 0) != all {
			t.Errorf("all %v: left %q and %q", all, got.Plaintext, got.CiphertextBlob)
		}
	}
	request := &kmspb.GenerateDataKeyRequest{Recipient: &kmspb.RecipientInfo{AttestationDocument: []byte("document")}}
	m.wipeRequest(request)
	if request.Recipient.AttestationDocument[0] != 0 {
		t.Error("a blob deep in a request was left")
	}
	m.wipeRequest(&kmspb.GenerateDataKeyRequest{})
}

func TestTimes(t *testing.T) {
	type pb struct{ At *timestamppb.Timestamp }
	type native struct{ At *time.Time }
	m, err := bind(kmsapi.OutputSchema[native](), reflect.TypeFor[pb]())
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*timestamppb.Timestamp{{Nanos: -1}, {Nanos: 2e9}, {Seconds: 1 << 60}} {
		var got native
		if err := m.decode(reflect.ValueOf(&got).Elem(), reflect.ValueOf(&pb{bad}).Elem()); err == nil {
			t.Errorf("%v is taken as %v", bad, got.At)
		}
	}
}

// TestServicesMatchEngine: what is on one side only is found. An operation that the API lacks
// keeps the server from starting.
func TestServicesMatchEngine(t *testing.T) {
	for _, of := range awsServices {
		known := make(map[string]bool)
		for _, op := range keyengine.Operations() {
			if string(op.Service) == of.name {
				known[op.Name] = true
			}
		}
		for i := range of.proto.Methods().Len() {
			if name := string(of.proto.Methods().Get(i).Name()); !known[name] {
				t.Errorf("%s: the engine has no %s", of.name, name)
			}
		}
		if len(known) == 0 {
			t.Errorf("%s has no operations", of.name)
		}
	}
	extra := *keyengine.Operations()[0]
	extra.Name = "Conjure"
	cfg := Config{
		Engine: &fakeEngine{}, Operations: append(keyengine.Operations(), &extra), Ceremony: &fakeCeremony{}, Clock: &clock{}, Plaintext: true,
		Serving: func() bool { return true },
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "Conjure") {
		t.Errorf("with one more: %v", err)
	}
}

func BenchmarkEncryptAdapter(b *testing.B) {
	m := methodOf(b, "Encrypt")
	req := &kmspb.EncryptRequest{
		KeyId: new("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"), Plaintext: make([]byte, 1024),
		EncryptionContext: map[string]string{"a": "b"}, EncryptionAlgorithm: new("SYMMETRIC_DEFAULT"),
	}
	out := &kmsapi.EncryptOutput{CiphertextBlob: make([]byte, 1200), KeyId: req.KeyId, EncryptionAlgorithm: req.EncryptionAlgorithm}
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
