package scrub

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// segments is how many full ones the logs of these tests have.
const segments = 2

// logs returns logs with the same entries, two full segments and some more, and their
// directories.
func logs(t *testing.T, count int) (all []*auditlog.Log, dirs []string) {
	t.Helper()
	first := t.TempDir()
	l, err := auditlog.Open(first, auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var f auditlog.Frontier
	var roots []auditlog.Hash
	if err := l.Restore(f, nil); err != nil {
		t.Fatal(err)
	}
	const batch = 4096
	for from := uint64(0); from < segments*auditlog.SegmentSize+batch; from += batch {
		entries, leaves := make([]auditlog.Entry, batch), make([]auditlog.Hash, batch)
		for i := range entries {
			e := auditlog.Entry{Index: from + uint64(i), RaftIndex: from, Time: int64(from), Generation: 1, Body: make([]byte, 40)}
			binary.BigEndian.PutUint64(e.RequestID[:], e.Index)
			entries[i], leaves[i] = e, e.LeafHash()
			f.Append(leaves[i])
			if f.Size()%auditlog.SegmentSize == 0 {
				roots = append(roots, f.SegmentRoot())
			}
		}
		if err := l.Append(entries, leaves); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range count {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(first)); err != nil {
			t.Fatal(err)
		}
		l, err := auditlog.Open(dir, auditlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := l.Restore(f, roots); err != nil {
			t.Fatal(err)
		}
		all, dirs = append(all, l), append(dirs, dir)
	}
	return all, dirs
}

// flip flips a bit in the middle of a segment's file.
func flip(t *testing.T, dir, segment string) {
	t.Helper()
	name := filepath.Join(dir, "segments", segment)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRepairs damages both segments of a log. One other node has the same damage, one cannot
// be reached at first, and a third lies: only what is intact is taken, as soon as it can be had.
func TestRepairs(t *testing.T) {
	all, dirs := logs(t, 3)
	mine, theirs, good := all[0], all[1], all[2]
	flip(t, dirs[0], "00000000.seg")
	flip(t, dirs[0], "00000001.seg")
	flip(t, dirs[1], "00000001.seg")

	unreachable := make(chan struct{})
	read := func(l *auditlog.Log, from, to uint64, fill func([]auditlog.Entry) error) error {
		for from < to {
			entries, err := l.Read(from, int(to-from), 1<<20)
			if err != nil {
				return err
			}
			if err := fill(entries); err != nil {
				return err
			}
			from += uint64(len(entries))
		}
		return nil
	}
	s := New(Config{
		Log: mine, Others: func() []string { return []string{"liar", "damaged", "away"} },
		Fetch: func(_ context.Context, node string, from, to uint64, fill func([]auditlog.Entry) error) error {
			switch node {
			case "liar":
				return read(good, from, to, func(entries []auditlog.Entry) error {
					entries[0].Body = []byte("something else")
					return fill(entries)
				})
			case "damaged":
				return read(theirs, from, to, fill)
			}
			select {
			case <-unreachable:
				return read(good, from, to, fill)
			default:
				return errors.New("nobody answers")
			}
		},
		Scrubbed: prometheus.NewCounter(prometheus.CounterOpts{Name: "scrubbed"}), Repaired: prometheus.NewCounter(prometheus.CounterOpts{Name: "repaired"}),
		Logger: slog.New(slog.DiscardHandler),
	})
	s.pause = func(uint64) time.Duration { return time.Millisecond }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()

	clustertest.Eventually(t, 30*time.Second, "repair of the first segment, and damage to the second", func() bool {
		return testutil.ToFloat64(s.cfg.Repaired) == 1 && s.Damaged() == 1
	})
	if err := mine.Scrub(0); err != nil {
		t.Errorf("the segment that another node has intact: %v", err)
	}
	if err := mine.Scrub(1); !errors.Is(err, auditlog.ErrCorrupt) {
		t.Errorf("the segment that no node in reach has intact: %v", err)
	}
	close(unreachable)
	clustertest.Eventually(t, 30*time.Second, "repair of the second segment", func() bool {
		return testutil.ToFloat64(s.cfg.Repaired) == 2 && s.Damaged() == 0
	})
	for n := range uint64(segments) {
		if err := mine.Scrub(n); err != nil {
			t.Errorf("segment %d: %v", n, err)
		}
	}
}

// TestPause: a pass over a log takes a week, unless that would read more than a segment a
// minute.
func TestPause(t *testing.T) {
	for _, c := range []struct {
		segments uint64
		want     time.Duration
	}{{0, 6 * time.Hour}, {1, 6 * time.Hour}, {168, time.Hour}, {10080, time.Minute}, {1 << 40, time.Minute}} {
		if got := pause(c.segments); got != c.want {
			t.Errorf("%d segments: a pause of %v, want %v", c.segments, got, c.want)
		}
	}
}
