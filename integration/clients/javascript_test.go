package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestJavaScript runs what is in js: AWS's SDK for JavaScript with KMS, IAM and STS, and a
// signer of Ethereum transactions.
func TestJavaScript(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		unavailable(t, "there is no Node.js: %v", err)
	}
	if _, err := os.Stat(filepath.Join("js", "node_modules")); err != nil {
		unavailable(t, "js has no packages, which `make test-clients` installs: %v", err)
	}
	overBoth(t, func(t *testing.T, s *server) {
		// Node.js knows the variable of AWS's other clients not.
		s.settings["NODE_EXTRA_CA_CERTS"] = s.settings["AWS_CA_BUNDLE"]
		for _, name := range []string{"sdk", "identities", "ethereum"} {
			t.Run(name, func(t *testing.T) {
				file, err := filepath.Abs(filepath.Join("js", name+".test.mjs"))
				if err != nil {
					t.Fatal(err)
				}
				s.does(t, node, "--test", file)
			})
		}
	}, "--web-identity-allow-private") // the issuer of web identities is on loopback
}
