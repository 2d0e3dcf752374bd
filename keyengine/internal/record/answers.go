package record

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrConflict means that an object of the read set has changed. The request must be
// evaluated again.
var ErrConflict = errors.New("conflict")

// ErrHeldUp is returned instead of an answer that is too old to be released.
var ErrHeldUp = kmsapi.Errorf(kmsapi.ErrUnavailable, "The response missed its release deadline and was discarded. Retry the request.")

// ErrThrottled is returned to callers that exceed a rate.
var ErrThrottled = kmsapi.Errorf(kmsapi.ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")

// Unavailable returns the error that a caller gets when the log did not accept a record.
func Unavailable(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The request was not answered in time.")
	case errors.Is(err, fsm.ErrOverloaded):
		return ErrThrottled
	case errors.Is(err, fsm.ErrNoLeader), errors.Is(err, fsm.ErrNodeStopped):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.")
	case errors.Is(err, fsm.ErrOutcomeUnknown):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect.")
	}
	return err
}

// Outcome returns the code and message of an operation's error, or "" for success. Errors
// other than *kmsapi.Error become ErrInternal.
func Outcome(err error) (code, message string) {
	if err == nil {
		return "", ""
	}
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		return string(e.Code), e.Message
	}
	return string(kmsapi.ErrInternal.Code), ""
}
