package vault

import "sync"

// bounded is a map with at most max entries, as a cache of values that are cheap to
// compute. When it is full, it evicts an arbitrary entry. It is safe for concurrent use.
type bounded[K comparable, V any] struct {
	mu  sync.RWMutex
	max int
	m   map[K]V
}

func newBounded[K comparable, V any](max int) *bounded[K, V] {
	return &bounded[K, V]{max: max, m: make(map[K]V)}
}

func (b *bounded[K, V]) get(k K) (V, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v, ok := b.m[k]
	return v, ok
}

func (b *bounded[K, V]) put(k K, v V) {
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

// drop removes the entries for which match returns true.
func (b *bounded[K, V]) drop(match func(K) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k := range b.m {
		if match(k) {
			delete(b.m, k)
		}
	}
}

func (b *bounded[K, V]) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.m)
}
