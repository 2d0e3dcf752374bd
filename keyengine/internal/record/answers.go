package record

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrConflict: what the evaluation read has changed; evaluate again.
var ErrConflict = errors.New("conflict")

var ErrHeldUp = kmsapi.Errorf(kmsapi.ErrUnavailable, "The response missed its release deadline and was discarded. Retry the request.")

var ErrThrottled = kmsapi.Errorf(kmsapi.ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")

// Unavailable is what a caller is told when the log could not take a record.
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

// Outcome is the code of an operation's error; "" for success. Errors that are
// no outcome are internal ones.
func Outcome(err error) (code, message string) {
	if err == nil {
		return "", ""
	}
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		return string(e.Code), e.Message
	}
	return string(kmsapi.ErrInternal.Code), ""
}
