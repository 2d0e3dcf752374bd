package keymat

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// DefaultCacheEntries is the size of a cache that is created with max 0. That many keys of
// up to 64 bytes fill half of an arena of DefaultArenaSize.
const DefaultCacheEntries = 4096

// CacheID identifies unwrapped material by what it was unwrapped from. A key that was
// wrapped again, imported again or changed on disk is another entry.
type CacheID struct {
	Key     [16]byte
	Version [16]byte
	Wrapped [sha256.Size]byte // hash of the wrapped blob
}

// NewCacheID returns the id for material wrapped in blob. bound is the rest of the binding,
// apart from the two ids, so that an entry is found with the same binding only, just as the
// blob can be unwrapped with it only.
func NewCacheID(key, version [16]byte, blob []byte, bound ...string) CacheID {
	b := make([]byte, 0, 256) // on the stack
	b = binary.BigEndian.AppendUint32(b, uint32(len(blob)))
	b = append(b, blob...)
	for _, s := range bound {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return CacheID{Key: key, Version: version, Wrapped: sha256.Sum256(b)}
}

// CacheStats counts the operations of a cache.
type CacheStats struct {
	Entries   int    // current number, without those being unwrapped
	Hits      uint64 // uses that found the material or waited for its unwrapping
	Misses    uint64 // uses that unwrapped the material
	Evictions uint64 // entries removed, for any reason
}

// Cache caches unwrapped key material and evicts the least recently used. It is formatted
// as [redacted] and is safe for concurrent use.
type Cache struct {
	redacted
	max int

	mu      sync.Mutex
	entries map[CacheID]*list.Element // of *cacheEntry
	order   *list.List                // most recently used first
	filled  int                       // number of entries with material
	stats   CacheStats
}

// cacheEntry is material, or material being unwrapped. secret and err are written before
// ready is closed, by the one call that unwraps.
type cacheEntry struct {
	id     CacheID
	ready  chan struct{}
	secret *Secret
	err    error

	// Guarded by the cache's lock:
	users   int  // calls that wait for the entry or use it
	evicted bool // the last user destroys the secret
	filled  bool // counts towards the cache's size
}

// errUnwrapPanicked is returned to calls that waited for one that panicked.
var errUnwrapPanicked = errors.New("unwrapping key material panicked")

// NewCache returns a cache of at most max secrets. If max is 0, that is
// DefaultCacheEntries.
func NewCache(max int) *Cache {
	if max <= 0 {
		max = DefaultCacheEntries
	}
	return &Cache{max: max, entries: make(map[CacheID]*list.Element), order: list.New()}
}

// Use calls fn with the material of id, and returns the result of fn. If the material is
// not cached, Use calls unwrap, once for all concurrent callers. The cache owns the secret
// that unwrap returns. An error of unwrap is returned to all waiting callers and is not
// cached.
//
// Material that is evicted while it is in use is wiped when its last use ends. fn must
// neither keep nor change the slice. unwrap must not use the cache for the same id, as it
// would wait for itself.
func (c *Cache) Use(id CacheID, unwrap func() (*Secret, error), fn func(material []byte) error) error {
	c.mu.Lock()
	var e *cacheEntry
	if el, ok := c.entries[id]; ok {
		e = el.Value.(*cacheEntry)
		e.users++
		c.order.MoveToFront(el)
		c.stats.Hits++
		c.mu.Unlock()
		defer c.leave(e)
		<-e.ready
	} else {
		e = &cacheEntry{id: id, ready: make(chan struct{}), users: 1, err: errUnwrapPanicked}
		c.entries[id] = c.order.PushFront(e)
		c.stats.Misses++
		c.mu.Unlock()
		defer c.leave(e)
		c.fill(e, unwrap)
	}
	if e.err != nil {
		return e.err
	}
	return e.secret.With(fn)
}

// fill unwraps the material of e, and wakes the waiting calls even if unwrap panics.
func (c *Cache) fill(e *cacheEntry, unwrap func() (*Secret, error)) {
	defer func() {
		if e.err != nil {
			c.mu.Lock()
			c.remove(e) // the next call tries again
			c.mu.Unlock()
		}
		close(e.ready)
	}()
	s, err := unwrap()
	if err == nil && s == nil {
		err = fmt.Errorf("unwrapping key material: %w", ErrDestroyed)
	}
	e.secret, e.err = s, err
	if err == nil {
		// Evict only now, so that material which cannot be unwrapped does not evict other
		// material.
		c.mu.Lock()
		if !e.evicted {
			e.filled = true
			c.filled++
		}
		for c.filled > c.max {
			c.evictOldest()
		}
		c.mu.Unlock()
	}
}

// leave ends a use of e.
func (c *Cache) leave(e *cacheEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.users--
	if e.users == 0 && e.evicted {
		e.secret.Destroy()
	}
}

// remove removes e from the cache. Its secret is destroyed now, or when its last use ends.
func (c *Cache) remove(e *cacheEntry) {
	if e.evicted {
		return
	}
	e.evicted = true
	c.order.Remove(c.entries[e.id])
	delete(c.entries, e.id)
	c.stats.Evictions++
	if e.filled {
		c.filled--
	}
	if e.users == 0 {
		e.secret.Destroy()
	}
}

func (c *Cache) evictOldest() {
	if el := c.order.Back(); el != nil {
		c.remove(el.Value.(*cacheEntry))
	}
}

// Shrink releases one part in shrinkShare of a cache at a time. That keeps most entries,
// and suffices for adjacent slots to become free.
const shrinkShare = 16

// Shrink destroys the least recently used secrets that are not in use, a sixteenth of the
// cache and at least one, and reports whether there were any. It is meant for
// [Arena.OnFull].
func (c *Cache) Shrink() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for el := c.order.Back(); el != nil && n <= len(c.entries)/shrinkShare; {
		e := el.Value.(*cacheEntry)
		el = el.Prev()
		if e.users == 0 {
			c.remove(e)
			n++
		}
	}
	return n > 0
}

// Evict removes the entries for which match returns true, and returns their number.
// Material that is being unwrapped is still used by the calls that wait for it, and is then
// wiped.
func (c *Cache) Evict(match func(CacheID) bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for id, el := range c.entries {
		if match(id) {
			c.remove(el.Value.(*cacheEntry))
			n++
		}
	}
	return n
}

// EvictKey removes all material of a key and returns the number of entries.
func (c *Cache) EvictKey(key [16]byte) int {
	return c.Evict(func(id CacheID) bool { return id.Key == key })
}

// Purge removes everything. Material that is not in use is wiped when Purge returns, the
// rest when its uses end. Later uses do not find it.
func (c *Cache) Purge() { c.Evict(func(CacheID) bool { return true }) }

// Stats returns the statistics of the cache.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = c.filled
	return s
}
