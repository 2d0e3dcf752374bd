package policy

import "strings"

// A glob is a compiled pattern of an Action or a Resource. '*' stands for any
// number of bytes, including none and including ':' and '/', '?' for exactly
// one byte, and any other character for itself. The texts that are matched are
// ASCII, where bytes are characters.
//
// Between its stars, a pattern consists of pieces of fixed length. Each piece
// is placed where it first fits, which is right because it leaves the most text
// for the pieces after it, so matching never backtracks. A text that is shorter
// than the fixed bytes of the pattern is refused before anything is compared.
// So a match takes at most about len(text)²/4 comparisons for any pattern: the
// time depends on the length of the texts, which we bound, and not on the
// author of the policy.
type glob struct {
	head  string   // matches the start of the text; without a star, all of it
	mid   []string // match between head and tail, in this order
	tail  string   // matches the end
	star  bool     // the pattern has a '*'
	fixed int      // bytes of head, mid and tail together
	fold  bool     // 'A' to 'Z' in the text equal 'a' to 'z'; the pattern is lower case already
}

// compileGlob compiles a pattern. If fold is set, the case of ASCII letters is
// ignored.
func compileGlob(pattern string, fold bool) glob {
	if fold {
		pattern = lowerASCII(pattern)
	}
	pieces := strings.Split(pattern, "*")
	g := glob{head: pieces[0], fold: fold}
	if last := len(pieces) - 1; last > 0 {
		g.star = true
		g.tail = pieces[last]
		for _, p := range pieces[1:last] {
			if p != "" { // "**" is "*"
				g.mid = append(g.mid, p)
			}
		}
	}
	g.fixed = len(g.head) + len(g.tail)
	for _, p := range g.mid {
		g.fixed += len(p)
	}
	return g
}

// match reports whether the pattern matches the whole text.
func (g *glob) match(text string) bool {
	if len(text) < g.fixed || !g.star && len(text) != g.fixed {
		return false
	}
	end := len(text) - len(g.tail)
	if !g.fits(g.head, text) || !g.fits(g.tail, text[end:]) {
		return false
	}
	text = text[len(g.head):end]
	for _, piece := range g.mid {
		for !g.fits(piece, text) {
			if len(text) <= len(piece) {
				return false
			}
			text = text[1:]
		}
		text = text[len(piece):]
	}
	return true
}

// fits reports whether text begins with a match of piece.
func (g *glob) fits(piece, text string) bool {
	if len(text) < len(piece) {
		return false
	}
	for i := range len(piece) {
		c := text[i]
		if g.fold && 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != piece[i] && piece[i] != '?' {
			return false
		}
	}
	return true
}

// lowerASCII is strings.ToLower for ASCII letters only: the Kelvin sign is not
// a 'k' in the name of an action.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
