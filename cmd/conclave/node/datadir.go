package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/cluster"
)

// AuditDir returns the directory of the audit log, of the Raft group that this process
// serves, within a data directory.
func AuditDir(data string) string { return filepath.Join(cluster.GroupDir(data), "audit") }

// auditIndexFile returns the path of the index of the audit log.
func auditIndexFile(data string) string { return filepath.Join(data, "audit-index") }

// alertsFile returns the path of what the rules for alerts remember.
func alertsFile(data string) string { return filepath.Join(cluster.GroupDir(data), "alerts.db") }

// usageFile is where a node counts requests.
func usageFile(data string) string { return filepath.Join(cluster.GroupDir(data), "usage.db") }

// privateData creates the data directory, or makes sure that only this user can
// access it. If others could only read it, the mode is corrected. If others could
// write to it, its content can no longer be trusted to be the node's own, and a
// person has to check it.
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
		return fmt.Errorf("others may write to %s (mode %#o): check that nobody did, and then chmod 700 it, or give a directory in it that the node can create", dir, mode)
	case mode&0o077 == 0:
		return nil
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("others may access %s (mode %#o), and the mode cannot be changed; give a directory in it that the node can create: %w", dir, mode, err)
	}
	n.log.Warn("the data directory was accessible to others; its mode was corrected", "path", dir, "mode", fmt.Sprintf("%#o", mode))
	return nil
}
