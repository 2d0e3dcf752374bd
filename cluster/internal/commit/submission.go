package commit

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Submission is a batch, a registration, or just a clock, that is to become part of an
// entry.
type Submission struct {
	Batch    *Batch
	Register *fsmpb.RegisterNode
	// Registration is Register as its Proposer encoded it. MAC authenticates it, or the
	// batch, to the leader, with a key of that Generation.
	Registration []byte
	Generation   uint32
	MAC          []byte
	// Size is the approximate number of bytes that the submission adds to an entry.
	Size int
	// Answer is called exactly once and must not block.
	Answer func(*clusterpb.SubmitResponse)

	exclusive bool // it is accepted while the Committer is held
	received  time.Time
}

func (s *Submission) reply(r *clusterpb.SubmitResponse) {
	if s.Batch != nil {
		r.Seq = s.Batch.Seq
	}
	s.Answer(r)
}

// Vouched returns the data that the MAC authenticates, and the MAC.
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
