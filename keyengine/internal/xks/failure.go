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

// Failure is why a call gave no result. It is compared with errors.Is.
type Failure string

func (f Failure) Error() string { return "external key store proxy: " + string(f) }

// What proxies say, by the names of the specification.
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

// What goes wrong on the way to a proxy and back.
const (
	ErrUnreachable Failure = "no connection"
	ErrAddress     Failure = "address is not public"
	ErrTLS         Failure = "no TLS connection"
	ErrTimeout     Failure = "no answer in time"
	ErrMalformed   Failure = "malformed answer"
	ErrUnavailable Failure = "no external key manager is available"
)

// statusOf is the HTTP status that goes with each name. An answer whose status and
// name differ is malformed: whoever sent it is no proxy of the specification.
var statusOf = map[Failure]int{
	ErrValidation: http.StatusBadRequest, ErrInvalidState: http.StatusBadRequest, ErrInvalidCiphertext: http.StatusBadRequest,
	ErrInvalidKeyUsage: http.StatusBadRequest, ErrAuthentication: http.StatusUnauthorized, ErrAccessDenied: http.StatusForbidden,
	ErrKeyNotFound: http.StatusNotFound, ErrInvalidPath: http.StatusNotFound, ErrThrottling: http.StatusTooManyRequests,
	ErrInternal: http.StatusInternalServerError, ErrUnsupported: http.StatusNotImplemented, ErrDependency: http.StatusServiceUnavailable,
}

// Failures are all of them.
func Failures() []Failure {
	all := []Failure{ErrUnreachable, ErrAddress, ErrTLS, ErrTimeout, ErrMalformed, ErrUnavailable}
	for f := range statusOf {
		all = append(all, f)
	}
	return all
}

// transportFailure says what an error of the HTTP client means.
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
