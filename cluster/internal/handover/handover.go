// Package handover says who leads, as far as a node knows, and moves the leadership to
// another node: when this one is asked to, when it is not fit to lead, and when its disk is
// slow or does not answer.
//
// What may be relied on:
//
//   - One transfer is under way at a time, and none begins in Raft while the disk does not
//     answer. A transfer that does not end fences the node.
//   - A node takes over only if its log is about as long as the leader's.
//   - A leader whose disk does not answer hands over within about Config.DiskYield to one
//     whose disk does, without waiting for its own Raft; meanwhile it knows who leads.
//   - Nodes with slow disks do not pass the leadership around.
//
// Raft's own transfers need its main goroutine, which waits for the disk: so there are two
// ways to hand over, Transfer and StepAside through Raft, and WatchDisk beside it.
package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/raftend"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
)

var (
	// ErrNoTransfer: no other node is fit to take over the leadership.
	ErrNoTransfer = errors.New("no node can take over")
	// ErrTransferStuck: the leader refuses writes because of a leadership
	// transfer that never ends (hashicorp/raft issue 696).
	ErrTransferStuck = errors.New("leadership transfer does not end")
)

// Voters are the other voters, as a leader asks them.
type Voters interface {
	// ReadClocks asks them, for as long as wait, for their clocks, disks and fitness.
	ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse
	// Answering is which of these have a disk that answers within wait.
	Answering(ctx context.Context, infos map[string]*clusterpb.ClockResponse, wait time.Duration) map[string]*clusterpb.ClockResponse
}

