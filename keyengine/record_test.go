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

// The fallback for an absent member is one field that all records share. A record that is too
// long and is therefore cut must not change it.
func TestFallbackFieldIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	for _, value := range []string{"short", strings.Repeat("x", 5000), "short"} {
		must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": value}})
		want := auditfield.Text("encryptionAlgorithm", kmsapi.AlgorithmSymmetric)
		if got := c.lastRecord().RequestParameters; !slices.ContainsFunc(got, func(f *auditpb.Field) bool { return proto.Equal(f, want) }) {
			t.Errorf("with a context value of %d bytes the record has parameters %v, want %v in them", len(value), got, want)
		}
	}
}
