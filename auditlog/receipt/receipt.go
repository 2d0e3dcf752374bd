// Package receipt makes and verifies receipts: files that prove, without the log, that a
// record is in it (C2SP tlog-proof). Whoever has one needs only the log's public keys.
//
// A receipt says when the record was made, and for which request: that is in the leaf, which
// is the receipt's extra data. It does not show the record itself, whose body is encrypted.
// The leaf has a commitment to it.
package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

// MaxSize is the length of the longest receipt that is read, in bytes.
const MaxSize = 128 << 10

const (
	header   = "c2sp.org/tlog-proof@v1\n"
	leafSize = 1 + 8 + 8 + 8 + 16 + 4 + 16 + sha256.Size + sha256.Size
	// maxProof is the length of the longest proof that is possible.
	maxProof = 63
)

// Receipt is a proof that a tree has a leaf.
type Receipt struct {
	Index      uint64
	Leaf       []byte
	Proof      []auditlog.Hash
	Checkpoint []byte // a signed note, with whatever cosignatures there are
}

// Marshal returns the receipt's text.
func (r *Receipt) Marshal() []byte {
	b := fmt.Appendf(nil, "%sextra %s\nindex %d\n", header, base64.StdEncoding.EncodeToString(r.Leaf), r.Index)
	for _, h := range r.Proof {
		b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
	}
	b = append(b, '\n')
	return append(b, r.Checkpoint...)
}

// Parse decodes a receipt without verifying it. It accepts only one encoding. It returns
// auditlog.ErrMalformed for anything else.
func Parse(text []byte) (*Receipt, error) {
	bad := func(what string) (*Receipt, error) {
		return nil, fmt.Errorf("%w: receipt: %s", auditlog.ErrMalformed, what)
	}
	if len(text) > MaxSize {
		return bad("too long")
	}
	rest, ok := bytes.CutPrefix(text, []byte(header))
	if !ok {
		return bad("it does not begin with " + strings.TrimSpace(header))
	}
	head, note, ok := bytes.Cut(rest, []byte("\n\n"))
	if !ok {
		return bad("no checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if len(lines) < 2 || len(lines) > 2+maxProof {
		return bad("not the leaf, the index and a proof")
	}
	r := &Receipt{Checkpoint: note}
	decode := func(text string) ([]byte, bool) {
		b, err := base64.StdEncoding.Strict().DecodeString(text)
		return b, err == nil && base64.StdEncoding.EncodeToString(b) == text
	}
	leaf, found := strings.CutPrefix(lines[0], "extra ")
	if r.Leaf, ok = decode(leaf); !found || !ok || len(r.Leaf) != leafSize {
		return bad("the extra data is not the leaf of a record")
	}
	number, found := strings.CutPrefix(lines[1], "index ")
	if r.Index, ok = checkpoint.ParseSize(number); !found || !ok {
		return bad("no index")
	}
	for _, line := range lines[2:] {
		h, ok := decode(line)
		if !ok || len(h) != sha256.Size {
			return bad("a line that is not a hash")
		}
		r.Proof = append(r.Proof, auditlog.Hash(h))
	}
	return r, nil
}

// Verify verifies a receipt with the log's public keys, as in checkpoint.Parse. It returns
// what the leaf says, without the body, and the checkpoint whose tree has the leaf. Errors:
// auditlog.ErrMalformed, auditlog.ErrProof, and those of checkpoint.Parse.
func (r *Receipt) Verify(keys string) (e auditlog.Entry, c checkpoint.Checkpoint, err error) {
	if c, err = checkpoint.Parse(r.Checkpoint, keys); err != nil {
		return e, c, err
	}
	if e, err = decodeLeaf(r.Leaf); err != nil {
		return e, c, err
	}
	if e.Index != r.Index {
		return e, c, fmt.Errorf("%w: receipt: the leaf of record %d as that of record %d", auditlog.ErrMalformed, e.Index, r.Index)
	}
	leaf := sha256.Sum256(append([]byte{0}, r.Leaf...))
	return e, c, auditlog.VerifyInclusion(r.Proof, r.Index, c.Size, leaf, c.Root)
}

// decodeLeaf decodes what auditlog.Entry.AppendLeaf encodes, apart from the body.
func decodeLeaf(b []byte) (e auditlog.Entry, err error) {
	if len(b) != leafSize || b[0] != 1 {
		return e, fmt.Errorf("%w: not a leaf of format 1", auditlog.ErrMalformed)
	}
	b = b[1:]
	e.Index = binary.BigEndian.Uint64(b)
	e.RaftIndex = binary.BigEndian.Uint64(b[8:])
	e.Time = int64(binary.BigEndian.Uint64(b[16:]))
	copy(e.RequestID[:], b[24:])
	e.Generation = binary.BigEndian.Uint32(b[40:])
	copy(e.Salt[:], b[44:])
	copy(e.Commitment[:], b[60:])
	return e, nil
}
