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
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/backup"
)

func restoreCommand(a *cli.App) *cobra.Command {
	var o opening
	var p replacing
	var peers, dir string
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
nevertheless: they would go on answering, with the same keys.

To restore a backup in place of a cluster that still exists, stop all its nodes and name
the data directory of one of them with --over, and with --report the reports of others
("conclave cluster recover-quorum report"), a majority together. The new cluster then
goes on from the audit log, the time, the share set and the keyring of the old one: no
record is lost. Restore lists what was deleted, disabled or changed since the backup, and
would be valid again. To go on, type how many these are after --valid-again. The log has
a record that names them.`,
		Example: `  conclave snapshot restore conclave.backup --dir restored --peers node-1=10.0.0.1:7602,node-2=10.0.0.2:7602,node-3=10.0.0.3:7602`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			to, err := newCluster(peers, dir)
			if err != nil {
				return err
			}
			var shown restoredCluster
			if p.data != "" {
				err = scratch(dir, func(work string) (err error) {
					shown, err = restoreOver(cmd.Context(), a, &o, p, newFounding(work, to), args[0])
					return err
				})
				if err != nil {
					return err
				}
				return shown.print(a, dir, "the newest record")
			}
			if len(p.reports) > 0 || p.validAgain >= 0 {
				return cli.Usagef("--report and --valid-again need --over")
			}
			err = o.open(cmd.Context(), a, args[0], func(h *backup.Header, k *backup.Keys, rest io.Reader) error {
				return scratch(dir, func(work string) (err error) {
					shown, err = restoreTo(cmd.Context(), work, to, h, k, rest)
					return err
				})
			})
			if err != nil {
				return err
			}
			return shown.print(a, dir, "the backup")
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&p.data, "over", "", "data directory of a stopped node of the cluster that is replaced, on this machine")
	cmd.Flags().StringArrayVar(&p.reports, "report", nil, "report of another node of that cluster; may be repeated")
	cmd.Flags().IntVar(&p.validAgain, "valid-again", -1, "how many objects are valid again or changed back, as this command lists them")
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make, with a data directory for each node")
	cmd.Flags().StringVar(&peers, "peers", "", "first nodes of the new cluster with their peer addresses: NODE=HOST:PORT,…")
	return a.OutputFlag(cmd)
}

// newCluster returns the new cluster that --peers describes, if --dir can be made for it.
func newCluster(peers, dir string) (to cluster.Restored, err error) {
	if to.Nodes, err = cli.ParsePeers(peers); err == nil {
		err = to.Validate()
	}
	if err != nil {
		return to, cli.Usagef("--peers: %v", err)
	}
	if dir == "" {
		return to, cli.Usagef("--dir is required")
	}
	there, err := files.Exists(dir)
	if err == nil && there {
		err = fmt.Errorf("%s exists already: give a directory that does not", dir)
	}
	return to, err
}

// restoredCluster is what restore prints.
type restoredCluster struct {
	Lineage   string   `json:"lineage"`
	Nodes     []string `json:"nodes"`
	Keys      int      `json:"keys"`
	AuditSize uint64   `json:"audit_records"`
}

func (r restoredCluster) print(a *cli.App, dir, from string) error {
	return a.Print(r, func(w io.Writer) {
		cli.Line(w, "lineage", r.Lineage)
		cli.Line(w, "keys", r.Keys)
		cli.Line(w, "audit log", fmt.Sprintf("%d records", r.AuditSize))
		for _, n := range r.Nodes {
			cli.Line(w, "data directory", filepath.Join(dir, n))
		}
		fmt.Fprintf(w, "\nStart each node with its directory, unseal all of them, and run `conclave operator confirm-time` if %s is older than a day.\n", from)
	})
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

// founding is the making of the data directories of a new cluster, in a scratch directory.
type founding struct {
	work string
	// saved is the file with the state that there was, and state the one with the state of
	// the new cluster.
	saved, state string
	// The audit log is made once, in audit, and copied to the other nodes.
	audit string
	log   *auditlog.Log // nil once it is closed
	to    cluster.Restored
	// keys are those of the state of a stopped node; nil before unlock.
	keys *backup.Keys
}

func newFounding(work string, to cluster.Restored) *founding {
	return &founding{work: work, saved: filepath.Join(work, ".saved"), state: filepath.Join(work, ".state"), audit: filepath.Join(work, ".audit"), to: to}
}

func (f *founding) openLog() (err error) {
	f.log, err = auditlog.Open(f.audit, auditlog.Options{Logger: slog.New(slog.DiscardHandler)})
	return err
}

func (f *founding) closeLog() error {
	log := f.log
	if f.log = nil; log == nil {
		return nil
	}
	return log.Close()
}

// survivor is a stopped node, and the state that it had.
type survivor struct {
	report
	machine *fsm.FSM
}

// replay computes the newest state of a stopped node. Its audit log is copied first, because
// the log of Raft may have records that it does not have yet. The caller must call close.
func (f *founding) replay(ctx context.Context, s *cluster.Stopped, data string) (of survivor, err error) {
	if err := copyTree(ctx, f.audit, node.AuditDir(data)); err != nil {
		return of, fmt.Errorf("copying the audit log: %w", err)
	}
	if err := f.openLog(); err != nil {
		return of, err
	}
	of.machine, err = s.Replay(ctx, fsm.Config{
		Audit: f.log,
		// It is called for snapshots, which are made when there are keys.
		Attest: func(*fsm.State) func([32]byte) (*fsmpb.Attestation, error) { return f.keys.Attest },
	})
	if err != nil {
		return of, fmt.Errorf("%s cannot be read to its end: %w", data, err)
	}
	of.report, err = reportOf(s.Extent(), of.machine.Current())
	return of, err
}

// unlock collects the shares that open the state of a stopped node.
func (f *founding) unlock(a *cli.App, o *opening, of survivor) (err error) {
	if f.keys, err = backup.SurvivorKeys(of.machine.Current(), of.Node, o.mustLock()); err != nil {
		return err
	}
	return o.collect(a, f.keys)
}

// close closes what replay and unlock have opened.
func (f *founding) close() error {
	err := f.closeLog()
	if f.keys != nil {
		err = errors.Join(err, f.keys.Close())
	}
	return err
}

// restoreTo makes the data directories of all nodes in work, from a backup.
func restoreTo(ctx context.Context, work string, to cluster.Restored, h *backup.Header, k *backup.Keys, rest io.Reader) (shown restoredCluster, err error) {
	f := newFounding(work, to)
	if err := f.openLog(); err != nil {
		return shown, err
	}
	defer func() { err = errors.Join(err, f.closeLog()) }()
	content, err := readInto(ctx, f.saved, f.log, k, rest)
	if err != nil {
		return shown, err
	}
	if !h.Audit {
		if err := f.log.Restore(content.State.Audit()); err != nil {
			return shown, err
		}
	}
	return f.found(ctx, &backup.Restore{}, k, content)
}

// found makes the data directories of all nodes from the saved state, whose content is given,
// and its audit log.
func (f *founding) found(ctx context.Context, r *backup.Restore, k *backup.Keys, content *backup.Content) (shown restoredCluster, err error) {
	if shown.Keys, _, err = k.Materials(content.State); err != nil {
		return shown, err
	}
	shown.Nodes = slices.Sorted(maps.Keys(f.to.Nodes))
	r.Nodes, r.Now = shown.Nodes, time.Now()
	if err := r.Begin(k, content); err != nil {
		return shown, err
	}
	if err := rewrite(r, f.saved, f.state); err != nil {
		return shown, err
	}
	entry := r.Record()
	if err := f.log.Append([]auditlog.Entry{entry}, []auditlog.Hash{entry.LeafHash()}); err != nil {
		return shown, err
	}
	if err := errors.Join(f.log.Sync(), f.closeLog()); err != nil {
		return shown, err
	}
	f.to.Lineage = r.Lineage.Id
	for _, id := range shown.Nodes {
		data := filepath.Join(f.work, id)
		if err := f.to.WriteDataDir(data, id, func() (io.ReadCloser, error) { return os.Open(f.state) }); err != nil {
			return shown, fmt.Errorf("node %s: %w", id, err)
		}
		if err := copyTree(ctx, node.AuditDir(data), f.audit); err != nil {
			return shown, fmt.Errorf("node %s: %w", id, err)
		}
	}
	shown.Lineage, shown.AuditSize = hex.EncodeToString(r.Lineage.Id), entry.Index+1
	return shown, errors.Join(os.Remove(f.saved), os.Remove(f.state), os.RemoveAll(f.audit))
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
