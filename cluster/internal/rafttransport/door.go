package rafttransport

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// door checks the requests of other nodes before this node's Raft gets them, and the
// answers of other nodes. Raft believes any leader, term and id, whatever node sends them,
// and anyone with a node's identity can send them. What is stored and committed cannot be
// undone: one entry that the state machine cannot read would stop every node, and one
// configuration could remove the honest nodes from the cluster.
type door struct {
	Config
	node Node
}

// initialised reports whether the cluster is initialised. From then on nodes need proof to
// be believed.
func (d *door) initialised() bool { return d.node.Cluster() != nil }

var (
	// errEntry is returned for an entry that this node does not accept into its log.
	errEntry = errors.New("entry refused")
	// errSender is returned for a request in another node's name.
	errSender = errors.New("request carries the id of another node")
	// errTerm is returned for a term that this node does not accept.
	errTerm = errors.New("term refused")
	// errInstalled is returned for a snapshot that this node already has. The leader sends
	// one if the answer to it was lost, and continues only once it is told of success.
	errInstalled = errors.New("the snapshot is installed")
	// errCutOff is returned to a node that is cut off.
	errCutOff = errors.New("refused for what it sent")
)

// maxTermStep bounds how far one message may move the term: no leader could ever be elected
// again after the largest number.
const maxTermStep = 1 << 24

// request checks a request of another node's Raft. proven is whether the other end of the
// connection proved that it is unsealed.
func (d *door) request(from string, proven bool, command any) error {
	if err := cmp.Or(d.isMember(from), d.notImpostor(from, proven)); err != nil {
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
		// An honest leader that is being replaced may send entries that it received from
		// its successor.
		if last := len(r.Entries) - 1; last >= 0 && r.Entries[last].Term > r.Term {
			return fmt.Errorf("%w: index %d of term %d in term %d", errTerm, r.Entries[last].Index, r.Entries[last].Term, r.Term)
		}
		if err := d.checkEntries(r); errors.Is(err, errNotYet) {
			return err
		} else if err != nil {
			d.node.CutOff(standing.Sender{Node: from, Proven: proven}, err.Error())
			return err
		}
		d.continueSnapshot(r)
	case *raft.InstallSnapshotRequest:
		term = r.Term
		if installed = d.checkInstall(from, proven, r); installed != nil && !errors.Is(installed, errInstalled) {
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
	// The node may have become known to be unsealed in the meantime.
	return cmp.Or(d.notImpostor(from, proven), installed)
}

// isMember refuses a node that was removed while its connection was open.
func (d *door) isMember(node string) error {
	if d.node.IsMember(node) {
		return nil
	}
	return fmt.Errorf("%s: %w", node, peerport.ErrNotMember)
}

// term refuses an answer with a newer term than that of the request, if the node may not
// make this one step down.
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
// unsealed node believes only unsealed nodes.
func (d *door) believed(node string) bool {
	return !d.initialised() || !d.node.Unsealed() || d.Standings.Proven(node, time.Now())
}

// routine reports whether a heartbeat changes nothing except when the leader was last heard
// from. Raft handles heartbeats on the goroutine of the connection. There, a heartbeat with
// a newer term turns a leader into a follower while its main goroutine, which still acts as
// leader, stores entries under the new term: an entry with the same index and term as a
// different one of the new leader, which Raft takes for the same. So a heartbeat that is
// not routine waits for Raft's main goroutine.
func (d *door) routine(command any) bool {
	r := d.node.Raft()
	h, ok := command.(*raft.AppendEntriesRequest)
	return r != nil && ok && r.State() == raft.Follower && h.Term == r.CurrentTerm()
}

// storing reports whether a node's acknowledgements that it has stored entries count.
func (d *door) storing(node string) bool {
	return !d.initialised() || d.Standings.Counts(node, d.node.Self(), time.Now())
}

// vote reports whether a node's vote counts. If it would not, the node is asked again,
// because it may have been unsealed since it was last asked, and elections are rare.
func (d *door) vote(node string) bool {
	if d.storing(node) {
		return true
	}
	d.node.AskAgain(node)
	return d.storing(node)
}

var errUnproven = errors.New("not known to be unsealed, while a node that is could lead")

// mayLead refuses to follow, or to vote for, a node without proof.
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

// committed returns the index up to which this node believes a leader that entries are
// committed, since it cannot undo what it applies. A leader without proof is believed while
// all nodes are sealed: they have to apply the log before one of them can be unsealed.
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

// currentTerm returns the current term of this node's Raft.
func (d *door) currentTerm() uint64 {
	if r := d.node.Raft(); r != nil {
		return r.CurrentTerm()
	}
	return 0
}

// checkSender checks that the header of a request names the node at the other end of the
// connection.
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

// checkEntries checks a leader's entries. Every node must be able to apply them, and only an
// unsealed leader may change the configuration.
func (d *door) checkEntries(r *raft.AppendEntriesRequest) error {
	for i, l := range r.Entries {
		if l.Index != r.PrevLogEntry+1+uint64(i) { // Raft would store the gap
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
			if err := d.checkConfiguration(l); err != nil {
				return fmt.Errorf("%w: index %d: %w", errEntry, l.Index, err)
			}
		case raft.LogNoop, raft.LogBarrier:
		default:
			return fmt.Errorf("%w: index %d: entry of type %d", errEntry, l.Index, l.Type)
		}
	}
	return nil
}

// continueSnapshot lets Raft accept entries that continue where this node's snapshot ends.
// Raft looks for the entry before them in its log. If the log begins after the snapshot, as on
// a node that received it or was restored from a backup, Raft finds the entry only while it
// has no later one. So a leader that did not get the answer to its first entries could never
// send them again: it would send the snapshot, which the node has, and then the same entries,
// until there is another snapshot or another leader (hashicorp/raft issue 205). An entry that
// is in an applied snapshot is committed, so the logs agree up to it if the leader has the
// same term there. Without a previous entry in the request, Raft compares only those that follow.
func (d *door) continueSnapshot(r *raft.AppendEntriesRequest) {
	index, term := d.node.SnapshotEnd()
	if index > 0 && r.PrevLogEntry == index && r.PrevLogTerm == term && d.node.Applied() >= index {
		r.PrevLogEntry, r.PrevLogTerm = 0, 0
	}
}

// checkInstall refuses a snapshot that is older than this node's state, with errInstalled,
// or that has another configuration and no known origin. Its content is checked once it has been read.
func (d *door) checkInstall(from string, proven bool, r *raft.InstallSnapshotRequest) error {
	if have := d.node.Applied(); r.LastLogIndex <= have {
		return fmt.Errorf("%w: it is up to index %d, and this node has %d", errInstalled, r.LastLogIndex, have)
	}
	if r.SnapshotVersion < 1 {
		return fmt.Errorf("%w: a snapshot of version %d", errEntry, r.SnapshotVersion)
	}
	if err := d.checkSnapshotConfiguration(from, proven, r.Configuration); err != nil {
		return fmt.Errorf("%w: snapshot: %w", errEntry, err)
	}
	return nil
}
