package audit

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestExportTellsOfUnopenableRecords: the error that ends export counts the
// records that cannot be decrypted, and names the first.
func TestExportTellsOfUnopenableRecords(t *testing.T) {
	var u unopenable
	for i := range uint64(5) {
		u.note(&kmspb.ReadAuditResponse{Index: i, Unopenable: i == 2 || i == 4})
	}
	if err := u.err(); err == nil || !strings.Contains(err.Error(), "2 records cannot be decrypted, the first of which is record 2") {
		t.Errorf("got %v", err)
	}
	u = unopenable{}
	u.note(&kmspb.ReadAuditResponse{Index: 0})
	if err := u.err(); err != nil {
		t.Errorf("got %v", err)
	}
}
