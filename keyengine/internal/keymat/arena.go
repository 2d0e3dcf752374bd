package keymat

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
)

const (
	// DefaultArenaSize is the size in bytes of an arena that is opened with size 0: room
	// for 8,192 keys, and a sixteenth of the 8 MiB that Linux lets a process lock without
	// privileges.
	DefaultArenaSize = 512 << 10
	// MaxSecret is the maximum length of a secret in bytes.
	MaxSecret = 8 << 10
	// One part in reserveShare of an arena is not available to key material of KMS keys. It
	// leaves room for sessions, signing and unsealing, however many keys are in use.
	reserveShare = 8

	slotSize     = 64
	arenaUnit    = 64 * slotSize // covered by one word of the bitmap; divides every page size
	maxArenaSize = 1 << 30
)

var (
	// ErrArenaFull is returned when there is no room for a secret.
	ErrArenaFull = errors.New("key memory is full")
	// ErrArenaClosed is returned for secrets after Close.
	ErrArenaClosed = errors.New("key memory is closed")
	// ErrNotLocked is returned by Open if memory must be locked and cannot be.
	ErrNotLocked = errors.New("key memory cannot be locked")
	// ErrSize is returned for a secret that is empty or too long.
	ErrSize = errors.New("secret has an invalid size")
	// ErrZero is returned for a secret that consists of zero bytes only.
	ErrZero = errors.New("secret is all zero")
)

// Arena is memory for secrets. On Linux it is a region that is locked (never swapped), left
// out of core files, empty in forked children, and enclosed by guard pages, so that an
// access beyond its ends crashes and reads no keys. It is divided into slots of 64
// bytes; a longer secret takes several.
//
// Caches that are registered with [Arena.OnFull] release memory when it is needed, so an
// arena is full only if the secrets in use fill it. Key material is allocated through
// [Arena.Material], which leaves a reserve for everything else. An Arena is safe for
// concurrent use.
type Arena struct {
	redacted

	mu     sync.Mutex
	mem    *memory
	locked bool
	used   []uint64 // one bit for each slot
	next   int      // where to begin looking for free slots
	taken  int      // slots in use
	live   map[*block]struct{}
	closed bool
	// reclaim has the functions of OnFull, in the order in which they are called.
	reclaim []*reclaimer
}

type reclaimer struct{ free func() bool }

// Material allocates key material of KMS keys in an arena. It leaves a reserve of one
// eighth for other secrets.
type Material struct{ arena *Arena }

// Material returns the part of the arena that is available to key material.
func (a *Arena) Material() Material { return Material{a} }

// Fill is [Arena.Fill], leaving the reserve free.
func (m Material) Fill(n int, fn func(b []byte) error) (*Secret, error) {
	return m.arena.fill(n, m.arena.reserve(), fn)
}

// Store is [Arena.Store], leaving the reserve free.
func (m Material) Store(b []byte) (*Secret, error) { return storeIn(m, b) }

// Random is [Arena.Random], leaving the reserve free.
func (m Material) Random(n int) (*Secret, error) { return randomIn(m, n) }

// filler allocates secrets. It is an arena, or its part for key material.
type filler interface {
	Fill(n int, fn func(b []byte) error) (*Secret, error)
}

// reserve returns the number of slots that key material leaves free.
func (a *Arena) reserve() int { return len(a.used) * 64 / reserveShare }

// OnFull registers free, which is called when there is no room for a secret. It must
// destroy secrets that can be recreated, and report whether there were any. It is called
// without locks held, possibly concurrently, until there is room or every registered
// function has reported false. Functions are called in the order of their registration.
// unregister removes free.
func (a *Arena) OnFull(free func() bool) (unregister func()) {
	r := &reclaimer{free}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reclaim = append(slices.Clip(a.reclaim), r)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reclaim = slices.DeleteFunc(slices.Clone(a.reclaim), func(o *reclaimer) bool { return o == r })
	}
}

// Open returns an arena of size bytes, rounded up to pages, or of DefaultArenaSize if size
// is 0. If memory cannot be locked, Open fails with ErrNotLocked if requireLock is set, and
// otherwise returns an arena whose Locked method reports false.
func Open(size int, requireLock bool) (*Arena, error) {
	return open(size, requireLock, lockMemory)
}

func open(size int, requireLock bool, lock func([]byte) error) (*Arena, error) {
	if size == 0 {
		size = DefaultArenaSize
	}
	if size < slotSize || size > maxArenaSize {
		return nil, fmt.Errorf("%w: an arena of %d bytes; need %d to %d", ErrSize, size, slotSize, maxArenaSize)
	}
	mem, err := mapMemory((size+arenaUnit-1)/arenaUnit*arenaUnit, lock)
	if mem == nil {
		return nil, fmt.Errorf("opening key memory: %w", err)
	}
	if err != nil && requireLock {
		_ = mem.unmap()
		return nil, fmt.Errorf("%w: %w; raise the limit (systemd: LimitMEMLOCK=, containers: ulimits memlock "+
			"or the capability IPC_LOCK, shells: ulimit -l), or allow unlocked key memory in the "+
			"configuration and turn swap off", ErrNotLocked, err)
	}
	return &Arena{
		mem:    mem,
		locked: mem.locked,
		used:   make([]uint64, len(mem.data)/arenaUnit),
		live:   make(map[*block]struct{}),
	}, nil
}

