package keymat

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memory is a region outside the Go heap, so that the garbage collector neither copies it
// nor leaves parts of it behind.
type memory struct {
	data   []byte // usable part
	all    []byte // data and the guard pages around it
	locked bool
}

// mapMemory maps size bytes, rounded up to pages, between two pages that fault on any
// access. lock is unix.Mlock; tests replace it with one that fails.
func mapMemory(size int, lock func([]byte) error) (*memory, error) {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", size+2*page, err)
	}
	m := &memory{all: all, data: all[page : page+size : page+size]}
	if err := unix.Mprotect(m.data, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		_ = unix.Munmap(all)
		return nil, fmt.Errorf("making %d bytes usable: %w", size, err)
	}
	// These are best effort: kernels and sandboxes without them still have the rest.
	_ = unix.Madvise(m.data, unix.MADV_DONTDUMP)
	_ = unix.Madvise(m.data, unix.MADV_WIPEONFORK)
	if err := lock(m.data); err != nil {
		return m, fmt.Errorf("mlock of %d bytes: %w", size, err)
	}
	m.locked = true
	return m, nil
}

func lockMemory(b []byte) error { return unix.Mlock(b) }

func (m *memory) unmap() error {
	clear(m.data)
	m.data = nil
	return unix.Munmap(m.all) // also unlocks
}
