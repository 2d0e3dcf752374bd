// Package transport holds what the network faces share: the table that turns
// errors into answers, the limits that every listener stands behind, request
// ids, and the health endpoints. The faces themselves are its sub-packages.
//
// The reader may rely on two things. Nothing internal leaves through Lookup: an
// error that is not made for callers becomes one fixed text. And no listener set
// up here can be held open, or be made to hold memory, without bound by somebody
// who has not been authenticated.
package transport

import (
	"context"
	"errors"
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine"
)

// Errors that arise before a request reaches the engine.
var (
	// ErrMissingAuthentication: nothing in the request says who asks.
	ErrMissingAuthentication = &keyengine.Error{Code: "MissingAuthenticationTokenException"}
	// ErrIncompleteSignature: the proof of identity cannot be read.
	ErrIncompleteSignature = &keyengine.Error{Code: "IncompleteSignatureException"}
	// ErrUnknownOperation: there is no such operation, or no such address.
	ErrUnknownOperation = &keyengine.Error{Code: "UnknownOperationException"}
	// ErrSerialization: the body is not what the operation takes.
	ErrSerialization = &keyengine.Error{Code: "SerializationException"}
	// ErrTooLarge: the body is longer than any request can be.
	ErrTooLarge = &keyengine.Error{Code: "RequestEntityTooLargeException"}
)

// internalMessage is all that a caller learns of an error not meant for callers.
const internalMessage = "An internal error occurred. The log of the node that answered has the details under this request's id."

// Answer is how an error is told to a caller.
type Answer struct {
	// Type is the name of the error: AWS's exception, "__type" in its protocol.
	Type string
	// Message is empty where AWS sends none.
	Message string
	HTTP    int
	GRPC    codes.Code
	// Internal is set where Message does not say what happened: the error itself
	// belongs in the log, and nowhere else.
	Internal bool
}

// row is the part of an Answer that follows from the code.
type row struct {
	http int
	grpc codes.Code
}

