package attest

import "encoding/binary"

// Major types of CBOR (RFC 8949, section 3.1).
const (
	majorUint  = 0
	majorInt   = 1 // negative
	majorBytes = 2
	majorText  = 3
	majorArray = 4
	majorMap   = 5
	majorTag   = 6
)

const (
	cborNull  = 0xf6
	cborBreak = 0xff
	// cborOpenMap begins a map of indefinite length.
	cborOpenMap = 0xbf
)

// reader reads the CBOR of attestation documents, item by item, and fails permanently at
// the first unexpected item. It never allocates according to a length in the input, and
// returns slices of its input. Numbers and lengths must have their shortest encoding.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) fail() {
	r.failed, r.rest = true, nil
}

// head reads the head of an item of the major type and returns its number.
func (r *reader) head(major byte) uint64 {
	if len(r.rest) == 0 || r.rest[0]>>5 != major {
		r.fail()
		return 0
	}
	info := r.rest[0] & 0x1f
	r.rest = r.rest[1:]
	if info < 24 {
		return uint64(info)
	}
	size := 0
	if info <= 27 {
		size = 1 << (info - 24)
	}
	if size == 0 || len(r.rest) < size {
		r.fail() // 28 to 30 are reserved, 31 is an indefinite length
		return 0
	}
	var wide [8]byte
	copy(wide[8-size:], r.rest)
	r.rest = r.rest[size:]
	n := binary.BigEndian.Uint64(wide[:])
	if size == 1 && n < 24 || size > 1 && n>>(4*size) == 0 {
		r.fail() // not the shortest encoding
		return 0
	}
	return n
}

// take returns the content of a byte or text string of min to max bytes.
func (r *reader) take(major byte, min, max int) []byte {
	n := r.head(major)
	if r.failed || n < uint64(min) || n > uint64(max) || n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// count returns the number of items in an array, or of pairs in a map, up to max.
func (r *reader) count(major byte, max int) int {
	n := r.head(major)
	if n > uint64(max) {
		r.fail()
		return 0
	}
	return int(n)
}

// skip consumes the next byte if it is b.
func (r *reader) skip(b byte) bool {
	if len(r.rest) == 0 || r.rest[0] != b {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

// end reports whether the whole input was read without an error.
func (r *reader) end() bool { return !r.failed && len(r.rest) == 0 }

// appendHead appends the head of an item.
func appendHead(b []byte, major byte, n int) []byte {
	m := major << 5
	switch {
	case n < 24:
		return append(b, m|byte(n))
	case n < 1<<8:
		return append(b, m|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, m|26), uint32(n))
}

func appendBytes(b, content []byte) []byte {
	return append(appendHead(b, majorBytes, len(content)), content...)
}
