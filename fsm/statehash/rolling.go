// Package statehash is how nodes notice that their states differ: a hash of everything
// that was applied, and the comparison of such hashes between nodes.
package statehash

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Sum is a state hash. That of no entries is zero.
type Sum = [sha256.Size]byte

// Rolling computes the state hash. The hash after an entry covers the hash before it and
// everything that the entry changed. A Rolling is used for one entry after the other.
type Rolling struct {
	sum      hash.Hash
	num, buf []byte // reused, as there are many
}

// NewRolling returns a Rolling, which Begin has to be called on first.
func NewRolling() Rolling { return Rolling{sum: sha256.New()} }

// Begin starts the hash after an entry with the one before it.
func (r *Rolling) Begin(before Sum) {
	r.sum.Reset()
	r.Bytes(before[:])
}

// End sets h to the hash after the entry.
func (r *Rolling) End(h *Sum) { r.sum.Sum(h[:0]) }

// Numbers adds numbers.
func (r *Rolling) Numbers(ns ...uint64) {
	for _, n := range ns {
		r.num = binary.BigEndian.AppendUint64(r.num[:0], n)
		r.Bytes(r.num)
	}
}

// Bytes adds bytes, of which the length is known or was added.
func (r *Rolling) Bytes(b []byte) { r.sum.Write(b) }

// Object adds a changed object; msg is nil for one that was removed.
func (r *Rolling) Object(kind fsmpb.Kind, id []byte, msg proto.Message) {
	b := append(r.buf[:0], byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
	b = append(b, id...)
	if msg != nil {
		b = wire.Marshal(b, msg)
	}
	r.buf = b[:0]
	r.Numbers(uint64(len(b)))
	r.Bytes(b)
}
