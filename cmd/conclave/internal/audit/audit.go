// Package audit is the command that reads, searches and verifies audit logs. It shows a record
// on one line of printable characters, whatever a caller wrote in it.
package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog/archive"
	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/depot"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Command returns the command.
func Command(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify the audit log",
		Long: `Audit reads, searches and verifies the audit log. Readers need the permission
conclave:ReadAudit in the account that the cluster was initialised with; its root
user has it.
Verifying needs no server and trusts none: the files and the public key are enough.`,
	}
	cmd.AddCommand(verifyCommand(a), tailCommand(a), searchCommand(a), exportCommand(a), verifyExportCommand(a), sinksCommand(a), keyCommand(a),
		auditReceiptCommand(a), auditVerifyReceiptCommand(a), auditConsistencyCommand(a), witnessCommand(a))
	return cmd
}

// MaxCheckpointFile is larger than any checkpoint.
const MaxCheckpointFile = 64 << 10

func verifyCommand(a *cli.App) *cobra.Command {
	var key, place string
	var earlier []string
	var open bool
	var by quorumFlags
	cmd := &cobra.Command{
		Use:   "verify [DIR] --key KEY",
		Short: "Verify an audit log, with only its files and public key",
		Long: `Verify checks every record, hash and tile of an audit log, and that the signed
checkpoint covers them. DIR is a node's audit directory, its data directory, or a
copy. KEY is the public key, as printed by "conclave audit public-key" or init, or a
file with it. If the file has the ML-DSA-44 key too, both signatures are verified.

Of records that a server has moved to an archive (conclave server --audit-archive),
DIR has the hashes, which are verified, and the report says how many they are. With
--archive, their records are read from there and verified too. Without DIR, an
archive is verified by itself: all records that are in it, hashes and checkpoints.

Keep checkpoints: with --earlier, a log that was rolled back or rewritten is
detected. The exit code is 1 if anything is wrong. With --witness, witnesses have to
have cosigned each of the earlier checkpoints, all that are named or as many as --quorum
says.

The records are encrypted, and only an unsealed node can check that each of them can
be decrypted: with --open, all records are also read from the server that --address
names, as the account's root user.`,
		Args: cobra.MaximumNArgs(1),
		Example: `  conclave audit verify /var/lib/conclave --key audit.pub
  conclave audit verify --archive s3://audit-archive/prod?region=eu-west-1 --key audit.pub
  conclave audit verify copy/audit --key audit.pub --earlier checkpoint-of-monday`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return cli.Usagef("--key is required: the audit log's public key, or a file with it")
			}
			if len(args) == 0 && (place == "" || open) {
				return cli.Usagef("DIR or --archive is required, and DIR with --open")
			}
			if _, err := a.Format(); err != nil {
				return err
			}
			text, err := KeyText(key)
			if err != nil {
				return err
			}
			quorum, err := by.quorum()
			if err != nil {
				return err
			}
			if len(quorum.Witnesses) > 0 && len(earlier) == 0 {
				return cli.Usagef("--witness needs --earlier: the checkpoint in a node's directory has no cosignatures")
			}
			dir, opts, err := logToVerify(cmd.Context(), args, place, text)
			if err != nil {
				return err
			}
			for _, name := range earlier {
				raw, err := a.ReadInput(name, MaxCheckpointFile)
				if err != nil {
					return err
				}
				if _, err := quorum.Check(raw); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				opts.Earlier = append(opts.Earlier, raw)
			}
			rep, err := verify.Dir(dir, text, opts)
			if err != nil {
				return err
			}
			if open {
				if err := tryRecords(cmd.Context(), a, rep); err != nil {
					return err
				}
			}
			if err := a.Print(verifyReport(rep), func(w io.Writer) { reportTable(w, rep) }); err != nil {
				return err
			}
			if !rep.OK() {
				return fmt.Errorf("audit log verification failed: %d problems", len(rep.Problems)+rep.Omitted)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key, or a file with it")
	cmd.Flags().StringVar(&place, "archive", "", "archive of the log: a directory, or s3://BUCKET/PREFIX?region=…&endpoint=…")
	cmd.Flags().BoolVar(&open, "open", false, "check that a server can decrypt all records too")
	by.add(cmd.Flags())
	cmd.Flags().StringArrayVar(&earlier, "earlier", nil, "file with an earlier checkpoint; may be repeated")
	a.ClientFlags(cmd)
	return cmd
}

// logToVerify returns the directory of a log, if one is given, and where else its files are.
func logToVerify(ctx context.Context, args []string, place, keys string) (dir string, opts verify.Options, err error) {
	if len(args) > 0 {
		dir = Dir(args[0])
	}
	if place == "" {
		return dir, opts, nil
	}
	store, err := depot.Parse(place)
	if err != nil {
		return "", opts, cli.Usagef("--archive: %v", err)
	}
	arch, err := archive.New(store, keys)
	if err != nil {
		return "", opts, err
	}
	files, err := arch.Files(ctx)
	if err != nil {
		return "", opts, fmt.Errorf("the archive: %w", err)
	}
	if dir != "" {
		opts.Removed = files
		return dir, opts, nil
	}
	if files.Segments() == 0 {
		return "", opts, fmt.Errorf("%s has no records of this log", store)
	}
	opts.FS, opts.Archive = files, true
	opts.Earlier, err = files.Checkpoints()
	return "", opts, err
}

// maxUnopenable bounds how many records that cannot be decrypted a report
// lists.
const maxUnopenable = 100

// tryRecords adds the records that a server cannot decrypt to a report.
func tryRecords(ctx context.Context, a *cli.App, rep *verify.Report) error {
	a.Remote.Timeout = 0 // as long as it takes
	return a.With(ctx, "reading the records", func(ctx context.Context, c *cli.Connection) error {
		n := 0
		return c.ReadAudit(ctx, 0, false, func(r *kmspb.ReadAuditResponse) error {
			if !r.GetUnopenable() || r.GetIndex() >= rep.Size {
				return nil
			}
			if n++; n > maxUnopenable {
				rep.Omitted++
				return nil
			}
			rep.Problems = append(rep.Problems, verify.Problem{File: "(the server)", Index: r.GetIndex(), What: "the record cannot be opened by an unsealed node"})
			return nil
		})
	})
}

// Dir finds the log in the data directory of a node or of a development
// server.
func Dir(dir string) string {
	if there, err := files.Exists(filepath.Join(dir, "segments")); err == nil && there {
		return dir
	}
	for _, data := range []string{dir, filepath.Join(dir, "node")} {
		audit := node.AuditDir(data)
		if there, err := files.Exists(audit); err == nil && there {
			return audit
		}
	}
	return dir
}

// KeyText returns a key that is given as text or in a file.
func KeyText(key string) (string, error) {
	raw, err := os.ReadFile(key)
	if err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	if strings.Count(key, "+") >= 2 { // NAME+HASH+KEY, which Verify checks
		return key, nil
	}
	return "", fmt.Errorf("public key: %w", err)
}

type problem struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Record uint64 `json:"record"`
	What   string `json:"what"`
}

