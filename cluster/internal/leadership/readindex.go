package leadership

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// ReadIndex is an index that a state must reach to have what was committed before, on the
// leader; commit.ErrNotLeader on others. What anybody was told is committed was
// applied by the leader that told it: by this one, or by an earlier one, and then
// it was committed before this term's first barrier. So the state of a leader past
// that barrier has all of it, provided that nobody else led meanwhile: a majority
// says so after the state was read, and the term has not changed.
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
