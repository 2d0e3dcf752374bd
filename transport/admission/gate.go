package admission

import "sync/atomic"

// Gate admits a fixed number at once, and refuses others instead of making them
// wait. It is safe for concurrent use.
type Gate struct {
	limit  int64
	inside atomic.Int64
}

// SetLimit sets how many may be inside at once. It must be called before Enter.
func (g *Gate) SetLimit(n int64) { g.limit = n }

// Enter takes a place if there is one, and reports whether it did. Leave gives
// it back.
func (g *Gate) Enter() bool {
	if g.inside.Add(1) > g.limit {
		g.inside.Add(-1)
		return false
	}
	return true
}

// Leave gives back the place that Enter took.
func (g *Gate) Leave() { g.inside.Add(-1) }

// Inside returns how many are inside now.
func (g *Gate) Inside() int64 { return g.inside.Load() }
