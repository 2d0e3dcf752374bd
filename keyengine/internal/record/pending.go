package record

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
	MaxPendingSteps   = 64
	MaxPendingRefused = 16
	// maxPendingOperators bounds the operators that are told apart.
	MaxPendingOperators = 64
)

// Pending are events of a sealed node, which cannot record. They are kept
// in memory and recorded once it is unsealed.
type Pending struct {
	recording sync.Mutex // held while events are recorded, so that each is once
	mu        sync.Mutex
	Events    []Event
	wake      chan struct{}
}

func NewPending() *Pending { return &Pending{wake: make(chan struct{}, 1)} }

// Actor is whom an event is counted for.
func (ev *Event) Actor() string { return ev.Identity.GetCertificate() }

func (p *Pending) Add(ev Event) {
	p.mu.Lock()
	p.addLocked(ev)
	p.mu.Unlock()
	p.flush()
}

func (p *Pending) addLocked(ev Event) {
	actors := make(map[string]bool)
	for i := range p.Events {
		actors[p.Events[i].Actor()] = true
	}
	limit := MaxPendingSteps
	if ev.Err != nil {
		limit = MaxPendingRefused
	}
	if !actors[ev.Actor()] && len(actors) >= MaxPendingOperators {
		// More operators than any cluster has: the rest together, by what they did.
		ev.Identity, limit = &auditpb.Identity{Type: OperatorType}, 0
	}
	code, _ := Outcome(ev.Err)
	same := 0
	for i := range p.Events {
		old := &p.Events[i]
		if old.Actor() != ev.Actor() || (old.Err == nil) != (ev.Err == nil) {
			continue
		}
		if !old.Summary {
			same++
		} else if oldCode, _ := Outcome(old.Err); old.Name == ev.Name && oldCode == code {
			old.Times++
			old.last = ev.At
			return
		}
	}
	if same >= limit {
		ev.Summary, ev.Parameters, ev.Times, ev.last = true, nil, 1, ev.At
	}
	p.Events = append(p.Events, ev)
}

// flush has the events recorded soon, if that is possible.
func (p *Pending) flush() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// First is the oldest event.
func (p *Pending) First() (Event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.Events) == 0 {
		return Event{}, false
	}
	ev := p.Events[0]
	if ev.Summary {
		ev.Details = append(ev.Details[:len(ev.Details):len(ev.Details)],
			auditfield.Number("times", ev.Times), auditfield.Text("last", ev.last.UTC().Format(time.RFC3339Nano)))
	}
	return ev, true
}

// Done forgets the oldest event, as far as it has been recorded: a summary may
// stand for more by now.
func (p *Pending) Done(recorded Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := &p.Events[0]; old.Summary && old.Times > recorded.Times {
		old.Times -= recorded.Times
		old.At, old.RequestID = old.last, [16]byte{}
		return
	}
	p.Events = p.Events[1:]
}

// renew gives the oldest event another request id.
func (p *Pending) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Events[0].RequestID = [16]byte{}
}
