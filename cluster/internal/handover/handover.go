// Package handover tracks which node leads and moves the leadership to another node: on
// request, when this node is not fit to lead, and when its disk is slow or does not answer.
//
// It guarantees:
//
//   - Only one transfer is in progress at a time, and Raft begins none while the disk does
//     not answer. A transfer that does not end fences the node.
//   - A node takes over only if its log is nearly as long as the leader's.
//   - A leader whose disk does not answer hands over within about Config.DiskYield to a
//     node whose disk does, without waiting for its own Raft. Until its Raft has caught up,
//     it learns from the others which node leads.
//   - Nodes with slow disks do not pass the leadership back and forth.
//
// Raft's own transfers need its main goroutine, which waits for the disk. So there are two
// ways to hand over: Transfer and StepAside go through Raft, and WatchDisk bypasses it.
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
	// ErrNoTransfer is returned when no other node is fit to take over the leadership.
	ErrNoTransfer = errors.New("no node can take over")
	// ErrTransferStuck means that the leader refuses writes because of a leadership
	// transfer that never ends (hashicorp/raft issue 696).
	ErrTransferStuck = errors.New("leadership transfer does not end")
)

// Voters asks the other voters.
type Voters interface {
	// ReadClocks asks them for their clocks, disks and fitness, for at most wait.
	ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse
	// Answering returns those of the nodes whose disks answer within wait.
	Answering(ctx context.Context, infos map[string]*clusterpb.ClockResponse, wait time.Duration) map[string]*clusterpb.ClockResponse
}

// Transport is the part of Raft's transport that is used without going through Raft.
type Transport interface {
	// Hush stops this node's Raft from sending anything, or lets it send again.
	Hush(silent bool)
	// Header returns the header of requests of this node's Raft.
	Header() raft.RPCHeader
	TimeoutNow(id raft.ServerID, target raft.ServerAddress, r *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error
}

// Config describes a Handover. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	// Election is the election timeout. DiskYield is how long a write may take before the
	// leadership is moved to another node.
	Election, DiskYield time.Duration
	// Raft returns nil before Raft has started. Transport is not called before then.
	Raft      func() *raft.Raft
	RaftEnd   raftend.End // ends the futures that Raft no longer answers
	Transport func() Transport
	// Members returns the addresses of nodes.
	Members interface {
		Address(node string) raft.ServerAddress
	}
	Voters Voters
	// Committer accepts batches while this node leads.
	Committer interface {
		SetOpen(open bool)
		RefusingSince() time.Time
	}
	// Poke tells this node's Proposer that the leader may have changed.
	Poke func()
	// Meter measures this node's log disk, and Space tracks its free space.
	Meter *raftlog.Meter
	Space interface{ Level() diskspace.Level }
	Life  *lifecycle.Life
	// Transfers counts transfers by result.
	Transfers *prometheus.CounterVec
	Log       *slog.Logger
}

// Handover tracks which node leads and moves the leadership away from its own node. Its
// methods are safe for concurrent use, except for those that are marked as for the leader's
// goroutine.
type Handover struct {
	cfg       Config
	leadCheck atomic.Pointer[func() bool]
	transfer  chan struct{} // held by the transfer in progress
	named     atomic.Pointer[knownLeader]
	// refusing is since when Raft has refused entries because of a transfer, and
	// refusingFrom the same by the pulse. Both, like slow, are used on the leader's
	// goroutine only.
	refusing     time.Time
	refusingFrom time.Duration
	slow         slowness
}

// New returns the Handover of a node.
func New(cfg Config) *Handover {
	return &Handover{cfg: cfg, transfer: make(chan struct{}, 1)}
}

// Leads reports whether this node believes that it leads. It proves nothing; whatever must
// be certain goes through the log.
func (h *Handover) Leads() bool {
	r := h.cfg.Raft()
	return r != nil && r.State() == raft.Leader && h.elsewhere(r) == nil
}

// Leader returns the id and the peer address of the leader, or empty strings if none is
// known.
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

