package cms

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/attesttest"
)

func newKey(t testing.TB, bits int) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key, attesttest.SPKI(&key.PublicKey)
}

// TestSeal: what enclaves' SDK takes, whatever the content's length.
func TestSeal(t *testing.T) {
	for _, bits := range []int{2048, 3072, 4096} {
		key, spki := newKey(t, bits)
		for _, n := range []int{0, 1, 15, 16, 17, 32, 255, 1024, 6144, maxContent} {
			content := bytes.Repeat([]byte{16}, n) // that looks like padding
			message, err := Seal(&key.PublicKey, spki, content)
			if err != nil {
				t.Fatal(err)
			}
			got, err := attesttest.Open(key, message)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("RSA %d, %d bytes: opened to %x, %v", bits, n, got, err)
			}
			if n >= 16 && bytes.Contains(message, content[:16]) {
				t.Errorf("RSA %d, %d bytes: the message holds the content", bits, n)
			}
			again, err := Seal(&key.PublicKey, spki, content)
			if err != nil || bytes.Equal(again[len(again)-42:], message[len(message)-42:]) {
				t.Errorf("RSA %d, %d bytes: the same twice, %v", bits, n, err)
			}
		}
		if _, err := Seal(&key.PublicKey, spki, make([]byte, maxContent+1)); err == nil {
			t.Error("a content that is too long is sealed")
		}
	}
}

// TestLayout compares all that does not vary with AWS's messages, byte by byte.
func TestLayout(t *testing.T) {
	key, spki := newKey(t, 2048)
	message, err := Seal(&key.PublicKey, spki, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(spki)
	want := "30 80 06 09 2a864886f70d010703 a0 80 30 80 02 01 02 31 82016b 30 820167 02 01 02 80 20" + hex.EncodeToString(id[:]) +
		"30 3c 06 09 2a864886f70d010107 30 2f a0 0f 30 0d 06 09 608648016503040201 05 00" +
		"a1 1c 30 1a 06 09 2a864886f70d010108 30 0d 06 09 608648016503040201 05 00" +
		"04 820100" + strings.Repeat("?", 512) +
		"30 80 06 09 2a864886f70d010701 30 1d 06 09 60864801650304012a 04 10" + strings.Repeat("?", 32) +
		"a0 80 04 30" + strings.Repeat("?", 96) + strings.Repeat("0", 20)
	want = strings.ReplaceAll(want, " ", "")
	got := []byte(hex.EncodeToString(message))
	for i := range got {
		if i < len(want) && want[i] == '?' {
			got[i] = '?'
		}
	}
	if string(got) != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	again, err := Seal(&key.PublicKey, spki, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	const content, iv = 10 + 48, 10 + 48 + 4 + 16 // from the end
	for name, at := range map[string][2]int{"IV": {iv, 16}, "content": {content, 48}} {
		from, to := len(message)-at[0], len(message)-at[0]+at[1]
		if a, b := message[from:to], again[from:to]; bytes.Equal(a, b) || bytes.Equal(a, make([]byte, len(a))) {
			t.Errorf("two messages have the %ss %x and %x", name, a, b)
		}
	}
}

// TestOpenSSL: another implementation opens our messages.
func TestOpenSSL(t *testing.T) {
	openssl := optional.Program(t, "openssl")
	key, spki := newKey(t, 2048)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keyFile, messageFile, out := filepath.Join(dir, "key.pem"), filepath.Join(dir, "message"), filepath.Join(dir, "content")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 16, 33, 6144} {
		content := make([]byte, n)
		_, _ = rand.Read(content)
		message, err := Seal(&key.PublicKey, spki, content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(messageFile, message, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), openssl, "cms", "-decrypt", "-inform", "DER", "-in", messageFile, "-inkey", keyFile, "-out", out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v\n%s", err, text)
		}
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes: openssl finds %x, %v, want %x", n, got, err, content)
		}
	}
}
