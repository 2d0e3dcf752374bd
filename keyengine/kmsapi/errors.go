package kmsapi

import "fmt"

// Code is the name of an outcome other than success: AWS's exception name, if there is one.
// It is part of the audit record and, by the table in transport, of the answer of every
// face.
type Code string

// Error is an outcome that is returned to the caller. Its message is written for the caller
// and never contains internal details.
type Error struct {
	Code Code
	// Message is empty if AWS sends none, as in CloudTrail. Faces then describe the code.
	Message string
	// Encoded is what DecodeAuthorizationMessage explains a denial from. It is encrypted,
	// and empty for other outcomes.
	Encoded string
}

// Error returns the code and the message.
func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// Is makes errors.Is compare errors by their codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// Outcomes. Compare them with errors.Is.
var (
	ErrAccessDenied                 = &Error{Code: "AccessDeniedException"}
	ErrAlreadyExists                = &Error{Code: "AlreadyExistsException"}
	ErrDisabled                     = &Error{Code: "DisabledException"}
	ErrDryRun                       = &Error{Code: "DryRunOperationException"}
	ErrIncorrectKey                 = &Error{Code: "IncorrectKeyException"}
	ErrInvalidArn                   = &Error{Code: "InvalidArnException"}
	ErrInvalidCiphertext            = &Error{Code: "InvalidCiphertextException"}
	ErrInvalidGrantToken            = &Error{Code: "InvalidGrantTokenException"}
	ErrInvalidKeyUsage              = &Error{Code: "InvalidKeyUsageException"}
	ErrInvalidMarker                = &Error{Code: "InvalidMarkerException"}
	ErrInvalidState                 = &Error{Code: "KMSInvalidStateException"}
	ErrInternal                     = &Error{Code: "KMSInternalException"}
	ErrLimitExceeded                = &Error{Code: "LimitExceededException"}
	ErrMalformedPolicy              = &Error{Code: "MalformedPolicyDocumentException"}
	ErrNotAuthorized                = &Error{Code: "NotAuthorizedException"}
	ErrNotFound                     = &Error{Code: "NotFoundException"}
	ErrTag                          = &Error{Code: "TagException"}
	ErrThrottling                   = &Error{Code: "ThrottlingException"}
	ErrUnsupported                  = &Error{Code: "UnsupportedOperationException"}
	ErrValidation                   = &Error{Code: "ValidationException"}
	ErrCustomStoreNotFound          = &Error{Code: "CustomKeyStoreNotFoundException"}
	ErrConflict                     = &Error{Code: "ConflictException"}
	ErrExpiredImportToken           = &Error{Code: "ExpiredImportTokenException"}
	ErrIncorrectKeyMaterial         = &Error{Code: "IncorrectKeyMaterialException"}
	ErrInvalidGrantID               = &Error{Code: "InvalidGrantIdException"}
	ErrInvalidImportToken           = &Error{Code: "InvalidImportTokenException"}
	ErrInvalidMac                   = &Error{Code: "KMSInvalidMacException"}
	ErrInvalidSignatureValue        = &Error{Code: "KMSInvalidSignatureException"}
	ErrKeyUnavailable               = &Error{Code: "KeyUnavailableException"}
	ErrCustomStoreInvalidState      = &Error{Code: "CustomKeyStoreInvalidStateException"}
	ErrCustomStoreNameInUse         = &Error{Code: "CustomKeyStoreNameInUseException"}
	ErrCustomStoreHasKeys           = &Error{Code: "CustomKeyStoreHasCMKsException"}
	ErrCloudHsmClusterInUse         = &Error{Code: "CloudHsmClusterInUseException"}
	ErrCloudHsmClusterNotRelated    = &Error{Code: "CloudHsmClusterNotRelatedException"}
	ErrCloudHsmClusterNotFound      = &Error{Code: "CloudHsmClusterNotFoundException"}
	ErrXksKeyAlreadyInUse           = &Error{Code: "XksKeyAlreadyInUseException"}
	ErrXksKeyInvalidConfiguration   = &Error{Code: "XksKeyInvalidConfigurationException"}
	ErrXksKeyNotFound               = &Error{Code: "XksKeyNotFoundException"}
	ErrXksProxyBadCredential        = &Error{Code: "XksProxyIncorrectAuthenticationCredentialException"}
	ErrXksProxyInvalidConfiguration = &Error{Code: "XksProxyInvalidConfigurationException"}
	ErrXksProxyInvalidResponse      = &Error{Code: "XksProxyInvalidResponseException"}
	ErrXksProxyURIEndpointInUse     = &Error{Code: "XksProxyUriEndpointInUseException"}
	ErrXksProxyURIInUse             = &Error{Code: "XksProxyUriInUseException"}
	ErrXksProxyURIUnreachable       = &Error{Code: "XksProxyUriUnreachableException"}
	ErrXksProxyVpcInvalid           = &Error{Code: "XksProxyVpcEndpointServiceInvalidConfigurationException"}
	ErrXksProxyVpcInUse             = &Error{Code: "XksProxyVpcEndpointServiceInUseException"}
	ErrXksProxyVpcNotFound          = &Error{Code: "XksProxyVpcEndpointServiceNotFoundException"}
	ErrInvalidAliasName             = &Error{Code: "InvalidAliasNameException"}

	// ErrUnavailable means that the node cannot answer now and that the caller may try
	// again: it is sealed, has no majority, or timed out waiting for one.
	ErrUnavailable = &Error{Code: "ServiceUnavailable"}
)

