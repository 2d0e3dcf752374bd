package raftlog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	probeFile = "probe"
	// probeGood is how long the answer of a disk counts: whoever may ask may not make
	// it write without end.
	probeGood = 100 * time.Millisecond
)

// diskProbe writes one block to a file of its own, over and over, when somebody wants
// to know whether the disk answers. The block is there from the start, so it needs no
// room.
type diskProbe struct {
	file  *os.File
	block [journalBlock]byte

	mu       sync.Mutex
	underway *probing // nil for none
	answered time.Time
	closed   bool
}

// probing is a probe that may not have returned yet.
type probing struct {
	done chan struct{}
	err  error // once done is closed
}

func openProbe(dir string) (*diskProbe, error) {
	path := filepath.Join(dir, probeFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &diskProbe{file: f}
	if err := p.write(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (p *diskProbe) write() error {
	if _, err := p.file.WriteAt(p.block[:], 0); err != nil {
		return err
	}
	return syncData(p.file)
}

// writeProbe writes to the disk. While that hangs this node knows that it is behind. What
// fails only is none of the log's writes, and stops nothing.
func (s *Store) writeProbe() error {
	if err := s.Err(); err != nil {
		return err
	}
	defer s.meter.end(s.meter.begin(writeAwaited))
	if s.hooks.Before != nil {
		if err := s.hooks.Before("probe"); err != nil {
			return err
		}
	}
	return s.probe.write()
}

// Probe returns nil when the disk has just answered. There is one write at a time, for
// all who ask.
func (s *Store) Probe(ctx context.Context) error {
	w, err := s.probing()
	if w == nil {
		return err
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// probing is the probe under way, or one that begins now; nil when none is needed, or
// with the reason why there is none.
func (s *Store) probing() (*probing, error) {
	p := s.probe
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case time.Since(p.answered) < probeGood:
		return nil, nil
	case p.closed:
		return nil, s.Err()
	case p.underway != nil:
		return p.underway, nil
	}
	w := &probing{done: make(chan struct{})}
	p.underway = w
	s.stopped.Go(func() {
		w.err = s.writeProbe()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.underway = nil; w.err == nil {
			p.answered = time.Now()
		}
		close(w.done)
	})
	return w, nil
}

// close lets no more probes begin.
func (p *diskProbe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
