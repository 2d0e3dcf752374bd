package cryptops

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// FromStore is a failure of a key store as an operation tells of it: as the error
// that pick chooses.
func FromStore(ev *request.Evaluation, s *fsmpb.KeyStore, err error, pick func(*keystore.Failure) *kmsapi.Error) error {
	f, ok := errors.AsType[*keystore.Failure](err)
	if !ok {
		return err
	}
	ev.Log.Warn("key store failed", "key_store", s.Id, "operation", ev.Op.Name, "request_id", record.UUID(ev.Caller.RequestID), "err", f.Err)
	return kmsapi.Errorf(pick(f), "%s", f.Message)
}

func StoreError(f *keystore.Failure) *kmsapi.Error     { return f.Store }
func storeKeyError(f *keystore.Failure) *kmsapi.Error  { return f.Key }
func storeCryptoError(*keystore.Failure) *kmsapi.Error { return kmsapi.ErrInvalidState }

// outerFor is the side of a store, and what it is told of the request. arn is that
// of the key, if there is one.
func outerFor(ev *request.Evaluation, s *fsmpb.KeyStore, arn string) (keystore.Backend, *keystore.Store, error) {
	o := ev.Stores.Of(s.Type)
	if o == nil {
		return nil, nil, keystore.Unsupported(s.Type)
	}
	return o, &keystore.Store{
		KeyStore: s,
		Secret: func(use func([]byte) error) error {
			return ev.Vault.WithStoreSecret(s, use)
		},
		Principal: ev.Caller.Identity.Principal().String(), KeyARN: arn, Operation: ev.Op.Name, Request: record.UUID(ev.Caller.RequestID),
	}, nil
}

// ConnectStore has a store be used.
func ConnectStore(ev *request.Evaluation, s *fsmpb.KeyStore) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	_, err = ev.Outside(outsideName("connect", []byte(s.Id), version(s)), func() ([]byte, error) { return nil, o.Connect(ev.Ctx, to) })
	return err
}

// TryStore has a store with new settings tried out before they are taken. Its secret
// is not wrapped yet.
func TryStore(ev *request.Evaluation, s *fsmpb.KeyStore, secret []byte) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	to.Secret = func(use func([]byte) error) error { return use(secret) }
	name := outsideName("try", []byte(s.Id), version(s), []byte(s.Endpoint), []byte(s.Path), []byte(s.AccessKey), secret)
	_, err = ev.Outside(name, func() ([]byte, error) { return nil, o.Try(ev.Ctx, to) })
	return FromStore(ev, s, err, StoreError)
}

// storeRandom has a store make random bytes.
func storeRandom(ev *request.Evaluation, s *fsmpb.KeyStore, n int) ([]byte, error) {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return nil, err
	}
	b, err := ev.Outside(outsideName("random", []byte(s.Id), version(s)), func() ([]byte, error) { return o.Random(ev.Ctx, to, n) })
	return b, FromStore(ev, s, err, storeKeyError)
}

// CheckStoreKey checks the external key of a new KMS key.
func CheckStoreKey(ev *request.Evaluation, s *fsmpb.KeyStore, key string) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	name := outsideName("key", []byte(s.Id), version(s), []byte(key))
	_, err = ev.Outside(name, func() ([]byte, error) { return nil, o.CheckKey(ev.Ctx, to, key) })
	return FromStore(ev, s, err, storeKeyError)
}

// sealOuter encrypts under the newest material of a key in a custom key store, and
// has the store encrypt that.
func sealOuter(ev *request.Evaluation, t *request.Target, m *fsmpb.Material, plaintext []byte, context map[string]string) ([]byte, error) {
	s, err := request.StoreOf(ev, t.Key)
	if err != nil {
		return nil, err
	}
	o, to, err := outerFor(ev, s, t.ARN)
	if err != nil {
		return nil, err
	}
	h := header(ev, t, m)
	name := outsideName("encrypt", []byte(s.Id), version(s), t.ID.Bytes(), m.Id, plaintext, keymat.ContextForm(context))
	blob, err := ev.Outside(name, func() ([]byte, error) {
		var inner []byte
		err := ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
			inner, err = keymat.SealMessage(material, h, plaintext, context)
			return err
		})
		if err != nil {
			return nil, err
		}
		sealed, err := o.Encrypt(ev.Ctx, to, t.Key.XksKey, inner, keymat.OuterAAD(h))
		if err != nil {
			return nil, err
		}
		var blob []byte
		err = ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
			blob, err = keymat.JoinOuter(material, h, sealed, context)
			return err
		})
		return blob, err
	})
	return blob, FromStore(ev, s, err, storeCryptoError)
}

// openOuter is the reverse. What is wrong with the ciphertext is found out here,
// and the store never sees it.
func openOuter(ev *request.Evaluation, t *request.Target, m *fsmpb.Material, blob []byte, context map[string]string) ([]byte, error) {
	s, err := request.StoreOf(ev, t.Key)
	if err != nil {
		return nil, err
	}
	to, store, err := outerFor(ev, s, t.ARN)
	if err != nil {
		return nil, err
	}
	var sealed *keymat.Outer
	err = ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
		sealed, err = keymat.SplitOuter(material, blob, context)
		return err
	})
	if err != nil {
		return nil, err
	}
	name := outsideName("decrypt", []byte(s.Id), version(s), t.ID.Bytes(), m.Id, blob)
	inner, err := ev.Outside(name, func() ([]byte, error) {
		return to.Decrypt(ev.Ctx, store, t.Key.XksKey, sealed, keymat.OuterAAD(header(ev, t, m)))
	})
	if err != nil {
		return nil, FromStore(ev, s, err, storeCryptoError)
	}
	var plaintext []byte
	err = ev.Vault.WithMaterial(t.Key, m, func(material []byte) (err error) {
		plaintext, err = keymat.OpenMessage(material, inner, context)
		return err
	})
	if errors.Is(err, keymat.ErrCiphertext) {
		// The ciphertext is ours, so what the store made of it is wrong.
		return nil, FromStore(ev, s, keystore.Failed(fmt.Errorf("key %s: what the key store decrypted to is no message of ours", t.ID)), storeCryptoError)
	}
	return plaintext, err
}

// header is what a ciphertext under a material of a key begins with.
func header(ev *request.Evaluation, t *request.Target, m *fsmpb.Material) keymat.Header {
	return keymat.Header{Cell: keymat.CellOf(ev.Cluster().Id), Key: t.ID.ID, Version: [16]byte(m.Id)}
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
func generateRandomInStore(ev *request.Evaluation, id string, n int, to *recipient) (*kmsapi.GenerateRandomOutput, error) {
	s, err := request.KeyStoreNamed(ev, id)
	switch {
	case err != nil:
		return nil, err
	case s.Type == kmsapi.OriginHSM && s.State != request.StoreConnected:
		return nil, request.WrongStoreState(s)
	}
	b, err := storeRandom(ev, s, n)
	if err != nil {
		return nil, err
	}
	out := &kmsapi.GenerateRandomOutput{}
	out.Plaintext, out.CiphertextForRecipient, err = to.Deliver(ev.Secret(b))
	return out, err
}
