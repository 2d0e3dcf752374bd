package policy

import (
	"strings"
	"unicode/utf8"
)

// In a compiled pattern, these bytes stand for its wildcards. Neither occurs in
// UTF-8, so a '*' or '?' in a pattern is that character itself: it was written
// as a variable, ${*}, or is part of a variable's value.
const (
	anyRun = '\xfe' // any number of characters
	anyOne = '\xff' // one character
)

// A glob is a compiled pattern. '*' stands for any number of characters,
// including none and including ':' and '/', '?' for exactly one character, and
// any other character for itself.
//
// Between its stars, a pattern consists of pieces with a fixed number of
// characters. Each piece is placed where it first fits, which is right because
// it leaves the most text for the pieces after it, so matching never
// backtracks. A text that is shorter than the fixed part of the pattern is
// refused before anything is compared. So a match takes at most about
// len(text)²/4 comparisons for any pattern.
type glob struct {
	head  piece   // matches the start of the text; without a star, all of it
	mid   []piece // match between head and tail, in this order
	tail  piece   // matches the end
	star  bool    // the pattern has a '*'
	fixed int     // bytes of the shortest text that can match
	fold  bool    // 'A' to 'Z' in the text equal 'a' to 'z'; the pattern is lower case already
}

// A piece is a part of a pattern without stars.
type piece struct {
	text   string
	simple bool // no anyOne and no folding: the bytes of the text must be the same
}

// compileGlob compiles a pattern as it is written in a document. If fold is
// set, the case of ASCII letters is ignored.
func compileGlob(pattern string, fold bool) glob {
	if fold {
		pattern = lowerASCII(pattern)
	}
	return newGlob(markWildcards(pattern), fold)
}

// markWildcards replaces the wildcards of a pattern as it is written by the
// bytes of a compiled one.
func markWildcards(pattern string) string {
	if !strings.ContainsAny(pattern, "*?") {
		return pattern
	}
	b := []byte(pattern)
	for i, c := range b {
		switch c {
		case '*':
			b[i] = anyRun
		case '?':
			b[i] = anyOne
		}
	}
	return string(b)
}

// newGlob compiles a pattern with marked wildcards.
func newGlob(pattern string, fold bool) glob {
	g := glob{fold: fold}
	for i, text := range strings.Split(pattern, string([]byte{anyRun})) {
		p := piece{text, !fold && strings.IndexByte(text, anyOne) < 0}
		g.fixed += len(text)
		switch {
		case i == 0:
			g.head = p
			continue
		case g.star && g.tail.text != "": // "**" is "*"
			g.mid = append(g.mid, g.tail)
		}
		g.star, g.tail = true, p
	}
	return g
}

// match reports whether the pattern matches the whole text.
func (g *glob) match(text string) bool {
	if len(text) < g.fixed {
		return false
	}
	n := g.fits(&g.head, text)
	if n < 0 || !g.star {
		return n == len(text)
	}
	text = text[n:]
	end := len(text) - len(g.tail.text)
	if !g.tail.simple {
		// A '?' can be several bytes, but it is one character.
		end = len(text)
		for range utf8.RuneCountInString(g.tail.text) {
			_, size := utf8.DecodeLastRuneInString(text[:end])
			end -= size
		}
	}
	if end < 0 || g.fits(&g.tail, text[end:]) != len(text)-end {
		return false
	}
	text = text[:end]
	for i := range g.mid {
		p := &g.mid[i]
		if p.simple {
			at := strings.Index(text, p.text)
			if at < 0 {
				return false
			}
			text = text[at+len(p.text):]
			continue
		}
		n := g.fits(p, text)
		for n < 0 {
			if len(text) <= len(p.text) {
				return false
			}
			text = text[runeLen(text):]
			n = g.fits(p, text)
		}
		text = text[n:]
	}
	return true
}

// fits returns the length of the text that p matches at its beginning, or -1.
func (g *glob) fits(p *piece, text string) int {
	if len(text) < len(p.text) {
		return -1
	}
	if p.simple {
		if text[:len(p.text)] != p.text {
			return -1
		}
		return len(p.text)
	}
	at := 0
	for rest := p.text; rest != ""; {
		if rest[0] == anyOne {
			if at == len(text) {
				return -1
			}
			at += runeLen(text[at:])
			rest = rest[1:]
			continue
		}
		run := rest
		if i := strings.IndexByte(rest, anyOne); i >= 0 {
			run = rest[:i]
		}
		if len(text)-at < len(run) || !g.same(run, text[at:at+len(run)]) {
			return -1
		}
		at += len(run)
		rest = rest[len(run):]
	}
	return at
}

// same reports whether a run of a pattern without wildcards equals a text of
// the same length.
func (g *glob) same(run, text string) bool {
	if !g.fold {
		return run == text
	}
	for i := range len(run) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != run[i] {
			return false
		}
	}
	return true
}

// runeLen returns the length of the first character of a text that is not
// empty. A byte that is not UTF-8 counts as a character.
func runeLen(text string) int {
	if text[0] < utf8.RuneSelf {
		return 1
	}
	_, size := utf8.DecodeRuneInString(text)
	return size
}

// lowerASCII is strings.ToLower for ASCII letters only: the Kelvin sign is not
// a 'k' in the name of an action.
func lowerASCII(s string) string {
	i := 0
	for i < len(s) && (s[i] < 'A' || s[i] > 'Z') {
		i++
	}
	if i == len(s) {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// equalFold reports whether two texts are equal but for the case of letters. A
// document has no characters beyond U+00FF, and folding stays within these: a
// character that Unicode folds to one of them from outside, such as the Kelvin
// sign to 'k', is a different one here.
func equalFold(a, b string) bool {
	for len(a) > 0 && len(b) > 0 {
		x, n := utf8.DecodeRuneInString(a)
		y, m := utf8.DecodeRuneInString(b)
		if x != y && foldLatin(x) != foldLatin(y) || n != m {
			return false
		}
		a, b = a[n:], b[m:]
	}
	return len(a) == len(b)
}

// foldLatin returns the small form of a letter up to U+00FF.
func foldLatin(r rune) rune {
	if 'A' <= r && r <= 'Z' || 'À' <= r && r <= 'Þ' && r != '×' {
		return r + 'a' - 'A'
	}
	return r
}
