package shamir

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
)

// The binary envelope of a share, version 1:
//
//	version(1) cluster(16) set(16) threshold(1) count(1) index(1) value(32) checksum(8)
//
// Its text is textPrefix and the envelope in lower-case base32 without padding:
// no 0, 1, 8 or 9 that could be taken for a letter, and no difference between
// upper and lower case.
const (
	envelopeVersion = 1
	checksumSize    = 8
	envelopeSize    = 1 + 16 + 16 + 3 + SecretSize + checksumSize

	textName   = "conclave-share-"
	textPrefix = textName + "1-"
	encodedLen = (envelopeSize*8 + 4) / 5

	// maxText bounds what ParseShare looks at, white space included.
	maxText = 4096

	checksumDomain   = "conclave share checksum v1\x00"
	commitmentDomain = "conclave share commitment v1\x00"
)

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var (
	// ErrEmpty is returned for a share of nothing but white space.
	ErrEmpty = errors.New("share is empty")
	// ErrTooLong is returned for text longer than a share.
	ErrTooLong = errors.New("share is too long")
	// ErrTruncated is returned for a share that ends early.
	ErrTruncated = errors.New("share is cut short")
	// ErrFormat is returned for text that is no share of ours.
	ErrFormat = errors.New("not a conclave share")
	// ErrVersion is returned for a share of a version not known here.
	ErrVersion = errors.New("unknown share version")
	// ErrChecksum is returned for a share that was mistyped or damaged.
	ErrChecksum = errors.New("share checksum does not match")
)

// value is kept behind pointers so that copies of a Share are wiped with it.
// There are two because fmt calls no methods on unexported fields: it prints
// the share inside somebody's struct field by field, and for a verb that does
// not fit a pointer it follows one. The second it shows as an address.
type value struct {
	b    [SecretSize]byte
	live bool
}

type cell struct{ v *value }

func newCell() *cell { return &cell{&value{live: true}} }

// Share is one custodian's part of a secret. Its methods for printing, logging
// and marshalling all give "[redacted]"; Text gives the share. The zero Share
// has no value. Wiping a Share wipes its copies. A Share is not safe for
// concurrent use with Wipe.
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

// MarshalText returns "[redacted]", for encoding/json and its like.
func (Share) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Set tells which set the share belongs to.
func (s Share) Set() SetInfo { return s.set }

// Index is the share's x coordinate, 1 to Count; it tells custodians apart.
func (s Share) Index() int { return int(s.index) }

// Wipe overwrites the share's value. Using the share afterwards fails.
func (s Share) Wipe() {
	if s.cell != nil {
		*s.cell.v = value{}
	}
}

func (s Share) live() bool { return s.cell != nil && s.cell.v.live }

// clone returns a share with a value of its own.
func (s Share) clone() Share {
	c := newCell()
	*c.v = *s.cell.v
	s.cell = c
	return s
}

// checkSet tells why s cannot be used as a share of set, or nil.
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

// envelope returns the binary form. It panics for a share without a value: the
// alternative is to print one of zeros that looks like a share.
func (s Share) envelope() *[envelopeSize]byte {
	if !s.live() {
		panic("shamir: share used after Wipe")
	}
	e := new([envelopeSize]byte)
	b := append(e[:0], envelopeVersion)
	b = append(b, s.set.Cluster[:]...)
	b = append(b, s.set.Set[:]...)
	b = append(b, byte(s.set.Threshold), byte(s.set.Count), s.index)
	b = append(b, s.cell.v.b[:]...)
	sum := checksum(b)
	copy(e[len(b):], sum[:])
	return e
}

func checksum(body []byte) [checksumSize]byte {
	var buf [len(checksumDomain) + envelopeSize]byte
	defer clear(buf[:])
	sum := sha256.Sum256(append(append(buf[:0], checksumDomain...), body...))
	return [checksumSize]byte(sum[:])
}

// Text returns the share as its custodian gets it: one word of 139 characters,
// a-z, 2-7 and hyphens. It is the secret; the string cannot be wiped, so ask
// for it only to hand it out. Text panics when the share has been wiped.
func (s Share) Text() string {
	e := s.envelope()
	defer clear(e[:])
	var b [len(textPrefix) + encodedLen]byte
	defer clear(b[:])
	encoding.Encode(b[copy(b[:], textPrefix):], e[:])
	return string(b[:])
}

// ParseShare reads a share from the text that Text made. White space anywhere,
// line breaks and upper case do not matter. Every other difference is refused
// with one of ErrEmpty, ErrTooLong, ErrTruncated, ErrFormat, ErrVersion and
// ErrChecksum. Errors never quote the text. A caller that passes bytes can wipe
// them; a string stays in memory until it is collected.
func ParseShare[T string | []byte](text T) (Share, error) {
	if len(text) > maxText {
		return Share{}, fmt.Errorf("%w: %d bytes", ErrTooLong, len(text))
	}
	// One byte more than a share, so that too long can be told from right.
	var buf [len(textPrefix) + encodedLen + 1]byte
	defer clear(buf[:])
	n := 0
	for i := range len(text) {
		c := text[i]
		switch c {
		case ' ', '\t', '\r', '\n', '\v', '\f':
			continue
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if n == len(buf) {
			break
		}
		buf[n] = c
		n++
	}
	if n == 0 {
		return Share{}, ErrEmpty
	}
	body, err := cutPrefix(buf[:n])
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

	var e [envelopeSize]byte
	defer clear(e[:])
	if _, err := encoding.Decode(e[:], body); err != nil {
		return Share{}, ErrFormat // not reached: alphabet and length are checked
	}
	// base32 leaves two bits over, which Decode ignores; only zeros are ours.
	var again [encodedLen]byte
	defer clear(again[:])
	encoding.Encode(again[:], e[:])
	if subtle.ConstantTimeCompare(again[:], body) != 1 {
		return Share{}, fmt.Errorf("%w: last character", ErrChecksum)
	}
	return decode(&e)
}

// cutPrefix returns what follows the text prefix in text.
func cutPrefix(text []byte) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(text, []byte(textPrefix)); ok {
		return rest, nil
	}
	if bytes.HasPrefix([]byte(textPrefix), text) {
		return nil, fmt.Errorf("%w: within %q", ErrTruncated, textPrefix)
	}
	// A number other than 1 where the version stands: a share of a version to
	// come. Anything else is no share.
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

func decode(e *[envelopeSize]byte) (Share, error) {
	if e[0] != envelopeVersion {
		return Share{}, fmt.Errorf("%w: %d", ErrVersion, e[0])
	}
	body, sum := e[:envelopeSize-checksumSize], e[envelopeSize-checksumSize:]
	want := checksum(body)
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

// Commitment returns the hash by which s is known without being shown:
// SHA-256 over a domain, the set, the index and the value. A share's value is
// uniform over 2^256, so the hash tells nothing about it. With a threshold of 1
// the value is the secret itself, and the same holds for a random secret.
// Commitment panics when the share has been wiped.
func Commitment(s Share) [sha256.Size]byte {
	if !s.live() {
		panic("shamir: share used after Wipe")
	}
	var buf [len(commitmentDomain) + 16 + 16 + 3 + SecretSize]byte
	defer clear(buf[:])
	b := append(buf[:0], commitmentDomain...)
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
