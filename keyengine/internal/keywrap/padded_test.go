package keywrap

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 5649, section 6.
func TestPaddedVectors(t *testing.T) {
	kek := unhex(t, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	for _, tt := range []struct{ name, key, wrapped string }{
		{"20 bytes", "c37b7e6492584340bed12207808941155068f738",
			"138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"7 bytes", "466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, wrapped := unhex(t, tt.key), unhex(t, tt.wrapped)
			if got, err := wrapPadded(kek, key); err != nil || !bytes.Equal(got, wrapped) {
				t.Errorf("wrapPadded: got %x, %v; want %x", got, err, wrapped)
			}
			if got, err := unwrapPadded(kek, wrapped); err != nil || !bytes.Equal(got, key) {
				t.Errorf("unwrapPadded: got %x, %v; want %x", got, err, key)
			}
		})
	}
}

func TestPaddedLengths(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, kekSize)
	for _, n := range []int{1, 7, 8, 9, 15, 16, 17, 32, 64, 1217, MaxMaterial - 1, MaxMaterial} {
		text := bytes.Repeat([]byte{0xff}, n)
		wrapped, err := wrapPadded(kek, text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unwrapPadded(kek, wrapped); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
}

// seal wraps a buffer as it is, initial value and padding included.
func seal(t *testing.T, kek []byte, raw string) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	buf := unhex(t, raw)
	if len(buf) == aes.BlockSize {
		block.Encrypt(buf, buf)
	} else {
		mix(block, buf)
	}
	return buf
}

// The right key doesn't help a wrong initial value or padding.
func TestPaddedUnsound(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, kekSize)
	for _, tt := range []struct {
		name, raw string
		ok        bool
	}{
		{"sound, one block", "a65959a600000003" + "0102030000000000", true},
		{"sound, two blocks", "a65959a60000000b" + "0102030405060708" + "0102030000000000", true},
		{"sound, no padding", "a65959a600000010" + "0102030405060708" + "0102030405060708", true},
		{"RFC 3394's value", "a6a6a6a6a6a6a6a6" + "0102030405060708" + "0102030405060708", false},
		{"prefix", "a65959a70000000b" + "0102030405060708" + "0102030000000000", false},
		{"length 0", "a65959a600000000" + "0000000000000000", false},
		{"length above", "a65959a600000009" + "0102030405060708", false},
		{"length below", "a65959a600000008" + "0102030405060708" + "0000000000000000", false},
		{"length with a high byte", "a65959a60001000b" + "0102030405060708" + "0102030000000000", false},
		{"length with the highest bit", "a65959a68000000b" + "0102030405060708" + "0102030000000000", false},
		{"padding, first byte", "a65959a60000000b" + "0102030405060708" + "0102030100000000", false},
		{"padding, last byte", "a65959a60000000b" + "0102030405060708" + "0102030000000001", false},
		{"padding, one block", "a65959a600000003" + "0102030000000100", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := unwrapPadded(kek, seal(t, kek, tt.raw))
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrUnwrap) {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestPaddedSizes(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, kekSize)
	for _, n := range []int{0, 1, 8, 15, 17, 23, MaxMaterial + 16} {
		if _, err := unwrapPadded(kek, make([]byte, n)); !errors.Is(err, ErrUnwrap) {
			t.Errorf("%d bytes: got %v, want ErrUnwrap", n, err)
		}
	}
}
