package kmsapi

import "fmt"

// Code is the name of an outcome other than success: AWS's exception names where
// AWS has one. It stands in the audit record and, by the table in transport, in
// every face's answer.
type Code string

// Error is an outcome that a caller is told. Its message is written for the
// caller: nothing internal ever stands in it.
type Error struct {
	Code Code
	// Message is empty where AWS sends none, in records as in CloudTrail's. The faces
	// then say what the code means.
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// Is makes errors.Is compare codes with the sentinels below.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// Outcomes. Each is matched with errors.Is.
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

	// ErrUnavailable: the node cannot answer now and the caller may try again:
	// it is sealed, has no majority, or gave up waiting for one.
	ErrUnavailable = &Error{Code: "ServiceUnavailable"}
)

// Failures of authentication. They never reach the replicated log.
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

// Errors are all outcomes above and failures of authentication.
func Errors() []*Error { return codes }

// Errorf returns an outcome of the same code as kind, with a message for the caller.
func Errorf(kind *Error, format string, args ...any) *Error {
	return &Error{Code: kind.Code, Message: fmt.Sprintf(format, args...)}
}
