package keyengine

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// KeyStoreConfig is what the operator says of custom key stores. It is to be the
// same on all nodes.
type KeyStoreConfig struct {
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

// outer is where the keys of one type of custom key stores are. An error that it
// returns is a *storeFailure, unless the fault is this node's. Implementations are
// safe for concurrent use.
type outer interface {
	// try checks that a store can be what a request wants it to be.
	try(ctx context.Context, s *outerStore) error
	// connect has a store be used, and fails if it cannot be.
	connect(ctx context.Context, s *outerStore) error
	// checkKey checks that a key of a store can be that of a new KMS key.
	checkKey(ctx context.Context, s *outerStore, key string) error
	// encrypt and decrypt are the second encryption.
	encrypt(ctx context.Context, s *outerStore, key string, message, aad []byte) (*keymat.Outer, error)
	decrypt(ctx context.Context, s *outerStore, key string, o *keymat.Outer, aad []byte) ([]byte, error)
	// random makes random bytes.
	random(ctx context.Context, s *outerStore, n int) ([]byte, error)
	close()
}

// KeyStores are the sides of all custom key stores, by the type of a store.
type KeyStores struct {
	types        map[string]outer
	allowPrivate bool
}

func newKeyStores(cfg KeyStoreConfig, now func() time.Time) (*KeyStores, error) {
	s := &KeyStores{types: map[string]outer{kmsapi.OriginXKS: newXKSOuter(cfg, now)}, allowPrivate: cfg.AllowPrivateEndpoints}
	h, err := newHSMOuter(cfg)
	if h != nil {
		s.types[kmsapi.OriginHSM] = h
	}
	return s, err
}

func (s *KeyStores) close() {
	for _, o := range s.types {
		o.close()
	}
}

// outerStore is a store, with what its side is told of the request.
type outerStore struct {
	*fsmpb.KeyStore
	// secret lends the store's secret.
	secret                                func(use func(secret []byte) error) error
	principal, keyARN, operation, request string
}

// storeFailure is something that a custom key store does not do. Each kind of
// operation tells of it with an error of its own, and the same message.
type storeFailure struct {
	store      *kmsapi.Error // of operations on key stores
	key        *kmsapi.Error // of CreateKey
	connection string        // ConnectionErrorCode
	message    string
	err        error // for the node's log
}

func (f *storeFailure) Error() string { return f.err.Error() }
func (f *storeFailure) Unwrap() error { return f.err }

// failedStore is a store that answers what makes no sense.
func failedStore(err error) error {
	return &storeFailure{
		store: kmsapi.ErrXksProxyInvalidResponse, key: kmsapi.ErrCustomStoreInvalidState, connection: "XKS_PROXY_INVALID_RESPONSE",
		message: malformedMessage, err: err,
	}
}

func unsupportedStore(kind string) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "Custom key stores of type %s are not supported by this build of Conclave.", kind)
}
