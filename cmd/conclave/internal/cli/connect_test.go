package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func TestExplain(t *testing.T) {
	detailed := func(typ, msg string) error {
		st, err := status.New(codes.Unavailable, msg).WithDetails(&kmspb.ErrorDetail{Type: typ, Message: msg, RequestId: "id-1"})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	for _, c := range []struct {
		err  error
		code int
		want []string
	}{
		{detailed("ServiceUnavailable", "This node is sealed. Send"), ExitSealed, []string{"doing: ServiceUnavailable: This node is sealed", "(request id-1)", "`conclave operator unseal`"}},
		{detailed("ServiceUnavailable", "no leader"), ExitError, []string{"no leader"}},
		{detailed("UnrecognizedClientException", "x"), ExitError, []string{"AWS_ACCESS_KEY_ID"}},
		{detailed("InvalidCiphertextException", ""), ExitError, []string{"doing: InvalidCiphertextException (request id-1)"}},
		{status.Error(codes.Unavailable, "connection refused"), ExitError, []string{"is a server running at addr?"}},
		{status.Error(codes.Unavailable, "tls: unknown certificate authority"), ExitError, []string{"--ca"}},
		{status.Error(codes.DeadlineExceeded, "late"), ExitError, []string{"--timeout"}},
		{Usagef("wrong"), ExitUsage, []string{"wrong"}},
		{errors.New("disk full"), ExitError, []string{"doing: disk full"}},
	} {
		var out bytes.Buffer
		a := &App{Stderr: &out}
		if got := a.Report(Explain("doing", "addr", c.err)); got != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %q does not say %q", c.err, &out, want)
			}
		}
	}
	if Explain("doing", "addr", nil) != nil {
		t.Error("no error became one")
	}
}

// A denial says how it can be explained: to people by the id of the request, and to programs by
// the encoded message too.
func TestExplainDenial(t *testing.T) {
	st, err := status.New(codes.PermissionDenied, "no").WithDetails(&kmspb.ErrorDetail{Type: "AccessDeniedException", Message: "no", RequestId: "id-1", EncodedMessage: "SECRET\x1b"})
	if err != nil {
		t.Fatal(err)
	}
	denied := Explain("doing", "addr", st.Err())
	for format, encoded := range map[string]bool{"": false, "table": false, "json": true, "yaml": true} {
		var out bytes.Buffer
		a := &App{Stderr: &out, Output: format}
		if got := a.Report(a.withEncoded(st.Err(), denied)); got != ExitError {
			t.Errorf("-o %q: exit code %d, want %d", format, got, ExitError)
		}
		if !strings.Contains(out.String(), "`conclave policy why id-1`") || strings.Contains(out.String(), EncodedMessage+"SECRET") != encoded || strings.Contains(out.String(), "\x1b") {
			t.Errorf("-o %q: %q; is the encoded message wanted: %v", format, &out, encoded)
		}
		other := Usagef("wrong")
		if got := a.withEncoded(nil, other); got != other {
			t.Errorf("-o %q: %v became %v", format, other, got)
		}
	}
}

func TestNodeAddresses(t *testing.T) {
	for _, c := range []struct {
		given, want string
		plaintext   bool
		err         string
	}{
		{"", "127.0.0.1:7601", false, ""},
		{"https://a:1, b:2", "a:1,b:2", false, ""},
		{"http://127.0.0.1:1,http://[::1]:2", "127.0.0.1:1,[::1]:2", true, ""},
		{"http://127.0.0.1:1,127.0.0.1:2", "", false, "either all addresses or none must be without TLS"},
		{"a:1,http://127.0.0.1:2", "", false, "either all"},
		{"http://192.0.2.1:1", "", false, "only loopback"},
		{"a:1,,b:1", "", false, "an address is empty"},
	} {
		cfg, err := (&RemoteFlags{address: c.given}).Config()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: got %v, want %q", c.given, err, c.err)
			}
			continue
		}
		if err != nil || cfg.Address != c.want || cfg.Plaintext != c.plaintext {
			t.Errorf("%q: got %q, %v, %v", c.given, cfg.Address, cfg.Plaintext, err)
		}
	}
}
