package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify the audit log",
		Long: `Audit reads and verifies the audit log. Reading needs the root user's access key.
Verifying needs neither a server nor its trust: the files and the public key are
enough.`,
	}
	cmd.AddCommand(a.auditVerifyCommand(), a.auditTailCommand(), a.auditExportCommand(), a.auditKeyCommand())
	return cmd
}

// maxCheckpointFile is more than any checkpoint has.
const maxCheckpointFile = 64 << 10

func (a *app) auditVerifyCommand() *cobra.Command {
	var key string
	var earlier []string
	cmd := &cobra.Command{
		Use:   "verify DIR --key KEY",
		Short: "Check an audit log with its files and public key alone",
		Long: `Verify checks every record, hash and tile of an audit log, and that the signed
checkpoint covers them. DIR is a node's audit directory, its data directory, or a
copy. KEY is the public key, as "conclave audit public-key" or init printed it, or
a file with it.

Keep checkpoints: with --earlier, a log that was rolled back or rewritten is told
from an honest one. It exits with 1 when anything is wrong.`,
		Args: cobra.ExactArgs(1),
		Example: `  conclave audit verify /var/lib/conclave --key audit.pub
  conclave audit verify copy/audit --key audit.pub --earlier checkpoint-of-monday`,
		RunE: func(_ *cobra.Command, args []string) error {
			if key == "" {
				return usagef("--key is needed: the audit log's public key, or a file with it")
			}
			if _, err := a.format(); err != nil {
				return err
			}
			text, err := keyText(key)
			if err != nil {
				return err
			}
			var opts auditlog.VerifyOptions
			for _, name := range earlier {
				raw, err := a.readInput(name, maxCheckpointFile)
				if err != nil {
					return err
				}
				opts.Earlier = append(opts.Earlier, raw)
			}
			rep, err := auditlog.Verify(auditDir(args[0]), text, opts)
			if err != nil {
				return err
			}
			if err := a.print(verifyReport(rep), func(w io.Writer) { reportTable(w, rep) }); err != nil {
				return err
			}
			if !rep.OK() {
				return fmt.Errorf("the audit log is not what it should be: %d problems", len(rep.Problems)+rep.Omitted)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key, or a file with it")
	cmd.Flags().StringArrayVar(&earlier, "earlier", nil, "file with a checkpoint kept from before; may be repeated")
	return a.outputFlag(cmd)
}

// auditDir finds the log in a node's data directory, and in that of a development
// server.
func auditDir(dir string) string {
	if there, err := exists(filepath.Join(dir, "segments")); err == nil && there {
		return dir
	}
	for _, sub := range []string{"audit", filepath.Join("node", "audit")} {
		if there, err := exists(filepath.Join(dir, sub)); err == nil && there {
			return filepath.Join(dir, sub)
		}
	}
	return dir
}

// keyText is a key given as such, or in a file.
func keyText(key string) (string, error) {
	raw, err := os.ReadFile(key)
	if err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	if strings.Count(key, "+") >= 2 { // NAME+HASH+KEY; Verify says what is wrong with it
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

type report struct {
	OK       bool      `json:"ok"`
	Origin   string    `json:"origin"`
	Records  uint64    `json:"records"`
	Root     string    `json:"root"`
	Signed   uint64    `json:"signed"`
	Unsigned uint64    `json:"unsigned"`
	Torn     int64     `json:"torn_bytes"`
	Gaps     []gap     `json:"gaps"`
	Problems []problem `json:"problems"`
	Omitted  int       `json:"omitted_problems"`
}

func verifyReport(r *auditlog.Report) report {
	out := report{
		OK: r.OK(), Origin: r.Origin, Records: r.Size, Root: fmt.Sprintf("%x", r.Root), Signed: r.CheckpointSize,
		Unsigned: r.Unsigned, Torn: r.Torn, Gaps: []gap{}, Problems: []problem{}, Omitted: r.Omitted,
	}
	for _, g := range r.Gaps {
		out.Gaps = append(out.Gaps, gap(g))
	}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, problem{p.File, p.Offset, p.Index, p.What})
	}
	return out
}

func reportTable(w io.Writer, r *auditlog.Report) {
	verdict := "good"
	if !r.OK() {
		verdict = "NOT GOOD"
	}
	line(w, "verdict", verdict)
	line(w, "log", orDash(r.Origin))
	line(w, "records", r.Size)
	line(w, "root", fmt.Sprintf("%x", r.Root))
	line(w, "signed", fmt.Sprintf("%d records", r.CheckpointSize))
	if r.Unsigned > 0 {
		line(w, "not signed yet", fmt.Sprintf("%d records: whole and in order, vouched for by the next checkpoint", r.Unsigned))
	}
	if r.Torn > 0 {
		line(w, "unfinished", fmt.Sprintf("%d bytes at the end", r.Torn))
	}
	for _, g := range r.Gaps {
		line(w, "lacking", fmt.Sprintf("records %d to %d, being fetched from other nodes", g.From, g.To-1))
	}
	for _, p := range r.Problems {
		line(w, "problem", p)
	}
	if r.Omitted > 0 {
		line(w, "problem", fmt.Sprintf("and %d more", r.Omitted))
	}
}

// readAudit hands over records from an index on until the log ends, or for ever.
func readAudit(ctx context.Context, c *connection, from uint64, follow bool, each func(*kmspb.ReadAuditResponse) error) error {
	stream, err := c.Audit().Read(ctx, &kmspb.ReadAuditRequest{From: from, Follow: follow})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
	}
}

// withoutEnd is with, but for calls that last until the user ends them.
func (a *app) withoutEnd(ctx context.Context, doing string, use func(context.Context, *connection) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	a.remote.timeout = 0
	err := a.with(ctx, doing, use)
	if ctx.Err() != nil {
		return nil // that is how it is ended
	}
	return err
}

func (a *app) auditTailCommand() *cobra.Command {
	var follow bool
	var n uint64
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the newest records, one line of JSON each",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withoutEnd(cmd.Context(), "reading the audit log", func(ctx context.Context, c *connection) error {
				// Only a reading finds the end: keep its last lines, in a ring.
				seen := uint64(0)
				next, last := uint64(0), make([]string, 0, n)
				if st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{}); err == nil && st.GetAudit().GetSize() > n {
					next = st.GetAudit().GetSize() - n // an operator is told the size, and spares the reading
				}
				err := readAudit(ctx, c, next, false, func(r *kmspb.ReadAuditResponse) error {
					next = r.GetIndex() + 1
					if n == 0 {
						return nil
					}
					if uint64(len(last)) < n {
						last = append(last, r.GetJson())
					} else {
						last[seen%n] = r.GetJson()
					}
					seen++
					return nil
				})
				if err != nil {
					return err
				}
				for i := range last {
					if _, err := fmt.Fprintln(a.stdout, last[(seen+uint64(i))%uint64(len(last))]); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				return readAudit(ctx, c, next, true, a.printRecord)
			})
		},
	}
	a.clientFlags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new records as they come")
	cmd.Flags().Uint64VarP(&n, "lines", "n", 10, "how many, at most 10000")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if n > 10000 {
			return usagef("--lines: at most 10000; `conclave audit export` prints all")
		}
		return nil
	}
	return cmd
}

