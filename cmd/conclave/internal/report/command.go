package report

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/cmd/conclave/internal/audit"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/iampb"
)

// request is what the user asks for.
type request struct {
	options  Options
	html     string
	cbom     string
	failOn   string
	records  bool
	auditDir string
	auditKey string
	earlier  []string
}

// Command returns the command.
func Command(a *cli.App) *cobra.Command {
	q := new(request)
	cmd := &cobra.Command{
		Use: "report", Short: "Report how keys, policies, principals, custodians and the audit log comply",
		Long: `Report reads all keys of a Region, their policies, the principals of the account, who has
shares and, if asked, the audit log, and checks them against named requirements of AWS
Security Hub, CIS, AWS Control Tower, PCI DSS, HIPAA and the GDPR. docs/report.md has the
table of the checks, and the policy of somebody who may make a report.

The findings are printed; --html writes a page that can be printed, --cbom the inventory
of keys by algorithm as CycloneDX, and -o json everything. A check that could not be made
is reported as unreadable, never as passed.

With --records, all records of the audit log are read too, so that findings name the record
that shows them, and deleted keys are listed. With --audit-dir and --audit-key, the files of
an audit log are verified, as by "conclave audit verify".`,
		Example: `  conclave report --html report.html --cbom keys.cdx.json
  conclave report --records --fail-on critical
  conclave report --audit-dir /var/lib/conclave --audit-key audit.pub -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return q.run(cmd.Context(), a) },
	}
	f := cmd.Flags()
	f.StringVar(&q.html, "html", "", "write the report as HTML to this file")
	f.StringVar(&q.cbom, "cbom", "", "write the inventory of keys as CycloneDX 1.6 in JSON to this file")
	f.StringVar(&q.failOn, "fail-on", "", "exit code 1 if a check of this severity or a worse one failed or could not be read: "+strings.Join(severities, ", "))
	f.BoolVar(&q.records, "records", false, "read all records of the audit log too")
	f.StringVar(&q.auditDir, "audit-dir", "", "verify the audit log in this directory of a node, or a copy")
	f.StringVar(&q.auditKey, "audit-key", "", "the audit log's public key, or a file with it")
	f.StringArrayVar(&q.earlier, "earlier", nil, "file with an earlier checkpoint of that log; may be repeated")
	f.IntVar(&q.options.UnusedDays, "unused-days", 90, "days without use after which keys and credentials count as unused")
	f.IntVar(&q.options.KeyDays, "key-days", 365, "the cryptoperiod of keys in days")
	f.IntVar(&q.options.AccessKeyDays, "access-key-days", 90, "days after which an access key should be replaced")
	f.IntVar(&q.options.RetentionDays, "retention-days", 365, "days that the audit log has to go back")
	f.StringSliceVar(&q.options.Origins, "origins", nil, "origins that keys may have, such as AWS_KMS,EXTERNAL (default any)")
	_ = cmd.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions(severities, cobra.ShellCompDirectiveNoFileComp))
	return a.ClientFlags(cmd)
}

// check refuses what cannot be asked for.
func (q *request) check() error {
	if q.failOn != "" {
		if _, err := parseSeverity(q.failOn); err != nil {
			return cli.Usagef("--fail-on: %v", err)
		}
	}
	if (q.auditDir == "") != (q.auditKey == "") {
		return cli.Usagef("--audit-dir and --audit-key must be given together")
	}
	if len(q.earlier) > 0 && q.auditDir == "" {
		return cli.Usagef("--earlier needs --audit-dir")
	}
	for _, f := range []struct {
		name string
		days int
	}{{"unused-days", q.options.UnusedDays}, {"key-days", q.options.KeyDays}, {"access-key-days", q.options.AccessKeyDays}, {"retention-days", q.options.RetentionDays}} {
		if f.days < 1 || f.days > 36500 {
			return cli.Usagef("--%s %d is not 1 to 36500", f.name, f.days)
		}
	}
	return nil
}

// verify verifies the files of an audit log.
func (q *request) verify(a *cli.App) (*verify.Report, error) {
	key, err := audit.KeyText(q.auditKey)
	if err != nil {
		return nil, err
	}
	var opts verify.Options
	for _, name := range q.earlier {
		raw, err := a.ReadInput(name, audit.MaxCheckpointFile)
		if err != nil {
			return nil, err
		}
		opts.Earlier = append(opts.Earlier, raw)
	}
	return verify.Dir(audit.Dir(q.auditDir), key, opts)
}

func (q *request) run(ctx context.Context, a *cli.App) error {
	if err := q.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	var r *Report
	err := a.WithEach(ctx, "reading what the report is about", func(ctx context.Context, c *cli.Connection) (err error) {
		if q.cbom == "" {
			r, err = q.collect(ctx, a, c, nil)
			return err
		}
		return files.WriteFrom(q.cbom, func(w io.Writer) error {
			r, err = q.collect(ctx, a, c, w)
			return err
		})
	})
	if err != nil {
		return err
	}
	if q.html != "" {
		if err := files.WriteFrom(q.html, r.writeHTML); err != nil {
			return err
		}
	}
	if err := a.Print(r, r.table); err != nil {
		return err
	}
	return q.verdict(r)
}

// verdict returns an error if the report is worse than the user accepts.
func (q *request) verdict(r *Report) error {
	if q.failOn == "" {
		return nil
	}
	least, err := parseSeverity(q.failOn)
	if err != nil {
		return err
	}
	failed, unreadable := r.worst(least)
	if failed+unreadable == 0 {
		return nil
	}
	return fmt.Errorf("of the checks with severity %s or a worse one, %d failed and %d could not be made", least, failed, unreadable)
}

// collect reads everything and makes all checks. The inventory is written to bom unless it is nil.
func (q *request) collect(ctx context.Context, a *cli.App, c *cli.Connection, bom io.Writer) (*Report, error) {
	r := &Report{Generated: time.Now().UTC(), Version: cli.Version, Server: c.Address, Options: q.options, Inventory: []*Stock{}, Evidence: []*Evidence{}}
	r.Options.now = r.Generated
	r.Options.Origins = append([]string{}, q.options.Origins...)
	co := &collector{app: a, conn: c, run: newRun(r), acc: new(account)}
	err := co.timed(ctx, func(ctx context.Context) error {
		who, err := c.STS().GetCallerIdentity(ctx, &iampb.GetCallerIdentityRequest{})
		r.Caller, r.Account = who.GetArn(), who.GetAccount()
		return err
	})
	if err != nil {
		return nil, err
	}
	co.acc.number, co.acc.whyKeys = r.Account, r.Caller+" may not read them"
	if q.auditDir == "" {
		co.acc.lacks = append(co.acc.lacks, lack{needFiles, NotChecked, "no files were given (--audit-dir, --audit-key)"})
	} else {
		if co.acc.files, err = q.verify(a); err != nil {
			return nil, err
		}
		r.audit().Verified = verificationOf(co.acc.files)
	}
	var log *records
	if !q.records {
		co.acc.lacks = append(co.acc.lacks, lack{needRecords, NotChecked, "the records were not asked for (--records)"})
	} else if log, err = co.records(ctx); err != nil {
		return nil, err
	}
	for _, read := range []func(context.Context) error{co.identities, co.summary, co.shares} {
		if err := read(ctx); err != nil {
			return nil, err
		}
	}
	if bom != nil {
		co.cbom = newCBOM(bom, r)
	}
	if err := co.keys(ctx, log); err != nil {
		return nil, err
	}
	co.run.account(co.acc)
	slices.SortFunc(r.Inventory, func(a, b *Stock) int {
		return cmp.Or(strings.Compare(a.Spec, b.Spec), strings.Compare(a.Usage, b.Usage), strings.Compare(a.Origin, b.Origin))
	})
	if co.cbom != nil {
		return r, co.cbom.close()
	}
	return r, nil
}

// table writes the report for a terminal.
func (r *Report) table(w io.Writer) {
	cli.Line(w, "CHECK", "SEVERITY", "RESULT", "WHAT", "FINDING")
	for _, res := range r.Results {
		note := res.Reason
		if res.Status == Passed {
			note = fmt.Sprintf("%d looked at", res.Looked)
		}
		if len(res.Findings) == 0 {
			cli.Line(w, res.ID, res.Severity, res.Status, "-", cli.OrDash(note))
		}
		for _, f := range res.Findings {
			message := f.Message
			if f.Statement != nil {
				message += fmt.Sprintf(" (statement %d%s)", *f.Statement, sidText(f.Sid))
			}
			if f.Record != nil {
				message += fmt.Sprintf(" (audit record %d)", *f.Record)
			}
			cli.Line(w, res.ID, res.Severity, res.Status, f.Resource, message)
		}
		if res.Omitted > 0 {
			cli.Line(w, res.ID, res.Severity, res.Status, "-", fmt.Sprintf("and %d more", res.Omitted))
		}
	}
}

func sidText(sid string) string {
	if sid == "" {
		return ""
	}
	return ", Sid " + cli.Quote(sid)
}
