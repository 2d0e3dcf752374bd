package audit

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestOneRecordIsOneLine: whatever is in the fields of a record, or in what a server sends
// instead of one, a record is one line of printable characters, for people, as JSON and as CSV.
func TestOneRecordIsOneLine(t *testing.T) {
	t.Parallel()
	for _, hostile := range []string{
		"", "\n2026-01-01T00:00:00Z 7 DeleteKey ok by root\r\n", "\x1b[2J\x1b]0;title\x07\u009b31m", "\u202eevil\u2066\u200f\ufeff\u2028\u2029", "\x00\x7f\u0085",
		`"}],"x":"`, `",",`, "a\tb", strings.Repeat("0123456789abcdef", 4<<10),
	} {
		fields := map[string]any{
			"eventTime": hostile, "eventName": "Encrypt" + hostile, "awsRegion": hostile, "sourceIPAddress": hostile, "errorCode": hostile, "errorMessage": hostile,
			"requestID": hostile, "resources": []any{map[string]any{"ARN": "arn:aws:kms:r:1:" + hostile}},
			"userIdentity": map[string]any{"type": hostile, "arn": hostile, "principalId": hostile, "accessKeyId": hostile, "invokedBy": hostile},
		}
		good, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		indented, err := json.MarshalIndent(fields, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range []string{string(good), string(indented), hostile, `{"eventName":"` + hostile + `"}`} {
			r := &kmspb.ReadAuditResponse{Index: 5, Json: raw}
			var table bytes.Buffer
			w := csv.NewWriter(&table)
			if err := w.Write(row(r)); err != nil {
				t.Fatal(err)
			}
			w.Flush()
			for form, text := range map[string]string{"table": auditLine(5, raw) + "\n", "JSON": jsonLine(raw) + "\n", "CSV": table.String()} {
				if line, ok := strings.CutSuffix(text, "\n"); !ok || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("as %s, %.40q is %.200q, which is not one printable line", form, hostile, text)
				}
			}
			rows, err := csv.NewReader(&table).ReadAll()
			if err != nil || len(rows) != 1 || len(rows[0]) != 8 {
				t.Errorf("%.40q in CSV: %d rows (%v)", hostile, len(rows), err)
			}
		}
		if got := jsonLine(string(good)); !json.Valid([]byte(got)) {
			t.Errorf("%.40q: %.200q is no JSON", hostile, got)
		}
	}
}
