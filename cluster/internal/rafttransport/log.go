package rafttransport

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// keptLog is Raft's log, from which no leader takes back what counts. Raft clears
// whatever differs from the leader's log, also what was committed and applied: it
// relies on a majority having elected nobody who lacks it.
type keptLog struct {
	raft.LogStore
	door *door
}

// KeepLog is a log for Raft from which no leader takes back what counts.
func (t *Transport) KeepLog(log raft.LogStore) raft.LogStore { return keptLog{log, t.door} }

// ErrTruncate is a part of the log that this node does not give up.
var ErrTruncate = errors.New("the log is not cut back")

// DeleteRange implements raft.LogStore. Compaction never takes the newest entry, so
// what ends there is a truncation.
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
	return l.LogStore.DeleteRange(first, last)
}

// mayTruncate decides whether the leader may have entries cleared here. Committed
// ones never: that such a leader is there says that this node's copy or the leader
// is not what it should be. A command that this node does not know to be committed
// may be all the same, acknowledged a moment before the power went, with its only
// other copy on the disk of the leader; so one that might be a thief must not take
// it away. It waits for a leader that is unsealed.
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
