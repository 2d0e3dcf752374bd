package files

import (
	"fmt"
	"os"
	"syscall"
)

// OwnDir refuses a directory that somebody else could read or replace.
func OwnDir(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to another user, who could read your keys", dir)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is accessible to others (mode %04o); chmod 700 it", dir, fi.Mode().Perm())
	}
	return nil
}
