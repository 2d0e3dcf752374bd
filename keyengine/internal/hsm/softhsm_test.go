//go:build pkcs11

package hsm

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/conclavekms/conclave/integration/softhsm"
)

func pinOf(pin string) Secret {
	return func(use func([]byte) error) error { return use([]byte(pin)) }
}

const cluster = "cluster-abcdefghijk"

func open(t *testing.T) (*Module, Secret) {
	token := softhsm.NewToken(t)
	m, err := Open(token.Module, map[string]string{cluster: token.Label, "cluster-gone1234567": "no such label"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, pinOf(token.PIN)
}

func TestToken(t *testing.T) {
	m, pin := open(t)
	ctx := t.Context()
	for name, want := range map[string]error{cluster: nil, "cluster-gone1234567": ErrNoToken, "unnamed": ErrNoToken} {
		if err := m.Has(ctx, name); !errors.Is(err, want) {
			t.Errorf("Has(%s): %v, want %v", name, err, want)
		}
	}
	if _, err := m.Encrypt(ctx, cluster, "store", pin, []byte("x"), nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("Encrypt before Connect: %v", err)
	}
	if err := m.Connect(ctx, cluster, "store", pinOf("wrong pin")); !errors.Is(err, ErrPIN) {
		t.Errorf("Connect with a wrong PIN, while logged in: %v", err)
	}
	if err := m.Connect(ctx, cluster, "store", pin); err != nil {
		t.Fatal(err)
	}
	message, aad := bytes.Repeat([]byte{1}, 300), []byte("header")
	s, err := m.Encrypt(ctx, cluster, "store", pin, message, aad)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.IV) != ivSize || len(s.Tag) != tagSize || len(s.Key) != idSize || len(s.Ciphertext) != len(message) {
		t.Errorf("sealed %+v", s)
	}
	if err := m.Connect(ctx, cluster, "store", pin); err != nil { // makes no other key
		t.Fatal(err)
	}
	if got, err := m.Decrypt(ctx, cluster, "store", pin, s, aad); err != nil || !bytes.Equal(got, message) {
		t.Errorf("Decrypt: %v", err)
	}
	if again, err := m.Encrypt(ctx, cluster, "store", pin, message, aad); err != nil || !bytes.Equal(again.Key, s.Key) || bytes.Equal(again.IV, s.IV) {
		t.Errorf("encrypted again: %+v, %v", again, err)
	}
	for name, spoil := range map[string]func(*Sealed) []byte{
		"ciphertext": func(s *Sealed) []byte { s.Ciphertext[0] ^= 1; return aad },
		"tag":        func(s *Sealed) []byte { s.Tag[0] ^= 1; return aad },
		"vector":     func(s *Sealed) []byte { s.IV[0] ^= 1; return aad },
		"header":     func(*Sealed) []byte { return []byte("Header") },
		"key":        func(s *Sealed) []byte { s.Key[0] ^= 1; return aad },
	} {
		bad := &Sealed{Key: bytes.Clone(s.Key), Ciphertext: bytes.Clone(s.Ciphertext), IV: bytes.Clone(s.IV), Tag: bytes.Clone(s.Tag)}
		if got, err := m.Decrypt(ctx, cluster, "store", pin, bad, spoil(bad)); err == nil || got != nil {
			t.Errorf("Decrypt with another %s: %x", name, got)
		}
	}
	if _, err := m.Decrypt(ctx, cluster, "another store", pin, s, aad); !errors.Is(err, ErrNoKey) {
		t.Errorf("Decrypt for another store: %v", err)
	}
	if _, err := m.Encrypt(ctx, cluster, "store", pinOf("wrong pin"), message, aad); !errors.Is(err, ErrPIN) {
		t.Errorf("Encrypt with a wrong PIN: %v", err)
	}
	b, err := m.Random(ctx, cluster, pin, 64)
	if c, _ := m.Random(ctx, cluster, pin, 64); err != nil || len(b) != 64 || bytes.Equal(b, c) {
		t.Errorf("Random: %d bytes, %v", len(b), err)
	}
}

// TestKeyStays: the key cannot be read or wrapped out of the token.
func TestKeyStays(t *testing.T) {
	m, pin := open(t)
	if err := m.Connect(t.Context(), cluster, "store", pin); err != nil {
		t.Fatal(err)
	}
	err := m.with(t.Context(), cluster, pin, func(s pkcs11.SessionHandle) error {
		key, _, err := m.current(s, "store")
		if err != nil {
			return err
		}
		if v, err := m.ctx.GetAttributeValue(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)}); err == nil {
			t.Errorf("the key can be read: %v", v)
		}
		for _, a := range []uint{pkcs11.CKA_SENSITIVE, pkcs11.CKA_PRIVATE, pkcs11.CKA_TOKEN, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL} {
			v, err := m.ctx.GetAttributeValue(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(a, nil)})
			if err != nil || !bytes.Equal(v[0].Value, []byte{1}) {
				t.Errorf("attribute %#x is %v, %v", a, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	m, pin := open(t)
	if err := m.Connect(t.Context(), cluster, "store", pin); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 * slots {
		wg.Go(func() {
			s, err := m.Encrypt(t.Context(), cluster, "store", pin, []byte("message"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := m.Decrypt(t.Context(), cluster, "store", pin, s, nil); err != nil || string(got) != "message" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
}

// TestHangingModule: callers leave in time, and no more than so many calls are
// under way.
func TestHangingModule(t *testing.T) {
	m := &Module{tokens: map[string]*token{cluster: {busy: make(chan struct{}, 1)}}}
	release := make(chan struct{})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for range 3 {
		if err := m.do(ctx, cluster, func(*token) error { <-release; return nil }); !errors.Is(err, ErrBusy) {
			t.Errorf("got %v, want %v", err, ErrBusy)
		}
	}
	if n := len(m.tokens[cluster].busy); n != 1 {
		t.Errorf("%d calls are under way, want 1", n)
	}
}
