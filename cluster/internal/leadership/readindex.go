package leadership

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// ReadIndex returns, on the leader, an index; a state of that index contains everything
// that was committed before the call. On other nodes it returns commit.ErrNotLeader.
//
// An entry that was acknowledged before the call was applied by the leader that
// acknowledged it. That is this leader, or an earlier one, in which case the entry was
// committed before the first barrier of this term. So the state of a leader that is past
// this barrier contains the entry, provided that no other node led in the meantime. That is
// certain if, in answer to a question asked after the index was read, a majority is still in
// the term of this leader.
func (t *Terms) ReadIndex(ctx context.Context) (uint64, error) {
	term := t.readTerm.Load()
	r := t.cfg.Raft()
	if term == 0 || r == nil || t.cfg.Life.Usable() != nil || r.CurrentTerm() != term {
		return 0, commit.ErrNotLeader
	}
	index := t.cfg.Applied()
	// VerifyLeader has heartbeats sent at once and waits for answers, but may take an answer
	// to an earlier request for one of them. The next call then waits for the rest.
	for mark := t.cfg.Rounds().Mark(); ; {
		if err := t.cfg.RaftEnd.Await(ctx, r.VerifyLeader()); err != nil {
			return 0, fmt.Errorf("%w: %w", commit.ErrNotLeader, err)
		}
		if r.CurrentTerm() != term {
			return 0, commit.ErrNotLeader
		}
		if t.confirmed(r, mark, term) {
			return index, nil
		}
	}
}

// confirmed reports whether a majority of the voters, this one included, was in the given
// term after mark.
func (t *Terms) confirmed(r *raft.Raft, mark, term uint64) bool {
	voters, in := 0, 0
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == t.cfg.ID || t.cfg.Rounds().Confirmed(s.ID, mark, term) {
			in++
		}
	}
	return in > voters/2
}
