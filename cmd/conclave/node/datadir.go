package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/cluster"
)

// AuditDir is where a data directory has the audit log of the Raft group that this process
// serves.
func AuditDir(data string) string { return filepath.Join(cluster.GroupDir(data), "audit") }

// privateData makes the data directory, or sees to it that it is this user's alone.
// What only let others read is mended. Where others could have written, what lies
// there is no longer known to be the node's own: a person has to look.
func (n *Node) privateData() error {
	dir := n.cfg.Data
	if err := cluster.CheckDataDir(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	mode := st.Mode().Perm()
	switch {
	case mode&0o002 != 0:
		return fmt.Errorf("anybody may write to %s (mode %#o): see that nobody did, and then chmod 700 it, or name a directory in it for the node to make", dir, mode)
	case mode&0o077 == 0:
		return nil
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("others may use %s (mode %#o), and that cannot be changed; name a directory in it for the node to make: %w", dir, mode, err)
	}
	n.log.Warn("the data directory was open to others; it is not any more", "path", dir, "mode", fmt.Sprintf("%#o", mode))
	return nil
}
