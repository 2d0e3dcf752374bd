package cli

import (
	"fmt"
	"strings"
)

// unseen reports runes that terminals obey, or that change the order in which a
// line is read: control characters, C1 among them, and those of bidirectional text.
func unseen(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r < 0xa0: // C0, DEL and C1
		return true
	case r == 0x61c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	case r == 0xfeff:
		return true
	}
	return false
}

// Printable is s for a terminal: what a server or its users wrote must not drive it.
func Printable(s string) string { return escape(s, unseen) }

// Visible is a text of several lines, JSON or YAML, for a terminal. In JSON's and
// YAML's quoted strings the escapes mean what they stand for; nothing else may have
// such runes.
func Visible(s string) string {
	return escape(s, func(r rune) bool { return unseen(r) && r != '\n' && r != '\t' })
}

func escape(s string, which func(rune) bool) string {
	if strings.IndexFunc(s, which) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if which(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Quote makes one word of s for a POSIX shell.
func Quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./:@%+=,-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
