package auditsink

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// rendered is what an event takes from a record in CloudTrail's form. Texts stay as they are
// there, with everything escaped that is not printable.
type rendered struct {
	ID        jsontext.Value `json:"eventID"`
	Account   jsontext.Value `json:"recipientAccountId"`
	Time      jsontext.Value `json:"eventTime"`
	Region    jsontext.Value `json:"awsRegion"`
	Details   jsontext.Value `json:"serviceEventDetails"`
	Resources []struct {
		Type string         `json:"type"`
		ARN  jsontext.Value `json:"ARN"`
	} `json:"resources"`
}

// noText replaces a text that a record does not have. The members of an event are always there.
var noText = jsontext.Value(`""`)

// eventBridge renders a record as Amazon EventBridge renders events, given the record's line in
// CloudTrail's form: an envelope, whose member detail is different for each source. There are
// two lines for a rotation that somebody asked for, since AWS KMS sends an event for the call and
// one for the key.
//
// The id of an event is the record's eventID, so it is the same whenever the event is sent.
func eventBridge(it *auditfeed.Item, line []byte) ([]byte, error) {
	var r rendered
	// Members are named twice where a caller has done so.
	if err := json.Unmarshal(line, &r, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil, fmt.Errorf("record %d: %w", it.Entry.Index, err)
	}
	var keys []jsontext.Value
	for _, res := range r.Resources {
		if res.Type == "AWS::KMS::Key" {
			keys = append(keys, res.ARN)
		}
	}
	rec := it.Record
	switch change := keyEventOf(it); {
	case change != "" && rec.GetEventType() == record.KindCall:
		out := r.event("AWS API Call via CloudTrail", "aws.kms", nil, line)
		second := auditlog.SharedEventID(it.Entry.LeafHash())
		r.ID = jsontext.Value(`"` + record.UUID(second) + `"`)
		return append(append(out, '\n'), r.event(change, "aws.kms", keys, keyDetail(it, keys))...), nil
	case change != "":
		return r.event(change, "aws.kms", keys, keyDetail(it, keys)), nil
	case isAlert(it):
		return r.event("Conclave Alert", "conclave", keys, withIndex(it, r.Details)), nil
	case rec.GetEventType() == record.KindCall:
		return r.event("AWS API Call via CloudTrail", source(rec.GetEventSource()), nil, line), nil
	case rec.GetEventType() == record.KindService:
		return r.event("AWS Service Event via CloudTrail", source(rec.GetEventSource()), nil, line), nil
	}
	return r.event("Conclave Audit Record", "conclave", nil, line), nil
}

// source returns the source of the events of a service, such as kms.amazonaws.com.
func source(service string) string {
	return "aws." + strings.TrimSuffix(service, ".amazonaws.com")
}

// event renders an event. The type and the source need no escaping.
func (r *rendered) event(kind, source string, resources []jsontext.Value, detail []byte) []byte {
	var b bytes.Buffer
	text := func(name string, v jsontext.Value) {
		if len(v) == 0 {
			v = noText
		}
		fmt.Fprintf(&b, `,"%s":%s`, name, v)
	}
	b.WriteString(`{"version":"0"`)
	text("id", r.ID)
	fmt.Fprintf(&b, `,"detail-type":"%s","source":"%s"`, kind, source)
	text("account", r.Account)
	text("time", r.Time)
	text("region", r.Region)
	b.WriteString(`,"resources":[`)
	for i, arn := range resources {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(arn)
	}
	b.WriteString(`],"detail":`)
	b.Write(detail)
	b.WriteByte('}')
	return b.Bytes()
}

// keyDetail returns the detail of an event of AWS KMS about a key: what AWS says in it and the
// record knows, and the record's index.
func keyDetail(it *auditfeed.Item, keys []jsontext.Value) []byte {
	b := []byte(`{`)
	if len(keys) > 0 {
		arn := string(keys[0])
		b = append(b, `"key-id":"`+arn[strings.LastIndexByte(arn, '/')+1:]...) // with its last quotation mark
	}
	add := func(name, value string) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(b, `"`+name+`":"`+value+`"`...)
	}
	switch it.Record.GetEventName() {
	case "RotateKey":
		add("key-origin", "AWS_KMS") // the only ones that are rotated on a schedule
		add("rotation-type", "AUTOMATIC")
		if id := auditfield.TextOf(it.Record.GetServiceEventDetails(), "keyMaterialId"); isHex(id) {
			add("current-key-material-id", id)
		}
	case "RotateKeyOnDemand":
		add("rotation-type", "ON_DEMAND")
	}
	return withIndex(it, append(b, '}'))
}

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

// withIndex adds the record's index to an object, as records in CloudTrail's form have it.
func withIndex(it *auditfeed.Item, object []byte) []byte {
	object = bytes.TrimSuffix(object, []byte("}"))
	comma := ","
	if len(object) <= 1 {
		object, comma = []byte("{"), ""
	}
	return fmt.Appendf(bytes.Clone(object), `%s"conclave":{"index":%d}}`, comma, it.Entry.Index)
}
