package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// crlOf is the list of a CA with a number and the certificates with those serials.
func crlOf(t *testing.T, ca *CA, number int64, serials ...*big.Int) *CRL {
	t.Helper()
	c, err := ca.CRL(rawCRL(t, ca, number, nil, serials...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rawCRL(t *testing.T, ca *CA, number int64, edit func(*x509.RevocationList), serials ...*big.Int) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	if edit != nil {
		edit(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestCRLFormat: lists that say less than they seem to, or more than can be read, are
// refused.
func TestCRLFormat(t *testing.T) {
	ca, other := testCA(t), testCA(t) // of the same name
	serial := big.NewInt(7)
	good := rawCRL(t, ca, 1, nil, serial)
	if c, err := ca.CRL(good); err != nil || !c.Has(serial) || c.Has(big.NewInt(8)) || c.Number() != 1 {
		t.Fatalf("a good list: %v, %v", c, err)
	}
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 0}} // a delta list
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	many := make([]*big.Int, MaxCRL/30)
	for i := range many {
		many[i] = new(big.Int).Lsh(big.NewInt(int64(i+1)), 100)
	}
	for name, der := range map[string][]byte{
		"nothing":          nil,
		"cut":              good[:len(good)-1],
		"something behind": append(append([]byte(nil), good...), 0),
		"another CA's":     rawCRL(t, other, 1, nil, serial),
		"forged":           forged,
		"a certificate":    ca.der,
		"too large":        rawCRL(t, ca, 1, nil, many...),
		"huge number":      rawCRL(t, ca, 1, func(l *x509.RevocationList) { l.Number = new(big.Int).Lsh(big.NewInt(1), 64) }),
		"critical extension": rawCRL(t, ca, 1, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{critical}
		}),
		"critical extension of an entry": rawCRL(t, ca, 1, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{critical}
		}, serial),
	} {
		if _, err := ca.CRL(der); !errors.Is(err, ErrCRL) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRevoke: each list has what those before it had.
func TestRevoke(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	now := time.Now().UTC().Truncate(time.Second)
	first, err := ca.Revoke(nil, now, Revocation{big.NewInt(5), now, "key-compromise"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := ca.Revoke(first, now, Revocation{big.NewInt(5), now, "superseded"}, Revocation{big.NewInt(6), now, "unspecified"})
	if err != nil {
		t.Fatal(err)
	}
	if first.Number() != 1 || second.Number() != 2 {
		t.Errorf("numbers %d and %d", first.Number(), second.Number())
	}
	e := second.Entries()
	if len(e) != 2 || e[0].Reason != "key-compromise" || !e[0].At.Equal(now) || e[1].Serial.Int64() != 6 {
		t.Errorf("entries %+v", e)
	}
	for name, err := range map[string]error{
		"another CA's list": func() error { _, err := other.Revoke(first, now); return err }(),
		"hold":              func() error { _, err := ca.Revoke(first, now, Revocation{big.NewInt(9), now, "hold"}); return err }(),
		"no serial":         func() error { _, err := ca.Revoke(first, now, Revocation{nil, now, "superseded"}); return err }(),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for in, want := range map[string]string{"0A:0b": "a0b", "serial=FF": "ff", "x": "", "-1": "", "": "", "00": ""} {
		n, err := ParseSerial(in)
		if (err == nil) != (want != "") || err == nil && n.Text(16) != want {
			t.Errorf("serial %q: %v, %v", in, n, err)
		}
	}
}

// TestCRLRollback: no list brings a certificate back, whatever its number, and what
// is in force stays so over a restart.
func TestCRLRollback(t *testing.T) {
	ca, file := testCA(t), filepath.Join(t.TempDir(), "crl.pem")
	one, two := big.NewInt(1), big.NewInt(2)
	start := func() *Identity {
		t.Helper()
		id := testIdentity(t, ca, "n1")
		if err := id.KeepCRLs(file); err != nil {
			t.Fatal(err)
		}
		return id
	}
	id := start()
	if _, _, err := id.InstallCRL(crlOf(t, ca, 5, one).DER()); err != nil {
		t.Fatal(err)
	}
	newest := crlOf(t, ca, 7, one, two)
	if _, _, err := id.InstallCRL(newest.DER()); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", st, err)
	}
	for range 2 { // and once more after a restart
		for name, c := range map[string]*CRL{
			"lower number": crlOf(t, ca, 6, one, two), "same number": crlOf(t, ca, 7, one, two), "one is left out": crlOf(t, ca, 8, one), "empty": crlOf(t, ca, 9),
		} {
			if _, _, err := id.InstallCRL(c.DER()); !errors.Is(err, ErrOldCRL) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, _, err := id.InstallCRL(newest.DER()); err != nil {
			t.Errorf("the list in force, again: %v", err)
		}
		if l := id.CRLs(); len(l) != 1 || l[0].Number() != 7 || !l[0].Has(one) || !l[0].Has(two) {
			t.Errorf("in force: %v", l)
		}
		id = start()
	}
}

// TestStoredCRL: a node does not start on lists that it cannot read in full.
func TestStoredCRL(t *testing.T) {
	ca, other, dir := testCA(t), testCA(t), t.TempDir()
	good := crlOf(t, ca, 1, big.NewInt(1)).PEM()
	for name, data := range map[string][]byte{
		"empty": {}, "truncated": good[:len(good)/2], "something behind": append(append([]byte(nil), good...), "x"...),
		"another CA's": crlOf(t, other, 1).PEM(), "twice": append(append([]byte(nil), good...), good...),
		"other block": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.der}), "too long": append(bytes.Clone(good), bytes.Repeat([]byte{'\n'}, MaxCRLFile)...),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := testIdentity(t, ca, "n1").KeepCRLs(file); !errors.Is(err, ErrCRL) {
			t.Errorf("%s: %v", name, err)
		}
		if lists, err := testIdentity(t, ca, "n1").ReadCRLFile(file); lists != nil || !errors.Is(err, ErrCRL) {
			t.Errorf("%s, to be delivered: %v", name, err)
		}
	}
	file := filepath.Join(dir, "good")
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := testIdentity(t, ca, "n1").KeepCRLs(file); err != nil {
		t.Errorf("a good file: %v", err)
	}
	if lists, err := testIdentity(t, ca, "n1").ReadCRLFile(file); err != nil || len(lists.All()) != 1 || lists.All()[0].Number() != 1 {
		t.Errorf("a good file, to be delivered: %v", err)
	}
	// A list that cannot be stored is in force, and is stored when it is given again.
	id := testIdentity(t, ca, "n1")
	if err := id.KeepCRLs(filepath.Join(dir, "sub", "crl.pem")); err != nil {
		t.Fatal(err)
	}
	c := crlOf(t, ca, 1, id.Serial())
	if _, _, err := id.InstallCRL(c.DER()); err == nil {
		t.Error("a list that cannot be stored was taken without a word")
	}
	if err := id.Revoked(); !errors.Is(err, ErrRevoked) {
		t.Errorf("the node's own certificate: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := id.InstallCRL(c.DER()); err != nil {
		t.Errorf("once more: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sub", "crl.pem")); err != nil {
		t.Error(err)
	}
}

// TestCRLsOfTwoCAs: while a cluster changes its CA, both have lists, and a serial
// number is that of one CA.
func TestCRLsOfTwoCAs(t *testing.T) {
	ca, next := testCA(t), testCA(t)
	cert, key, err := next.Issue(IssueRequest{Kind: KindNode, Name: "n1", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(cert, key, append(ca.CertPEM(), next.CertPEM()...))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := id.InstallCRL(crlOf(t, ca, 9, id.Serial()).DER()); err != nil {
		t.Fatal(err)
	}
	if err := id.Revoked(); err != nil {
		t.Errorf("another CA revoked the certificate: %v", err)
	}
	if _, _, err := id.InstallCRL(crlOf(t, next, 3, id.Serial()).DER()); err != nil {
		t.Fatal(err)
	}
	if err := id.Revoked(); !errors.Is(err, ErrRevoked) {
		t.Errorf("its own: %v", err)
	}
	if n := len(id.CRLs()); n != 2 {
		t.Errorf("%d lists in force", n)
	}
}
