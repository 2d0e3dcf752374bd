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

// Config is what the operator says of custom key stores. It is to be the
// same on all nodes.
type Config struct {
	// AllowPrivateEndpoints lets external key stores be at addresses that are not
	// public, and at ports other than 443, which AWS does not have. Whoever may
	// create key stores can then have the nodes send requests into their network.
	AllowPrivateEndpoints bool
	// Roots are the authorities of external key stores' certificates; nil for the
	// system's.
	Roots *x509.CertPool
	// Timeout of a call to an external key store proxy; 0 for AWS's 250 ms.
	Timeout time.Duration

	// PKCS11Module is the path of a PKCS #11 module, and PKCS11Tokens the labels of
	// its tokens by the CloudHsmClusterId that callers have for each. They need a
	// binary that was built with the tag pkcs11.
	PKCS11Module string
	PKCS11Tokens map[string]string
}

// Backend is where the keys of one type of custom key stores are. An error that it
// returns is a *Failure, unless the fault is this node's. Implementations are
// safe for concurrent use.
type Backend interface {
	// Try checks that a store can be what a request wants it to be.
	Try(ctx context.Context, s *Store) error
	// Connect has a store be used, and fails if it cannot be.
	Connect(ctx context.Context, s *Store) error
	// CheckKey checks that a key of a store can be that of a new KMS key.
	CheckKey(ctx context.Context, s *Store, key string) error
	// Encrypt and decrypt are the second encryption.
	Encrypt(ctx context.Context, s *Store, key string, message, aad []byte) (*keymat.Outer, error)
	Decrypt(ctx context.Context, s *Store, key string, o *keymat.Outer, aad []byte) ([]byte, error)
	// Random makes random bytes.
	Random(ctx context.Context, s *Store, n int) ([]byte, error)
	close()
}

// Backends are the sides of all custom key stores, by the type of a store.
type Backends struct {
	types        map[string]Backend
	allowPrivate bool
}

func Open(cfg Config, now func() time.Time) (*Backends, error) {
	s := &Backends{types: map[string]Backend{kmsapi.OriginXKS: newXKS(cfg, now)}, allowPrivate: cfg.AllowPrivateEndpoints}
	h, err := newHSM(cfg)
	if h != nil {
		s.types[kmsapi.OriginHSM] = h
	}
	return s, err
}

// Of is the backend of stores of a type; nil when there is none in this binary.
func (s *Backends) Of(kind string) Backend { return s.types[kind] }

func (s *Backends) Close() {
	for _, o := range s.types {
		o.close()
	}
}

// Store is a store, with what its side is told of the request.
type Store struct {
	*fsmpb.KeyStore
	// Secret lends the store's secret.
	Secret                                func(use func(secret []byte) error) error
	Principal, KeyARN, Operation, Request string
}

// Failure is something that a custom key store does not do. Each kind of
// operation tells of it with an error of its own, and the same message.
type Failure struct {
	Store      *kmsapi.Error // of operations on key stores
	Key        *kmsapi.Error // of CreateKey
	Connection string        // ConnectionErrorCode
	Message    string
	Err        error // for the node's log
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// Failed is a store that answers what makes no sense.
func Failed(err error) error {
	return &Failure{
		Store: kmsapi.ErrXksProxyInvalidResponse, Key: kmsapi.ErrCustomStoreInvalidState, Connection: "XKS_PROXY_INVALID_RESPONSE",
		Message: MalformedMessage, Err: err,
	}
}

func Unsupported(kind string) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "Custom key stores of type %s are not supported by this build of Conclave.", kind)
}

// EndpointAllowed checks an endpoint that matched the pattern, which takes a port:
// AWS takes none, and neither does a node whose operator has not allowed private
// endpoints.
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
