// Package accesskey formats and parses access key ids. As in AWS, an id contains the
// account that it belongs to, which sts:GetAccessKeyInfo returns. The prefix AKIA or ASIA
// is followed by ten bytes in base32, in capitals and without padding: one set bit, forty
// bits of the account, and random bits.
package accesskey

import (
	"encoding/base32"
	"encoding/binary"

	"github.com/conclavekms/conclave/fsm"
)

// Kind is the prefix of an access key id, which says what kind of access key it is.
type Kind string

// Kinds of access keys.
const (
	LongTerm Kind = "AKIA" // valid until it is deleted
	Session  Kind = "ASIA" // of a session
)

const (
	// Noise is the number of random bytes that ID takes. Only seven bits of the first are
	// used, so an account has 2^39 ids.
	Noise = 5

	idLen = 4 + 16
)

var encoding = base32.StdEncoding

// ID returns an access key id of an account. The caller must ensure that it is unique.
func ID(kind Kind, a fsm.Account, noise [Noise]byte) string {
	var b [10]byte
	binary.BigEndian.PutUint64(b[:], 1<<63|uint64(a)<<23|uint64(noise[0]&0x7f)<<16)
	copy(b[6:], noise[1:])
	return string(kind) + encoding.EncodeToString(b[:])
}

// Parse returns the kind and account of an access key id. It reports false for invalid ids
// and for AWS's ids from before 2019, which contain no account.
func Parse(id string) (Kind, fsm.Account, bool) {
	if len(id) != idLen {
		return "", 0, false
	}
	kind := Kind(id[:4])
	if kind != LongTerm && kind != Session {
		return "", 0, false
	}
	var b [10]byte
	for _, c := range []byte(id[4:]) {
		if c == '\r' || c == '\n' { // ignored by the decoder
			return "", 0, false
		}
	}
	if n, err := encoding.Decode(b[:], []byte(id[4:])); err != nil || n != len(b) || b[0]&0x80 == 0 {
		return "", 0, false
	}
	a := fsm.Account(binary.BigEndian.Uint64(b[:]) >> 23 & (1<<40 - 1))
	return kind, a, a.Valid()
}
