// Package backups has the commands that save, check and use backups of a cluster.
package backups

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/depot"
	"github.com/conclavekms/conclave/keyengine/backup"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Commands returns the commands for backups.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{snapshotCommand(a), recoverCommand(a)}
}

func snapshotCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save backups of a cluster, check them, and restore a cluster from one",
		Long: `Snapshot has the commands for backups. A backup is one encrypted file with the state
and the audit log of a cluster. As many shares as unseal the cluster open it, without
the cluster. Keep backups away from the shares: whoever has both has all keys.

Wherever a backup is named, it may be in a bucket of S3 or of a compatible store:
s3://BUCKET/KEY, with options in the form ?NAME=VALUE&…:

  region      region of the bucket (AWS_REGION)
  endpoint    URL of a store other than AWS's (AWS_ENDPOINT_URL_S3)
  path-style  whether the bucket is in the path of URLs; true if there is an endpoint
  profile     profile of the shared AWS configuration that has the credentials
  lock-mode   GOVERNANCE or COMPLIANCE: lock what is stored (object lock) …
  lock-for    … for this long, such as 720h

Credentials are those of the usual chain of AWS's clients. If AWS_ACCESS_KEY_ID is one
of Conclave, name a profile.`,
	}
	cmd.AddCommand(saveCommand(a), inspectCommand(a), verifyCommand(a), restoreCommand(a))
	return cmd
}

func saveCommand(a *cli.App) *cobra.Command {
	var without bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save a backup of a running cluster to a file",
		Long: `Save writes a backup of the cluster to a file, mode 0600, by way of the first of the
nodes that --address (CONCLAVE_ADDRESS) names that answers. It must be unsealed. The
backup has everything that was committed before. That it was made is in the audit log
before its first byte is sent.

The file takes its name only when it is whole and on the disk. It may also be
s3://BUCKET/KEY; see "conclave snapshot --help".`,
		Example: `  conclave snapshot save conclave.backup`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, name, err := depot.ParseFile(args[0])
			if err != nil {
				return cli.Usagef("%v", err)
			}
			var saved *kmspb.SavedSnapshot
			err = a.WithEach(cmd.Context(), "saving a backup", func(ctx context.Context, c *cli.Connection) error {
				_, err := store.Put(ctx, name, func(w io.Writer) (err error) {
					saved, err = receive(ctx, a, c, !without, w)
					return err
				})
				return err
			})
			if err != nil {
				return err
			}
			return a.Print(saved, func(w io.Writer) {
				cli.Line(w, "backup", saved.GetId())
				cli.Line(w, "file", args[0])
				cli.Line(w, "bytes", saved.GetSize())
				cli.Line(w, "sha256", hex.EncodeToString(saved.GetSha256()))
				cli.Line(w, "cluster time", cli.When(saved.GetClusterTime()))
				cli.Line(w, "audit log", fmt.Sprintf("%d records", saved.GetAuditSize()))
			})
		},
	}
	cmd.Flags().BoolVar(&without, "without-audit", false, "leave the audit log out")
	a.ClientFlags(cmd)
	return cmd
}

// progressEvery is how often save tells how far it is.
const progressEvery = 2 * time.Second

// receive writes a backup that a node sends, and checks that it is whole. It gives up when
// the node sends nothing for as long as --timeout says.
func receive(ctx context.Context, a *cli.App, c *cli.Connection, withAudit bool, w io.Writer) (*kmspb.SavedSnapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var silence *time.Timer
	if a.Remote.Timeout > 0 {
		silence = time.AfterFunc(a.Remote.Timeout, cancel)
		defer silence.Stop()
	}
	from, err := c.Operator().SaveSnapshot(ctx, &kmspb.SaveSnapshotRequest{WithoutAudit: !withAudit})
	if err != nil {
		return nil, err
	}
	sum, size, told := sha256.New(), uint64(0), time.Now()
	for {
		r, err := from.Recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if silence != nil {
			silence.Reset(a.Remote.Timeout)
		}
		if _, err := w.Write(r.GetData()); err != nil {
			return nil, err
		}
		_, _ = sum.Write(r.GetData())
		size += uint64(len(r.GetData()))
		if s := r.GetSaved(); s != nil {
			if s.GetSize() != size || !bytes.Equal(s.GetSha256(), sum.Sum(nil)) {
				return nil, errors.New("the backup was changed on its way")
			}
			return s, nil
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			a.Note("%d MiB received", size>>20)
		}
	}
}

