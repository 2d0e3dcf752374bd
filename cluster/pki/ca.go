package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"
)

// Kind is the kind of identity in a certificate.
type Kind string

// The kinds of identity.
const (
	KindNode     Kind = "node"
	KindOperator Kind = "operator"
	// KindWorkload is a client that a certificate mapping says who it is. It is named by a
	// SPIFFE ID.
	KindWorkload Kind = "workload"
)

// uriScheme begins the one identity URI in a certificate, conclave://node/<id> or
// conclave://operator/<name>.
const uriScheme = "conclave"

// CA issues the cluster's certificates, with ECDSA P-256 and SHA-256.
type CA struct {
	cert *x509.Certificate
	der  []byte
	key  crypto.Signer
}

// NewCA creates a certificate authority whose certificate is valid from one hour ago, for
// the given time.
func NewCA(name string, validity time.Duration) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return newCA(der, key)
}

// LoadCA loads a certificate authority from PEM.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := parsePEM(certPEM, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	der, err := parsePEM(keyPEM, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	return ParseCA(cert, der)
}

func newCA(der []byte, key crypto.Signer) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("certificate is not a CA's")
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("CA key does not belong to the CA certificate")
	}
	return &CA{cert: cert, der: der, key: key}, nil
}

// CertPEM returns the CA's certificate in PEM.
func (ca *CA) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.der})
}

// KeyPEM returns the CA's private key as PKCS #8 in PEM. Its holder can impersonate any
// node.
func (ca *CA) KeyPEM() ([]byte, error) { return keyPEM(ca.key) }

// IssueRequest describes a certificate to issue.
type IssueRequest struct {
	Kind Kind
	// Name is the node's id, the operator's name or the workload's SPIFFE ID.
	Name string
	// DNS and IPs are additional names, for clients that verify host names.
	DNS []string
	IPs []net.IP
	// Validity is how long the certificate is valid. It begins one hour in the past,
	// because clocks may differ.
	Validity time.Duration
}

// NotAfter returns when the CA's certificate expires, and with it all certificates that it
// issued.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// Issue creates a key and a certificate for it, in PEM. The certificate is valid for TLS
// clients and servers.
func (ca *CA) Issue(r IssueRequest) (certPEM, privatePEM []byte, err error) {
	switch {
	case r.Kind != KindNode && r.Kind != KindOperator && r.Kind != KindWorkload:
		return nil, nil, fmt.Errorf("unknown kind of identity %q", r.Kind)
	case r.Kind == KindNode && CheckNodeID(r.Name) != nil:
		return nil, nil, CheckNodeID(r.Name)
	case r.Kind == KindOperator && !validOperator(r.Name):
		return nil, nil, fmt.Errorf("operator name %q: want 1 to 128 of letters, digits and -._@+", r.Name)
	case r.Kind == KindWorkload && !validWorkload(r.Name):
		return nil, nil, fmt.Errorf("workload %q: want a SPIFFE ID such as spiffe://example.org/ns/shop/sa/web", r.Name)
	case r.Validity == 0:
		return nil, nil, errors.New("no validity")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(r.Validity),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     r.DNS,
		IPAddresses:  r.IPs,
	}
	if r.Kind == KindWorkload {
		// Without a subject: a SPIFFE ID may be longer than a common name.
		u, err := url.Parse(r.Name)
		if err != nil {
			return nil, nil, err
		}
		t.URIs = []*url.URL{u}
	} else {
		t.Subject = pkix.Name{CommonName: string(r.Kind) + " " + r.Name}
		t.URIs = []*url.URL{identityURI(r.Kind, r.Name)}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	privatePEM, err = keyPEM(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), privatePEM, nil
}

func identityURI(kind Kind, name string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: string(kind), Path: "/" + name}
}

// CertificateIdentity returns the identity in a certificate, from its one conclave:// URI.
// It does not verify the certificate.
func CertificateIdentity(cert *x509.Certificate) (Kind, string, error) {
	var found *url.URL
	for _, u := range cert.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		if found != nil {
			return "", "", errors.New("certificate has several conclave identities")
		}
		found = u
	}
	if found == nil {
		return "", "", errors.New("certificate has no conclave identity")
	}
	kind, name := Kind(found.Host), strings.TrimPrefix(found.Path, "/")
	ok := kind == KindNode && CheckNodeID(name) == nil || kind == KindOperator && validOperator(name)
	// Comparing the URIs refuses queries, ports, user names and other spellings.
	if !ok || *found != *identityURI(kind, name) {
		return "", "", fmt.Errorf("certificate identity %q is malformed", found)
	}
	return kind, name, nil
}

// validWorkload reports whether a name is a SPIFFE ID with a path.
func validWorkload(name string) bool {
	id, ok := strings.CutPrefix(name, "spiffe://")
	domain, path, _ := strings.Cut(id, "/")
	if !ok || domain == "" || len(name) > 2048 || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.Trim(segment, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return false
		}
	}
	return true
}

func validOperator(name string) bool {
	if len(name) == 0 || len(name) > 128 {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._@+", rune(c)) {
			return false
		}
	}
	return true
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parsePEM(data []byte, kind string) ([]byte, error) {
	b, rest := pem.Decode(data)
	if b == nil || b.Type != kind {
		return nil, fmt.Errorf("no PEM block %q", kind)
	}
	if len(strings.TrimSpace(string(rest))) != 0 {
		return nil, fmt.Errorf("data after the PEM block %q", kind)
	}
	return b.Bytes, nil
}
