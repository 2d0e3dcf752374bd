package clients

import (
	"strings"
	"testing"
)

// TestSops encrypts a file with sops, a process that has nothing but its
// environment and the key's ARN to go by.
func TestSops(t *testing.T) {
	needProgram(t, "sops", "sops")
	overBoth(t, func(t *testing.T, s *server) {
		const plain = "password: correct horse\n"
		s.write(t, "secrets.yaml", plain)
		if out := s.walk(t, "## sops"); !strings.HasSuffix(out, "\n"+plain) {
			t.Errorf("what the documents say shows %q, want %q at the end", out, plain)
		}
		stored := s.read(t, "secrets.yaml")
		arn := "arn:aws:kms:" + region + ":" + account + ":alias/sops"
		if strings.Contains(stored, "horse") || !strings.Contains(stored, arn) {
			t.Errorf("the file should hide the password and name the key:\n%s", stored)
		}

		decrypts := func(file string) {
			t.Helper()
			if got := s.does(t, "sops", "decrypt", file); got != plain {
				t.Errorf("sops decrypt %s: %q, want %q", file, got, plain)
			}
		}
		// A new data key under the same KMS key.
		s.does(t, "sops", "rotate", "--in-place", "secrets.yaml")
		if again := s.read(t, "secrets.yaml"); again == stored {
			t.Error("rotating changes nothing")
		}
		decrypts("secrets.yaml")

		// Another KMS key, by the configuration file: then the first is not needed.
		s.use(t)
		c := client(t)
		other := key(t, c)
		s.write(t, ".sops.yaml", "creation_rules:\n  - kms: "+other+"\n")
		s.does(t, "sops", "updatekeys", "--yes", "secrets.yaml")
		if now := s.read(t, "secrets.yaml"); strings.Contains(now, arn) || !strings.Contains(now, other) {
			t.Errorf("updatekeys has not changed the key:\n%s", now)
		}
		disable(t, c, target(t, c, "alias/sops"))
		decrypts("secrets.yaml")

		// The context is bound to the data key.
		s.write(t, "context.yaml", plain)
		s.does(t, "sops", "encrypt", "--in-place", "--kms", other, "--encryption-context", "role:web", "context.yaml")
		decrypts("context.yaml")
		forged := strings.Replace(s.read(t, "context.yaml"), "role: web", "role: db", 1)
		if !strings.Contains(forged, "role: db") {
			t.Fatalf("the file does not show its context:\n%s", forged)
		}
		s.write(t, "context.yaml", forged)
		if out, stderr, ok := s.try(t, "sops", "decrypt", "context.yaml"); ok || !strings.Contains(stderr, "InvalidCiphertextException") {
			t.Errorf("with another context: %s%s", out, stderr)
		}

		disable(t, c, other)
		if out, stderr, ok := s.try(t, "sops", "decrypt", "secrets.yaml"); ok || !strings.Contains(stderr, "DisabledException") {
			t.Errorf("with a disabled key: %s%s", out, stderr)
		}
	})
}
