package auditarchive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/archive"
	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// memoryStore is a store that counts what is made.
type memoryStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	created int
	// parts are what is left of objects that were not made, and since when.
	parts map[string]time.Time
}

func (s *memoryStore) Create(_ context.Context, name string, write func(io.Writer) error) (int64, error) {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return 0, fs.ErrExist
	}
	s.created++
	s.objects[name] = b.Bytes()
	return int64(b.Len()), nil
}

func (s *memoryStore) Open(_ context.Context, name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(bytes.Clone(b))), nil
}

func (s *memoryStore) List(_ context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.objects)), func(n string) bool { return !strings.HasPrefix(n, prefix) }), nil
}

func (s *memoryStore) Sweep(_ context.Context, prefix string, before time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.parts, func(name string, began time.Time) bool {
		return strings.HasPrefix(name, prefix) && began.Before(before)
	})
	return nil
}

func (s *memoryStore) String() string { return "memory" }

func (s *memoryStore) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.created
}

// flip changes a bit of the object whose name ends so.
func (s *memoryStore) flip(end string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, b := range s.objects {
		if strings.HasSuffix(name, end) {
			b[len(b)/2] ^= 1
		}
	}
}

// nodeLog is the log of a node, of which segments can be removed.
type nodeLog struct {
	*enginetest.AuditLog
	mu      sync.Mutex
	removed auditlog.Removed
}

func (l *nodeLog) Removed() auditlog.Removed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

func (l *nodeLog) RemoveSegments(n uint64, place string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = auditlog.Removed{Segments: n, Place: place}
	return nil
}

// fill appends records until the log has so many full segments and a few records more.
func fill(t *testing.T, c *enginetest.Cluster, segments uint64) {
	t.Helper()
	for seq := uint64(1); c.Audit.Size() < segments*auditlog.SegmentSize+10; seq++ {
		b := &fsmpb.Batch{Node: "n3", Incarnation: 1, Seq: seq, SettledBelow: seq}
		for i := range uint64(4096) {
			id := binary.BigEndian.AppendUint64(make([]byte, 8), seq<<16|i+1)
			sum := sha256.Sum256(id)
			b.Records = append(b.Records, &fsmpb.Record{RequestId: id, Salt: sum[:16], Commitment: sum[:], Body: []byte("a record")})
		}
		c.Commit(&fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{b}}}})
	}
}