// header is what a backup says of itself.
type header struct {
	Backup    string    `json:"backup"`
	Cluster   string    `json:"cluster"`
	Account   string    `json:"account"`
	Region    string    `json:"region"`
	ShareSet  string    `json:"share_set"`
	Threshold uint32    `json:"threshold"`
	Shares    uint32    `json:"shares"`
	Lineage   string    `json:"lineage,omitempty"`
	Index     uint64    `json:"index"`
	Time      time.Time `json:"cluster_time"`
	Created   time.Time `json:"created"`
	Node      string    `json:"node"`
	AuditSize uint64    `json:"audit_records"`
	AuditRoot string    `json:"audit_root"`
	Audit     bool      `json:"audit_included"`
	// Verified says that the whole file was authenticated; otherwise all of the above is
	// only what the file says.
	Verified bool `json:"verified"`
	Keys     int  `json:"keys,omitempty"`
	Versions int  `json:"key_versions,omitempty"`
}

func headerOf(h *backup.Header) header {
	c := h.Cluster
	return header{
		Backup: hex.EncodeToString(h.Id), Cluster: hex.EncodeToString(c.Id), Account: c.Account, Region: c.Region,
		ShareSet: hex.EncodeToString(c.Shares.Id), Threshold: c.Shares.Threshold, Shares: c.Shares.Count,
		Lineage: hex.EncodeToString(c.GetLineage().GetId()), Index: h.Index, Time: time.Unix(0, h.Time).UTC(), Created: time.Unix(0, h.Created).UTC(),
		Node: h.Node, AuditSize: h.AuditSize, AuditRoot: hex.EncodeToString(h.AuditRoot), Audit: h.Audit,
	}
}

func (h header) table(w io.Writer) {
	cli.Line(w, "backup", h.Backup)
	cli.Line(w, "cluster", h.Cluster)
	cli.Line(w, "account", fmt.Sprintf("%s in %s", cli.Printable(h.Account), cli.Printable(h.Region)))
	cli.Line(w, "share set", h.ShareSet)
	cli.Line(w, "shares", fmt.Sprintf("%d of %d open it", h.Threshold, h.Shares))
	if h.Lineage != "" {
		cli.Line(w, "lineage", h.Lineage)
	}
	cli.Line(w, "made", fmt.Sprintf("%s by %s", h.Created.Format(time.RFC3339), cli.Printable(h.Node)))
	cli.Line(w, "cluster time", h.Time.Format(time.RFC3339))
	cli.Line(w, "raft index", h.Index)
	included := "not included"
	if h.Audit {
		included = "included"
	}
	cli.Line(w, "audit log", fmt.Sprintf("%d records, %s, root %s", h.AuditSize, included, h.AuditRoot))
	if h.Verified {
		cli.Line(w, "keys", fmt.Sprintf("%d, with %d versions of key material", h.Keys, h.Versions))
		cli.Line(w, "verified", "the whole file is authentic, and all key material can be opened")
		return
	}
	cli.Line(w, "not verified", "that any of this is true: that takes the shares, with `conclave snapshot verify`")
}

func inspectCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a backup says of itself, without opening it",
		Long: `Inspect shows the beginning of a backup, which is in the clear. It needs no share and
verifies nothing: whoever can write the file can change what is shown.`,
		Example: `  conclave snapshot inspect conclave.backup`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := openFile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			h, err := backup.ReadHeader(bufio.NewReader(f))
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			shown := headerOf(h)
			return a.Print(shown, shown.table)
		},
	}
	return a.OutputFlag(cmd)
}

// opening are the flags of the commands that open a backup.
type opening struct {
	shares   []string
	unlocked bool
}

func (o *opening) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&o.shares, "share-file", nil, "file with a share; to be repeated for each")
	cmd.Flags().BoolVar(&o.unlocked, "allow-unlocked-memory", false, "open the backup even if the keys may be swapped out, where memory cannot be locked (CONCLAVE_ALLOW_UNLOCKED_MEMORY)")
}

// openFile opens a backup, in a file or a bucket.
func openFile(ctx context.Context, name string) (io.ReadCloser, error) {
	store, base, err := depot.ParseFile(name)
	if err != nil {
		return nil, cli.Usagef("%v", err)
	}
	return store.Open(ctx, base)
}

