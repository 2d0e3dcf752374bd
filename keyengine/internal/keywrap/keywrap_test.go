package keywrap

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type pair struct{ private, public []byte }

func newPair(t testing.TB, spec string) pair {
	t.Helper()
	private, public, err := NewWrappingKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	return pair{private, public}
}

var small = sync.OnceValues(func() (pair, error) {
	private, public, err := NewWrappingKey("RSA_2048")
	return pair{private, public}, err
})

func smallPair(t testing.TB) pair {
	t.Helper()
	p, err := small()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func material(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func isHybrid(name string) bool { return strings.HasPrefix(name, "RSA_AES_") }

func TestAlgorithms(t *testing.T) {
	want := []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"}
	if fips140.Enforced() {
		want = []string{"RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_256"}
	}
	if got := Algorithms(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	for spec, bits := range rsaBits {
		p := newPair(t, spec)
		for _, name := range Algorithms() {
			sizes := []int{1, 32, 64}
			if isHybrid(name) {
				sizes = append(sizes, 2375, MaxMaterial)
			}
			for _, n := range sizes {
				m := material(n)
				wrapped, err := Wrap(p.public, name, m)
				if err != nil {
					t.Fatalf("%s %s: %v", spec, name, err)
				}
				if !isHybrid(name) && len(wrapped) != bits/8 {
					t.Errorf("%s %s: %d bytes wrapped", spec, name, len(wrapped))
				}
				got, err := Unwrap(p.private, name, wrapped)
				if err != nil || !bytes.Equal(got, m) {
					t.Errorf("%s %s, %d bytes: got %x, %v", spec, name, n, got, err)
				}
			}
		}
	}
}

// Nothing but the very bytes, the very algorithm and the very key opens.
func TestUnwrapRefuses(t *testing.T) {
	p, other := smallPair(t), newPair(t, "RSA_2048")
	for _, name := range Algorithms() {
		t.Run(name, func(t *testing.T) {
			wrapped, err := Wrap(p.public, name, material(35))
			if err != nil {
				t.Fatal(err)
			}
			refuse := func(what string, private []byte, algorithm string, wrapped []byte) {
				t.Helper()
				if got, err := Unwrap(private, algorithm, wrapped); !errors.Is(err, ErrUnwrap) || got != nil {
					t.Errorf("%s: got %x, %v; want ErrUnwrap", what, got, err)
				}
			}
			for i := range wrapped {
				wrapped[i] ^= 1 << (i % 8)
				refuse("byte flipped", p.private, name, wrapped)
				wrapped[i] ^= 1 << (i % 8)
			}
			for n := 0; n < len(wrapped); n += 7 {
				refuse("truncated", p.private, name, wrapped[:n])
			}
			refuse("one byte more", p.private, name, append(bytes.Clone(wrapped), 0))
			refuse("one semiblock more", p.private, name, append(bytes.Clone(wrapped), make([]byte, 8)...))
			refuse("oversize", p.private, name, append(bytes.Clone(wrapped), make([]byte, MaxMaterial)...))
			refuse("another key", other.private, name, wrapped)
			refuse("no key", nil, name, wrapped)
			refuse("no algorithm", p.private, "RSAES_PKCS1_V1_5", wrapped)
			for _, wrong := range Algorithms() {
				if wrong != name {
					refuse("as "+wrong, p.private, wrong, wrapped)
				}
			}
			if _, err := Unwrap(p.private, name, wrapped); err != nil {
				t.Errorf("untouched: %v", err)
			}
		})
	}
}

// The RSA part must hold an AES-256 key, not any AES key.
func TestUnwrapShortKey(t *testing.T) {
	p := smallPair(t)
	name := "RSA_AES_KEY_WRAP_SHA_256"
	kek := material(16)
	wrapped, err := Wrap(p.public, "RSAES_OAEP_SHA_256", kek)
	if err != nil {
		t.Fatal(err)
	}
	padded, err := wrapPadded(kek, material(32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unwrap(p.private, name, append(wrapped, padded...)); !errors.Is(err, ErrUnwrap) {
		t.Errorf("got %v, want ErrUnwrap", err)
	}
}

func TestUnwrapNothing(t *testing.T) {
	p := smallPair(t)
	a, err := find("RSAES_OAEP_SHA_256")
	if err != nil {
		t.Fatal(err)
	}
	key, err := parsePublic(p.public)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := a.encrypt(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unwrap(p.private, a.name, wrapped); !errors.Is(err, ErrUnwrap) {
		t.Errorf("empty material: got %v, want ErrUnwrap", err)
	}
}

func TestWrapRefuses(t *testing.T) {
	p := smallPair(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecSPKI, err := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const oaep, hybrid = "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_256"
	for _, tt := range []struct {
		name      string
		public    []byte
		algorithm string
		size      int
		want      error
	}{
		{"most for OAEP", p.public, oaep, 256 - 66, nil},
		{"more than OAEP has room for", p.public, oaep, 256 - 65, ErrMaterial},
		{"nothing", p.public, hybrid, 0, ErrMaterial},
		{"too much", p.public, hybrid, MaxMaterial + 1, ErrMaterial},
		{"no algorithm", p.public, "RSAES_PKCS1_V1_5", 32, ErrAlgorithm},
		{"no key", nil, oaep, 32, ErrKey},
		{"not an RSA key", ecSPKI, oaep, 32, ErrKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Wrap(tt.public, tt.algorithm, material(tt.size)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if _, _, err := NewWrappingKey("RSA_1024"); !errors.Is(err, ErrSpec) {
		t.Errorf("RSA_1024: got %v, want ErrSpec", err)
	}
}

const fipsChild = "CONCLAVE_TEST_FIPS_CHILD"

// SHA-1 is gone in strict FIPS mode, and nothing panics on it.
func TestStrictFIPS(t *testing.T) {
	if os.Getenv(fipsChild) != "" {
		if !fips140.Enforced() {
			t.Fatal("GODEBUG=fips140=only has no effect")
		}
		p := smallPair(t)
		if _, err := Wrap(p.public, "RSAES_OAEP_SHA_1", material(32)); !errors.Is(err, ErrAlgorithm) {
			t.Errorf("Wrap with SHA-1: got %v, want ErrAlgorithm", err)
		}
		return
	}
	if fips140.Enforced() {
		t.Skip("this run is in strict FIPS mode already")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.v", "-test.run=.", "-test.skip=OpenSSL")
	cmd.Env = append(os.Environ(), fipsChild+"=1", "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tests in strict FIPS mode: %v\n%s", err, out)
	}
	for _, ran := range []string{"TestStrictFIPS", "TestRoundTrip", "TestUnwrapRefuses"} {
		if !strings.Contains(string(out), "--- PASS: "+ran) {
			t.Errorf("%s did not run in strict FIPS mode", ran)
		}
	}
}
