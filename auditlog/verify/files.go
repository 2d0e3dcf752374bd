package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// segment reads a segment, checks its entries and adds their leaves to the tree.
func (v *verifier) segment(n uint64, last bool) {
	name := layout.SegmentPath(n)
	first := n * auditlog.SegmentSize
	if v.broken {
		// The entries of the segment are still checked one by one.
		v.size, v.partial = first, nil
	}
	f, err := v.open(name)
	if errors.Is(err, fs.ErrNotExist) && n >= v.removed {
		if v.readRemoved(); n < v.removed { // since its file was listed
			v.removedSegment(n)
			return
		}
	}
	if err != nil {
		v.problem(name, 0, first, "%v", err)
		v.broken = true
		return
	}
	defer f.Close()
	size, err := f.Size()
	head := make([]byte, min(size, layout.SegmentHeaderSize))
	if err == nil {
		if _, err = f.ReadAt(head, 0); int64(len(head)) == size {
			err = nil
		}
	}
	if err != nil {
		v.problem(name, 0, first, "%v", err)
		v.broken = true
		return
	}
	if want := layout.SegmentHeader(n); !bytes.Equal(head, want) {
		if last && first >= max(v.checkpoint.Size, v.mark.Tree.Size()) && bytes.HasPrefix(want, head) {
			v.rep.Torn = size
			return
		}
		v.problem(name, 0, first, "the header is not that of segment %d", n)
	}
	next := first
	err = layout.ScanFrames(f, layout.SegmentHeaderSize, size, func(off int64, frame []byte) error {
		if next == first+auditlog.SegmentSize {
			v.problem(name, off, next, "more than %d entries", uint64(auditlog.SegmentSize))
			v.broken = true
			return errStop
		}
		v.frame(name, off, next, frame, true)
		next++
		return nil
	})
	var bad *layout.FrameError
	switch {
	case errors.As(err, &bad):
		if last && errors.Is(bad, layout.ErrTorn) && next >= max(v.checkpoint.Size, v.mark.Tree.Size()) && !hidesFrame(f, bad.Off, size) {
			v.rep.Torn = size - bad.Off
			return
		}
		v.problem(name, bad.Off, next, "%v", bad.Err)
		v.broken = true
	case err != nil && !errors.Is(err, errStop):
		v.problem(name, 0, next, "%v", err)
		v.broken = true
	case !last && next != first+auditlog.SegmentSize:
		v.problem(name, size, next, "the segment ends here, but is followed by others")
		v.broken = true
	}
}

// open opens a file of a segment, in the directory or where it was moved to.
func (v *verifier) open(name string) (auditlog.File, error) {
	f, err := v.fs.OpenFile(filepath.Join(v.dir, name), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) && v.elsewhere != nil {
		return v.elsewhere.OpenFile(name, os.O_RDONLY, 0)
	}
	return f, err
}

// removedSegment checks a segment that was removed from the directory: the entries, if they are
// to be had, or the hashes.
func (v *verifier) removedSegment(n uint64) {
	if v.elsewhere != nil {
		v.segment(n, false)
		v.moved = append(v.moved, n)
		return
	}
	v.rep.Unread += auditlog.SegmentSize
	for i := range uint64(auditlog.TileWidth) {
		name := layout.TilePath(0, n*auditlog.TileWidth+i)
		b, err := auditlog.ReadFile(v.fs, filepath.Join(v.dir, name), auditlog.TileWidth*auditlog.HashSize)
		if err == nil && len(b) != auditlog.TileWidth*auditlog.HashSize {
			err = fmt.Errorf("%w: %d bytes", auditlog.ErrCorrupt, len(b))
		}
		if err != nil {
			v.problem(name, 0, v.size, "it is needed for entries that were moved: %v", err)
			v.broken = true
			return
		}
		for ; len(b) > 0; b = b[auditlog.HashSize:] {
			v.leaf(auditlog.Hash(b[:auditlog.HashSize]))
		}
	}
}

// leaf adds a leaf to the tree, which is whole up to there.
func (v *verifier) leaf(leaf auditlog.Hash) {
	v.grow(0, leaf)
	v.tree.Append(leaf)
	v.size++
	v.reach()
}

