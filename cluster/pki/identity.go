package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// ALPN names of what shares the peer port.
const (
	ALPNRaft = "conclave-raft/2"
	ALPNPeer = "h2"
)

// Identity is a node's certificate with its key, and the CA that vouches for
// all nodes. It can be reloaded while in use.
type Identity struct {
	certFile, keyFile, caFile string // empty when made from memory
	loaded                    atomic.Pointer[loadedIdentity]
	revoked                   *revocations
}

type loadedIdentity struct {
	cert tls.Certificate
	pool *x509.CertPool
	cas  []*x509.Certificate // those in pool
	node string
	ca   time.Time // end of the CA certificate that lasts longest
}

// LoadIdentity reads an identity from PEM files.
func LoadIdentity(certFile, keyFile, caFile string) (*Identity, error) {
	id := &Identity{certFile: certFile, keyFile: keyFile, caFile: caFile, revoked: newRevocations()}
	if err := id.Reload(); err != nil {
		return nil, err
	}
	return id, nil
}

// NewIdentity takes an identity from PEM in memory.
func NewIdentity(certPEM, keyPEM, caPEM []byte) (*Identity, error) {
	l, err := parseIdentity(certPEM, keyPEM, caPEM)
	if err != nil {
		return nil, err
	}
	id := &Identity{revoked: newRevocations()}
	id.loaded.Store(l)
	return id, nil
}

// Reload reads the files again, for new connections. After an error, and for an
// identity from memory, the identity stays what it was. A reload cannot change
// the node's id.
func (id *Identity) Reload() error {
	if id.certFile == "" {
		return nil
	}
	var pems [3][]byte
	for i, f := range []string{id.certFile, id.keyFile, id.caFile} {
		var err error
		if pems[i], err = os.ReadFile(f); err != nil {
			return fmt.Errorf("loading node identity: %w", err)
		}
	}
	l, err := parseIdentity(pems[0], pems[1], pems[2])
	clear(pems[1])
	if err != nil {
		return fmt.Errorf("loading node identity from %s: %w", id.certFile, err)
	}
	if old := id.loaded.Load(); old != nil && old.node != l.node {
		return fmt.Errorf("%s is of node %q, and this is %q", id.certFile, l.node, old.node)
	}
	id.loaded.Store(l)
	return nil
}

func parseIdentity(certPEM, keyPEM, caPEM []byte) (*loadedIdentity, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	l := &loadedIdentity{cert: cert, pool: x509.NewCertPool(), cas: parseCertificates(caPEM)}
	if len(l.cas) == 0 {
		return nil, errors.New("the CA's file has no certificate")
	}
	for _, ca := range l.cas {
		l.pool.AddCert(ca)
		if ca.NotAfter.After(l.ca) {
			l.ca = ca.NotAfter
		}
	}
	kind, name, err := CertificateIdentity(cert.Leaf)
	if err != nil {
		return nil, err
	}
	if kind != KindNode {
		return nil, fmt.Errorf("certificate is of a %s, not a node", kind)
	}
	l.node = name
	return l, nil
}

// NodeID is the id in the certificate.
func (id *Identity) NodeID() string { return id.loaded.Load().node }

// Serial is the serial number of the node's certificate.
func (id *Identity) Serial() *big.Int { return id.loaded.Load().cert.Leaf.SerialNumber }

// NotAfter is when the certificate expires.
func (id *Identity) NotAfter() time.Time { return id.loaded.Load().cert.Leaf.NotAfter }

// CANotAfter is when the CA's certificate expires; of several, the last one.
func (id *Identity) CANotAfter() time.Time { return id.loaded.Load().ca }

// chains are the ways in which the other side's certificate is one of the CA's.
func (l *loadedIdentity) chains(cs tls.ConnectionState, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	return cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: l.pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
	})
}

// verifyPeer checks the other side's certificate for its role and returns the
// node it identifies.
func (id *Identity) verifyPeer(cs tls.ConnectionState, usage x509.ExtKeyUsage) (string, error) {
	chains, err := id.loaded.Load().chains(cs, usage)
	if err != nil {
		return "", err
	}
	if err := id.revoked.current().check(chains); err != nil {
		return "", err
	}
	kind, name, err := CertificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		return "", err
	}
	if kind != KindNode {
		return "", fmt.Errorf("certificate is of a %s, not a node", kind)
	}
	return name, nil
}

// Server is the TLS configuration of the peer port. admit decides whether a node
// with a good certificate may speak that protocol.
func (id *Identity) Server(admit func(node, alpn string) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The certificate is verified below, with the CA of the moment; Go would
		// take the one of the start.
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{ALPNRaft, ALPNPeer},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &id.loaded.Load().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			node, err := id.verifyPeer(cs, x509.ExtKeyUsageClientAuth)
			if err != nil {
				return err
			}
			if !slices.Contains([]string{ALPNRaft, ALPNPeer}, cs.NegotiatedProtocol) {
				return errors.New("no known protocol")
			}
			return admit(node, cs.NegotiatedProtocol)
		},
	}
}

// Client is the TLS configuration for a connection to that node and no other.
func (id *Identity) Client(node, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &id.loaded.Load().cert, nil
		},
		// Nodes are known by the id in their certificate, not by host name, which
		// is all that Go's own check compares. VerifyConnection does the whole check.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := id.verifyPeer(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if got != node {
				return fmt.Errorf("reached node %q instead of %q", got, node)
			}
			if cs.NegotiatedProtocol != alpn {
				return fmt.Errorf("node %q does not speak %s", node, alpn)
			}
			return nil
		},
	}
}
