package policy

import "strings"

// A glob is a compiled pattern of an Action or a Resource: '*' stands for any
// run of bytes, also none, and also across ':' and '/'; '?' for exactly one
// byte; all else for itself. The texts matched are ASCII, where bytes are
// characters.
//
// Between its stars a pattern consists of pieces of fixed length. Taking each
// piece where it first fits is right, because that leaves the most text for the
// pieces after it, so matching never goes back. A pattern with more fixed bytes
// than the text has is refused before anything is compared; with that, a match
// costs at most about len(text)²/4 comparisons, whatever the pattern: the time
// is in the hands of who makes the texts (us) and not of who writes the policy.
type glob struct {
	head  string   // fits the start of the text; without a star, all of it
	mid   []string // fit between head and tail in this order
	tail  string   // fits the end
	star  bool     // the pattern has a '*'
	fixed int      // bytes of head, mid and tail together
	fold  bool     // 'A' to 'Z' in the text equal 'a' to 'z'; the pattern is lower case already
}

// compileGlob prepares a pattern. With fold, ASCII letters match without regard
// to case.
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

// match reports whether the whole text fits.
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

// fits reports whether text starts with piece.
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

// lowerASCII is strings.ToLower for ASCII letters only: the Kelvin sign is no
// 'k' in the name of an action.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
