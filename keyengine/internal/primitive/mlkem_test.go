package primitive

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/cloudflare/circl/kem/mlkem/mlkem512"

	"github.com/conclavekms/conclave/keyengine/internal/vectors"
)

var kemSizes = []string{"512", "768", "1024"}

// derandomized is Encapsulate with the randomness of a vector, by the code that
// Encapsulate calls.
func derandomized(t *testing.T, spec string, public, m []byte) (secret, ciphertext []byte, err error) {
	t.Helper()
	switch spec {
	case "ML_KEM_768":
		key, err := mlkem.NewEncapsulationKey768(public)
		if err != nil {
			return nil, nil, err
		}
		return mlkemtest.Encapsulate768(key, m)
	case "ML_KEM_1024":
		key, err := mlkem.NewEncapsulationKey1024(public)
		if err != nil {
			return nil, nil, err
		}
		return mlkemtest.Encapsulate1024(key, m)
	}
	var key mlkem512.PublicKey
	if err := key.Unpack(public); err != nil {
		return nil, nil, err
	}
	secret, ciphertext = make([]byte, 32), make([]byte, mlkem512.CiphertextSize)
	key.EncapsulateTo(ciphertext, secret, m)
	return secret, ciphertext, nil
}

// publicOf is the public key of a seed without what is around it.
func publicOf(t *testing.T, spec string, seed []byte) []byte {
	t.Helper()
	spki, err := Public(spec, seed)
	if err != nil {
		t.Fatal(err)
	}
	public, err := kems[spec].fromSPKI(spki)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestWycheproofMLKEM(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, size := range kemSizes {
		spec := "ML_KEM_" + size
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			for _, g := range vectors.Wycheproof(t, "mlkem_"+size+"_keygen_seed") {
				for _, v := range g.Tests {
					if !bytes.Equal(publicOf(t, spec, v.Seed), v.EK) {
						t.Errorf("vector %d: another public key", v.TcID)
					}
				}
			}
			valid, invalid := 0, 0
			for _, g := range vectors.Wycheproof(t, "mlkem_"+size) {
				for _, v := range g.Tests {
					secret, err := Decapsulate(spec, v.Seed, v.C)
					v.Judge(t, err)
					switch v.Result {
					case "valid":
						valid++
						if !bytes.Equal(secret, v.K) {
							t.Errorf("vector %d (%s): %x, want %x", v.TcID, v.Comment, secret, v.K)
						}
						if !bytes.Equal(publicOf(t, spec, v.Seed), v.EK) {
							t.Errorf("vector %d: another public key", v.TcID)
						}
					case "invalid":
						invalid++
						if !errors.Is(err, ErrMaterial) && !errors.Is(err, ErrCiphertext) {
							t.Errorf("vector %d (%s): %v", v.TcID, v.Comment, err)
						}
					}
				}
			}
			for _, g := range vectors.Wycheproof(t, "mlkem_"+size+"_encaps") {
				for _, v := range g.Tests {
					if len(v.EK) != kems[spec].publicSize {
						invalid++
						if _, _, err := Encapsulate(spec, v.EK); !errors.Is(err, ErrPublicKey) {
							t.Errorf("vector %d (%s): %v", v.TcID, v.Comment, err)
						}
						continue
					}
					spki, err := kems[spec].spki(v.EK)
					if err != nil {
						t.Fatal(err)
					}
					_, _, err = Encapsulate(spec, spki)
					v.Judge(t, err)
					if v.Result == "invalid" {
						invalid++
						if !errors.Is(err, ErrPublicKey) {
							t.Errorf("vector %d (%s): %v", v.TcID, v.Comment, err)
						}
						continue
					}
					valid++
					if secret, _, err := derandomized(t, spec, v.EK, v.M); err != nil || !bytes.Equal(secret, v.K) {
						t.Errorf("vector %d: %x, want %x (%v)", v.TcID, secret, v.K, err)
					}
				}
			}
			if t.Logf("%d valid, %d invalid", valid, invalid); valid < 50 || invalid < 50 {
				t.Error("vectors are missing")
			}
		})
	}
}

// TestNISTMLKEM: NIST's own vectors of FIPS 203. (Those of decapsulation are of keys
// without their seeds, which no key here can be.)
func TestNISTMLKEM(t *testing.T) {
	t.Parallel()
	read := func(name string) (groups []struct {
		ParameterSet string
		Tests        []struct{ D, Z, EK, M, C, K vectors.Hex }
	}) {
		vectors.NIST(t, name, &groups)
		if len(groups) != len(kemSizes) {
			t.Fatalf("%d groups", len(groups))
		}
		return groups
	}
	for _, g := range read("mlkem_keygen") {
		for i, v := range g.Tests {
			if got := publicOf(t, strings.ReplaceAll(g.ParameterSet, "-", "_"), append(v.D, v.Z...)); !bytes.Equal(got, v.EK) {
				t.Errorf("%s, key %d: another public key", g.ParameterSet, i)
			}
		}
	}
	for _, g := range read("mlkem_encapsulation") {
		for i, v := range g.Tests {
			secret, ciphertext, err := derandomized(t, strings.ReplaceAll(g.ParameterSet, "-", "_"), v.EK, v.M)
			if err != nil || !bytes.Equal(secret, v.K) || !bytes.Equal(ciphertext, v.C) {
				t.Errorf("%s, encapsulation %d differs (%v)", g.ParameterSet, i, err)
			}
		}
	}
}

