package commit

import (
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/fsm"
)

// proposal is one record on its way.
type proposal struct {
	record    []byte // encoded
	size      int
	exclusive bool
	queued    time.Time
	state     atomic.Uint32
	done      chan outcome // buffered: whoever waits may have left
	answered  bool         // by the Proposer
}

// answer gives the proposal its outcome, unless it has one.
func (p *proposal) answer(out outcome) {
	if !p.answered {
		p.answered = true
		p.done <- out
	}
}

// States of a proposal. Whoever moves it out of waiting owns what happens next.
const (
	proposalWaiting uint32 = iota
	proposalTaken          // in a batch: from here on the outcome is awaited
	proposalGone           // its caller left before it was taken
)

type outcome struct {
	verdict fsm.Decision
	err     error
}

// sentBatch is a batch without its answer.
type sentBatch struct {
	seq       uint64
	records   [][]byte // encoded, one of each proposal
	proposals []*proposal
	encoded   []byte // with the first send: the same bytes go each time
	exclusive bool
	due       time.Time // when the first of its proposals has waited too long
	firstSend time.Time
	lastSend  time.Time // on the present link
	sends     int
	// out says that the last send has no answer; unknown, that an earlier one
	// never got one. With neither, the batch is certainly in no log.
	out, unknown bool
}
