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
	// MaxBatch is the maximum size of a batch in bytes.
	MaxBatch = maxRecord + mergeBytes
)

// Every node stops at an entry that it cannot decode in full, so one batch with a field or
// value that is unknown to this release would stop the whole cluster. Such a batch must not
// enter the log. Records are therefore checked with fsm's own decoder where they are
// proposed, and batches on the leader, where they arrive encoded and remain so.

// Batch is an encoded fsmpb.Batch with the values that have to be known about it.
type Batch struct {
	Node    string
	Seq     uint64
	Records int
	Encoded []byte
	wire.Levels
}

// Size returns the approximate number of bytes that the batch adds to an entry.
func (b *Batch) Size() int { return len(b.Encoded) + 4 }

// CheckBatch checks the limits of a batch of another node and the validity of its records.
func CheckBatch(encoded []byte) (*Batch, error) {
	if len(encoded) > MaxBatch {
		return nil, fmt.Errorf("%w: batch of %d bytes", ErrRecord, len(encoded))
	}
	head, err := wire.ReadBatch(encoded, MaxBatchRecords)
	if err == nil && head.Seq == 0 {
		err = errors.New("a batch has no number")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return &Batch{Node: head.Node, Seq: head.Seq, Records: head.Records, Encoded: encoded, Levels: head.Levels}, nil
}

// encodeRecord encodes a record. It refuses one that must not enter the log.
func encodeRecord(r *fsmpb.Record) ([]byte, wire.Levels, error) {
	if r == nil || slices.Contains(r.Reads, nil) || slices.Contains(r.Changes, nil) || slices.Contains(r.Uses, nil) {
		return nil, wire.Levels{}, fmt.Errorf("%w: empty", ErrRecord)
	}
	var levels wire.Levels
	encoded, err := wire.EncodeRecord(r)
	if err == nil {
		levels, err = wire.CheckRecord(encoded)
	}
	if n := len(encoded) + 4; err == nil && n > maxRecord {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return nil, wire.Levels{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return encoded, levels, nil
}

// CheckRegistration checks the limits of another node's registration.
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
