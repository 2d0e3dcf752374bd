package keystore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/xks"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// xksBackend is the backend of external key stores, which calls their proxies.
type xksBackend struct{ client *xks.Client }

func newXKS(cfg Config, now func() time.Time) *xksBackend {
	return &xksBackend{client: xks.New(xks.Config{
		AllowPrivate: cfg.AllowPrivateEndpoints, Roots: cfg.Roots, Timeout: cfg.Timeout, Now: now,
	})}
}

func (s *Store) proxy() *xks.Proxy {
	return &xks.Proxy{
		Endpoint: s.Endpoint, Path: s.Path, Region: s.Region, AccessKeyID: s.AccessKey,
		SigningKey: func(dst []byte, date, region, service string) error {
			return s.Secret(func(secret []byte) error {
				sigv4.Derive(dst, secret, date, region, service)
				return nil
			})
		},
	}
}

func (s *Store) origin() xks.Origin {
	return xks.Origin{Principal: s.Principal, Key: s.KeyARN, Operation: s.Operation, RequestID: s.Request}
}

// Try implements [Backend].
func (x *xksBackend) Try(ctx context.Context, s *Store) error { return x.Connect(ctx, s) }

// Connect implements [Backend].
func (x *xksBackend) Connect(ctx context.Context, s *Store) error {
	return xksFailure(x.client.Health(ctx, s.proxy(), s.origin()))
}

// CheckKey implements [Backend].
func (x *xksBackend) CheckKey(ctx context.Context, s *Store, key string) error {
	m, err := x.client.KeyMetadata(ctx, s.proxy(), s.origin(), key)
	switch {
	case err != nil:
		return xksFailure(err)
	case !m.Enabled:
		return xksFailure(fmt.Errorf("external key is disabled: %w", xks.ErrInvalidState))
	case !m.Fits():
		return &Failure{
			Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrXksKeyInvalidConfiguration, Connection: "INTERNAL_ERROR",
			Message: "The external key is not a 256-bit AES key that encrypts and decrypts.", Err: errors.New("external key of another kind"),
		}
	}
	return nil
}

// Encrypt implements [Backend].
func (x *xksBackend) Encrypt(ctx context.Context, s *Store, key string, message, aad []byte) (*keymat.Outer, error) {
	sealed, err := x.client.Encrypt(ctx, s.proxy(), s.origin(), key, message, aad)
	if err != nil {
		return nil, xksFailure(err)
	}
	return &keymat.Outer{Body: sealed.Ciphertext, IV: sealed.IV, Tag: sealed.Tag, Metadata: sealed.Metadata}, nil
}

// Decrypt implements [Backend].
func (x *xksBackend) Decrypt(ctx context.Context, s *Store, key string, o *keymat.Outer, aad []byte) ([]byte, error) {
	message, err := x.client.Decrypt(ctx, s.proxy(), s.origin(), key, &xks.Sealed{Ciphertext: o.Body, IV: o.IV, Tag: o.Tag, Metadata: o.Metadata}, aad)
	return message, xksFailure(err)
}

// Random implements [Backend].
func (x *xksBackend) Random(context.Context, *Store, int) ([]byte, error) {
	return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "External key stores generate no random bytes.")
}

func (x *xksBackend) close() { x.client.Close() }

// AWS's messages that apply to several failures.
const (
	MalformedMessage = "AWS KMS cannot interpret the response from the external key store proxy. If you see this error repeatedly, report it to your external key store proxy administrator."
	ReachMessage     = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue. If you see this error repeatedly, verify that your external key store proxy is active and is connected to the network, and that its endpoint URI is correct in your external key store."
)

// XksFailures has the Failure for each failure of a proxy. Cryptographic operations report
// all of them as KMSInvalidStateException.
var XksFailures = map[xks.Failure]Failure{
	xks.ErrValidation: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE", Message: MalformedMessage},
	xks.ErrInvalidState: {Store: kmsapi.ErrXksProxyInvalidConfiguration, Key: kmsapi.ErrXksKeyInvalidConfiguration, Connection: "XKS_PROXY_INVALID_CONFIGURATION",
		Message: "The external key associated with this KMS key in an external key store is not enabled in the external key manager. Enable the external key in the external key manager and retry the request."},
	xks.ErrInvalidCiphertext: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: "The external key store proxy rejected the request because the specified ciphertext or encryption context is corrupted, missing, or otherwise invalid."},
	xks.ErrInvalidKeyUsage: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrXksKeyInvalidConfiguration, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: "The external key associated with this KMS key in an external key store does not support the requested operation. Enable the operation on the key in your external key manager, and try the request again."},
	xks.ErrAuthentication: {Store: kmsapi.ErrXksProxyBadCredential, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "INVALID_CREDENTIALS",
		Message: "The external key store proxy rejected the request because it could not authenticate AWS KMS. Verify the XKS proxy authentication credentials for your external key store and update if necessary."},
	xks.ErrAccessDenied: {Store: kmsapi.ErrXksProxyInvalidConfiguration, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_ACCESS_DENIED",
		Message: "The external key store proxy denied access to the operation. Verify that the user and the external key are both authorized for this operation, and try the request again."},
	xks.ErrKeyNotFound: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrXksKeyNotFound, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: "The external key associated with this KMS key in an external key store was not found in its external key manager. If the external key ID associated with this KMS key is incorrect, create a new KMS key with the correct external key ID."},
	xks.ErrInvalidPath: {Store: kmsapi.ErrXksProxyInvalidConfiguration, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_CONFIGURATION",
		Message: "The external key store proxy rejected the request because of an invalid URI path. Verify the URI path for your external key store and update if necessary."},
	xks.ErrThrottling: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_NOT_REACHABLE",
		Message: "The external key store proxy rejected the request due to a very high request rate. Reduce the frequency of your calls using KMS keys in this external key store."},
	xks.ErrInternal: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: "The external key store proxy rejected the request because it cannot communicate with the external key manager. Verify that the external key store proxy configuration is correct and that the external key manager is available."},
	xks.ErrUnsupported: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: "The external key store proxy rejected the request because it does not support the requested operation. If you see this error repeatedly, report it to your external key store proxy administrator."},
	xks.ErrDependency: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_TIMED_OUT",
		Message: "The external key store proxy did not respond to the request in the time allotted. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator."},
	xks.ErrUnreachable: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_NOT_REACHABLE", Message: ReachMessage},
	xks.ErrAddress:     {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_NOT_REACHABLE", Message: ReachMessage},
	xks.ErrUnavailable: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_NOT_REACHABLE", Message: ReachMessage},
	xks.ErrTLS: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_TLS_CONFIGURATION",
		Message: "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS configuration, including its certificate."},
	xks.ErrTimeout: {Store: kmsapi.ErrXksProxyURIUnreachable, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_TIMED_OUT",
		Message: "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator."},
	xks.ErrMalformed: {Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE", Message: MalformedMessage},
}

// xksFailure translates a failure of a proxy into a *Failure. It returns other errors
// unchanged, for instance if the node was sealed in the meantime.
func xksFailure(err error) error {
	f, ok := errors.AsType[xks.Failure](err)
	if !ok {
		return err
	}
	row, ok := XksFailures[f]
	if !ok {
		return fmt.Errorf("a failure that has no row: %w", err)
	}
	row.Err = err
	return &row
}
