// Package recent keeps the newest versions of something for a while.
package recent

import "sync"

// Kept is how many versions are kept.
const Kept = 128

// Versions keeps the newest versions of something. The zero value keeps none yet. It is safe for
// concurrent use.
type Versions[T any] struct {
	mu   sync.Mutex
	kept [Kept]*T
	next int
}

// Add adds versions, the oldest first.
func (r *Versions[T]) Add(versions []*T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range versions[max(0, len(versions)-Kept):] {
		r.kept[r.next%Kept] = v
		r.next++
	}
}

// Clear forgets all versions.
func (r *Versions[T]) Clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.kept[:])
}

// Find returns a version for which is returns true, or nil.
func (r *Versions[T]) Find(is func(*T) bool) *T {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.kept {
		if v != nil && is(v) {
			return v
		}
	}
	return nil
}
