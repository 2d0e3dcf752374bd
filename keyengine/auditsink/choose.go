package auditsink

import (
	"errors"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/keyengine/alert"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// classes are the kinds of records that a sink can be limited to, besides those with a name.
var classes = map[string]func(*auditfeed.Item) bool{
	"alerts":     isAlert,
	"key-events": func(it *auditfeed.Item) bool { return keyEventOf(it) != "" },
	"failures":   func(it *auditfeed.Item) bool { return it.Record.GetErrorCode() != "" },
}

// maxChosen bounds the names of events and classes of a sink.
const maxChosen = 128

// Values of Sink.Format.
const (
	formatCloudTrail  = "cloudtrail"
	formatEventBridge = "eventbridge"
)

// checkChoice checks what the sink gets, and in which form.
func (s *Sink) checkChoice() error {
	if s.Only != nil && len(s.Only) == 0 {
		return errors.New("only is an empty list, so the sink would get nothing")
	}
	if len(s.Only) > maxChosen {
		return fmt.Errorf("only has more than %d names", maxChosen)
	}
	seen := make(map[string]bool)
	for _, name := range s.Only {
		if classes[name] == nil && !isEventName(name) {
			return fmt.Errorf("only has %.70q, which is neither the name of an event, such as RotateKey, nor one of alerts, key-events and failures", name)
		}
		if seen[name] {
			return fmt.Errorf("only has %q twice", name)
		}
		seen[name] = true
	}
	switch s.Format {
	case "", formatCloudTrail:
	case formatEventBridge:
		if s.Webhook == nil {
			return errors.New("only webhooks have the format eventbridge")
		}
	default:
		return fmt.Errorf("the format %.70q is neither cloudtrail nor eventbridge", s.Format)
	}
	return nil
}

// isEventName reports whether a text has the form of the names of events.
func isEventName(name string) bool {
	return name != "" && len(name) <= 128 && name[0] >= 'A' && name[0] <= 'Z' &&
		strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// wants reports whether the sink gets a record. All sinks get those that cannot be decrypted,
// since nobody knows what they are.
func (s *Sink) wants(it *auditfeed.Item) bool {
	if len(s.Only) == 0 || it.Record == nil {
		return true
	}
	for _, name := range s.Only {
		if is := classes[name]; is != nil && is(it) || name == it.Record.GetEventName() {
			return true
		}
	}
	return false
}

func isAlert(it *auditfeed.Item) bool {
	return it.Record.GetEventName() == alert.EventName && it.Record.GetEventType() == record.KindService
}

// keyEventOf returns the type of the event that AWS KMS sends to EventBridge for a change of a
// key's state, or "" for a record without one.
func keyEventOf(it *auditfeed.Item) string {
	rec := it.Record
	if rec.GetErrorCode() != "" || rec.GetEventSource() != "kms.amazonaws.com" {
		return ""
	}
	switch name, kind := rec.GetEventName(), rec.GetEventType(); {
	case name == "RotateKey" && kind == record.KindService, name == "RotateKeyOnDemand" && kind == record.KindCall:
		return "KMS CMK Rotation"
	case name == "DeleteExpiredKeyMaterial" && kind == record.KindService:
		return "KMS Imported Key Material Expiration"
	case name == "DeleteKey" && kind == record.KindService:
		return "KMS CMK Deletion"
	}
	return ""
}
