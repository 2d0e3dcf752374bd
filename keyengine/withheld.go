package keyengine

import (
	"sync"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// maxWithheld bounds the requests that one event names; it says how many there were.
const maxWithheld = 200

// withheld are requests whose records say what was decided, and whose callers were
// not told. Events say so, one a second at most.
type withheld struct {
	late    func(operation string) // counts them
	pending *pendingEvents

	mu    sync.Mutex
	ids   []string
	count int
}

// withhold notes that the answer to a request is withheld, and is the error instead.
func (w *withheld) withhold(id [16]byte, operation string) error {
	w.late(operation)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	if len(w.ids) < maxWithheld {
		w.ids = append(w.ids, formatUUID(id))
	}
	return errHeldUp
}

// record has the log say whose answers were withheld since the last time.
func (w *withheld) record(s *fsm.State) {
	w.mu.Lock()
	ids, count := w.ids, w.count
	w.ids, w.count = nil, 0
	w.mu.Unlock()
	if count == 0 {
		return
	}
	c, _ := s.Cluster()
	w.pending.add(event{
		name: "AnswersWithheld", kind: eventService, sourceIP: internalCaller, userAgent: internalCaller,
		identity: &auditpb.Identity{AccountId: c.GetAccount(), InvokedBy: internalCaller},
		details:  []*auditpb.Field{auditfield.Number("count", count), auditfield.TextList("requestIds", ids)},
	})
}
