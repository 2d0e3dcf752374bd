package keywrap

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/optional"
)

func openssl(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// What AWS's guide tells users to run opens here, and the other way round.
func TestOpenSSL(t *testing.T) {
	optional.Program(t, "openssl")
	p := smallPair(t)
	for _, name := range Algorithms() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := func(file string) string { return filepath.Join(dir, file) }
			write := func(file string, b []byte) string {
				t.Helper()
				if err := os.WriteFile(path(file), b, 0o600); err != nil {
					t.Fatal(err)
				}
				return path(file)
			}
			read := func(file string) []byte {
				t.Helper()
				b, err := os.ReadFile(path(file))
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			digest := "sha256"
			if strings.HasSuffix(name, "SHA_1") {
				digest = "sha1"
			}
			oaep := []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + digest, "-pkeyopt", "rsa_mgf1_md:" + digest}
			public, private := write("public", p.public), write("private", p.private)
			encrypt := func(in, out string) {
				t.Helper()
				openssl(t, append([]string{"pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", public, "-in", path(in), "-out", path(out)}, oaep...)...)
			}
			decrypt := func(in, out string) {
				t.Helper()
				openssl(t, append([]string{"pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", private, "-in", path(in), "-out", path(out)}, oaep...)...)
			}
			wrapPad := func(direction, kek, in, out string) {
				t.Helper()
				openssl(t, "enc", direction, "-id-aes256-wrap-pad", "-K", hex.EncodeToString(read(kek)), "-iv", "A65959A6", "-in", path(in), "-out", path(out))
			}

			m := material(32)
			if isHybrid(name) {
				m = material(1219) // a PKCS #8 RSA key's, with padding
			}
			write("material", m)

			var theirs []byte
			if isHybrid(name) {
				write("kek", material(kekSize))
				encrypt("kek", "kek.enc")
				wrapPad("-e", "kek", "material", "material.enc")
				theirs = append(read("kek.enc"), read("material.enc")...)
			} else {
				encrypt("material", "material.enc")
				theirs = read("material.enc")
			}
			if got, err := Unwrap(p.private, name, theirs); err != nil || !bytes.Equal(got, m) {
				t.Errorf("Unwrap of openssl's: got %x, %v", got, err)
			}

			ours, err := Wrap(p.public, name, m)
			if err != nil {
				t.Fatal(err)
			}
			if isHybrid(name) {
				write("kek.enc", ours[:256])
				write("ours.enc", ours[256:])
				decrypt("kek.enc", "kek.dec")
				wrapPad("-d", "kek.dec", "ours.enc", "ours.dec")
			} else {
				write("ours.enc", ours)
				decrypt("ours.enc", "ours.dec")
			}
			if got := read("ours.dec"); !bytes.Equal(got, m) {
				t.Errorf("openssl's decryption of Wrap: got %x, want %x", got, m)
			}
		})
	}
}
