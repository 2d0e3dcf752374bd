package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// rollingHash computes the state hash. The hash after an entry covers the hash before it
// and everything that the entry changed.
type rollingHash struct {
	sum      hash.Hash
	num, buf []byte // reused, as there are many
}

func newRollingHash() rollingHash { return rollingHash{sum: sha256.New()} }

// begin starts the hash after an entry with the one before it.
func (r *rollingHash) begin(before [sha256.Size]byte) {
	r.sum.Reset()
	r.bytes(before[:])
}

// end sets h to the hash after the entry.
func (r *rollingHash) end(h *[sha256.Size]byte) { r.sum.Sum(h[:0]) }

func (r *rollingHash) numbers(ns ...uint64) {
	for _, n := range ns {
		r.num = binary.BigEndian.AppendUint64(r.num[:0], n)
		r.bytes(r.num)
	}
}

func (r *rollingHash) bytes(b []byte) { r.sum.Write(b) }

// object adds a changed object; msg is nil for one that was removed.
func (r *rollingHash) object(kind fsmpb.Kind, id []byte, msg proto.Message) {
	b := append(r.buf[:0], byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
	b = append(b, id...)
	if msg != nil {
		b = wire.Marshal(b, msg)
	}
	r.buf = b[:0]
	r.numbers(uint64(len(b)))
	r.bytes(b)
}
