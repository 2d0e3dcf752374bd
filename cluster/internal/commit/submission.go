package commit

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Submission is a batch, a registration, or nothing but a clock, on its way into an
// entry.
type Submission struct {
	Batch    *Batch
	Register *fsmpb.RegisterNode
	// Registration is Register as its Proposer encoded it, and MAC, by a key of that
	// Generation, what vouches for it or for the batch on the way to the leader.
	Registration []byte
	Generation   uint32
	MAC          []byte
	// Size is about what it adds to an entry, in bytes.
	Size int
	// Answer is called exactly once and must not block.
	Answer func(*clusterpb.SubmitResponse)

	exclusive bool // goes while the Committer is held back
	received  time.Time
}

func (s *Submission) reply(r *clusterpb.SubmitResponse) {
	if s.Batch != nil {
		r.Seq = s.Batch.Seq
	}
	s.Answer(r)
}

// Vouched is what the MAC is over, and the MAC.
func (s *Submission) Vouched() (kind string, encoded []byte, generation uint32, mac []byte) {
	if s.Batch != nil {
		return MACBatch, s.Batch.Encoded, s.Generation, s.MAC
	}
	return MACRegistration, s.Registration, s.Generation, s.MAC
}

// Refuse answers that nothing was taken.
func (s *Submission) Refuse(status clusterpb.SubmitStatus) {
	s.reply(&clusterpb.SubmitResponse{Status: status})
}
