package peers

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/pki"
)

// TestDialWantsThatNode reaches another node than the one that was called.
func TestDialWantsThatNode(t *testing.T) {
	ca := clustertest.NewCA(t)
	// listen accepts connections with the identity of a node.
	listen := func(id *pki.Identity) string {
		t.Helper()
		ln, err := tls.Listen("tcp", "127.0.0.1:0", id.Server(func(string, string) error { return nil }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conn.(*tls.Conn).Handshake()
				conn.Close()
			}
		}()
		return ln.Addr().String()
	}
	n2, n3 := listen(clustertest.Identity(t, ca, "n2")), listen(clustertest.Identity(t, ca, "n3"))
	foreign := listen(clustertest.Identity(t, clustertest.NewCA(t), "n2"))
	p := New(Config{ID: "n1", Identity: clustertest.Identity(t, ca, "n1")})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, alpn := range []string{pki.ALPNRaft, pki.ALPNPeer} {
		if conn, err := p.connectTo(ctx, "n2", n3, alpn); err == nil {
			conn.Close()
			t.Errorf("%s: n3 was taken for n2", alpn)
		}
		conn, err := p.connectTo(ctx, "n2", n2, alpn)
		if err != nil {
			t.Errorf("%s: %v", alpn, err)
			continue
		}
		conn.Close()
		if conn, err := p.connectTo(ctx, "n2", foreign, alpn); err == nil {
			conn.Close()
			t.Errorf("%s: a foreign CA's n2 was taken for n2", alpn)
		}
	}
}
