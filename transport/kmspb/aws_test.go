package kmspb_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// newer are members of AWS that this API leaves out on purpose, as they were
// added after the model that it follows.
var newer = []string{
	"grantconstraints.sourcearn", "grantlistentry.granteeserviceprincipal", "grantlistentry.retiringserviceprincipal",
	"creategrantrequest.granteeserviceprincipal", "creategrantrequest.retiringserviceprincipal",
	"listgrantsrequest.granteeserviceprincipal", "listretirablegrantsrequest.retiringserviceprincipal",
}

// TestMembersAreAWS compares every message with the AWS SDK's struct of the same
// operation: the same members under the same names, down to nested ones.
func TestMembersAreAWS(t *testing.T) {
	methods := kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS").Methods()
	client := reflect.TypeFor[*kms.Client]()
	for i := range methods.Len() {
		md := methods.Get(i)
		call, ok := client.MethodByName(string(md.Name()))
		if !ok {
			t.Errorf("AWS has no %s", md.Name())
			continue
		}
		compare(t, call.Type.In(2), md.Input())
		compare(t, call.Type.Out(0), md.Output())
	}
}

func compare(t *testing.T, aws reflect.Type, msg protoreflect.MessageDescriptor) {
	t.Helper()
	for aws.Kind() == reflect.Pointer || aws.Kind() == reflect.Slice {
		aws = aws.Elem()
	}
	have := make(map[string]protoreflect.FieldDescriptor)
	for i := range msg.Fields().Len() {
		f := msg.Fields().Get(i)
		have[strings.ReplaceAll(string(f.Name()), "_", "")] = f
		if !f.IsList() && !f.IsMap() && !f.HasPresence() {
			t.Errorf("%s cannot be absent", f.FullName())
		}
	}
	for a := range aws.Fields() {
		if !a.IsExported() || a.Name == "ResultMetadata" {
			continue
		}
		name := strings.ToLower(a.Name)
		f, ok := have[name]
		if !ok {
			if !slices.Contains(newer, strings.ToLower(string(msg.Name()))+"."+name) {
				t.Errorf("%s lacks %s", msg.FullName(), a.Name)
			}
			continue
		}
		delete(have, name)
		if f.Message() != nil && !f.IsMap() && f.Message().FullName() != "google.protobuf.Timestamp" {
			compare(t, a.Type, f.Message())
		}
	}
	for _, f := range have {
		t.Errorf("AWS's %v has no %s", aws, f.Name())
	}
}
