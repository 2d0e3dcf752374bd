package session

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const window = 8

func batch(incarnation, seq uint64) *wire.Batch {
	return &wire.Batch{Node: []byte("n1"), Incarnation: incarnation, Seq: seq}
}

func registered(t *testing.T, s Sessions, incarnation uint64) {
	t.Helper()
	if !s.Register(&fsmpb.RegisterNode{Node: "n1", Incarnation: incarnation}) {
		t.Fatalf("incarnation %d is refused", incarnation)
	}
}

func wantStanding(t *testing.T, s Sessions, b *wire.Batch, want Standing) {
	t.Helper()
	if got, _ := s.Find(b); got != want {
		t.Errorf("batch %d of incarnation %d has standing %d, want %d", b.Seq, b.Incarnation, got, want)
	}
}

// A batch is applied once, however often and in whatever order batches come.
func TestBatchesAreAppliedOnce(t *testing.T) {
	s := None()
	wantStanding(t, s, batch(5, 1), Fenced) // of a stranger
	registered(t, s, 5)
	for i, seq := range []uint64{2, 1, 3} {
		wantStanding(t, s, batch(5, seq), New)
		s.Applied(batch(5, seq), Answer{Index: uint64(10 + i), Verdicts: []byte{byte(seq)}}, window)
		standing, was := s.Find(batch(5, seq))
		if standing != Repeated || was.Index != uint64(10+i) || !slices.Equal(was.Verdicts, []byte{byte(seq)}) {
			t.Errorf("batch %d again: %d, %+v", seq, standing, was)
		}
	}
	settling := batch(5, 4)
	settling.SettledBelow = 3
	s.Applied(settling, Answer{}, window)
	for seq, want := range []Standing{Fenced, Fenced, Fenced, Repeated, Repeated, New} {
		wantStanding(t, s, batch(5, uint64(seq)), want)
	}
	for _, incarnation := range []uint64{4, 6} {
		wantStanding(t, s, batch(incarnation, 9), Fenced)
	}
}

// Batches of an earlier incarnation are never applied again, and registering one that is
// not newer changes nothing.
func TestIncarnations(t *testing.T) {
	s := None()
	registered(t, s, 5)
	s.Applied(batch(5, 1), Answer{}, window)
	for _, old := range []uint64{0, 4, 5} {
		if s.Register(&fsmpb.RegisterNode{Node: "n1", Incarnation: old, Watermark: 99}) {
			t.Errorf("incarnation %d is accepted after 5", old)
		}
	}
	wantStanding(t, s, batch(5, 1), Repeated)
	if mark, known := s.Watermark("n1"); mark != 0 || !known {
		t.Errorf("watermark %d, %t", mark, known)
	}
	registered(t, s, 6)
	wantStanding(t, s, batch(5, 1), Fenced)
	wantStanding(t, s, batch(5, 2), Fenced)
	wantStanding(t, s, batch(6, 1), New)
}

// The watermark of a node never goes back, whatever carries it.
func TestWatermark(t *testing.T) {
	s := None()
	if _, known := s.Watermark("n1"); known {
		t.Error("a stranger is known")
	}
	for _, tt := range []struct {
		incarnation, watermark, want uint64
	}{{1, 10, 10}, {2, 7, 10}, {3, 12, 12}} {
		if !s.Register(&fsmpb.RegisterNode{Node: "n1", Incarnation: tt.incarnation, Watermark: tt.watermark}) {
			t.Fatal("refused")
		}
		if mark, _ := s.Watermark("n1"); mark != tt.want {
			t.Errorf("registered with %d: watermark %d, want %d", tt.watermark, mark, tt.want)
		}
	}
	for _, tt := range []struct {
		incarnation, watermark, want uint64
	}{{3, 20, 20}, {3, 15, 20}, {2, 30, 20}} {
		b := batch(tt.incarnation, 1)
		b.Watermark = tt.watermark
		s.Find(b)
		if mark, _ := s.Watermark("n1"); mark != tt.want {
			t.Errorf("a batch of incarnation %d with %d: watermark %d, want %d", tt.incarnation, tt.watermark, mark, tt.want)
		}
	}
}

// A node that settles nothing does not fill the memory of the others.
func TestWindow(t *testing.T) {
	s := None()
	registered(t, s, 1)
	for seq := range uint64(3 * window) {
		s.Applied(batch(1, seq), Answer{}, window)
	}
	if n := len(s.Proto()[0].Batches); n != window {
		t.Errorf("%d batches are remembered, want %d", n, window)
	}
	wantStanding(t, s, batch(1, 2*window-1), Fenced)
	wantStanding(t, s, batch(1, 2*window), Repeated)
}

// A snapshot has all of it, in order, and does not change with it.
func TestSnapshot(t *testing.T) {
	s := None()
	for _, node := range []string{"n2", "n1", "n3"} {
		s.Register(&fsmpb.RegisterNode{Node: node, Incarnation: 5, Watermark: 3})
	}
	for _, seq := range []uint64{9, 7, 8} {
		b := batch(5, seq)
		b.SettledBelow = 7
		s.Applied(b, Answer{Index: seq, Verdicts: []byte{1, 2}, First: &seq}, window)
	}
	saved := s.Proto()
	want := []*fsmpb.Session{
		{Node: "n1", Incarnation: 5, Watermark: 3, SettledBelow: 7, Batches: []*fsmpb.AppliedBatch{
			{Seq: 7, Index: 7, Verdicts: []byte{1, 2}, FirstRecord: new(uint64(7))}, {Seq: 8, Index: 8, Verdicts: []byte{1, 2}, FirstRecord: new(uint64(8))},
			{Seq: 9, Index: 9, Verdicts: []byte{1, 2}, FirstRecord: new(uint64(9))},
		}},
		{Node: "n2", Incarnation: 5, Watermark: 3},
		{Node: "n3", Incarnation: 5, Watermark: 3},
	}
	same := func(a, b []*fsmpb.Session) bool {
		return slices.EqualFunc(a, b, func(x, y *fsmpb.Session) bool { return proto.Equal(x, y) })
	}
	read := None()
	for _, p := range saved {
		read.Add(p)
	}
	if !same(read.Proto(), want) {
		t.Errorf("read back: %v", read.Proto())
	}
	registered(t, s, 6)
	s.Applied(batch(6, 1), Answer{}, window)
	if !same(saved, want) {
		t.Errorf("the snapshot is now %v", saved)
	}
}
