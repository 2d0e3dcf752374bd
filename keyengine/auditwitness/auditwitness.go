// Package auditwitness has the checkpoints of the audit log cosigned by witnesses (C2SP
// tlog-witness v1.0.0), so that who verifies one knows that everybody is shown the same log.
//
// The node that leads asks: after each checkpoint that it signs, or a second after it asked last.
// What at least a quorum of the witnesses has cosigned is published by all nodes: the others get
// it from the leader, and verify it. Nothing of it is stored, and nothing has to be: a witness says which
// tree it knows, so whichever node leads next goes on from there.
//
// No request waits for a witness, and no checkpoint does. A witness that is down, slow or hostile
// costs its own cosignature: each is asked with its own deadline and reading limit, and after a
// failure it is asked less often.
package auditwitness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const (
	// look is how often a new checkpoint is looked for.
	look = 100 * time.Millisecond
	// every is how often witnesses are asked for cosignatures of new checkpoints, and how often
	// the other nodes ask the leader for the newest cosigned one.
	every = time.Second
	// patience is how long the newest cosigned checkpoint is published although there is a newer
	// one without cosignatures.
	patience = 30 * time.Second
	// impatience is after how much of that nobody waits for the witnesses any more.
	impatience = 5 * time.Second

	retryMin = time.Second
	retryMax = time.Minute
)

// Config configures a Service.
type Config struct {
	// Configuration says who the witnesses are. If nil, there are none, and the Service does
	// nothing.
	Configuration *Configuration
	Log           Log
	// LogKey returns the Ed25519 key of the log's checkpoints, "" if it is not known yet.
	LogKey func() string
	// Leads reports whether this node leads.
	Leads func() bool
	// AskLeader returns Newest of the node that leads.
	AskLeader func(context.Context) ([]byte, error)
	Logger    *slog.Logger
	Metrics   prometheus.Registerer // nil for none
}

// Service gets cosignatures while its node leads, and knows the newest cosigned checkpoint.
type Service struct {
	cfg     Config
	quorum  checkpoint.Quorum
	clients []*client

	// Of the goroutine of Lead.
	current checkpoint.Checkpoint
	signed  []byte // the log's checkpoint, without cosignatures
	sigs    [][]note.Signature
	retry   []retry // of each witness

	mu     sync.Mutex
	newest cosigned
	served uint64    // size of the largest checkpoint that was published
	behind time.Time // since when there has been a newer checkpoint, and newest has not changed; zero if there is none
	status []status  // of each witness
}

// cosigned is a checkpoint that a quorum of the witnesses has cosigned.
type cosigned struct {
	size  uint64
	count int // of witnesses
	msg   []byte
}

// retry says when a witness is asked again after a failure.
type retry struct {
	wait time.Duration
	at   time.Time
}

// status is what the metrics of a witness show.
type status struct {
	size     uint64    // of the newest tree that it has cosigned for this node
	since    time.Time // when it was first asked for what it has not cosigned yet; zero for nothing
	failures map[string]uint64
	failing  bool
}

// New returns a Service. No witness is called before Lead.
func New(cfg Config) (*Service, error) {
	s := &Service{cfg: cfg}
	if c := cfg.Configuration; c != nil {
		if err := c.check(); err != nil {
			return nil, err
		}
		s.quorum = c.quorum
		for i, keys := range s.quorum.Witnesses {
			client, err := c.Witnesses[i].open(keys)
			if err != nil {
				return nil, err
			}
			s.clients = append(s.clients, client)
			s.status = append(s.status, status{failures: make(map[string]uint64)})
		}
		s.retry = make([]retry, len(s.clients))
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(newCollector(s)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Enabled reports whether there are witnesses.
func (s *Service) Enabled() bool { return len(s.clients) > 0 }

// Newest returns the newest checkpoint that a quorum has cosigned, as far as this node knows; nil
// if there is none.
func (s *Service) Newest() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest.msg
}

// Soon reports whether a checkpoint of this node is likely to be cosigned within a few seconds.
func (s *Service) Soon() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Enabled() && (s.behind.IsZero() || time.Since(s.behind) < impatience)
}

// Published returns the checkpoint that is shown to others: the newest cosigned one, unless the
// witnesses have not cosigned a newer one for too long. Without witnesses it is the newest one.
// It never has fewer records than before.
func (s *Service) Published() []byte {
	own := s.cfg.Log.Checkpoint()
	if !s.Enabled() || own == nil {
		return own
	}
	head, err := checkpoint.Decode(own)
	if err != nil {
		return own // it is as it was written
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	late := head.Size > s.newest.size && !s.behind.IsZero() && time.Since(s.behind) > patience
	if s.newest.msg != nil && !late && s.newest.size >= s.served {
		s.served = s.newest.size
		return s.newest.msg
	}
	s.served = max(s.served, head.Size)
	return own
}

// Run keeps up with the newest cosigned checkpoint until ctx ends, on a node that does not lead.
func (s *Service) Run(ctx context.Context) {
	if !s.Enabled() {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		own := s.cfg.Log.Checkpoint()
		head, err := checkpoint.Decode(own)
		if err != nil {
			continue // there is none yet
		}
		s.mu.Lock()
		switch {
		case s.newest.size >= head.Size:
			s.behind = time.Time{}
		case s.behind.IsZero():
			s.behind = time.Now()
		}
		behind := !s.behind.IsZero()
		s.mu.Unlock()
		if !behind || s.cfg.Leads() {
			continue
		}
		if err := s.follow(ctx, head); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("getting the cosigned audit checkpoint from the leader failed", "err", clipped(err))
		}
	}
}

// follow gets the newest cosigned checkpoint from the leader. It is kept if a quorum has cosigned
// it, and if this node's own checkpoint is a continuation of it.
func (s *Service) follow(ctx context.Context, own checkpoint.Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	msg, err := s.cfg.AskLeader(ctx)
	if err != nil || len(msg) == 0 {
		return err
	}
	c, err := checkpoint.Parse(msg, s.cfg.LogKey())
	if err != nil {
		return err
	}
	names, err := s.quorum.Check(msg)
	if err != nil {
		return err
	}
	switch {
	case c.Size > own.Size:
		return nil // this node will soon be as far
	case c.Size == own.Size && c.Root != own.Root:
		return errors.New("the leader's checkpoint is of another log")
	case c.Size < own.Size && c.Size > 0:
		proof, err := s.cfg.Log.ProveConsistency(c.Size, own.Size)
		if err != nil {
			return err
		}
		if err := auditlog.VerifyConsistency(proof, c.Size, own.Size, c.Root, own.Root); err != nil {
			return err
		}
	}
	s.keep(cosigned{c.Size, len(names), msg})
	return nil
}

// keep makes a cosigned checkpoint the newest one if it is newer, or has more cosignatures.
func (s *Service) keep(c cosigned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest.msg == nil || c.size > s.newest.size {
		s.behind = time.Time{}
	} else if c.size < s.newest.size || c.count < s.newest.count {
		return
	}
	s.newest = c
}

// Lead asks the witnesses for cosignatures of each new checkpoint of this node, until ctx ends.
func (s *Service) Lead(ctx context.Context) {
	if !s.Enabled() {
		return
	}
	defer s.rest()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if time.Since(began) >= every && s.begin() {
			began = time.Now()
		}
		s.round(ctx)
	}
}

