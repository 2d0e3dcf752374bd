package keymat

import (
	"errors"
	"sync/atomic"
)

// ErrDestroyed is returned for the use of a secret that has been wiped.
var ErrDestroyed = errors.New("secret has been destroyed")

// Secret is a handle to a secret in an [Arena]. It prints as [redacted] and is
// used through a pointer only. It is safe for concurrent use. A nil or zero
// Secret behaves as a destroyed one.
type Secret struct {
	redacted
	_   noCopy
	blk *block
}

// noCopy makes vet report copies.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// With lends the secret's bytes to fn and returns what fn returns. fn may
// neither keep the slice nor change it. A Destroy in the meantime takes effect
// when fn has returned. With returns ErrDestroyed, without calling fn, when the
// secret is gone.
func (s *Secret) With(fn func(b []byte) error) error {
	blk := s.acquire()
	if blk == nil {
		return ErrDestroyed
	}
	defer blk.release()
	return fn(blk.bytes())
}

// Len is the secret's length in bytes, 0 when it has been destroyed.
func (s *Secret) Len() int {
	blk := s.acquire()
	if blk == nil {
		return 0
	}
	defer blk.release()
	return len(blk.bytes())
}

// Destroy wipes the secret, at once or when the uses under way end. To destroy
// a secret again does nothing.
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

// block is one allocation of an arena. Its owner holds one reference until
// destroy, every user one more; who drops the last one wipes.
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
