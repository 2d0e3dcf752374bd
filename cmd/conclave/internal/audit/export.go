package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/internal/trailfiles"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// parseTime parses the time that a flag has; it returns the zero time for "".
func parseTime(text string) (t time.Time, err error) {
	if text == "" {
		return t, nil
	}
	if t, err = time.Parse(time.RFC3339, text); err != nil {
		return t, cli.Usagef("a time must have the form 2026-01-31T23:59:59Z: %q", text)
	}
	return t, nil
}

// errEnough ends reading.
var errEnough = errors.New("enough")

// exportRange says which records are exported.
type exportRange struct {
	from, to       uint64 // indexes; to is the first that is not exported
	since, until   string // times
	sinceT, untilT time.Time
}

func (r *exportRange) parse() error {
	var err error
	if r.sinceT, err = parseTime(r.since); err != nil {
		return err
	}
	if r.untilT, err = parseTime(r.until); err != nil {
		return err
	}
	if r.from > 0 && r.since != "" {
		return cli.Usagef("--from and --start-time exclude each other")
	}
	return nil
}

func exportCommand(a *cli.App) *cobra.Command {
	var r exportRange
	var key, bucket string
	cmd := &cobra.Command{
		Use:   "export [DIR --signing-key FILE]",
		Short: "Print all records, or write them as CloudTrail's files",
		Example: `  conclave audit export > audit.jsonl
  conclave audit export --from 10 --to 20 >> audit.jsonl
  conclave audit export cloudtrail --signing-key export-key.pem
  conclave audit export november --signing-key export-key.pem --start-time 2026-11-01T00:00:00Z --end-time 2026-12-01T00:00:00Z`,
		Long: `Export prints all records, one line of JSON each. For a record that cannot be
decrypted, the line says so, with its index; the records after it are still printed,
and the exit code is 1.

With a directory, export writes the records as AWS CloudTrail delivers them: log files
AWSLogs/ACCOUNT/CloudTrail/REGION/YYYY/MM/DD/….json.gz, and for each hour a digest
file, which is signed, has the hashes of the log files, and follows the digest before
it. Each digest also has a checkpoint of the log and the indexes of its records. When it
is run again, export goes on where it ended; it never changes a file that a digest
names. "conclave audit verify-export" verifies the directory.

The digests are signed with the RSA key in the file that --signing-key names. If there is
no such file, export makes a key and writes it there. Keep it where it is, out of the
directory: whoever has it can make digests. Its public key, with which others verify the
export, is written beside it, with the extension .pub.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.parse(); err != nil {
				return err
			}
			if len(args) == 0 {
				if key != "" {
					return cli.Usagef("--signing-key needs a directory")
				}
				return withoutEnd(cmd.Context(), a, "reading the audit log", func(ctx context.Context, c *cli.Connection) error {
					return exportLines(ctx, a, c, &r)
				})
			}
			if key == "" {
				return cli.Usagef("--signing-key is required: a file with an RSA key, or where to write a new one")
			}
			return exportFiles(cmd.Context(), a, args[0], key, bucket, &r)
		},
	}
	a.ClientFlags(cmd)
	f := cmd.Flags()
	f.Uint64Var(&r.from, "from", 0, "index of the first record")
	f.Uint64Var(&r.to, "to", math.MaxUint64, "index before which to stop (default the end)")
	f.Lookup("to").DefValue = "0" // so that it is not shown
	f.StringVar(&r.since, "start-time", "", "only records of this time (RFC 3339) or later")
	f.StringVar(&r.until, "end-time", "", "only records before this time (RFC 3339)")
	f.StringVar(&key, "signing-key", "", "PEM file with the RSA key that signs digests")
	f.StringVar(&bucket, "bucket", "conclave-audit", "name of the bucket that a new export's digests name")
	return cmd
}

// read calls each with the records from an index on that are in the range.
func (r *exportRange) read(ctx context.Context, c *cli.Connection, from uint64, each func(*kmspb.ReadAuditResponse) error) error {
	err := c.ReadAudit(ctx, from, false, func(rec *kmspb.ReadAuditResponse) error {
		if rec.GetIndex() >= r.to {
			return errEnough
		}
		if !r.untilT.IsZero() {
			at, err := trailfiles.Time([]byte(rec.GetJson()))
			if err != nil {
				return err
			}
			if !at.Before(r.untilT) {
				return errEnough
			}
		}
		return each(rec)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// start returns the index of the first record of the range, or math.MaxUint64 if there is none
// yet. The time of the log never goes back, so that it is the first record that a search for
// the time finds or, if that finds none, the first one among those that are not indexed.
func (r *exportRange) start(ctx context.Context, c *cli.Connection) (uint64, error) {
	if r.sinceT.IsZero() {
		return r.from, nil
	}
	in := &kmspb.SearchAuditRequest{From: r.sinceT.UnixNano(), OldestFirst: true, Limit: 1}
	for {
		out, err := c.Audit().Search(ctx, in)
		if err != nil {
			return 0, err
		}
		switch {
		case len(out.GetRecords()) > 0:
			return out.GetRecords()[0].GetIndex(), nil
		case out.GetPage() == "":
			return r.after(ctx, c, out.GetSearched())
		}
		in.Page = out.GetPage()
	}
}

// after returns the index of the first record from an index on that is not before the range;
// math.MaxUint64 if there is none.
func (r *exportRange) after(ctx context.Context, c *cli.Connection, from uint64) (uint64, error) {
	first := uint64(math.MaxUint64)
	err := c.ReadAudit(ctx, from, false, func(rec *kmspb.ReadAuditResponse) error {
		at, err := trailfiles.Time([]byte(rec.GetJson()))
		if err != nil || at.Before(r.sinceT) {
			return err
		}
		first = rec.GetIndex()
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return first, err
}

// exportLines prints records, one line each.
func exportLines(ctx context.Context, a *cli.App, c *cli.Connection, r *exportRange) error {
	from, err := r.start(ctx, c)
	if err != nil || from == math.MaxUint64 {
		return err
	}
	var bad unopenable
	err = r.read(ctx, c, from, func(rec *kmspb.ReadAuditResponse) error {
		bad.note(rec)
		return printRecord(a, rec)
	})
	if err != nil {
		return err
	}
	return bad.err()
}

// exported is what an export wrote.
type exported struct {
	Directory string `json:"directory"`
	Log       string `json:"log"`
	From      uint64 `json:"from"`
	To        uint64 `json:"to"`
	LogFiles  int    `json:"log_files"`
	Digests   int    `json:"digests"`
	Key       string `json:"key"`
}

// exportFiles writes records as files of CloudTrail.
func exportFiles(ctx context.Context, a *cli.App, dir, keyFile, bucket string, r *exportRange) error {
	key, made, err := trailfiles.Key(keyFile, dir)
	if err != nil {
		return err
	}
	public, err := trailfiles.PublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := files.WritePublic(keyFile+".pub", public); err != nil {
		return err
	}
	if made {
		a.Note("made the key %s, which signs the export; its public key is in %s", keyFile, keyFile+".pub")
	}
	a.Remote.Timeout = 0 // as long as it takes
	return a.With(ctx, "exporting the audit log", func(ctx context.Context, c *cli.Connection) (err error) {
		from, err := r.start(ctx, c)
		if err != nil {
			return err
		}
		if from == math.MaxUint64 {
			a.Note("there are no records from %s on; nothing was written", r.since)
			return nil
		}
		w, err := trailfiles.Open(trailfiles.Config{
			Dir: dir, Bucket: bucket, Key: key, Checkpoint: func(index uint64) (trailfiles.Checkpoint, error) { return checkpointOver(ctx, c, index) },
		}, from)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		return writeExport(ctx, a, c, w, r, from, exported{Directory: dir, Key: trailfiles.Fingerprint(&key.PublicKey)})
	})
}

// progressEvery is how often an export tells how far it is.
const progressEvery = 2 * time.Second

func writeExport(ctx context.Context, a *cli.App, c *cli.Connection, w *trailfiles.Writer, r *exportRange, from uint64, done exported) error {
	next, begun := w.Next()
	if begun && from != 0 && from != next && from != w.First() {
		return cli.Usagef("the export goes on with record %d, and cannot with %d", next, from)
	}
	done.From = next
	if begun { // that the log is the same is seen in the last record that was exported
		same, last := false, exportRange{to: next}
		err := last.read(ctx, c, next-1, func(rec *kmspb.ReadAuditResponse) error {
			same = true
			return w.Check([]byte(rec.GetJson()))
		})
		if err == nil && !same {
			err = fmt.Errorf("%s has an export of another log (%s): this log has no record %d", done.Directory, w.Log(), next-1)
		}
		if err != nil {
			return err
		}
	}
	var bad unopenable
	told := time.Now()
	err := r.read(ctx, c, next, func(rec *kmspb.ReadAuditResponse) error {
		bad.note(rec)
		if err := w.Add([]byte(rec.GetJson())); err != nil {
			return err
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			a.Note("%d records exported", rec.GetIndex()+1-done.From)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	done.To, _ = w.Next()
	done.Log, done.LogFiles, done.Digests = w.Log(), w.Files, w.Digests
	err = a.Print(done, func(out io.Writer) {
		cli.Line(out, "directory", done.Directory)
		cli.Line(out, "log", cli.OrDash(done.Log))
		if done.From == done.To {
			cli.Line(out, "records", "no new ones")
		} else {
			cli.Line(out, "records", fmt.Sprintf("%d to %d", done.From, done.To-1))
		}
		cli.Line(out, "log files", done.LogFiles)
		cli.Line(out, "digests", done.Digests)
		cli.Line(out, "key", done.Key)
	})
	return errors.Join(err, bad.err())
}

// checkpointOver returns a checkpoint whose tree has a record.
func checkpointOver(ctx context.Context, c *cli.Connection, index uint64) (trailfiles.Checkpoint, error) {
	res, err := c.Audit().GetReceipt(ctx, &kmspb.GetRecordReceiptRequest{Record: &kmspb.GetRecordReceiptRequest_Index{Index: index}})
	if err != nil {
		return trailfiles.Checkpoint{}, err
	}
	rec, err := receipt.Parse(res.GetReceipt())
	if err != nil {
		return trailfiles.Checkpoint{}, fmt.Errorf("the server's answer: %w", err)
	}
	cp, err := checkpoint.Decode(rec.Checkpoint)
	if err != nil {
		return trailfiles.Checkpoint{}, fmt.Errorf("the server's answer: %w", err)
	}
	return trailfiles.Checkpoint{Origin: cp.Origin, Size: cp.Size, Note: string(rec.Checkpoint)}, nil
}

// verifiedExport is what verify-export prints.
type verifiedExport struct {
	OK bool `json:"ok"`
	*trailfiles.Verified
}

func verifyExportCommand(a *cli.App) *cobra.Command {
	var public, key string
	cmd := &cobra.Command{
		Use:   "verify-export DIR --public-key FILE",
		Short: "Verify files of CloudTrail's form that export wrote",
		Long: `Verify-export verifies a directory of "conclave audit export DIR" without a server: that
every digest is signed by the public key in FILE and follows the one before it, that the
log files are those that the digests name, and that they have every record of a range of
the log once. It names the first file that is wrong; the exit code is 1 then.

With --key, which is as for "conclave audit verify", the log's checkpoints in the digests
are verified too. FILE may have several keys.`,
		Example: `  conclave audit verify-export cloudtrail --public-key export-key.pem.pub
  conclave audit verify-export cloudtrail --public-key export-key.pem.pub --key audit.pub`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if public == "" {
				return cli.Usagef("--public-key is required: a file with the public key of the export")
			}
			if _, err := a.Format(); err != nil {
				return err
			}
			raw, err := a.ReadInput(public, MaxCheckpointFile)
			if err != nil {
				return err
			}
			keys, err := trailfiles.ParsePublicKeys(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", public, err)
			}
			text := ""
			if key != "" {
				if text, err = KeyText(key); err != nil {
					return err
				}
			}
			if _, err := os.Stat(args[0]); err != nil {
				return err
			}
			v, err := trailfiles.Verify(args[0], keys, text)
			if err != nil {
				return fmt.Errorf("the export does not verify: %w", err)
			}
			return a.Print(verifiedExport{true, v}, func(w io.Writer) {
				cli.Line(w, "verdict", "good")
				cli.Line(w, "log", cli.OrDash(v.Log))
				cli.Line(w, "records", fmt.Sprintf("%d, beginning with %d", v.Records, v.First))
				cli.Line(w, "log files", v.LogFiles)
				cli.Line(w, "digests", v.Digests)
				checked := "not verified: there is no --key"
				if v.Checkpoints {
					checked = "verified"
				}
				cli.Line(w, "checkpoints", checked)
			})
		},
	}
	cmd.Flags().StringVar(&public, "public-key", "", "PEM file with the public key of the export")
	cmd.Flags().StringVar(&key, "key", "", "public key of the log, or a file with it")
	return a.OutputFlag(cmd)
}
