package iamops

import (
	"errors"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// The messages in this package are AWS's, where they are known: tools look for some of them.

func noSuch(format string, args ...any) error {
	return kmsapi.Errorf(iamapi.ErrNoSuchEntity, format, args...)
}

func exists(format string, args ...any) error {
	return kmsapi.Errorf(iamapi.ErrEntityAlreadyExists, format, args...)
}

func conflict(message string) error {
	return kmsapi.Errorf(iamapi.ErrDeleteConflict, "%s", message)
}

func invalidInput(format string, args ...any) error {
	return kmsapi.Errorf(iamapi.ErrInvalidInput, format, args...)
}

// quotaExceeded returns the error for a quota, by the name that AWS's message has for it.
func quotaExceeded(name string, quota int) error {
	return kmsapi.Errorf(iamapi.ErrLimitExceeded, "Cannot exceed quota for %s: %d", name, quota)
}

// malformed returns the error for a policy document that policy.Parse refused.
func malformed(err error) error {
	e, ok := errors.AsType[*policy.SyntaxError](err)
	switch {
	case !ok:
		return err
	case errors.Is(err, policy.ErrTooLong):
		return kmsapi.Errorf(iamapi.ErrLimitExceeded, "%s", e.Error())
	}
	return kmsapi.Errorf(iamapi.ErrMalformedPolicyDocument, "%s", e.Error())
}

// foreign refuses what belongs to another account: no policy of this account can allow it.
func foreign(ev *request.Evaluation, arn string) error {
	req := policy.Request{Principal: ev.Principal(), Action: ev.Op.Action(), Resource: arn}
	return ev.Decided(req, policy.Decision{Reason: policy.ReasonIdentityPolicy, Statement: policy.NoStatement}, nil)
}
