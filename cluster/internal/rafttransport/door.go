package rafttransport

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// door looks at what other nodes' Rafts ask of this node's before it gets there,
// and at what they answer. Raft believes a leader, a term and an id whoever sends
// them, and anybody with a node's identity can. What is stored and committed cannot
// be taken back: one entry that the state machine cannot read would stop every
// node, and one configuration could turn the honest nodes out.
type door struct {
	Config
	node Node
}

// initialised reports whether there is a cluster: from then on nobody is believed
// without proof.
func (d *door) initialised() bool { return d.node.Cluster() != nil }

var (
	// errEntry is an entry that this node does not let into its log.
	errEntry = errors.New("entry refused")
	// errSender is a request in another node's name.
	errSender = errors.New("request in the name of another node")
	// errTerm is a term that this node does not follow.
	errTerm = errors.New("term refused")
	// errInstalled is a snapshot of what this node has already. The leader sends one when
	// the answer to it was lost, and goes on from there only when it is told of success.
	errInstalled = errors.New("the snapshot is installed")
	// errCutOff is what a node is told that sent a forgery.
	errCutOff = errors.New("refused for what it sent")
)

// maxTermStep bounds how far one message may move the term: at the end of the
// numbers there would never be a leader again.
const maxTermStep = 1 << 24

// request refuses what a node's Raft asks, over a connection whose other end proved
// itself or not.
func (d *door) request(from string, proven bool, command any) error {
	if err := d.notImpostor(from, proven); err != nil {
		return err
	}
	if d.CutOffs.Has(standing.Sender{Node: from, Proven: proven}, time.Now()) {
		return errCutOff
	}
	h, ok := command.(raft.WithRPCHeader)
	if !ok {
		return fmt.Errorf("%w: %T", errEntry, command)
	}
	if err := d.checkSender(from, h.GetRPCHeader()); err != nil {
		d.node.CutOff(standing.Sender{Node: from, Proven: proven}, err.Error())
		return err
	}
	var term uint64
	var installed error
	switch r := command.(type) {
	case *raft.AppendEntriesRequest:
		term = r.Term
		r.LeaderCommitIndex = d.committed(from, r.LeaderCommitIndex)
		// An honest leader that is just being replaced may send what it got from the
		// next one.
		if last := len(r.Entries) - 1; last >= 0 && r.Entries[last].Term > r.Term {
			return fmt.Errorf("%w: index %d of term %d in term %d", errTerm, r.Entries[last].Index, r.Entries[last].Term, r.Term)
		}
		if err := d.checkEntries(r); err != nil {
			d.node.CutOff(standing.Sender{Node: from, Proven: proven}, err.Error())
			return err
		}
	case *raft.InstallSnapshotRequest:
		term = r.Term
		if installed = d.checkInstall(r); installed != nil && !errors.Is(installed, errInstalled) {
			return installed
		}
	case *raft.RequestVoteRequest:
		term = r.Term
	case *raft.RequestPreVoteRequest:
		term = r.Term
	case *raft.TimeoutNowRequest:
		if leader := d.node.Leader(); leader != from {
			return fmt.Errorf("%w: %s does not lead", errSender, from)
		}
	default:
		return fmt.Errorf("%w: %T", errEntry, command)
	}
	if now := d.currentTerm(); term > now && term-now > maxTermStep {
		return fmt.Errorf("%w: %d after %d", errTerm, term, now)
	}
	if err := d.mayLead(from); err != nil {
		return err
	}
	// What let it pass may have been learned meanwhile.
	return cmp.Or(d.notImpostor(from, proven), installed)
}

// term refuses an answer that names a newer term than the request, from a node that
// may not make this one step down.
func (d *door) term(from string, asked, told uint64) error {
	switch {
	case told <= asked:
		return nil
	case told-asked > maxTermStep:
		return fmt.Errorf("%w: %s says %d after %d", errTerm, from, told, asked)
	case d.believed(from), d.Standings.MayDepose(from, time.Now()):
		return nil
	}
	return fmt.Errorf("%w: %s says %d, and is not known to be unsealed", errTerm, from, told)
}

// believed reports whether a node may tell this one of a newer term at any time. An
// unsealed node believes unsealed nodes.
func (d *door) believed(node string) bool {
	return !d.initialised() || !d.node.Unsealed() || d.Standings.Proven(node, time.Now())
}

// routine reports whether a heartbeat changes nothing but when the leader was heard.
// Raft takes heartbeats on the goroutine of the connection. One with a newer term
// makes a leader a follower there while its own goroutine, which still believes to
// lead, stores what was applied under the new term: an entry at an index and in a
// term in which the new leader has another one, which Raft takes for the same. So
// whatever is not routine waits for Raft's own goroutine.
func (d *door) routine(command any) bool {
	r := d.node.Raft()
	h, ok := command.(*raft.AppendEntriesRequest)
	return r != nil && ok && r.State() == raft.Follower && h.Term == r.CurrentTerm()
}

