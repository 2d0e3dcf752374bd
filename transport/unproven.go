package transport

import (
	"errors"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// reasonOther is the reason in metrics for requests that the engine refused for a
// reason that package sigv4 does not have.
const reasonOther = "other"

// Unproven turns the engine's refusal of a signature into the error that a face answers
// with, which is a *sigv4.Error if it is about the signature. Others, such as that the node
// is sealed, are returned unchanged. canonical and p are what Claim.Proof returned.
func Unproven(err error, canonical []byte, p *sigv4.Proof) error {
	e, ok := errors.AsType[*kmsapi.Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case kmsapi.ErrInvalidSignature.Code:
		return sigv4.Mismatch(canonical, p)
	case kmsapi.ErrUnrecognizedClient.Code:
		return sigv4.UnknownKey()
	case kmsapi.ErrExpiredToken.Code:
		return &sigv4.Error{Code: string(e.Code), Reason: reasonOther, Message: e.Message}
	}
	return err
}
