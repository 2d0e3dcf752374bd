package commit

import (
	"math"
	"slices"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

// form makes batches of the waiting proposals: at once when nothing is in flight, otherwise
// when a batch is full or its first record has waited long enough.
func (pr *Proposer) form(now time.Time) (wait time.Duration, more bool) {
	for len(pr.waiting) > 0 {
		if len(pr.unsettled) >= BatchesInFlight && !pr.waiting[0].exclusive {
			pr.want, pr.wantBytes = math.MaxInt, math.MaxInt
			return 0, false // the next answer leads back here
		}
		n, size, full := pr.cut()
		age := now.Sub(pr.waiting[0].queued)
		enough, delay := MaxBatchRecords, batchDelay
		if len(pr.unsettled) == 0 {
			// A single request goes at once. If the last answers released several callers,
			// their next requests arrive together.
			enough, delay = pr.lastSettled*3/4, gatherDelay
		}
		if !full && n < enough && age < delay {
			pr.want, pr.wantBytes = enough-n, batchBytes-size
			return delay - age, true
		}
		b := &sentBatch{
			seq: pr.nextSeq, due: now.Add(pr.cfg.Timeouts.Outcome),
			proposals: make([]*proposal, 0, n), records: make([][]byte, 0, n),
		}
		for _, p := range pr.waiting[:n] {
			pr.release(p)
			if !p.state.CompareAndSwap(proposalWaiting, proposalTaken) {
				continue
			}
			b.proposals = append(b.proposals, p)
			if due := p.queued.Add(pr.cfg.Timeouts.Outcome); due.Before(b.due) {
				b.due = due
			}
			b.exclusive = b.exclusive || p.exclusive
			b.records, b.levels = append(b.records, p.record), b.levels.Both(p.levels)
		}
		pr.waiting = slices.Delete(pr.waiting, 0, n)
		if len(b.proposals) == 0 {
			continue
		}
		pr.nextSeq++
		pr.unsettled = append(pr.unsettled, b)
		pr.inFlight.Store(int64(len(pr.unsettled)))
		pr.send(b)
	}
	return 0, false
}

// cut returns how many of the waiting proposals make the next batch. An exclusive one goes
// alone.
func (pr *Proposer) cut() (n, size int, full bool) {
	for _, p := range pr.waiting {
		if p.exclusive {
			return max(n, 1), size, true
		}
		if n == MaxBatchRecords || n > 0 && size+p.size > batchBytes {
			return n, size, true
		}
		n++
		size += p.size
	}
	return n, size, n == MaxBatchRecords || size >= batchBytes
}

func (pr *Proposer) send(b *sentBatch) {
	if b.encoded == nil {
		share := len(b.records) > 1 && pr.cfg.Level() >= level.SharedReads
		encoded, err := wire.EncodeBatch(&fsmpb.Batch{
			Node: pr.cfg.Node, Incarnation: pr.cfg.Incarnation, Seq: b.seq,
			SettledBelow: pr.unsettled[0].seq, Watermark: pr.cfg.Watermark(), Group: wire.Group,
		}, b.records, share)
		if err != nil {
			panic(err) // the only text in it is the node's id, which was checked
		}
		if b.encoded = encoded; share {
			b.levels.Needed = max(b.levels.Needed, level.SharedReads)
		}
	}
	var generation uint32
	var mac []byte
	if !pr.link.Local() {
		var err error
		if generation, mac, err = pr.cfg.MAC(MACBatch, b.encoded); err != nil {
			return // sealed: the batch goes once the node is unsealed, or times out
		}
	}
	b.lastSend = time.Now()
	if b.sends == 0 {
		b.firstSend = b.lastSend
	} else {
		pr.cfg.Resubmitted.Inc()
	}
	b.sends++
	b.out = true
	// This is a new message each time, since the last one may still be in flight.
	out := &Batch{Node: pr.cfg.Node, Seq: b.seq, Records: len(b.records), Encoded: b.encoded, Levels: b.levels}
	pr.link.Send(&Submission{Batch: out, Size: out.Size(), Generation: generation, MAC: mac, exclusive: b.exclusive})
}
