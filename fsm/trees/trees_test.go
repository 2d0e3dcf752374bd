package trees

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

type item struct {
	id    string
	texts []string
}

// A listing finds the same as a search through all items, and its copies stay as they are.
func TestListing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	l := New(func(i *item) []byte { return []byte(i.id) })
	all := make(map[string]*item)
	check := func(l *Listing[*item], all map[string]*item) {
		t.Helper()
		n := 0
		for text := range 6 {
			text, from := fmt.Sprint("text", text), fmt.Sprint(rnd.IntN(100))
			var want []*item
			for _, i := range all {
				if slices.Contains(i.texts, text) {
					n++
					if i.id >= from {
						want = append(want, i)
					}
				}
			}
			slices.SortFunc(want, func(a, b *item) int { return map[bool]int{true: -1, false: 1}[a.id < b.id] })
			if got := slices.Collect(l.All(text, &item{id: from})); !slices.Equal(got, want) {
				t.Fatalf("%s from %s: got %d items, want %d", text, from, len(got), len(want))
			}
		}
		if l.Len() != n {
			t.Fatalf("there are %d entries, want %d", l.Len(), n)
		}
	}
	for range 2000 {
		i := &item{id: fmt.Sprint(rnd.IntN(100))}
		for text := range 6 {
			if rnd.IntN(3) == 0 {
				i.texts = append(i.texts, fmt.Sprint("text", text))
			}
		}
		before, beforeAll := l.Clone(), make(map[string]*item)
		for id, i := range all {
			beforeAll[id] = i
		}
		was := all[i.id]
		switch rnd.IntN(3) {
		case 0: // goes
			if was != nil {
				l.Remove(was, was.texts)
				delete(all, i.id)
			}
		default: // comes, or takes another's place; the old one goes afterwards, as in a table
			l.Insert(i, i.texts)
			if was != nil {
				l.Remove(was, was.texts)
			}
			all[i.id] = i
		}
		check(l, all)
		check(before, beforeAll)
	}
}
