package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"
)

// nodeValidity is how long the certificate of a node that joins is valid.
const nodeValidity = 365 * 24 * time.Hour

// ParseCA parses a certificate authority: its certificate in DER, and its key as PKCS #8 in DER.
func ParseCA(cert, key []byte) (*CA, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("CA key of type %T cannot sign", parsed)
	}
	return newCA(cert, signer)
}

// DER returns the CA's certificate, and its key as PKCS #8, in DER. The caller must wipe the
// key.
func (ca *CA) DER() (cert, key []byte, err error) {
	key, err = x509.MarshalPKCS8PrivateKey(ca.key)
	return ca.der, key, err
}

// CertifyNode issues the certificate of a node for a key that the node keeps, in DER. public
// must be an ECDSA key on P-256 or P-384. Besides the node's id, the certificate has the given
// host names and IP addresses. It is valid from an hour before now, for a year, or as long as
// the CA's.
func (ca *CA) CertifyNode(node string, names []string, public any, now time.Time) ([]byte, error) {
	if err := CheckNodeID(node); err != nil {
		return nil, err
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return nil, errors.New("a node's key must be ECDSA on P-256 or P-384")
	}
	if !now.Before(ca.cert.NotAfter) {
		return nil, fmt.Errorf("the CA's certificate expired on %v", ca.cert.NotAfter)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: string(KindNode) + " " + node},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(nodeValidity),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{node},
		URIs:         []*url.URL{identityURI(KindNode, node)},
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		t.NotAfter = ca.cert.NotAfter
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if !slices.Contains(t.DNSNames, name) {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return x509.CreateCertificate(rand.Reader, t, ca.cert, key, ca.key)
}

// Trusts returns an error if the node does not accept certificates of a CA.
func (id *Identity) Trusts(ca *CA) error {
	for _, c := range id.loaded.Load().cas {
		if c.Equal(ca.cert) {
			return nil
		}
	}
	return errors.New("it is not in the file of CAs (--tls-ca) of this node, so the nodes would not accept its certificates")
}

// CAs returns the certificates of the CAs whose certificates the node accepts, in PEM.
func (id *Identity) CAs() []byte {
	var b []byte
	for _, c := range id.loaded.Load().cas {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// FaceOfAnyNode returns the TLS configuration for the face of any node with a certificate of
// the CA, whose certificate is in DER. Certificates of operators and workloads, which the CA
// has signed too, are refused.
func FaceOfAnyNode(ca []byte) (*tls.Config, error) {
	cert, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, err
	}
	l := &loadedIdentity{pool: x509.NewCertPool()}
	l.pool.AddCert(cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Nodes are identified by the id in their certificate and not by host name, as they
		// are by other nodes. VerifyConnection does the complete verification.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if _, err := l.chains(cs, x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			kind, _, err := CertificateIdentity(cs.PeerCertificates[0])
			if err == nil && kind != KindNode {
				err = fmt.Errorf("certificate is of a %s, not a node", kind)
			}
			return err
		},
	}, nil
}
