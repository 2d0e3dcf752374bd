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

	mu       sync.Mutex
	refusals buckets               // by key; see keyOf
	costly   buckets               // by operation and account
	over     map[string]*throttled // throttled and not recorded yet; by key, at most maxLimited
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
	// costlyRate is how many requests a second an account may make of an operation that is
	// costly, on one node, and costlyBurst how many at once.
	costlyRate, costlyBurst = 5, 50
	// Throttled requests are recorded every throttledEvery, in at most maxThrottledRecords
	// records.
	throttledEvery      = time.Minute
	maxThrottledRecords = 32
)

func newLimits(cfg Config) *limits {
	per, burst := rate.Limit(cfg.RefusalRate), cfg.RefusalBurst
	if per <= 0 {
		per = 10
	}
	if burst <= 0 {
		burst = max(1, int(50*per))
	}
	return &limits{clock: cfg.Clock, refusals: newBuckets(per, burst), costly: newBuckets(costlyRate, costlyBurst), over: make(map[string]*throttled)}
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
	if r := l.refusals.left[key]; r == nil || r.TokensAt(now) >= 1 {
		return nil
	}
	l.note(throttledNow(key, c, now))
	return record.ErrThrottled
}

// allowCostly refuses callers of a costly operation whose account has called it too often.
func (l *limits) allowCostly(op *Operation, c *iam.Caller) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if l.costly.of(string(op.Service)+":"+op.Name+" "+c.Identity.Account().String(), now).AllowN(now, 1) {
		return nil
	}
	l.note(throttledNow(keyOf(c), c, now))
	return kmsapi.Errorf(kmsapi.ErrThrottling, "Rate exceeded")
}

// throttledNow is one request that was throttled.
func throttledNow(key string, c *iam.Caller, now time.Time) throttled {
	return throttled{key: key, principal: c.Identity.Principal(), source: c.SourceIP, credential: c.Identity.Credential(), count: 1, since: now, until: now}
}

// mayRecord reports whether a refusal of a web identity may be recorded. Whoever its identity
// provider vouches for can cause refusals, from any address, and for a public provider that
// is anybody. So they have one limit for each provider, beyond which they are answered
// without a record. Those who are not refused do not notice.
func (l *limits) mayRecord(who policy.Principal, c *iam.Caller) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if l.refusals.of(who.ARN, now).AllowN(now, 1) {
		return true
	}
	l.note(throttled{key: who.ARN, principal: who, source: c.SourceIP, count: 1, since: now, until: now})
	return false
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
	l.refusals.of(keyOf(c), now).ReserveN(now, 1) // requests in flight may make it negative
}

// buckets is what each of at most maxLimited keys has left of a rate.
type buckets struct {
	rate  rate.Limit
	burst int
	left  map[string]*rate.Limiter
}

func newBuckets(per rate.Limit, burst int) buckets {
	return buckets{per, burst, make(map[string]*rate.Limiter)}
}

// of returns what a key has left.
func (b *buckets) of(key string, now time.Time) *rate.Limiter {
	r := b.left[key]
	if r == nil {
		b.makeRoom(now)
		r = rate.NewLimiter(b.rate, b.burst)
		b.left[key] = r
	}
	return r
}

// makeRoom removes keys that have used nothing of their burst, and then arbitrary ones if
// that is not enough.
func (b *buckets) makeRoom(now time.Time) {
	if len(b.left) < maxLimited {
		return
	}
	for key, r := range b.left {
		if r.TokensAt(now) >= float64(b.burst) {
			delete(b.left, key)
		}
	}
	for key := range b.left {
		if len(b.left) < maxLimited {
			return
		}
		delete(b.left, key)
	}
}
