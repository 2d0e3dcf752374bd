package auditlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Sync makes everything appended so far durable. It may run beside Append.
func (l *Log) Sync() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	return l.sync()
}

// sync does Sync's work; syncMu is held.
//
// The order survives a crash at any point: entries first, then the names of their
// files, then the durable mark, which is what Open believes, then the removal of
// what the mark no longer names.
func (l *Log) sync() error {
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return l.failed
	}
	var runs []*run
	use := func(r *run) {
		if r.dirty {
			r.dirty = false // again by an append that comes meanwhile
			runs = append(runs, r)
		}
	}
	mark := durableMark{tree: l.tree}
	for _, p := range l.pending {
		use(p.run)
		mark.pending = append(mark.pending, durablePending{p.first, p.next()})
	}
	sealed := l.sealed
	for _, r := range sealed {
		use(r)
	}
	if l.seg != nil {
		use(l.seg)
	}
	var tiles []string
	if len(sealed) > 0 {
		tiles, l.tiles = l.tiles, nil
		// Those of the segment that began since are not due; doing them is harmless.
	}
	for _, name := range tiles {
		for d := filepath.Dir(name); ; d = filepath.Dir(d) {
			l.dirty(d)
			if d == "." {
				break
			}
		}
	}
	dirs := l.dirs
	retired := l.retired
	l.sealed, l.dirs, l.retired = nil, nil, nil
	l.mu.Unlock()

	if len(runs)+len(tiles)+len(dirs)+len(retired) == 0 {
		return nil
	}
	if err := l.flush(runs, sealed, tiles, dirs, mark, retired); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(err)
	}
	l.mu.Lock()
	l.durable = mark.tree.size
	l.mu.Unlock()
	return nil
}

func (l *Log) flush(runs, sealed []*run, tiles []string, dirs map[string]struct{}, mark durableMark, retired []*pending) error {
	for _, r := range runs {
		if err := r.file.Sync(); err != nil {
			return fmt.Errorf("syncing %s: %w", r.name, err)
		}
	}
	for _, r := range sealed {
		if err := r.file.Close(); err != nil {
			return fmt.Errorf("closing %s: %w", r.name, err)
		}
	}
	for _, name := range tiles {
		if err := l.syncFile(name); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := l.fs.SyncDir(filepath.Join(l.dir, d)); err != nil {
			return fmt.Errorf("syncing directory %s: %w", d, err)
		}
	}
	if err := put(l.fs, l.dir, durableFile, mark.encode(), true); err != nil {
		return fmt.Errorf("writing the durable mark: %w", err)
	}
	for _, p := range retired {
		if err := errors.Join(p.file.Close(), l.fs.Remove(p.path)); err != nil {
			return fmt.Errorf("removing %s: %w", p.name, err)
		}
	}
	return nil
}

func (l *Log) syncFile(name string) error {
	f, err := l.fs.OpenFile(filepath.Join(l.dir, name), os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}

// durableMark is what the newest Sync made durable: nothing up to there can be
// the torn end of a crash, so whatever is wrong with it is damage.
type durableMark struct {
	tree    Frontier
	pending []durablePending
}

type durablePending struct{ first, next uint64 }

// maxPending bounds how many pending runs a mark names. Each stands for a
// snapshot installed while a gap was open.
const maxPending = 1 << 16

const maxDurable = 8 + 4 + 4 + maxFrontier + 2 + maxPending*16 + 32

func (m *durableMark) encode() []byte {
	tree := m.tree.appendBinary(nil)
	b := binary.BigEndian.AppendUint16(nil, uint16(len(tree)))
	b = append(b, tree...)
	for _, p := range m.pending {
		b = binary.BigEndian.AppendUint64(b, p.first)
		b = binary.BigEndian.AppendUint64(b, p.next)
	}
	return sealed(durableMagic, b)
}

func (m *durableMark) decode(b []byte) error {
	c, n, err := unseal(durableMagic, b)
	if err != nil {
		return err
	}
	if n != len(b) || len(c) < 2 {
		return fmt.Errorf("%w: length", ErrMalformed)
	}
	tree := int(binary.BigEndian.Uint16(c))
	if c = c[2:]; tree > len(c) || (len(c)-tree)%16 != 0 || (len(c)-tree)/16 > maxPending {
		return fmt.Errorf("%w: length", ErrMalformed)
	}
	*m = durableMark{}
	if err := m.tree.UnmarshalBinary(c[:tree]); err != nil {
		return err
	}
	for c = c[tree:]; len(c) > 0; c = c[16:] {
		p := durablePending{binary.BigEndian.Uint64(c), binary.BigEndian.Uint64(c[8:])}
		if p.next < p.first {
			return fmt.Errorf("%w: pending entries %d to %d", ErrMalformed, p.first, p.next)
		}
		m.pending = append(m.pending, p)
	}
	return nil
}