// frame checks one frame and, when it belongs to the tree, adds it.
func (v *verifier) frame(name string, off int64, index uint64, frame []byte, inTree bool) {
	e, _, err := auditlog.DecodeFrame(frame)
	if err != nil {
		v.problem(name, off, index, "%v", err)
		e = auditlog.DecodeHead(frame)
	} else {
		// The fields of a damaged frame say nothing about its neighbours.
		if e.Index != index {
			v.problem(name, off, index, "entry %d is where %d belongs", e.Index, index)
		}
		if e.RaftIndex < v.raft {
			v.problem(name, off, index, "the Raft index goes back from %d to %d", v.raft, e.RaftIndex)
		}
		if e.Time < v.time {
			v.problem(name, off, index, "the time goes back from %d to %d", v.time, e.Time)
		}
		v.raft, v.time = e.RaftIndex, e.Time
	}
	if e.RequestID != ([16]byte{}) {
		v.ids = append(v.ids, idHash(e.RequestID))
	}
	if !inTree {
		return
	}
	// The stored hash is used instead of the computed one, so that a damaged
	// body is one problem and the checkpoint still shows whether the rest is
	// intact.
	leaf := auditlog.Hash(frame[len(frame)-auditlog.HashSize:])
	if v.broken {
		v.size++
		return
	}
	v.leaf(leaf)
}

// grow adds a hash to a level and compares each full tile with its file.
func (v *verifier) grow(level int, h auditlog.Hash) {
	if level == len(v.partial) {
		v.partial = append(v.partial, make([]auditlog.Hash, 0, auditlog.TileWidth))
	}
	v.partial[level] = append(v.partial[level], h)
	if len(v.partial[level]) < auditlog.TileWidth {
		return
	}
	n := v.size >> (layout.TileHeight * (level + 1))
	v.tile(level, n, v.partial[level])
	var tile auditlog.Frontier
	for _, h := range v.partial[level] {
		tile.Append(h)
	}
	v.partial[level] = v.partial[level][:0]
	v.grow(level+1, tile.Root())
}

func (v *verifier) tile(level int, n uint64, want []auditlog.Hash) {
	name := layout.TilePath(level, n)
	first := n << (layout.TileHeight * (level + 1))
	b, err := auditlog.ReadFile(v.fs, filepath.Join(v.dir, name), auditlog.TileWidth*auditlog.HashSize)
	if errors.Is(err, fs.ErrNotExist) {
		// A live writer writes the tile after the entries.
		if (n+1)<<(layout.TileHeight*(level+1)) <= v.checkpoint.Size {
			v.problem(name, 0, first, "the file is missing")
		}
		return
	}
	if err != nil {
		v.problem(name, 0, first, "%v", err)
		return
	}
	if len(b) != auditlog.TileWidth*auditlog.HashSize {
		v.problem(name, int64(len(b)), first, "%d bytes where %d belong", len(b), auditlog.TileWidth*auditlog.HashSize)
		return
	}
	at, wrong := 0, 0
	for i, h := range slices.Backward(want) {
		if auditlog.Hash(b[i*auditlog.HashSize:(i+1)*auditlog.HashSize]) != h {
			at = i
			wrong++
		}
	}
	if wrong > 0 {
		v.problem(name, int64(at*auditlog.HashSize), first+uint64(at)<<(layout.TileHeight*level), "%d hashes from here on are not the tree's", wrong)
	}
}

