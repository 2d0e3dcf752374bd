package attesttest

import (
	"encoding/binary"
	"fmt"
)

// Pair is a member of a map, which is written in the order that it has here.
type Pair struct{ Key, Value any }

// Map is a map whose number of members stands before it, OpenMap one whose end is
// marked.
type (
	Map     []Pair
	OpenMap []Pair
)

// Raw is written as it is, in place of an item.
type Raw []byte

// Encode writes an item: a string, bytes, a number that is not negative, a list, a
// map, nil.
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

// Head is the beginning of an item: its kind, and a number or length.
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
