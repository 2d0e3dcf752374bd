package alert

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/auditfile"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/policy"
)

const (
	// batch is how many records are looked at together at most, and pace how long to wait for
	// more of them, because the file is written after each batch.
	batch = 512
	pace  = time.Second
	// stale is the age from which on nobody needs to know of an alert: a node that begins to
	// follow the log reads all of its history.
	stale = time.Hour
	// maxPending bounds the alerts that wait for a leader to record them.
	maxPending = 1000
	// In the long run, one alert a minute is recorded, and burst of them at once.
	burst = 60
	// maxFile bounds the file. One that is full is begun again, and learns anew.
	maxFile = 256 << 20
)

// Config configures a Service.
type Config struct {
	// Rules are the names of the rules that are on.
	Rules []string
	// Path is where the node remembers what principals have done.
	Path   string
	Feed   *auditfeed.Feed
	State  func() *fsm.State
	Events *record.Recorder
	Clock  record.Clock
	// Recorded counts the alerts that this node records, by rule.
	Recorded *prometheus.CounterVec
	Log      *slog.Logger
}

// Service watches the log on one node.
type Service struct {
	cfg      Config
	detector *detector
	limit    *rate.Limiter

	file *auditfile.File
	// What the newest records have, for the goroutine that follows the log: alerts that are
	// due, and those that the log has already.
	found []Alert
	seen  []subject

	mu      sync.Mutex
	pending map[subject]Alert
	// announced are the alerts that this node has recorded as the leader, and that it has not
	// read in the log yet.
	announced map[subject]bool
}

// New returns a Service.
func New(cfg Config) *Service {
	s := &Service{
		cfg: cfg, limit: rate.NewLimiter(rate.Every(time.Minute), burst),
		pending: make(map[subject]Alert), announced: make(map[subject]bool),
	}
	s.detector = newDetector(cfg.Rules, s.created)
	s.file = auditfile.New(auditfile.Config{
		Path: cfg.Path, Purpose: "alerts", MaxSize: maxFile, Feed: cfg.Feed, AtOnce: batch, Collect: pace, Each: s.look, Done: s.looked, Log: cfg.Log,
	})
	for _, rule := range cfg.Rules {
		cfg.Recorded.WithLabelValues(rule)
	}
	return s
}

// created returns when a key was created, in cluster time.
func (s *Service) created(arn string) (at int64, ok bool) {
	a, err := policy.ParseARN(arn)
	if err != nil {
		return 0, false
	}
	account, ok := fsm.ParseAccount(a.Account)
	name, isKey := strings.CutPrefix(a.Resource, "key/")
	id, _, valid := request.ParseKeyID(name)
	if !ok || !isKey || !valid {
		return 0, false
	}
	k, _ := s.cfg.State().Key(fsm.KeyID{Account: account, Region: a.Region, ID: id})
	return k.GetCreated(), k != nil
}

// Run follows the log while the node is unsealed, until ctx ends.
func (s *Service) Run(ctx context.Context) { s.file.Run(ctx) }

// Has reports whether the rules were applied to the records below an index. It is false on a
// sealed node.
func (s *Service) Has(index uint64) bool { return s.file.Has(index) }

// look applies the rules to records.
func (s *Service) look(tx *localfile.Tx, items []auditfeed.Item) error {
	s.found, s.seen = nil, nil // what a transaction that failed has left
	m := remembered{tx}
	for _, it := range items {
		if a, ok := parse(it); ok {
			s.seen = append(s.seen, a.subject())
			s.found = slices.DeleteFunc(s.found, func(f Alert) bool { return f.subject() == a.subject() })
			rule, _ := ruleOf(a.Rule)
			if err := m.setQuiet(a.subject(), it.Entry.Time+int64(rule.Quiet)); err != nil {
				return err
			}
			continue
		}
		more, err := s.detector.observe(it, m)
		if err != nil {
			return err
		}
		for _, a := range more {
			if until, err := m.quietUntil(a.subject()); err != nil {
				return err
			} else if a.Time >= until {
				s.found = append(s.found, a)
			}
		}
	}
	return nil
}

// looked makes what look has found wait for the leader, once it is remembered.
func (s *Service) looked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.seen {
		delete(s.pending, sub)
		delete(s.announced, sub)
	}
	for _, a := range s.found {
		s.raise(a)
	}
}

