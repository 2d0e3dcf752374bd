package auditlog

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// HashSize is the size of every hash in the tree: SHA-256.
const HashSize = sha256.Size

// Hash is a node of the Merkle tree (RFC 6962 section 2.1).
type Hash [HashSize]byte

// MaxBody is the length of the longest encrypted record that an entry may
// carry. A record has at most 65,535 bytes in the clear; encryption adds a
// nonce and a tag.
const MaxBody = layout.MaxBody

// leafFormat is the first byte of every leaf and names its layout.
const leafFormat = 1

// leafSize is the length of Leaf's encoding in format 1.
const leafSize = 1 + 8 + 8 + 8 + 16 + 4 + 16 + HashSize + HashSize

// Entry is one record of the audit log as all nodes, including sealed ones,
// store it: the part in the clear that orders and proves it, and the encrypted
// body, which can be read only with the keyring. Entries are byte-identical on
// all nodes.
type Entry struct {
	Index      uint64   // position in the log, from 0
	RaftIndex  uint64   // the Raft log entry that accepted it
	Time       int64    // cluster time at that entry, Unix nanoseconds
	RequestID  [16]byte // the id the caller was given
	Generation uint32   // keyring generation whose audit key encrypted the body
	Salt       [16]byte // from which the body's key is derived, within that generation
	Commitment Hash     // SHA-256 commitment to the record in the clear
	Body       []byte   // the encrypted record: nonce, ciphertext, tag
}

// AppendLeaf appends the leaf of e, which the tree hashes. The leaf contains
// the hash of the body rather than the body, so that a body could be erased one
// day without breaking the tree.
func (e *Entry) AppendLeaf(b []byte) []byte {
	b = append(b, leafFormat)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.RaftIndex)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time))
	b = append(b, e.RequestID[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Generation)
	b = append(b, e.Salt[:]...)
	b = append(b, e.Commitment[:]...)
	body := sha256.Sum256(e.Body)
	return append(b, body[:]...)
}

// LeafHash returns the RFC 6962 leaf hash of e: SHA-256(0x00 ‖ leaf).
func (e *Entry) LeafHash() Hash {
	var buf [1 + leafSize]byte
	return sha256.Sum256(e.AppendLeaf(buf[:1])) // buf[0] is the 0x00 of a leaf
}

// ErrMalformed is returned for bytes that cannot be decoded.
var ErrMalformed = layout.ErrMalformed

// Check returns ErrMalformed if e exceeds the limits of the format.
func (e *Entry) Check() error {
	if len(e.Body) == 0 || len(e.Body) > MaxBody {
		return fmt.Errorf("%w: entry %d has a body of %d bytes", ErrMalformed, e.Index, len(e.Body))
	}
	return nil
}
