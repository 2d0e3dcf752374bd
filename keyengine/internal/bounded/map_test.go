package bounded

import "testing"

func TestMap(t *testing.T) {
	m := New[int, string](3)
	if _, ok := m.Get(1); ok {
		t.Error("an empty map has an entry")
	}
	for i := range 100 {
		m.Put(i, "new")
		m.Put(i, "newer") // evicts nothing
		if v, ok := m.Get(i); !ok || v != "newer" {
			t.Fatalf("%d is %q", i, v)
		}
		if want := min(i+1, 3); m.Len() != want {
			t.Fatalf("%d entries after %d, want %d", m.Len(), i+1, want)
		}
	}
	m.Drop(func(k int) bool { return k == 99 })
	if _, ok := m.Get(99); ok || m.Len() != 2 {
		t.Error("an entry was not dropped, or another one was")
	}
	if m.Clear(); m.Len() != 0 {
		t.Error("the map was not cleared")
	}
}
