package auditindex

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// Field names what a Condition compares.
type Field string

// The fields. A record may have several values of one, and none.
const (
	Operation    Field = "operation"     // eventName, such as "Decrypt"
	Principal    Field = "principal"     // any name of the caller: ARN, user name, unique id, access key id, certificate, and those of the role of a session
	Username     Field = "username"      // the user's or session's name, or "root", as CloudTrail's LookupEvents has it
	AccessKey    Field = "access-key"    // the access key id
	Key          Field = "key"           // a key or other resource: ARN, the name at its end, the id of a key, or what the caller called the key
	Resource     Field = "resource"      // the ARN of a resource, or the name at its end
	ResourceType Field = "resource-type" // such as "AWS::KMS::Key"
	Outcome      Field = "outcome"       // errorCode, or Success
	Source       Field = "source"        // sourceIPAddress
	RequestID    Field = "request-id"
	EventID      Field = "event-id"
	ReadOnly     Field = "read-only" // "true" or "false"
	EventSource  Field = "event-source"
	Account      Field = "account"   // of the caller, or whose event it is
	Recipient    Field = "recipient" // the account whose event it is
)

// Success is the outcome of what succeeded.
const Success = "Success"

// fields has every field, with the one that the index has its values under. Where that is
// another, it has more values, and what the index finds is then compared with the field's own.
var fields = map[Field]Field{
	Operation: Operation, Principal: Principal, Username: Principal, AccessKey: Principal, Key: Key, Resource: Key,
	ResourceType: ResourceType, Outcome: Outcome, Source: Source, RequestID: RequestID, EventID: EventID,
	ReadOnly: ReadOnly, EventSource: EventSource, Account: Account, Recipient: Account,
}

// Fields returns all fields in alphabetical order.
func Fields() []Field {
	var all []Field
	for f := range fields {
		all = append(all, f)
	}
	slices.Sort(all)
	return all
}

// Known reports whether there is such a field.
func Known(f Field) bool { return fields[f] != "" }

// Condition is met by records that have a value of a field, exactly as it is written.
type Condition struct {
	Field Field
	Value string
}

// Query says which records are searched for: those that meet all conditions.
type Query struct {
	// From and To bound the cluster time of a record, which the log is ordered by: the first
	// time that is included and the first that is not. Zero is no bound.
	From, To time.Time
	Where    []Condition
	// OldestFirst returns records in the order of the log instead of newest first.
	OldestFirst bool
}

// matches reports whether a record is one that q searches for.
func (q *Query) matches(it *auditfeed.Item) bool {
	if !q.From.IsZero() && it.Entry.Time < q.From.UnixNano() || !q.To.IsZero() && it.Entry.Time >= q.To.UnixNano() {
		return false
	}
	for _, c := range q.Where {
		if !slices.Contains(Values(c.Field, it), c.Value) {
			return false
		}
	}
	return true
}

// Values returns the values of a field in a record. Of a record that cannot be decrypted, only
// what the entry has in the clear is known, and that it is one.
func Values(f Field, it *auditfeed.Item) (all []string) {
	add := func(values ...string) {
		for _, v := range values {
			if v != "" && !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
	}
	switch f {
	case RequestID:
		add(record.UUID(it.Entry.RequestID))
		return all
	case EventID:
		id := auditlog.EventID(it.Entry.LeafHash())
		add(record.UUID(id))
		return all
	}
	rec := it.Record
	if rec == nil {
		if f == Operation || f == Outcome {
			add(auditlog.UnopenableEvent)
		}
		return all
	}
	id := rec.GetIdentity()
	switch f {
	case Operation:
		add(rec.GetEventName())
	case Principal:
		add(id.GetArn(), id.GetUserName(), id.GetPrincipalId(), id.GetAccessKeyId(), id.GetCertificate(), id.GetInvokedBy())
		add(Values(Username, it)...)
		for _, field := range id.GetSessionContext() {
			for _, p := range field.GetMap().GetPairs() {
				if field.GetName() == "sessionIssuer" && p.GetKey() != "type" && p.GetKey() != "accountId" {
					add(p.GetValue())
				}
			}
		}
	case Username:
		_, session, isSession := strings.Cut(id.GetPrincipalId(), ":")
		switch {
		case id.GetUserName() != "":
			add(id.GetUserName())
		case id.GetType() == "Root":
			add("root")
		case isSession && strings.Contains(id.GetArn(), ":assumed-role/"):
			add(session)
		}
	case AccessKey:
		add(id.GetAccessKeyId())
	case Key:
		add(Values(Resource, it)...)
		for _, p := range rec.GetRequestParameters() {
			if p.GetName() == "keyId" || p.GetName() == "targetKeyId" {
				add(p.GetText(), afterSlash(p.GetText()))
			}
		}
	case Resource:
		for _, r := range rec.GetResources() {
			add(r.GetArn(), name(r.GetArn()), afterSlash(r.GetArn()))
		}
	case ResourceType:
		for _, r := range rec.GetResources() {
			add(r.GetType())
		}
	case Outcome:
		if add(rec.GetErrorCode()); len(all) == 0 {
			add(Success)
		}
	case Source:
		add(rec.GetSourceIp())
	case ReadOnly:
		add(strconv.FormatBool(rec.GetReadOnly()))
	case EventSource:
		add(rec.GetEventSource())
	case Recipient:
		add(rec.GetRecipientAccountId())
	case Account:
		add(rec.GetRecipientAccountId(), id.GetAccountId())
	}
	return all
}

// name returns the part of an ARN after the Region and the account.
func name(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[5]
	}
	return ""
}

// afterSlash returns the id of a key in its ARN, for example, and the name of an alias.
func afterSlash(arn string) string {
	_, after, _ := strings.Cut(arn, "/")
	return after
}
