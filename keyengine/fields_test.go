package keyengine

import (
	"bytes"
	"slices"
	"strings"
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
		"text":   {text("name", "value"), plain(&auditpb.Field{Value: &auditpb.Field_Text{Text: "value"}})},
		"empty":  {text("name", ""), plain(&auditpb.Field{Value: &auditpb.Field_Text{}})},
		"number": {number("name", -7), plain(&auditpb.Field{Value: &auditpb.Field_Number{Number: -7}})},
		"flag":   {flag("name", false), plain(&auditpb.Field{Value: &auditpb.Field_Flag{}})},
		"list": {textList("name", []string{"b", "a"}), plain(&auditpb.Field{Value: &auditpb.Field_List{
			List: &auditpb.TextList{Items: []string{"b", "a"}}}})},
		"no list": {textList("name", nil), plain(&auditpb.Field{Value: &auditpb.Field_List{List: &auditpb.TextList{}}})},
		"map": {textMap("name", map[string]string{"b": "2", "a": "1", "c": "3"}), plain(&auditpb.Field{Value: &auditpb.Field_Map{
			Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{pair("a", "1"), pair("b", "2"), pair("c", "3")}}}})},
		"pair": {textMap("name", map[string]string{"a": "1"}), plain(&auditpb.Field{Value: &auditpb.Field_Map{
			Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{pair("a", "1")}}}})},
		"no map": {textMap("name", nil), plain(&auditpb.Field{Value: &auditpb.Field_Map{Map: &auditpb.TextMap{}}})},
	} {
		got, err1 := proto.Marshal(c.got)
		want, err2 := proto.Marshal(c.want)
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x (%v, %v)", name, got, want, err1, err2)
		}
	}
}

// What an absent member means is one field for all records. Encoding one that has
// to be cut short does not change it for those after.
func TestFallbackFieldIsNotWrittenTo(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	for _, value := range []string{"short", strings.Repeat("x", 5000), "short"} {
		must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": value}})
		want := text("encryptionAlgorithm", algSymmetric)
		if got := r.lastRecord().RequestParameters; !slices.ContainsFunc(got, func(f *auditpb.Field) bool { return proto.Equal(f, want) }) {
			t.Errorf("with a context of %d bytes the record has %v", len(value), got)
		}
	}
}
