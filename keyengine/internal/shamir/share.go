package shamir

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
)

// The binary form of a share, version 1:
//
//	version(1) cluster(16) set(16) threshold(1) count(1) index(1) value(32) checksum(8)
//
// Its text is textPrefix and the binary form in lower-case base32 without padding: there
// are no 0, 1, 8 or 9 that could be mistaken for a letter, and case does not matter.
const (
	envelopeVersion = 1
	checksumSize    = 8
	envelopeSize    = 1 + 16 + 16 + 3 + SecretSize + checksumSize

	textName   = "conclave-share-"
	textPrefix = textName + "1-"
	encodedLen = (envelopeSize*8 + 4) / 5

	// maxText limits the text that ParseShare accepts, including white space.
	maxText = 4096

	checksumDomain   = "conclave share checksum v1\x00"
	commitmentDomain = "conclave share commitment v1\x00"
)

// TextSize is the length in bytes of a share's text.
const TextSize = len(textPrefix) + encodedLen

// scratch has the buffers for encoding and decoding shares. It is on the heap, which does
// not move, unlike a stack that grows while a share is on it, and is wiped after each use.
type scratch struct {
	text     [TextSize + 1]byte // one byte more than a share, to detect a longer text
	again    [encodedLen]byte
	envelope [envelopeSize]byte
	hashed   [len(commitmentDomain) + envelopeSize]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func getScratch() *scratch { return scratches.Get().(*scratch) }

func (s *scratch) put() {
	*s = scratch{}
	scratches.Put(s)
}

var (
	// ErrEmpty is returned for a share that consists of white space only.
	ErrEmpty = errors.New("share is empty")
	// ErrTooLong is returned for text longer than a share.
	ErrTooLong = errors.New("share is too long")
	// ErrTruncated is returned for a share that ends early.
	ErrTruncated = errors.New("share is cut short")
	// ErrFormat is returned for text that is not a share.
	ErrFormat = errors.New("not a conclave share")
	// ErrVersion is returned for a share of an unknown version.
	ErrVersion = errors.New("unknown share version")
	// ErrChecksum is returned for a share that was mistyped or damaged.
	ErrChecksum = errors.New("share checksum does not match")
)

// value is behind pointers, so that it is wiped in all copies of a Share. There are two
// pointers because fmt calls no methods on unexported fields: it prints a share in another
// struct field by field, and for a verb that does not fit a pointer it follows one. It
// prints the second as an address.
type value struct {
	b    [SecretSize]byte
	live bool
}

type cell struct{ v *value }

func newCell() *cell { return &cell{&value{live: true}} }

// Share is one custodian's part of a secret. Its methods for printing, logging and
// marshalling return "[redacted]"; only AppendText returns the share. The zero Share has no
// value. Wiping a Share wipes its copies. Wipe is not safe for concurrent use with other
// methods.
type Share struct {
	set   SetInfo
	index byte
	cell  *cell
}

const redacted = "[redacted]"

// String returns "[redacted]".
func (Share) String() string { return redacted }

// GoString returns "[redacted]".
func (Share) GoString() string { return redacted }

// Format writes "[redacted]" for every verb.
func (Share) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns "[redacted]".
func (Share) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]", for encoding/json and similar packages.
func (Share) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Set returns the set that the share belongs to.
func (s Share) Set() SetInfo { return s.set }

// Index returns the share's x coordinate, 1 to Count, which differs for each custodian.
func (s Share) Index() int { return int(s.index) }

// Wipe overwrites the share's value. The share cannot be used afterwards.
func (s Share) Wipe() {
	if s.cell != nil {
		*s.cell.v = value{}
	}
}

func (s Share) live() bool { return s.cell != nil && s.cell.v.live }

// clone returns a share with its own copy of the value.
func (s Share) clone() Share {
	c := newCell()
	*c.v = *s.cell.v
	s.cell = c
	return s
}

