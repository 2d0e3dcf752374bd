package recent

import "testing"

func TestVersions(t *testing.T) {
	var r Versions[int]
	find := func(n int) bool { return r.Find(func(v *int) bool { return *v == n }) != nil }
	if find(0) {
		t.Error("nothing is found as 0")
	}
	for n := 0; n < 3*Kept; {
		var some []*int
		for range n%5 + 1 {
			some = append(some, new(n))
			n++
		}
		r.Add(some)
		if !find(n-1) || find(n) || find(n-1-Kept) || n > Kept && !find(n-Kept) {
			t.Fatalf("of %d versions, not the newest %d are kept", n, Kept)
		}
	}
	many := make([]*int, 2*Kept)
	for i := range many {
		many[i] = new(-i)
	}
	if r.Add(many); find(-Kept+1) || !find(-Kept) || !find(-2*Kept+1) {
		t.Errorf("of versions that come together, not the newest %d are kept", Kept)
	}
	if r.Clear(); find(-2*Kept + 1) {
		t.Error("a version is found after Clear")
	}
}
