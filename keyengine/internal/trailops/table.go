// Package trailops has the operation of AWS CloudTrail: LookupEvents, with which the events of
// an account are read from the audit log.
package trailops

import "github.com/conclavekms/conclave/keyengine/internal/request"

// Table has all operations of CloudTrail by name.
var Table = map[string]*request.Operation{
	"LookupEvents": request.Define(request.Operation{Service: request.CloudTrail, Name: "LookupEvents", ReadOnly: true, Costly: true}, lookupEvents, nil),
}
