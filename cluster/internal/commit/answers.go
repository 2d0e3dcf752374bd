package commit

import (
	"fmt"
	"slices"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/signal"
	"github.com/conclavekms/conclave/fsm"
)

// Link is a connection to the leader's Committer. Everything sent on it is answered through
// the function that it was opened with, or not at all.
type Link interface {
	// Send must not block.
	Send(*Submission)
	// Leader returns the node at the other end.
	Leader() string
	// Local reports whether the leader is this node itself, to which submissions need no
	// authentication.
	Local() bool
	Close()
}

// answered is an answer that was received on the link of that epoch.
type answered struct {
	epoch    uint64
	response *clusterpb.SubmitResponse
}

// A Link that has ended delivers one of these instead of an answer.
var (
	LinkBroke       = &clusterpb.SubmitResponse{}
	LinkNeverOpened = &clusterpb.SubmitResponse{} // nothing that was sent left this node
)

// deliver passes an answer on without blocking the caller, which may be this Proposer
// itself if the local Committer refuses at once.
func (pr *Proposer) deliver(a answered) {
	pr.answersMu.Lock()
	pr.answers = append(pr.answers, a)
	pr.answersMu.Unlock()
	signal.Send(pr.answered)
}

func (pr *Proposer) answer(a answered) {
	if a.epoch != pr.epoch || pr.link == nil {
		return // from a link that was left; the batch was sent again or will be
	}
	r := a.response
	switch r {
	case LinkNeverOpened:
		for _, b := range pr.unsettled {
			b.out = false
		}
		pr.unlink(true)
		return
	case LinkBroke:
		pr.unlink(true)
		return
	}
	switch r.Status {
	case clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED:
		pr.backoff = 0
		if r.Seq == 0 {
			pr.linked()
			return
		}
		pr.settle(r)
	case clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED:
		if r.Seq == 0 || pr.find(r.Seq) >= 0 {
			pr.unlink(true)
			pr.cfg.Fenced(fmt.Errorf("%w: incarnation %d", ErrIncarnation, pr.cfg.Incarnation))
		}
	case clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER, clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED:
		if i := pr.find(r.Seq); i >= 0 {
			pr.unsettled[i].out = false
		}
		pr.unlink(true)
	default: // unknown: send the same batch again, to whichever node leads
		pr.unlink(true)
	}
}

func (pr *Proposer) find(seq uint64) int {
	return slices.IndexFunc(pr.unsettled, func(b *sentBatch) bool { return b.seq == seq })
}

// settle gives the verdicts on a batch to its callers.
func (pr *Proposer) settle(r *clusterpb.SubmitResponse) {
	i := pr.find(r.Seq)
	if i < 0 {
		return
	}
	b := pr.unsettled[i]
	if len(r.Verdicts) != len(b.records) {
		// A leader that follows the protocol never sends this, so it must not be believed.
		pr.unlink(true)
		return
	}
	pr.unsettled = slices.Delete(pr.unsettled, i, i+1)
	pr.inFlight.Store(int64(len(pr.unsettled)))
	pr.lastSettled = len(b.records)
	late := overdue(pr.committedSince(b, r).Add(pr.cfg.Timeouts.Release))
	accepted := uint64(0)
	for i, p := range b.proposals {
		d := fsm.Decision{Verdict: fsm.Verdict(r.Verdicts[i]), Index: r.Index, Late: late}
		if d.Verdict == fsm.Accepted && r.FirstRecord != nil {
			index := *r.FirstRecord + accepted
			d.Record = &index
			accepted++
		}
		p.answer(outcome{verdict: d})
	}
}

// committedSince returns the earliest moment at which a batch can have been committed:
// after the send that was answered, plus the time that the leader reports not to have had
// the entry on its disk yet. For a batch that was sent repeatedly it may be as early as the
// first send.
func (pr *Proposer) committedSince(b *sentBatch, r *clusterpb.SubmitResponse) time.Time {
	if r.RepeatedBatch {
		return b.firstSend
	}
	return b.lastSend.Add(max(0, min(time.Duration(r.Waited), time.Since(b.lastSend))))
}

// overdue returns a function that reports whether the moment has passed, by the monotonic
// clock or by the wall clock, which keeps running while a machine is suspended.
func overdue(moment time.Time) func() bool {
	return func() bool {
		now := time.Now()
		return now.After(moment) || now.Round(0).After(moment.Round(0))
	}
}
