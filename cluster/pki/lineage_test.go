package pki

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"
)

// TestLineagesDoNotTalk has nodes with good certificates of the same CA connect.
func TestLineagesDoNotTalk(t *testing.T) {
	t.Parallel()
	ca := testCA(t)
	lineages := []string{"", "aa", "bb"}
	for _, of := range lineages {
		for _, with := range lineages {
			for _, alpn := range []string{ALPNRaft, ALPNPeer} {
				server, client := testIdentity(t, ca, "node-1"), testIdentity(t, ca, "node-2")
				server.SetLineage(of)
				client.SetLineage(with)
				near, far := net.Pipe()
				var spoken string
				s := tls.Server(far, server.Server(func(_, alpn string) error { spoken = alpn; return nil }))
				c := tls.Client(near, client.Client("node-1", alpn))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				ended := make(chan error, 1)
				go func() { ended <- s.HandshakeContext(ctx) }()
				err := c.HandshakeContext(ctx)
				near.Close()
				if serverErr := <-ended; (serverErr == nil) != (of == with) || (err == nil) != (of == with) {
					t.Errorf("lineages %q and %q, %s: the server says %v and the client %v", of, with, alpn, serverErr, err)
				}
				if of == with && spoken != alpn {
					t.Errorf("lineage %q: %s was admitted as %q", of, alpn, spoken)
				}
				cancel()
				far.Close()
			}
		}
	}
}
