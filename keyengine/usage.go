package keyengine

import (
	"context"
	"errors"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/metering"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// What Usage returns.
type (
	// UsageRow counts requests.
	UsageRow = metering.Row
	// KeyUsage says when a key existed.
	KeyUsage = metering.Life
)

// UsageQuery asks for a page of counts.
type UsageQuery struct {
	// Hours and Days ask for counts by hour and by day; otherwise they are by month.
	Hours, Days bool
	// From and To bound the beginnings of the periods; To does not belong to them.
	From, To time.Time
	Account  string // empty for all that the caller may see
	Limit    int    // at most 1000; 0 is 1000
	After    []byte // UsagePage.Next of the page before
}

// UsagePage is a page of counts, of which one list is empty.
type UsagePage struct {
	Rows []UsageRow
	Keys []KeyUsage
	Next []byte // nil at the end
	// Counted is how many of the Records records of the audit log this node has counted, and
	// Unreadable how many of them cannot be decrypted.
	Counted, Records, Unreadable uint64
}

// maxUsagePage is the largest page.
const maxUsagePage = 1000

// maxCursor is longer than the end of any page.
const maxCursor = 64

// metered answers what was counted.
type metered struct{ e *Engine }

// Usage returns who made how many requests. The caller needs conclave:ReadUsage, and sees all
// accounts if it belongs to the one that the cluster was initialised with, and otherwise its own.
// Errors: ErrValidation, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (m metered) Usage(ctx context.Context, c *iam.Caller, q UsageQuery) (*UsagePage, error) {
	if err := m.ask(ctx, c, "GetUsage", &q); err != nil {
		return nil, err
	}
	period := metering.Month
	switch {
	case q.Hours:
		period = metering.Hour
	case q.Days:
		period = metering.Day
	}
	rows, next, at, err := m.e.meter.Rows(period, q.From, q.To, q.Account, q.After, q.Limit)
	return m.page(&UsagePage{Rows: rows, Next: next}, at, err)
}

// UsedKeys returns the keys that existed within a time, as Usage does.
func (m metered) UsedKeys(ctx context.Context, c *iam.Caller, q UsageQuery) (*UsagePage, error) {
	if err := m.ask(ctx, c, "ListKeyUsage", &q); err != nil {
		return nil, err
	}
	keys, next, at, err := m.e.meter.Lives(q.From, q.To, q.Account, q.After, q.Limit)
	return m.page(&UsagePage{Keys: keys, Next: next}, at, err)
}

func (m metered) page(p *UsagePage, at metering.Progress, err error) (*UsagePage, error) {
	if errors.Is(err, vault.ErrSealed) {
		return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "This node has not begun to count requests. Try again later, or ask another node.")
	}
	if err != nil {
		return nil, err
	}
	p.Counted, p.Unreadable, p.Records = at.Counted, at.Unread, m.e.feed.Size()
	return p, nil
}

// ask checks a query, and that the caller may make it.
func (m metered) ask(ctx context.Context, c *iam.Caller, name string, q *UsageQuery) error {
	if q.Limit == 0 {
		q.Limit = maxUsagePage
	}
	if q.Limit < 1 || q.Limit > maxUsagePage || len(q.After) > maxCursor || len(q.Account) > 12 || q.From.Year() < 1970 || q.From.Year() > 9999 || q.To.Year() < 1970 || q.To.Year() > 9999 {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The limit is not 1 to %d, or another part of the request is invalid.", maxUsagePage)
	}
	if m.e.meter == nil {
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not count requests.")
	}
	ask := record.Event{ReadOnly: true, Parameters: []*auditpb.Field{
		auditfield.Text("from", q.From.UTC().Format(time.RFC3339)), auditfield.Text("to", q.To.UTC().Format(time.RFC3339)), auditfield.Text("account", q.Account),
	}}
	return m.e.requested(ctx, c, name, ask, func(ev *request.Evaluation, _ *record.Event) error {
		own := ev.Who().Account
		if own != fsm.AccountOf(ev.State) {
			if q.Account != "" && q.Account != own.String() {
				return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: conclave:ReadUsage: it may only read the usage of its own account", ev.Principal())
			}
			q.Account = own.String()
		}
		return ev.AuthoriseAccount("conclave:ReadUsage", "*")
	})
}
