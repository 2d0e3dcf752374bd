package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"sync/atomic"
	"time"
)

// ALPN names of the protocols on the peer port.
const (
	ALPNRaft = "conclave-raft/2"
	ALPNPeer = "h2"
	// ALPNLineage is how a node that joins a cluster learns its lineage, which is part of the
	// names of the others. The server sends it and closes the connection.
	ALPNLineage = "conclave-lineage/1"
)

// Identity is a node's certificate with its key, and the CA that issues the certificates of
// all nodes. It can be reloaded while it is in use.
type Identity struct {
	certFile, keyFile, caFile string // empty if made from memory
	loaded                    atomic.Pointer[loadedIdentity]
	revoked                   *revocations
	lineage                   atomic.Pointer[string] // see SetLineage
}

type loadedIdentity struct {
	cert tls.Certificate
	pool *x509.CertPool
	cas  []*x509.Certificate // the certificates in pool
	node string
	ca   time.Time // expiry of the CA certificate that expires last
}

// LoadIdentity reads an identity from PEM files.
func LoadIdentity(certFile, keyFile, caFile string) (*Identity, error) {
	id := &Identity{certFile: certFile, keyFile: keyFile, caFile: caFile, revoked: newRevocations()}
	if err := id.Reload(); err != nil {
		return nil, err
	}
	return id, nil
}

// NewIdentity returns an identity from PEM in memory.
func NewIdentity(certPEM, keyPEM, caPEM []byte) (*Identity, error) {
	l, err := parseIdentity(certPEM, keyPEM, caPEM)
	if err != nil {
		return nil, err
	}
	id := &Identity{revoked: newRevocations()}
	id.loaded.Store(l)
	return id, nil
}

// Reload reads the files again, for new connections. After an error the identity remains
// unchanged, as does one from memory. A reload cannot change the node's id.
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

// NodeID returns the id in the certificate.
func (id *Identity) NodeID() string { return id.loaded.Load().node }

// Serial returns the serial number of the node's certificate.
func (id *Identity) Serial() *big.Int { return id.loaded.Load().cert.Leaf.SerialNumber }

// NotAfter returns when the certificate expires.
func (id *Identity) NotAfter() time.Time { return id.loaded.Load().cert.Leaf.NotAfter }

// CANotAfter returns when the CA's certificate expires, or the last one if there are
// several.
func (id *Identity) CANotAfter() time.Time { return id.loaded.Load().ca }

// chains returns the chains from the peer's certificate to the CA's certificates.
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

// verifyPeer verifies the peer's certificate for its role and returns the node that it
// identifies.
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

// SetLineage makes the node speak only with nodes whose state was restored from the same
// backup at the same time; lineage is empty for a cluster that was not restored. Nodes of
// the cluster that was backed up, which have certificates of the same CA and may have the
// same ids and addresses, are so refused by the handshake, before anything is decoded. It
// is for the connections from then on.
//
// This keeps nodes apart that are honest and that somebody started by mistake. Whoever has
// stolen a node's key can name any lineage, and gains nothing by it: what nodes sign is of
// one lineage too.
func (id *Identity) SetLineage(lineage string) { id.lineage.Store(&lineage) }

// Lineage returns the node's lineage.
func (id *Identity) Lineage() string {
	if l := id.lineage.Load(); l != nil {
		return *l
	}
	return ""
}

// protocol returns the ALPN name of a protocol within the node's lineage.
func (id *Identity) protocol(alpn string) string {
	if l := id.Lineage(); l != "" && alpn != ALPNLineage {
		return alpn + "+" + l
	}
	return alpn
}

// Protocol returns ALPNRaft, ALPNPeer or ALPNLineage, if that is what was negotiated, or "".
func (id *Identity) Protocol(cs tls.ConnectionState) string {
	for _, alpn := range []string{ALPNRaft, ALPNPeer, ALPNLineage} {
		if cs.NegotiatedProtocol == id.protocol(alpn) {
			return alpn
		}
	}
	return ""
}

// Server returns the TLS configuration of the peer port. admit decides whether a node with
// a valid certificate may use the protocol.
func (id *Identity) Server(admit func(node, alpn string) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return id.server(admit), nil // of the present lineage
		},
	}
}

func (id *Identity) server(admit func(node, alpn string) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The certificate is verified below, with the current CA. Go would use the one from
		// the start.
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{id.protocol(ALPNRaft), id.protocol(ALPNPeer), ALPNLineage},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &id.loaded.Load().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			node, err := id.verifyPeer(cs, x509.ExtKeyUsageClientAuth)
			if err != nil {
				return err
			}
			alpn := id.Protocol(cs)
			if alpn == "" {
				return errors.New("no known protocol")
			}
			return admit(node, alpn)
		},
	}
}

// Client returns the TLS configuration for a connection to the given node and no other.
func (id *Identity) Client(node, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{id.protocol(alpn)},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &id.loaded.Load().cert, nil
		},
		// Nodes are identified by the id in their certificate and not by host name, which
		// Go's own verification requires. VerifyConnection does the complete verification.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := id.verifyPeer(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if got != node {
				return fmt.Errorf("reached node %q instead of %q", got, node)
			}
			if id.Protocol(cs) != alpn {
				return fmt.Errorf("node %q does not speak %s", node, alpn)
			}
			return nil
		},
	}
}
