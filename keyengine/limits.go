package keyengine

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// limits bounds the refusals that one principal may cause on this node. Each refusal costs
// a record on the disk of every node and costs the principal nothing. A principal beyond
// the limit is throttled without a record for each request; one record a minute gives the
// number. Where the request says who sends it and not a signature, the source address is
// limited, also for failures that are not recorded, as they cost work.
type limits struct {
	clock Clock
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	left map[string]*rate.Limiter // by key; see keyOf
	over map[string]*throttled    // throttled and not recorded yet; by key, at most maxLimited
}

// throttled counts the requests of one principal, source or identity provider that were
// throttled.
type throttled struct {
	key          string
	principal    policy.Principal // or zero, for a source
	source       string           // of the latest request
	credential   string           // of the latest request
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

// keyOf returns what refusals of a caller are counted by: its ARN, or, for a caller whose
// request carries no signature, the source address, so that strangers cannot throttle each
// other. The addresses of an IPv6 network of 64 bits, which one host may have, are one source.
func keyOf(c *iam.Caller) string {
	if arn := c.Identity.Principal().ARN; arn != "" {
		return arn
	}
	a, err := netip.ParseAddr(c.SourceIP)
	if err != nil {
		return "source"
	}
	if a = a.Unmap(); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			a = p.Addr()
		}
	}
	return "source " + a.String()
}

// allow refuses callers that have been refused too often.
func (l *limits) allow(c *iam.Caller) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, key := l.clock.Now(), keyOf(c)
	if r := l.left[key]; r == nil || r.TokensAt(now) >= 1 {
		return nil
	}
	l.note(throttled{key: key, principal: c.Identity.Principal(), source: c.SourceIP, credential: c.Identity.Credential(), count: 1, since: now, until: now})
	return record.ErrThrottled
}

// mayRecord reports whether a refusal of a web identity may be recorded. Whoever its identity
// provider vouches for can cause refusals, from any address, and for a public provider that
// is anybody. So they have one limit for each provider, beyond which they are answered
// without a record. Those who are not refused do not notice.
func (l *limits) mayRecord(who policy.Principal, c *iam.Caller) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if l.limiter(who.ARN).AllowN(now, 1) {
		return true
	}
	l.note(throttled{key: who.ARN, principal: who, source: c.SourceIP, count: 1, since: now, until: now})
	return false
}

// limiter returns what a key has left.
func (l *limits) limiter(key string) *rate.Limiter {
	r := l.left[key]
	if r == nil {
		l.makeRoom()
		r = rate.NewLimiter(l.rate, l.burst)
		l.left[key] = r
	}
	return r
}

// note adds throttled requests to the count.
func (l *limits) note(t throttled) {
	o := l.over[t.key]
	if o == nil {
		if len(l.over) >= maxLimited {
			return
		}
		l.over[t.key] = &t
		return
	}
	o.credential, o.source, o.count = t.credential, t.source, o.count+t.count
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

// identity returns the identity for the record.
func (t *throttled) identity() *auditpb.Identity {
	if t.principal.Kind == policy.KindNone {
		return &auditpb.Identity{Type: "Unknown"}
	}
	return record.IdentityOf(t.principal, t.credential)
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
			Name: "ThrottleRequests", Kind: record.KindConclave, Identity: t.identity(), SourceIP: t.source,
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

// refused counts a refusal against the caller. Successful dry runs, internal errors and
// failures that are not the caller's do not count.
func (l *limits) refused(c *iam.Caller, err error) {
	if _, ok := errors.AsType[*kmsapi.Error](err); !ok {
		return
	}
	for _, other := range []*kmsapi.Error{kmsapi.ErrDryRun, kmsapi.ErrInternal, kmsapi.ErrUnavailable, iamapi.ErrIDPCommunication} {
		if errors.Is(err, other) {
			return
		}
	}
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limiter(keyOf(c)).ReserveN(now, 1) // requests in flight may make it negative
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
