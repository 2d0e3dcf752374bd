package policy

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// slowGlob decides by the definition: a table of which prefixes of the pattern
// match which prefixes of the text.
func slowGlob(p, t string) bool {
	text := []rune(t)
	row := make([]bool, len(text)+1)
	row[0] = true
	for _, p := range p {
		next := make([]bool, len(text)+1)
		for i := range next {
			if p == '*' {
				next[i] = row[i] || i > 0 && next[i-1]
			} else {
				next[i] = i > 0 && row[i-1] && (p == '?' || p == text[i-1])
			}
		}
		row = next
	}
	return row[len(text)]
}

func TestGlob(t *testing.T) {
	tests := []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"*", "", true}, {"**", "", true}, {"?", "", false}, {"*?", "", false},
		{"?", "é", true}, {"??", "é", false}, {"*?", "é", true}, {"?*", "aé", true}, {"é*é", "é", false}, {"é*?", "éé", true}, {"a?*?b", "aéüb", true},
		{"*x?z*", "éxéz", true}, {"*?é", "üé", true}, {"*??é", "üé", false}, {"é", "Ã", false}, {"??", "日本", true}, {"*?", "\xc3", true},
		{"abc", "abc", true}, {"abc", "ab", false}, {"abc", "abcd", false},
		{"a*c", "ac", true}, {"a*c", "abbc", true}, {"a*c", "abcb", false}, {"a*a", "a", false}, {"a*a", "aa", true},
		{"ab*ba", "aba", false}, {"*ab*ab*", "abab", true}, {"*ab*ab*", "abxb", false},
		{"?*?", "a", false}, {"?*?", "ab", true}, {"*a?b*", "xaabb", true}, {"*a?b*", "xabab", false}, {"*?b", "b", false},
		{"*aab*", "aaab", true}, {"*a*a*", "ab", false}, {"*a?c*a?c", "abcabc", true}, {"*a?c*a?c", "abc", false},
	}
	for _, tt := range tests {
		if got := slowGlob(tt.pattern, tt.text); got != tt.want {
			t.Errorf("slowGlob(%q, %q) = %v, want %v", tt.pattern, tt.text, got, tt.want)
		}
		g := compileGlob(tt.pattern, false)
		if got := g.match(tt.text); got != tt.want {
			t.Errorf("glob %q on %q: %v, want %v", tt.pattern, tt.text, got, tt.want)
		}
	}
}

// TestGlobFoldsASCIIOnly: 'K' is equal to 'k'; the Kelvin sign and 'ſ' are not
// equal to 'k' and 's'; and characters next to the letters stay different ('@'
// and '`' are 32 apart, as 'A' and 'a' are).
func TestGlobFoldsASCIIOnly(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"KMS:En*T", "kms:encrypt", true}, {"kms:encrypt", "KMS:ENCRYPT", true}, {"Z[A", "z[a", true},
		{"kms", "\u212ams", false}, {"kms", "km\u017f", false}, {"@", "`", false}, {"`", "@", false}, {"[", "{", false}, {"é", "É", false},
	} {
		g := compileGlob(tt.pattern, true)
		if got := g.match(tt.text); got != tt.want {
			t.Errorf("folding glob %q on %q: %v, want %v", tt.pattern, tt.text, got, tt.want)
		}
	}
	g := compileGlob("key/a", false)
	if g.match("key/A") {
		t.Error("a plain glob disregards case")
	}
}

// TestGlobEqualsDefinition tries every short pattern on every short text.
func TestGlobEqualsDefinition(t *testing.T) {
	texts := wordsUpTo("ab", 5)
	for _, pattern := range wordsUpTo("ab*?", 6) {
		g := compileGlob(pattern, false)
		for _, text := range texts {
			if got, want := g.match(text), slowGlob(pattern, text); got != want {
				t.Fatalf("glob %q on %q: %v, want %v", pattern, text, got, want)
			}
		}
	}
}

// wordsUpTo lists the words of at most n letters.
func wordsUpTo(letters string, n int) []string {
	words := []string{""}
	for from := 0; n > 0; n-- {
		for to := len(words); from < to; from++ {
			for _, c := range letters {
				words = append(words, words[from]+string(c))
			}
		}
	}
	return words
}

func FuzzGlob(f *testing.F) {
	f.Add("kms:*", "kms:Encrypt")
	f.Add("arn:aws:kms:*:111122223333:key/*", testKey)
	f.Add("*a?c*a?c", "abcabc")
	f.Add(strings.Repeat("*a", 50)+"b", strings.Repeat("a", 200))
	f.Add(strings.Repeat("a?", 50)+"*b", strings.Repeat("a", 200))
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern)*len(text) > 1<<20 || !utf8.ValidString(pattern) || !utf8.ValidString(text) {
			return // the definition takes that many steps, and documents are UTF-8
		}
		g := compileGlob(pattern, false)
		if got, want := g.match(text), slowGlob(pattern, text); got != want {
			t.Errorf("glob %q on %q: %v, want %v", pattern, text, got, want)
		}
		g = compileGlob(pattern, true)
		if got, want := g.match(text), slowGlob(lowerASCII(pattern), lowerASCII(text)); got != want {
			t.Errorf("folding glob %q on %q: %v, want %v", pattern, text, got, want)
		}
	})
}
