package keystore

import (
	"context"
	"crypto/x509"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Config is the operator's configuration of custom key stores. It must be the same on all
// nodes.
type Config struct {
	// AllowPrivateEndpoints permits external key stores at addresses that are not public
	// and, unlike AWS, at ports other than 443. Callers who may create key stores can then
	// make the nodes send requests into the operator's network.
	AllowPrivateEndpoints bool
	// Roots are the certificate authorities of external key stores. The default is the
	// system's.
	Roots *x509.CertPool
	// Timeout is that of a call to an external key store proxy. The default is AWS's, 250
	// ms.
	Timeout time.Duration

	// PKCS11Module is the path of a PKCS #11 module, and PKCS11Tokens maps the
	// CloudHsmClusterIds that callers use to the labels of its tokens. Both require a
	// binary that was built with the tag pkcs11.
	PKCS11Module string
	PKCS11Tokens map[string]string
}

// Backend accesses one type of custom key store. Its errors are a *Failure, unless the
// failure is on this node. Implementations are safe for concurrent use.
type Backend interface {
	// Try checks that a store can be used with the requested settings.
	Try(ctx context.Context, s *Store) error
	// Connect connects to a store, or fails if it cannot be used.
	Connect(ctx context.Context, s *Store) error
	// CheckKey checks that a key of a store can be used for a new KMS key.
	CheckKey(ctx context.Context, s *Store, key string) error
	// Encrypt and Decrypt perform the second encryption.
	Encrypt(ctx context.Context, s *Store, key string, message, aad []byte) (*keymat.Outer, error)
	Decrypt(ctx context.Context, s *Store, key string, o *keymat.Outer, aad []byte) ([]byte, error)
	// Random returns n random bytes.
	Random(ctx context.Context, s *Store, n int) ([]byte, error)
	close()
}

// Backends has the backends of all types of custom key stores.
type Backends struct {
	types        map[string]Backend
	allowPrivate bool
}

// Open returns the backends that cfg and this binary support.
func Open(cfg Config, now func() time.Time) (*Backends, error) {
	s := &Backends{types: map[string]Backend{kmsapi.OriginXKS: newXKS(cfg, now)}, allowPrivate: cfg.AllowPrivateEndpoints}
	h, err := newHSM(cfg)
	if h != nil {
		s.types[kmsapi.OriginHSM] = h
	}
	return s, err
}

// Of returns the backend for a type of store, or nil if this binary has none.
func (s *Backends) Of(kind string) Backend { return s.types[kind] }

// Close closes all backends.
func (s *Backends) Close() {
	for _, o := range s.types {
		o.close()
	}
}

// Store is a store, with the details of the request that calls it.
type Store struct {
	*fsmpb.KeyStore
	// Secret calls use with the store's secret, which use must not keep.
	Secret                                func(use func(secret []byte) error) error
	Principal, KeyARN, Operation, Request string
}

// Failure is the failure of a call to a custom key store. Each kind of operation has its
// own error for it, with the same message.
type Failure struct {
	Store      *kmsapi.Error // for operations on key stores
	Key        *kmsapi.Error // for CreateKey
	Connection string        // ConnectionErrorCode
	Message    string
	Err        error // for the node's log
}

// Error returns the text of Err.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// Failed returns the Failure of a store with an invalid response.
func Failed(err error) error {
	return &Failure{
		Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: MalformedMessage, Err: err,
	}
}

// Unsupported returns the error for a type of store that this binary does not support.
func Unsupported(kind string) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "Custom key stores of type %s are not supported by this build of Conclave.", kind)
}

// EndpointAllowed checks an endpoint that matches its pattern, which permits a port. AWS
// does not accept ports, so they are refused unless private endpoints are allowed.
func (s *Backends) EndpointAllowed(endpoint string) error {
	refused := kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: Value at 'xksProxyUriEndpoint' failed to satisfy constraint: "+
		"Member must satisfy regular expression pattern: %s", kmsapi.PatternOf("xksEndpoint").String())
	u, err := url.Parse(endpoint)
	if err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") {
		return refused
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !s.allowPrivate {
			return refused
		}
	}
	return nil
}