// storing reports whether a node's word that it has stored something counts here.
func (d *door) storing(node string) bool {
	return !d.initialised() || d.Standings.Counts(node, d.node.Self(), time.Now())
}

// vote reports whether a node's vote counts here. A node may have been unsealed since
// it was asked last, and elections are rare, so it is asked again.
func (d *door) vote(node string) bool {
	if d.storing(node) {
		return true
	}
	d.node.AskAgain(node)
	return d.storing(node)
}

var errUnproven = errors.New("not known to be unsealed, while a node that is could lead")

// mayLead refuses to follow or to vote for a node without proof.
func (d *door) mayLead(from string) error {
	if !d.initialised() || d.Standings.Proven(from, time.Now()) {
		return nil
	}
	if d.Standings.MayLead(from, d.node.Leader(), d.node.Self(), time.Now()) {
		return nil
	}
	d.Unproven.WithLabelValues(from).Inc()
	return fmt.Errorf("%s is %w", from, errUnproven)
}

// committed is how far this node believes a leader that entries are committed. What
// it applies it cannot take back. Without proof a leader is believed while all nodes
// are sealed: they have to apply the log before one can be unsealed.
func (d *door) committed(leader string, index uint64) uint64 {
	now := time.Now()
	if !d.initialised() || d.Standings.Proven(leader, now) || !d.node.Unsealed() && !d.Standings.UnsealedOther(leader, d.node.Self(), now) {
		return index
	}
	if r := d.node.Raft(); r != nil {
		return min(index, r.CommitIndex())
	}
	return 0
}

// currentTerm is Raft's newest term here.
func (d *door) currentTerm() uint64 {
	if r := d.node.Raft(); r != nil {
		return r.CurrentTerm()
	}
	return 0
}

// checkSender holds the header of a request against whose connection it came over.
func (d *door) checkSender(from string, h raft.RPCHeader) error {
	if string(h.ID) != from || len(h.Addr) == 0 {
		return fmt.Errorf("%w: %q at %q", errSender, h.ID, h.Addr)
	}
	// A node's own address may have changed since the configuration was written.
	if node, ok := d.node.NodeAt(string(h.Addr)); ok && node != from {
		return fmt.Errorf("%w: at the address of %s", errSender, node)
	}
	return nil
}

// checkEntries holds a leader's entries against what every node must be able to
// apply, and its configurations against the one in force: there are no changes of
// membership yet, so the only configuration that may come is the one that the
// cluster was bootstrapped with.
func (d *door) checkEntries(r *raft.AppendEntriesRequest) error {
	for i, l := range r.Entries {
		if l.Index != r.PrevLogEntry+1+uint64(i) { // Raft would store a gap
			return fmt.Errorf("%w: index %d after %d", errEntry, l.Index, r.PrevLogEntry+uint64(i))
		}
		if l.Term > r.Term {
			return fmt.Errorf("%w: index %d of term %d before one of an earlier term", errEntry, l.Index, l.Term)
		}
		switch l.Type {
		case raft.LogCommand:
			if err := d.node.CheckEntry(l.Data); err != nil {
				return fmt.Errorf("%w: index %d: %w", errEntry, l.Index, err)
			}
		case raft.LogConfiguration:
			if err := d.checkConfiguration(l.Data); err != nil {
				return fmt.Errorf("%w: index %d: %w", errEntry, l.Index, err)
			}
		case raft.LogNoop, raft.LogBarrier:
		default:
			return fmt.Errorf("%w: index %d: entry of type %d", errEntry, l.Index, l.Type)
		}
	}
	return nil
}

// checkInstall refuses a snapshot that would take this node back, with errInstalled, or
// into another configuration. Whether its content is the cluster's is seen when it was read.
func (d *door) checkInstall(r *raft.InstallSnapshotRequest) error {
	if have := d.node.Applied(); r.LastLogIndex <= have {
		return fmt.Errorf("%w: it is up to index %d, and this node has %d", errInstalled, r.LastLogIndex, have)
	}
	if r.SnapshotVersion < 1 {
		return fmt.Errorf("%w: a snapshot of version %d", errEntry, r.SnapshotVersion)
	}
	if err := d.checkConfiguration(r.Configuration); err != nil {
		return fmt.Errorf("%w: snapshot: %w", errEntry, err)
	}
	return nil
}

// checkConfiguration refuses a configuration other than the one in force. A node
// that has none yet takes the first.
func (d *door) checkConfiguration(data []byte) (err error) {
	defer func() {
		if p := recover(); p != nil { // Raft's decoder panics
			err = fmt.Errorf("configuration that cannot be read: %v", p)
		}
	}()
	next := raft.DecodeConfiguration(data).Servers
	now := d.node.Configuration().Servers
	if len(now) == 0 {
		return nil
	}
	if !slices.Equal(next, now) {
		return fmt.Errorf("configuration of %d servers that nobody asked for", len(next))
	}
	return nil
}
