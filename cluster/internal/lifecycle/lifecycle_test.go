package lifecycle

import (
	"errors"
	"testing"

	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// TestNothingBeginsAfterStop: what runs is waited for, and nothing more begins.
func TestNothingBeginsAfterStop(t *testing.T) {
	l := New(func(error) {})
	end, err := l.Begin()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	l.Go(func() { <-l.Context().Done(); close(ended) })
	l.Stop()
	if _, err := l.Begin(); !errors.Is(err, commit.ErrShutdown) {
		t.Errorf("Begin of a node that stops = %v", err)
	}
	if err := l.Start(func() error { t.Error("it was started"); return nil }); !errors.Is(err, commit.ErrShutdown) {
		t.Errorf("Start of a node that stops = %v", err)
	}
	if err := l.Usable(); !errors.Is(err, commit.ErrShutdown) {
		t.Errorf("Usable of a node that stops = %v", err)
	}
	waited := make(chan struct{})
	go func() { l.Wait(); close(waited) }()
	<-ended
	select {
	case <-waited:
		t.Error("a call that began was not waited for")
	default:
	}
	end()
	<-waited
}

func TestDrainedNodeBeginsNoCall(t *testing.T) {
	l := New(func(error) {})
	if err := l.Usable(); err != nil {
		t.Fatal(err)
	}
	l.Drain()
	if err := l.Usable(); !errors.Is(err, commit.ErrShutdown) {
		t.Errorf("Usable = %v", err)
	}
	if l.Context().Err() != nil {
		t.Error("what runs is ended")
	}
}

// TestFencedOnce: the first reason counts, and is told once.
func TestFencedOnce(t *testing.T) {
	var told []error
	l := New(func(err error) { told = append(told, err) })
	first := errors.New("first")
	l.Fence(first)
	l.Fence(errors.New("second"))
	if len(told) != 1 || told[0] != first || l.Fenced() != first {
		t.Errorf("told %v, fenced for %v", told, l.Fenced())
	}
	if err := l.Usable(); !errors.Is(err, ErrFenced) || !errors.Is(err, first) {
		t.Errorf("Usable = %v", err)
	}
	if err := l.Start(func() error { t.Error("it was started"); return nil }); err != first {
		t.Errorf("Start = %v", err)
	}
}
