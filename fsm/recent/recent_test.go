package recent

import "testing"

// TestValues: the newest values are found, and no others.
func TestValues(t *testing.T) {
	var r Values[int]
	has := func(n int) bool { return r.Find(func(v *int) bool { return *v == n }) != nil }
	for from := 0; from < 3*Size; from += 3 {
		r.Add([]*int{new(from), new(from + 1), new(from + 2)})
	}
	for n := range 3 * Size {
		if want := n >= 2*Size; has(n) != want {
			t.Fatalf("%d is kept: %v, want %v", n, !want, want)
		}
	}
	many := make([]*int, 2*Size)
	for i := range many {
		many[i] = new(1000 + i)
	}
	r.Add(many)
	if has(3*Size-1) || has(1000+Size-1) || !has(1000+Size) || !has(1000+2*Size-1) {
		t.Error("more values than it keeps were added, and others than the newest are kept")
	}
	r.Replace(new(7))
	if !has(7) || has(1000+2*Size-1) {
		t.Error("others than the one that replaced them are kept")
	}
}
