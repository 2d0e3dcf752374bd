package leadership

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// ReadIndex returns, on the leader, an index; a state of that index contains everything
// that was committed before the call. On other nodes it returns commit.ErrNotLeader.
//
// An entry that was acknowledged before the call was applied by the leader that
// acknowledged it. That is this leader, or an earlier one, in which case the entry was
// committed before the first barrier of this term. So the state of a leader that is past
// this barrier contains the entry, provided that no other node led in the meantime. That is
// certain if a majority confirms the leader after its index was read and the term has not
// changed.
func (t *Terms) ReadIndex(ctx context.Context) (uint64, error) {
	term := t.readTerm.Load()
	r := t.cfg.Raft()
	if term == 0 || r == nil || t.cfg.Life.Usable() != nil || r.CurrentTerm() != term {
		return 0, commit.ErrNotLeader
	}
	index := t.cfg.Applied()
	if err := t.cfg.RaftEnd.Await(ctx, r.VerifyLeader()); err != nil {
		return 0, fmt.Errorf("%w: %w", commit.ErrNotLeader, err)
	}
	if r.CurrentTerm() != term {
		return 0, commit.ErrNotLeader
	}
	return index, nil
}
