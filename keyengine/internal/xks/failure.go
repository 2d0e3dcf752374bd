package xks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// Failure is the reason why a call failed. Compare it with errors.Is.
type Failure string

// Error returns the name of the failure.
func (f Failure) Error() string { return "external key store proxy: " + string(f) }

// Errors of proxies, by their names in the specification.
const (
	ErrValidation        Failure = "ValidationException"
	ErrInvalidState      Failure = "InvalidStateException"
	ErrInvalidCiphertext Failure = "InvalidCiphertextException"
	ErrInvalidKeyUsage   Failure = "InvalidKeyUsageException"
	ErrAuthentication    Failure = "AuthenticationFailedException"
	ErrAccessDenied      Failure = "AccessDeniedException"
	ErrKeyNotFound       Failure = "KeyNotFoundException"
	ErrInvalidPath       Failure = "InvalidUriPathException"
	ErrThrottling        Failure = "ThrottlingException"
	ErrInternal          Failure = "InternalException"
	ErrUnsupported       Failure = "UnsupportedOperationException"
	ErrDependency        Failure = "DependencyTimeoutException"
)

// Errors of the connection and of the answer.
const (
	ErrUnreachable Failure = "no connection"
	ErrAddress     Failure = "address is not public"
	ErrTLS         Failure = "no TLS connection"
	ErrTimeout     Failure = "no answer in time"
	ErrMalformed   Failure = "malformed answer"
	ErrUnavailable Failure = "no external key manager is available"
)

// statusOf is the HTTP status for each error name. If an answer's status and name do not
// match, it is malformed.
var statusOf = map[Failure]int{
	ErrValidation: http.StatusBadRequest, ErrInvalidState: http.StatusBadRequest, ErrInvalidCiphertext: http.StatusBadRequest,
	ErrInvalidKeyUsage: http.StatusBadRequest, ErrAuthentication: http.StatusUnauthorized, ErrAccessDenied: http.StatusForbidden,
	ErrKeyNotFound: http.StatusNotFound, ErrInvalidPath: http.StatusNotFound, ErrThrottling: http.StatusTooManyRequests,
	ErrInternal: http.StatusInternalServerError, ErrUnsupported: http.StatusNotImplemented, ErrDependency: http.StatusServiceUnavailable,
}

// Failures returns all failures.
func Failures() []Failure {
	all := []Failure{ErrUnreachable, ErrAddress, ErrTLS, ErrTimeout, ErrMalformed, ErrUnavailable}
	for f := range statusOf {
		all = append(all, f)
	}
	return all
}

// transportFailure returns the Failure for an error of the HTTP client.
func transportFailure(ctx context.Context, err error) error {
	kind := ErrUnreachable
	var (
		timeout net.Error
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		alert   tls.AlertError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
	)
	switch {
	case errors.Is(err, ErrAddress):
		return err
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		kind = ErrTimeout
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &cert), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &unknown), errors.As(err, &host):
		kind = ErrTLS
	}
	return fmt.Errorf("%w: %w", kind, err)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}
