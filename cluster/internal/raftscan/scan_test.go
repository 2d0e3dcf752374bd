package raftscan

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/raftscan/scantest"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/wire"
)

type address struct{}

func (address) Network() string { return "tcp" }
func (address) String() string  { return "x" }

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
	c := &captured{Listener: peerport.NewListener(address{})}
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
	entries := make([]*raft.Log, MaxEntries)
	for i := range entries {
		entries[i] = &raft.Log{Index: uint64(i) << 40, Term: 1 << 40, Type: raft.LogCommand, Data: make([]byte, MaxAppend/MaxEntries), Extensions: []byte{1}, AppendedAt: time.Now()}
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
			_ = tr.AppendEntries("", "", &raft.AppendEntriesRequest{RPCHeader: header, Term: 7, Entries: Appendable(entries)}, new(raft.AppendEntriesResponse))
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
	if n := len(requests["entries"]); n < MaxAppend || n > maxRequest {
		t.Errorf("void: %d bytes of entries", n)
	}
}

// Floods end early.
func TestScanOfFloods(t *testing.T) {
	for name, flood := range scantest.Floods {
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
		if !errors.Is(err, ErrExcess) {
			t.Errorf("%s: %v after %d bytes", name, err, read)
		}
		if read > maxRequest+len(b) {
			t.Errorf("%s: %d bytes were taken", name, read)
		}
	}
}

// Two large requests of a sender are under way at a time.
func TestLargeRequestsWait(t *testing.T) {
	var l Large
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
}
