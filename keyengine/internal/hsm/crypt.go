//go:build pkcs11

package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Sealed is a message encrypted by a token, with AES-256-GCM.
type Sealed struct {
	Key        []byte // id of the key, 16 bytes
	Ciphertext []byte
	IV, Tag    []byte
}

// Encrypt encrypts under the current key with that label.
func (m *Module) Encrypt(ctx context.Context, name, label string, pin Secret, message, aad []byte) (*Sealed, error) {
	var sealed *Sealed
	err := m.with(ctx, name, pin, func(s pkcs11.SessionHandle) error {
		key, id, err := m.current(s, label)
		if err != nil {
			return err
		}
		iv := make([]byte, ivSize)
		_, _ = rand.Read(iv) // never fails: crypto/rand ends the process instead
		p := pkcs11.NewGCMParams(iv, aad, tagSize*8)
		defer p.Free()
		if err := m.ctx.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, key); err != nil {
			return fmt.Errorf("hsm: encrypting: %w", err)
		}
		out, err := m.ctx.Encrypt(s, message)
		if err != nil {
			return fmt.Errorf("hsm: encrypting: %w", err)
		}
		if len(out) != len(message)+tagSize {
			return fmt.Errorf("hsm: %d bytes were encrypted to %d", len(message), len(out))
		}
		// Some tokens choose the IV themselves.
		sealed = &Sealed{Key: id, Ciphertext: out[:len(message)], Tag: out[len(message):], IV: bytes.Clone(p.IV())}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sealed, nil
}

// Decrypt reverses Encrypt.
func (m *Module) Decrypt(ctx context.Context, name, label string, pin Secret, sealed *Sealed, aad []byte) ([]byte, error) {
	var message []byte
	err := m.with(ctx, name, pin, func(s pkcs11.SessionHandle) error {
		keys, err := m.find(s, append(named(label), pkcs11.NewAttribute(pkcs11.CKA_ID, sealed.Key)), 1)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return ErrNoKey
		}
		p := pkcs11.NewGCMParams(sealed.IV, aad, tagSize*8)
		defer p.Free()
		if err := m.ctx.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, keys[0]); err != nil {
			return fmt.Errorf("hsm: decrypting: %w", err)
		}
		if message, err = m.ctx.Decrypt(s, append(bytes.Clone(sealed.Ciphertext), sealed.Tag...)); err != nil {
			return fmt.Errorf("hsm: decrypting: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return message, nil
}

// Random returns n random bytes of the token.
func (m *Module) Random(ctx context.Context, name string, pin Secret, n int) ([]byte, error) {
	var b []byte
	err := m.with(ctx, name, pin, func(s pkcs11.SessionHandle) (err error) {
		if b, err = m.ctx.GenerateRandom(s, n); err != nil {
			return fmt.Errorf("hsm: generating random bytes: %w", err)
		}
		if len(b) != n {
			return fmt.Errorf("hsm: %d random bytes, want %d", len(b), n)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// named returns the attributes that find the keys with a label.
func named(label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
}

// generate generates a key that cannot be extracted from the token.
func (m *Module) generate(s pkcs11.SessionHandle, label string) error {
	id := make([]byte, idSize)
	_, _ = rand.Read(id) // never fails: crypto/rand ends the process instead
	_, err := m.ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, append(named(label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
	))
	if err != nil {
		return fmt.Errorf("hsm: generating a key: %w", err)
	}
	return nil
}

// current returns the key with a label that encrypts. Two nodes that connect at the same
// time may both have generated one. All nodes use the one with the lowest id.
func (m *Module) current(s pkcs11.SessionHandle, label string) (key pkcs11.ObjectHandle, id []byte, err error) {
	keys, err := m.find(s, named(label), maxMade)
	if err != nil {
		return 0, nil, err
	}
	for _, k := range keys {
		attributes, err := m.ctx.GetAttributeValue(s, k, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
		if err != nil {
			return 0, nil, fmt.Errorf("hsm: reading a key's id: %w", err)
		}
		if v := attributes[0].Value; len(v) == idSize && (id == nil || bytes.Compare(v, id) < 0) {
			key, id = k, v
		}
	}
	if id == nil {
		return 0, nil, ErrNoKey
	}
	return key, id, nil
}

// Stays checks that the current key with that label cannot leave the token, for a key that
// Connect may not have generated.
func (m *Module) Stays(ctx context.Context, name, label string, pin Secret) error {
	return m.with(ctx, name, pin, func(s pkcs11.SessionHandle) error {
		key, _, err := m.current(s, label)
		if err != nil {
			return err
		}
		attributes, err := m.ctx.GetAttributeValue(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, nil), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, nil)})
		if err != nil {
			return fmt.Errorf("hsm: reading a key's attributes: %w", err)
		}
		if !bytes.Equal(attributes[0].Value, []byte{1}) || !bytes.Equal(attributes[1].Value, []byte{0}) {
			return ErrLeaves
		}
		return nil
	})
}

func (m *Module) find(s pkcs11.SessionHandle, template []*pkcs11.Attribute, most int) ([]pkcs11.ObjectHandle, error) {
	if err := m.ctx.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("hsm: looking for a key: %w", err)
	}
	keys, _, err := m.ctx.FindObjects(s, most)
	if e := m.ctx.FindObjectsFinal(s); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("hsm: looking for a key: %w", err)
	}
	return keys, nil
}
