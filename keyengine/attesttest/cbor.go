package attesttest

import (
	"encoding/binary"
	"fmt"
)

// Pair is a member of a map. Members are encoded in their order.
type Pair struct{ Key, Value any }

// Map is a map of definite length, OpenMap one of indefinite length.
type (
	Map     []Pair
	OpenMap []Pair
)

// Raw is encoded as it is, in place of an item.
type Raw []byte

// Encode encodes an item: a string, bytes, a non-negative number, a list, a map or nil.
func Encode(v any) []byte {
	switch v := v.(type) {
	case nil:
		return []byte{0xf6}
	case Raw:
		return v
	case int:
		return Head(0, uint64(v))
	case int64:
		return Head(0, uint64(v))
	case string:
		return append(Head(3, uint64(len(v))), v...)
	case []byte:
		return append(Head(2, uint64(len(v))), v...)
	case []any:
		b := Head(4, uint64(len(v)))
		for _, item := range v {
			b = append(b, Encode(item)...)
		}
		return b
	case Map:
		return pairs(Head(5, uint64(len(v))), v)
	case OpenMap:
		return append(pairs([]byte{0xbf}, v), 0xff)
	}
	panic(fmt.Sprintf("attesttest: %T has no encoding", v))
}

func pairs(b []byte, list []Pair) []byte {
	for _, p := range list {
		b = append(append(b, Encode(p.Key)...), Encode(p.Value)...)
	}
	return b
}

// Head returns the head of an item: its major type, and a number or length.
func Head(major byte, n uint64) []byte {
	m := major << 5
	switch {
	case n < 24:
		return []byte{m | byte(n)}
	case n < 1<<8:
		return []byte{m | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{m | 25}, uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32([]byte{m | 26}, uint32(n))
	}
	return binary.BigEndian.AppendUint64([]byte{m | 27}, n)
}
