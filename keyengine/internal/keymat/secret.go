package keymat

import (
	"errors"
	"sync/atomic"
)

// ErrDestroyed is returned for the use of a secret that has been wiped.
var ErrDestroyed = errors.New("secret has been destroyed")

// Secret is a handle to a secret in an [Arena]. It is formatted as [redacted] and must be
// used through a pointer. It is safe for concurrent use. A nil or zero Secret behaves like
// a destroyed one.
type Secret struct {
	redacted
	_   noCopy
	blk *block
}

// noCopy makes go vet report copies.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// With calls fn with the secret's bytes and returns the result. fn must neither keep nor
// change the slice. If Destroy is called in the meantime, the secret is wiped when fn
// returns. If the secret is already destroyed, With returns ErrDestroyed without calling
// fn.
func (s *Secret) With(fn func(b []byte) error) error {
	blk := s.acquire()
	if blk == nil {
		return ErrDestroyed
	}
	defer blk.release()
	return fn(blk.bytes())
}

// Len returns the secret's length in bytes, or 0 if it has been destroyed.
func (s *Secret) Len() int {
	blk := s.acquire()
	if blk == nil {
		return 0
	}
	defer blk.release()
	return len(blk.bytes())
}

// Destroy wipes the secret, at once or when all current uses end. Destroying a secret again
// has no effect.
func (s *Secret) Destroy() {
	if s != nil && s.blk != nil {
		s.blk.destroy()
	}
}

func (s *Secret) acquire() *block {
	if s == nil || s.blk == nil || !s.blk.acquire() {
		return nil
	}
	return s.blk
}

// block is one allocation of an arena. Its owner holds one reference until destroy, and
// each use another one. Whichever is released last wipes the block.
type block struct {
	arena        *Arena
	first, slots int
	data         []byte
	refs         atomic.Int32
	dead         atomic.Bool
}

func (b *block) bytes() []byte { return b.data }

func (b *block) acquire() bool {
	for {
		n := b.refs.Load()
		if n == 0 || b.dead.Load() {
			return false
		}
		if b.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *block) release() {
	if b.refs.Add(-1) == 0 {
		b.arena.free(b)
	}
}

func (b *block) destroy() {
	if !b.dead.Swap(true) {
		b.release()
	}
}
