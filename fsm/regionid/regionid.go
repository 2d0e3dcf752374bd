// Package regionid is the form of AWS Regions in the ids of objects.
package regionid

import (
	"bytes"
	"strings"
)

// Three characters of a Region are encoded in two bytes, so that ids need no more memory
// with the account than they would without it: in the table, the id of a key in any of
// AWS's Regions fits into 32 bytes. Each character has a number, in the order of the
// characters, and unused places of the last three are 0. There is always at least one of
// those, so no encoded Region is a prefix of another, and they sort as their texts do.
const (
	base   = 40
	chars  = "-0123456789abcdefghijklmnopqrstuvwxyz"
	noChar = base - 1 // a character that no Region has
)

// Append appends a Region as it stands in ids.
func Append(b []byte, region string) []byte {
	for end := false; !end; {
		n := 0
		for i := range 3 {
			c := 0
			if i < len(region) {
				if c = 1 + strings.IndexByte(chars, region[i]); c == 0 {
					c = noChar
				}
			}
			n = n*base + c
			end = c == 0
		}
		region = region[min(3, len(region)):]
		b = append(b, byte(n>>8), byte(n))
	}
	return b
}

// Cut returns the Region that b begins with, and the rest of b.
func Cut(b []byte) (region string, rest []byte, ok bool) {
	var text [33]byte
	for n := 0; n+3 <= len(text) && len(b) >= 2; b = b[2:] {
		three := int(b[0])<<8 | int(b[1])
		for _, c := range [...]int{three / (base * base), three / base % base, three % base} {
			switch {
			case c > len(chars):
				return "", nil, false
			case c > 0:
				text[n] = chars[c-1]
			}
			if n++; c == 0 {
				region = string(text[:n-1])
				return region, b[2:], bytes.Equal(Append(nil, region)[2*((n-1)/3):], b[:2])
			}
		}
	}
	return "", nil, false
}

// Valid reports whether a Region has 1 to 32 of the characters that Regions have.
func Valid(r string) bool {
	if len(r) == 0 || len(r) > 32 {
		return false
	}
	for _, c := range []byte(r) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
