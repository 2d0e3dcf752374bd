package commit

import (
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/wire"
)

// proposal is one record that is being proposed.
type proposal struct {
	record    []byte // encoded
	levels    wire.Levels
	size      int
	exclusive bool
	queued    time.Time
	state     atomic.Uint32
	done      chan outcome // buffered, because the caller may have left
	answered  bool         // by the Proposer
}

// answer gives the proposal its outcome, unless it has one.
func (p *proposal) answer(out outcome) {
	if !p.answered {
		p.answered = true
		p.done <- out
	}
}

// States of a proposal. The goroutine that moves it out of proposalWaiting decides what
// happens next.
const (
	proposalWaiting uint32 = iota
	proposalTaken          // in a batch: from here on the outcome is awaited
	proposalGone           // its caller left before it was taken
)

type outcome struct {
	verdict fsm.Decision
	err     error
}

// sentBatch is a batch that has not been answered yet.
type sentBatch struct {
	seq       uint64
	records   [][]byte // encoded, one for each proposal
	levels    wire.Levels
	proposals []*proposal
	encoded   []byte // set at the first send: each send has the same bytes
	exclusive bool
	due       time.Time // when the first of its proposals has waited too long
	firstSend time.Time
	lastSend  time.Time // on the current link
	sends     int
	// out means that the last send has no answer yet, and unknown that an earlier one never
	// got one. If neither is set, the batch is certainly in no log.
	out, unknown bool
}
