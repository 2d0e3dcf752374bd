package cluster

import (
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/raftscan/scantest"
	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// A member that floods a node over all of its connections takes little of its memory,
// and is cut off; the node serves on.
func TestFloodsTakeLittleMemory(t *testing.T) {
	// Not in parallel: it measures the memory of the process.
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	f.seal()
	clustertest.Eventually(t, time.Minute, "the follower is not known to be unsealed", func() bool { return !l.standings.Proven(f.id, time.Now()) })
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak uint64
	sampled := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(sampled)
		for {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-done:
				return
			}
		}
	}()
	dial := impostor{peerport.NewListener(f.port.Raft.Addr()), c, f}
	var all sync.WaitGroup
	for range 2 {
		for name, flood := range scantest.Floods {
			all.Go(func() {
				conn, err := dial.Dial(raft.ServerAddress(l.advertise), time.Second)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				n, err := io.Copy(conn, io.LimitReader(flood(), 64<<20))
				if err == nil {
					t.Errorf("%s: %d bytes were taken", name, n)
				}
			})
		}
	}
	all.Wait()
	close(done)
	<-sampled
	t.Logf("the heap took up to %d MiB more, and was %d MiB", (int64(peak)-int64(before.HeapInuse))>>20, before.HeapInuse>>20)
	if peak > before.HeapInuse+128<<20 {
		t.Errorf("the heap took %d MiB, and %d MiB before", peak>>20, before.HeapInuse>>20)
	}
	if !l.cutOffs.Has(standing.Sender{Node: f.id}, time.Now()) {
		t.Error("nobody is cut off")
	}
	mustPropose(t, l, clustertest.Record())
	c.noFaults()
}

// A request that goes no further is not waited for.
func TestRequestsThatGoNoFurther(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	n, f := c.leader(), c.followers()[0]
	dial := impostor{peerport.NewListener(f.port.Raft.Addr()), c, f}
	var all sync.WaitGroup
	for name, begin := range map[string]string{
		"a request":  "\x00\x81\xa7Entries\x91\x81\xa4Data\xc6\x00\x0f\xff\xff" + strings.Repeat("x", 100<<10),
		"a snapshot": "\x02\x81\xa4Size\x7fx",
	} {
		all.Go(func() {
			conn, err := dial.Dial(raft.ServerAddress(n.advertise), time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := io.WriteString(conn, begin); err != nil {
				t.Error(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(4 * n.cfg.Timeouts.raftTimeout()))
			var ne net.Error
			if _, err := io.Copy(io.Discard, conn); errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("%s that goes no further is waited for: %v", name, err)
			}
		})
	}
	all.Wait()
	mustPropose(t, n, clustertest.Record())
}
