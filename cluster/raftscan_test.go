package cluster

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/wire"
)

// captured is what hashicorp/raft's transport sends.
type captured struct {
	*peerport.Listener
	mu   sync.Mutex
	sent bytes.Buffer
}

func (c *captured) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		b := make([]byte, 64<<10)
		for {
			_ = far.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // that is all, then
			n, err := far.Read(b)
			c.mu.Lock()
			c.sent.Write(b[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return near, nil
}

// requestBytes is a request as it is sent.
func requestBytes(t *testing.T, ask func(tr *raft.NetworkTransport)) []byte {
	t.Helper()
	c := &captured{Listener: peerport.NewListener(advertised("x"))}
	tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: c, MaxPool: 1, Timeout: 10 * time.Second, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
	})
	defer tr.Close()
	ask(tr)
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent.Bytes())
}

func honestRequests(t *testing.T) map[string][]byte {
	t.Helper()
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n1"), Addr: []byte("127.0.0.1:7000")}
	entries := make([]*raft.Log, maxAppendEntries)
	for i := range entries {
		entries[i] = &raft.Log{Index: uint64(i) << 40, Term: 1 << 40, Type: raft.LogCommand, Data: make([]byte, maxAppend/maxAppendEntries), Extensions: []byte{1}, AppendedAt: time.Now()}
	}
	var servers []raft.Server
	for range 9 {
		servers = append(servers, raft.Server{ID: "a node with a long name", Address: "an.address.that.is.long.example.org:7000"})
	}
	snapshot := &raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: 1, Term: 7, Leader: header.Addr, LastLogIndex: 1 << 40, LastLogTerm: 6, Peers: []byte("peers"),
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: servers}), ConfigurationIndex: 1,
	}
	install := func(size int) func(tr *raft.NetworkTransport) {
		return func(tr *raft.NetworkTransport) {
			snapshot.Size = int64(size)
			_ = tr.InstallSnapshot("", "", snapshot, new(raft.InstallSnapshotResponse), bytes.NewReader(make([]byte, size)))
		}
	}
	requests := make(map[string][]byte)
	for name, ask := range map[string]func(tr *raft.NetworkTransport){
		"a heartbeat": func(tr *raft.NetworkTransport) {
			_ = tr.AppendEntries("", "", &raft.AppendEntriesRequest{RPCHeader: header, Term: 7}, new(raft.AppendEntriesResponse))
		},
		"entries": func(tr *raft.NetworkTransport) {
			_ = tr.AppendEntries("", "", &raft.AppendEntriesRequest{RPCHeader: header, Term: 7, Entries: appendable(entries)}, new(raft.AppendEntriesResponse))
		},
		"the largest entry": func(tr *raft.NetworkTransport) {
			_ = tr.AppendEntries("", "", &raft.AppendEntriesRequest{RPCHeader: header, Term: 7, Entries: []*raft.Log{{Data: make([]byte, wire.MaxEntry)}}}, new(raft.AppendEntriesResponse))
		},
		"a vote": func(tr *raft.NetworkTransport) {
			_ = tr.RequestVote("", "", &raft.RequestVoteRequest{RPCHeader: header, Term: 1 << 60, LastLogIndex: 1 << 33, LastLogTerm: 5}, new(raft.RequestVoteResponse))
		},
		"a vote beforehand": func(tr *raft.NetworkTransport) {
			_ = tr.RequestPreVote("", "", &raft.RequestPreVoteRequest{RPCHeader: header, Term: 8}, new(raft.RequestPreVoteResponse))
		},
		"an election": func(tr *raft.NetworkTransport) {
			_ = tr.TimeoutNow("", "", &raft.TimeoutNowRequest{RPCHeader: header}, new(raft.TimeoutNowResponse))
		},
		"an empty snapshot": install(0), "a small snapshot": install(100), "a snapshot": install(70000), "a large snapshot": install(9 << 20),
	} {
		requests[name] = requestBytes(t, ask)
	}
	return requests
}