// Locked reports whether the memory is locked.
func (a *Arena) Locked() bool { return a.locked }

// Usage returns the number of slots of 64 bytes in use, and of all slots.
func (a *Arena) Usage() (used, total int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return a.taken, a.taken
	}
	return a.taken, len(a.mem.data) / slotSize
}

// Fill returns a secret of n bytes that fn writes in place. If fn fails, or leaves only
// zeros, the memory is wiped and Fill returns an error.
func (a *Arena) Fill(n int, fn func(b []byte) error) (*Secret, error) { return a.fill(n, 0, fn) }

func (a *Arena) fill(n, keep int, fn func(b []byte) error) (*Secret, error) {
	blk, err := a.alloc(n, keep)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok { // fn failed or panicked
			blk.destroy()
		}
	}()
	if err := fn(blk.bytes()); err != nil {
		return nil, err
	}
	if isZero(blk.bytes()) {
		return nil, ErrZero
	}
	ok = true
	s := &Secret{blk: blk}
	// A secret that is no longer referenced is wiped too, if later.
	runtime.AddCleanup(s, (*block).destroy, blk)
	return s, nil
}

// Store returns a secret with the content of b. It always wipes b, also on failure.
func (a *Arena) Store(b []byte) (*Secret, error) { return storeIn(a, b) }

func storeIn(f filler, b []byte) (*Secret, error) {
	defer clear(b)
	return f.Fill(len(b), func(dst []byte) error {
		copy(dst, b)
		return nil
	})
}

// Random returns a secret of n random bytes.
func (a *Arena) Random(n int) (*Secret, error) { return randomIn(a, n) }

func randomIn(f filler, n int) (*Secret, error) {
	return f.Fill(n, func(dst []byte) error {
		_, err := rand.Read(dst)
		return err
	})
}

// Close wipes every secret and releases the memory. Secrets in use are wiped as soon as
// their use ends; all others return an error from then on.
func (a *Arena) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	blocks := make([]*block, 0, len(a.live))
	for b := range a.live {
		blocks = append(blocks, b)
	}
	var err error
	if len(blocks) == 0 {
		err = a.mem.unmap()
	}
	a.mu.Unlock()
	for _, b := range blocks {
		b.destroy() // the last one unmaps the memory
	}
	return err
}

// alloc allocates n bytes and leaves keep slots free. While there is no room, it calls the
// functions of OnFull.
func (a *Arena) alloc(n, keep int) (*block, error) {
	if n < 1 || n > MaxSecret {
		return nil, fmt.Errorf("%w: %d bytes, need 1 to %d", ErrSize, n, MaxSecret)
	}
	for {
		b, reclaim, err := a.tryAlloc(n, keep)
		if !errors.Is(err, ErrArenaFull) || !slices.ContainsFunc(reclaim, func(r *reclaimer) bool { return r.free() }) {
			return b, err
		}
	}
}

// tryAlloc also returns the functions to call if there is no room.
func (a *Arena) tryAlloc(n, keep int) (*block, []*reclaimer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, nil, ErrArenaClosed
	}
	slots := (n + slotSize - 1) / slotSize
	total := len(a.used) * 64
	first := -1
	if a.taken+slots <= total-keep {
		first = a.find(slots)
	}
	if first < 0 {
		return nil, a.reclaim, fmt.Errorf("%w: %d of %d slots in use, %d kept free, %d needed in a row",
			ErrArenaFull, a.taken, total, keep, slots)
	}
	for i := first; i < first+slots; i++ {
		a.mark(i, true)
	}
	a.taken += slots
	a.next = first + slots
	b := &block{arena: a, first: first, slots: slots, data: a.mem.data[first*slotSize:][:n:n]}
	b.refs.Store(1)
	a.live[b] = struct{}{}
	return b, nil, nil
}

// free releases a block that is no longer in use.
func (a *Arena) free(b *block) {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(b.data)
	for i := b.first; i < b.first+b.slots; i++ {
		a.mark(i, false)
	}
	a.taken -= b.slots
	delete(a.live, b)
	if a.closed && len(a.live) == 0 {
		_ = a.mem.unmap() // can fail only for a wrong address
	}
}

// find returns the first of n free slots in a row, or -1.
func (a *Arena) find(n int) int {
	total := len(a.used) * 64
	if i := a.findIn(a.next, total, n); i >= 0 {
		return i
	}
	return a.findIn(0, min(a.next+n, total), n)
}

func (a *Arena) findIn(from, to, n int) int {
	run := 0
	for i := from; i < to; {
		word := a.used[i/64] >> (i % 64)
		if run == 0 && word != 0 && word&1 == 1 {
			// Skip all used slots at once. Bits that are shifted in count as free; the next
			// round looks at them in their own word.
			i += min(bits.TrailingZeros64(^word), 64-i%64)
			continue
		}
		if word&1 == 1 {
			run = 0
			i++
			continue
		}
		i++
		if run++; run == n {
			return i - n
		}
	}
	return -1
}

func (a *Arena) mark(slot int, used bool) {
	if used {
		a.used[slot/64] |= 1 << (slot % 64)
	} else {
		a.used[slot/64] &^= 1 << (slot % 64)
	}
}

// isZero reports whether all bits of b are zero, in time that depends only on its length.
func isZero(b []byte) bool {
	var any byte
	for _, c := range b {
		any |= c
	}
	return any == 0
}
