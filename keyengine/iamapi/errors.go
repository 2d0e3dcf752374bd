package iamapi

import "github.com/conclavekms/conclave/keyengine/kmsapi"

// Outcomes that only IAM and STS have, by the codes that AWS's answers have, from which the
// names of the exceptions in SDKs differ: NoSuchEntity is NoSuchEntityException there.
// Compare them with errors.Is. Other outcomes, such as ErrAccessDenied, are those of kmsapi,
// and the face gives them the names that they have in these services. A web identity token
// that has expired is kmsapi.ErrExpiredToken.
var (
	ErrNoSuchEntity                = &kmsapi.Error{Code: "NoSuchEntity"}
	ErrEntityAlreadyExists         = &kmsapi.Error{Code: "EntityAlreadyExists"}
	ErrLimitExceeded               = &kmsapi.Error{Code: "LimitExceeded"}
	ErrDeleteConflict              = &kmsapi.Error{Code: "DeleteConflict"}
	ErrConcurrentModification      = &kmsapi.Error{Code: "ConcurrentModification"}
	ErrInvalidInput                = &kmsapi.Error{Code: "InvalidInput"}
	ErrMalformedPolicyDocument     = &kmsapi.Error{Code: "MalformedPolicyDocument"}
	ErrPolicyNotAttachable         = &kmsapi.Error{Code: "PolicyNotAttachable"}
	ErrUnmodifiableEntity          = &kmsapi.Error{Code: "UnmodifiableEntity"}
	ErrPolicyEvaluation            = &kmsapi.Error{Code: "PolicyEvaluation"}
	ErrOpenIDIdPCommunication      = &kmsapi.Error{Code: "OpenIdIdpCommunicationError"}
	ErrInvalidIdentityToken        = &kmsapi.Error{Code: "InvalidIdentityToken"}
	ErrIDPRejectedClaim            = &kmsapi.Error{Code: "IDPRejectedClaim"}
	ErrIDPCommunication            = &kmsapi.Error{Code: "IDPCommunicationError"}
	ErrPackedPolicyTooLarge        = &kmsapi.Error{Code: "PackedPolicyTooLarge"}
	ErrInvalidAuthorizationMessage = &kmsapi.Error{Code: "InvalidAuthorizationMessageException"}
	ErrRegionDisabled              = &kmsapi.Error{Code: "RegionDisabledException"}
)

var codes = []*kmsapi.Error{
	ErrNoSuchEntity, ErrEntityAlreadyExists, ErrLimitExceeded, ErrDeleteConflict, ErrConcurrentModification, ErrInvalidInput,
	ErrMalformedPolicyDocument, ErrPolicyNotAttachable, ErrUnmodifiableEntity, ErrPolicyEvaluation, ErrOpenIDIdPCommunication,
	ErrInvalidIdentityToken, ErrIDPRejectedClaim, ErrIDPCommunication, ErrPackedPolicyTooLarge, ErrInvalidAuthorizationMessage,
	ErrRegionDisabled,
}

// Errors returns all outcomes above.
func Errors() []*kmsapi.Error { return codes }
