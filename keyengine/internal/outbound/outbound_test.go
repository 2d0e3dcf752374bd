package outbound

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadFile: no more is read than the limit, whatever the file is.
func TestReadFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("12345678"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(name, 8); err != nil || string(b) != "12345678" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := ReadFile(name, 7); err == nil {
		t.Errorf("%q was read beyond the limit", b)
	}
	if _, err := os.Stat("/dev/zero"); err != nil {
		t.Skip(err)
	}
	if _, err := ReadFile("/dev/zero", 8); err == nil {
		t.Error("an endless file was read")
	}
}

// TestClipped: what a server says neither floods the node's log nor breaks its lines.
func TestClipped(t *testing.T) {
	if got := Clipped(errors.New("a\nb\x1b[2J" + strings.Repeat("c", 1000))); len(got) > 320 || strings.ContainsAny(got, "\n\x1b") {
		t.Errorf("%s", got)
	}
}
