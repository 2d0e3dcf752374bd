package handover

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// diskLook is how often a node checks its own disk, and askAgain how often it asks the
	// others while the disk does not answer.
	diskLook = 50 * time.Millisecond
	askAgain = 250 * time.Millisecond
	askWait  = 300 * time.Millisecond
)

// WatchDisk makes another node lead while this node's disk does not answer. Raft itself
// never notices: its leader waits for the disk in one goroutine and sends heartbeats from
// others (hashicorp/raft issue 503). The node keeps serving requests meanwhile. Its records
// are committed by the other nodes, so it only has to know which node leads, and its own
// Raft cannot tell while it waits for the disk.
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
		// A node that was asked to take over gets the time of an election for it. If two
		// nodes took over at once they would depose each other.
		may := !behind || now-handed >= 2*h.cfg.Election
		behind, asked = true, now
		if h.bypass(r, may) {
			handed = now
		}
	}
}

// holdTransfers prevents transfers through Raft while the disk does not answer. Raft would
// begin them only once the disk answers again.
func (h *Handover) holdTransfers(held, hold bool) bool {
	switch {
	case held && !hold:
		<-h.transfer
		return false
	case !held && hold:
		select {
		case h.transfer <- struct{}{}:
			return true
		default: // a transfer is in progress
		}
	}
	return held
}

// bypass finds out which node leads while this node's disk does not answer. If it is this
// one and may is set, bypass asks another node to take over, and returns true if it did. It
// never waits for this node's Raft.
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
		// No other node's disk is any better, so a handover would gain nothing.
		h.cfg.Transport().Hush(false)
		return false
	}
	h.cfg.Log.Warn("handing over the leadership: the disk does not answer", "to", to)
	// If the request is lost, the others elect a leader because they get no heartbeats.
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
