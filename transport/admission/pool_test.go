package admission

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
)

func src(s string) Source { return SourceOf(s) }

// seat takes a place and notes whether it was taken away.
func seat(t *testing.T, p *Pool, from string, units int64) (*Place, *bool) {
	t.Helper()
	gone := new(bool)
	c, ok := p.Enter(src(from), units, func() { *gone = true })
	if !ok {
		t.Fatalf("%s was refused", from)
	}
	return c, gone
}

func TestSources(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"[2001:db8::1]:1", "[2001:db8::ffff:2]:9", true},
		{"[2001:db8:0:1::1]:1", "[2001:db8::1]:1", false},
		{"[fe80::1%eth0]:1", "[fe80::2%eth1]:1", true},
		{"garbage", "", true},
	} {
		if got := src(tt.a) == src(tt.b); got != tt.same {
			t.Errorf("%s and %s: one source is %v", tt.a, tt.b, got)
		}
	}
	if sourceOfAddr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[::ffff:192.0.2.1]:7"))) != src("192.0.2.1") {
		t.Error("an address and its text are two sources")
	}
}

// TestBusiestSourceLosesItsOldest: a flood of any size displaces only itself.
func TestBusiestSourceLosesItsOldest(t *testing.T) {
	p := NewPool(8, 4)
	_, quiet := seat(t, p, "10.0.0.1", 1)
	var flood []*bool
	for range 100 {
		_, gone := seat(t, p, "10.0.0.2", 1)
		flood = append(flood, gone)
	}
	for i, gone := range flood {
		if want := i < 96; *gone != want {
			t.Errorf("place %d of the flood is gone: %v", i, *gone)
		}
	}
	for range 100 { // from many addresses at once
		seat(t, p, "10.0.0.3", 1)
		seat(t, p, "10.0.0.4", 1)
	}
	if *quiet {
		t.Error("a source with one place lost it to sources with more")
	}
	if p.Used() != 8 {
		t.Errorf("%d units are used", p.Used())
	}
	// A new source is admitted, and not at the expense of the quiet one.
	_, fresh := seat(t, p, "10.0.0.5", 1)
	if *fresh || *quiet {
		t.Errorf("newcomer gone: %v, quiet gone: %v", *fresh, *quiet)
	}
}

func TestOneEachOldestGoes(t *testing.T) {
	p := NewPool(2, 2)
	_, a := seat(t, p, "10.0.0.1", 1)
	_, b := seat(t, p, "10.0.0.2", 1)
	_, c := seat(t, p, "10.0.0.3", 1)
	if !*a || *b || *c {
		t.Errorf("gone: %v %v %v", *a, *b, *c)
	}
}

func TestPreferredSourcesGoLast(t *testing.T) {
	p := NewPool(3, 2)
	p.Prefer(func(s Source) bool { return s == src("10.0.0.9") })
	_, node := seat(t, p, "10.0.0.9", 1)
	for i := range 200 {
		seat(t, p, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}).String(), 1)
	}
	if *node {
		t.Error("a known node's place went to strangers")
	}
	for range 3 { // but it has no more than its share
		seat(t, p, "10.0.0.9", 1)
	}
	if !*node {
		t.Error("a preferred source holds more than its share")
	}
}

func TestBytes(t *testing.T) {
	p := NewPool(100, 60)
	a, gone := seat(t, p, "10.0.0.1", 10)
	if !a.Grow(40) || a.Grow(20) {
		t.Error("a place may grow up to its source's share and no further")
	}
	if !a.Evicted() || *gone {
		t.Errorf("evicted %v; evict was called for one's own demand: %v", a.Evicted(), *gone)
	}
	b, _ := seat(t, p, "10.0.0.1", 50)
	if !b.Keep() {
		t.Error("could not be kept")
	}
	c, _ := seat(t, p, "10.0.0.2", 50)
	c.Keep()
	if _, ok := p.Enter(src("10.0.0.3"), 1, nil); ok {
		t.Error("more was let in than there is room for")
	}
	b.Leave()
	b.Leave()
	c.Leave()
	if p.Used() != 0 || len(p.sources) != 0 {
		t.Errorf("%d units and %d sources are left", p.Used(), len(p.sources))
	}
	if c.Keep() || a.Grow(1) {
		t.Error("who left is still in")
	}
}

// TestPoolKeepsCount runs all methods concurrently, for the race detector too.
func TestPoolKeepsCount(t *testing.T) {
	p := NewPool(50, 10)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 2000 {
				from := Source(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}))
				c, ok := p.Enter(from, 1+r.Int64N(3), func() {})
				if ok && r.IntN(2) == 0 {
					c.Grow(1)
				}
				if ok && r.IntN(4) == 0 {
					c.Keep()
				}
				if used := p.Used(); used > 50 {
					t.Errorf("%d units", used)
				}
				c.Leave()
			}
		})
	}
	wg.Wait()
	if p.Used() != 0 || len(p.sources) != 0 {
		t.Errorf("%d units and %d sources are left", p.Used(), len(p.sources))
	}
}
