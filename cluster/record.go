package cluster

import (
	"errors"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Limits of one batch. maxRecord keeps an entry with a single record well below
// fsm.MaxEntry.
const (
	maxBatchRecords = 256
	maxRecord       = 512 << 10
	maxBatch        = maxRecord + mergeBytes
)

// Every node stops at an entry that it cannot read in full, so one batch with a
// field or value that this release does not know would stop the whole cluster.
// Such a batch must not enter the log: records are held against fsm's own decoder
// at the origin, and batches on the leader, where they come encoded and stay so.

// batch is an fsmpb.Batch as its bytes, with what has to be known of it.
type batch struct {
	node    string
	seq     uint64
	records int
	encoded []byte
}

// size is about what the batch adds to an entry.
func (b *batch) size() int { return len(b.encoded) + 4 }

// checkBatch holds a batch that came from another node against the limits, and
// its records against the rules.
func checkBatch(encoded []byte) (*batch, error) {
	if len(encoded) > maxBatch {
		return nil, fmt.Errorf("%w: batch of %d bytes", ErrRecord, len(encoded))
	}
	head, err := fsm.ReadBatch(encoded, maxBatchRecords)
	if err == nil && head.Seq == 0 {
		err = errors.New("a batch without a number")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return &batch{node: head.Node, seq: head.Seq, records: head.Records, encoded: encoded}, nil
}

// encodeRecord encodes a record, and refuses one that must not enter the log.
func encodeRecord(r *fsmpb.Record) ([]byte, error) {
	if r == nil || slices.Contains(r.Reads, nil) || slices.Contains(r.Changes, nil) || slices.Contains(r.Uses, nil) {
		return nil, fmt.Errorf("%w: empty", ErrRecord)
	}
	encoded, err := fsm.EncodeRecord(r)
	if err == nil {
		err = fsm.CheckRecord(encoded)
	}
	if n := len(encoded) + 4; err == nil && n > maxRecord {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return encoded, nil
}

// checkRegistration holds another node's registration against the limits.
func checkRegistration(n *fsmpb.RegisterNode) error {
	for _, s := range []string{n.PeerAddress, n.AwsAddress, n.GrpcAddress, n.Release} {
		if len(s) > 512 {
			return fmt.Errorf("%w: registration too long", ErrRecord)
		}
	}
	if err := fsm.CheckRegistration(n); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return nil
}
