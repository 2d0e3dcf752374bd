package harness

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/issuertest"
)

// Audience is that of web identity tokens, as Kubernetes has it for AWS.
const Audience = "sts.amazonaws.com"

// TrustIssuer has nodes accept the certificate and the address of an issuer of web
// identities.
func TrustIssuer(t *testing.T, i *issuertest.Issuer) func(*Node, *node.Config) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(_ *Node, cfg *node.Config) {
		cfg.WebIdentityCA, cfg.WebIdentityAllowPrivate = ca, true
	}
}

// Token returns a token of an issuer for a subject. It is valid for an hour.
func Token(i *issuertest.Issuer, subject string) string {
	return i.Sign(i.Claims(time.Now(), subject, Audience))
}
