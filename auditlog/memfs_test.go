package auditlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

var (
	errInjected = errors.New("injected error")
	errPower    = errors.New("power is off")
)

// memFS is a file system in memory that keeps track of what an fsync made
// durable, can fail at any operation that changes something, and can simulate a
// loss of power.
type memFS struct {
	mu    sync.Mutex
	files map[string]*memFile // by path; directories have a nil content marker
	// durable are the names an fsync of their directory saved.
	durable map[string]*memFile

	ops    int // changing operations so far
	failAt int // the operation that fails; 0 for none
	mode   faultMode
	rng    *rand.Rand
	trace  []string
}

type faultMode int

const (
	faultBefore faultMode = iota // the operation does nothing and fails
	faultAfter                   // it does its work and fails
	faultTorn                    // a write stops half-way and fails
	powerCut                     // it does its work, and everything after it fails
	numFaultModes
)

type memFile struct {
	dir    bool
	data   []byte
	synced []byte
}

func newMemFS() *memFS {
	root := &memFile{dir: true}
	return &memFS{files: map[string]*memFile{"/": root}, durable: map[string]*memFile{"/": root}, rng: rand.New(rand.NewPCG(1, 2))}
}

// put sets a file's content, durably.
func (m *memFS) put(path string, b []byte) {
	m.MkdirAll(filepath.Dir(path), dirPerm)
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &memFile{data: b, synced: b}
	m.files[path], m.durable[path] = f, f
}

// op counts a changing operation and runs it, with the failure that is due.
func (m *memFS) op(what string, do func(torn bool)) error {
	m.ops++
	if len(m.trace) < 1<<16 {
		m.trace = append(m.trace, what)
	}
	switch {
	case m.failAt == 0 || m.ops < m.failAt:
		do(false)
		return nil
	case m.ops > m.failAt:
		if m.mode == powerCut {
			return errPower
		}
		do(false)
		return nil
	}
	switch m.mode {
	case faultBefore:
	case faultTorn:
		do(true)
	default:
		do(false)
	}
	return fmt.Errorf("%w: %s", errInjected, what)
}

func (m *memFS) OpenFile(name string, flag int, _ fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[name]
	switch {
	case f != nil && f.dir:
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is a directory")}
	case f != nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case f == nil && flag&os.O_CREATE == 0, f == nil && m.files[filepath.Dir(name)] == nil:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case f == nil:
		f = &memFile{}
		if err := m.op("create "+name, func(bool) { m.files[name] = f }); err != nil {
			return nil, err
		}
	case flag&os.O_TRUNC != 0:
		if err := m.op("truncate "+name, func(bool) { f.data = nil }); err != nil {
			return nil, err
		}
	}
	return &memHandle{m, f, name}, nil
}

func (m *memFS) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.files[name]; d == nil || !d.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	var names []string
	for p, f := range m.files {
		if p != "/" && filepath.Dir(p) == name {
			base := filepath.Base(p)
			if f.dir {
				base += "/"
			}
			names = append(names, base)
		}
	}
	sort.Strings(names)
	return names, nil
}

func (m *memFS) MkdirAll(name string, _ fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] != nil {
		return nil
	}
	path := ""
	for _, s := range strings.Split(strings.Trim(name, "/"), "/") {
		path += "/" + s
		if m.files[path] == nil {
			if err := m.op("mkdir "+path, func(bool) { m.files[path] = &memFile{dir: true} }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[from] == nil || m.files[filepath.Dir(to)] == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	return m.op("rename to "+to, func(bool) {
		m.files[to] = m.files[from]
		delete(m.files, from)
	})
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return m.op("remove "+name, func(bool) { delete(m.files, name) })
}

func (m *memFS) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	return m.op("fsync directory "+name, func(torn bool) {
		if torn {
			return
		}
		for p := range m.durable {
			if p != "/" && filepath.Dir(p) == name && m.files[p] == nil {
				delete(m.durable, p)
			}
		}
		for p, f := range m.files {
			if filepath.Dir(p) == name {
				m.durable[p] = f
			}
		}
	})
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

func (m *memFS) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] == nil {
		m.files[name] = &memFile{}
	}
	return nopCloser{}, nil
}

type memHandle struct {
	fs   *memFS
	f    *memFile
	name string
}

func (h *memHandle) ReadAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if off >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	n := copy(b, h.f.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.fs.op("write "+h.name, func(torn bool) {
		w := b
		if torn {
			w = b[:len(b)/2]
		}
		// A new slice: snapshots and synced share the old one.
		data := make([]byte, max(len(h.f.data), int(off)+len(w)))
		copy(data, h.f.data)
		copy(data[off:], w)
		h.f.data = data
	})
	return len(b), err
}

func (h *memHandle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.f.data)), nil
}

func (h *memHandle) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return h.fs.op("truncate "+h.name, func(bool) {
		data := make([]byte, size)
		copy(data, h.f.data)
		h.f.data = data
	})
}

func (h *memHandle) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return h.fs.op("fsync "+h.name, func(torn bool) {
		if !torn {
			h.f.synced = h.f.data
		}
	})
}

func (h *memHandle) Close() error { return nil }

// crash returns what may be found after a restart: each name that was not
// durable may exist or not, each block that was not durable may be new, old or
// zero, and a file may end anywhere between its old and its new length. If keep
// is set, everything written is there, as only the process ended.
func (m *memFS) crash(rng *rand.Rand, keep bool) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := newMemFS()
	done := make(map[*memFile]*memFile)
	after := func(f *memFile) *memFile {
		if g := done[f]; g != nil {
			return g
		}
		g := &memFile{dir: f.dir, data: f.data}
		if !f.dir && !keep {
			g.data = tear(rng, f.synced, f.data)
		}
		g.synced = g.data
		done[f] = g
		return g
	}
	paths := make(map[string]bool)
	for p := range m.files {
		paths[p] = true
	}
	for p := range m.durable {
		paths[p] = true
	}
	var sorted []string
	for p := range paths {
		sorted = append(sorted, p)
	}
	sort.Strings(sorted) // parents first
	for _, p := range sorted {
		f := m.files[p]
		if old := m.durable[p]; !keep && old != f && rng.IntN(2) == 0 {
			f = old
		}
		if f == nil || p != "/" && out.files[filepath.Dir(p)] == nil {
			continue
		}
		g := after(f)
		out.files[p], out.durable[p] = g, g
	}
	return out
}

const block = 512

// tear mixes the old and the new content of a file.
func tear(rng *rand.Rand, old, now []byte) []byte {
	lo, hi := min(len(old), len(now)), max(len(old), len(now))
	size := lo
	switch rng.IntN(3) {
	case 0:
		size = len(now)
	case 1:
		size = len(old)
	default:
		if hi > lo {
			size = lo + rng.IntN(hi-lo+1)
		}
	}
	out := make([]byte, size)
	for i := 0; i < size; i += block {
		end := min(i+block, size)
		src := now
		if rng.IntN(2) == 0 {
			src = old
		}
		if i < len(src) {
			copy(out[i:end], src[i:min(end, len(src))])
		}
	}
	return out
}