type gap struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

type verification struct {
	OK       bool      `json:"ok"`
	Origin   string    `json:"origin"`
	Records  uint64    `json:"records"`
	Root     string    `json:"root"`
	Signed   uint64    `json:"signed"`
	Unsigned uint64    `json:"unsigned"`
	Unread   uint64    `json:"unread"`
	Place    string    `json:"archive,omitempty"`
	Torn     int64     `json:"torn_bytes"`
	Gaps     []gap     `json:"gaps"`
	Problems []problem `json:"problems"`
	Omitted  int       `json:"omitted_problems"`
}

func verifyReport(r *verify.Report) verification {
	out := verification{
		OK: r.OK(), Origin: r.Origin, Records: r.Size, Root: fmt.Sprintf("%x", r.Root), Signed: r.CheckpointSize,
		Unsigned: r.Unsigned, Unread: r.Unread, Place: r.Place, Torn: r.Torn, Gaps: []gap{}, Problems: []problem{}, Omitted: r.Omitted,
	}
	for _, g := range r.Gaps {
		out.Gaps = append(out.Gaps, gap(g))
	}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, problem{p.File, p.Offset, p.Index, p.What})
	}
	return out
}

func reportTable(w io.Writer, r *verify.Report) {
	verdict := "good"
	if !r.OK() {
		verdict = "NOT GOOD"
	}
	cli.Line(w, "verdict", verdict)
	cli.Line(w, "log", cli.OrDash(r.Origin))
	cli.Line(w, "records", r.Size)
	cli.Line(w, "root", fmt.Sprintf("%x", r.Root))
	cli.Line(w, "signed", fmt.Sprintf("%d records", r.CheckpointSize))
	if r.Unsigned > 0 {
		cli.Line(w, "not signed yet", fmt.Sprintf("%d records: whole and in order, vouched for by the next checkpoint", r.Unsigned))
	}
	if r.Unread > 0 {
		cli.Line(w, "not read", fmt.Sprintf("records 0 to %d: they are in %s, and only their hashes were verified; see --archive", r.Unread-1, cli.Visible(r.Place)))
	}
	if r.Torn > 0 {
		cli.Line(w, "unfinished", fmt.Sprintf("%d bytes at the end", r.Torn))
	}
	for _, g := range r.Gaps {
		cli.Line(w, "lacking", fmt.Sprintf("records %d to %d, being fetched from other nodes", g.From, g.To-1))
	}
	for _, p := range r.Problems {
		cli.Line(w, "problem", p)
	}
	if r.Omitted > 0 {
		cli.Line(w, "problem", fmt.Sprintf("and %d more", r.Omitted))
	}
}

