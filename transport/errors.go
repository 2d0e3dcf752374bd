// Package transport has what the network faces share: the pipeline of requests,
// the table that turns errors into answers, the limits of every listener, and the
// health endpoints. The faces themselves are its subpackages.
//
// A request to an API goes through the same steps whatever its protocol. API.Arrive
// gives it an id, a deadline and a place among the requests that are not
// authenticated. Once it is authenticated (Request.Proved) and complete
// (Request.Arrived), it passes a gate and is worked on (Request.Work). Request.Caller
// describes its sender to the engine. API.Answer and API.Panicked return the answer
// to a request that failed, and count and log the error. API.HTTP does all of this
// for a protocol over HTTP, which then only has to implement an Exchange.
//
// The reader may rely on two things. Lookup reveals nothing internal: an error
// that is not meant for callers becomes one fixed text. And nobody who is not
// authenticated can hold connections or memory of a listener set up here without
// bound.
package transport

import (
	"cmp"
	"context"
	"errors"
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// Errors that arise before a request reaches the engine.
var (
	// ErrMissingAuthentication: the request does not say who sends it.
	ErrMissingAuthentication = &kmsapi.Error{Code: "MissingAuthenticationTokenException"}
	// ErrIncompleteSignature: the proof of identity cannot be read.
	ErrIncompleteSignature = &kmsapi.Error{Code: "IncompleteSignatureException"}
	// ErrUnknownOperation: there is no such operation, or no such address.
	ErrUnknownOperation = &kmsapi.Error{Code: "UnknownOperationException"}
	// ErrSerialization: the body is not a valid input of the operation.
	ErrSerialization = &kmsapi.Error{Code: "SerializationException"}
	// ErrTooLarge: the body is longer than any request can be.
	ErrTooLarge = &kmsapi.Error{Code: "RequestEntityTooLargeException"}
)

// internalMessage is all that a caller learns about an error that is not meant
// for callers.
const internalMessage = "An internal error occurred. The log of the node that answered has the details under this request's id."

// Answer is what a caller is told about an error.
type Answer struct {
	// Type is the name of the error: that of AWS's exception, which is "__type"
	// in AWS's protocol.
	Type string
	// Message is never empty.
	Message string
	// Encoded is the encoded message of a denial, or "".
	Encoded string
	HTTP    int
	GRPC    codes.Code
	// Internal is set if Message does not say what happened. Then the error
	// itself belongs only in the log.
	Internal bool
}

// row is the part of an Answer that follows from the code.
type row struct {
	http int
	grpc codes.Code
	// text is the message of an error that has none of its own. AWS sends none with
	// some of its exceptions. The text reveals no more than the code does: a caller
	// must not learn what is wrong with a ciphertext, for example.
	text string
}

// table has a row for every code: AWS's HTTP status, which is 400 for nearly
// everything, the gRPC code and the default message. Clients of the AWS
// protocol look only at the name, and repeat requests that failed with 5xx or
// were throttled.
var table = map[kmsapi.Code]row{
	kmsapi.ErrAccessDenied.Code:                 {http.StatusBadRequest, codes.PermissionDenied, "The caller may not do this."},
	kmsapi.ErrAlreadyExists.Code:                {http.StatusBadRequest, codes.AlreadyExists, "What is to be made exists already."},
	kmsapi.ErrDisabled.Code:                     {http.StatusBadRequest, codes.FailedPrecondition, "The key is disabled."},
	kmsapi.ErrDryRun.Code:                       {http.StatusBadRequest, codes.FailedPrecondition, "The request would have succeeded, but the DryRun option is set."},
	kmsapi.ErrIncorrectKey.Code:                 {http.StatusBadRequest, codes.InvalidArgument, "The key ID in the request does not identify a CMK that can perform this operation."},
	kmsapi.ErrInvalidArn.Code:                   {http.StatusBadRequest, codes.InvalidArgument, "The ARN is not valid here."},
	kmsapi.ErrInvalidCiphertext.Code:            {http.StatusBadRequest, codes.InvalidArgument, "The ciphertext cannot be opened: it was changed or cut, was made by another key or cluster, or its encryption context or algorithm is not that of the request."},
	kmsapi.ErrInvalidGrantToken.Code:            {http.StatusBadRequest, codes.InvalidArgument, "The grant token is not valid."},
	kmsapi.ErrInvalidKeyUsage.Code:              {http.StatusBadRequest, codes.FailedPrecondition, "The key cannot be used for this."},
	kmsapi.ErrInvalidMarker.Code:                {http.StatusBadRequest, codes.InvalidArgument, "The marker is not one that the same request returned to this caller."},
	kmsapi.ErrInvalidState.Code:                 {http.StatusBadRequest, codes.FailedPrecondition, "The state of the key or key store does not allow this."},
	kmsapi.ErrInternal.Code:                     {http.StatusInternalServerError, codes.Internal, internalMessage},
	kmsapi.ErrLimitExceeded.Code:                {http.StatusBadRequest, codes.ResourceExhausted, "A quota is used up."},
	kmsapi.ErrMalformedPolicy.Code:              {http.StatusBadRequest, codes.InvalidArgument, "The policy document is not valid."},
	kmsapi.ErrNotAuthorized.Code:                {http.StatusBadRequest, codes.PermissionDenied, "Alias names that begin with alias/aws/ are reserved."},
	kmsapi.ErrNotFound.Code:                     {http.StatusBadRequest, codes.NotFound, "What the request names does not exist."},
	kmsapi.ErrTag.Code:                          {http.StatusBadRequest, codes.InvalidArgument, "The tags are not valid."},
	kmsapi.ErrThrottling.Code:                   {http.StatusBadRequest, codes.ResourceExhausted, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."},
	kmsapi.ErrUnsupported.Code:                  {http.StatusBadRequest, codes.FailedPrecondition, "The operation is not supported for this key or in this cluster."},
	kmsapi.ErrValidation.Code:                   {http.StatusBadRequest, codes.InvalidArgument, "A member of the request is not valid."},
	kmsapi.ErrCustomStoreNotFound.Code:          {http.StatusBadRequest, codes.NotFound, "There is no such custom key store."},
	kmsapi.ErrConflict.Code:                     {http.StatusBadRequest, codes.Aborted, "The request conflicts with another one. Try again later."},
	kmsapi.ErrExpiredImportToken.Code:           {http.StatusBadRequest, codes.InvalidArgument, "The import token has expired. Ask for a new one with GetParametersForImport."},
	kmsapi.ErrIncorrectKeyMaterial.Code:         {http.StatusBadRequest, codes.InvalidArgument, "The key material does not fit the key: it is of a wrong kind or length, or not what was imported into this key before."},
	kmsapi.ErrInvalidGrantID.Code:               {http.StatusBadRequest, codes.InvalidArgument, "The grant ID is not valid."},
	kmsapi.ErrInvalidImportToken.Code:           {http.StatusBadRequest, codes.InvalidArgument, "The import token is not valid, was used before, or is not for this key."},
	kmsapi.ErrInvalidMac.Code:                   {http.StatusBadRequest, codes.InvalidArgument, "The MAC does not verify."},
	kmsapi.ErrInvalidSignatureValue.Code:        {http.StatusBadRequest, codes.InvalidArgument, "The signature does not verify."},
	kmsapi.ErrKeyUnavailable.Code:               {http.StatusInternalServerError, codes.Unavailable, "The key cannot be used now. Try again."},
	kmsapi.ErrCustomStoreInvalidState.Code:      {http.StatusBadRequest, codes.FailedPrecondition, "The state of the custom key store does not allow this."},
	kmsapi.ErrCustomStoreNameInUse.Code:         {http.StatusBadRequest, codes.AlreadyExists, "The custom key store name is in use."},
	kmsapi.ErrCustomStoreHasKeys.Code:           {http.StatusBadRequest, codes.FailedPrecondition, "The custom key store has KMS keys."},
	kmsapi.ErrCloudHsmClusterInUse.Code:         {http.StatusBadRequest, codes.AlreadyExists, "Another custom key store has this CloudHsmClusterId."},
	kmsapi.ErrCloudHsmClusterNotRelated.Code:    {http.StatusBadRequest, codes.InvalidArgument, "The custom key store's key is not in this token."},
	kmsapi.ErrCloudHsmClusterNotFound.Code:      {http.StatusBadRequest, codes.NotFound, "There is no such token."},
	kmsapi.ErrXksKeyAlreadyInUse.Code:           {http.StatusBadRequest, codes.AlreadyExists, "The external key is that of another KMS key."},
	kmsapi.ErrXksKeyInvalidConfiguration.Code:   {http.StatusBadRequest, codes.InvalidArgument, "The external key cannot be used."},
	kmsapi.ErrXksKeyNotFound.Code:               {http.StatusBadRequest, codes.NotFound, "The external key store has no such key."},
	kmsapi.ErrXksProxyBadCredential.Code:        {http.StatusBadRequest, codes.InvalidArgument, "The external key store proxy does not take the credential."},
	kmsapi.ErrXksProxyInvalidConfiguration.Code: {http.StatusBadRequest, codes.InvalidArgument, "The external key store proxy is not configured for this."},
	kmsapi.ErrXksProxyInvalidResponse.Code:      {http.StatusBadRequest, codes.InvalidArgument, "The external key store proxy gave an answer that is not valid."},
	kmsapi.ErrXksProxyURIEndpointInUse.Code:     {http.StatusBadRequest, codes.AlreadyExists, "Another external key store has this endpoint."},
	kmsapi.ErrXksProxyURIInUse.Code:             {http.StatusBadRequest, codes.AlreadyExists, "Another external key store has this endpoint and path."},
	kmsapi.ErrXksProxyURIUnreachable.Code:       {http.StatusBadRequest, codes.Unavailable, "The external key store proxy cannot be reached."},
	kmsapi.ErrXksProxyVpcInvalid.Code:           {http.StatusBadRequest, codes.InvalidArgument, "The VPC endpoint service is not configured for this."},
	kmsapi.ErrXksProxyVpcInUse.Code:             {http.StatusBadRequest, codes.AlreadyExists, "Another external key store has this VPC endpoint service."},
	kmsapi.ErrXksProxyVpcNotFound.Code:          {http.StatusBadRequest, codes.NotFound, "There is no such VPC endpoint service."},
	kmsapi.ErrInvalidAliasName.Code:             {http.StatusBadRequest, codes.InvalidArgument, "The alias name is not valid."},
	kmsapi.ErrUnavailable.Code:                  {http.StatusServiceUnavailable, codes.Unavailable, "The node cannot answer now. Try again."},

	kmsapi.ErrUnrecognizedClient.Code: {http.StatusBadRequest, codes.Unauthenticated, "The security token included in the request is invalid."},
	kmsapi.ErrInvalidSignature.Code:   {http.StatusBadRequest, codes.Unauthenticated, "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."},
	kmsapi.ErrExpiredToken.Code:       {http.StatusBadRequest, codes.Unauthenticated, "The security token included in the request is expired"},

	// Errors of IAM and STS only.
	iamapi.ErrNoSuchEntity.Code:                {http.StatusNotFound, codes.NotFound, "What the request names does not exist."},
	iamapi.ErrEntityAlreadyExists.Code:         {http.StatusConflict, codes.AlreadyExists, "What is to be made exists already."},
	iamapi.ErrLimitExceeded.Code:               {http.StatusConflict, codes.ResourceExhausted, "A quota is used up."},
	iamapi.ErrDeleteConflict.Code:              {http.StatusConflict, codes.FailedPrecondition, "What is to be deleted is still in use."},
	iamapi.ErrConcurrentModification.Code:      {http.StatusConflict, codes.Aborted, "The request conflicts with another one. Try again."},
	iamapi.ErrInvalidInput.Code:                {http.StatusBadRequest, codes.InvalidArgument, "A member of the request is not valid."},
	iamapi.ErrMalformedPolicyDocument.Code:     {http.StatusBadRequest, codes.InvalidArgument, "The policy document is not valid."},
	iamapi.ErrPolicyNotAttachable.Code:         {http.StatusBadRequest, codes.FailedPrecondition, "The policy cannot be attached to this."},
	iamapi.ErrUnmodifiableEntity.Code:          {http.StatusBadRequest, codes.FailedPrecondition, "This cannot be changed by a request."},
	iamapi.ErrPolicyEvaluation.Code:            {http.StatusInternalServerError, codes.Internal, "The policies could not be evaluated."},
	iamapi.ErrOpenIDIdPCommunication.Code:      {http.StatusBadRequest, codes.Unavailable, "The identity provider cannot be reached."},
	iamapi.ErrInvalidIdentityToken.Code:        {http.StatusBadRequest, codes.Unauthenticated, "The web identity token is not valid."},
	iamapi.ErrIDPRejectedClaim.Code:            {http.StatusForbidden, codes.PermissionDenied, "The web identity token's claims are not accepted."},
	iamapi.ErrIDPCommunication.Code:            {http.StatusBadRequest, codes.Unavailable, "The identity provider cannot be reached. Try again."},
	iamapi.ErrPackedPolicyTooLarge.Code:        {http.StatusBadRequest, codes.InvalidArgument, "The session's policies and tags are too large together."},
	iamapi.ErrInvalidAuthorizationMessage.Code: {http.StatusBadRequest, codes.InvalidArgument, "The encoded message is not one that this cluster made."},
	iamapi.ErrRegionDisabled.Code:              {http.StatusForbidden, codes.PermissionDenied, "The cluster does not serve this Region."},

	// Errors of CloudTrail only.
	trailapi.ErrInvalidLookupAttributes.Code: {http.StatusBadRequest, codes.InvalidArgument, "The lookup attributes are not valid."},
	trailapi.ErrInvalidTimeRange.Code:        {http.StatusBadRequest, codes.InvalidArgument, "The time range is not valid."},
	trailapi.ErrInvalidMaxResults.Code:       {http.StatusBadRequest, codes.InvalidArgument, "MaxResults is not valid."},
	trailapi.ErrInvalidNextToken.Code:        {http.StatusBadRequest, codes.InvalidArgument, "The token is not valid."},
	trailapi.ErrInvalidEventCategory.Code:    {http.StatusBadRequest, codes.InvalidArgument, "The event category is not valid."},

	// Errors of operators' calls, which only the gRPC face has.
	ceremony.ErrInitialised.Code:    {http.StatusBadRequest, codes.FailedPrecondition, "The cluster is already initialised."},
	ceremony.ErrNotInitialised.Code: {http.StatusServiceUnavailable, codes.FailedPrecondition, "The cluster is not initialised."},
	ceremony.ErrNotReady.Code:       {http.StatusServiceUnavailable, codes.Unavailable, "The cluster is not ready for this."},
	ceremony.ErrShare.Code:          {http.StatusBadRequest, codes.InvalidArgument, "The share is not valid."},
	ceremony.ErrUnsealed.Code:       {http.StatusBadRequest, codes.FailedPrecondition, "The node is unsealed."},
	ceremony.ErrChallenge.Code:      {http.StatusBadRequest, codes.FailedPrecondition, "The challenge is not this node's current one. Ask for a new one."},
	ceremony.ErrNoCeremony.Code:     {http.StatusBadRequest, codes.FailedPrecondition, "There is no such ceremony on this node."},
	ceremony.ErrNotSettled.Code:     {http.StatusConflict, codes.FailedPrecondition, "The last rotation is not finished."},
	ceremony.ErrNotUpgraded.Code:    {http.StatusBadRequest, codes.FailedPrecondition, "Not all nodes run the new release."},
	ceremony.ErrOwner.Code:          {http.StatusBadRequest, codes.FailedPrecondition, "Another operator began this ceremony."},

	ErrMissingAuthentication.Code: {http.StatusBadRequest, codes.Unauthenticated, "Missing Authentication Token"},
	ErrIncompleteSignature.Code:   {http.StatusBadRequest, codes.Unauthenticated, "The request's signature cannot be read."},
	ErrUnknownOperation.Code:      {http.StatusBadRequest, codes.Unimplemented, "There is no such operation."},
	ErrSerialization.Code:         {http.StatusBadRequest, codes.InvalidArgument, "The request body cannot be read."},
	ErrTooLarge.Code:              {http.StatusRequestEntityTooLarge, codes.ResourceExhausted, "The request body is too large."},
}

// Lookup returns the answer for err, which must not be nil. An error without a
// row in the table is internal.
func Lookup(err error) Answer {
	e, ok := errors.AsType[*kmsapi.Error](err)
	if !ok {
		e = plain(err)
	}
	if r, ok := table[e.Code]; ok && e.Code != kmsapi.ErrInternal.Code {
		return Answer{Type: string(e.Code), Message: cmp.Or(e.Message, r.text), Encoded: e.Encoded, HTTP: r.http, GRPC: r.grpc}
	}
	r := table[kmsapi.ErrInternal.Code]
	return Answer{
		Type:     string(kmsapi.ErrInternal.Code),
		Message:  r.text,
		HTTP:     r.http,
		GRPC:     r.grpc,
		Internal: true,
	}
}

// plain maps errors of packages other than the engine.
func plain(err error) *kmsapi.Error {
	if s, ok := errors.AsType[*sigv4.Error](err); ok {
		return &kmsapi.Error{Code: kmsapi.Code(s.Code), Message: s.Message}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "The request was not answered in time."}
	case errors.Is(err, fsm.ErrOverloaded):
		return &kmsapi.Error{Code: kmsapi.ErrThrottling.Code, Message: "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."}
	case errors.Is(err, fsm.ErrNoLeader), errors.Is(err, fsm.ErrNodeStopped):
		return &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "The cluster has no leader that this node can reach. Try again."}
	case errors.Is(err, fsm.ErrOutcomeUnknown):
		return &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "The cluster did not say in time what became of the request. It may have taken effect."}
	}
	return kmsapi.ErrInternal
}
