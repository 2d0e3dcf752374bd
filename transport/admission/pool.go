package admission

import (
	"net"
	"net/netip"
	"sync"
)

// Source is where something comes from, as far as it can be told before anybody
// has proved who it is: an IPv4 address, or the /64 of an IPv6 address, which is
// what one host is usually given. The zero Source stands for what has no address.
type Source netip.Addr

// SourceOf is the source of an address with or without a port.
func SourceOf(addr string) Source {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return Source{}
	}
	return sourceOfIP(ip)
}

func sourceOfIP(ip netip.Addr) Source {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		p, err := ip.Prefix(64)
		if err != nil {
			return Source{}
		}
		ip = p.Addr()
	}
	return Source(ip)
}

func sourceOfAddr(a net.Addr) Source {
	if t, ok := a.(*net.TCPAddr); ok {
		return sourceOfIP(t.AddrPort().Addr())
	}
	if a == nil {
		return Source{}
	}
	return SourceOf(a.String())
}

// Pool shares units (places, bytes) among sources nobody has vouched for. It
// refuses nobody because of what others hold: when a source has its own share, or
// all have the total, the oldest place goes of the source that holds the most. A
// flood so pushes out itself, and a source with one place loses it only when no
// other has two. A Pool is safe for concurrent use.
type Pool struct {
	total, each int64

	mu      sync.Mutex
	used    int64
	age     uint64
	sources map[Source]*holding
	evicted func()
	prefer  func(Source) bool
}

// holding is what one source has of a pool. The places that may be taken away are
// in a list, oldest first.
type holding struct {
	used          int64
	oldest, young *Place
}

// Place is a part of a pool that somebody holds.
type Place struct {
	pool   *Pool
	source Source
	units  int64
	age    uint64
	evict  func()

	// Guarded by the pool's lock.
	held, listed, lost bool
	prev, next         *Place
}

// NewPool makes a pool of total units, of which one source may hold each.
func NewPool(total, each int64) *Pool {
	return &Pool{total: total, each: min(each, total), sources: make(map[Source]*holding)}
}

// Prefer names sources that keep what they hold as long as others have anything:
// those that proved before whose they are. It is called with the pool locked, and
// before the pool is used.
func (p *Pool) Prefer(prefer func(Source) bool) { p.prefer = prefer }

// OnEvict has f called for each place that is taken away. It is set before the
// pool is used.
func (p *Pool) OnEvict(f func()) { p.evicted = f }

// Enter takes units for a source. evict is called, from any goroutine, if the
// place is taken away for somebody else; it must not block, and must have what
// the place stands for end soon. Enter fails only if what cannot be taken away
// (see Keep) leaves too little room.
func (p *Pool) Enter(s Source, units int64, evict func()) (*Place, bool) {
	c := &Place{pool: p, source: s, evict: evict}
	return c, p.grow(c, units)
}

// Grow takes more units for a place. A place that was taken away cannot grow.
func (c *Place) Grow(units int64) bool { return c.pool.grow(c, units) }

func (p *Pool) grow(c *Place, units int64) bool {
	p.mu.Lock()
	if c.lost {
		p.mu.Unlock()
		return false
	}
	h := p.sources[c.source]
	if h == nil {
		h = &holding{}
		p.sources[c.source] = h
	}
	if !c.held {
		p.age++
		c.age, c.held = p.age, true
		h.list(c)
	}
	h.used += units
	p.used += units
	c.units += units
	var gone []*Place
	for h.used > p.each || p.used > p.total {
		victim := p.victim(h)
		if victim == nil {
			break
		}
		victim.lost = true
		p.remove(victim)
		gone = append(gone, victim)
	}
	full := h.used > p.each || p.used > p.total
	if full && !c.lost {
		c.lost = true
		p.remove(c)
	}
	ok := !c.lost
	p.mu.Unlock()
	for _, v := range gone {
		if p.evicted != nil {
			p.evicted()
		}
		if v != c && v.evict != nil {
			v.evict()
		}
	}
	return ok
}

// victim is the place that goes next, so that what was added to h fits: of h
// itself if that is beyond its share, else of whoever holds the most. Of sources
// that hold as much the one with the oldest place loses it.
func (p *Pool) victim(h *holding) *Place {
	if h.used > p.each {
		return h.oldest
	}
	var most, mostPreferred *holding
	for s, o := range p.sources {
		if o.oldest == nil {
			continue
		}
		m := &most
		if p.prefer != nil && p.prefer(s) {
			m = &mostPreferred
		}
		if *m == nil || o.used > (*m).used || o.used == (*m).used && o.oldest.age < (*m).oldest.age {
			*m = o
		}
	}
	if most == nil {
		most = mostPreferred
	}
	if most == nil {
		return nil
	}
	return most.oldest
}

// Keep makes a place one that cannot be taken away any more. It reports whether
// it was not before.
func (c *Place) Keep() bool {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.lost || !c.held {
		return false
	}
	p.sources[c.source].unlist(c)
	return true
}

// Leave gives a place back. It may be called more than once. Evicted says
// afterwards whether it was taken away before.
func (c *Place) Leave() {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(c)
}

// Evicted reports whether the place was taken away.
func (c *Place) Evicted() bool {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.lost
}

// Used is how many units are held.
func (p *Pool) Used() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

func (p *Pool) remove(c *Place) {
	if !c.held {
		return
	}
	c.held = false
	h := p.sources[c.source]
	h.unlist(c)
	h.used -= c.units
	p.used -= c.units
	c.units = 0
	if h.used == 0 && h.oldest == nil {
		delete(p.sources, c.source)
	}
}

func (h *holding) list(c *Place) {
	c.listed, c.prev, c.next = true, h.young, nil
	if h.young != nil {
		h.young.next = c
	} else {
		h.oldest = c
	}
	h.young = c
}

func (h *holding) unlist(c *Place) {
	if !c.listed {
		return
	}
	c.listed = false
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		h.oldest = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		h.young = c.prev
	}
	c.prev, c.next = nil, nil
}
