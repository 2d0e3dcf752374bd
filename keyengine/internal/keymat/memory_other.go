//go:build !linux

package keymat

import "errors"

// memory is ordinary Go memory on this system, neither locked nor guarded.
type memory struct {
	data   []byte
	locked bool
}

func mapMemory(size int, lock func([]byte) error) (*memory, error) {
	m := &memory{data: make([]byte, size)}
	if err := lock(m.data); err != nil {
		return m, err
	}
	m.locked = true
	return m, nil
}

func lockMemory([]byte) error { return errors.New("memory locking is not supported on this system") }

func (m *memory) unmap() error {
	clear(m.data)
	m.data = nil
	return nil
}
