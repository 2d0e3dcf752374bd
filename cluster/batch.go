package cluster

import (
	"math"
	"slices"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// form makes batches of what waits: at once when nothing is in flight, else when
// a batch is full or its first record has waited long enough.
func (o *origin) form(now time.Time) (wait time.Duration, more bool) {
	for len(o.waiting) > 0 {
		if len(o.unsettled) >= batchesInFlight && !o.waiting[0].exclusive {
			o.want, o.wantBytes = math.MaxInt, math.MaxInt
			return 0, false // the next answer comes back here
		}
		n, size, full := o.cut()
		age := now.Sub(o.waiting[0].queued)
		enough, delay := maxBatchRecords, batchDelay
		if len(o.unsettled) == 0 {
			// Alone, a request goes at once. Where the last answers set several
			// callers free, their next requests come together.
			enough, delay = o.lastSettled*3/4, gatherDelay
		}
		if !full && n < enough && age < delay {
			o.want, o.wantBytes = enough-n, batchBytes-size
			return delay - age, true
		}
		b := &sentBatch{
			seq: o.nextSeq, due: now.Add(o.timeouts.Outcome),
			proposals: make([]*proposal, 0, n), records: make([][]byte, 0, n),
		}
		for _, p := range o.waiting[:n] {
			o.release(p)
			if !p.state.CompareAndSwap(proposalWaiting, proposalTaken) {
				continue
			}
			b.proposals = append(b.proposals, p)
			if due := p.queued.Add(o.timeouts.Outcome); due.Before(b.due) {
				b.due = due
			}
			b.exclusive = b.exclusive || p.exclusive
			if p.record != nil {
				b.records = append(b.records, p.record)
			}
		}
		o.waiting = slices.Delete(o.waiting, 0, n)
		if len(b.proposals) == 0 {
			continue
		}
		o.nextSeq++
		o.unsettled = append(o.unsettled, b)
		o.inFlight.Store(int64(len(o.unsettled)))
		o.send(b)
	}
	return 0, false
}

// cut finds how many of the waiting proposals make the next batch. An exclusive
// one, which proposeExclusive puts first, goes alone.
func (o *origin) cut() (n, size int, full bool) {
	for _, p := range o.waiting {
		if p.exclusive {
			return max(n, 1), size, true
		}
		if n == maxBatchRecords || n > 0 && size+p.size > batchBytes {
			return n, size, true
		}
		n++
		size += p.size
	}
	return n, size, n == maxBatchRecords || size >= batchBytes
}

func (o *origin) send(b *sentBatch) {
	b.lastSend = time.Now()
	if b.sends == 0 {
		b.firstSend = b.lastSend
	} else {
		o.metrics.resubmitted.Inc()
	}
	b.sends++
	b.out = true
	// A new message each time: the last one may still be on its way.
	encoded, err := fsm.EncodeBatch(&fsmpb.Batch{
		Node: o.node, Incarnation: o.incarnation, Seq: b.seq,
		SettledBelow: o.unsettled[0].seq, Watermark: o.watermark(),
	}, b.records)
	if err != nil {
		panic(err) // the node's id is the only text in it
	}
	out := &batch{node: o.node, seq: b.seq, records: len(b.records), encoded: encoded}
	o.link.send(&submission{batch: out, size: out.size(), exclusive: b.exclusive})
}