// checkSet returns an error if s is not a share of set.
func (s Share) checkSet(set SetInfo) error {
	switch {
	case !s.live():
		return &ShareError{int(s.index), ErrWiped}
	case s.set.Cluster != set.Cluster:
		return &ShareError{int(s.index), ErrWrongCluster}
	case s.set != set:
		return &ShareError{int(s.index), ErrForeignSet}
	case s.index < 1 || int(s.index) > set.Count:
		return &ShareError{int(s.index), ErrWrongShare}
	}
	return nil
}

// envelope encodes the binary form. It panics for a share without a value, because it would
// encode zeros that look like a share.
func (s Share) envelope(t *scratch) {
	if !s.live() {
		panic("shamir: share used after Wipe")
	}
	b := append(t.envelope[:0], envelopeVersion)
	b = append(b, s.set.Cluster[:]...)
	b = append(b, s.set.Set[:]...)
	b = append(b, byte(s.set.Threshold), byte(s.set.Count), s.index)
	b = append(b, s.cell.v.b[:]...)
	sum := t.checksum(b)
	copy(t.envelope[len(b):], sum[:])
}

func (t *scratch) checksum(body []byte) [checksumSize]byte {
	sum := sha256.Sum256(append(append(t.hashed[:0], checksumDomain...), body...))
	return [checksumSize]byte(sum[:])
}

// AppendText appends the share in its form for custodians: one word of [TextSize]
// characters, a-z, 2-7 and hyphens. The text is secret, and the caller must wipe it. dst
// must have room for it, as append would leave copies behind otherwise. AppendText panics
// if there is no room or if the share has been wiped.
func (s Share) AppendText(dst []byte) []byte {
	if cap(dst)-len(dst) < TextSize {
		panic("shamir: buffer is too small for a share's text")
	}
	t := getScratch()
	defer t.put()
	s.envelope(t)
	dst = append(dst, textPrefix...)
	body := dst[len(dst) : len(dst)+encodedLen]
	encode32(body, t.envelope[:])
	return dst[:len(dst)+encodedLen]
}

// encode32 and decode32 implement base32 in lower case without padding, with arithmetic
// instead of tables, and without the buffers that encoding/base32 allocates.
func encode32(dst, src []byte) {
	var bits, n uint
	for i := range dst {
		for n < 5 {
			bits, n = bits<<8, n+8
			if len(src) > 0 {
				bits |= uint(src[0])
				src = src[1:]
			}
		}
		n -= 5
		v := int(bits >> n & 31)
		digit := (25 - v) >> 8 // all ones for 26 to 31, which are written 2 to 7
		dst[i] = byte('a' + v - digit&('a'+26-'2'))
	}
}

// decode32 expects characters of the alphabet only. It ignores bits that are left over.
func decode32(dst, src []byte) {
	var bits, n uint
	for _, c := range src {
		v := int(c)
		digit := (v - 'a') >> 8 // all ones for 2 to 7
		bits, n = bits<<5|uint(v-'a'+digit&('a'+26-'2'))&31, n+5
		if n >= 8 && len(dst) > 0 {
			n -= 8
			dst[0] = byte(bits >> n)
			dst = dst[1:]
		}
	}
}

// ParseShare parses the text of AppendText. White space, line breaks and case are ignored.
// Every other difference is refused with ErrEmpty, ErrTooLong, ErrTruncated, ErrFormat,
// ErrVersion or ErrChecksum. Errors never quote the text, and no copy of it remains except
// in the share.
func ParseShare(text []byte) (Share, error) {
	if len(text) > maxText {
		return Share{}, fmt.Errorf("%w: %d bytes", ErrTooLong, len(text))
	}
	t := getScratch()
	defer t.put()
	n := 0
	for _, c := range text {
		switch c {
		case ' ', '\t', '\r', '\n', '\v', '\f':
			continue
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if n == len(t.text) {
			break
		}
		t.text[n] = c
		n++
	}
	if n == 0 {
		return Share{}, ErrEmpty
	}
	body, err := cutPrefix(t.text[:n])
	if err != nil {
		return Share{}, err
	}
	for i, c := range body {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return Share{}, fmt.Errorf("%w: character %d after %q is none of a-z and 2-7", ErrFormat, i+1, textPrefix)
		}
	}
	switch {
	case len(body) < encodedLen:
		return Share{}, fmt.Errorf("%w: %d of %d characters after %q", ErrTruncated, len(body), encodedLen, textPrefix)
	case len(body) > encodedLen:
		return Share{}, fmt.Errorf("%w: more than %d characters after %q", ErrTooLong, encodedLen, textPrefix)
	}
	decode32(t.envelope[:], body)
	// Decoding ignores the two bits that are left over. They must be zero.
	encode32(t.again[:], t.envelope[:])
	if subtle.ConstantTimeCompare(t.again[:], body) != 1 {
		return Share{}, fmt.Errorf("%w: last character", ErrChecksum)
	}
	return t.decode()
}