// Failures of authentication. They are never recorded in the replicated log.
var (
	ErrUnrecognizedClient = &Error{Code: "UnrecognizedClientException"}
	ErrInvalidSignature   = &Error{Code: "InvalidSignatureException"}
	ErrExpiredToken       = &Error{Code: "ExpiredTokenException"}
)

var codes = []*Error{
	ErrAccessDenied, ErrAlreadyExists, ErrDisabled, ErrDryRun, ErrIncorrectKey, ErrInvalidArn, ErrInvalidCiphertext,
	ErrInvalidGrantToken, ErrInvalidKeyUsage, ErrInvalidMarker, ErrInvalidState, ErrInternal, ErrLimitExceeded,
	ErrMalformedPolicy, ErrNotAuthorized, ErrNotFound, ErrTag, ErrThrottling, ErrUnsupported, ErrValidation,
	ErrCustomStoreNotFound, ErrConflict, ErrExpiredImportToken, ErrIncorrectKeyMaterial, ErrInvalidGrantID, ErrInvalidImportToken, ErrInvalidMac, ErrInvalidSignatureValue, ErrKeyUnavailable, ErrCustomStoreInvalidState, ErrCustomStoreNameInUse, ErrCustomStoreHasKeys, ErrCloudHsmClusterInUse, ErrCloudHsmClusterNotRelated, ErrCloudHsmClusterNotFound, ErrXksKeyAlreadyInUse, ErrXksKeyInvalidConfiguration, ErrXksKeyNotFound, ErrXksProxyBadCredential, ErrXksProxyInvalidConfiguration, ErrXksProxyInvalidResponse, ErrXksProxyURIEndpointInUse, ErrXksProxyURIInUse, ErrXksProxyURIUnreachable, ErrXksProxyVpcInvalid, ErrXksProxyVpcInUse, ErrXksProxyVpcNotFound, ErrInvalidAliasName, ErrUnavailable, ErrUnrecognizedClient, ErrInvalidSignature, ErrExpiredToken,
}

// Errors returns all outcomes above, including failures of authentication.
func Errors() []*Error { return codes }

// Errorf returns an error with the code of kind and a message for the caller.
func Errorf(kind *Error, format string, args ...any) *Error {
	return &Error{Code: kind.Code, Message: fmt.Sprintf(format, args...)}
}
