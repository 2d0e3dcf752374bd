package gossip

import (
	"bytes"
	"log/slog"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/gossip/gossiptest"
	"github.com/conclavekms/conclave/transport/admission"
)

// TestGossipFromStrangers: who has no key can hold little of a node's memory, and
// members still hear of each other.
func TestGossipFromStrangers(t *testing.T) {
	key, err := DeriveKey(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DeriveKey([]byte(" short ")); err == nil {
		t.Error("a short key was taken")
	}
	budget, err := admission.New(admission.Config{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := Start(Config{Enable: true, Listen: "127.0.0.1:0", Key: key}, Self{
		ID: "n1", Peer: "127.0.0.1:1", Known: func(string) error { return nil },
		Budget: budget, Prefer: func(admission.Source) bool { return false }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(g.list.LocalNode().Port)))
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	message := append([]byte{244, byte(len(label))}, label...)
	message = append(message, 10, 0, 0x80, 0, 0) // encrypted, of 8 MiB
	var sent atomic.Int64
	var strangers sync.WaitGroup
	stop := make(chan struct{})
	for i := range 40 {
		strangers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 3, byte(1+i))}, tcp)
				if err != nil {
					continue
				}
				conn.SetDeadline(time.Now().Add(2 * time.Second))
				conn.Write(message)
				for chunk := make([]byte, 32<<10); ; {
					m, err := conn.Write(chunk)
					sent.Add(int64(m))
					if err != nil {
						break
					}
				}
				conn.Close()
			}
		})
	}
	peak := uint64(0)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapInuse)
	}
	// A member gets through meanwhile.
	known, err := gossiptest.Liar("n1", "127.0.0.1:0", "", key)
	if err != nil {
		t.Fatal(err)
	}
	joined := false
	for end := time.Now().Add(30 * time.Second); !joined && time.Now().Before(end); {
		m, err := known.Join([]string{addr})
		joined = m == 1 && err == nil
	}
	known.Shutdown()
	if !joined {
		t.Error("a member does not get through")
	}
	close(stop)
	strangers.Wait()
	grown := int64(peak) - int64(before.HeapInuse)
	t.Logf("40 strangers sent %d MiB; the heap grew by %d MiB at most", sent.Load()>>20, grown>>20)
	if sent.Load() == 0 {
		t.Fatal("void: nothing was sent")
	}
	if grown > 48<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// A node that comes back at another address is found there. Under the race detector, the
// test also shows that addresses may be asked for at any time.
func TestAddressOfANodeThatMoved(t *testing.T) {
	key, err := DeriveKey(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	start := func(id, peer, listen string, seeds ...string) *Book {
		t.Helper()
		budget, err := admission.New(admission.Config{})
		if err != nil {
			t.Fatal(err)
		}
		g, err := Start(Config{Enable: true, Listen: listen, Key: key, Seeds: seeds}, Self{
			ID: id, Peer: peer, Known: func(string) error { return nil },
			Budget: budget, Prefer: func(admission.Source) bool { return false }, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	address := func(g *Book) string {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(g.list.LocalNode().Port)))
	}
	stays := start("n1", "127.0.0.1:1", "127.0.0.1:0")
	defer stays.Close()
	if stays.Address("n1") != "127.0.0.1:1" || stays.Alive("n2") || stays.Address("n2") != "" {
		t.Errorf("n1 is at %q, and n2 at %q before it started", stays.Address("n1"), stays.Address("n2"))
	}
	moves, listen := (*Book)(nil), "127.0.0.1:0"
	for _, peer := range []string{"127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"} {
		moves = start("n2", peer, listen, address(stays))
		listen = address(moves)
		for limit := time.Now().Add(time.Minute); stays.Address("n2") != peer; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(limit) {
				t.Fatalf("n2 is at %q after a minute, want %q", stays.Address("n2"), peer)
			}
		}
		moves.Close()
	}
	for limit := time.Now().Add(time.Minute); stays.Alive("n2"); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("a node that left is alive after a minute")
		}
	}
}