// open reads the header of a backup, and the shares that open it. use is called with them,
// and with the file after its header.
func (o *opening) open(ctx context.Context, a *cli.App, name string, use func(h *backup.Header, k *backup.Keys, rest io.Reader) error) (err error) {
	f, err := openFile(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	h, err := backup.ReadHeader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	k, err := backup.NewKeys(h, o.mustLock())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if err := o.collect(a, k); err != nil {
		return err
	}
	if err := use(h, k, in); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return nil
}

// mustLock reports whether the keys must be in locked memory.
func (o *opening) mustLock() bool {
	unlocked, _ := strconv.ParseBool(os.Getenv("CONCLAVE_ALLOW_UNLOCKED_MEMORY"))
	return !o.unlocked && !unlocked
}

// collect reads the shares.
func (o *opening) collect(a *cli.App, k *backup.Keys) error {
	return a.ReadShares(o.shares, func(share []byte) (bool, error) {
		have, need, err := k.Add(share)
		if err == nil {
			a.Note("%d of %d shares", have, need)
		}
		return have == need, err
	})
}

func verifyCommand(a *cli.App) *cobra.Command {
	var o opening
	var online bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Open a backup with the shares and check all of it",
		Long: `Verify opens a backup with as many shares as unseal the cluster, and checks all of it:
that it is authentic and whole, that this version can read it, that state and audit log
belong together, and that the material of every key can be opened. It writes nothing and
needs no server.

It reads the shares from the files that --share-file names, from prompts that do not
show them, or from standard input, one on each line. Run it on a machine that you would
unseal the cluster on: for a moment it has all keys.

With --online it needs no shares: a running, unsealed node of the cluster gets the file
and checks the same, and says whether the shares of today open it. It cannot prove that
the custodians still have them.`,
		Example: `  conclave snapshot verify conclave.backup
  conclave snapshot verify conclave.backup --share-file share-1.txt --share-file share-3.txt
  conclave snapshot verify conclave.backup --online`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			if online {
				if len(o.shares) > 0 {
					return cli.Usagef("--online needs no shares")
				}
				return verifyOnline(cmd.Context(), a, args[0])
			}
			var shown header
			err := o.open(cmd.Context(), a, args[0], func(h *backup.Header, k *backup.Keys, rest io.Reader) error {
				content, err := k.Read(rest, nil, nil)
				if err != nil {
					return err
				}
				shown = headerOf(h)
				shown.Keys, shown.Versions, err = k.Materials(content.State)
				shown.Verified = err == nil
				return err
			})
			if err != nil {
				return err
			}
			return a.Print(shown, shown.table)
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&online, "online", false, "have a running node of the cluster check it, without shares")
	return a.ClientFlags(cmd)
}

// sendBytes is how much of a file is sent in one message.
const sendBytes = 128 << 10

// verifyOnline has a node of the cluster check a backup.
func verifyOnline(ctx context.Context, a *cli.App, file string) error {
	var found *kmspb.CheckSnapshotResponse
	err := a.WithEach(ctx, "checking the backup", func(ctx context.Context, c *cli.Connection) (err error) {
		found, err = send(ctx, c, file)
		return err
	})
	if err != nil {
		return err
	}
	return a.Print(found, func(w io.Writer) {
		cli.Line(w, "backup", found.GetId())
		cli.Line(w, "cluster time", cli.When(found.GetClusterTime()))
		cli.Line(w, "raft index", fmt.Sprintf("%d; the cluster is at %d", found.GetIndex(), found.GetIndexNow()))
		included := "not included"
		if found.GetAuditIncluded() {
			included = "included"
		}
		cli.Line(w, "audit log", fmt.Sprintf("%d records, %s; the cluster has %d", found.GetAuditSize(), included, found.GetAuditSizeNow()))
		cli.Line(w, "keys", fmt.Sprintf("%d, with %d versions of key material", found.GetKeys(), found.GetKeyVersions()))
		shares := "those that unseal the cluster today"
		if !found.GetCurrentShares() {
			shares = "of an earlier share set: those that unseal the cluster today do not open it"
		}
		cli.Line(w, "shares", shares)
		cli.Line(w, "verified", "the whole file is authentic, and all key material can be opened")
	})
}

// send sends a backup to a node and returns what it found.
func send(ctx context.Context, c *cli.Connection, file string) (*kmspb.CheckSnapshotResponse, error) {
	f, err := openFile(ctx, file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := c.Operator().CheckSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, sendBytes)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := to.Send(&kmspb.CheckSnapshotRequest{Data: buf[:n]}); err != nil {
				break // the node's answer says why
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return to.CloseAndRecv()
}
