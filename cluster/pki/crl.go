package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	// MaxCRL bounds the size of a certificate revocation list in DER, which allows about
	// 5,000 certificates.
	MaxCRL = 256 << 10
	// maxCRLs is the maximum number of CAs whose lists a node keeps.
	maxCRLs = 8
	// MaxCRLFile bounds the size of a file of lists in PEM, which is less than twice as
	// long as DER.
	MaxCRLFile = 2 * maxCRLs * MaxCRL

	crlBlock = "X509 CRL"
)

// Errors of certificate revocation lists.
var (
	// ErrCRL is returned for a list that is malformed or too large, that was not signed by
	// a CA of this cluster, or that this version cannot read in full.
	ErrCRL = errors.New("certificate revocation list is refused")
	// ErrOldCRL is returned for a list that would make a certificate valid again: one with
	// a lower number than the list in force, a different one with the same number, or one
	// that leaves out a revoked certificate.
	ErrOldCRL = errors.New("certificate revocation list is older than the one in force")
	// ErrRevoked is returned for a certificate that its CA has revoked.
	ErrRevoked = errors.New("certificate is revoked")
)

// reasons are the permanent revocation reasons of RFC 5280, section 5.3.1.
var reasons = map[string]int{
	"unspecified": 0, "key-compromise": 1, "ca-compromise": 2, "affiliation-changed": 3, "superseded": 4,
	"cessation-of-operation": 5, "privilege-withdrawn": 9, "aa-compromise": 10,
}

// ReasonNames returns the names of the reasons for which a certificate can be revoked.
func ReasonNames() []string {
	var names []string
	for name := range reasons {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return reasons[a] - reasons[b] })
	return names
}

// Reason returns the code of a reason.
func Reason(name string) (int, bool) {
	code, ok := reasons[name]
	return code, ok
}

func reasonName(code int) string {
	for name, c := range reasons {
		if c == code {
			return name
		}
	}
	return fmt.Sprintf("reason %d", code)
}

// Revocation is an entry of a list.
type Revocation struct {
	Serial *big.Int
	At     time.Time
	// Reason is one of ReasonNames.
	Reason string
}

// CRL is a certificate revocation list (RFC 5280). Its signature has been verified only if
// it came from a CA, an Identity or a CRLs.
type CRL struct {
	list    *x509.RevocationList
	serials map[string]bool
}

// parseCRL parses a list in DER. It accepts only complete lists of one CA with a number,
// and refuses unknown extensions that restrict a list, because it could read such a list as
// one that revokes less. A certificate that is on hold counts as revoked.
func parseCRL(der []byte) (*CRL, error) {
	if len(der) > MaxCRL {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrCRL, MaxCRL)
	}
	list, err := x509.ParseRevocationList(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCRL, err)
	case len(list.Raw) != len(der):
		return nil, fmt.Errorf("%w: there is data after it", ErrCRL)
	case list.Number == nil || list.Number.Sign() < 0 || !list.Number.IsUint64():
		return nil, fmt.Errorf("%w: it has no number from 0 to 2^64-1", ErrCRL)
	}
	critical := func(list []pkix.Extension) error {
		for _, e := range list {
			if e.Critical {
				return fmt.Errorf("%w: it has the critical extension %v, which is not known", ErrCRL, e.Id)
			}
		}
		return nil
	}
	if err := critical(list.Extensions); err != nil {
		return nil, err
	}
	c := &CRL{list: list, serials: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		if err := critical(e.Extensions); err != nil {
			return nil, err
		}
		c.serials[string(e.SerialNumber.Bytes())] = true
	}
	return c, nil
}

// Number returns the list's number, which increases with each list of a CA.
func (c *CRL) Number() uint64 { return c.list.Number.Uint64() }

// Issued returns when the CA signed the list.
func (c *CRL) Issued() time.Time { return c.list.ThisUpdate }

// DER returns the list in DER.
func (c *CRL) DER() []byte { return c.list.Raw }

// PEM returns the list in PEM.
func (c *CRL) PEM() []byte { return pem.EncodeToMemory(&pem.Block{Type: crlBlock, Bytes: c.list.Raw}) }

