package keyengine

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// Bounds of the events that wait to be recorded. They hold for each operator by
// itself, and for what was refused apart from what was done, so that nobody can
// push out the records of what others did or his own. What is beyond them is
// summarised: one record for each kind, with how often.
const (
	maxPendingSteps   = 64
	maxPendingRefused = 16
	// maxPendingOperators bounds the operators that are told apart.
	maxPendingOperators = 64
)

// pendingEvents are events of a sealed node, which cannot record. They are kept
// in memory and recorded once it is unsealed.
type pendingEvents struct {
	recording sync.Mutex // held while events are recorded, so that each is once
	mu        sync.Mutex
	events    []event
	wake      chan struct{}
}

func newPendingEvents() *pendingEvents { return &pendingEvents{wake: make(chan struct{}, 1)} }

// actor is whom an event is counted for.
func (ev *event) actor() string { return ev.identity.GetCertificate() }

func (p *pendingEvents) add(ev event) {
	p.mu.Lock()
	p.addLocked(ev)
	p.mu.Unlock()
	p.flush()
}

func (p *pendingEvents) addLocked(ev event) {
	actors := make(map[string]bool)
	for i := range p.events {
		actors[p.events[i].actor()] = true
	}
	limit := maxPendingSteps
	if ev.err != nil {
		limit = maxPendingRefused
	}
	if !actors[ev.actor()] && len(actors) >= maxPendingOperators {
		// More operators than any cluster has: the rest together, by what they did.
		ev.identity, limit = &auditpb.Identity{Type: operatorType}, 0
	}
	code, _ := outcome(ev.err)
	same := 0
	for i := range p.events {
		old := &p.events[i]
		if old.actor() != ev.actor() || (old.err == nil) != (ev.err == nil) {
			continue
		}
		if !old.summary {
			same++
		} else if oldCode, _ := outcome(old.err); old.name == ev.name && oldCode == code {
			old.times++
			old.last = ev.at
			return
		}
	}
	if same >= limit {
		ev.summary, ev.parameters, ev.times, ev.last = true, nil, 1, ev.at
	}
	p.events = append(p.events, ev)
}

// flush has the events recorded soon, if that is possible.
func (p *pendingEvents) flush() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// first is the oldest event.
func (p *pendingEvents) first() (event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == 0 {
		return event{}, false
	}
	ev := p.events[0]
	if ev.summary {
		ev.details = append(ev.details[:len(ev.details):len(ev.details)],
			auditfield.Number("times", ev.times), auditfield.Text("last", ev.last.UTC().Format(time.RFC3339Nano)))
	}
	return ev, true
}

// done forgets the oldest event, as far as it has been recorded: a summary may
// stand for more by now.
func (p *pendingEvents) done(recorded event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := &p.events[0]; old.summary && old.times > recorded.times {
		old.times -= recorded.times
		old.at, old.requestID = old.last, [16]byte{}
		return
	}
	p.events = p.events[1:]
}

// renew gives the oldest event another request id.
func (p *pendingEvents) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events[0].requestID = [16]byte{}
}
