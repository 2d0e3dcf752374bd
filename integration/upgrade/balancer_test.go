package upgrade

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// balancer is a load balancer as it stands before a cluster: it forwards connections to
// nodes that say that they are ready, in turn, and to the next one if a node refuses.
type balancer struct {
	ln    net.Listener
	nodes []*harness.Node
	ready []atomic.Bool
	next  atomic.Uint64
	ends  sync.WaitGroup
}

func startBalancer(t *testing.T, c *harness.Cluster) *balancer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{ln: ln, nodes: c.Nodes, ready: make([]atomic.Bool, len(c.Nodes))}
	ctx, cancel := context.WithCancel(context.Background())
	for i := range b.nodes {
		b.ends.Go(func() { b.watch(ctx, i) })
	}
	b.ends.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b.ends.Go(func() { b.carry(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		ln.Close()
		b.ends.Wait()
	})
	return b
}

// watch asks a node for its readiness.
func (b *balancer) watch(ctx context.Context, i int) {
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		resp, err := client.Get("http://" + b.nodes[i].Ops + "/readyz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		b.ready[i].Store(err == nil && resp.StatusCode == http.StatusOK)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// carry forwards one connection.
func (b *balancer) carry(ctx context.Context, near net.Conn) {
	defer near.Close()
	first := b.next.Add(1)
	for i := range b.nodes {
		at := (int(first) + i) % len(b.nodes)
		if !b.ready[at].Load() {
			continue
		}
		far, err := net.DialTimeout("tcp", b.nodes[at].AWS, time.Second)
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
		defer stop()
		defer far.Close()
		var both sync.WaitGroup
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			both.Go(func() {
				_, _ = io.Copy(way[0], way[1])
				_ = way[0].(*net.TCPConn).CloseWrite()
			})
		}
		both.Wait()
		return
	}
}