// Issuer returns the key identifier of the CA, in hex.
func (c *CRL) Issuer() string { return hex.EncodeToString(c.list.AuthorityKeyId) }

// Entries returns the revoked certificates in the order of the list.
func (c *CRL) Entries() []Revocation {
	out := make([]Revocation, 0, len(c.list.RevokedCertificateEntries))
	for _, e := range c.list.RevokedCertificateEntries {
		out = append(out, Revocation{Serial: e.SerialNumber, At: e.RevocationTime, Reason: reasonName(e.ReasonCode)})
	}
	return out
}

// Has reports whether the certificate with that serial number, of the list's CA, is
// revoked.
func (c *CRL) Has(serial *big.Int) bool { return c.serials[string(serial.Bytes())] }

// signedBy verifies the list's signature.
func (c *CRL) signedBy(ca *x509.Certificate) error {
	switch c.list.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return fmt.Errorf("%w: %v is not safe", ErrCRL, c.list.SignatureAlgorithm)
	}
	if !bytes.Equal(c.list.RawIssuer, ca.RawSubject) {
		return fmt.Errorf("%w: another CA issued it", ErrCRL)
	}
	if err := c.list.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("%w: %w", ErrCRL, err)
	}
	return nil
}

// after returns ErrOldCRL if c would make a certificate valid again that old revokes.
func (c *CRL) after(old *CRL) error {
	switch {
	case c.Number() < old.Number():
		return fmt.Errorf("%w: it has number %d, and that one %d", ErrOldCRL, c.Number(), old.Number())
	case c.Number() == old.Number() && !bytes.Equal(c.DER(), old.DER()):
		return fmt.Errorf("%w: it is another list with the same number, %d", ErrOldCRL, c.Number())
	}
	for _, e := range old.list.RevokedCertificateEntries {
		if !c.Has(e.SerialNumber) {
			return fmt.Errorf("%w: it has number %d, but leaves out the certificate %x, which is revoked by list %d", ErrOldCRL, c.Number(), e.SerialNumber, old.Number())
		}
	}
	return nil
}

// CRL parses a list that this CA has signed.
func (ca *CA) CRL(der []byte) (*CRL, error) {
	c, err := parseCRL(der)
	if err != nil {
		return nil, err
	}
	if err := c.signedBy(ca.cert); err != nil {
		return nil, err
	}
	return c, nil
}

// Issued returns an error if the certificate was not issued by this CA.
func (ca *CA) Issued(cert *x509.Certificate) error { return cert.CheckSignatureFrom(ca.cert) }

// Revoke signs the CA's next list. It contains the entries of before, which is nil for the
// first list, and those in more. The entry of a certificate that is already revoked stays
// as it is.
//
// Lists are delivered by operators and not fetched, so a list is valid until another one
// replaces it. The time of the next update, which the format requires, is the expiry of the
// CA's certificate.
func (ca *CA) Revoke(before *CRL, at time.Time, more ...Revocation) (*CRL, error) {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: at, NextUpdate: ca.cert.NotAfter}
	seen := make(map[string]bool)
	if before != nil {
		if err := before.signedBy(ca.cert); err != nil {
			return nil, err
		}
		t.Number = new(big.Int).Add(before.list.Number, big.NewInt(1))
		t.RevokedCertificateEntries = slices.Clone(before.list.RevokedCertificateEntries)
		for s := range before.serials {
			seen[s] = true
		}
	}
	for _, r := range more {
		code, ok := Reason(r.Reason)
		switch {
		case !ok:
			return nil, fmt.Errorf("reason %q is none of %s", r.Reason, strings.Join(ReasonNames(), ", "))
		case r.Serial == nil || r.Serial.Sign() <= 0:
			return nil, errors.New("a serial number is positive")
		case seen[string(r.Serial.Bytes())]:
			continue
		}
		seen[string(r.Serial.Bytes())] = true
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.Serial, RevocationTime: r.At, ReasonCode: code,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, ca.cert, ca.key)
	if err != nil {
		return nil, err
	}
	return ca.CRL(der)
}

// CRLs are the lists in force, one for each CA. They are immutable.
type CRLs struct {
	of map[string]*CRL // by the CA's public key, which outlives its certificate
}

