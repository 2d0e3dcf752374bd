package auditfield

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// A field has the encoding of the same message put together in the plain way.
func TestFields(t *testing.T) {
	pair := func(k, v string) *auditpb.TextPair { return &auditpb.TextPair{Key: k, Value: v} }
	plain := func(f *auditpb.Field) *auditpb.Field {
		f.Name = "name"
		return f
	}
	for name, c := range map[string]struct{ got, want *auditpb.Field }{
		"text":   {Text("name", "value"), plain(&auditpb.Field{Value: &auditpb.Field_Text{Text: "value"}})},
		"empty":  {Text("name", ""), plain(&auditpb.Field{Value: &auditpb.Field_Text{}})},
		"number": {Number("name", -7), plain(&auditpb.Field{Value: &auditpb.Field_Number{Number: -7}})},
		"flag":   {Flag("name", false), plain(&auditpb.Field{Value: &auditpb.Field_Flag{}})},
		"list": {TextList("name", []string{"b", "a"}), plain(&auditpb.Field{Value: &auditpb.Field_List{
			List: &auditpb.TextList{Items: []string{"b", "a"}}}})},
		"no list": {TextList("name", nil), plain(&auditpb.Field{Value: &auditpb.Field_List{List: &auditpb.TextList{}}})},
		"map": {TextMap("name", map[string]string{"b": "2", "a": "1", "c": "3"}), plain(&auditpb.Field{Value: &auditpb.Field_Map{
			Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{pair("a", "1"), pair("b", "2"), pair("c", "3")}}}})},
		"pair": {TextMap("name", map[string]string{"a": "1"}), plain(&auditpb.Field{Value: &auditpb.Field_Map{
			Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{pair("a", "1")}}}})},
		"no map": {TextMap("name", nil), plain(&auditpb.Field{Value: &auditpb.Field_Map{Map: &auditpb.TextMap{}}})},
	} {
		got, err1 := proto.Marshal(c.got)
		want, err2 := proto.Marshal(c.want)
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x (%v, %v)", name, got, want, err1, err2)
		}
	}
}
