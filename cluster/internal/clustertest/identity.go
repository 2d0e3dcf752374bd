package clustertest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
)

// NewCA creates a CA.
func NewCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("test CA", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Identity issues the identity of a node.
func Identity(t testing.TB, ca *pki.CA, node string) *pki.Identity {
	t.Helper()
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: node, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// OriginKey is the origin key of the cluster that Cluster returns.
var OriginKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// Cluster returns a cluster's record.
func Cluster() *fsmpb.Cluster {
	return &fsmpb.Cluster{
		Id: bytes.Repeat([]byte{7}, 16), Account: "000000000000", Region: "eu-test-1", Partition: "aws",
		Shares: &fsmpb.ShareSet{Threshold: 1, Count: 1}, Keyring: []*fsmpb.WrappedKEK{{Generation: 1}},
		OriginKeys: []*fsmpb.OriginKey{{Generation: 1, PublicKey: OriginKey.Public().(ed25519.PublicKey)}},
	}
}

// RaftPair returns both ends of a TLS connection between two nodes.
func RaftPair(t testing.TB, ca *pki.CA, from, to string) (dials, accepts *peerport.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server := Identity(t, ca, to).Server(func(string, string) error { return nil })
	accepted := make(chan *tls.Conn, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		c := tls.Server(raw, server)
		_ = c.HandshakeContext(context.Background())
		accepted <- c
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, Identity(t, ca, from).Client(to, pki.ALPNRaft))
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	dials, accepts = &peerport.Conn{Conn: c, Node: to}, &peerport.Conn{Conn: <-accepted, Node: from}
	t.Cleanup(func() { dials.Close(); accepts.Close() })
	return dials, accepts
}

// SignOrigin signs with OriginKey, as an unsealed node does.
func SignOrigin(domain string, digest [32]byte) (uint32, []byte, error) {
	return 1, ed25519.Sign(OriginKey, origin.Message(Cluster(), domain, digest)), nil
}