// ReadCRLs parses lists in PEM, at most one for each CA, that were signed by CAs in caPEM.
// Anything else in the file is an error.
func ReadCRLs(crlPEM, caPEM []byte) (*CRLs, error) {
	return readCRLs(crlPEM, parseCertificates(caPEM))
}

func readCRLs(data []byte, cas []*x509.Certificate) (*CRLs, error) {
	read, err := DecodeCRLs(data)
	if err != nil {
		return nil, err
	}
	lists := new(CRLs)
	for _, c := range read {
		key, err := c.issuedBy(cas)
		if err != nil {
			return nil, err
		}
		if lists.of[key] != nil {
			return nil, fmt.Errorf("%w: there are two lists of one CA", ErrCRL)
		}
		lists = lists.with(key, c)
	}
	return lists, nil
}

// DecodeCRLs parses one or more lists in PEM without verifying their signatures. It returns
// ErrCRL if there is anything else in the file.
func DecodeCRLs(data []byte) ([]*CRL, error) {
	if len(data) > MaxCRLFile {
		return nil, fmt.Errorf("%w: the file has more than %d bytes", ErrCRL, MaxCRLFile)
	}
	var lists []*CRL
	for len(bytes.TrimSpace(data)) > 0 {
		b, rest := pem.Decode(data)
		if b == nil || b.Type != crlBlock {
			return nil, fmt.Errorf("%w: there is something other than PEM blocks %q", ErrCRL, crlBlock)
		}
		c, err := parseCRL(b.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, c)
		data = rest
	}
	if len(lists) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrCRL)
	}
	return lists, nil
}

// issuedBy returns the public key of the CA that signed the list.
func (c *CRL) issuedBy(cas []*x509.Certificate) (key string, err error) {
	err = fmt.Errorf("%w: there is no CA", ErrCRL)
	for _, ca := range cas {
		if err = c.signedBy(ca); err == nil {
			return string(ca.RawSubjectPublicKeyInfo), nil
		}
	}
	return "", fmt.Errorf("list %d was issued by a CA that is not known here: %w", c.Number(), err)
}

func (l *CRLs) with(key string, c *CRL) *CRLs {
	next := &CRLs{of: map[string]*CRL{key: c}}
	for k, old := range l.of {
		if k != key {
			next.of[k] = old
		}
	}
	return next
}

// All returns the lists, sorted by issuer.
func (l *CRLs) All() []*CRL {
	var all []*CRL
	for _, c := range l.of {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *CRL) int { return strings.Compare(a.Issuer(), b.Issuer()) })
	return all
}

// pem returns the lists in PEM.
func (l *CRLs) pem() []byte {
	var b []byte
	for _, c := range l.All() {
		b = append(b, c.PEM()...)
	}
	return b
}

// check returns ErrRevoked if a certificate in one of the chains is revoked, even if other
// chains have no revoked certificate.
func (l *CRLs) check(chains [][]*x509.Certificate) error {
	if len(l.of) == 0 {
		return nil
	}
	for _, chain := range chains {
		for i := 1; i < len(chain); i++ {
			c := l.of[string(chain[i].RawSubjectPublicKeyInfo)]
			if cert := chain[i-1]; c != nil && c.Has(cert.SerialNumber) {
				return fmt.Errorf("%w: %s, serial number %x", ErrRevoked, cert.Subject, cert.SerialNumber)
			}
		}
	}
	return nil
}

// VerifyConnection is for a tls.Config. It refuses revoked certificates of the peer, and
// requires that TLS itself has verified the chains.
func (l *CRLs) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) > 0 && len(cs.VerifiedChains) == 0 {
		return errors.New("the certificate was not verified")
	}
	return l.check(cs.VerifiedChains)
}

// ParseSerial parses a serial number in hex, with or without colons, as openssl and other
// tools write it.
func ParseSerial(s string) (*big.Int, error) {
	s = strings.TrimPrefix(strings.ToLower(s), "serial=")
	n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 {
		return nil, fmt.Errorf("%q is not a serial number: want up to 20 bytes in hex", s)
	}
	return n, nil
}

// parseCertificates returns the certificates in PEM that can be parsed.
func parseCertificates(raw []byte) (certs []*x509.Certificate) {
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}
