package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
)

const (
	// A leader whose disk takes slowFactor times what another's does, and more than
	// slowFloor, for longer than slowFor (or Timeouts.DiskYield, if that is more),
	// hands over to it.
	slowFactor = 10
	slowFloor  = 20 * time.Millisecond
	slowFor    = time.Second
	// slowPause lies between two times that this node hands over because of its
	// disk; it doubles up to slowPauseMax, and is forgotten after a quiet time as
	// long, so that nodes with poor disks do not pass the leadership around.
	slowPause    = 10 * time.Second
	slowPauseMax = 5 * time.Minute

	// diskLook is how often a node looks at its own disk, and askAgain how often it
	// asks the others while the disk does not answer.
	diskLook = 50 * time.Millisecond
	askAgain = 250 * time.Millisecond
	askWait  = 300 * time.Millisecond
)

// knownLeader is who leads as others say, in a term that this node's Raft has not
// heard of.
type knownLeader struct {
	id, addr string
	term     uint64
}

// elsewhere is the leader that others name while Raft here waits for the disk; nil
// when Raft knows as much itself.
func (n *Node) elsewhere(r *raft.Raft) *knownLeader {
	if k := n.named.Load(); k != nil && k.term > r.CurrentTerm() {
		return k
	}
	return nil
}

// disk is how this node's disk does, for others.
func (n *Node) disk() *clusterpb.Disk {
	return &clusterpb.Disk{
		Write:  int64(n.store.Meter().Typical()),
		Behind: int64(n.store.Meter().Behind()),
		Space:  uint32(n.space.Level()),
	}
}

// watchDisk has another node lead while this one's disk does not answer. Raft itself
// never notices: its leader waits for the disk in one goroutine, and sends heartbeats
// from others (hashicorp/raft issue 503). Such a node goes on serving: what it
// proposes is committed by the others, so all that it needs is to know who leads,
// which its own Raft, waiting, cannot tell it.
func (n *Node) watchDisk() {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	var asked, handed time.Duration
	behind, alone := false, false
	for {
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		r := n.raft.Load()
		if r == nil || n.faulted.Load() != nil {
			continue
		}
		took := n.store.Meter().Behind()
		alone = n.holdTransfers(alone, took >= n.cfg.Timeouts.DiskYield-2*diskLook)
		if took < n.cfg.Timeouts.DiskYield {
			if behind {
				behind = false
				n.trans.Hush(false)
				n.log.Info("the disk answers again")
			}
			continue
		}
		now := n.store.Meter().Ran()
		if !behind {
			n.log.Warn("the disk does not answer", "for", took)
		} else if now-asked < askAgain {
			continue
		}
		// One that was told to take over has the time of an election for it; two that
		// take over at once would depose each other.
		may := !behind || now-handed >= 2*n.cfg.Timeouts.Election
		behind, asked = true, now
		if n.bypass(r, may) {
			handed = now
		}
	}
}

// holdTransfers keeps transfers of the leadership by Raft from beginning while the disk
// does not answer: Raft, which waits for it, would begin them when it does.
func (n *Node) holdTransfers(held, hold bool) bool {
	switch {
	case held && !hold:
		<-n.transfer
		return false
	case !held && hold:
		select {
		case n.transfer <- struct{}{}:
			return true
		default: // one is under way
		}
	}
	return held
}

// bypass finds out who leads while this node's disk does not answer, and makes
// another node lead if it is this one and may hand over; it reports whether it told one.
// Nothing of that waits for Raft here.
func (n *Node) bypass(r *raft.Raft, may bool) (told bool) {
	ctx, cancel := context.WithTimeout(n.ctx, askWait)
	defer cancel()
	infos := n.readClocks(ctx, askWait)
	term := r.CurrentTerm()
	for id, i := range infos {
		if !i.Leads || i.Term <= term {
			continue
		}
		if k := n.elsewhere(r); k != nil && k.term >= i.Term {
			return false
		}
		n.log.Info("another node leads while the disk does not answer", "leader", id, "term", i.Term)
		n.named.Store(&knownLeader{id: id, addr: string(n.addressOf(id)), term: i.Term})
		n.committer.SetOpen(false)
		n.proposer.Poke()
		return false
	}
	if !may || r.State() != raft.Leader || n.elsewhere(r) != nil {
		return false
	}
	to := n.successor(n.answering(n.ctx, infos, askWait), preferFit)
	if to == "" {
		// Nobody's disk does better, so there is nothing to win.
		n.trans.Hush(false)
		return false
	}
	n.log.Warn("handing over the leadership: the disk does not answer", "to", to)
	// Should the request get lost, the others elect somebody for want of heartbeats.
	n.trans.Hush(true)
	result := "ok"
	if err := n.trans.TimeoutNow(raft.ServerID(to), n.addressOf(to), &raft.TimeoutNowRequest{RPCHeader: n.trans.Header()}, &raft.TimeoutNowResponse{}); err != nil {
		n.log.Warn("could not hand over the leadership", "to", to, "err", err)
		result = "failed"
	}
	n.metrics.transfers.WithLabelValues(result).Inc()
	return true
}

func (n *Node) addressOf(node string) (addr raft.ServerAddress) {
	for _, s := range n.configuration().Servers {
		if string(s.ID) == node {
			addr = s.Address
		}
	}
	return addr
}

// poorDisk reports whether a node should not lead for its disk's sake.
func poorDisk(d *clusterpb.Disk, yield time.Duration) bool {
	return d.GetBehind() >= int64(yield) || diskspace.Level(d.GetSpace()) >= diskspace.Yield
}

// slowness decides when a leader whose disk is slow, but answers, hands over. The
// leader's goroutine owns it; it outlives a leadership term.
type slowness struct {
	since time.Duration // by the pulse; 0 when it is not slow
	pause time.Duration
	last  time.Duration
}

// judge takes what a write takes here and at the quickest node that could take over,
// and reports whether it should, now: this disk has been slow for longer than patience.
func (s *slowness) judge(now, own, best, patience time.Duration) bool {
	if own < slowFloor || best == 0 || own < slowFactor*best {
		s.since = 0
		return false
	}
	if s.since == 0 {
		s.since = now
	}
	if now-s.since < patience {
		return false
	}
	if s.last != 0 && now-s.last > 2*s.pause {
		s.pause = 0
	}
	if s.last != 0 && now-s.last < s.pause {
		return false
	}
	s.pause = min(max(2*s.pause, slowPause), slowPauseMax)
	s.last, s.since = now, 0
	return true
}

// quicker is the node to which this leader should hand over because its own disk is
// so much slower; "" for none.
func (n *Node) quicker(infos map[string]*clusterpb.ClockResponse) string {
	to := n.successor(infos, preferQuick)
	var best time.Duration
	if i := infos[to]; i != nil {
		best = time.Duration(i.Disk.GetWrite())
	}
	m := n.store.Meter()
	own := max(m.Typical(), m.Behind())
	if !n.slow.judge(m.Ran(), own, best, max(slowFor, n.cfg.Timeouts.DiskYield)) {
		return ""
	}
	n.log.Warn("this node's disk is much slower than another's", "write", own, "other", best, "node", to)
	return to
}
