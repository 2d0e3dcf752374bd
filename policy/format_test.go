package policy

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFormat(t *testing.T) {
	const want = `{
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "\u0041",
            "Effect": "Allow",
            "Principal": {
                "AWS": "111122223333"
            },
            "Action": [
                "kms:Encrypt",
                "kms:Decrypt"
            ],
            "Resource": "*",
            "Condition": {
                "NumericLessThan": {
                    "test:N": 1.50
                },
                "Bool": {}
            }
        }
    ]
}
`
	for name, doc := range map[string]string{
		"formatted": want,
		"one line":  `{"Version":"2012-10-17","Statement":[{"Sid":"\u0041","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":["kms:Encrypt","kms:Decrypt"],"Resource":"*","Condition":{"NumericLessThan":{"test:N":1.50},"Bool":{}}}]}`,
		"spread":    strings.ReplaceAll(strings.ReplaceAll(want, " ", "\t"), "\n", "\r\n\n"),
	} {
		got, err := Format([]byte(doc))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, doc := range map[string]string{
		"not JSON": `{"a":}`, "duplicate": `{"a":1,"a":2}`, "two values": `{}{}`, "characters": `{"a":"日"}`, "deep": strings.Repeat("[", 20) + strings.Repeat("]", 20),
		"too long": `"` + strings.Repeat("a", MaxPolicySize) + `"`,
	} {
		var se *SyntaxError
		if got, err := Format([]byte(doc)); got != nil || !errors.As(err, &se) {
			t.Errorf("%s: got %q and error %v", name, got, err)
		}
	}
}

// TestFormatChangesNothing: what is formatted means the same, and is formatted.
func TestFormatChangesNothing(t *testing.T) {
	for _, doc := range corpusDocuments(t) {
		got, err := Format([]byte(doc.text))
		if err != nil {
			t.Fatal(err)
		}
		var before, after any
		if err := errors.Join(json.Unmarshal([]byte(doc.text), &before), json.Unmarshal(got, &after)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		if again, err := Format(got); err != nil || string(again) != string(got) {
			t.Errorf("formatted again: %s, %v; before %s", again, err, got)
		}
		if Size(got) != Size([]byte(doc.text)) {
			t.Errorf("the size became %d from %d", Size(got), Size([]byte(doc.text)))
		}
	}
}
