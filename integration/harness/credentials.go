package harness

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/transport/client"
)

// IssueOperator issues a certificate for another operator.
func (c *Cluster) IssueOperator(name string) tls.Certificate {
	c.T.Helper()
	return c.issueClient(pki.KindOperator, name)
}

// IssueWorkload issues a certificate that is named by a SPIFFE ID.
func (c *Cluster) IssueWorkload(id string) tls.Certificate {
	c.T.Helper()
	return c.issueClient(pki.KindWorkload, id)
}

func (c *Cluster) issueClient(kind pki.Kind, name string) tls.Certificate {
	c.T.Helper()
	certPEM, keyPEM, err := c.ca.Issue(pki.IssueRequest{Kind: kind, Name: name, Validity: 24 * time.Hour})
	c.must("certificate of "+name, err)
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	c.must("certificate of "+name, err)
	return cert
}

// DialAs returns a client of the node that has only a certificate. It is closed at the end
// of the test.
func (n *Node) DialAs(cert tls.Certificate) *client.Client {
	c := n.cluster
	c.T.Helper()
	cl, err := client.Dial(c.T.Context(), client.Config{
		Address: n.GRPC, TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots, Certificates: []tls.Certificate{cert}},
	})
	c.must("connecting to "+n.ID, err)
	return cl
}

// Certificate returns the node's own certificate.
func (n *Node) Certificate() *x509.Certificate {
	c := n.cluster
	c.T.Helper()
	raw, err := os.ReadFile(n.certFile())
	c.must("certificate of "+n.ID, err)
	b, _ := pem.Decode(raw)
	if b == nil {
		c.T.Fatalf("%s has no certificate", n.certFile())
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	c.must("certificate of "+n.ID, err)
	return cert
}

// Reissue gives the node another certificate, which it uses from its next start.
func (n *Node) Reissue() {
	n.cluster.T.Helper()
	n.cluster.must("certificate of "+n.ID, n.cluster.issue(n))
}

// Revoke signs the CA's next certificate revocation list. It contains the entries of
// before, which is nil for the first list, and the given certificates.
func (c *Cluster) Revoke(before *pki.CRL, certs ...*x509.Certificate) *pki.CRL {
	c.T.Helper()
	var more []pki.Revocation
	for _, cert := range certs {
		more = append(more, pki.Revocation{Serial: cert.SerialNumber, At: time.Now(), Reason: "key-compromise"})
	}
	next, err := c.ca.Revoke(before, time.Now(), more...)
	c.must(fmt.Sprintf("revoking %d certificates", len(certs)), err)
	return next
}

// As returns a client of the node with an access key. It is closed at the end of the test.
func (n *Node) As(accessKeyID, secret string) *client.Client {
	c := n.cluster
	c.T.Helper()
	cl, err := client.Dial(c.T.Context(), client.Config{
		Address: n.GRPC, TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots}, AccessKeyID: accessKeyID, SecretAccessKey: client.Secret(secret),
	})
	c.must("connecting to "+n.ID, err)
	return cl
}

// UseAccessKey makes all clients that are created from now on use another access key of the
// account's root.
func (c *Cluster) UseAccessKey(id, secret string) {
	c.AccessKeyID, c.secret = id, secret
	for _, nd := range c.Nodes {
		nd.closeClients()
	}
}

// Identity returns what the node shows the others.
func (c *Cluster) Identity(n *Node) *pki.Identity {
	c.T.Helper()
	id, err := pki.LoadIdentity(n.certFile(), n.keyFile(), c.CAFile())
	c.must("identity of "+n.ID, err)
	return id
}
