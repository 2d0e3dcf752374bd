package attest

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/attesttest"
)

// TestChains: paths of certificates that are no enclave's.
func TestChains(t *testing.T) {
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	must := func(c attesttest.Chain, err error) attesttest.Chain {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	with := func(change func(*x509.Certificate)) attesttest.Chain {
		t.Helper()
		return must(e.Chain.With(change, elliptic.P384(), made))
	}
	// under is the path down to an authority of the right one, and one more below it.
	under := func(at int, curve elliptic.Curve, change func(*x509.Certificate)) attesttest.Chain {
		t.Helper()
		template := &x509.Certificate{
			Subject: pkix.Name{CommonName: "below"}, NotBefore: made.Add(-time.Hour), NotAfter: made.Add(time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if change != nil {
			change(template)
		}
		below, err := e.Chain[at].Issue(template, curve)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := below.Issue(&x509.Certificate{
			Subject: pkix.Name{CommonName: "leaf"}, NotBefore: made.Add(-time.Hour), NotAfter: made.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		}, elliptic.P384())
		if err != nil {
			t.Fatal(err)
		}
		return append(append(attesttest.Chain{}, e.Chain[:at+1]...), below, leaf)
	}
	other := enclave(t)
	swapped := append(attesttest.Chain{}, e.Chain...)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	impostor := append(attesttest.Chain{}, other.Chain...)
	impostor[0] = e.Root() // the right root's certificate above another's path: names fit, signatures do not
	missing := append(append(attesttest.Chain{}, e.Chain[:2]...), e.Chain[3:]...)
	again := append(append(attesttest.Chain{}, e.Chain[:1]...), e.Chain...)
	self, err := (*attesttest.Authority)(nil).Issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "self"}, NotBefore: made.Add(-time.Hour), NotAfter: made.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}, elliptic.P384())
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name  string
		chain attesttest.Chain
		want  error
	}{
		{"right", e.Chain, nil},
		{"another root", other.Chain, ErrUntrusted},
		{"another's path below the root", impostor, ErrUntrusted},
		{"out of order", swapped, ErrCertificate},
		{"one left out", missing, ErrCertificate},
		{"root twice", again, ErrCertificate},
		{"root and hypervisor", attesttest.Chain{e.Root(), self}, ErrCertificate},
		{"leaf expired", with(func(c *x509.Certificate) { c.NotAfter = made.Add(-time.Second) }), ErrUntrusted},
		{"leaf not valid yet", with(func(c *x509.Certificate) { c.NotBefore = made.Add(2 * time.Minute) }), ErrUntrusted},
		{"leaf is an authority", with(func(c *x509.Certificate) { c.IsCA = true }), ErrCertificate},
		{"leaf may not sign", with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), ErrCertificate},
		{"leaf without usage", with(func(c *x509.Certificate) { c.KeyUsage = 0 }), ErrCertificate},
		{"leaf on P-256", must(e.Chain.With(nil, elliptic.P256(), made)), ErrCertificate},
		{"leaf on P-521", must(e.Chain.With(nil, elliptic.P521(), made)), ErrMalformed}, // the signature is too long
		{"leaf with a critical extension", with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), ErrUntrusted},
		{"shorter path", under(1, elliptic.P384(), nil), nil},
		{"path too long for an authority", under(3, elliptic.P384(), nil), ErrUntrusted},
		{"authority expired", under(1, elliptic.P384(), func(c *x509.Certificate) { c.NotAfter = made.Add(-time.Second) }), ErrUntrusted},
		{"authority that is none", under(1, elliptic.P384(), func(c *x509.Certificate) { c.IsCA = false }), ErrCertificate},
		{"authority that may not issue", under(1, elliptic.P384(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), ErrCertificate},
		{"authority without constraints", under(1, elliptic.P384(), func(c *x509.Certificate) { c.BasicConstraintsValid = false }), ErrCertificate},
		{"authority on P-256", under(1, elliptic.P256(), nil), ErrCertificate},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := *e
			e.Chain = tt.chain
			got, err := Verify(e.Document(made), roots, made)
			if (tt.want == nil) != (err == nil) || !errors.Is(err, tt.want) || (got == nil) == (err == nil) {
				t.Errorf("got %+v, %v, want %v", got, err, tt.want)
			}
		})
	}

	t.Run("signed by another hypervisor", func(t *testing.T) {
		sibling := with(nil)
		if _, err := Verify(sibling.Sign(attesttest.Encode(e.Payload(made))), roots, made); !errors.Is(err, ErrSignature) {
			t.Errorf("got %v, want %v", err, ErrSignature)
		}
	})
	t.Run("signed by an authority", func(t *testing.T) {
		doc := attesttest.Assemble(attesttest.Sign1(e.Chain[3].Key, attesttest.Protected, attesttest.Encode(e.Payload(made))))
		if _, err := Verify(doc, roots, made); !errors.Is(err, ErrSignature) {
			t.Errorf("got %v, want %v", err, ErrSignature)
		}
	})
	t.Run("signature of zeros", func(t *testing.T) {
		items := attesttest.Sign1(e.Chain.Leaf().Key, attesttest.Protected, attesttest.Encode(e.Payload(made)))
		items[3] = make([]byte, signatureSize)
		if _, err := Verify(attesttest.Assemble(items), roots, made); !errors.Is(err, ErrSignature) {
			t.Errorf("got %v, want %v", err, ErrSignature)
		}
	})
	for i, bad := range [][]byte{[]byte("certificate"), append(bytes.Clone(e.Root().Certificate.Raw), 0)} {
		t.Run(fmt.Sprintf("no certificate %d", i), func(t *testing.T) {
			bundle := e.Chain.Bundle()
			bundle[1] = bad
			for _, p := range []attesttest.Map{e.Payload(made).Set("certificate", bad), e.Payload(made).Set("cabundle", bundle)} {
				if _, err := Verify(e.Chain.Sign(attesttest.Encode(p)), roots, made); !errors.Is(err, ErrCertificate) {
					t.Errorf("got %v, want %v", err, ErrCertificate)
				}
			}
		})
	}
	t.Run("no roots", func(t *testing.T) {
		// The system's are none of ours, even where it trusts the enclave's.
		file := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(file, e.Root().PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("SSL_CERT_FILE", file)
		for _, none := range []*x509.CertPool{nil, x509.NewCertPool()} {
			if _, err := Verify(e.Document(made), none, made); !errors.Is(err, ErrUntrusted) {
				t.Errorf("got %v, want %v", err, ErrUntrusted)
			}
		}
	})
	t.Run("several roots", func(t *testing.T) {
		for _, e := range []*attesttest.Enclave{e, other} {
			if _, err := Verify(e.Document(made), rootsOf(t, e.Root(), other.Root()), made); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("an authority below the root is trusted", func(t *testing.T) {
		if _, err := Verify(e.Document(made), rootsOf(t, e.Chain[1]), made); err != nil {
			t.Error(err)
		}
	})
}

func TestParseRoots(t *testing.T) {
	e := enclave(t)
	leaf, err := e.Chain.With(nil, elliptic.P384(), made)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := (*attesttest.Authority)(nil).Issue(&x509.Certificate{
		NotAfter: made, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}, elliptic.P256())
	if err != nil {
		t.Fatal(err)
	}
	good := e.Root().PEM()
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		pem []byte
		ok  bool
	}{
		"one":                {good, true},
		"two":                {join(good, e.Chain[1].PEM()), true},
		"with a comment":     {join([]byte("The root.\n"), good), true},
		"nothing":            {nil, false},
		"space":              {[]byte("\n \n"), false},
		"garbage":            {[]byte("garbage"), false},
		"garbage behind":     {join(good, []byte("garbage")), false},
		"half":               {good[:len(good)/2], false},
		"one and a half":     {join(good, good[:len(good)/2]), false},
		"a hypervisor's":     {join(good, leaf.Leaf().PEM()), false},
		"another curve":      {weak.PEM(), false},
		"other PEM":          {bytes.ReplaceAll(good, []byte("CERTIFICATE"), []byte("PUBLIC KEY")), false},
		"no certificate":     {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), false},
		"DER":                {e.Root().Certificate.Raw, false},
		"certificate broken": {join(good, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), false},
	} {
		t.Run(name, func(t *testing.T) {
			pool, err := ParseRoots(tt.pem)
			if (err == nil) != tt.ok || (pool != nil) != tt.ok {
				t.Errorf("got %v, %v", pool, err)
			}
		})
	}
}