// cutPrefix returns what follows the text prefix in text.
func cutPrefix(text []byte) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(text, []byte(textPrefix)); ok {
		return rest, nil
	}
	if bytes.HasPrefix([]byte(textPrefix), text) {
		return nil, fmt.Errorf("%w: within %q", ErrTruncated, textPrefix)
	}
	// A number other than 1 in place of the version is a share of a later version. Anything
	// else is not a share.
	if digits, ok := bytes.CutPrefix(text, []byte(textName)); ok {
		for i, c := range digits {
			if c == '-' && i > 0 && i <= 3 {
				if v, err := strconv.ParseUint(string(digits[:i]), 10, 8); err == nil {
					return nil, fmt.Errorf("%w: %d", ErrVersion, v)
				}
			}
			if c < '0' || c > '9' {
				break
			}
		}
	}
	return nil, fmt.Errorf("%w: it should begin with %q", ErrFormat, textPrefix)
}

// decode decodes the binary form.
func (t *scratch) decode() (Share, error) {
	e := &t.envelope
	if e[0] != envelopeVersion {
		return Share{}, fmt.Errorf("%w: %d", ErrVersion, e[0])
	}
	body, sum := e[:envelopeSize-checksumSize], e[envelopeSize-checksumSize:]
	want := t.checksum(body)
	if subtle.ConstantTimeCompare(want[:], sum) != 1 {
		return Share{}, ErrChecksum
	}
	s := Share{
		set: SetInfo{
			Cluster:   [16]byte(e[1:17]),
			Set:       [16]byte(e[17:33]),
			Threshold: int(e[33]),
			Count:     int(e[34]),
		},
		index: e[35],
		cell:  newCell(),
	}
	copy(s.cell.v.b[:], e[36:])
	if s.set.validate() != nil || s.index < 1 || int(s.index) > s.set.Count {
		s.Wipe()
		return Share{}, fmt.Errorf("%w: threshold %d, count %d, index %d", ErrFormat, e[33], e[34], e[35])
	}
	return s, nil
}

// Commitment returns the hash that identifies s without revealing it: SHA-256 over a
// domain, the set, the index and the value. A share's value is uniform over 2^256, so the
// hash reveals nothing about it. With a threshold of 1 the value is the secret itself, and
// the same holds if the secret is random. Commitment panics if the share has been wiped.
func Commitment(s Share) [sha256.Size]byte {
	if !s.live() {
		panic("shamir: share used after Wipe")
	}
	t := getScratch()
	defer t.put()
	b := append(t.hashed[:0], commitmentDomain...)
	b = append(b, s.set.Cluster[:]...)
	b = append(b, s.set.Set[:]...)
	b = append(b, byte(s.set.Threshold), byte(s.set.Count), s.index)
	b = append(b, s.cell.v.b[:]...)
	return sha256.Sum256(b)
}

// Commitments returns the commitment of each share, in the order given.
func Commitments(shares []Share) [][sha256.Size]byte {
	c := make([][sha256.Size]byte, len(shares))
	for i, s := range shares {
		c[i] = Commitment(s)
	}
	return c
}
