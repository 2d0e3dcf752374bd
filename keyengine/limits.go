package keyengine

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// limits bounds the refusals that one principal may cause on this node. Each refusal costs
// a record on the disk of every node and costs the principal nothing. A principal beyond
// the limit is throttled without a record for each request; one record a minute gives the
// number.
type limits struct {
	clock Clock
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	left map[string]*rate.Limiter // by ARN of the principal
	over map[string]*throttled    // throttled and not recorded yet; by ARN, at most maxLimited
}

// throttled counts the requests of one principal that were throttled.
type throttled struct {
	principal    policy.Principal
	credential   string // of the latest request
	count        int
	since, until time.Time
}

const (
	// maxLimited is the maximum number of principals that are tracked.
	maxLimited = 4096
	// Throttled requests are recorded every throttledEvery, in at most maxThrottledRecords
	// records.
	throttledEvery      = time.Minute
	maxThrottledRecords = 32
)

func newLimits(cfg Config) *limits {
	l := &limits{clock: cfg.Clock, rate: rate.Limit(cfg.RefusalRate), burst: cfg.RefusalBurst, left: make(map[string]*rate.Limiter), over: make(map[string]*throttled)}
	if l.rate <= 0 {
		l.rate = 10
	}
	if l.burst <= 0 {
		l.burst = 500
	}
	return l
}

// allow refuses callers that have been refused too often.
func (l *limits) allow(c *iam.Caller) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if r := l.left[c.Identity.Principal().ARN]; r == nil || r.TokensAt(now) >= 1 {
		return nil
	}
	l.note(throttled{principal: c.Identity.Principal(), credential: c.Identity.Credential(), count: 1, since: now, until: now})
	return record.ErrThrottled
}

// note adds throttled requests to the count.
func (l *limits) note(t throttled) {
	o := l.over[t.principal.ARN]
	if o == nil {
		if len(l.over) >= maxLimited {
			return
		}
		l.over[t.principal.ARN] = &t
		return
	}
	o.credential, o.count = t.credential, o.count+t.count
	if t.since.Before(o.since) {
		o.since = t.since
	}
	if t.until.After(o.until) {
		o.until = t.until
	}
}

// take removes and returns the counts to be recorded now.
func (l *limits) take() []*throttled {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*throttled
	for who, t := range l.over {
		if len(list) == maxThrottledRecords {
			break
		}
		delete(l.over, who)
		list = append(list, t)
	}
	return list
}

// runThrottled records throttled requests periodically, until ctx ends.
func (e *Engine) runThrottled(ctx context.Context) {
	tick := time.NewTicker(throttledEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.recordThrottled(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) recordThrottled(ctx context.Context) {
	for _, t := range e.limits.take() {
		_, err := e.events.Record(ctx, record.Event{
			Name: "ThrottleRequests", Kind: record.KindConclave, Identity: record.IdentityOf(t.principal, t.credential),
			Err: record.ErrThrottled, ReadOnly: true,
			Details: []*auditpb.Field{
				auditfield.Number("requests", t.count),
				auditfield.Text("since", t.since.UTC().Format(time.RFC3339)),
				auditfield.Text("until", t.until.UTC().Format(time.RFC3339)),
			},
		})
		if err != nil { // the node is sealed or has no majority: try again next time
			e.limits.mu.Lock()
			e.limits.note(*t)
			e.limits.mu.Unlock()
		}
	}
}

// refused counts a recorded refusal against the caller. Successful dry runs, internal
// errors and ErrUnavailable do not count.
func (l *limits) refused(c *iam.Caller, err error) {
	if errors.Is(err, kmsapi.ErrDryRun) || errors.Is(err, kmsapi.ErrInternal) || errors.Is(err, kmsapi.ErrUnavailable) {
		return
	}
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	who := c.Identity.Principal().ARN
	r := l.left[who]
	if r == nil {
		l.makeRoom()
		r = rate.NewLimiter(l.rate, l.burst)
		l.left[who] = r
	}
	r.ReserveN(now, 1) // requests in flight may make it negative
}

// makeRoom removes principals that have used nothing of their burst, and then arbitrary
// ones if that is not enough.
func (l *limits) makeRoom() {
	if len(l.left) < maxLimited {
		return
	}
	now := l.clock.Now()
	for who, r := range l.left {
		if r.TokensAt(now) >= float64(l.burst) {
			delete(l.left, who)
		}
	}
	for who := range l.left {
		if len(l.left) < maxLimited {
			return
		}
		delete(l.left, who)
	}
}
