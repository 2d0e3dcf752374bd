// Package auditevents lists the events of the audit log that are not operations of AWS: what
// operators, the service itself and callers of Conclave's own calls leave behind. The list is
// what docs/audit-events.md is made of, and tests compare every record with it.
package auditevents

import (
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// Values of eventType.
const (
	AWSCall  = record.KindCall
	Operator = record.KindOperator
	Call     = record.KindConclave
	Service  = record.KindService
)

// Event is a kind of record.
type Event struct {
	// Name and Type are the eventName and eventType.
	Name, Type string
	// When says what the record is written for, and whether before or after it.
	When string
	// Automatic is set if the service does it by itself, so that there is no operator or caller.
	// An event that is not automatic has the identity of an operator or caller.
	Automatic bool
	// Parameters, Response and Details are the names of the fields that requestParameters,
	// responseElements and serviceEventDetails can have.
	Parameters, Response, Details []string
	// ReadOnly is the record's readOnly.
	ReadOnly bool
}

// Find returns the event of a record; nil for one that is not in the list.
func Find(name, eventType string) *Event {
	for i := range All {
		if All[i].Name == name && All[i].Type == eventType {
			return &All[i]
		}
	}
	return nil
}

// Check returns an error if a record is not as the list says. Records of AWS's operations are
// not in the list: their tables say what they have.
func Check(r *auditpb.Record) error {
	if r.EventType == AWSCall {
		return nil
	}
	e := Find(r.EventName, r.EventType)
	if e == nil {
		return fmt.Errorf("no %s %s is in the list of package auditevents", r.EventType, r.EventName)
	}
	id := r.Identity.GetType()
	byNobody := id == "" || id == "AWSService"
	switch {
	case byNobody != e.Automatic:
		return fmt.Errorf("%s is of identity type %q", e.Name, id)
	case e.Type == Operator && !byNobody && id != "ConclaveOperator":
		return fmt.Errorf("%s is of identity type %q, not of an operator", e.Name, id)
	case r.ReadOnly != e.ReadOnly:
		return fmt.Errorf("%s has readOnly %v", e.Name, r.ReadOnly)
	}
	details := e.Details
	if e.Type != Call { // events of a sealed node may be summed up
		details = append(slices.Clip(details), "times", "last")
	}
	for what, of := range map[string]struct {
		fields []*auditpb.Field
		listed []string
	}{
		"requestParameters": {r.RequestParameters, e.Parameters}, "responseElements": {r.ResponseElements, e.Response},
		"serviceEventDetails": {r.ServiceEventDetails, details}, "additionalEventData": {r.Additional, []string{"authorization"}},
	} {
		for _, f := range of.fields {
			if !slices.Contains(of.listed, f.Name) {
				return fmt.Errorf("%s has the field %s in %s, which is not in the list", e.Name, f.Name, what)
			}
		}
	}
	return nil
}
