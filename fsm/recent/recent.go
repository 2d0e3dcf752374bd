// Package recent keeps the newest of a sequence of values.
package recent

import "sync"

// Size is how many values are kept.
const Size = 128

// Values are the newest values. They are safe for concurrent use.
type Values[T any] struct {
	mu     sync.Mutex
	values [Size]*T
	next   int
}

// Add adds values, the newest last.
func (r *Values[T]) Add(values []*T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range values[max(0, len(values)-Size):] {
		r.values[r.next%Size] = v
		r.next++
	}
}

// Replace forgets all values but one.
func (r *Values[T]) Replace(v *T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.values[:])
	r.values[0], r.next = v, 1
}

// Find returns a value that is kept and that fits; nil if there is none.
func (r *Values[T]) Find(fits func(*T) bool) *T {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.values {
		if v != nil && fits(v) {
			return v
		}
	}
	return nil
}
