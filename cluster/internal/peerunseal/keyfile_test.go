package peerunseal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestKeyFile: the file of return keys is private, bounded, and gone once it was removed.
func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "return.key")
	p := New(Config{KeyFile: path})
	if b, err := p.LoadKeys(); b != nil || err != nil {
		t.Errorf("without a file: %q, %v", b, err)
	}
	if err := p.RemoveKeys(); err != nil {
		t.Errorf("removing none: %v", err)
	}
	if err := p.SaveKeys([]byte("keys")); err != nil {
		t.Fatal(err)
	}
	if b, err := p.LoadKeys(); string(b) != "keys" || err != nil {
		t.Errorf("loaded %q, %v", b, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", st, err)
	}
	if err := p.RemoveKeys(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("after the removal there is %v, %v", left, err)
	}
	for n, fails := range map[int]bool{0: false, maxKeyFile: false, maxKeyFile + 1: true} {
		if err := os.WriteFile(path, bytes.Repeat([]byte("k"), n), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := p.LoadKeys(); (err != nil) != fails || !fails && len(b) != n {
			t.Errorf("%d bytes: loaded %d, %v", n, len(b), err)
		}
	}
}
