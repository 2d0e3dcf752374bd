package keymat

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// DefaultCacheEntries bounds a cache that is made with 0: keys of 64 bytes and
// less fill half of an arena of DefaultArenaSize.
const DefaultCacheEntries = 4096

// CacheID names unwrapped material by what it was unwrapped from: a key that is
// re-wrapped, imported anew or edited on disk is another entry.
type CacheID struct {
	Key     [16]byte
	Version [16]byte
	Wrapped [sha256.Size]byte // hash of the wrapped blob
}

// NewCacheID returns the id for material wrapped in blob. bound is everything
// that unwrapping is bound to beside the two ids: an entry answers for the same
// binding only, as the blob itself would.
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

// CacheStats counts what a cache did.
type CacheStats struct {
	Entries   int    // now, those being unwrapped left out
	Hits      uint64 // uses that found the material, or waited for its unwrapping
	Misses    uint64 // uses that unwrapped
	Evictions uint64 // entries removed, for whatever reason
}

// Cache keeps unwrapped key material, the least recently used going first. It
// prints as [redacted] and is safe for concurrent use.
type Cache struct {
	redacted
	max int

	mu      sync.Mutex
	entries map[CacheID]*list.Element // of *cacheEntry
	order   *list.List                // most recently used first
	filled  int                       // entries whose material is there
	stats   CacheStats
}

// cacheEntry is material, or the wait for it. secret and err are written before
// ready is closed, by the one call that unwraps.
type cacheEntry struct {
	id     CacheID
	ready  chan struct{}
	secret *Secret
	err    error

	// Under the cache's lock:
	users   int  // calls that wait for the entry or use it
	evicted bool // the last user destroys the secret
	filled  bool // counts towards the cache's bound
}

// errUnwrapPanicked reaches those who waited for a call that panicked.
var errUnwrapPanicked = errors.New("unwrapping key material panicked")

// NewCache returns a cache of at most max secrets, 0 for DefaultCacheEntries.
func NewCache(max int) *Cache {
	if max <= 0 {
		max = DefaultCacheEntries
	}
	return &Cache{max: max, entries: make(map[CacheID]*list.Element), order: list.New()}
}

// Use lends the material of id to fn, and returns what fn returns. It calls
// unwrap when the material is not there: once for all that ask meanwhile. What
// unwrap returns becomes the cache's to destroy; its error goes to everybody
// who waited, and is not kept.
//
// Material that is evicted during the use is wiped when the last use of it
// ends. fn may neither keep the slice nor change it. unwrap must not ask the
// cache for the same id: it would wait for itself.
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

// fill unwraps for e, and wakes the others also when unwrap panics.
func (c *Cache) fill(e *cacheEntry, unwrap func() (*Secret, error)) {
	defer func() {
		if e.err != nil {
			c.mu.Lock()
			c.remove(e) // the next call tries anew
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
		// Only now: what cannot be unwrapped must not push out what can.
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

// remove takes e out of the cache. Its secret goes now, or with its last user.
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

// shrinkShare is the part of a cache, one in so many entries, that Shrink gives back
// at a time: few enough to keep most, and enough for fragments to become one piece.
const shrinkShare = 16

// Shrink destroys the least recently used of the secrets that nobody is using, a
// sixteenth of the cache and at least one, and reports whether there was any. It
// is what an arena needs for [Arena.OnFull].
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

// Evict removes the entries that match, and returns their number. Material that
// is being unwrapped meanwhile is still used by the calls that wait for it, and
// then wiped.
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

// EvictKey removes all material of a key, and returns the number of entries.
func (c *Cache) EvictKey(key [16]byte) int {
	return c.Evict(func(id CacheID) bool { return id.Key == key })
}

// Purge removes everything. Material that nobody uses is wiped when Purge
// returns, the rest as its uses end; no use that begins afterwards sees it.
func (c *Cache) Purge() { c.Evict(func(CacheID) bool { return true }) }

// Stats tells what the cache did so far.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = c.filled
	return s
}
