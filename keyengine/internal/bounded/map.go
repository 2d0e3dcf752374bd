// Package bounded provides caches of values that can be made again.
package bounded

import "sync"

// Map is a map with a maximum number of entries. When it is full, it evicts an arbitrary
// entry. It is safe for concurrent use.
type Map[K comparable, V any] struct {
	mu  sync.RWMutex
	max int
	m   map[K]V
}

// New returns an empty map for at most max entries.
func New[K comparable, V any](max int) *Map[K, V] {
	return &Map[K, V]{max: max, m: make(map[K]V)}
}

// Get returns the value of k, and whether there is one.
func (b *Map[K, V]) Get(k K) (V, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v, ok := b.m[k]
	return v, ok
}

// Put stores the value of k.
func (b *Map[K, V]) Put(k K, v V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.m[k]; !ok && len(b.m) >= b.max {
		for old := range b.m {
			delete(b.m, old)
			break
		}
	}
	b.m[k] = v
}

// Drop removes the entries for which match returns true.
func (b *Map[K, V]) Drop(match func(K) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k := range b.m {
		if match(k) {
			delete(b.m, k)
		}
	}
}

// Clear removes all entries.
func (b *Map[K, V]) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.m)
}

// Len returns the number of entries.
func (b *Map[K, V]) Len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.m)
}
