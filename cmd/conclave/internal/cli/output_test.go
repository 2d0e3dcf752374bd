package cli

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestQuote has a real shell read what Quote wrote.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "plain", "/jBEM+SQ/gJ=", "a b", "$(touch x)", "`x`", `"`, "'", "a'b''c", "\n", "a\\", "~", "*", "é", ";", "#x"} {
		out, err := exec.Command("sh", "-c", "x="+Quote(s)+`; printf %s "$x"`).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q is quoted %s, which a shell reads as %q, %v", s, Quote(s), out, err)
		}
	}
}

func TestPrint(t *testing.T) {
	msg := &kmspb.StatusResponse{
		Seal: &kmspb.SealState{Initialised: true, Sealed: true, Threshold: 3, Account: "000000000000"}, NodeId: "true",
		ClusterTime: timestamppb.New(time.Unix(0, 5e8)), Raft: &kmspb.RaftStatus{LastIndex: 1 << 63},
	}
	for _, c := range []struct {
		format string
		v      any
		want   []string
		not    []string
	}{
		{"json", msg, []string{`"sealed": true`, `"account": "000000000000"`, `"last_index": 9223372036854775808`, `"cluster_time": "1970-01-01T00:00:00.5Z"`, `"faults": []`}, []string{`"audit"`}},
		{"yaml", msg, []string{"    sealed: true\n", "    account: \"000000000000\"\n", "last_index: 9223372036854775808\n", "node_id: \"true\"\n", "faults: []\n"}, []string{"{", "audit"}},
		{"table", msg, []string{"state  sealed, 0 of 3\n"}, nil},
		{"json", &kmspb.EncryptResponse{CiphertextBlob: []byte{0xfb, 0xff}, KeyId: proto.String("<&\x1b")}, []string{`"ciphertext_blob": "+/8="`, `"key_id": "<&\u001b"`}, []string{"encryption_algorithm"}},
		{"json", &kmspb.EncryptRequest{EncryptionContext: map[string]string{"b": "2", "a": "1"}}, []string{"\"a\": \"1\",\n"}, nil},
	} {
		var out bytes.Buffer
		a := &App{Stdout: &out, Output: c.format}
		if err := a.Print(c.v, func(w io.Writer) { Line(w, "state", "sealed, 0 of 3") }); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s has no %q:\n%s", c.format, want, &out)
			}
		}
		for _, not := range c.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s has %q:\n%s", c.format, not, &out)
			}
		}
	}
}

// TestTablesAreSafe: descriptions that users wrote must not control the
// terminals of others.
func TestTablesAreSafe(t *testing.T) {
	var out bytes.Buffer
	Line(&out, "a\x1b[31m", "b\nc", "d\u202ee", "é", 7)
	if got, want := out.String(), "a\\u001b[31m\tb\\u000ac\td\\u202ee\té\t7\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
