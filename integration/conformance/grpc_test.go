package conformance

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/integration/awsmodel"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// dynamic makes calls of the gRPC face from the bodies of the AWS one.
type dynamic struct {
	client  reflect.Value
	service protoreflect.ServiceDescriptor
}

func newDynamic(n *harness.Node) *dynamic {
	return &dynamic{reflect.ValueOf(n.KMS()), kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS")}
}

// longestStatus is what a status of gRPC has of a long message.
const longestStatus = 1536

// judged sends a request on the gRPC face, which has to be answered with the same
// message. Requests that gRPC cannot put into words are left out.
func (d *dynamic) judged(t *testing.T, op string, tc awsmodel.Case, message string) {
	t.Helper()
	call := d.client.MethodByName(op)
	if !call.IsValid() {
		t.Fatalf("the gRPC face has no %s", op)
	}
	req := reflect.New(call.Type().In(1).Elem()).Interface().(proto.Message)
	if !fillMessage(req.ProtoReflect(), tc.Body) {
		return
	}
	err, _ := call.Call([]reflect.Value{reflect.ValueOf(t.Context()), reflect.ValueOf(req)})[1].Interface().(error)
	var code, got string
	if err != nil {
		code, got = harness.Told(err)
	}
	got, cut := strings.CutSuffix(got, " …")
	switch {
	case message == "":
		if violated(got) || code == "SerializationException" {
			t.Errorf("%s, gRPC: got %v, but nothing is wrong with the members", tc.What, err)
		}
	case code != "ValidationException":
		t.Errorf("%s, gRPC: got %v, want %.300q", tc.What, err, message)
	case got != message && !(cut && len(message) > longestStatus && strings.HasPrefix(message, got)):
		t.Errorf("%s, gRPC: got the message\n%.600q, want\n%.600q", tc.What, got, message)
	}
}

// fillMessage fills a message with the members of a body. It reports whether the message
// says the same: there are no empty lists and maps that are not absent too.
func fillMessage(m protoreflect.Message, body map[string]any) bool {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		for name, v := range body {
			if v != nil && strings.EqualFold(name, strings.ReplaceAll(string(f.Name()), "_", "")) && !setMember(m, f, v) {
				return false
			}
		}
	}
	return true
}

func setMember(m protoreflect.Message, f protoreflect.FieldDescriptor, v any) bool {
	switch v := v.(type) {
	case string, bool, []byte:
		m.Set(f, protoreflect.ValueOf(v))
	case int:
		m.Set(f, protoreflect.ValueOfInt32(int32(v)))
	case float64:
		m.Set(f, protoreflect.ValueOfMessage(timestamppb.New(time.UnixMilli(int64(v*1000))).ProtoReflect()))
	case []any:
		list := m.Mutable(f).List()
		for _, item := range v {
			if members, ok := item.(map[string]any); !ok {
				list.Append(protoreflect.ValueOf(item))
			} else if !fillMessage(list.AppendMutable().Message(), members) {
				return false
			}
		}
		return len(v) > 0
	case map[string]any:
		if !f.IsMap() {
			return fillMessage(m.Mutable(f).Message(), v)
		}
		pairs := m.Mutable(f).Map()
		for k, text := range v {
			pairs.Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOf(text))
		}
		return len(v) > 0
	}
	return true
}