// knownLeader is a leader that other nodes reported, in a term that is newer than that of
// this node's Raft.
type knownLeader struct {
	id, addr string
	term     uint64
}

// elsewhere returns the leader that other nodes reported while this node's Raft waits for
// the disk, or nil if Raft itself has reached that term.
func (h *Handover) elsewhere(r *raft.Raft) *knownLeader {
	if k := h.named.Load(); k != nil && k.term > r.CurrentTerm() {
		return k
	}
	return nil
}

// SetCanLead registers the function that reports whether this node is fit to lead. A leader
// that is not, because it is sealed for instance, hands over as soon as a fit node can take
// over.
func (h *Handover) SetCanLead(f func() bool) { h.leadCheck.Store(&f) }

// CanLead reports whether this node is fit to lead.
func (h *Handover) CanLead() bool {
	if h.cfg.Life.Fenced() != nil || poorDisk(h.Disk(), h.cfg.DiskYield) {
		return false
	}
	f := h.leadCheck.Load()
	return f == nil || (*f)()
}

// Disk returns the condition of this node's disk, for other nodes.
func (h *Handover) Disk() *clusterpb.Disk {
	return &clusterpb.Disk{
		Write:  int64(h.cfg.Meter.Typical()),
		Behind: int64(h.cfg.Meter.Behind()),
		Space:  uint32(h.cfg.Space.Level()),
	}
}

// Transfer hands the leadership to the given voter, or to the best placed one if to is empty,
// and returns when this node has stopped leading. Only one transfer runs at a time. It returns
// ErrNoTransfer if that node does not answer, is not fit to lead or is not caught up.
func (h *Handover) Transfer(ctx context.Context, to string) error {
	if !h.Leads() {
		return commit.ErrNotLeader
	}
	end, err := h.cfg.Life.Begin()
	if err != nil {
		return err
	}
	defer end()
	infos := h.cfg.Voters.ReadClocks(ctx, h.cfg.Election)
	if to == "" {
		if to = h.successor(infos, anyNode); to == "" {
			return ErrNoTransfer
		}
	} else if r := infos[to]; r == nil || h.successor(map[string]*clusterpb.ClockResponse{to: r}, onlyFit) == "" {
		return fmt.Errorf("%w: %s is not a voter that is fit to lead", ErrNoTransfer, to)
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
		// The transfer is held until Raft is done with it, even if the caller has stopped
		// waiting: issue 696 is triggered by a second transfer during the first.
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

// Fitter returns the node to which this leader should hand over, or "". It considers this
// leader unfit if CanLead returns false or unfit is set. It is for the leader's goroutine.
func (h *Handover) Fitter(infos map[string]*clusterpb.ClockResponse, unfit bool) string {
	if unfit || !h.CanLead() {
		return h.successor(infos, onlyFit)
	}
	return h.quicker(infos)
}

// StepAside hands the leadership to a node that is fitter to lead.
func (h *Handover) StepAside(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, 2*h.cfg.Election)
	defer cancel()
	h.cfg.Log.Info("handing the leadership over to a node that is better able to lead", "to", to)
	if err := h.transferTo(ctx, to); err != nil {
		h.cfg.Log.Warn("could not hand over the leadership", "to", to, "err", err)
	}
}

// CheckTransfer fences the node if it leads but refuses all entries because of a transfer
// that does not end. The state that causes this is only in Raft's memory, so a restart of
// the process cures it. It is for the leader's goroutine.
func (h *Handover) CheckTransfer() {
	since := h.cfg.Committer.RefusingSince()
	now := h.cfg.Meter.Ran() // a pause of this process must not count
	switch {
	case since.IsZero():
		h.refusing, h.refusingFrom = time.Time{}, 0
	case since != h.refusing:
		h.refusing, h.refusingFrom = since, now
	case now-h.refusingFrom > 5*h.cfg.Election:
		h.cfg.Life.Fence(fmt.Errorf("%w: for %v", ErrTransferStuck, (now - h.refusingFrom).Round(time.Millisecond)))
	}
}
