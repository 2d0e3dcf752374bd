package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWrongFiles: the error names the file, what it contains and what is
// needed.
func TestWrongFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	pair := func() (cert, key []byte) {
		t.Helper()
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
		if cert, err = x509.CreateCertificate(rand.Reader, c, c, k.Public(), k); err != nil {
			t.Fatal(err)
		}
		if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	certDER, keyDER := pair()
	_, otherDER := pair()
	cert, key, other := write("cert.pem", "CERTIFICATE", certDER), write("key.pem", "PRIVATE KEY", keyDER), write("other.pem", "PRIVATE KEY", otherDER)
	spoilt := write("spoilt.pem", "CERTIFICATE", []byte("x"))
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("share"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ca, cert, key string
		want          string
	}{
		{cert, cert, key, ""},
		{key, "", "", "key.pem has a private key, where a certificate is needed"},
		{text, "", "", "text is not a PEM file; a certificate in PEM is needed"},
		{spoilt, "", "", "spoilt.pem cannot be read"},
		{dir, "", "", "is not a file of certificates"},
		{"", key, cert, "cert.pem has a certificate, where a private key is needed"},
		{"", text, key, "text is not a PEM file"},
		{"", cert, other, "cert.pem and key " + other},
		{"", filepath.Join(dir, "none"), key, "no such file"},
	} {
		_, err := Dial(t.Context(), Config{Address: "127.0.0.1:1", CAFile: c.ca, CertFile: c.cert, KeyFile: c.key})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("ca %q, cert %q, key %q: got %v, want %q", c.ca, c.cert, c.key, err, c.want)
		}
	}
}