// What Raft sends passes, in whatever pieces it comes, and it is seen where it ends.
func TestScanOfHonestRequests(t *testing.T) {
	requests := honestRequests(t)
	random := rand.New(rand.NewPCG(1, 2))
	for name, b := range requests {
		install := strings.HasSuffix(name, "snapshot")
		for _, most := range []int{1, 7, 1 << 10, 1 << 20} {
			if most == 1 && len(b) > 1<<20 {
				continue
			}
			stream := b
			if !install {
				stream = slices.Concat(requests["a vote"], b, requests["a heartbeat"])
			}
			var s requestScan
			for rest := stream; len(rest) > 0; {
				n := min(1+random.IntN(most), len(rest))
				if err := s.scan(rest[:n]); err != nil {
					t.Fatalf("%s, %d bytes from the end of %d: %v", name, len(rest), len(stream), err)
				}
				rest = rest[n:]
			}
			if !s.idle() || s.last != install {
				t.Errorf("%s, by %d: idle %v, last %v", name, most, s.idle(), s.last)
			}
			if err := s.scan([]byte{0}); (err != nil) != install {
				t.Errorf("%s, and another request: %v", name, err)
			}
		}
		if cut := b[:len(b)-1]; len(cut) > 0 {
			var s requestScan
			if err := s.scan(cut); err != nil || s.idle() {
				t.Errorf("%s, without its last byte: idle %v, %v", name, s.idle(), err)
			}
		}
	}
	if n := len(requests["entries"]); n < maxAppend || n > maxRequest {
		t.Errorf("void: %d bytes of entries", n)
	}
}

// repeated is an endless flood after a beginning.
func repeated(head string, b string) io.Reader {
	return io.MultiReader(strings.NewReader(head), &endless{b: b})
}

type endless struct {
	b  string
	at int
}

func (e *endless) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		k := copy(p[n:], e.b[e.at:])
		n, e.at = n+k, (e.at+k)%len(e.b)
	}
	return len(p), nil
}

