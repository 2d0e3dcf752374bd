package cli

import (
	"fmt"
	"strings"
)

// unseen reports whether a terminal interprets a rune instead of showing it:
// control characters, including C1, and characters that change the direction of
// text.
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

// Printable returns s with such runes escaped, for a terminal, which text from a
// server or its users must not control.
func Printable(s string) string { return escape(s, unseen) }

// Visible returns JSON or YAML of several lines for a terminal. Such runes can
// occur only in quoted strings, in which the escapes stand for them.
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

// Quote returns s as one word for a POSIX shell.
func Quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./:@%+=,-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
