package keyengine

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// AuditQuery says which records of the audit log are searched for.
type AuditQuery = auditindex.Query

// AuditCondition is a condition of an AuditQuery.
type AuditCondition = auditindex.Condition

// AuditField is a field that an AuditCondition compares.
type AuditField = auditindex.Field

// AuditFields returns the fields of records that can be searched for.
func AuditFields() []AuditField { return auditindex.Fields() }

const (
	// MaxAuditPage is the largest number of records of an AuditPage.
	MaxAuditPage = 1000

	// indexPatience is how long a search waits for the newest records to be indexed.
	indexPatience = 5 * time.Second
	maxCondition  = 1024 // bytes of a condition's value
	maxPageToken  = 64 << 10

	pageContext = "conclave audit page v1\x00"
)

// searches are the searches of an engine's audit log.
type searches struct{ engine *Engine }

// AuditLine is a record that a search found.
type AuditLine struct {
	Index      uint64
	JSON       string
	Unopenable bool // it cannot be decrypted, and the line says so
}

// AuditPage is a part of what a search found.
type AuditPage struct {
	Records []AuditLine
	// Next is the token for the next page, or empty. A page without records may have it.
	Next string
	// Searched is the number of records that the search is about: those of the log before that
	// index. Size is how many there were, which is more if some were not indexed yet.
	Searched, Size uint64
}

// page is what the token of a page contains. It has the query, so that no token is used with
// another one.
type page struct {
	Query    AuditQuery
	Position auditindex.Position
	Size     uint64
}

// SearchAudit returns at most limit records of the audit log that a query asks for or, if a
// page token is given, those that follow; the query is then that of the first page. The caller
// needs what ReadAudit needs. A search is recorded once, with its query. Errors:
// ErrValidation, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (s searches) SearchAudit(ctx context.Context, c *iam.Caller, q AuditQuery, token string, limit int) (*AuditPage, error) {
	e := s.engine
	if e.index == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "This node has no index of the audit log.")
	}
	if limit < 1 || limit > MaxAuditPage {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The limit must be from 1 to %d.", MaxAuditPage)
	}
	var p *page
	var err error
	if token == "" {
		p, err = e.beginSearch(ctx, c, q)
	} else {
		p, err = e.resumeSearch(ctx, c, token)
	}
	if err != nil {
		return nil, err
	}
	if e.index.Wait(ctx, p.Position.Bound, indexPatience) < p.Position.Bound {
		return nil, request.ErrIndexBehind
	}
	r, err := e.index.Search(ctx, &p.Query, p.Position, limit)
	if err != nil {
		return nil, request.AuditError(err)
	}
	out := &AuditPage{Searched: p.Position.Bound, Size: p.Size}
	for i := range r.Items {
		out.Records = append(out.Records, auditLine(&r.Items[i]))
	}
	if r.Next != nil {
		p.Position = *r.Next
		if out.Next, err = e.pageToken(c, p); err != nil {
			return nil, err
		}
	}
	if e.vault.Sealed() {
		return nil, vault.ErrSealed // though these records were decrypted before
	}
	return out, nil
}

// auditLine renders a record.
func auditLine(it *auditfeed.Item) AuditLine {
	line, err := it.Line()
	if it.Err != nil || err != nil {
		return AuditLine{Index: it.Entry.Index, JSON: string(auditlog.RenderUnopenable(it.Entry)), Unopenable: true}
	}
	return AuditLine{Index: it.Entry.Index, JSON: string(line)}
}

// beginSearch authorises and records a search.
func (s searches) beginSearch(ctx context.Context, c *iam.Caller, q AuditQuery) (*page, error) {
	e := s.engine
	if err := checkQuery(&q); err != nil {
		return nil, err
	}
	ask := record.Event{ReadOnly: true}
	for name, t := range map[string]time.Time{"startTime": q.From, "endTime": q.To} {
		if !t.IsZero() {
			ask.Parameters = append(ask.Parameters, auditfield.Text(name, t.UTC().Format(time.RFC3339Nano)))
		}
	}
	where := make(map[string]string)
	for _, c := range q.Where {
		where[string(c.Field)] = c.Value
	}
	if len(where) > 0 {
		ask.Parameters = append(ask.Parameters, auditfield.TextMap("where", where))
	}
	// What is recorded before the search, and not the search itself, is what it is about.
	size := e.feed.Size()
	err := e.requested(ctx, c, "SearchAudit", ask, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ReadAudit")
	})
	if err != nil {
		return nil, err
	}
	// Another node may have recorded what the caller did before; this one has it when it has
	// applied the search.
	if err := e.replica.Barrier(ctx); err != nil {
		return nil, err
	}
	size = max(size, e.feed.Size())
	return &page{q, auditindex.Start(&q, e.index.Wait(ctx, size, indexPatience)), size}, nil
}

func checkQuery(q *AuditQuery) error {
	if len(q.Where) > auditindex.MaxConditions {
		return kmsapi.Errorf(kmsapi.ErrValidation, "A search has at most %d conditions.", auditindex.MaxConditions)
	}
	seen := make(map[AuditField]bool)
	for _, c := range q.Where {
		switch {
		case !auditindex.Known(c.Field):
			return kmsapi.Errorf(kmsapi.ErrValidation, "Records of the audit log cannot be searched by %s.", strconv.Quote(string(c.Field[:min(len(c.Field), 64)])))
		case c.Value == "" || len(c.Value) > maxCondition:
			return kmsapi.Errorf(kmsapi.ErrValidation, "The value of %s must have from 1 to %d bytes.", c.Field, maxCondition)
		case seen[c.Field]:
			return kmsapi.Errorf(kmsapi.ErrValidation, "A search has at most one value of %s.", c.Field)
		}
		seen[c.Field] = true
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The start of the time must be before its end.")
	}
	return nil
}

// resumeSearch authorises the next page of a search, which is not recorded again, unless the
// caller may no longer search: a refusal is recorded.
func (s searches) resumeSearch(ctx context.Context, c *iam.Caller, token string) (*page, error) {
	e := s.engine
	o, err := e.vault.Current()
	if err != nil {
		return nil, err
	}
	ev := &request.Evaluation{Ctx: ctx, Services: e.services, State: e.replica.State(), Caller: c}
	err = request.AdmitOn(ev, o)
	if err == nil {
		err = mustAdminister(ev, "conclave:ReadAudit")
	}
	if err != nil {
		refuse := func(*request.Evaluation, *record.Event) error { return err }
		return nil, errors.Join(e.requested(ctx, c, "SearchAudit", record.Event{ReadOnly: true, Parameters: []*auditpb.Field{auditfield.Flag("nextPage", true)}}, refuse))
	}
	bad := kmsapi.Errorf(kmsapi.ErrValidation, "The page is not one of this caller's searches in this cluster.")
	plain, ok, err := request.OpenToken(o, pageContextOf(c), token, maxPageToken)
	if err != nil {
		return nil, err
	}
	p := new(page)
	if !ok || json.Unmarshal(plain, p) != nil {
		return nil, bad
	}
	return p, nil
}

// pageContextOf binds page tokens to the credential that searched: another caller's search would
// not be recorded.
func pageContextOf(c *iam.Caller) []byte {
	return []byte(pageContext + c.Identity.Account().String() + "\x00" + c.Identity.Credential())
}

func (s searches) pageToken(c *iam.Caller, p *page) (string, error) {
	e := s.engine
	o, err := e.vault.Current()
	if err != nil {
		return "", err
	}
	plain, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	return request.SealToken(o, pageContextOf(c), plain)
}
