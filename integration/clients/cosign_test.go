package clients

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCosign signs and verifies with cosign, a process, by what docs/clients.md
// says. There is no network: no transparency log, no timestamps, no roots of trust.
func TestCosign(t *testing.T) {
	needProgram(t, "cosign", "cosign")
	overBoth(t, func(t *testing.T, s *server) {
		s.write(t, "artifact", "released\n")
		s.write(t, "tampered", "released?\n")
		s.walk(t, "## cosign")
		verify := func(key, artifact string) bool {
			t.Helper()
			_, _, ok := s.try(t, "cosign", "verify-blob", "--key", key, "--trusted-root", "no-roots.json", "--insecure-ignore-tlog", "--bundle", "artifact.bundle", artifact)
			return ok
		}
		for _, key := range []string{"cosign.pub", "awskms:///alias/release"} {
			if !verify(key, "artifact") {
				t.Errorf("the signature does not verify with %s", key)
			}
			if verify(key, "tampered") {
				t.Errorf("something else verifies with %s", key)
			}
		}
		if got := s.does(t, "cosign", "public-key", "--key", "awskms:///alias/release"); got != s.read(t, "cosign.pub") {
			t.Errorf("the public key is %q", got)
		}
		s.use(t)
		c := client(t)
		disable(t, c, target(t, c, "alias/release"))
		if out, stderr, ok := s.sign(t, "awskms:///alias/release"); ok || !strings.Contains(stderr, "DisabledException") {
			t.Errorf("with a disabled key: %s%s", out, stderr)
		}
	})
}

// TestCosignHost names the server in the key's URI, which means TLS.
func TestCosignHost(t *testing.T) {
	needProgram(t, "cosign", "cosign")
	s := start(t, "--tls")
	s.write(t, "artifact", "released\n")
	s.walk(t, "## cosign")
	if err := os.Remove(filepath.Join(s.dir, "artifact.bundle")); err != nil {
		t.Fatal(err)
	}
	key := "awskms://" + strings.TrimPrefix(s.settings["AWS_ENDPOINT_URL_KMS"], "https://") + "/alias/release"
	delete(s.settings, "AWS_ENDPOINT_URL_KMS")
	if out, stderr, ok := s.sign(t, key); !ok {
		t.Fatalf("%s%s", out, stderr)
	}
	s.does(t, "cosign", "verify-blob", "--key", "cosign.pub", "--trusted-root", "no-roots.json", "--insecure-ignore-tlog", "--bundle", "artifact.bundle", "artifact")
}

func (s *server) sign(t *testing.T, key string) (stdout, stderr string, ok bool) {
	t.Helper()
	return s.try(t, "cosign", "sign-blob", "--key", key, "--signing-config", "no-services.json", "--trusted-root", "no-roots.json", "--bundle", "artifact.bundle", "--yes", "artifact")
}