// Transport is Raft's, beside Raft.
type Transport interface {
	// Hush keeps this node's Raft from sending anything, or no longer does.
	Hush(silent bool)
	// Header is what requests of this node's Raft begin with.
	Header() raft.RPCHeader
	TimeoutNow(id raft.ServerID, target raft.ServerAddress, r *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error
}

// Config describes a Handover. Everything is required. The functions may be called from
// any goroutine.
type Config struct {
	// Election is the election timeout, and DiskYield how long a write may take before
	// another node is made to lead.
	Election, DiskYield time.Duration
	// Raft is nil before it was started, and Transport not called before.
	Raft      func() *raft.Raft
	RaftEnd   raftend.End // ends what Raft does not answer any more
	Transport func() Transport
	// Members say where nodes are.
	Members interface {
		Address(node string) raft.ServerAddress
	}
	Voters Voters
	// Committer takes what is proposed while this node leads.
	Committer interface {
		SetOpen(open bool)
		RefusingSince() time.Time
	}
	// Poke tells this node's Proposer that somebody else may lead.
	Poke func()
	// Meter knows this node's log disk, and Space how little room there is.
	Meter *raftlog.Meter
	Space interface{ Level() diskspace.Level }
	Life  *lifecycle.Life
	// Transfers counts transfers by their result.
	Transfers *prometheus.CounterVec
	Log       *slog.Logger
}

// Handover knows who leads, and moves the leadership away from one node. Its methods are
// safe for concurrent use, but for those of the leader's goroutine.
type Handover struct {
	cfg       Config
	leadCheck atomic.Pointer[func() bool]
	transfer  chan struct{} // held by the one transfer under way
	named     atomic.Pointer[knownLeader]
	// refusing is since when Raft refuses entries because of a transfer, and
	// refusingFrom the same by the pulse; like slow, by the leader's goroutine.
	refusing     time.Time
	refusingFrom time.Duration
	slow         slowness
}

// New makes the Handover of a node.
func New(cfg Config) *Handover {
	return &Handover{cfg: cfg, transfer: make(chan struct{}, 1)}
}

// Leads reports whether this node believes to lead. It proves nothing: what
// must be certain goes through the log.
func (h *Handover) Leads() bool {
	r := h.cfg.Raft()
	return r != nil && r.State() == raft.Leader && h.elsewhere(r) == nil
}

// Leader is the node that leads and its peer address; empty when none is known.
func (h *Handover) Leader() (id, addr string) {
	r := h.cfg.Raft()
	if r == nil {
		return "", ""
	}
	if k := h.elsewhere(r); k != nil {
		return k.id, k.addr
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// knownLeader is who leads as others say, in a term that this node's Raft has not
// heard of.
type knownLeader struct {
	id, addr string
	term     uint64
}

// elsewhere is the leader that others name while Raft here waits for the disk; nil
// when Raft knows as much itself.
func (h *Handover) elsewhere(r *raft.Raft) *knownLeader {
	if k := h.named.Load(); k != nil && k.term > r.CurrentTerm() {
		return k
	}
	return nil
}

// SetCanLead registers what tells whether this node is fit to lead: a sealed one
// hands over as soon as a fit one can take over.
func (h *Handover) SetCanLead(f func() bool) { h.leadCheck.Store(&f) }

// CanLead reports whether this node is fit to lead.
func (h *Handover) CanLead() bool {
	if h.cfg.Life.Fenced() != nil || poorDisk(h.Disk(), h.cfg.DiskYield) {
		return false
	}
	f := h.leadCheck.Load()
	return f == nil || (*f)()
}

// Disk is how this node's disk does, for others.
func (h *Handover) Disk() *clusterpb.Disk {
	return &clusterpb.Disk{
		Write:  int64(h.cfg.Meter.Typical()),
		Behind: int64(h.cfg.Meter.Behind()),
		Space:  uint32(h.cfg.Space.Level()),
	}
}

// Transfer hands the leadership to the best placed other voter and
// returns when this node has stopped leading. One transfer runs at a time.
func (h *Handover) Transfer(ctx context.Context) error {
	if !h.Leads() {
		return commit.ErrNotLeader
	}
	end, err := h.cfg.Life.Begin()
	if err != nil {
		return err
	}
	defer end()
	to := h.successor(h.cfg.Voters.ReadClocks(ctx, h.cfg.Election), anyNode)
	if to == "" {
		return ErrNoTransfer
	}
	return h.transferTo(ctx, to)
}

func (h *Handover) transferTo(ctx context.Context, to string) error {
	select {
	case h.transfer <- struct{}{}:
	default:
		return fmt.Errorf("%w: a transfer is under way", ErrNoTransfer)
	}
	future := h.cfg.Raft().LeadershipTransferToServer(raft.ServerID(to), h.cfg.Members.Address(to))
	h.cfg.RaftEnd.Bind(future)
	done := make(chan error, 1)
	go func() {
		// Held until Raft is done with it, whoever stopped waiting: a second one
		// beside it is what issue 696 needs.
		err := future.Error()
		<-h.transfer
		result := "ok"
		if err != nil {
			result = "failed"
		}
		h.cfg.Transfers.WithLabelValues(result).Inc()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("leadership transfer to %s: %w", to, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fitter is the node to which this leader should hand over; "" for none. unfit is what
// makes it so beside CanLead. It is for the leader's goroutine.
func (h *Handover) Fitter(infos map[string]*clusterpb.ClockResponse, unfit bool) string {
	if unfit || !h.CanLead() {
		return h.successor(infos, onlyFit)
	}
	return h.quicker(infos)
}

// StepAside hands over to a node that is fitter to lead.
func (h *Handover) StepAside(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, 2*h.cfg.Election)
	defer cancel()
	h.cfg.Log.Info("handing the leadership to a node that is fitter to lead", "to", to)
	if err := h.transferTo(ctx, to); err != nil {
		h.cfg.Log.Warn("could not hand over the leadership", "to", to, "err", err)
	}
}

// CheckTransfer notices a leader that refuses everything because of a transfer
// that does not end. The flag for it is in Raft's memory only, so a new process
// cures it. It is for the leader's goroutine.
func (h *Handover) CheckTransfer() {
	since := h.cfg.Committer.RefusingSince()
	now := h.cfg.Meter.Ran() // a pause of this process is no hanging transfer
	switch {
	case since.IsZero():
		h.refusing, h.refusingFrom = time.Time{}, 0
	case since != h.refusing:
		h.refusing, h.refusingFrom = since, now
	case now-h.refusingFrom > 5*h.cfg.Election:
		h.cfg.Life.Fence(fmt.Errorf("%w: for %v", ErrTransferStuck, (now - h.refusingFrom).Round(time.Millisecond)))
	}
}
