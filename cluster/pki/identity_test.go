package pki

import (
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func testCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA("test CA", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testIdentity(t testing.TB, ca *CA, node string) *Identity {
	t.Helper()
	cert, key, err := ca.Issue(IssueRequest{Kind: KindNode, Name: node, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCertificateIdentity(t *testing.T) {
	for raw, want := range map[string]string{
		"conclave://node/n1":           "n1",
		"conclave://operator/jo@x.org": "jo@x.org",
		"conclave://node/N1":           "",
		"conclave://node/":             "",
		"conclave://node/a/b":          "",
		"conclave://node/n1?x":         "",
		"conclave://node/n1#x":         "",
		"conclave://u@node/n1":         "",
		"conclave://node:1/n1":         "",
		"conclave://node/%6e1":         "",
		"conclave:node/n1":             "",
		"conclave://admin/n1":          "",
		"spiffe://node/n1":             "",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", raw, got, err, want)
		}
	}
	u := identityURI(KindNode, "n1")
	if _, _, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u, identityURI(KindNode, "n2")}}); err == nil {
		t.Error("a certificate of two nodes was taken")
	}
}

func TestCARoundTrip(t *testing.T) {
	ca := testCA(t)
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.CertPEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := testCA(t).KeyPEM(); err != nil {
		t.Fatal(err)
	} else if _, err := LoadCA(ca.CertPEM(), other); err == nil {
		t.Error("a CA was loaded with another's key")
	}
	testIdentity(t, again, "n1")
	for _, r := range []IssueRequest{
		{Kind: "admin", Name: "n1", Validity: time.Hour}, {Kind: KindNode, Name: "N/1", Validity: time.Hour},
		{Kind: KindOperator, Name: "", Validity: time.Hour}, {Kind: KindNode, Name: "n1"},
	} {
		if _, _, err := ca.Issue(r); err == nil {
			t.Errorf("issued %+v", r)
		}
	}
}

func TestIdentityReload(t *testing.T) {
	ca, dir := testCA(t), t.TempDir()
	write := func(node string) {
		cert, key, err := ca.Issue(IssueRequest{Kind: KindNode, Name: node, Validity: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"c": cert, "k": key, "ca": ca.CertPEM()} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("n1")
	id, err := LoadIdentity(filepath.Join(dir, "c"), filepath.Join(dir, "k"), filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	serial := id.loaded.Load().cert.Leaf.SerialNumber
	write("n1")
	if err := id.Reload(); err != nil {
		t.Fatal(err)
	}
	if id.loaded.Load().cert.Leaf.SerialNumber.Cmp(serial) == 0 {
		t.Error("the certificate is the old one")
	}
	write("n2")
	if err := id.Reload(); err == nil || id.NodeID() != "n1" {
		t.Errorf("a reload made the node another: %v, %s", err, id.NodeID())
	}
	os.WriteFile(filepath.Join(dir, "k"), []byte("x"), 0o600)
	if err := id.Reload(); err == nil {
		t.Error("a broken key was loaded")
	}
}
