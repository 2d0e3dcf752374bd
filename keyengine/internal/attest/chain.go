package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// chain verifies the certificates of a payload at a time. It returns the key that must have
// signed the payload, and when the first of the certificates expires.
//
// The bundle is in order, with the root first, and each certificate names the previous one
// as its issuer. No name may occur twice, so there is one path to try for each root, and a
// crafted document cannot keep a node busy.
func (p *payload) chain(roots *x509.CertPool, at time.Time) (*ecdsa.PublicKey, time.Time, error) {
	if roots == nil {
		return nil, time.Time{}, ErrUntrusted // crypto/x509 would use the system's roots
	}
	path := make([]*x509.Certificate, 0, len(p.bundle)+1)
	for _, der := range append(p.bundle[:len(p.bundle):len(p.bundle)], p.certificate) {
		c, err := x509.ParseCertificate(der)
		if err != nil || !onP384(c) {
			return nil, time.Time{}, ErrCertificate
		}
		for i, earlier := range path {
			if bytes.Equal(earlier.RawSubject, c.RawSubject) {
				return nil, time.Time{}, ErrCertificate
			}
			if i == len(path)-1 && !bytes.Equal(c.RawIssuer, earlier.RawSubject) {
				return nil, time.Time{}, ErrCertificate
			}
		}
		path = append(path, c)
	}
	leaf := path[len(path)-1]
	if leaf.IsCA || leaf.MaxPathLen > 0 || leaf.MaxPathLenZero || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, time.Time{}, ErrCertificate
	}
	intermediates := x509.NewCertPool()
	for i, c := range path[:len(path)-1] {
		if !issues(c) {
			return nil, time.Time{}, ErrCertificate
		}
		if i > 0 { // the first is the root, which must be in roots
			intermediates.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, time.Time{}, ErrUntrusted
	}
	until := leaf.NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	// A certificate is still valid at its expiry time.
	return leaf.PublicKey.(*ecdsa.PublicKey), until.Add(1), nil
}

// onP384 reports whether a certificate has the key type of all enclaves' certificates.
func onP384(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && key.Curve == elliptic.P384() && c.SignatureAlgorithm == x509.ECDSAWithSHA384
}

func issues(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// ParseRoots parses PEM root certificates.
func ParseRoots(b []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for rest := bytes.TrimSpace(b); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("contains data that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block %q is among the certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n+1, err)
		}
		if !onP384(c) || !issues(c) {
			return nil, fmt.Errorf("certificate %d, %q, is not that of a certificate authority with ECDSA on P-384", n+1, c.Subject)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, errors.New("there is no certificate")
	}
	return pool, nil
}
