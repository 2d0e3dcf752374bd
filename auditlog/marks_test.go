package auditlog

import (
	"errors"
	"slices"
	"testing"
)

// TestMarks: a log that is told where entries are reads the same ones, and wrong marks cause
// an error that Forget ends.
func TestMarks(t *testing.T) {
	const n = SegmentSize + 10
	l := mustOpen(t, newLog(t, n), OSFS())
	defer mustClose(t, l)
	mustRestore(t, l, n)
	marks, err := l.Marks(0)
	if err != nil || len(marks) != SegmentSize/markEvery {
		t.Fatalf("%d marks, %v", len(marks), err)
	}
	if _, err := l.Marks(1); !errors.Is(err, ErrMissing) {
		t.Errorf("marks of a segment that is not full: %v", err)
	}
	read := func() error {
		entries, err := l.Read(SegmentSize-100, 1, 1)
		if err == nil && (len(entries) != 1 || entries[0].Index != SegmentSize-100) {
			t.Fatalf("got %d entries, %v", len(entries), entries)
		}
		return err
	}
	l.Forget(0)
	l.Remember(0, slices.Clone(marks))
	if err := read(); err != nil {
		t.Errorf("with its own marks: %v", err)
	}
	l.Forget(0)
	wrong := slices.Clone(marks)
	for i := range wrong {
		wrong[i] += 3
	}
	l.Remember(0, wrong)
	if err := read(); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMalformed) {
		t.Errorf("with wrong marks: %v", err)
	}
	l.Forget(0)
	if err := read(); err != nil {
		t.Errorf("after Forget: %v", err)
	}
	l.Remember(1, marks)
	l.Remember(0, marks[:3])
	if err := read(); err != nil {
		t.Errorf("after marks that cannot be the segment's: %v", err)
	}
}
