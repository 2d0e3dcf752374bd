// Package intern makes objects that stay in memory take less of it: equal strings are held
// once, and byte slices that live together are allocated together.
package intern

// Texts interns strings: most keys have the same policy, spec, usage and Region. A string
// that it has forgotten is merely held twice. It is not safe for concurrent use.
type Texts struct {
	known map[string]string
	size  int // of all
}

// maxTexts bounds the strings that Texts remembers, in bytes. When there is no more
// room, it forgets all of them.
const maxTexts = 1 << 20

// NewTexts returns Texts that know no string.
func NewTexts() *Texts { return &Texts{known: make(map[string]string)} }

// Share replaces each string by an equal one that was seen before, if there is one.
func (t *Texts) Share(all ...*string) {
	for _, s := range all {
		if *s == "" {
			continue
		}
		if known, ok := t.known[*s]; ok {
			*s = known
			continue
		}
		if t.size+len(*s) > maxTexts {
			clear(t.known)
			t.size = 0
		}
		t.known[*s] = *s
		t.size += len(*s)
	}
}

// Join moves byte slices into one allocation. None of them has spare capacity, so that
// appending to one copies it.
func Join(parts ...*[]byte) {
	n := 0
	for _, p := range parts {
		n += len(*p)
	}
	whole := make([]byte, 0, n)
	for _, p := range parts {
		if from := len(whole); len(*p) > 0 {
			whole = append(whole, *p...)
			*p = whole[from:len(whole):len(whole)]
		}
	}
}
