package docs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestCertificatesPage carries out what docs/access.md shows of certificates, with a server that
// serves with TLS. When the mapping is deleted, the certificate is nobody's.
func TestCertificatesPage(t *testing.T) {
	t.Parallel()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	s := newDevShell(t, binary, "--account", "111122223333", "--tls", "--data", data)
	text := section(page(t, "docs/access.md"), "## Certificates and SPIFFE")
	for _, b := range fileBlock.FindAllStringSubmatch(text, -1) {
		s.write(t, b[1], b[2], 0o600)
	}
	s.run(t, `eval "$(conclave env --wait 60s)"; conclave key create --alias payments`)

	// The directory tls of the page is that of the cluster's CA.
	raw, err := os.ReadFile(filepath.Join(data, "dev-secrets.json"))
	if err != nil {
		t.Fatal(err)
	}
	var ca struct {
		Cert string `json:"ca_cert"`
		Key  string `json:"ca_key"`
	}
	if err := json.Unmarshal(raw, &ca); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write(t, "tls/ca.pem", ca.Cert, 0o600)
	s.write(t, "tls/ca-key.pem", ca.Key, 0o600)

	as := "(unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; export CONCLAVE_CERT=tls/web.pem CONCLAVE_KEY=tls/web-key.pem; conclave sts whoami 2>&1 || true)"
	out := s.run(t, "eval \"$(conclave env)\"\n"+strings.Join(shellCommands(text), "\n")+"\necho after; "+as)
	for _, want := range []string{
		"arn:aws:iam::111122223333:certificate-mapping/spiffe://example.org/ns/shop/sa/web",
		"arn:aws:sts::111122223333:assumed-role/web/web",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
	if _, after, _ := strings.Cut(out, "\nafter"); !strings.Contains(after, "UnrecognizedClientException") {
		t.Errorf("the mapping is deleted, and the certificate answered:\n%s", out)
	}
}