// table has a row for every code: AWS's HTTP status, which is 400 for nearly
// everything, and the gRPC code. Clients of the AWS protocol look at the name
// alone, and repeat what is 5xx or throttled.
var table = map[keyengine.Code]row{
	keyengine.ErrAccessDenied.Code:                 {http.StatusBadRequest, codes.PermissionDenied},
	keyengine.ErrAlreadyExists.Code:                {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrDisabled.Code:                     {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrDryRun.Code:                       {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrIncorrectKey.Code:                 {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidArn.Code:                   {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidCiphertext.Code:            {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidGrantToken.Code:            {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidKeyUsage.Code:              {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrInvalidMarker.Code:                {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidState.Code:                 {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrInternal.Code:                     {http.StatusInternalServerError, codes.Internal},
	keyengine.ErrLimitExceeded.Code:                {http.StatusBadRequest, codes.ResourceExhausted},
	keyengine.ErrMalformedPolicy.Code:              {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrNotAuthorized.Code:                {http.StatusBadRequest, codes.PermissionDenied},
	keyengine.ErrNotFound.Code:                     {http.StatusBadRequest, codes.NotFound},
	keyengine.ErrTag.Code:                          {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrThrottling.Code:                   {http.StatusBadRequest, codes.ResourceExhausted},
	keyengine.ErrUnsupported.Code:                  {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrValidation.Code:                   {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrCustomStoreNotFound.Code:          {http.StatusBadRequest, codes.NotFound},
	keyengine.ErrConflict.Code:                     {http.StatusBadRequest, codes.Aborted},
	keyengine.ErrExpiredImportToken.Code:           {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrIncorrectKeyMaterial.Code:         {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidGrantID.Code:               {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidImportToken.Code:           {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidMac.Code:                   {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrInvalidSignatureValue.Code:        {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrKeyUnavailable.Code:               {http.StatusInternalServerError, codes.Unavailable},
	keyengine.ErrCustomStoreInvalidState.Code:      {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrCustomStoreNameInUse.Code:         {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrCustomStoreHasKeys.Code:           {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrCloudHsmClusterInUse.Code:         {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrCloudHsmClusterNotRelated.Code:    {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrCloudHsmClusterNotFound.Code:      {http.StatusBadRequest, codes.NotFound},
	keyengine.ErrXksKeyAlreadyInUse.Code:           {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrXksKeyInvalidConfiguration.Code:   {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrXksKeyNotFound.Code:               {http.StatusBadRequest, codes.NotFound},
	keyengine.ErrXksProxyBadCredential.Code:        {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrXksProxyInvalidConfiguration.Code: {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrXksProxyInvalidResponse.Code:      {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrXksProxyURIEndpointInUse.Code:     {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrXksProxyURIInUse.Code:             {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrXksProxyURIUnreachable.Code:       {http.StatusBadRequest, codes.Unavailable},
	keyengine.ErrXksProxyVpcInvalid.Code:           {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrXksProxyVpcInUse.Code:             {http.StatusBadRequest, codes.AlreadyExists},
	keyengine.ErrXksProxyVpcNotFound.Code:          {http.StatusBadRequest, codes.NotFound},
	keyengine.ErrInvalidAliasName.Code:             {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrUnavailable.Code:                  {http.StatusServiceUnavailable, codes.Unavailable},

	keyengine.ErrUnrecognizedClient.Code: {http.StatusBadRequest, codes.Unauthenticated},
	keyengine.ErrInvalidSignature.Code:   {http.StatusBadRequest, codes.Unauthenticated},
	keyengine.ErrExpiredToken.Code:       {http.StatusBadRequest, codes.Unauthenticated},

	// Of the operators' calls, which only the gRPC face has.
	keyengine.ErrInitialised.Code:    {http.StatusBadRequest, codes.FailedPrecondition},
	keyengine.ErrNotInitialised.Code: {http.StatusServiceUnavailable, codes.FailedPrecondition},
	keyengine.ErrNotReady.Code:       {http.StatusServiceUnavailable, codes.Unavailable},
	keyengine.ErrShare.Code:          {http.StatusBadRequest, codes.InvalidArgument},
	keyengine.ErrUnsealed.Code:       {http.StatusBadRequest, codes.FailedPrecondition},

	ErrMissingAuthentication.Code: {http.StatusBadRequest, codes.Unauthenticated},
	ErrIncompleteSignature.Code:   {http.StatusBadRequest, codes.Unauthenticated},
	ErrUnknownOperation.Code:      {http.StatusBadRequest, codes.Unimplemented},
	ErrSerialization.Code:         {http.StatusBadRequest, codes.InvalidArgument},
	ErrTooLarge.Code:              {http.StatusRequestEntityTooLarge, codes.ResourceExhausted},
}

// Lookup says how to tell a caller of err, which must not be nil. An error that
// no row is meant for is an internal one, whatever it says.
func Lookup(err error) Answer {
	e, ok := errors.AsType[*keyengine.Error](err)
	if !ok {
		e = plain(err)
	}
	if r, ok := table[e.Code]; ok && e.Code != keyengine.ErrInternal.Code {
		return Answer{Type: string(e.Code), Message: e.Message, HTTP: r.http, GRPC: r.grpc}
	}
	r := table[keyengine.ErrInternal.Code]
	return Answer{
		Type:     string(keyengine.ErrInternal.Code),
		Message:  internalMessage,
		HTTP:     r.http,
		GRPC:     r.grpc,
		Internal: true,
	}
}

// plain maps the errors of the layers below that have no words for callers.
func plain(err error) *keyengine.Error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &keyengine.Error{Code: keyengine.ErrUnavailable.Code, Message: "The request was not answered in time."}
	case errors.Is(err, fsm.ErrOverloaded):
		return &keyengine.Error{Code: keyengine.ErrThrottling.Code, Message: "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."}
	case errors.Is(err, fsm.ErrNoLeader), errors.Is(err, fsm.ErrNodeStopped):
		return &keyengine.Error{Code: keyengine.ErrUnavailable.Code, Message: "The cluster has no leader that this node can reach. Try again."}
	case errors.Is(err, fsm.ErrOutcomeUnknown):
		return &keyengine.Error{Code: keyengine.ErrUnavailable.Code, Message: "The cluster did not say in time what became of the request. It may have taken effect."}
	}
	return keyengine.ErrInternal
}
