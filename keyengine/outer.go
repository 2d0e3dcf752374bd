package keyengine

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
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

func newKeyStores(cfg Config) (*KeyStores, error) {
	s := &KeyStores{types: map[string]outer{kmsapi.OriginXKS: newXKSOuter(cfg)}, allowPrivate: cfg.KeyStores.AllowPrivateEndpoints}
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

// fromStore is a failure of a key store as an operation tells of it: as the error
// that pick chooses.
func fromStore(ev *eval, s *fsmpb.KeyStore, err error, pick func(*storeFailure) *kmsapi.Error) error {
	f, ok := errors.AsType[*storeFailure](err)
	if !ok {
		return err
	}
	ev.Log.Warn("key store failed", "key_store", s.Id, "operation", ev.op.Name, "request_id", formatUUID(ev.caller.RequestID), "err", f.err)
	return kmsapi.Errorf(pick(f), "%s", f.message)
}

func storeError(f *storeFailure) *kmsapi.Error     { return f.store }
func storeKeyError(f *storeFailure) *kmsapi.Error  { return f.key }
func storeCryptoError(*storeFailure) *kmsapi.Error { return kmsapi.ErrInvalidState }

// outerFor is the side of a store, and what it is told of the request. arn is that
// of the key, if there is one.
func outerFor(ev *eval, s *fsmpb.KeyStore, arn string) (outer, *outerStore, error) {
	o := ev.Stores.types[s.Type]
	if o == nil {
		return nil, nil, unsupportedStore(s.Type)
	}
	return o, &outerStore{
		KeyStore: s,
		secret: func(use func([]byte) error) error {
			return ev.Vault.WithStoreSecret(s, use)
		},
		principal: ev.caller.Identity.principal.String(), keyARN: arn, operation: ev.op.Name, request: formatUUID(ev.caller.RequestID),
	}, nil
}

// connectStore has a store be used.
func connectStore(ev *eval, s *fsmpb.KeyStore) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	_, err = ev.outside(outsideName("connect", []byte(s.Id), version(s)), func() ([]byte, error) { return nil, o.connect(ev.ctx, to) })
	return err
}

// tryStore has a store with new settings tried out before they are taken. Its secret
// is not wrapped yet.
func tryStore(ev *eval, s *fsmpb.KeyStore, secret []byte) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	to.secret = func(use func([]byte) error) error { return use(secret) }
	name := outsideName("try", []byte(s.Id), version(s), []byte(s.Endpoint), []byte(s.Path), []byte(s.AccessKey), secret)
	_, err = ev.outside(name, func() ([]byte, error) { return nil, o.try(ev.ctx, to) })
	return fromStore(ev, s, err, storeError)
}

// storeRandom has a store make random bytes.
func storeRandom(ev *eval, s *fsmpb.KeyStore, n int) ([]byte, error) {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return nil, err
	}
	b, err := ev.outside(outsideName("random", []byte(s.Id), version(s)), func() ([]byte, error) { return o.random(ev.ctx, to, n) })
	return b, fromStore(ev, s, err, storeKeyError)
}

// checkStoreKey checks the external key of a new KMS key.
func checkStoreKey(ev *eval, s *fsmpb.KeyStore, key string) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	name := outsideName("key", []byte(s.Id), version(s), []byte(key))
	_, err = ev.outside(name, func() ([]byte, error) { return nil, o.checkKey(ev.ctx, to, key) })
	return fromStore(ev, s, err, storeKeyError)
}

// sealOuter encrypts under the newest material of a key in a custom key store, and
// has the store encrypt that.
func sealOuter(ev *eval, t *target, m *fsmpb.Material, plaintext []byte, context map[string]string) ([]byte, error) {
	s, err := storeOf(ev, t.key)
	if err != nil {
		return nil, err
	}
	o, to, err := outerFor(ev, s, t.arn)
	if err != nil {
		return nil, err
	}
	h := headerOf(ev, t, m)
	name := outsideName("encrypt", []byte(s.Id), version(s), t.id.Bytes(), m.Id, plaintext, keymat.ContextForm(context))
	blob, err := ev.outside(name, func() ([]byte, error) {
		var inner []byte
		err := ev.Vault.WithMaterial(t.key, m, func(material []byte) (err error) {
			inner, err = keymat.SealMessage(material, h, plaintext, context)
			return err
		})
		if err != nil {
			return nil, err
		}
		sealed, err := o.encrypt(ev.ctx, to, t.key.XksKey, inner, keymat.OuterAAD(h))
		if err != nil {
			return nil, err
		}
		var blob []byte
		err = ev.Vault.WithMaterial(t.key, m, func(material []byte) (err error) {
			blob, err = keymat.JoinOuter(material, h, sealed, context)
			return err
		})
		return blob, err
	})
	return blob, fromStore(ev, s, err, storeCryptoError)
}

// openOuter is the reverse. What is wrong with the ciphertext is found out here,
// and the store never sees it.
func openOuter(ev *eval, t *target, m *fsmpb.Material, blob []byte, context map[string]string) ([]byte, error) {
	s, err := storeOf(ev, t.key)
	if err != nil {
		return nil, err
	}
	to, store, err := outerFor(ev, s, t.arn)
	if err != nil {
		return nil, err
	}
	var sealed *keymat.Outer
	err = ev.Vault.WithMaterial(t.key, m, func(material []byte) (err error) {
		sealed, err = keymat.SplitOuter(material, blob, context)
		return err
	})
	if err != nil {
		return nil, err
	}
	name := outsideName("decrypt", []byte(s.Id), version(s), t.id.Bytes(), m.Id, blob)
	inner, err := ev.outside(name, func() ([]byte, error) {
		return to.decrypt(ev.ctx, store, t.key.XksKey, sealed, keymat.OuterAAD(headerOf(ev, t, m)))
	})
	if err != nil {
		return nil, fromStore(ev, s, err, storeCryptoError)
	}
	var plaintext []byte
	err = ev.Vault.WithMaterial(t.key, m, func(material []byte) (err error) {
		plaintext, err = keymat.OpenMessage(material, inner, context)
		return err
	})
	if errors.Is(err, keymat.ErrCiphertext) {
		// The ciphertext is ours, so what the store made of it is wrong.
		return nil, fromStore(ev, s, failedStore(fmt.Errorf("key %s: what the key store decrypted to is no message of ours", t.id)), storeCryptoError)
	}
	return plaintext, err
}

// failedStore is a store that answers what makes no sense.
func failedStore(err error) error {
	return &storeFailure{
		store: kmsapi.ErrXksProxyInvalidResponse, key: kmsapi.ErrCustomStoreInvalidState, connection: "XKS_PROXY_INVALID_RESPONSE",
		message: malformedMessage, err: err,
	}
}

// header is what a ciphertext under a material of a key begins with.
func headerOf(ev *eval, t *target, m *fsmpb.Material) keymat.Header {
	return keymat.Header{Cell: keymat.CellOf(ev.cluster().Id), Key: t.id.ID, Version: [16]byte(m.Id)}
}

// outsideName names a question to a store, by a digest of all its parts.
func outsideName(kind string, parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		_, _ = h.Write(p)
	}
	return kind + " " + hex.EncodeToString(h.Sum(nil))
}

// version is that of a store, which changes with everything about it.
func version(s *fsmpb.KeyStore) []byte { return binary.BigEndian.AppendUint64(nil, s.Version) }
