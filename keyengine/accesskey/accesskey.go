// Package accesskey makes and reads access key ids as AWS does, so that whoever has only an
// id can tell which account it belongs to, as sts:GetAccessKeyInfo does. After AKIA or ASIA
// come ten bytes in base32: one bit that is set, forty bits of the account, and random
// bits. Ids are unpadded and in capitals.
package accesskey

import (
	"encoding/base32"
	"encoding/binary"

	"github.com/conclavekms/conclave/fsm"
)

// Kind is what the first four letters of an access key id say.
type Kind string

// Kinds of access keys.
const (
	LongTerm Kind = "AKIA" // good until it is deleted
	Session  Kind = "ASIA" // of a session
)

const (
	// Noise is how many random bytes ID takes. Of the first, seven bits
	// count: an account has 2^39 ids.
	Noise = 5

	idLen = 4 + 16
)

var encoding = base32.StdEncoding

// ID is an id of an account. Whoever makes one sees to it that there is no
// other of it.
func ID(kind Kind, a fsm.Account, noise [Noise]byte) string {
	var b [10]byte
	binary.BigEndian.PutUint64(b[:], 1<<63|uint64(a)<<23|uint64(noise[0]&0x7f)<<16)
	copy(b[6:], noise[1:])
	return string(kind) + encoding.EncodeToString(b[:])
}

// Parse reads the kind and account of an access key id. It reports false for
// what is none, and for those of AWS's from before 2019, which have no account.
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
		if c == '\r' || c == '\n' { // which decoding would pass over
			return "", 0, false
		}
	}
	if n, err := encoding.Decode(b[:], []byte(id[4:])); err != nil || n != len(b) || b[0]&0x80 == 0 {
		return "", 0, false
	}
	a := fsm.Account(binary.BigEndian.Uint64(b[:]) >> 23 & (1<<40 - 1))
	return kind, a, a.Valid()
}
