package trailops

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
)

const (
	// maxResults is the largest number of events of an answer, and the number if the request
	// has none.
	maxResults = 50
	// period is how far back a lookup goes.
	period = 90 * 24 * time.Hour
	// maxValue bounds the value of an attribute, and maxToken a token: both in bytes.
	maxValue = 2000
	maxToken = 1024
	// maxAnswer bounds the records of an answer: it ends with the one that exceeds this many
	// bytes.
	maxAnswer = 1 << 20

	// patience is how long a lookup waits for the newest events to be indexed. Then it goes
	// without them if they are no older than delay, within which AWS delivers events.
	patience = time.Second
	delay    = 15 * time.Minute

	tokenContext = "conclave lookup token v1\x00"
)

// attributes are the keys of attributes, with the fields of the index.
var attributes = map[string]auditindex.Field{
	"EventId":      auditindex.EventID,
	"EventName":    auditindex.Operation,
	"ReadOnly":     auditindex.ReadOnly,
	"Username":     auditindex.Username,
	"ResourceType": auditindex.ResourceType,
	"ResourceName": auditindex.Resource,
	"EventSource":  auditindex.EventSource,
	"AccessKeyId":  auditindex.AccessKey,
}

// lookup is a lookup of events, and where it goes on.
type lookup struct {
	query auditindex.Query
	limit int
	// token has what tokens are bound to: the caller and what it asked for.
	token []byte
	// pos is nil for the first page.
	pos *auditindex.Position
}

// lookupEvents finds events of the caller's account. The search is made after the record of the
// request is committed, and is about the records before that one.
func lookupEvents(ev *request.Evaluation, in *trailapi.LookupEventsInput) (*trailapi.LookupEventsOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	l, err := newLookup(ev, in)
	if err != nil {
		return nil, err
	}
	if ev.Index == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "This node has no index of the audit log.")
	}
	none := in.EventCategory != nil // there are events of the management category only
	ev.Later = func(*fsm.State) (any, error) {
		if none {
			return &trailapi.LookupEventsOutput{Events: []trailapi.Event{}}, nil
		}
		out, err := l.run(ev)
		if err != nil {
			return nil, err
		}
		return out, nil
	}
	return nil, nil
}

// newLookup checks a request. CloudTrail has an error for each member.
func newLookup(ev *request.Evaluation, in *trailapi.LookupEventsInput) (*lookup, error) {
	l := &lookup{limit: maxResults}
	l.query.Where = []auditindex.Condition{{Field: auditindex.Recipient, Value: request.AccountOf(ev).String()}}
	if err := l.attribute(in.LookupAttributes); err != nil {
		return nil, err
	}
	if err := l.times(in, ev.Now()); err != nil {
		return nil, err
	}
	if c := in.EventCategory; c != nil && *c != "insight" {
		return nil, kmsapi.Errorf(trailapi.ErrInvalidEventCategory, "The event category must be insight, or absent.")
	}
	if n := in.MaxResults; n != nil {
		if *n < 1 || *n > maxResults {
			return nil, kmsapi.Errorf(trailapi.ErrInvalidMaxResults, "MaxResults must be from 1 to %d.", maxResults)
		}
		l.limit = int(*n)
	}
	l.bind(ev, in)
	if in.NextToken == nil {
		return l, nil
	}
	return l, l.resume(ev, *in.NextToken)
}

// attribute takes the condition of a request, of which there is at most one.
func (l *lookup) attribute(list []trailapi.LookupAttribute) error {
	if len(list) == 0 {
		return nil
	}
	if len(list) > 1 {
		return kmsapi.Errorf(trailapi.ErrInvalidLookupAttributes, "A request has at most one lookup attribute.")
	}
	key, value := *list[0].AttributeKey, *list[0].AttributeValue
	field, ok := attributes[key]
	switch {
	case !ok:
		return kmsapi.Errorf(trailapi.ErrInvalidLookupAttributes, "Events cannot be looked up by %s.", strconv.QuoteToASCII(key[:min(len(key), 64)]))
	case value == "" || len(value) > maxValue:
		return kmsapi.Errorf(trailapi.ErrInvalidLookupAttributes, "The value of %s must have from 1 to %d bytes.", key, maxValue)
	case field == auditindex.ReadOnly && value != "true" && value != "false":
		return kmsapi.Errorf(trailapi.ErrInvalidLookupAttributes, "The value of ReadOnly must be true or false.")
	}
	l.query.Where = append(l.query.Where, auditindex.Condition{Field: field, Value: value})
	return nil
}

// times takes the bounds of a request, both of which are inclusive. Events have whole seconds.
func (l *lookup) times(in *trailapi.LookupEventsInput, now time.Time) error {
	if in.StartTime != nil && in.EndTime != nil && in.StartTime.After(*in.EndTime) {
		return kmsapi.Errorf(trailapi.ErrInvalidTimeRange, "The start time must not be after the end time.")
	}
	oldest := now.Add(-period)
	l.query.From = oldest
	for _, t := range []*time.Time{in.StartTime, in.EndTime} {
		// The index compares nanoseconds since 1970.
		if t != nil && (t.Unix() < 0 || t.Year() > 2200) {
			return kmsapi.Errorf(trailapi.ErrInvalidTimeRange, "The time is out of range.")
		}
	}
	if in.StartTime != nil && in.StartTime.After(oldest) {
		from := in.StartTime.Truncate(time.Second)
		if from.Before(*in.StartTime) {
			from = from.Add(time.Second)
		}
		l.query.From = from
	}
	if in.EndTime != nil {
		l.query.To = in.EndTime.Truncate(time.Second).Add(time.Second)
	}
	return nil
}

