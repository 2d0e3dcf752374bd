package auditlog

import (
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// RenderJSON renders a record as one line of JSON in CloudTrail's form, without
// the newline. The event's time is cluster time, which is the order of the log;
// the clock of the node that made the record, and the place in the log, are in
// the member "conclave". The line has only printable characters: everything else
// in the texts, such as control characters, terminal sequences and text
// direction marks, is escaped.
func RenderJSON(entry Entry, rec *auditpb.Record) ([]byte, error) {
	if err := checkCounts(rec); err != nil {
		return nil, err
	}
	leaf := entry.LeafHash()
	j := &jsonLine{b: make([]byte, 0, 2048)}
	j.open("")
	j.text("eventVersion", "1.11")
	j.identity(rec.GetIdentity())
	j.text("eventTime", time.Unix(0, entry.Time).UTC().Format("2006-01-02T15:04:05Z"))
	j.text("eventSource", rec.GetEventSource())
	j.text("eventName", rec.GetEventName())
	j.text("awsRegion", rec.GetRegion())
	j.text("sourceIPAddress", rec.GetSourceIp())
	j.text("userAgent", rec.GetUserAgent())
	j.some("errorCode", ErrorCode(rec))
	j.some("errorMessage", rec.GetErrorMessage())
	j.fields("requestParameters", rec.GetRequestParameters(), true)
	j.fields("responseElements", rec.GetResponseElements(), true)
	j.fields("additionalEventData", rec.GetAdditional(), false)
	j.text("requestID", uuid(entry.RequestID[:]))
	id := EventID(leaf)
	j.text("eventID", uuid(id[:]))
	j.flag("readOnly", rec.GetReadOnly())
	j.key("resources")
	j.b = append(j.b, '[')
	j.first = true
	for _, r := range rec.GetResources() {
		j.comma()
		j.begin('{')
		j.some("accountId", r.GetAccountId())
		j.text("type", r.GetType())
		j.text("ARN", r.GetArn())
		j.end('}')
	}
	j.end(']')
	j.text("eventType", rec.GetEventType())
	j.flag("managementEvent", true)
	j.some("recipientAccountId", rec.GetRecipientAccountId())
	if Shared(rec) {
		id := SharedEventID(leaf)
		j.text("sharedEventID", uuid(id[:]))
	}
	j.fields("serviceEventDetails", rec.GetServiceEventDetails(), false)
	j.text("eventCategory", "Management")
	if t := rec.GetTls(); t != nil {
		j.open("tlsDetails")
		j.some("tlsVersion", t.GetVersion())
		j.some("cipherSuite", t.GetCipher())
		j.some("clientProvidedHostHeader", t.GetHost())
		j.some("keyExchange", t.GetKeyExchange())
		j.end('}')
	}
	j.open("conclave")
	j.number("index", strconv.FormatUint(entry.Index, 10))
	j.number("raftIndex", strconv.FormatUint(entry.RaftIndex, 10))
	j.text("leafHash", hex.EncodeToString(leaf[:]))
	j.text("node", rec.GetNode())
	j.text("originTime", time.Unix(0, rec.GetEventTime()).UTC().Format(time.RFC3339Nano))
	j.some("transport", rec.GetTransport())
	j.some("certificate", rec.GetIdentity().GetCertificate())
	j.end('}')
	j.end('}')
	return j.b, nil
}

// ErrorCode returns the errorCode that CloudTrail writes for a record's error. It is the name
// that the API gives the error, except that of a request which was denied.
func ErrorCode(rec *auditpb.Record) string {
	if code := rec.GetErrorCode(); code != "AccessDeniedException" {
		return code
	}
	return "AccessDenied"
}

// Shared reports whether a record is an event of more accounts than that of the caller, which
// is its recipient: if it names a resource of another account, it is also that account's
// event. CloudTrail writes each account an event of its own and gives both the same
// sharedEventID. Here, one log has the records of all accounts, so there is one record, with
// a sharedEventID by which copies for several accounts can be known to be the same event. As
// in CloudTrail, what was denied is an event of the caller's account only: it must not tell
// another account who tried.
func Shared(rec *auditpb.Record) bool {
	to := rec.GetRecipientAccountId()
	return to != "" && ErrorCode(rec) != "AccessDenied" && slices.ContainsFunc(rec.GetResources(), func(r *auditpb.Resource) bool {
		return r.GetAccountId() != "" && r.GetAccountId() != to
	})
}

// UnopenableEvent is the eventName of the line that replaces a record that cannot be
// decrypted.
const UnopenableEvent = "UnopenableRecord"

// RenderUnopenable renders the line for a record whose body cannot be decrypted or
// is not the record that the log committed to. It has everything that the entry
// says in the clear.
func RenderUnopenable(entry Entry) []byte {
	leaf := entry.LeafHash()
	id := EventID(leaf)
	j := &jsonLine{b: make([]byte, 0, 1024)}
	j.open("")
	j.text("eventVersion", "1.11")
	j.text("eventTime", time.Unix(0, entry.Time).UTC().Format("2006-01-02T15:04:05Z"))
	j.text("eventSource", "conclave")
	j.text("eventName", UnopenableEvent)
	j.text("errorCode", UnopenableEvent)
	j.text("errorMessage", "This record cannot be decrypted: no unsealed node of the cluster wrote it, or it was changed since.")
	j.text("requestID", uuid(entry.RequestID[:]))
	j.text("eventID", uuid(id[:]))
	j.text("eventType", "ConclaveAuditEvent")
	j.text("eventCategory", "Management")
	j.open("conclave")
	j.number("index", strconv.FormatUint(entry.Index, 10))
	j.number("raftIndex", strconv.FormatUint(entry.RaftIndex, 10))
	j.text("leafHash", hex.EncodeToString(leaf[:]))
	j.end('}')
	j.end('}')
	return j.b
}

func uuid(b []byte) string {
	s := hex.EncodeToString(b[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// EventID returns the eventID of a rendered record: a version 8 UUID (RFC 9562)
// made from the leaf hash.
func EventID(leaf Hash) [16]byte { return version8([16]byte(leaf[:16])) }

// SharedEventID returns the sharedEventID of a rendered record that is Shared: a version 8
// UUID made from the other half of the leaf hash.
func SharedEventID(leaf Hash) [16]byte { return version8([16]byte(leaf[16:])) }

func version8(id [16]byte) [16]byte {
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// jsonLine writes JSON without any white space.
type jsonLine struct {
	b     []byte
	first bool // nothing was written since the last opening bracket
}

func (j *jsonLine) comma() {
	if !j.first {
		j.b = append(j.b, ',')
	}
	j.first = false
}

func (j *jsonLine) begin(c byte) {
	j.b = append(j.b, c)
	j.first = true
}

func (j *jsonLine) end(c byte) {
	j.b = append(j.b, c)
	j.first = false
}

func (j *jsonLine) key(name string) {
	j.comma()
	j.quote(name)
	j.b = append(j.b, ':')
}

// open begins an object. The outermost has no name.
func (j *jsonLine) open(name string) {
	if name != "" {
		j.key(name)
	}
	j.begin('{')
}

func (j *jsonLine) text(name, s string) {
	j.key(name)
	j.quote(s)
}

// some writes a text unless it is empty.
func (j *jsonLine) some(name, s string) {
	if s != "" {
		j.text(name, s)
	}
}

func (j *jsonLine) number(name, digits string) {
	j.key(name)
	j.b = append(j.b, digits...)
}

func (j *jsonLine) flag(name string, v bool) {
	j.key(name)
	j.b = strconv.AppendBool(j.b, v)
}

func (j *jsonLine) identity(id *auditpb.Identity) {
	j.open("userIdentity")
	j.some("type", id.GetType())
	j.some("principalId", id.GetPrincipalId())
	j.some("arn", id.GetArn())
	j.some("accountId", id.GetAccountId())
	j.some("accessKeyId", id.GetAccessKeyId())
	j.some("userName", id.GetUserName())
	j.fields("sessionContext", id.GetSessionContext(), false)
	j.some("invokedBy", id.GetInvokedBy())
	j.end('}')
}

// fields writes an object. An empty one is written as null if always is set,
// and is otherwise left out.
func (j *jsonLine) fields(name string, fields []*auditpb.Field, always bool) {
	if len(fields) == 0 {
		if always {
			j.key(name)
			j.b = append(j.b, "null"...)
		}
		return
	}
	j.open(name)
	for _, f := range fields {
		j.key(f.GetName())
		j.value(f)
	}
	j.end('}')
}

func (j *jsonLine) value(f *auditpb.Field) {
	switch v := f.GetValue().(type) {
	case *auditpb.Field_Text:
		j.quote(v.Text)
	case *auditpb.Field_Number:
		j.b = strconv.AppendInt(j.b, v.Number, 10)
	case *auditpb.Field_Flag:
		j.b = strconv.AppendBool(j.b, v.Flag)
	case *auditpb.Field_Real:
		s := strconv.FormatFloat(v.Real, 'g', -1, 64)
		if math.IsNaN(v.Real) || math.IsInf(v.Real, 0) {
			j.quote(s) // JSON has no such numbers
			return
		}
		j.b = append(j.b, s...)
	case *auditpb.Field_List:
		j.begin('[')
		for _, s := range v.List.GetItems() {
			j.comma()
			j.quote(s)
		}
		j.end(']')
	case *auditpb.Field_Map:
		j.begin('{')
		for _, p := range v.Map.GetPairs() {
			j.text(p.GetKey(), p.GetValue())
		}
		j.end('}')
	default:
		j.b = append(j.b, "null"...)
	}
}

// quote writes a JSON string in which every character is printable.
func (j *jsonLine) quote(s string) {
	const digits = "0123456789abcdef"
	unit := func(r rune) {
		j.b = append(j.b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
	}
	j.b = append(j.b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			j.b = append(j.b, '\\', byte(r))
		case r >= ' ' && r < 0x7f:
			j.b = append(j.b, byte(r))
		case r == '\n':
			j.b = append(j.b, '\\', 'n')
		case r == '\t':
			j.b = append(j.b, '\\', 't')
		case unicode.IsPrint(r) && r != utf8.RuneError:
			j.b = utf8.AppendRune(j.b, r)
		case r > 0xffff:
			r -= 0x10000
			unit(0xd800 + r>>10)
			unit(0xdc00 + r&0x3ff)
		default:
			unit(r)
		}
	}
	j.b = append(j.b, '"')
}
