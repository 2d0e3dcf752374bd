package admission

import "sync/atomic"

// Gate lets a fixed number in at once, and turns others away rather than have them
// wait. It is safe for concurrent use.
type Gate struct {
	limit  int64
	inside atomic.Int64
}

// SetLimit says how many may be inside at once. It must be called before Enter.
func (g *Gate) SetLimit(n int64) { g.limit = n }

// Enter reports whether there is room, and takes it; Leave gives it back.
func (g *Gate) Enter() bool {
	if g.inside.Add(1) > g.limit {
		g.inside.Add(-1)
		return false
	}
	return true
}

// Leave gives back what Enter took.
func (g *Gate) Leave() { g.inside.Add(-1) }

// Inside is how many are inside now.
func (g *Gate) Inside() int64 { return g.inside.Load() }
