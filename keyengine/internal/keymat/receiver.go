package keymat

import (
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"fmt"
	"reflect"
	"unsafe"
)

// A message that is encrypted to a receiver's key is
//
//	encapsulated key(65) ‖ nonce(12) ‖ ciphertext ‖ tag(16)
//
// by HPKE (RFC 9180) in base mode with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256 and the
// export-only AEAD. The message is encrypted by AES-256-GCM with the exported key, because
// that can decrypt into memory of our choice. All of it is in the FIPS module.
const (
	receiverEncap  = 65
	receiverExport = "conclave message key v1"
	// ReceiverOverhead is how much longer an encrypted message is, in bytes.
	ReceiverOverhead = receiverEncap + gcmOverhead
)

// ErrReceiver is returned for a message that was not encrypted to this key for this
// purpose, or that was changed.
var ErrReceiver = errors.New("encrypted message cannot be decrypted")

// Receiver is a key pair for one exchange, with the private key in an [Arena]. It is
// formatted as [redacted].
type Receiver struct {
	redacted
	arena   *Arena
	private *Secret
	public  *ecdh.PublicKey
}

// NewReceiver returns a new key pair.
func NewReceiver(a *Arena) (*Receiver, error) {
	for {
		private, err := a.Random(KeySize)
		if err != nil {
			return nil, err
		}
		r := &Receiver{arena: a, private: private}
		err = private.With(func(b []byte) error {
			key, err := ecdh.P256().NewPrivateKey(b)
			if err != nil {
				return err
			}
			defer wipePrivate(key)
			r.public, err = ecdh.P256().NewPublicKey(key.PublicKey().Bytes())
			return err
		})
		if err == nil {
			return r, nil
		}
		private.Destroy() // one number in 2^32 is above the order of the group
		if errors.Is(err, ErrDestroyed) {
			return nil, err
		}
	}
}

// Public returns the public key, an uncompressed point of 65 bytes.
func (r *Receiver) Public() []byte { return r.public.Bytes() }

// Destroy wipes the private key.
func (r *Receiver) Destroy() {
	if r != nil {
		r.private.Destroy()
	}
}

// Open decrypts a message of at most [MaxSecret] bytes into the arena. info must be the one
// that it was encrypted with.
func (r *Receiver) Open(info, message []byte) (*Secret, error) {
	n := len(message) - ReceiverOverhead
	if n < 1 || n > MaxSecret {
		return nil, ErrReceiver
	}
	exchange := &exchanger{receiver: r}
	defer exchange.wipe()
	private, err := hpke.NewDHKEMPrivateKey(exchange)
	if err != nil {
		return nil, fmt.Errorf("receiving key: %w", err)
	}
	recipient, err := hpke.NewRecipient(message[:receiverEncap], private, hpke.HKDFSHA256(), hpke.ExportOnly(), info)
	if errors.Is(err, ErrDestroyed) {
		return nil, err
	}
	if err != nil {
		return nil, ErrReceiver
	}
	key, err := recipient.Export(receiverExport, KeySize)
	if err != nil {
		return nil, fmt.Errorf("receiving key: %w", err)
	}
	defer clear(key)
	return r.arena.Fill(n, func(dst []byte) error {
		if _, err := newAEAD(key).Open(dst[:0], nil, message[receiverEncap:], nil); err != nil {
			return ErrReceiver
		}
		return nil
	})
}

// SealTo encrypts plaintext to the public key of a receiver. info says what the message is
// and for whom, and is needed to decrypt it.
func SealTo(public, info, plaintext []byte) ([]byte, error) {
	point, err := ecdh.P256().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	to, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	encap, sender, err := hpke.NewSender(to, hpke.HKDFSHA256(), hpke.ExportOnly(), info)
	if err != nil {
		return nil, err
	}
	key, err := sender.Export(receiverExport, KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return newAEAD(key).Seal(encap, nil, plaintext, nil), nil
}

// exchanger gives HPKE access to the private key, which HPKE otherwise needs as a value
// that stays on the heap.
type exchanger struct {
	receiver *Receiver
	shared   []byte // last result given to HPKE
}

// PublicKey implements ecdh.KeyExchanger.
func (e *exchanger) PublicKey() *ecdh.PublicKey { return e.receiver.public }

// Curve implements ecdh.KeyExchanger.
func (*exchanger) Curve() ecdh.Curve { return ecdh.P256() }

// ECDH implements ecdh.KeyExchanger.
func (e *exchanger) ECDH(other *ecdh.PublicKey) ([]byte, error) {
	err := e.receiver.private.With(func(b []byte) error {
		key, err := ecdh.P256().NewPrivateKey(b)
		if err != nil {
			return err
		}
		defer wipePrivate(key)
		e.shared, err = key.ECDH(other)
		return err
	})
	return e.shared, err
}

func (e *exchanger) wipe() { clear(e.shared) }

// wipePrivate clears the copies of the scalar that crypto/ecdh made, for which it has no
// function. A test checks that it finds all of them.
func wipePrivate(key *ecdh.PrivateKey) { wipeScalars(reflect.ValueOf(key).Elem()) }

func wipeScalars(v reflect.Value) {
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch {
		case f.Type() == reflect.TypeFor[[]byte]() && (name == "privateKey" || name == "d"):
			clear(*(*[]byte)(unsafe.Pointer(f.UnsafeAddr())))
		case f.Kind() == reflect.Pointer && !f.IsNil() && f.Type().Elem().Kind() == reflect.Struct && name == "fips":
			wipeScalars(f.Elem())
		}
	}
}

// scrubbed is how much of the stack Scrub clears: twice what the deepest of its intended
// functions uses.
const scrubbed = 16 << 10

// Scrub runs fn, which works with secrets, and then overwrites the part of the stack where
// hashes, ciphers and parsers have left parts of them. It grows the stack before it calls
// fn, as growing leaves the old content behind.
func Scrub(fn func()) {
	overwrite()
	defer overwrite()
	fn()
}

//go:noinline
func overwrite() {
	var room [scrubbed]byte
	keep(&room)
}

//go:noinline
func keep(b *[scrubbed]byte) { clear(b[:]) }
