package fsm

import (
	"encoding/base32"
	"encoding/binary"
)

// Access key ids are made as AWS makes them, so that who only has one can tell whose
// account it is of, as sts:GetAccessKeyInfo does: after AKIA or ASIA come ten bytes in
// base32, the first bit of which is set, then forty bits of the account, and random
// ones. They are unpadded and in capitals.

// AccessKeyKind is what the first four letters of an access key id say.
type AccessKeyKind string

const (
	LongTerm AccessKeyKind = "AKIA" // good until it is deleted
	Session  AccessKeyKind = "ASIA" // of a session
)

const (
	// AccessKeyNoise is how many random bytes AccessKeyID takes. Of the first, seven bits
	// count: an account has 2^39 ids.
	AccessKeyNoise = 5

	accessKeyLen = 4 + 16
)

var accessKeyText = base32.StdEncoding

// AccessKeyID is an id of an account. Whoever makes one sees to it that there is no
// other of it.
func AccessKeyID(kind AccessKeyKind, a Account, noise [AccessKeyNoise]byte) string {
	var b [10]byte
	binary.BigEndian.PutUint64(b[:], 1<<63|uint64(a)<<23|uint64(noise[0]&0x7f)<<16)
	copy(b[6:], noise[1:])
	return string(kind) + accessKeyText.EncodeToString(b[:])
}

// ParseAccessKeyID reads the kind and account of an access key id. It reports false for
// what is none, and for those of AWS's from before 2019, which have no account.
func ParseAccessKeyID(id string) (AccessKeyKind, Account, bool) {
	if len(id) != accessKeyLen {
		return "", 0, false
	}
	kind := AccessKeyKind(id[:4])
	if kind != LongTerm && kind != Session {
		return "", 0, false
	}
	var b [10]byte
	for _, c := range []byte(id[4:]) {
		if c == '\r' || c == '\n' { // which decoding would pass over
			return "", 0, false
		}
	}
	if n, err := accessKeyText.Decode(b[:], []byte(id[4:])); err != nil || n != len(b) || b[0]&0x80 == 0 {
		return "", 0, false
	}
	a := Account(binary.BigEndian.Uint64(b[:]) >> 23 & (1<<40 - 1))
	return kind, a, a.valid()
}
