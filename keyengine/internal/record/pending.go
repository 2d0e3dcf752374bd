package record

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// Limits of the events that wait to be recorded. They apply to each operator separately,
// and separately to refused and successful steps, so that nobody can push out other
// operators' records or hide their own. Events beyond the limits are summarised in one
// record for each kind, with their number.
const (
	MaxPendingSteps   = 64
	MaxPendingRefused = 16
	// MaxPendingOperators is the maximum number of operators that are told apart.
	MaxPendingOperators = 64
)

// Pending holds the events of a node that could not be recorded yet, as a sealed node
// cannot record. They are kept in memory and recorded once the node is unsealed.
type Pending struct {
	recording sync.Mutex // held while events are recorded, so that each is recorded once
	mu        sync.Mutex
	Events    []Event
	wake      chan struct{}
}

// NewPending returns an empty Pending.
func NewPending() *Pending { return &Pending{wake: make(chan struct{}, 1)} }

// Actor returns the operator that an event is counted for.
func (ev *Event) Actor() string { return ev.Identity.GetCertificate() }

// Add adds an event, which is recorded as soon as possible.
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
		// No cluster has so many operators. Summarise the rest together, by kind of event.
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

// flush wakes Run to record the events.
func (p *Pending) flush() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// First returns the oldest event.
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

// Done removes the oldest event after it was recorded. If that is a summary which has grown
// since, the events that it gained remain.
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

// renew clears the oldest event's request id, so that it gets another one.
func (p *Pending) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Events[0].RequestID = [16]byte{}
}
