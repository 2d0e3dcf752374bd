package record

import (
	"sync"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// maxWithheld is the maximum number of request ids in one event. The event also has the
// total.
const maxWithheld = 200

// Withheld collects requests that were recorded but whose answers were withheld. Record
// adds an event about them.
type Withheld struct {
	Late    func(operation string) // counts withheld answers
	Pending *Pending

	mu    sync.Mutex
	ids   []string
	count int
}

// Withhold notes that the answer to a request is withheld, and returns the error to return
// instead.
func (w *Withheld) Withhold(id [16]byte, operation string) error {
	w.Late(operation)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	if len(w.ids) < maxWithheld {
		w.ids = append(w.ids, UUID(id))
	}
	return ErrHeldUp
}

// Record adds an event about the answers that were withheld since the last call.
func (w *Withheld) Record(s *fsm.State) {
	w.mu.Lock()
	ids, count := w.ids, w.count
	w.ids, w.count = nil, 0
	w.mu.Unlock()
	if count == 0 {
		return
	}
	c, _ := s.Cluster()
	w.Pending.Add(Event{
		Name: "AnswersWithheld", Kind: KindService, SourceIP: InternalCaller, UserAgent: InternalCaller,
		Identity: &auditpb.Identity{AccountId: c.GetAccount(), InvokedBy: InternalCaller},
		Details:  []*auditpb.Field{auditfield.Number("count", count), auditfield.TextList("requestIds", ids)},
	})
}
