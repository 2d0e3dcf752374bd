package handover

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// diskLook is how often a node looks at its own disk, and askAgain how often it
	// asks the others while the disk does not answer.
	diskLook = 50 * time.Millisecond
	askAgain = 250 * time.Millisecond
	askWait  = 300 * time.Millisecond
)

// WatchDisk has another node lead while this one's disk does not answer. Raft itself
// never notices: its leader waits for the disk in one goroutine, and sends heartbeats
// from others (hashicorp/raft issue 503). Such a node goes on serving: what it
// proposes is committed by the others, so all that it needs is to know who leads,
// which its own Raft, waiting, cannot tell it.
func (h *Handover) WatchDisk() {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	var asked, handed time.Duration
	behind, alone := false, false
	for {
		select {
		case <-tick.C:
		case <-h.cfg.Life.Context().Done():
			return
		}
		r := h.cfg.Raft()
		if r == nil || h.cfg.Life.Fenced() != nil {
			continue
		}
		took := h.cfg.Meter.Behind()
		alone = h.holdTransfers(alone, took >= h.cfg.DiskYield-2*diskLook)
		if took < h.cfg.DiskYield {
			if behind {
				behind = false
				h.cfg.Transport().Hush(false)
				h.cfg.Log.Info("the disk answers again")
			}
			continue
		}
		now := h.cfg.Meter.Ran()
		if !behind {
			h.cfg.Log.Warn("the disk does not answer", "for", took)
		} else if now-asked < askAgain {
			continue
		}
		// One that was told to take over has the time of an election for it; two that
		// take over at once would depose each other.
		may := !behind || now-handed >= 2*h.cfg.Election
		behind, asked = true, now
		if h.bypass(r, may) {
			handed = now
		}
	}
}

// holdTransfers keeps transfers of the leadership by Raft from beginning while the disk
// does not answer: Raft, which waits for it, would begin them when it does.
func (h *Handover) holdTransfers(held, hold bool) bool {
	switch {
	case held && !hold:
		<-h.transfer
		return false
	case !held && hold:
		select {
		case h.transfer <- struct{}{}:
			return true
		default: // one is under way
		}
	}
	return held
}

// bypass finds out who leads while this node's disk does not answer, and makes
// another node lead if it is this one and may hand over; it reports whether it told one.
// Nothing of that waits for Raft here.
func (h *Handover) bypass(r *raft.Raft, may bool) (told bool) {
	ctx, cancel := context.WithTimeout(h.cfg.Life.Context(), askWait)
	defer cancel()
	infos := h.cfg.Voters.ReadClocks(ctx, askWait)
	term := r.CurrentTerm()
	for id, i := range infos {
		if !i.Leads || i.Term <= term {
			continue
		}
		if k := h.elsewhere(r); k != nil && k.term >= i.Term {
			return false
		}
		h.cfg.Log.Info("another node leads while the disk does not answer", "leader", id, "term", i.Term)
		h.named.Store(&knownLeader{id: id, addr: string(h.cfg.Members.Address(id)), term: i.Term})
		h.cfg.Committer.SetOpen(false)
		h.cfg.Poke()
		return false
	}
	if !may || r.State() != raft.Leader || h.elsewhere(r) != nil {
		return false
	}
	to := h.successor(h.cfg.Voters.Answering(h.cfg.Life.Context(), infos, askWait), preferFit)
	if to == "" {
		// Nobody's disk does better, so there is nothing to win.
		h.cfg.Transport().Hush(false)
		return false
	}
	h.cfg.Log.Warn("handing over the leadership: the disk does not answer", "to", to)
	// Should the request get lost, the others elect somebody for want of heartbeats.
	h.cfg.Transport().Hush(true)
	result := "ok"
	ask := &raft.TimeoutNowRequest{RPCHeader: h.cfg.Transport().Header()}
	if err := h.cfg.Transport().TimeoutNow(raft.ServerID(to), h.cfg.Members.Address(to), ask, &raft.TimeoutNowResponse{}); err != nil {
		h.cfg.Log.Warn("could not hand over the leadership", "to", to, "err", err)
		result = "failed"
	}
	h.cfg.Transfers.WithLabelValues(result).Inc()
	return true
}