// pending checks the entries in a pending file, which come after a gap.
func (v *verifier) pending(name string) {
	f, err := v.fs.OpenFile(filepath.Join(v.dir, name), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return // a live writer closed the gap
	}
	if err != nil {
		v.problem(name, 0, 0, "%v", err)
		return
	}
	defer f.Close()
	before, head, size, err := auditlog.ReadPendingHeader(f)
	if err == nil && layout.PendingPath(before.Size()) != name {
		err = fmt.Errorf("%w: it holds entries from %d on", auditlog.ErrMalformed, before.Size())
	}
	if err != nil {
		v.problem(name, 0, 0, "%v", err)
		return
	}
	next, durable := before.Size(), uint64(0)
	for _, p := range v.mark.Pending {
		if p.First == next {
			durable = p.Next
		}
	}
	if v.covered < before.Size() {
		v.rep.Gaps = append(v.rep.Gaps, Gap{v.covered, before.Size()})
	}
	v.raft, v.time = 0, math.MinInt64
	err = layout.ScanFrames(f, head, size, func(off int64, frame []byte) error {
		v.frame(name, off, next, frame, false)
		next++
		return nil
	})
	var bad *layout.FrameError
	switch {
	case errors.As(err, &bad) && errors.Is(bad, layout.ErrTorn) && next >= durable && !hidesFrame(f, bad.Off, size):
		v.rep.Torn = size - bad.Off
	case errors.As(err, &bad):
		v.problem(name, bad.Off, next, "%v", bad.Err)
	case err != nil:
		v.problem(name, 0, next, "%v", err)
	}
	if next < durable {
		v.problem(name, size, next, "it ends here, but was durable up to %d", durable)
	}
	v.covered = max(v.covered, next)
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// hidesFrame reports whether a whole frame begins at off although its length
// leads past the end. Then the length is damaged, and the frame was not cut
// short.
func hidesFrame(f auditlog.File, off, end int64) bool {
	b := make([]byte, min(end-off, layout.MaxFrame))
	if _, err := f.ReadAt(b, off); err != nil && int64(len(b)) != end-off {
		return true // it cannot be read, so it is not merely short
	}
	if len(b) <= layout.FrameOverhead {
		return false
	}
	e := auditlog.DecodeHead(b)
	e.Body = b[layout.FrameHead:layout.FrameHead]
	leaf := append([]byte{0}, e.AppendLeaf(nil)...)
	fixed := leaf[:len(leaf)-sha256.Size]
	body := sha256.New()
	for n := layout.FrameHead; n+auditlog.HashSize <= len(b); n++ {
		if n > layout.FrameHead {
			body.Write(b[n-1 : n])
			if auditlog.Hash(b[n:n+auditlog.HashSize]) == sha256.Sum256(body.Sum(fixed)) {
				return true
			}
		}
	}
	return false
}

// idHash hashes request ids, which may begin with a time, so that they are
// evenly distributed.
func idHash(id [16]byte) uint64 {
	return binary.BigEndian.Uint64(id[:]) ^ binary.BigEndian.Uint64(id[8:])
}

// repeated reports request ids that several entries have. Only their hashes, 8
// bytes for each entry, are in memory; if a hash repeats, the entries are read
// again.
func (v *verifier) repeated() {
	slices.Sort(v.ids)
	twice := make(map[uint64]bool)
	for i := 1; i < len(v.ids); i++ {
		if v.ids[i] == v.ids[i-1] {
			twice[v.ids[i]] = true
		}
	}
	v.ids = nil
	if len(twice) == 0 {
		return
	}
	seen := make(map[[16]byte]uint64)
	look := func(name string, head func(auditlog.File) (int64, error)) {
		f, err := v.open(name)
		if err != nil {
			return // reported before, or not read
		}
		defer f.Close()
		off, err := head(f)
		if err != nil {
			return
		}
		size, err := f.Size()
		if err != nil {
			return
		}
		// Damage was reported before.
		_ = layout.ScanFrames(f, off, size, func(off int64, frame []byte) error {
			e := auditlog.DecodeHead(frame)
			if e.RequestID == ([16]byte{}) || !twice[idHash(e.RequestID)] {
				return nil
			}
			if first, ok := seen[e.RequestID]; ok && first != e.Index {
				v.problem(name, off, e.Index, "the request id %x is also entry %d's", e.RequestID, first)
			}
			seen[e.RequestID] = e.Index
			return nil
		})
	}
	for _, n := range slices.Concat(v.moved, v.segments) {
		look(layout.SegmentPath(n), func(auditlog.File) (int64, error) { return layout.SegmentHeaderSize, nil })
	}
	for _, name := range v.pendings {
		look(name, func(f auditlog.File) (int64, error) {
			_, head, _, err := auditlog.ReadPendingHeader(f)
			return head, err
		})
	}
}
