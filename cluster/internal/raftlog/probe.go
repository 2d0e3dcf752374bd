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
	// probeGood is how long a successful probe counts, so that callers cannot cause an
	// unlimited number of writes.
	probeGood = 100 * time.Millisecond
)

// diskProbe writes one block of a file over and over, when a caller wants to know whether
// the disk answers. The block is allocated at the start, so probes need no free space.
type diskProbe struct {
	file  *os.File
	block [journalBlock]byte

	mu       sync.Mutex
	underway *probing // nil if there is none
	answered time.Time
	closed   bool
}

// probing is a probe that may be in progress.
type probing struct {
	done chan struct{}
	err  error // valid once done is closed
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

// writeProbe writes to the disk. While the write hangs, this node counts as behind. A probe
// that fails does not stop the store, because it is not a write to the log.
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

// Probe returns nil if the disk has just answered. Concurrent callers share one write.
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

// probing returns the probe in progress, or starts one. It returns nil if none is needed,
// and an error if none can be made.
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

// close prevents further probes.
func (p *diskProbe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
