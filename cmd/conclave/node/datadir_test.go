package node_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// TestDataIsPrivate: nobody else can read what the node stores, whatever the umask
// and the mode of the directory. The node refuses a directory that others may write
// to.
func TestDataIsPrivate(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := single(t, data)
	cfg.Test.SnapshotEntries, cfg.Test.TrailingLogs = 8, 8
	cfg.Timeouts.Snapshot = 20 * time.Millisecond
	n := start(t, cfg)
	c := sdk(n, found(t, n))
	state := func() (files []string) {
		files, _ = filepath.Glob(filepath.Join(data, "groups", "0", "raft", "snapshots", "*", "state.bin"))
		return files
	}
	for end := time.Now().Add(30 * time.Second); len(state()) == 0; {
		if time.Now().After(end) {
			t.Fatal("void: there is no snapshot")
		}
		if _, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{}); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // a snapshot in the making
			}
			return err
		}
		if st, err := d.Info(); err == nil && st.Mode().Perm()&0o077 != 0 && !strings.Contains(path, ".tmp") {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	bad, err := node.Start(t.Context(), single(t, open))
	if err == nil {
		bad.Stop(context.Background())
		t.Fatal("a node keeps its data where anybody may write")
	}
	if !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("got %v", err)
	}
}
