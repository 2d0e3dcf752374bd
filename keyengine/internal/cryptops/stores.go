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

// FromStore translates a failure of a key store into the error that pick chooses, and logs
// it. Other errors are returned unchanged.
func FromStore(ev *request.Evaluation, s *fsmpb.KeyStore, err error, pick func(*keystore.Failure) *kmsapi.Error) error {
	f, ok := errors.AsType[*keystore.Failure](err)
	if !ok {
		return err
	}
	ev.Log.Warn("key store failed", "key_store", s.Id, "operation", ev.Op.Name, "request_id", record.UUID(ev.Caller.RequestID), "err", f.Err)
	return kmsapi.Errorf(pick(f), "%s", f.Message)
}

// StoreError picks the error for operations on key stores.
func StoreError(f *keystore.Failure) *kmsapi.Error     { return f.Store }
func storeKeyError(f *keystore.Failure) *kmsapi.Error  { return f.Key }
func storeCryptoError(*keystore.Failure) *kmsapi.Error { return kmsapi.ErrInvalidState }

// outerFor returns the backend of a store and the description of the request for it. arn is
// the key's, or empty.
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
		Principal: ev.Principal().String(), KeyARN: arn, Operation: ev.Op.Name, Request: record.UUID(ev.Caller.RequestID),
	}, nil
}

// ConnectStore connects to a store.
func ConnectStore(ev *request.Evaluation, s *fsmpb.KeyStore) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	_, err = ev.Outside(outsideName("connect", []byte(s.Id), version(s)), func() ([]byte, error) { return nil, o.Connect(ev.Ctx, to) })
	return err
}

// TryStore tests a store with new settings before they are accepted. Its secret is not
// wrapped yet.
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

// storeRandom gets random bytes from a store.
func storeRandom(ev *request.Evaluation, s *fsmpb.KeyStore, n int) ([]byte, error) {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return nil, err
	}
	b, err := ev.Outside(outsideName("random", []byte(s.Id), version(s)), func() ([]byte, error) { return o.Random(ev.Ctx, to, n) })
	return b, FromStore(ev, s, err, storeKeyError)
}

// CheckStoreKey checks the external key for a new KMS key.
func CheckStoreKey(ev *request.Evaluation, s *fsmpb.KeyStore, key string) error {
	o, to, err := outerFor(ev, s, "")
	if err != nil {
		return err
	}
	name := outsideName("key", []byte(s.Id), version(s), []byte(key))
	_, err = ev.Outside(name, func() ([]byte, error) { return nil, o.CheckKey(ev.Ctx, to, key) })
	return FromStore(ev, s, err, storeKeyError)
}

// sealOuter encrypts under the current material of a key in a custom key store, and has the
// store encrypt the result.
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

// openOuter reverses sealOuter. An invalid ciphertext is detected here and never sent to
// the store.
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
		// The ciphertext is genuine, so the store returned a wrong plaintext.
		return nil, FromStore(ev, s, keystore.Failed(fmt.Errorf("key %s: what the key store decrypted is not a ciphertext of this cluster", t.ID)), storeCryptoError)
	}
	return plaintext, err
}

// header returns the header of a ciphertext under a material of a key.
func header(ev *request.Evaluation, t *request.Target, m *fsmpb.Material) keymat.Header {
	return keymat.Header{Cell: keymat.CellOf(ev.Cluster().Id), Key: t.ID.ID, Version: [16]byte(m.Id)}
}

// outsideName names a call to a store, as a digest of everything that its result depends
// on.
func outsideName(kind string, parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		_, _ = h.Write(p)
	}
	return kind + " " + hex.EncodeToString(h.Sum(nil))
}

// version returns the version of a store, which changes with all of its settings.
func version(s *fsmpb.KeyStore) []byte { return binary.BigEndian.AppendUint64(nil, s.Version) }

// generateRandomInStore is GenerateRandom with random bytes from a key store.
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
