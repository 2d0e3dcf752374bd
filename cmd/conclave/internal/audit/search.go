package audit

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// searchCommand returns the command that searches the log.
func searchCommand(a *cli.App) *cobra.Command {
	var since time.Duration
	var from, to, page string
	var limit int
	in := new(kmspb.SearchAuditRequest)
	values := make(map[string]*string)
	cmd := &cobra.Command{
		Use:   "search",
		Short: "Find records by what is in them",
		Long: `Search prints a table of the records that meet all conditions, the newest first. Values
are compared exactly; the times are those of the cluster, by which the log is ordered.
With -o json, a line is the whole record. With -o csv, the table is comma-separated values.

If there are more records than --limit, search says how to go on. It needs an index of
the log, which each unsealed node makes in the background, and says so if the newest
records are not indexed yet.`,
		Example: `  conclave audit search --since 24h --principal alice --outcome AccessDeniedException
  conclave audit search --key alias/payments --operation Decrypt --limit 20
  conclave audit search --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z -o csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.Formats = []string{"csv"}
			form, err := a.Format()
			if err != nil {
				return err
			}
			if since != 0 && from != "" {
				return cli.Usagef("--since and --from exclude each other")
			}
			if since < 0 || limit < 1 || limit > 100_000 {
				return cli.Usagef("--since must be positive, and --limit from 1 to 100000")
			}
			if since > 0 {
				in.From = time.Now().Add(-since).UnixNano()
			}
			for _, bound := range []struct {
				text string
				at   *int64
			}{{from, &in.From}, {to, &in.To}} {
				t, err := parseTime(bound.text)
				if err != nil {
					return err
				}
				if !t.IsZero() {
					*bound.at = t.UnixNano()
				}
			}
			for field, v := range values {
				if *v != "" {
					in.Where = append(in.Where, &kmspb.SearchAuditCondition{Field: field, Value: *v})
				}
			}
			in.Page = page
			return a.With(cmd.Context(), "searching the audit log", func(ctx context.Context, c *cli.Connection) error {
				return searchAudit(ctx, a, c, in, limit, form)
			})
		},
	}
	a.ClientFlags(cmd)
	f := cmd.Flags()
	f.DurationVar(&since, "since", 0, "only records of this long ago or later, such as 24h")
	f.StringVar(&from, "from", "", "only records of this time (RFC 3339) or later")
	f.StringVar(&to, "to", "", "only records before this time (RFC 3339)")
	for field, about := range map[string]string{
		"principal":    "caller: ARN, user name, unique id, access key id, certificate, or role of a session",
		"key":          "key or other resource: ARN, id, or alias as the caller wrote it",
		"operation":    "operation, such as Decrypt",
		"outcome":      "Success, or an error code such as AccessDeniedException",
		"source":       "address that the request came from",
		"request-id":   "request id",
		"event-id":     "event id",
		"event-source": "service, such as kms.amazonaws.com",
		"account":      "account number",
		"read-only":    "true or false",
	} {
		values[field] = f.String(field, "", about)
	}
	f.BoolVar(&in.OldestFirst, "oldest-first", false, "print the oldest records first")
	f.IntVar(&limit, "limit", 100, "number of records")
	f.StringVar(&page, "page", "", "go on with a search, whose other flags do not count")
	return cmd
}

// searchAudit prints the records that a search finds, by pages, until there are limit of them.
func searchAudit(ctx context.Context, a *cli.App, c *cli.Connection, in *kmspb.SearchAuditRequest, limit int, form string) error {
	rows := newRows(a.Stdout, form == "csv")
	for {
		in.Limit = int32(min(limit, 1000))
		out, err := c.Audit().Search(ctx, in)
		if err != nil {
			return err
		}
		if n := out.GetSize() - out.GetSearched(); n > 0 && in.GetPage() == "" {
			fmt.Fprintf(a.Stderr, "the newest %d records are not indexed yet and were not searched\n", n)
		}
		for _, r := range out.GetRecords() {
			if form == "csv" || form == "table" {
				err = rows.add(r)
			} else {
				err = printLine(a, r)
			}
			if err != nil {
				return err
			}
		}
		if err := rows.flush(); err != nil {
			return err
		}
		limit -= len(out.GetRecords())
		in.Page = out.GetPage()
		if in.GetPage() == "" {
			return nil
		}
		if limit <= 0 {
			fmt.Fprintf(a.Stderr, "there may be more records: go on with --page %s\n", in.GetPage())
			return nil
		}
	}
}

// rows prints records as a table: for people or, as comma-separated values, for programs.
type rows struct {
	begun bool
	csv   *csv.Writer
	tab   *tabwriter.Writer // if csv is nil
}

func newRows(w io.Writer, asCSV bool) *rows {
	if asCSV {
		r := &rows{csv: csv.NewWriter(w)}
		// A program gets the names of the columns even if there are no records.
		_ = r.begin()
		return r
	}
	return &rows{tab: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (r *rows) begin() error {
	r.begun = true
	names := []string{"time", "index", "operation", "key", "outcome", "principal", "source", "request_id"}
	if r.csv == nil {
		for i, name := range names {
			names[i] = strings.ToUpper(strings.ReplaceAll(name, "_", " "))
		}
	}
	return r.write(names)
}

func (r *rows) write(cells []string) error {
	if r.csv != nil {
		return r.csv.Write(cells)
	}
	_, err := fmt.Fprintln(r.tab, strings.Join(cells, "\t"))
	return err
}

// add adds a record.
func (r *rows) add(rec *kmspb.ReadAuditResponse) error {
	if !r.begun {
		if err := r.begin(); err != nil {
			return err
		}
	}
	cells := row(rec)
	if r.csv == nil {
		cells[3] = resourceName(cells[3]) // what the column is wide enough for
		for i := range cells {
			cells[i] = cli.OrDash(cells[i])
		}
	}
	return r.write(cells)
}

// flush prints what was added.
func (r *rows) flush() error {
	if r.csv == nil {
		return r.tab.Flush()
	}
	r.csv.Flush()
	return r.csv.Error()
}

// row returns a record as a row, in which nothing can end the line or act on a terminal.
func row(r *kmspb.ReadAuditResponse) []string {
	var rec auditRecord
	_ = json.Unmarshal([]byte(r.GetJson()), &rec) // what is missing stays empty
	key, outcome := "", rec.ErrorCode
	if len(rec.Resources) > 0 {
		key = rec.Resources[0].ARN
	}
	if outcome == "" {
		outcome = "Success"
	}
	by := rec.UserIdentity.ARN
	if by == "" {
		by = rec.UserIdentity.PrincipalID
	}
	cells := []string{rec.EventTime, strconv.FormatUint(r.GetIndex(), 10), rec.EventName, key, outcome, by, rec.SourceIP, rec.RequestID}
	for i, cell := range cells {
		cells[i] = cli.Printable(cell)
	}
	return cells
}
