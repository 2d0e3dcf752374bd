package files

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"first", "second"} {
		if err := Write(name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		fi, serr := os.Stat(name)
		if err != nil || serr != nil || string(got) != content || fi.Mode().Perm() != 0o600 {
			t.Errorf("got %q, mode %v, %v, %v", got, fi.Mode(), err, serr)
		}
	}
	if err := os.Mkdir(name+"d", 0o700); err != nil {
		t.Fatal(err)
	}
	if Write(name+"d", nil) == nil {
		t.Error("a directory was replaced by a file")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(name), ".*-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
