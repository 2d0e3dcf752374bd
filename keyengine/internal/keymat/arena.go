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
	// DefaultArenaSize is the size in bytes of an arena that is opened with
	// size 0: room for 8,192 keys, and a sixteenth of the 8 MiB that Linux lets
	// a process lock without privileges.
	DefaultArenaSize = 512 << 10
	// MaxSecret is the longest secret that an arena takes, in bytes.
	MaxSecret = 8 << 10
	// reserveShare is the part of an arena, one in so many, that key material of
	// KMS keys cannot take: what must always work, such as sessions, signing and
	// unsealing, finds room there however many keys are in use at once.
	reserveShare = 8

	slotSize     = 64
	arenaUnit    = 64 * slotSize // what one word of the bitmap stands for; divides every page size
	maxArenaSize = 1 << 30
)

var (
	// ErrArenaFull is returned when no room is left for a secret.
	ErrArenaFull = errors.New("key memory is full")
	// ErrArenaClosed is returned for secrets after Close.
	ErrArenaClosed = errors.New("key memory is closed")
	// ErrNotLocked is returned by Open when memory has to be locked and cannot.
	ErrNotLocked = errors.New("key memory cannot be locked")
	// ErrSize is returned for a secret that is empty or too long.
	ErrSize = errors.New("secret has an impossible size")
	// ErrZero is returned for a secret of nothing but zero bytes.
	ErrZero = errors.New("secret is all zero")
)

// Arena is memory for secrets: on Linux one region that is locked (never
// swapped), left out of core files, empty in forked children, and enclosed by
// guard pages, so that running over its ends faults instead of reading keys.
// It is divided into slots of 64 bytes; a longer secret takes several.
//
// Caches that are registered with [Arena.OnFull] give their room back when it is
// needed, so an arena is full only when the secrets in use at one moment fill it.
// Key material is allocated through [Arena.Material], which leaves a reserve to
// everything else. An Arena is safe for concurrent use.
type Arena struct {
	redacted

	mu     sync.Mutex
	mem    *memory
	locked bool
	used   []uint64 // one bit for each slot
	next   int      // where to look for free slots first
	taken  int      // slots in use
	live   map[*block]struct{}
	closed bool
	// reclaim are the functions of OnFull, in the order in which they are asked.
	reclaim []*reclaimer
}

type reclaimer struct{ free func() bool }

// Material is the arena for the key material of KMS keys: it leaves a reserve of
// one eighth to other secrets.
type Material struct{ arena *Arena }

// Material returns the part of the arena that key material may take.
func (a *Arena) Material() Material { return Material{a} }

// Fill is [Arena.Fill] without the reserve.
func (m Material) Fill(n int, fn func(b []byte) error) (*Secret, error) {
	return m.arena.fill(n, m.arena.reserve(), fn)
}

// Store is [Arena.Store] without the reserve.
func (m Material) Store(b []byte) (*Secret, error) { return storeIn(m, b) }

// Random is [Arena.Random] without the reserve.
func (m Material) Random(n int) (*Secret, error) { return randomIn(m, n) }

// filler is where a secret can be made: an arena, or its part for material.
type filler interface {
	Fill(n int, fn func(b []byte) error) (*Secret, error)
}

// reserve is how many slots key material leaves free.
func (a *Arena) reserve() int { return len(a.used) * 64 / reserveShare }

// OnFull registers free, which is asked for room when a secret finds none: it
// destroys secrets that can be had again, and reports whether there were any. It
// is called without locks, by several at once, until there is room or every
// registered function reported false. The first that was registered is asked
// first. unregister ends it.
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

// Open returns an arena of size bytes, rounded up to pages, 0 for
// DefaultArenaSize. When the system
// refuses to lock the memory, Open fails with ErrNotLocked if requireLock is
// set; otherwise the arena works and Locked tells.
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

// Locked tells whether the memory is kept out of swap.
func (a *Arena) Locked() bool { return a.locked }

// Usage tells how many of the arena's slots of 64 bytes are in use.
func (a *Arena) Usage() (used, total int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return a.taken, a.taken
	}
	return a.taken, len(a.mem.data) / slotSize
}

// Fill makes a secret of n bytes that fn writes in place. When fn fails, or
// leaves nothing but zeros, the memory is wiped and there is no secret.
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
	// A secret that somebody lost is wiped too, if later.
	runtime.AddCleanup(s, (*block).destroy, blk)
	return s, nil
}

// Store moves b into a secret: b is wiped, also when Store fails.
func (a *Arena) Store(b []byte) (*Secret, error) { return storeIn(a, b) }

func storeIn(f filler, b []byte) (*Secret, error) {
	defer clear(b)
	return f.Fill(len(b), func(dst []byte) error {
		copy(dst, b)
		return nil
	})
}

// Random makes a secret of n random bytes.
func (a *Arena) Random(n int) (*Secret, error) { return randomIn(a, n) }

func randomIn(f filler, n int) (*Secret, error) {
	return f.Fill(n, func(dst []byte) error {
		_, err := rand.Read(dst)
		return err
	})
}

// Close wipes every secret and gives the memory back. Secrets in use at that
// moment are wiped as soon as their use ends; the others give an error from now
// on.
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
		b.destroy() // the last one to go unmaps
	}
	return err
}

// alloc finds room for n bytes and leaves keep slots free, after asking for room
// as often as anybody has some to give.
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

// tryAlloc also returns whom to ask for room when there is none.
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

// free takes back a block that nobody uses any more.
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
		_ = a.mem.unmap() // can only fail for a wrong address
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
			// Over the used ones at a stroke; bits shifted in count as free,
			// and the next round looks at them where they are.
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

// isZero tells whether b has no bit set, in a time that depends on its length
// only.
func isZero(b []byte) bool {
	var any byte
	for _, c := range b {
		any |= c
	}
	return any == 0
}
