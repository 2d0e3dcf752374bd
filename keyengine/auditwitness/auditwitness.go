// Package auditwitness has the checkpoints of the audit log cosigned by witnesses (C2SP
// tlog-witness v1.0.0), so that who verifies one knows that everybody is shown the same log.
//
// The node that leads asks: after it has signed a checkpoint, but not more often than each second,
// nor before the checkpoint that it asked for last has a quorum or has failed to get one. What at
// least a quorum of the witnesses has cosigned is published by all nodes: the others get it from
// the leader, and verify it. Nothing of it is stored, and nothing has to be: a witness says which
// tree it knows, so whichever node leads next goes on from there.
//
// No checkpoint waits for a witness, and no request does but that for a receipt, for a few seconds
// and only while Soon says that it is worth it. A witness that is down, slow or hostile costs its
// own cosignature: each is asked with its own deadline and reading limit, independently of the
// others, and after a failure it is asked less often.
package auditwitness

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

const (
	// look is how often a new checkpoint is looked for.
	look = 100 * time.Millisecond
	// every is how often witnesses are asked for cosignatures of new checkpoints at most, and how
	// often the other nodes ask the leader for the newest cosigned one while they have a newer one.
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
	current *turn       // what witnesses are asked for; nil for nothing
	busy    []bool      // of each witness: it is being asked, for the current checkpoint or one before
	retry   []retry     // of each witness
	answers chan answer // has room for one of each witness, so who asks never waits

	mu     sync.Mutex
	newest cosigned
	served uint64    // size of the largest checkpoint that was published
	behind time.Time // since when there has been a newer checkpoint, and newest has not changed; zero if there is none
	status []status  // of each witness
}

// turn is a checkpoint that witnesses are asked to cosign. One that is slow may still cosign it
// after another turn has begun.
type turn struct {
	head  checkpoint.Checkpoint
	msg   []byte // the log's checkpoint, without cosignatures
	began time.Time
	asked int // how many witnesses are being asked for this one
	// sigs are the cosignatures of each witness, and count is of how many there are some.
	sigs  [][]note.Signature
	count int
}

// answer is the outcome of asking a witness.
type answer struct {
	turn *turn
	i    int // of the witness
	sigs []note.Signature
	err  error
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
	since    time.Time // since when there has been a checkpoint that it has not cosigned; zero for none
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
		for _, client := range c.clients {
			s.clients = append(s.clients, &client) // a copy: what a witness is known to know is of one Service
			s.status = append(s.status, status{failures: make(map[string]uint64)})
		}
		s.busy, s.retry, s.answers = make([]bool, len(s.clients)), make([]retry, len(s.clients)), make(chan answer, len(s.clients))
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

// Soon reports whether a checkpoint of this node is likely to be cosigned within a few seconds:
// there are witnesses, and they have cosigned lately, or were not behind.
func (s *Service) Soon() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Enabled() && (s.behind.IsZero() || time.Since(s.behind) < impatience)
}

// Published returns the checkpoint that is shown to others: the newest cosigned one, unless the
// witnesses have not cosigned a newer one for too long. Without witnesses it is the newest one.
// It never has fewer records than before: once a checkpoint without cosignatures was shown, a
// cosigned one is shown again only if it has as many records.
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

// Run notes until ctx ends since when there has been a newer checkpoint than the newest cosigned
// one. On a node that does not lead, it gets that from the leader.
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
			s.cfg.Logger.Debug("getting the cosigned audit checkpoint from the leader failed", "err", outbound.Clipped(err))
		}
	}
}

