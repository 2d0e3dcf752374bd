package keymat

import (
	"bytes"
	"errors"
	"testing"
)

func testBinding() Binding {
	return Binding{
		Purpose: PurposeMaterial, Cluster: [16]byte{1, 2, 3}, Object: []byte("object-id"), Version: []byte("version-id"),
		Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Generation: 4,
	}
}

func TestWrapRoundTrip(t *testing.T) {
	a := newArena(t, 64<<10)
	key := random(t, a, KeySize)
	for _, n := range []int{1, 32, 64, 65, 2400, MaxSecret} {
		plain := bytes.Repeat([]byte{0xab}, n)
		blob, err := Wrap(key, testBinding(), plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(blob) != n+WrapOverhead || blob[0] != WrapFormat || n >= 32 && bytes.Contains(blob, plain) {
			t.Errorf("%d bytes became a blob of %d", n, len(blob))
		}
		s, err := Unwrap(a, key, testBinding(), blob)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(reveal(t, s), plain) {
			t.Errorf("%d bytes came back changed", n)
		}
		s.Destroy()
		again, _ := Wrap(key, testBinding(), plain)
		if bytes.Equal(again, blob) {
			t.Error("wrapping twice gave the same blob")
		}
	}
	for _, n := range []int{0, MaxSecret + 1} {
		if _, err := Wrap(key, testBinding(), bytes.Repeat([]byte{1}, n)); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: err = %v, want ErrSize", n, err)
		}
	}
	if _, err := Wrap(key, testBinding(), make([]byte, 32)); !errors.Is(err, ErrZero) {
		t.Errorf("zeros: err = %v, want ErrZero", err)
	}
}

func TestUnwrapEveryBitAndTruncation(t *testing.T) {
	a := newArena(t, 4096)
	key := random(t, a, KeySize)
	blob, err := Wrap(key, testBinding(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, b []byte) {
		t.Helper()
		if s, err := Unwrap(a, key, testBinding(), b); !errors.Is(err, ErrUnwrap) || s != nil {
			t.Errorf("%s: err = %v, want ErrUnwrap", what, err)
		}
	}
	for i := range len(blob) * 8 {
		b := bytes.Clone(blob)
		b[i/8] ^= 1 << (i % 8)
		refuse("flipped bit", b)
	}
	for i := range blob {
		refuse("truncated", blob[:i])
		refuse("beheaded", blob[i+1:])
	}
	refuse("nil", nil)
	refuse("longer", append(bytes.Clone(blob), 0))
	refuse("huge", make([]byte, 1<<20))
	if used, _ := a.Usage(); used != 1 {
		t.Errorf("%d slots in use, want only the key's", used)
	}
}

func TestBindingBindsEverything(t *testing.T) {
	a := newArena(t, 4096)
	key := random(t, a, KeySize)
	plain := bytes.Repeat([]byte{7}, 32)
	blob, err := Wrap(key, testBinding(), plain)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Binding){
		"purpose":    func(b *Binding) { b.Purpose = PurposeCredential },
		"cluster":    func(b *Binding) { b.Cluster[15] = 1 },
		"object":     func(b *Binding) { b.Object = []byte("object-ie") },
		"no object":  func(b *Binding) { b.Object = nil },
		"version":    func(b *Binding) { b.Version = []byte("version-ie") },
		"spec":       func(b *Binding) { b.Spec = "HMAC_256" },
		"usage":      func(b *Binding) { b.Usage = "SIGN_VERIFY" },
		"origin":     func(b *Binding) { b.Origin = "EXTERNAL" },
		"generation": func(b *Binding) { b.Generation = 5 },
		"moved byte": func(b *Binding) { b.Object, b.Version = []byte("object-idv"), []byte("ersion-id") },
		"swapped":    func(b *Binding) { b.Spec, b.Usage = b.Usage, b.Spec },
		"format":     func(b *Binding) { b.Format = 2 },
	} {
		b := testBinding()
		change(&b)
		if _, err := Unwrap(a, key, b, blob); !errors.Is(err, ErrUnwrap) {
			t.Errorf("another %s: err = %v, want ErrUnwrap", name, err)
		}
	}
	if _, err := Unwrap(a, random(t, a, KeySize), testBinding(), blob); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another key: err = %v, want ErrUnwrap", err)
	}
	b := testBinding()
	b.Format = WrapFormat
	if _, err := Unwrap(a, key, b, blob); err != nil {
		t.Errorf("with the format given: %v", err)
	}
	for name, change := range map[string]func(*Binding){
		"no purpose":  func(b *Binding) { b.Purpose = "" },
		"long object": func(b *Binding) { b.Object = make([]byte, maxBindingField+1) },
		"format 2":    func(b *Binding) { b.Format = 2 },
	} {
		b := testBinding()
		change(&b)
		if _, err := Wrap(key, b, plain); !errors.Is(err, ErrBinding) {
			t.Errorf("wrapping with %s: err = %v, want ErrBinding", name, err)
		}
	}
}

func TestWrapWithDestroyedKey(t *testing.T) {
	a := newArena(t, 4096)
	key := random(t, a, KeySize)
	blob, err := Wrap(key, testBinding(), []byte{1})
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
	if _, err := Wrap(key, testBinding(), []byte{1}); !errors.Is(err, ErrDestroyed) {
		t.Errorf("Wrap: err = %v, want ErrDestroyed", err)
	}
	if _, err := Unwrap(a, key, testBinding(), blob); !errors.Is(err, ErrDestroyed) {
		t.Errorf("Unwrap: err = %v, want ErrDestroyed", err)
	}
}

func BenchmarkUnwrap(b *testing.B) {
	a := newArena(b, 0)
	key := random(b, a, KeySize)
	blob, err := Wrap(key, testBinding(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s, err := Unwrap(a, key, testBinding(), blob)
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}
