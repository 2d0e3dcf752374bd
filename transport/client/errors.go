package client

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Error is what a server says about a call that failed.
type Error struct {
	Code codes.Code
	// Type is AWS's name of the error, such as AccessDeniedException. It is
	// empty if no Conclave server answered.
	Type string
	// Message is for people. It may be empty if Type is not.
	Message string
	// RequestID names the call in the server's log and in the audit log.
	RequestID string
	// Encoded is the encoded message of a denial, which DecodeAuthorizationMessage explains;
	// empty for other errors.
	Encoded string
}

// FromError extracts the Error from an error that a call returned, wrapped or
// not. It reports false for nil and for other errors.
func FromError(err error) (Error, bool) {
	if err == nil {
		return Error{}, false
	}
	st, ok := status.FromError(err)
	if !ok {
		return Error{}, false
	}
	for _, d := range st.Details() {
		if d, ok := d.(*kmspb.ErrorDetail); ok {
			return Error{Code: st.Code(), Type: d.GetType(), Message: d.GetMessage(), RequestID: d.GetRequestId(), Encoded: d.GetEncodedMessage()}, true
		}
	}
	return Error{Code: st.Code(), Message: st.Message()}, true
}
