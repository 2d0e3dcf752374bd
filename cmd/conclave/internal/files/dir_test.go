package files

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOwnDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := OwnDir(dir); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := Write(file, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(dir, "link"), file, filepath.Join(dir, "none")} {
		if OwnDir(bad) == nil {
			t.Errorf("%s is taken for a directory of one's own", bad)
		}
	}
	for _, mode := range []os.FileMode{0o750, 0o701, 0o777} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if OwnDir(dir) == nil {
			t.Errorf("mode %04o is taken", mode)
		}
	}
	if os.Getuid() == 0 { // only root can give a directory away
		other := t.TempDir()
		if err := errors.Join(os.Chmod(other, 0o700), os.Chown(other, 12345, -1)); err != nil {
			t.Fatal(err)
		}
		if OwnDir(other) == nil {
			t.Error("another user's directory is taken")
		}
	}
}