// bind sets what tokens are bound to: a token is good for the principal that it was given to,
// and for the same request. MaxResults may differ.
func (l *lookup) bind(ev *request.Evaluation, in *trailapi.LookupEventsInput) {
	b := []byte(tokenContext)
	add := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	add(request.AccountOf(ev).String())
	add(ev.Principal().String())
	for _, t := range []*time.Time{in.StartTime, in.EndTime} {
		if t == nil {
			add("")
		} else {
			add(strconv.FormatInt(t.UnixMilli(), 10))
		}
	}
	for _, c := range l.query.Where {
		add(string(c.Field))
		add(c.Value)
	}
	l.token = b
}

// tokenSize is the size of what a token contains: where the lookup goes on, and its start, which
// moves if the request has none.
const tokenSize = 3 * 8

// resume continues a lookup. A token is encrypted, because it has places of the log of all
// accounts.
func (l *lookup) resume(ev *request.Evaluation, token string) error {
	bad := kmsapi.Errorf(trailapi.ErrInvalidNextToken, "The token is not one that the same request returned to this caller.")
	o, err := ev.Vault.Current()
	if err != nil {
		return err
	}
	plain, ok, err := request.OpenToken(o, l.token, token, maxToken)
	if err != nil {
		return err
	}
	if !ok || len(plain) != tokenSize {
		return bad
	}
	l.pos = &auditindex.Position{Bound: binary.BigEndian.Uint64(plain), Next: binary.BigEndian.Uint64(plain[8:])}
	l.query.From = time.Unix(0, int64(binary.BigEndian.Uint64(plain[16:])))
	return nil
}

func (l *lookup) nextToken(ev *request.Evaluation, pos auditindex.Position) (*string, error) {
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	plain := make([]byte, 0, tokenSize)
	for _, v := range []uint64{pos.Bound, pos.Next, uint64(l.query.From.UnixNano())} {
		plain = binary.BigEndian.AppendUint64(plain, v)
	}
	token, err := request.SealToken(o, l.token, plain)
	if err != nil {
		return nil, err
	}
	return &token, nil
}

// begin returns where a lookup begins: with the record before that of the request, or with the
// newest one that is indexed.
func (l *lookup) begin(ev *request.Evaluation) (auditindex.Position, error) {
	if ev.Caller.Record == nil { // an answer that was lost and repeated, before feature level 2
		return auditindex.Position{}, auditindex.ErrBehind
	}
	end := *ev.Caller.Record
	indexed := ev.Index.Wait(ev.Ctx, end, patience)
	if indexed < end {
		left, err := ev.Index.TimeOf(indexed)
		if err != nil {
			return auditindex.Position{}, err
		}
		if ev.Now().Sub(left) > delay {
			return auditindex.Position{}, auditindex.ErrBehind
		}
	}
	return auditindex.Start(&l.query, indexed), nil
}

// run searches, and returns a page.
func (l *lookup) run(ev *request.Evaluation) (*trailapi.LookupEventsOutput, error) {
	pos := l.pos
	if pos == nil {
		first, err := l.begin(ev)
		if err != nil {
			return nil, request.AuditError(err)
		}
		pos = &first
	} else if ev.Index.Wait(ev.Ctx, pos.Bound, patience) < pos.Bound {
		return nil, request.ErrIndexBehind // the token is of another node, which had indexed more
	}
	found, err := ev.Index.Search(ev.Ctx, &l.query, *pos, l.limit)
	if err != nil {
		return nil, request.AuditError(err)
	}
	out := &trailapi.LookupEventsOutput{Events: make([]trailapi.Event, 0, len(found.Items))}
	next, size := found.Next, 0
	for i := range found.Items {
		it := &found.Items[i]
		line, err := it.Line()
		if err != nil {
			return nil, err
		}
		out.Events = append(out.Events, event(it, string(line)))
		if size += len(line); size > maxAnswer && i+1 < len(found.Items) {
			next = &auditindex.Position{Bound: pos.Bound, Next: it.Entry.Index}
			break
		}
	}
	if next != nil {
		if out.NextToken, err = l.nextToken(ev, *next); err != nil {
			return nil, err
		}
	}
	if ev.Vault.Sealed() {
		return nil, vault.ErrSealed // though these records were decrypted before
	}
	return out, nil
}

// event returns a record as an event. One that cannot be decrypted has no account, and is never
// found.
func event(it *auditfeed.Item, line string) trailapi.Event {
	rec := it.Record
	first := func(f auditindex.Field) *string {
		if v := auditindex.Values(f, it); len(v) > 0 {
			return &v[0]
		}
		return nil
	}
	e := trailapi.Event{
		EventId: first(auditindex.EventID), EventName: new(rec.GetEventName()), ReadOnly: first(auditindex.ReadOnly),
		AccessKeyId: first(auditindex.AccessKey), EventTime: new(time.Unix(0, it.Entry.Time).UTC().Truncate(time.Second)),
		EventSource: new(rec.GetEventSource()), Username: first(auditindex.Username), CloudTrailEvent: &line,
		Resources: make([]trailapi.Resource, 0, len(rec.GetResources())),
	}
	for _, r := range rec.GetResources() {
		e.Resources = append(e.Resources, trailapi.Resource{ResourceType: new(r.GetType()), ResourceName: new(r.GetArn())})
	}
	return e
}
