package keyengine

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

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
		principal: ev.caller.Identity.Principal().String(), keyARN: arn, operation: ev.op.Name, request: formatUUID(ev.caller.RequestID),
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

// generateRandomInStore is GenerateRandom with the bytes of a key store.
func generateRandomInStore(ev *eval, id string, n int, to *recipient) (*kmsapi.GenerateRandomOutput, error) {
	s, err := storeNamed(ev, id)
	switch {
	case err != nil:
		return nil, err
	case s.Type == kmsapi.OriginHSM && s.State != storeConnected:
		return nil, wrongStoreState(s)
	}
	b, err := storeRandom(ev, s, n)
	if err != nil {
		return nil, err
	}
	out := &kmsapi.GenerateRandomOutput{}
	out.Plaintext, out.CiphertextForRecipient, err = to.deliver(ev.secret(b))
	return out, err
}
