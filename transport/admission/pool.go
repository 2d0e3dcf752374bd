package admission

import (
	"net"
	"net/netip"
	"sync"
)

// Source identifies where something comes from as far as that is known before
// authentication: an IPv4 address, or the /64 of an IPv6 address, which is what
// one host is usually given. The zero Source stands for anything without an
// address.
type Source netip.Addr

// SourceOf returns the source of an address with or without a port.
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

// Pool shares units (places, bytes) among sources that are not authenticated. It
// refuses nobody because of what others hold: if a source would exceed its own
// share, or all sources the total, the oldest place of the source that holds the
// most is taken away. So a flood displaces itself, and a source with one place
// loses it only if no other source has two. A Pool is safe for concurrent use.
type Pool struct {
	total, each int64

	mu      sync.Mutex
	used    int64
	age     uint64
	sources map[Source]*holding
	evicted func()
	prefer  func(Source) bool
}

// holding is what one source has in a pool. Places that may be taken away are in
// a list, oldest first.
type holding struct {
	used          int64
	oldest, young *Place
}

// Place is a part of a pool that is held by a source.
type Place struct {
	pool   *Pool
	source Source
	units  int64
	age    uint64
	evict  func()

	// Guarded by the lock of the pool.
	held, listed, lost bool
	prev, next         *Place
}

// NewPool returns a pool of total units, of which each source may hold at most
// each.
func NewPool(total, each int64) *Pool {
	return &Pool{total: total, each: min(each, total), sources: make(map[Source]*holding)}
}

// Prefer sets the function that names preferred sources, such as those that were
// authenticated before. They keep what they hold as long as any other source
// holds something. The function is called with the pool locked. Prefer must be
// called before the pool is used.
func (p *Pool) Prefer(prefer func(Source) bool) { p.prefer = prefer }

// OnEvict sets a function that is called for each place that is taken away. It
// must be called before the pool is used.
func (p *Pool) OnEvict(f func()) { p.evicted = f }

// Enter takes units for a source. If the place is taken away for somebody else,
// evict is called, from any goroutine; it must not block, and must soon end
// whatever the place is for. Enter fails only if places that cannot be taken
// away (see Keep) leave too little room.
func (p *Pool) Enter(s Source, units int64, evict func()) (*Place, bool) {
	c := &Place{pool: p, source: s, evict: evict}
	return c, p.grow(c, units)
}

// Grow takes more units for a place. It fails for a place that was taken away.
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

// victim returns the place to take away next to make room for what was added to
// h: one of h itself if that exceeds its share, and otherwise one of the source
// that holds the most. If several hold equally much, the one with the oldest
// place loses it.
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

// Keep makes sure that a place cannot be taken away any more. It reports false
// if the place was taken away or given back already.
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

// Leave gives a place back. It may be called more than once. After it, Evicted
// still reports whether the place was taken away before.
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

// Used returns how many units are held.
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
