package auditindex

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/localfile"
)

// The index of blockSize records is a block. Its terms are divided by the first bits of their
// tokens into parts, so that a search decrypts only the part that may have its term.
const (
	blockBits = 14
	blockSize = 1 << blockBits
	partBits  = 6
	parts     = 1 << partBits
	tokenBits = 40 // of a term's token; a search compares what it finds with its query anyway
)

// posting is a term that a record of a block has: the first tokenBits bits of the term's
// token, and the record's place in the block.
type posting uint64

func makePosting(token term, at uint64) posting { return posting(uint64(token)<<blockBits | at) }

func (p posting) term() term { return term(p >> blockBits) }
func (p posting) at() uint16 { return uint16(p & (blockSize - 1)) }

// term is the first tokenBits bits of a token.
type term uint64

func newTerm(token [localfile.TokenSize]byte) term {
	return term(binary.BigEndian.Uint64(token[:]) >> (64 - tokenBits))
}

func (t term) part() byte { return byte(t >> (tokenBits - partBits)) }

var errBlock = errors.New("block of the index cannot be decoded")

// encodeParts returns the parts of a block whose postings are given, which it sorts. A part is
// a list of terms in ascending order, each with the records that have it: the difference to
// the term before, the number of records, the first record, and the differences to the next
// ones, as varints.
func encodeParts(postings []posting) [parts][]byte {
	slices.Sort(postings)
	postings = slices.Compact(postings)
	var out [parts][]byte
	var before term
	for len(postings) > 0 {
		t := postings[0].term()
		n := 1
		for n < len(postings) && postings[n].term() == t {
			n++
		}
		b := out[t.part()]
		if b == nil {
			before = term(t.part()) << (tokenBits - partBits)
		}
		b = binary.AppendUvarint(b, uint64(t-before))
		b = binary.AppendUvarint(b, uint64(n))
		last := uint64(0)
		for _, p := range postings[:n] {
			b = binary.AppendUvarint(b, uint64(p.at())-last)
			last = uint64(p.at())
		}
		out[t.part()], before = b, t
		postings = postings[n:]
	}
	return out
}

// findPart returns the places of the records that have a term, in ascending order. part is the
// encoded part that the term belongs to.
func findPart(part []byte, want term) (at []uint16, err error) {
	t := term(want.part()) << (tokenBits - partBits)
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(part)
		if n <= 0 {
			bad = true
			return 0
		}
		part = part[n:]
		return v
	}
	for len(part) > 0 {
		t += term(next())
		count := next()
		if bad || count == 0 || count > blockSize {
			return nil, errBlock
		}
		if t > want {
			return nil, nil
		}
		last := uint64(0)
		for range count {
			if last += next(); bad || last >= blockSize {
				return nil, errBlock
			}
			if t == want {
				at = append(at, uint16(last))
			}
		}
		if t == want {
			return at, nil
		}
	}
	return nil, nil
}

// findPostings returns the places of the records that have a term, in ascending order, among
// postings in the order of records.
func findPostings(postings []posting, want term) (at []uint16) {
	for _, p := range postings {
		if p.term() == want && (len(at) == 0 || at[len(at)-1] != p.at()) {
			at = append(at, p.at())
		}
	}
	return at
}

// intersect returns what is in both ascending lists.
func intersect(a, b []uint16) []uint16 {
	out := a[:0]
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] < b[j]:
			i++
		case a[i] > b[j]:
			j++
		default:
			out = append(out, a[i])
			i++
			j++
		}
	}
	return out
}

// encodeMarks encodes ascending offsets in a file.
func encodeMarks(marks []int64) []byte {
	var b []byte
	last := int64(0)
	for _, m := range marks {
		b = binary.AppendUvarint(b, uint64(m-last))
		last = m
	}
	return b
}

func decodeMarks(b []byte) (marks []int64, err error) {
	last := int64(0)
	for len(b) > 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<40 {
			return nil, errBlock
		}
		last += int64(v)
		marks, b = append(marks, last), b[n:]
	}
	return marks, nil
}
