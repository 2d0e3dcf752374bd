package backups

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/backup"
)

func restoreCommand(a *cli.App) *cobra.Command {
	var o opening
	var peers []string
	var dir string
	cmd := &cobra.Command{
		Use:   "restore FILE --dir DIR --peers NODE=HOST:PORT,…",
		Short: "Make the data directories of a new cluster from a backup",
		Long: `Restore opens a backup with as many shares as unseal the cluster, checks all of it, and
makes a data directory for each first node of a new cluster: DIR/NODE. The new cluster
may have another size. Nothing is changed if anything is wrong with the file or the
shares. It needs no server.

Bring each directory to its machine, start all servers with it and with the same
--peers, and unseal them with the shares. Keys, ciphertexts, policies and credentials
are those of the backup; what was changed since is lost, and what was revoked since is
valid again. The audit log continues with a record of the restore.

The new cluster has a lineage of its own: nodes of the old one cannot take part in it,
even if they have the same names, addresses and certificates. Shut the old ones down
nevertheless: they would go on answering, with the same keys.`,
		Example: `  conclave snapshot restore conclave.backup --dir restored --peers node-1=10.0.0.1:7602,node-2=10.0.0.2:7602,node-3=10.0.0.3:7602`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			to := cluster.Restored{Nodes: make(map[string]string)}
			for _, p := range peers {
				id, addr, ok := strings.Cut(p, "=")
				if _, _, err := net.SplitHostPort(addr); !ok || err != nil || to.Nodes[id] != "" {
					return cli.Usagef("--peers: %q is not NODE=HOST:PORT, or is there twice", p)
				}
				to.Nodes[id] = addr
			}
			if err := to.Validate(); err != nil {
				return cli.Usagef("--peers: %v", err)
			}
			if dir == "" {
				return cli.Usagef("--dir is required")
			}
			if there, err := files.Exists(dir); err != nil || there {
				return errors.Join(err, fmt.Errorf("%s exists already: give a directory that does not", dir))
			}
			var shown restoredCluster
			err := o.open(a, args[0], func(h *backup.Header, k *backup.Keys, rest io.Reader) error {
				return scratch(dir, func(work string) (err error) {
					shown, err = restoreTo(cmd.Context(), work, to, h, k, rest)
					return err
				})
			})
			if err != nil {
				return err
			}
			return a.Print(shown, func(w io.Writer) {
				cli.Line(w, "lineage", shown.Lineage)
				cli.Line(w, "keys", shown.Keys)
				cli.Line(w, "audit log", fmt.Sprintf("%d records", shown.AuditSize))
				for _, n := range shown.Nodes {
					cli.Line(w, "data directory", filepath.Join(dir, n))
				}
				fmt.Fprintln(w, "\nStart each node with its directory, unseal all of them, and run `conclave operator confirm-time` if the backup is older than a day.")
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make, with a data directory for each node")
	cmd.Flags().StringSliceVar(&peers, "peers", nil, "first nodes of the new cluster with their peer addresses: NODE=HOST:PORT,…")
	return a.OutputFlag(cmd)
}

// restoredCluster is what restore prints.
type restoredCluster struct {
	Lineage   string   `json:"lineage"`
	Nodes     []string `json:"nodes"`
	Keys      int      `json:"keys"`
	AuditSize uint64   `json:"audit_records"`
}

// scratch calls make with a new directory beside dir, which is given the name of dir if make
// succeeds, and is removed otherwise.
func scratch(dir string, fill func(work string) error) (err error) {
	dir = filepath.Clean(dir)
	work, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-*") // mode 0700
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(work))
		}
	}()
	if err := fill(work); err != nil {
		return err
	}
	if err := os.Rename(work, dir); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(dir))
}

// restoreTo makes the data directories of all nodes in work.
func restoreTo(ctx context.Context, work string, to cluster.Restored, h *backup.Header, k *backup.Keys, rest io.Reader) (shown restoredCluster, err error) {
	nodes := slices.Sorted(maps.Keys(to.Nodes))
	saved, state := filepath.Join(work, ".saved"), filepath.Join(work, ".state")
	// The audit log is made once and copied to the other nodes.
	first := filepath.Join(work, ".audit")
	log, err := auditlog.Open(first, auditlog.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return shown, err
	}
	defer func() {
		if log != nil {
			err = errors.Join(err, log.Close())
		}
	}()
	content, err := readInto(ctx, saved, log, k, rest)
	if err != nil {
		return shown, err
	}
	if shown.Keys, _, err = k.Materials(content.State); err != nil {
		return shown, err
	}
	r := &backup.Restore{Nodes: nodes, Now: time.Now()}
	if err := r.Begin(k, content); err != nil {
		return shown, err
	}
	if err := rewrite(r, saved, state); err != nil {
		return shown, err
	}
	if !h.Audit {
		frontier, roots := content.State.Audit()
		if err := log.Restore(frontier, roots); err != nil {
			return shown, err
		}
	}
	entry := r.Record()
	if err := log.Append([]auditlog.Entry{entry}, []auditlog.Hash{entry.LeafHash()}); err != nil {
		return shown, err
	}
	err = errors.Join(log.Sync(), log.Close())
	if log = nil; err != nil {
		return shown, err
	}
	to.Lineage = r.Lineage.Id
	for _, id := range nodes {
		data := filepath.Join(work, id)
		if err := to.WriteDataDir(data, id, func() (io.ReadCloser, error) { return os.Open(state) }); err != nil {
			return shown, fmt.Errorf("node %s: %w", id, err)
		}
		if err := copyTree(ctx, node.AuditDir(data), first); err != nil {
			return shown, fmt.Errorf("node %s: %w", id, err)
		}
	}
	shown.Lineage, shown.Nodes, shown.AuditSize = hex.EncodeToString(r.Lineage.Id), nodes, entry.Index+1
	return shown, errors.Join(os.Remove(saved), os.Remove(state), os.RemoveAll(first))
}

// appendBatch is how many audit entries are written at once.
const appendBatch = 512

// readInto reads a backup, and writes its state to a file and its audit log to log.
func readInto(ctx context.Context, file string, log *auditlog.Log, k *backup.Keys, rest io.Reader) (content *backup.Content, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := log.Restore(auditlog.Frontier{}, nil); err != nil {
		return nil, err
	}
	var entries []auditlog.Entry
	var leaves []auditlog.Hash
	flush := func() error {
		if len(entries) == 0 {
			return ctx.Err()
		}
		err := log.Append(entries, leaves)
		entries, leaves = entries[:0], leaves[:0]
		return errors.Join(err, ctx.Err())
	}
	w := bufio.NewWriter(f)
	content, err = k.Read(rest, w, func(e auditlog.Entry) error {
		entries, leaves = append(entries, e), append(leaves, e.LeafHash())
		if len(entries) < appendBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = errors.Join(flush(), w.Flush())
	}
	return content, err
}

// rewrite makes the snapshot of the new cluster from that of the old one, and reads it again.
func rewrite(r *backup.Restore, saved, state string) (err error) {
	from, err := os.Open(saved)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(state, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	w := bufio.NewWriter(to)
	if err := errors.Join(r.Snapshot(from, w), w.Flush()); err != nil {
		return err
	}
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return r.Check(to)
}

// copyTree copies a directory of plain files, and makes the copy durable.
func copyTree(ctx context.Context, to, from string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = copyTree(ctx, dst, src)
		} else {
			err = copyFile(dst, src)
		}
		if err != nil {
			return err
		}
	}
	return files.SyncDir(to)
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return files.WriteFrom(to, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}