// withoutEnd is With for calls that last until the user ends them.
func withoutEnd(ctx context.Context, a *cli.App, doing string, use func(context.Context, *cli.Connection) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	a.Remote.Timeout = 0
	err := a.With(ctx, doing, use)
	if ctx.Err() != nil {
		return nil // the user ended it
	}
	return err
}

func tailCommand(a *cli.App) *cobra.Command {
	var follow bool
	var n uint64
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the newest records, one line each",
		Long: `Tail prints the newest records, one line each: time, index in the log, event,
resources, outcome, caller and source. With -o json, a line is the whole record.`,
		Example: `  conclave audit tail
  conclave audit tail --lines 100 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withoutEnd(cmd.Context(), a, "reading the audit log", func(ctx context.Context, c *cli.Connection) error {
				// The end of the log is found only by reading it: keep the last
				// lines, in a ring.
				seen := uint64(0)
				next, last := uint64(0), make([]*kmspb.ReadAuditResponse, 0, n)
				if st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{}); err == nil && st.GetAudit().GetSize() > n {
					next = st.GetAudit().GetSize() - n // an operator is told the size, so that less has to be read
				}
				err := c.ReadAudit(ctx, next, false, func(r *kmspb.ReadAuditResponse) error {
					next = r.GetIndex() + 1
					if n == 0 {
						return nil
					}
					if uint64(len(last)) < n {
						last = append(last, r)
					} else {
						last[seen%n] = r
					}
					seen++
					return nil
				})
				if err != nil {
					return err
				}
				for i := range last {
					if err := printLine(a, last[(seen+uint64(i))%uint64(len(last))]); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				return c.ReadAudit(ctx, next, true, func(r *kmspb.ReadAuditResponse) error { return printLine(a, r) })
			})
		},
	}
	a.ClientFlags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new records as they are added")
	cmd.Flags().Uint64VarP(&n, "lines", "n", 10, "number of records, at most 10000")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if n > 10000 {
			return cli.Usagef("--lines: at most 10000; `conclave audit export` prints all")
		}
		return nil
	}
	return cmd
}

func printRecord(a *cli.App, r *kmspb.ReadAuditResponse) error {
	_, err := fmt.Fprintln(a.Stdout, cli.Visible(r.GetJson()))
	return err
}

// unopenable counts records that cannot be decrypted.
type unopenable struct {
	first uint64
	count int
}

func (u *unopenable) note(r *kmspb.ReadAuditResponse) {
	if !r.GetUnopenable() {
		return
	}
	if u.count == 0 {
		u.first = r.GetIndex()
	}
	u.count++
}

func (u *unopenable) err() error {
	if u.count == 0 {
		return nil
	}
	return fmt.Errorf("%d records cannot be decrypted, the first of which is record %d: no unsealed node of this cluster wrote them", u.count, u.first)
}

func keyCommand(a *cli.App) *cobra.Command {
	return a.ClientFlags(&cobra.Command{
		Use:   "public-key",
		Short: "Print the keys that verify the audit log; needs an operator's certificate",
		Long: `Public-key prints the keys that verify the audit log's checkpoints, one a line: of
Ed25519, and of ML-DSA-44, which is secure against quantum computers too. A sealed
node names only the first. Keep both in one file: verifying with it wants both
signatures. A checkpoint of a release before 0.2 has one signature, and is verified
with the first line alone.`,
		Example: `  conclave audit public-key > audit.pub`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "getting the audit log's key", func(ctx context.Context, c *cli.Connection) error {
				st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
				if err != nil {
					return err
				}
				key := st.GetAudit().GetVerifierKey()
				if key == "" {
					return errors.New("the node does not reveal the key: the cluster is not initialised, or this is not an operator's certificate (--cert, --key-file)")
				}
				if pq := st.GetAudit().GetMlDsaVerifierKey(); pq != "" {
					key += "\n" + pq
				} else {
					fmt.Fprintln(a.Stderr, "conclave: the node is sealed, or runs a release before 0.2: it names no ML-DSA-44 key")
				}
				_, err = fmt.Fprintln(a.Stdout, key)
				return err
			})
		},
	})
}
