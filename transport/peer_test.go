package transport

import (
	"crypto/tls"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/conclavekms/conclave/keyengine/iam"
)

func TestTLSInfo(t *testing.T) {
	if got := TLSInfo(nil, "kms.example"); got != (iam.TLS{}) {
		t.Errorf("without TLS: got %+v", got)
	}
	got := TLSInfo(&tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, CurveID: tls.X25519MLKEM768}, "kms.example:8443")
	if want := (iam.TLS{Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Host: "kms.example:8443", KeyExchange: "X25519MLKEM768"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got = TLSInfo(&tls.ConnectionState{Version: tls.VersionTLS12}, strings.Repeat("x", 5000)+"\xff")
	if len(got.Host) != maxHost || got.KeyExchange != "" {
		t.Errorf("a long host, without a key exchange: got %d bytes and %q", len(got.Host), got.KeyExchange)
	}
}

func TestUserAgent(t *testing.T) {
	for _, in := range []string{"aws-cli/2", "\xff\xfe", strings.Repeat("é", 5000), "x" + strings.Repeat("é", 5000)} {
		got := UserAgent(in)
		if !utf8.ValidString(got) || len(got) > maxUserAgent+2 {
			t.Errorf("UserAgent(%.20q…): %d bytes, valid %v", in, len(got), utf8.ValidString(got))
		}
	}
	if got := UserAgent("aws-cli/2"); got != "aws-cli/2" {
		t.Errorf("got %q", got)
	}
}