// TestMLKEMForms: keys have the sizes and the bytes that other implementations write
// (RFC 9935), and nothing else is taken for one.
func TestMLKEMForms(t *testing.T) {
	t.Parallel()
	for i, size := range kemSizes {
		spec := "ML_KEM_" + size
		seed, spki := pair(t, spec)
		if want := []int{822, 1206, 1590}[i]; len(spki) != want {
			t.Errorf("%s: a public key has %d bytes, want %d", spec, len(spki), want)
		}
		private, err := PrivateKey(spec, seed)
		if err != nil {
			t.Fatal(err)
		}
		want := "3054020100300b06096086480165030404" + []string{"01", "02", "03"}[i] + "04428040" + hex.EncodeToString(seed)
		if got := hex.EncodeToString(private); got != want {
			t.Errorf("%s: a private key is\n%s, want\n%s", spec, got, want)
		}
		for other := range kems {
			if other != spec {
				if _, _, err := Encapsulate(other, spki); !errors.Is(err, ErrPublicKey) {
					t.Errorf("a public key of %s as %s: %v", spec, other, err)
				}
			}
		}
		for name, bad := range map[string][]byte{"empty": nil, "cut": spki[:len(spki)-1], "trailing": append(bytes.Clone(spki), 0), "raw": spki[22:]} {
			if _, _, err := Encapsulate(spec, bad); !errors.Is(err, ErrPublicKey) {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
		}
	}
}

// TestMLKEM: both sides get the same secret; a ciphertext with any other byte gives
// another one, always the same, and one of another length none.
func TestMLKEM(t *testing.T) {
	t.Parallel()
	for i, size := range kemSizes {
		spec := "ML_KEM_" + size
		seed, spki := pair(t, spec)
		secret, ciphertext, err := Encapsulate(spec, spki)
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{768, 1088, 1568}[i]; len(ciphertext) != want || len(secret) != 32 {
			t.Errorf("%s: %d bytes of secret in %d, want 32 in %d", spec, len(secret), len(ciphertext), want)
		}
		if got, err := Decapsulate(spec, seed, ciphertext); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: the two sides differ (%v)", spec, err)
		}
		again, _, err := Encapsulate(spec, spki)
		if err != nil || bytes.Equal(again, secret) {
			t.Errorf("%s: the same secret twice (%v)", spec, err)
		}
		ciphertext[len(ciphertext)/2] ^= 1
		rejected, err := Decapsulate(spec, seed, ciphertext)
		if err != nil || len(rejected) != 32 || bytes.Equal(rejected, secret) {
			t.Errorf("%s: a changed ciphertext: %x, %v", spec, rejected, err)
		}
		if got, err := Decapsulate(spec, seed, ciphertext); err != nil || !bytes.Equal(got, rejected) {
			t.Errorf("%s: the same changed ciphertext gave another secret (%v)", spec, err)
		}
		for _, bad := range [][]byte{nil, ciphertext[1:], append(bytes.Clone(ciphertext), 0)} {
			if _, err := Decapsulate(spec, seed, bad); !errors.Is(err, ErrCiphertext) {
				t.Errorf("%s, %d bytes: %v", spec, len(bad), err)
			}
		}
	}
	for _, spec := range []string{"ECC_NIST_P256", "HMAC_256", "SYMMETRIC_DEFAULT", ""} {
		if _, _, err := Encapsulate(spec, nil); err == nil {
			t.Errorf("a key of %q encapsulated", spec)
		}
		if _, err := Decapsulate(spec, nil, nil); err == nil {
			t.Errorf("a key of %q decapsulated", spec)
		}
	}
}

func BenchmarkMLKEM(b *testing.B) {
	for _, size := range kemSizes {
		spec := "ML_KEM_" + size
		seed, spki := pair(b, spec)
		_, ciphertext, err := Encapsulate(spec, spki)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(spec+"/encapsulate", func(b *testing.B) {
			for b.Loop() {
				if _, _, err := Encapsulate(spec, spki); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(spec+"/decapsulate", func(b *testing.B) {
			for b.Loop() {
				if _, err := Decapsulate(spec, seed, ciphertext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