func (a *app) printRecord(r *kmspb.ReadAuditResponse) error {
	_, err := fmt.Fprintln(a.stdout, r.GetJson())
	return err
}

func (a *app) auditExportCommand() *cobra.Command {
	var from, to uint64
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Print all records, one line of JSON each",
		Example: `  conclave audit export --from 120000 >> audit.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			errEnough := errors.New("enough")
			return a.withoutEnd(cmd.Context(), "reading the audit log", func(ctx context.Context, c *connection) error {
				err := readAudit(ctx, c, from, false, func(r *kmspb.ReadAuditResponse) error {
					if r.GetIndex() >= to {
						return errEnough
					}
					return a.printRecord(r)
				})
				if errors.Is(err, errEnough) {
					return nil
				}
				return err
			})
		},
	}
	a.clientFlags(cmd)
	cmd.Flags().Uint64Var(&from, "from", 0, "index of the first record")
	cmd.Flags().Uint64Var(&to, "to", math.MaxUint64, "index to stop before (default the end)")
	cmd.Flags().Lookup("to").DefValue = "0" // not shown
	return cmd
}

func (a *app) auditKeyCommand() *cobra.Command {
	return a.clientFlags(&cobra.Command{
		Use:   "public-key",
		Short: "Print the key that verifies the audit log; needs an operator's certificate",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "asking for the audit log's key", func(ctx context.Context, c *connection) error {
				st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
				if err != nil {
					return err
				}
				key := st.GetAudit().GetVerifierKey()
				if key == "" {
					return errors.New("the node does not tell: it is not initialised, or this is not an operator's certificate (--cert, --key-file)")
				}
				_, err = fmt.Fprintln(a.stdout, key)
				return err
			})
		},
	})
}
