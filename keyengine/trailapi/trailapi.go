// Package trailapi defines the API of AWS CloudTrail, after AWS's service model: the input and
// output of the operation that Conclave has, with which the audit log is read, and its errors.
//
// The tags of the members, and the schemas that are compiled from them, are those of package
// kmsapi, whose documentation explains them. Only the kinds of the members and what is required
// are in the tags: CloudTrail has an error of its own for every other member that is wrong, and
// the operation checks them.
package trailapi

import (
	"time"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// LookupAttribute limits a lookup to events with a value of an attribute.
type LookupAttribute struct {
	AttributeKey   *string `kms:"required,log"`
	AttributeValue *string `kms:"required,log"`
}

// Resource is what an event was about.
type Resource struct {
	ResourceType *string
	ResourceName *string
}

// Event is an event of an account. CloudTrailEvent is the whole record, as JSON.
type Event struct {
	EventId         *string
	EventName       *string
	ReadOnly        *string
	AccessKeyId     *string
	EventTime       *time.Time
	EventSource     *string
	Username        *string
	Resources       []Resource
	CloudTrailEvent *string
}

// Input and output of LookupEvents, which finds events of the caller's account, the newest
// first.
type (
	LookupEventsInput struct {
		LookupAttributes []LookupAttribute `kms:"narrows,log"`
		StartTime        *time.Time        `kms:"narrows,log"`
		EndTime          *time.Time        `kms:"narrows,log"`
		EventCategory    *string           `kms:"narrows,log"`
		MaxResults       *int32            `kms:"log"`
		NextToken        *string           `kms:"nolog"`
	}

	LookupEventsOutput struct {
		Events    []Event
		NextToken *string
	}
)

// Outcomes that only CloudTrail has, by the names that its answers have. Compare them with
// errors.Is.
var (
	ErrInvalidLookupAttributes = &kmsapi.Error{Code: "InvalidLookupAttributesException"}
	ErrInvalidTimeRange        = &kmsapi.Error{Code: "InvalidTimeRangeException"}
	ErrInvalidMaxResults       = &kmsapi.Error{Code: "InvalidMaxResultsException"}
	ErrInvalidNextToken        = &kmsapi.Error{Code: "InvalidNextTokenException"}
	ErrInvalidEventCategory    = &kmsapi.Error{Code: "InvalidEventCategoryException"}
)

// Errors returns all outcomes above.
func Errors() []*kmsapi.Error {
	return []*kmsapi.Error{ErrInvalidLookupAttributes, ErrInvalidTimeRange, ErrInvalidMaxResults, ErrInvalidNextToken, ErrInvalidEventCategory}
}
