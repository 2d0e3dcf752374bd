package commit

import (
	"errors"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Limits of one batch. maxRecord keeps an entry with a single record well below
// wire.MaxEntry.
const (
	MaxBatchRecords = 256
	maxRecord       = 512 << 10
	// MaxBatch is how many bytes a batch has at the most.
	MaxBatch = maxRecord + mergeBytes
)

// Every node stops at an entry that it cannot read in full, so one batch with a
// field or value that this release does not know would stop the whole cluster.
// Such a batch must not enter the log: records are held against fsm's own decoder
// where they are proposed, and batches on the leader, where they come encoded and stay so.

// Batch is an fsmpb.Batch as its bytes, with what has to be known of it.
type Batch struct {
	Node    string
	Seq     uint64
	Records int
	Encoded []byte
}

// Size is about what the batch adds to an entry.
func (b *Batch) Size() int { return len(b.Encoded) + 4 }

// CheckBatch holds a batch that came from another node against the limits, and its
// records against the rules.
func CheckBatch(encoded []byte) (*Batch, error) {
	if len(encoded) > MaxBatch {
		return nil, fmt.Errorf("%w: batch of %d bytes", ErrRecord, len(encoded))
	}
	head, err := wire.ReadBatch(encoded, MaxBatchRecords)
	if err == nil && head.Seq == 0 {
		err = errors.New("a batch without a number")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return &Batch{Node: head.Node, Seq: head.Seq, Records: head.Records, Encoded: encoded}, nil
}

// encodeRecord encodes a record, and refuses one that must not enter the log.
func encodeRecord(r *fsmpb.Record) ([]byte, error) {
	if r == nil || slices.Contains(r.Reads, nil) || slices.Contains(r.Changes, nil) || slices.Contains(r.Uses, nil) {
		return nil, fmt.Errorf("%w: empty", ErrRecord)
	}
	encoded, err := wire.EncodeRecord(r)
	if err == nil {
		err = wire.CheckRecord(encoded)
	}
	if n := len(encoded) + 4; err == nil && n > maxRecord {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return encoded, nil
}

// CheckRegistration holds another node's registration against the limits.
func CheckRegistration(n *fsmpb.RegisterNode) error {
	for _, s := range []string{n.PeerAddress, n.AwsAddress, n.GrpcAddress, n.Release} {
		if len(s) > 512 {
			return fmt.Errorf("%w: registration too long", ErrRecord)
		}
	}
	if err := wire.CheckRegistration(n); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return nil
}