// follow gets the newest cosigned checkpoint from the leader. It is kept if a quorum has cosigned
// it, and if this node's own checkpoint is a continuation of it.
func (s *Service) follow(ctx context.Context, own checkpoint.Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	msg, err := s.cfg.AskLeader(ctx)
	if err != nil || len(msg) == 0 || bytes.Equal(msg, s.Newest()) {
		return err
	}
	c, err := checkpoint.Decode(msg)
	switch {
	case err != nil:
		return err
	case c.Size > own.Size:
		return nil // this node will soon be as far
	case c.Size == own.Size && c.Root != own.Root:
		return errors.New("the leader's checkpoint is of another log")
	}
	if _, err := checkpoint.Parse(msg, s.cfg.LogKey()); err != nil {
		return err
	}
	names, err := s.quorum.Check(msg)
	if err != nil {
		return err
	}
	if c.Size < own.Size && c.Size > 0 {
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
// Then nobody is being asked any more.
func (s *Service) Lead(ctx context.Context) {
	if !s.Enabled() {
		return
	}
	defer s.rest(ctx)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-s.answers:
			s.take(ctx, a)
		case <-tick.C:
			if s.current == nil || time.Since(s.current.began) >= every {
				s.begin()
			}
			s.ask(ctx)
		}
	}
}

// rest forgets what is under way when the node leads no longer, once ctx has ended that.
func (s *Service) rest(ctx context.Context) {
	s.await(ctx)
	s.current = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.status {
		s.status[i].since, s.status[i].failing = time.Time{}, false
	}
}

// await takes the answers of all witnesses that are being asked.
func (s *Service) await(ctx context.Context) {
	for slices.Contains(s.busy, true) {
		s.take(ctx, <-s.answers)
	}
}

// begin turns to the newest checkpoint, unless the current one may still be cosigned by a quorum:
// if that needs a witness that is slower than checkpoints are signed, then turning to each one
// would mean that the witnesses cosign different ones and none has a quorum. It reports whether
// it has begun a turn.
func (s *Service) begin() bool {
	if t := s.current; t != nil && t.count < s.quorum.Need && t.asked > 0 {
		return false
	}
	msg := s.cfg.Log.Checkpoint()
	if msg == nil || s.current != nil && bytes.Equal(msg, s.current.msg) {
		return false
	}
	head, err := checkpoint.Decode(msg)
	if err != nil {
		return false
	}
	s.current = &turn{head: head, msg: msg, began: time.Now(), sigs: make([][]note.Signature, len(s.clients))}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.status {
		if s.status[i].since.IsZero() {
			s.status[i].since = s.current.began
		}
	}
	return true
}

// ask begins to ask each witness that is due for a cosignature of the current checkpoint. One
// that is busy is not: it holds up nobody but itself.
func (s *Service) ask(ctx context.Context) {
	t := s.current
	if t == nil {
		return
	}
	for i, c := range s.clients {
		if s.busy[i] || t.sigs[i] != nil || time.Now().Before(s.retry[i].at) {
			continue
		}
		s.busy[i] = true
		t.asked++
		go func() {
			sigs, err := c.ask(ctx, t.msg, t.head, s.cfg.Log) // it has its own deadline
			s.answers <- answer{t, i, sigs, err}
		}()
	}
}

// take takes an answer.
func (s *Service) take(ctx context.Context, a answer) {
	t := a.turn
	s.busy[a.i] = false
	t.asked--
	if ctx.Err() != nil && a.err != nil {
		return // it was not the witness's fault
	}
	s.note(a)
	if a.err != nil {
		return
	}
	t.sigs[a.i] = a.sigs
	t.count++
	if t.count < s.quorum.Need {
		return
	}
	msg := t.msg
	for _, sigs := range t.sigs {
		msg = checkpoint.Append(msg, sigs...)
	}
	s.keep(cosigned{t.head.Size, t.count, msg})
}

// note notes an answer in the status of its witness.
func (s *Service) note(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, size := a.i, a.turn.head.Size
	st, log := &s.status[i], s.cfg.Logger.With("witness", s.clients[i].keys.Name())
	if a.err == nil {
		if st.failing {
			log.Info("the witness cosigns again", "size", size)
		}
		s.retry[i] = retry{}
		st.size, st.since, st.failing = size, time.Time{}, false
		if a.turn != s.current {
			st.since = s.current.began
		}
		return
	}
	reason := invalid
	if f := new(failure); errors.As(a.err, &f) {
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
		log.Log(context.Background(), level, "the witness did not cosign an audit checkpoint and will be asked again", "size", size, "reason", reason, "err", outbound.Clipped(a.err))
	}
	st.failing = true
}
