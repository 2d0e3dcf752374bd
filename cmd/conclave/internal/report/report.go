// Package report writes the compliance report of an account: what its keys, policies,
// principals, custodians and audit log look like against named checks of AWS Security Hub, CIS,
// AWS Control Tower, PCI DSS, HIPAA and the GDPR. It reads everything through the API, as
// somebody who may read it, and never changes anything.
//
// A check that could not be made is reported as such, and never as one that passed.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Severity says how much a finding matters.
type Severity uint8

// The severities.
const (
	Info Severity = iota
	Low
	Medium
	High
	Critical
)

var severities = []string{"info", "low", "medium", "high", "critical"}

// String returns the severity in lower case.
func (s Severity) String() string { return severities[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// parseSeverity parses a severity's name.
func parseSeverity(name string) (Severity, error) {
	if i := slices.Index(severities, name); i >= 0 {
		return Severity(i), nil
	}
	return 0, fmt.Errorf("%q is not one of %s", name, strings.Join(severities, ", "))
}

// A Status says how a check ended.
type Status string

// The statuses.
const (
	Passed Status = "passed"
	Failed Status = "failed"
	// NotChecked is a check that was not asked for, such as that of an audit log's files
	// when none are given.
	NotChecked Status = "not checked"
	// Unreadable is a check without findings for which something could not be read.
	Unreadable Status = "unreadable"
)

// maxFindings bounds the findings that a check lists. More are counted.
const maxFindings = 1000

// A Finding is one thing that a check objects to.
type Finding struct {
	// Resource is the ARN or the name of what the finding is about.
	Resource string `json:"resource"`
	Message  string `json:"message"`
	// Evidence is the id of the evidence that shows it.
	Evidence string `json:"evidence"`
	// Statement is the position, from 0, of the policy's statement that shows it, and Sid is
	// its Sid.
	Statement *int   `json:"statement,omitempty"`
	Sid       string `json:"sid,omitempty"`
	// Record is the index of the record of the audit log that shows it.
	Record *uint64 `json:"audit_record,omitempty"`

	evidence *Evidence
}

// Evidence is what a finding refers to: the record of a key, a policy or a part of the audit
// log.
type Evidence struct {
	// ID is a number in the report, as what it is of may be any text.
	ID    string `json:"id"`
	Title string `json:"title"`
	// Command shows it as it is now.
	Command string `json:"command"`
	// Text is what was seen when the report was made.
	Text string `json:"text"`

	of string // what it shows; the same for the same
}

// ShownBy is the title of the evidence.
func (f *Finding) ShownBy() string { return f.evidence.Title }

// A Result is a check and its findings.
type Result struct {
	ID       string   `json:"id"`
	Title    string   `json:"title"`
	Severity Severity `json:"severity"`
	Sources  []string `json:"sources"`
	Status   Status   `json:"status"`
	// Reason says why the check was not made or could not be made in full.
	Reason string `json:"reason,omitempty"`
	// Looked is how many things were looked at, Unread how many could not be, and Omitted how
	// many findings are not listed, as there are too many.
	Looked   int       `json:"looked_at"`
	Unread   int       `json:"could_not_be_read"`
	Omitted  int       `json:"omitted_findings"`
	Findings []Finding `json:"findings"`
}

// count returns the number of findings, also of those that are not listed.
func (r *Result) count() int { return len(r.Findings) + r.Omitted }

// Report is the whole report.
type Report struct {
	Generated time.Time `json:"generated"`
	Version   string    `json:"version"`
	Account   string    `json:"account"`
	Region    string    `json:"region,omitempty"`
	Caller    string    `json:"caller"`
	Server    string    `json:"server"`
	Options   Options   `json:"options"`

	Results   []*Result   `json:"checks"`
	Inventory []*Stock    `json:"inventory"`
	Custody   *Custody    `json:"custodians,omitempty"`
	Audit     *AuditState `json:"audit,omitempty"`
	Erasures  []Erasure   `json:"erasures"`
	Evidence  []*Evidence `json:"evidence"`

	shown map[string]*Evidence // by what it is of
}

// Options are the limits that checks compare with.
type Options struct {
	// UnusedDays is after how many days without use a key or a credential counts as unused.
	UnusedDays int `json:"unused_days"`
	// KeyDays is the cryptoperiod: how many days a key's material may be used.
	KeyDays int `json:"key_days"`
	// AccessKeyDays is how old access keys may become.
	AccessKeyDays int `json:"access_key_days"`
	// RetentionDays is for how long the audit log has to be kept.
	RetentionDays int `json:"retention_days"`
	// Origins are the origins that keys may have; any if empty.
	Origins []string `json:"origins"`

	now time.Time
}

// olderThan reports whether a time is more than so many days ago.
func (o *Options) olderThan(t time.Time, days int) bool {
	return o.now.Sub(t) > time.Duration(days)*24*time.Hour
}

// need is something that a check needs of a key or the account.
type need uint16

const (
	needPolicy need = 1 << iota
	needRotation
	needUse
	needDescription
	needIdentities
	needAccessKeys
	needSummary
	needShares
	needFiles
	needRecords
)

// A check is a row of the table of checks. Key is for each key, and account is for the rest;
// one of them is set.
type check struct {
	id, title string
	sources   []string
	severity  Severity
	needs     need
	key       func(o *Options, k *key) []Finding
	account   func(o *Options, a *account) []Finding
}

// checks are all checks, in the order of the report.
func checks() []check { return slices.Concat(keyChecks, identityChecks, auditChecks, custodyChecks) }

// run makes all checks on what it is given.
type run struct {
	report *Report
	checks []check
}

func newRun(r *Report) *run {
	x := &run{report: r, checks: checks()}
	r.shown = make(map[string]*Evidence)
	r.Erasures = []Erasure{}
	for _, c := range x.checks {
		r.Results = append(r.Results, &Result{ID: c.id, Title: c.title, Severity: c.severity, Sources: c.sources, Findings: []Finding{}})
	}
	return x
}

// key makes the checks of keys on one of them.
func (x *run) key(k *key) {
	for i := range x.checks {
		if c := &x.checks[i]; c.key != nil {
			res := x.report.Results[i]
			if (c.needs|needDescription)&k.lacks != 0 {
				res.Unread++
				continue
			}
			res.Looked++
			x.add(res, c.key(&x.report.Options, k))
		}
	}
	x.report.stock(k)
}

// account makes the checks of the account, which come last.
func (x *run) account(a *account) {
	for i := range x.checks {
		c, res := &x.checks[i], x.report.Results[i]
		if c.account != nil {
			for _, missing := range a.lacks {
				if c.needs&missing.what != 0 {
					res.Status, res.Reason = missing.status, missing.why
				}
			}
			if res.Status == "" {
				res.Looked++
				x.add(res, c.account(&x.report.Options, a))
			}
		}
		switch {
		case res.count() > 0:
			res.Status = Failed
		case res.Status != "":
		case res.Unread > 0:
			res.Status = Unreadable
		default:
			res.Status = Passed
		}
		if res.Unread > 0 {
			res.Reason = fmt.Sprintf("%d keys could not be read: %s", res.Unread, cmp.Or(a.whyKeys, "the caller may not"))
		}
	}
}

// add adds findings to a result, with their evidence.
func (x *run) add(res *Result, found []Finding) {
	for _, f := range found {
		if len(res.Findings) >= maxFindings {
			res.Omitted++
			continue
		}
		if e := x.report.shown[f.evidence.of]; e != nil {
			f.evidence = e
		} else {
			e := f.evidence
			x.report.Evidence = append(x.report.Evidence, e)
			x.report.shown[e.of] = e
			e.ID = fmt.Sprintf("evidence-%d", len(x.report.Evidence))
		}
		f.Evidence = f.evidence.ID
		res.Findings = append(res.Findings, f)
	}
}

// worst returns the checks of at least a severity that failed or could not be made. A check
// that nobody asked for is not among them.
func (r *Report) worst(least Severity) (failed, unreadable int) {
	for _, res := range r.Results {
		switch {
		case res.Severity < least:
		case res.Status == Failed:
			failed++
		case res.Status == Unreadable:
			unreadable++
		}
	}
	return failed, unreadable
}

// indented returns JSON laid out for people.
func indented(v any) string {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// command returns a command line, with arguments that a shell takes as they are.
func command(words ...string) string {
	for i, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@+=", r)
		}) {
			words[i] = cli.Quote(cli.Printable(w))
		}
	}
	return "conclave " + strings.Join(words, " ")
}
