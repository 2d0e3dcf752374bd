package bootstrap

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
)

// survey reads what the part of the log that has not been applied contains about other
// nodes. A starting node has applied only its snapshot. When it is asked about another
// node, its answer must include the log entries after the snapshot.
type survey struct {
	from, to uint64
	done     chan struct{}
	nodes    map[string]sighting // each node that registered or sent a batch
	bytes    int64
	// cluster is the cluster's record in the snapshot or in the log; nil before the cluster
	// is initialised.
	cluster *fsmpb.Cluster
}

// sighting is what a log contains about a node.
type sighting struct {
	incarnation uint64 // the newest
	watermark   uint64 // the highest
}

// run reads the log. Once the cluster is initialised, entries that were not signed by an
// unsealed leader are ignored, because any leader may have written them.
func (s *survey) run(ctx context.Context, st *raftlog.Store) {
	defer close(s.done)
	initialised := s.from // no entry before this index could be signed
	entries := func(from, to uint64, f func(uint64, []byte)) bool {
		for i := from; i <= to && ctx.Err() == nil; i++ {
			var l raft.Log
			if err := st.GetLog(i, &l); err != nil {
				if errors.Is(err, raft.ErrLogNotFound) {
					continue // the entry is covered by an installed snapshot
				}
				return false // the store has reported it
			}
			if l.Type == raft.LogCommand {
				f(i, l.Data)
			} else {
				s.bytes += int64(len(l.Data))
			}
		}
		return ctx.Err() == nil
	}
	if !entries(s.from, s.to, func(i uint64, b []byte) {
		s.bytes += int64(len(b))
		if s.cluster == nil {
			surveyEntry(b, s.nodes)
			s.cluster, initialised = fsm.EntryInitialises(b), i+1
		}
	}) {
		return
	}
	// The newest entries come first: they have the highest values, so that the signatures
	// of most others need not be verified.
	for i := s.to; s.cluster != nil && i >= max(initialised, 1); i-- {
		if !entries(i, i, func(_ uint64, b []byte) {
			seen := make(map[string]sighting)
			surveyEntry(b, seen)
			for node, is := range seen {
				if was := s.nodes[node]; (is.incarnation > was.incarnation || is.watermark > was.watermark) && origin.EntrySigned(s.cluster, b) {
					s.nodes[node] = sighting{max(was.incarnation, is.incarnation), max(was.watermark, is.watermark)}
				}
			}
		}) {
			return
		}
	}
	st.AdjustAppended(s.bytes)
}

// Field numbers of fsm.proto that the survey reads without decoding records.
const (
	entryBatches, entryRegister = 10, 11
	batchesBatch                = 1
	batchWatermark              = 5
	registerWatermark           = 9
	// Fields of both messages.
	nodeName, nodeIncarnation = 1, 2
)

// surveyEntry records the nodes in one entry. Malformed bytes are ignored: the state
// machine will stop at them.
func surveyEntry(b []byte, nodes map[string]sighting) {
	fields(b, func(num protowire.Number, v []byte, _ uint64) {
		switch num {
		case entryBatches:
			fields(v, func(num protowire.Number, v []byte, _ uint64) {
				if num == batchesBatch {
					note(v, batchWatermark, nodes)
				}
			})
		case entryRegister:
			note(v, registerWatermark, nodes)
		}
	})
}

func note(b []byte, watermark protowire.Number, nodes map[string]sighting) {
	var node string
	var seen sighting
	fields(b, func(num protowire.Number, v []byte, n uint64) {
		switch num {
		case nodeName:
			node = string(v)
		case nodeIncarnation:
			seen.incarnation = n
		case watermark:
			seen.watermark = n
		}
	})
	if node != "" {
		before := nodes[node]
		nodes[node] = sighting{max(before.incarnation, seen.incarnation), max(before.watermark, seen.watermark)}
	}
}

func fields(b []byte, f func(num protowire.Number, bytes []byte, n uint64)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			f(num, v, 0)
			b = b[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return
			}
			f(num, nil, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return
			}
			b = b[n:]
		}
	}
}
