package keyengine

import (
	"errors"
	"sync"

	"golang.org/x/time/rate"
)

// limits bounds the refusals that one principal may cause on this node. Each is
// a record in the replicated log, and costs the principal nothing else.
type limits struct {
	clock Clock
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	left map[string]*rate.Limiter // by principal
}

// maxLimited bounds the principals that are watched at a time.
const maxLimited = 4096

var errThrottled = fault(ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")

func newLimits(cfg Config) *limits {
	l := &limits{clock: cfg.Clock, rate: rate.Limit(cfg.RefusalRate), burst: cfg.RefusalBurst, left: make(map[string]*rate.Limiter)}
	if l.rate <= 0 {
		l.rate = 100
	}
	if l.burst <= 0 {
		l.burst = 500
	}
	return l
}

// allow refuses callers who were refused too often.
func (l *limits) allow(c *Caller) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.left[c.Identity.principal.ARN]; r != nil && r.TokensAt(l.clock.Now()) < 1 {
		return errThrottled
	}
	return nil
}

// refused counts a recorded outcome against the caller. A dry run that went well
// is none, nor is a failure of ours.
func (l *limits) refused(c *Caller, err error) {
	if errors.Is(err, ErrDryRun) || errors.Is(err, ErrInternal) || errors.Is(err, ErrUnavailable) {
		return
	}
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	who := c.Identity.principal.ARN
	r := l.left[who]
	if r == nil {
		l.makeRoom()
		r = rate.NewLimiter(l.rate, l.burst)
		l.left[who] = r
	}
	r.ReserveN(now, 1) // may go below zero, by the requests that were under way
}

// makeRoom forgets those who owe nothing, or else anybody.
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