// rest forgets what is under way when the node leads no longer.
func (s *Service) rest() {
	s.signed = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.status {
		s.status[i].since, s.status[i].failing = time.Time{}, false
	}
}

// begin turns to the newest checkpoint. It reports whether that is another one.
func (s *Service) begin() bool {
	msg := s.cfg.Log.Checkpoint()
	if msg == nil || bytes.Equal(msg, s.signed) {
		return false
	}
	head, err := checkpoint.Decode(msg)
	if err != nil {
		return false
	}
	s.current, s.signed, s.sigs = head, msg, make([][]note.Signature, len(s.clients))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.status {
		if s.status[i].since.IsZero() {
			s.status[i].since = time.Now()
		}
	}
	return true
}

// round asks each witness that is due for a cosignature of the current checkpoint. It returns
// after askTimeout at the latest.
func (s *Service) round(ctx context.Context) {
	type result struct {
		i    int
		sigs []note.Signature
		err  error
	}
	results := make(chan result, len(s.clients))
	asked := 0
	for i, c := range s.clients {
		if s.signed == nil || s.sigs[i] != nil || time.Now().Before(s.retry[i].at) {
			continue
		}
		asked++
		go func() {
			sigs, err := c.ask(ctx, s.signed, s.current, s.cfg.Log)
			results <- result{i, sigs, err}
		}()
	}
	for range asked { // a witness's own deadline ends the wait for it
		r := <-results
		if ctx.Err() != nil && r.err != nil {
			continue // it was not the witness's fault
		}
		s.note(r.i, r.err)
		if r.err != nil {
			continue
		}
		s.sigs[r.i] = r.sigs
		c := cosigned{size: s.current.Size, msg: s.signed}
		for _, sigs := range s.sigs {
			if sigs != nil {
				c.count++
				c.msg = checkpoint.Append(c.msg, sigs...)
			}
		}
		if c.count >= s.quorum.Need {
			s.keep(c)
		}
	}
}

// note notes the outcome of asking a witness.
func (s *Service) note(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, log := &s.status[i], s.cfg.Logger.With("witness", s.clients[i].keys.Name())
	if err == nil {
		if st.failing {
			log.Info("the witness cosigns again", "size", s.current.Size)
		}
		s.retry[i] = retry{}
		st.size, st.since, st.failing = s.current.Size, time.Time{}, false
		return
	}
	reason := invalid
	if f := new(failure); errors.As(err, &f) {
		reason = f.reason
	}
	st.failures[reason]++
	wait := min(max(2*s.retry[i].wait, retryMin), retryMax)
	s.retry[i] = retry{wait, time.Now().Add(wait)}
	if !st.failing {
		level := slog.LevelWarn
		if reason == conflict {
			level = slog.LevelError // the log may have been rolled back
		}
		log.Log(context.Background(), level, "the witness did not cosign an audit checkpoint and will be asked again", "size", s.current.Size, "reason", reason, "err", clipped(err))
	}
	st.failing = true
}

// clipped bounds what a witness can write into the node's log.
func clipped(err error) string { return fmt.Sprintf("%.300q", err.Error()) }
