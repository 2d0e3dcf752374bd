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
