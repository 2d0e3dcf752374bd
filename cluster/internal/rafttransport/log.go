package rafttransport

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// keptLog is Raft's log, protected against the removal of entries that must be kept. Raft
// removes whatever differs from the leader's log, even if it was committed and applied: it
// assumes that a majority never elects a leader that lacks committed entries.
type keptLog struct {
	raft.LogStore
	door *door
}

// KeepLog wraps Raft's log so that no leader can remove entries that must be kept.
func (t *Transport) KeepLog(log raft.LogStore) raft.LogStore { return keptLog{log, t.door} }

// ErrTruncate is returned when a part of the log must not be removed.
var ErrTruncate = errors.New("the log is not truncated")

// DeleteRange implements raft.LogStore. Compaction never removes the newest entry, so a
// range that ends there is a truncation.
func (l keptLog) DeleteRange(first, last uint64) error {
	newest, err := l.LastIndex()
	if err != nil {
		return err
	}
	if last == newest {
		if err := l.door.mayTruncate(l.LogStore, first, last); err != nil {
			return err
		}
	}
	if err := l.LogStore.DeleteRange(first, last); err != nil {
		return err
	}
	if last == newest {
		l.door.History.Truncate(first)
	}
	return nil
}

// mayTruncate decides whether the entries from first to last may be removed because the
// leader does not have them. Committed entries never may: such a leader shows that this
// node's copy, or the leader itself, is wrong. A command that this node does not know to be
// committed may have been committed all the same, acknowledged just before a power cut,
// with the only other copy on the disk of the old leader. A leader that might be a thief
// must not remove it, so the node waits for a leader that is known to be unsealed.
func (d *door) mayTruncate(log raft.LogStore, first, last uint64) error {
	r := d.node.Raft()
	if r == nil || !d.initialised() {
		return nil
	}
	_, id := r.LeaderWithID()
	leader := string(id)
	proven := d.Standings.Proven(leader, time.Now()) && !d.Standings.Pending(leader)
	if applied := max(d.node.Applied(), r.CommitIndex()); first <= applied {
		err := fmt.Errorf("%w: %s has no entry %d, which is committed up to %d here", ErrTruncate, leader, first, applied)
		if proven {
			d.node.Fence(err)
		} else {
			d.node.CutOff(standing.Sender{Node: leader}, err.Error())
		}
		return err
	}
	if proven {
		return nil
	}
	for i := first; i <= last; i++ {
		var entry raft.Log
		if err := log.GetLog(i, &entry); err != nil {
			return err
		}
		if entry.Type == raft.LogCommand {
			err := fmt.Errorf("%w from index %d on before the leader %s, or another, is unsealed", ErrTruncate, first, leader)
			d.Log.Warn("this node's log has entries that the leader does not have", "leader", leader, "err", err)
			return err
		}
	}
	return nil
}