// floods are requests without end, and what would be made of memory by announcing it.
var floods = map[string]func() io.Reader{
	"entries of nothing": func() io.Reader { return repeated("\x00\x81\xa7Entries\xdd\xff\xff\xff\xff", "\xc0") },
	"empty entries":      func() io.Reader { return repeated("\x00\x81\xa7Entries\xdd\xff\xff\xff\xff", "\x80") },
	"few entries of many": func() io.Reader {
		return repeated("\x00\x81\xa7Entries\xdd\x00\x00\x0f\xff", "\x81\xa4Data\xc5\xff\xff"+strings.Repeat("x", 0xffff))
	},
	"a blob":             func() io.Reader { return repeated("\x00\x81\xa2ID\xc6\xff\xff\xff\xff", "x") },
	"a blob as an array": func() io.Reader { return repeated("\x00\x81\xa2ID\xdd\xff\xff\xff\xff", "\x01") },
	"a text":             func() io.Reader { return repeated("\x01\x81\xa2ID\xdb\xff\xff\xff\xff", "x") },
	"an extension":       func() io.Reader { return repeated("\x01\x81\xa2ID\xc9\xff\xff\xff\xff", "x") },
	"a name":             func() io.Reader { return repeated("\x01\x81\xdb\xff\xff\xff\xff", "x") },
	"fields":             func() io.Reader { return repeated("\x04\xdf\xff\xff\xff\xff", "\xa1a\xc0") },
	"the same field": func() io.Reader {
		return repeated("\x00\xde\xff\xff", "\xa2ID\xc5\xff\xff"+strings.Repeat("x", 0xffff))
	},
	"depth":                    func() io.Reader { return repeated("\x00\x81\xa1a", "\x91") },
	"depth of maps":            func() io.Reader { return repeated("\x00", "\x81\xa1a") },
	"no map":                   func() io.Reader { return repeated("\x00", "\xdd\xff\xff\xff\xff") },
	"no kind of value":         func() io.Reader { return repeated("\x00\x81\xa1a", "\xc1") },
	"a snapshot of size -1":    func() io.Reader { return repeated("\x02\x81\xa4Size\xff", "\x80") },
	"a snapshot of size -1, 8": func() io.Reader { return repeated("\x02\x81\xa4Size\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a snapshot of a fraction": func() io.Reader { return repeated("\x02\x81\xa4Size\xcb\x7f\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a size that is too large": func() io.Reader { return repeated("\x02\x81\xa4Size\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a size without a name":    func() io.Reader { return repeated("\x02\x81\xc4\x04Size\x01", "\x80") },
	"after a snapshot": func() io.Reader {
		return repeated("\x02\x81\xa4Size\x01x", "\x00\x81\xa7Entries\xdd\xff\xff\xff\xff\x80")
	},
}

// Floods end early.
func TestScanOfFloods(t *testing.T) {
	for name, flood := range floods {
		var s requestScan
		var err error
		read := 0
		r, b := flood(), make([]byte, 3000)
		for err == nil && read < 64<<20 {
			n, _ := r.Read(b)
			if err = s.scan(b[:n]); err == nil {
				read += n
			}
		}
		if !errors.Is(err, errExcess) {
			t.Errorf("%s: %v after %d bytes", name, err, read)
		}
		if read > maxRequest+len(b) {
			t.Errorf("%s: %d bytes were taken", name, read)
		}
	}
}

// A member that floods a node over all of its connections takes little of its memory,
// and is cut off; the node serves on.
func TestFloodsTakeLittleMemory(t *testing.T) {
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	f.seal()
	clustertest.Eventually(t, 20*time.Second, "the follower is not known to be unsealed", func() bool { return !l.standings.Proven(f.id, time.Now()) })
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
	dial := impostor{peerport.NewListener(advertised(f.advertise)), c, f}
	var all sync.WaitGroup
	for range 2 {
		for name, flood := range floods {
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

// Two large requests of a sender are under way at a time, and one that goes no further
// gives its place back.
func TestLargeRequestsWait(t *testing.T) {
	var l largeRequests
	from := standing.Sender{Node: "n2"}
	stop := make(chan struct{})
	var ends []func()
	for range largeAtOnce {
		end, ok := l.begin(from, stop)
		if !ok {
			t.Fatal("no place")
		}
		ends = append(ends, end)
	}
	if end, ok := l.begin(standing.Sender{Node: "n2", Proven: true}, stop); !ok {
		t.Error("an impostor takes the node's own places")
	} else {
		end()
	}
	third := make(chan bool, 1)
	go func() {
		_, ok := l.begin(from, stop)
		third <- ok
	}()
	select {
	case <-third:
		t.Error("a third one did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	ends[0]()
	if !<-third {
		t.Error("the third one has no place")
	}
	close(stop)
	if _, ok := l.begin(from, stop); ok {
		t.Error("a place after the end")
	}

	c := startCluster(t, 3, nil)
	n, f := c.leader(), c.followers()[0]
	dial := impostor{peerport.NewListener(advertised(f.advertise)), c, f}
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
			_ = conn.SetReadDeadline(time.Now().Add(4 * n.trans.timeout))
			var ne net.Error
			if _, err := io.Copy(io.Discard, conn); errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("%s that goes no further is waited for: %v", name, err)
			}
		})
	}
	all.Wait()
	mustPropose(t, n, clustertest.Record())
}

// An answer ends the connection when it is too long.
func TestLongAnswers(t *testing.T) {
	ours, theirs := raftPair(t, testCA(t), "n1", "n2")
	out := &outbound{raftConn: &raftConn{Conn: ours}}
	go func() { _, _ = theirs.Write(make([]byte, 3*maxAnswer)) }()
	b := make([]byte, 1000)
	read := 0
	for {
		n, err := out.Read(b)
		if read += n; err != nil {
			if !errors.Is(err, errExcess) {
				t.Error(err)
			}
			break
		}
		if read > maxAnswer {
			t.Fatalf("%d bytes of an answer were taken", read)
		}
	}
	if _, err := out.Write([]byte("the next request")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(b); err != nil {
		t.Errorf("after the next request: %v", err)
	}
}