// raise makes an alert wait for the leader to record it. mu is held.
func (s *Service) raise(a Alert) {
	sub := a.subject()
	if _, waits := s.pending[sub]; waits || s.announced[sub] || s.old(a) || len(s.pending) >= maxPending {
		return
	}
	s.pending[sub] = a
}

func (s *Service) old(a Alert) bool {
	return s.cfg.State().Time()-a.Time > int64(stale)
}

// Lead records alerts while this node leads, until ctx ends.
func (s *Service) Lead(ctx context.Context) {
	s.mu.Lock()
	clear(s.announced) // of an earlier time as the leader
	s.mu.Unlock()
	upto := s.cfg.Feed.Size() // which has all that earlier leaders have recorded
	tick := time.NewTicker(pace)
	defer tick.Stop()
	var scanned time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.file.Has(upto) {
			continue
		}
		if now := s.cfg.Clock.Now(); scanned.IsZero() || now.Sub(scanned) >= scanEvery || now.Before(scanned) {
			if err := s.scan(); err != nil && !errors.Is(err, vault.ErrSealed) {
				s.cfg.Log.Warn("looking for keys that expire", "err", err)
			}
			scanned = now
		}
		s.record(ctx)
	}
}

// scan raises the alerts about keys whose time comes without a request.
func (s *Service) scan() error {
	state := s.cfg.State()
	found := scan(state.Keys(fsm.KeyID{}), state.Time())
	return s.file.View(func(tx *localfile.Tx) error {
		m := remembered{tx}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, a := range found {
			if !s.detector.on[a.Rule] {
				continue
			}
			until, err := m.quietUntil(a.subject())
			if err != nil {
				return err
			}
			if a.Time >= until {
				s.raise(a)
			}
		}
		return nil
	})
}

// record records the alerts that wait, the oldest first.
func (s *Service) record(ctx context.Context) {
	s.mu.Lock()
	list := slices.SortedFunc(maps.Values(s.pending), func(a, b Alert) int {
		return cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Subject, b.Subject))
	})
	s.mu.Unlock()
	for _, a := range list {
		if !s.old(a) {
			if !s.limit.Allow() {
				return
			}
			if _, err := s.cfg.Events.Record(ctx, s.event(a)); err != nil {
				if ctx.Err() == nil {
					s.cfg.Log.Warn("recording an alert", "rule", a.Rule, "err", err)
				}
				return // again with the next tick, or by the next leader
			}
			s.cfg.Recorded.WithLabelValues(a.Rule).Inc()
			s.cfg.Log.Warn("ALERT: "+a.Message, "rule", a.Rule, "subject", a.Subject)
			s.mu.Lock()
			s.announced[a.subject()] = true
			s.mu.Unlock()
		}
		s.mu.Lock()
		delete(s.pending, a.subject())
		s.mu.Unlock()
	}
}

// event returns the record of an alert.
func (s *Service) event(a Alert) record.Event {
	details := []*auditpb.Field{auditfield.Text("rule", a.Rule), auditfield.Text("subject", a.Subject), auditfield.Text("message", a.Message)}
	if a.HasCause {
		details = append(details, auditfield.Number("causeIndex", int(a.Cause)))
	}
	ev := record.ServiceEvent(EventName, s.cfg.Clock.Now(), details...)
	ev.Account = a.Account
	if a.Key != "" {
		ev.Resources = []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: a.Account, Arn: a.Key}}
	}
	return ev
}

// parse returns the alert of a record; false if it is none.
func parse(it auditfeed.Item) (a Alert, ok bool) {
	rec := it.Record
	if rec == nil || rec.EventName != EventName || rec.EventType != record.KindService {
		return Alert{}, false
	}
	for _, f := range rec.ServiceEventDetails {
		switch f.GetName() {
		case "rule":
			a.Rule = f.GetText()
		case "subject":
			a.Subject = f.GetText()
		case "message":
			a.Message = f.GetText()
		case "causeIndex":
			a.Cause, a.HasCause = uint64(f.GetNumber()), true
		}
	}
	a.Account, a.Key, a.Time = accountOf(rec), keyOf(rec), it.Entry.Time
	return a, a.Rule != ""
}
