package keyengine

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// What an absent member means is one field for all records. Encoding one that has
// to be cut short does not change it for those after.
func TestFallbackFieldIsNotWrittenTo(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	for _, value := range []string{"short", strings.Repeat("x", 5000), "short"} {
		must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": value}})
		want := auditfield.Text("encryptionAlgorithm", kmsapi.AlgorithmSymmetric)
		if got := r.lastRecord().RequestParameters; !slices.ContainsFunc(got, func(f *auditpb.Field) bool { return proto.Equal(f, want) }) {
			t.Errorf("with a context of %d bytes the record has %v", len(value), got)
		}
	}
}