func newService(t *testing.T, n *enginetest.Node, log Log, p Policy, read func(uint64) bool) *Service {
	t.Helper()
	s, err := New(Config{
		Policy: p, Log: log, Read: read, Vault: n.Vault, Replica: n.Replica, Events: n.Events, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.look = 10 * time.Millisecond
	return s
}

// during runs f until what must happen has happened.
func during(t *testing.T, s *Service, f func(context.Context), what string, happened func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	defer func() { cancel(); <-done }()
	for end := time.Now().Add(20 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s; the newest failure is %v", what, s.Fault())
		}
	}
}

func count(n *enginetest.Node, name string) (times int) {
	for _, e := range n.Cluster.Audit.Entries() {
		if b, err := n.Vault.OpenBody(e); err == nil {
			if r, err := auditlog.DecodeRecord(b); err == nil && r.EventName == name {
				times++
			}
		}
	}
	return times
}

// TestArchiveAndExpire: the leader archives each segment once, and the next leader none again.
// What is old is removed, unless it was altered in the archive, is still read, or is the last
// full segment.
func TestArchiveAndExpire(t *testing.T) {
	c := enginetest.NewCluster(t, 3)
	n1, n2 := c.NewNode("n1"), c.NewNode("n2")
	p := enginetest.InitParams(1, 1)
	p.KeepUnsealed = true
	res := n1.Initialise(p)
	n2.Unseal(res.Shares...)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: level.Newest}}})
	fill(t, c, 2)
	store := &memoryStore{objects: make(map[string][]byte)}
	log := &nodeLog{AuditLog: c.Audit}
	var mu sync.Mutex
	behind := true
	read := func(index uint64) bool {
		mu.Lock()
		defer mu.Unlock()
		return !behind && index <= c.Audit.Size()
	}
	policy := Policy{Store: store, Retention: time.Hour}
	s1, s2 := newService(t, n1, log, policy, read), newService(t, n2, log, policy, read)
	progress := func() progress {
		p, err := progressOf(c.State())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}

	during(t, s1, s1.Lead, "two segments in the archive", func() bool { return progress().Segments == 2 })
	cl, _ := c.State().Cluster()
	files, err := s1.Archive(cl).Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Dir("", record.VerifierKey(cl), verify.Options{FS: files, Archive: true})
	if err != nil || !rep.OK() || rep.Size != 2*auditlog.SegmentSize {
		t.Errorf("the archive: %+v, %v", rep, err)
	}
	if store.made() != 6 || progress().Removed != 0 {
		t.Errorf("%d objects were made: %+v", store.made(), progress())
	}

	// The log becomes old. Before the nodes may remove anything, the archive is read again.
	c.Advance(2 * time.Hour)
	store.flip("-00000000.seg")
	during(t, s2, s2.Lead, "alarm", func() bool { return errors.Is(s2.Fault(), archive.ErrAltered) })
	if progress().Removed != 0 || testutil.ToFloat64(s2.metrics.altered) == 0 {
		t.Errorf("a segment that was altered in the archive may be removed: %+v", progress())
	}
	store.flip("-00000000.seg")
	during(t, s2, s2.Lead, "expiry", func() bool { return progress().Removed == 1 })
	if store.made() != 6 || s2.Fault() != nil || count(n1, "ArchiveAuditSegment") != 2 || count(n1, "ExpireAuditSegment") != 1 {
		t.Errorf("%d objects were made, %d segments archived; fault: %v", store.made(), count(n1, "ArchiveAuditSegment"), s2.Fault())
	}

	if err := s1.remove(t.Context()); err != nil || log.Removed().Segments != 0 {
		t.Errorf("a segment was removed that something has not read yet: %v", err)
	}
	mu.Lock()
	behind = false
	mu.Unlock()
	during(t, s1, s1.Run, "removal", func() bool { return log.Removed() == auditlog.Removed{Segments: 1, Place: "memory"} })
	if more, err := s1.step(t.Context()); more || err != nil {
		t.Errorf("the last full segment is to be removed too: %v", err)
	}

	// Another place is another archive.
	elsewhere := &memoryStore{objects: make(map[string][]byte)}
	moved := newService(t, n1, log, Policy{Store: named{elsewhere, "elsewhere"}, Retention: time.Hour}, read)
	during(t, moved, moved.Lead, "two segments elsewhere", func() bool { p := progress(); return p.Place == "elsewhere" && p.Segments == 2 })
	if elsewhere.made() != 6 {
		t.Errorf("%d objects were made elsewhere", elsewhere.made())
	}
	// A sealed node does nothing, and says nothing.
	n1.Vault.Seal()
	fresh := newService(t, n1, log, policy, read)
	if _, err := fresh.step(t.Context()); err == nil {
		t.Error("a sealed node has archived something")
	}
}

// TestSweep: whoever begins to lead removes what an earlier leader has left in its crash, unless it
// may still be written, or is another cluster's.
func TestSweep(t *testing.T) {
	c := enginetest.NewCluster(t, 1)
	n := c.NewNode("n1")
	n.Initialise(enginetest.InitParams(1, 1))
	cl, _ := c.State().Cluster()
	mine := strings.ReplaceAll(record.AuditOrigin(cl), "/", "-") + "-00000000"
	now := time.Now()
	store := &memoryStore{parts: map[string]time.Time{
		mine + ".seg": now.Add(-24 * time.Hour), mine + ".tiles": now, "conclave-another-0-00000000.seg": now.Add(-24 * time.Hour),
	}}
	s := newService(t, n, &nodeLog{AuditLog: c.Audit}, Policy{Store: store}, nil)
	during(t, s, s.Lead, "sweep", func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		return len(store.parts) < 3
	})
	if _, ok := store.parts[mine+".seg"]; ok || len(store.parts) != 2 {
		t.Errorf("left are %v", store.parts)
	}
}

type named struct {
	*memoryStore
	name string
}

func (s named) String() string { return s.name }
