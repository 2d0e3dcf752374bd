// Package usage has the commands that show who made how many requests, and what AWS KMS would
// have charged for them.
package usage

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// columns are what rows can be added up by, in the order of the output.
var columns = []struct {
	name  string
	value func(*kmspb.UsageRow) string
}{
	{"time", func(r *kmspb.UsageRow) string { return cli.When(r.GetStart()) }},
	{"account", (*kmspb.UsageRow).GetAccount},
	{"principal", (*kmspb.UsageRow).GetPrincipal},
	{"key", (*kmspb.UsageRow).GetKey},
	{"operation", (*kmspb.UsageRow).GetOperation},
	{"kind", (*kmspb.UsageRow).GetKind},
}

func columnNames() (names []string) {
	for _, c := range columns {
		names = append(names, c.name)
	}
	return names
}

var periods = map[string]kmspb.UsagePeriod{
	"hour": kmspb.UsagePeriod_USAGE_PERIOD_HOUR, "day": kmspb.UsagePeriod_USAGE_PERIOD_DAY, "month": kmspb.UsagePeriod_USAGE_PERIOD_MONTH,
}

// Command returns the command.
func Command(a *cli.App) *cobra.Command {
	var from, to, per, account string
	var by []string
	cmd := &cobra.Command{
		Use: "usage", Short: "Show who made how many requests with which key",
		Long: `Usage adds up the requests that principals made, by what --by names: time, account,
principal, key, operation and kind, which is what AWS KMS would charge a request as. The
sessions of a role count as the role. Requests that were refused or failed are ERRORS.

A node counts the records of the audit log, and says on standard error if it has not counted
all of them yet. Counts by hour are kept for 35 days, by day for 400 days, and by month for
good. The caller needs conclave:ReadUsage, and sees its own account or, in the account that
the cluster was initialised with, all. With -o csv, the table is comma-separated values.`,
		Example: `  conclave usage
  conclave usage --by key,operation --from 2026-11-01 --to 2026-12-01
  conclave usage --by time,principal --per hour -o csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.Formats = []string{"csv"}
			form, err := a.Format()
			if err != nil {
				return err
			}
			period, ok := periods[per]
			if !ok {
				return cli.Usagef("--per %q is not one of hour, day, month", per)
			}
			for _, name := range by {
				if !slices.Contains(columnNames(), name) {
					return cli.Usagef("--by %q is not one of %s", name, strings.Join(columnNames(), ", "))
				}
			}
			now := time.Now().UTC()
			begin, err := moment("--from", from, time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC))
			if err != nil {
				return err
			}
			end, err := moment("--to", to, now)
			if err != nil {
				return err
			}
			return a.WithEach(cmd.Context(), "reading the usage", func(ctx context.Context, c *cli.Connection) error {
				s := newSums(by)
				err := rows(ctx, a, c, &kmspb.GetUsageRequest{Period: period, From: timestamppb.New(begin), To: timestamppb.New(end), Account: account}, s.add)
				if err != nil {
					return err
				}
				if form == "csv" {
					return s.csv(a.Stdout)
				}
				return a.Print(s.list(), s.table)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "first time, as 2026-11-01 or 2026-11-01T10:00:00Z (default the beginning of the month)")
	f.StringVar(&to, "to", "", "time before which to end (default now)")
	f.StringVar(&per, "per", "day", "hour, day or month: the periods that are read, which begin at --from or later")
	f.StringSliceVar(&by, "by", []string{"principal", "key", "operation"}, "what to add up by: "+strings.Join(columnNames(), ", "))
	f.StringVar(&account, "account", "", "only principals of this account")
	_ = cmd.RegisterFlagCompletionFunc("per", cobra.FixedCompletions([]string{"hour", "day", "month"}, cobra.ShellCompDirectiveNoFileComp))
	a.ClientFlags(cmd)
	cmd.AddCommand(billCommand(a))
	return cmd
}

// moment parses a time that the user gives.
func moment(flag, s string, otherwise time.Time) (time.Time, error) {
	if s == "" {
		return otherwise, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, cli.Usagef("%s %q is not a time such as 2026-11-01 or 2026-11-01T10:00:00Z", flag, s)
}

// rows calls each with all rows, page by page.
func rows(ctx context.Context, a *cli.App, c *cli.Connection, req *kmspb.GetUsageRequest, each func(*kmspb.UsageRow)) error {
	for first := true; first || len(req.After) > 0; first = false {
		var res *kmspb.GetUsageResponse
		err := a.Timed(ctx, func(ctx context.Context) (err error) {
			res, err = c.Usage().Get(ctx, req)
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range res.GetRows() {
			each(r)
		}
		if req.After = res.GetNext(); len(req.After) == 0 {
			behind(a, res.GetProgress())
		}
	}
	return nil
}

// behind tells the user if counts are not complete.
func behind(a *cli.App, p *kmspb.UsageProgress) {
	// Each question is a record too, and records come while the node counts.
	if n := int64(p.GetRecords()) - int64(p.GetCounted()); n > 1000 {
		a.Note("the node has not counted the last %d of the %d records of the audit log yet", n, p.GetRecords())
	}
	if p.GetUnreadable() > 0 {
		a.Note("%d records of the audit log cannot be decrypted, and are not counted", p.GetUnreadable())
	}
}

// sum is one line of the output.
type sum struct {
	By       map[string]string `json:"by"`
	Requests uint64            `json:"requests"`
	Errors   uint64            `json:"errors"`
	cells    []string
}

// sums adds rows up.
type sums struct {
	by  []string // in the order of columns
	all map[string]*sum
}

func newSums(by []string) *sums {
	s := &sums{all: make(map[string]*sum)}
	for _, c := range columns {
		if slices.Contains(by, c.name) {
			s.by = append(s.by, c.name)
		}
	}
	return s
}

func (s *sums) add(r *kmspb.UsageRow) {
	var cells []string
	for _, c := range columns {
		if slices.Contains(s.by, c.name) {
			cells = append(cells, c.value(r))
		}
	}
	id := strings.Join(cells, "\x00")
	if s.all[id] == nil {
		x := &sum{By: make(map[string]string), cells: cells}
		for i, name := range s.by {
			x.By[name] = cells[i]
		}
		s.all[id] = x
	}
	s.all[id].Requests += r.GetRequests()
	s.all[id].Errors += r.GetErrors()
}

// list returns the sums: by time if they have one, and otherwise the largest first.
func (s *sums) list() []*sum {
	list := slices.SortedFunc(maps.Values(s.all), func(a, b *sum) int {
		if slices.Contains(s.by, "time") {
			if n := cmp.Compare(a.cells[0], b.cells[0]); n != 0 {
				return n
			}
		}
		return cmp.Or(cmp.Compare(b.Requests+b.Errors, a.Requests+a.Errors), slices.Compare(a.cells, b.cells))
	})
	if list == nil {
		list = []*sum{}
	}
	return list
}

func (s *sums) header() []string {
	var names []string
	for _, n := range append(slices.Clone(s.by), "requests", "errors") {
		names = append(names, strings.ToUpper(n))
	}
	return names
}

func (x *sum) line() []string {
	return append(slices.Clone(x.cells), strconv.FormatUint(x.Requests, 10), strconv.FormatUint(x.Errors, 10))
}

func (s *sums) table(w io.Writer) {
	line := func(cells []string) {
		out := make([]any, len(cells))
		for i, c := range cells {
			out[i] = cli.OrDash(c)
		}
		cli.Line(w, out...)
	}
	line(s.header())
	for _, x := range s.list() {
		line(x.line())
	}
}

// csv writes comma-separated values. A cell that a spreadsheet would take for a formula begins with
// an apostrophe.
func (s *sums) csv(w io.Writer) error {
	out := csv.NewWriter(w)
	write := func(cells []string) error {
		safe := make([]string, len(cells))
		for i, c := range cells {
			safe[i] = cli.Printable(c)
			if c != "" && strings.ContainsRune("=+-@", rune(c[0])) {
				safe[i] = "'" + safe[i]
			}
		}
		return out.Write(safe)
	}
	header := s.header()
	for i, h := range header {
		header[i] = strings.ToLower(h)
	}
	if err := write(header); err != nil {
		return err
	}
	for _, x := range s.list() {
		if err := write(x.line()); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// maxPrices is larger than any table of prices.
const maxPrices = 64 << 10

func billCommand(a *cli.App) *cobra.Command {
	var month, file, account string
	cmd := &cobra.Command{
		Use: "bill --month MONTH", Short: "Say what AWS KMS would have charged for a month",
		Long: `Bill says what AWS KMS would have charged an account for a month: for its keys, prorated
by the hour and without those whose deletion is scheduled, for their rotations, and for the
requests of its principals by kind, beyond those that are free. Of the current month, it is
the bill so far.

The prices are those of one Region of AWS, as far as they were known when this release was made;
the bill has the date. --prices names a file with others; docs/usage.md has its form.`,
		Example: `  conclave usage bill --month 2026-11
  conclave usage bill --month 2026-11 --prices prices.json -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			begin, err := time.Parse("2006-01", month)
			if err != nil {
				return cli.Usagef("--month %q is not a month such as 2026-11", month)
			}
			raw := defaultPrices
			if file != "" {
				if raw, err = a.ReadInput(file, maxPrices); err != nil {
					return err
				}
			}
			prices, err := readPrices(raw)
			if err != nil {
				return err
			}
			return a.WithEach(cmd.Context(), "reading the usage", func(ctx context.Context, c *cli.Connection) error {
				b, err := makeBill(ctx, a, c, newMeter(begin, time.Now().UTC(), prices), account)
				if err != nil {
					return err
				}
				return a.Print(b, b.table)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&month, "month", "", "the month, such as 2026-11")
	f.StringVar(&file, "prices", "", "file with prices")
	f.StringVar(&account, "account", "", "the account (default the caller's)")
	return cmd
}

// makeBill reads what the bill is for.
func makeBill(ctx context.Context, a *cli.App, c *cli.Connection, m *meter, account string) (*Bill, error) {
	if account == "" {
		err := a.Timed(ctx, func(ctx context.Context) error {
			who, err := c.STS().GetCallerIdentity(ctx, &iampb.GetCallerIdentityRequest{})
			account = who.GetAccount()
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if m.from.After(time.Now()) {
		return nil, errors.New("the month has not begun")
	}
	from, to := timestamppb.New(m.from), timestamppb.New(m.to)
	req := &kmspb.ListKeyUsageRequest{From: from, To: to, Account: account}
	unreadable := uint64(0)
	for first := true; first || len(req.After) > 0; first = false {
		var res *kmspb.ListKeyUsageResponse
		err := a.Timed(ctx, func(ctx context.Context) (err error) {
			res, err = c.Usage().Keys(ctx, req)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, k := range res.GetKeys() {
			m.key(k)
		}
		req.After, unreadable = res.GetNext(), res.GetProgress().GetUnreadable()
	}
	err := rows(ctx, a, c, &kmspb.GetUsageRequest{Period: kmspb.UsagePeriod_USAGE_PERIOD_MONTH, From: from, To: to, Account: account}, m.row)
	if err != nil {
		return nil, err
	}
	b, err := m.bill()
	if err != nil {
		return nil, err
	}
	b.Account, b.Unreadable = account, unreadable
	return b, nil
}

func (b *Bill) table(w io.Writer) {
	cli.Line(w, "WHAT", "QUANTITY", "UNIT", "PRICE", "AMOUNT")
	for _, l := range b.Lines {
		cli.Line(w, l.What, fmt.Sprintf("%.4f", l.Quantity), l.Unit, fmt.Sprintf("%.2f", l.Price), fmt.Sprintf("%.2f", l.Amount))
	}
	cli.Line(w, "total until "+b.Until, "-", b.Coin+", prices of "+b.Known, "-", fmt.Sprintf("%.2f", b.Total))
}
