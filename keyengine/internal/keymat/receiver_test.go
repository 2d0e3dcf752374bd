package keymat

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"unsafe"
)

func TestReceiver(t *testing.T) {
	a := newArena(t, 0)
	r, err := NewReceiver(a)
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v", r, r, r); s != "[redacted] [redacted] [redacted]" {
		t.Errorf("prints as %s", s)
	}
	info, plaintext := []byte("for a test"), []byte("a share")
	message, err := SealTo(r.Public(), info, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	if len(message) != len(plaintext)+ReceiverOverhead {
		t.Errorf("%d bytes for %d", len(message), len(plaintext))
	}
	s, err := r.Open(info, message)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.With(func(b []byte) error {
		if !bytes.Equal(b, plaintext) {
			t.Errorf("opened %q", b)
		}
		return nil
	})
	s.Destroy()

	other, err := NewReceiver(a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(info, message); !errors.Is(err, ErrReceiver) {
		t.Errorf("another's key: %v", err)
	}
	if _, err := r.Open([]byte("for something else"), message); !errors.Is(err, ErrReceiver) {
		t.Errorf("other info: %v", err)
	}
	for i := range message {
		bad := bytes.Clone(message)
		bad[i] ^= 1
		if _, err := r.Open(info, bad); !errors.Is(err, ErrReceiver) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
		if _, err := r.Open(info, message[:i]); !errors.Is(err, ErrReceiver) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	if _, err := SealTo(message[:65], info, plaintext); err != nil {
		t.Errorf("any point is a key: %v", err)
	}
	for _, bad := range [][]byte{nil, make([]byte, 65), r.Public()[:64]} {
		if _, err := SealTo(bad, info, plaintext); err == nil {
			t.Errorf("%x is taken for a key", bad)
		}
	}
	r.Destroy()
	other.Destroy()
	if _, err := r.Open(info, message); !errors.Is(err, ErrDestroyed) {
		t.Errorf("destroyed: %v", err)
	}
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d slots are in use", used)
	}
}

// TestPrivateHalfIsWiped walks through everything that crypto/ecdh keeps of a
// private key and looks for the scalar.
func TestPrivateHalfIsWiped(t *testing.T) {
	scalar := make([]byte, KeySize)
	rand.Read(scalar)
	scalar[0] = 0
	key, err := ecdh.P256().NewPrivateKey(scalar)
	if err != nil {
		t.Fatal(err)
	}
	if n := copies(reflect.ValueOf(key), scalar); n == 0 {
		t.Fatal("no copy was found before: the test looks in the wrong place")
	}
	wipePrivate(key)
	if n := copies(reflect.ValueOf(key), scalar); n != 0 {
		t.Errorf("%d copies are left", n)
	}
}

func copies(v reflect.Value, want []byte) (n int) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return copies(v.Elem(), want)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			n += copies(v.Field(i), want)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 && v.Len() > 0 && bytes.Contains(unsafe.Slice((*byte)(v.UnsafePointer()), v.Len()), want) {
			return 1
		}
	}
	return n
}
