// Package archive keeps copies of full segments of an audit log outside of its cluster.
//
// An archive is a directory or a bucket. For each segment, numbered from 0, it has three
// objects, whose names begin with the log's origin, its slashes replaced by hyphens:
//
//   - ORIGIN-%08d.seg is the file of the segment, as the nodes have it.
//   - ORIGIN-%08d.tiles has the tiles of the tree that the segment filled, one after the
//     other: 256 of level 0, one of level 1, and those above, from the lowest level to the
//     highest. With them, inclusion and consistency can be proved without the records.
//   - ORIGIN-%08d.checkpoint is a checkpoint of the log up to the end of the segment.
//
// All three depend on nothing but the entries and the log's keys, so every node makes the same
// bytes. Together, the objects up to any segment are a log that verifies by itself: [Files]
// shows them to package verify as the directory of one.
//
// Whoever can write to an archive can put anything there. So an object counts only once it was
// read back and leads to the root that the cluster has, an object that is there is never
// replaced, and one that differs is ErrAltered. Nothing is read beyond the size that it may have.
package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// ErrAltered is returned for an object that is not what the cluster's log has in its place.
var ErrAltered = errors.New("the archive of the audit log was altered")

// Store has the objects. Its methods are safe for concurrent use.
type Store interface {
	// Create stores an object that does not exist yet; if it does, its error wraps
	// fs.ErrExist. Before it returns without an error there is no part of the object.
	Create(ctx context.Context, name string, write func(io.Writer) error) (int64, error)
	// Open returns an object's content. Its error wraps fs.ErrNotExist if there is none.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns the names that begin with a prefix, in ascending order.
	List(ctx context.Context, prefix string) ([]string, error)
	// Sweep removes what is left of objects whose Create was cut off by a crash before the
	// given time, if their names begin with the prefix. Objects are not touched.
	Sweep(ctx context.Context, prefix string, before time.Time) error
	// String names the place, without anything secret.
	String() string
}

// Log is the part of auditlog.Log that is archived.
type Log interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
}

// Archive is the archive of one log. It is safe for concurrent use.
type Archive struct {
	store  Store
	keys   string
	origin string
}

// New returns the archive of the log that has these public keys, one a line as in
// checkpoint.Parse. The store is not used yet.
func New(store Store, keys string) (*Archive, error) {
	origin, err := checkpoint.CheckKeys(keys)
	if err != nil {
		return nil, err
	}
	return &Archive{store, keys, origin}, nil
}

// String names the place.
func (a *Archive) String() string { return a.store.String() }

const (
	segmentEnd    = ".seg"
	tilesEnd      = ".tiles"
	checkpointEnd = ".checkpoint"
)

// prefix begins the names of all objects.
func (a *Archive) prefix() string { return strings.ReplaceAll(a.origin, "/", "-") + "-" }

func (a *Archive) name(n uint64, end string) string {
	return fmt.Sprintf("%s%08d%s", a.prefix(), n, end)
}

// number is the inverse of name.
func (a *Archive) number(name, end string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, a.prefix())
	s, is := strings.CutSuffix(s, end)
	n, err := strconv.ParseUint(s, 10, 47)
	return n, ok && is && err == nil && a.name(n, end) == name
}

// abandonedAfter is how old what a crash has left must be before Sweep removes it. A node that has
// led before may still be writing; if it takes that long, its Put fails, and nothing else does.
const abandonedAfter = time.Hour

// Sweep removes what is left of objects that a crash kept from being made. No later Put makes
// objects of them, nor finds them.
func (a *Archive) Sweep(ctx context.Context) error {
	return a.store.Sweep(ctx, a.prefix(), time.Now().Add(-abandonedAfter))
}

// Put copies full segment n of a log, unless it is there already, and reads back what is there.
// roots are the roots of the segments up to it, and note is a checkpoint of the entries up to its
// end. added says whether it has copied anything.
//
// Errors: ErrAltered; auditlog.ErrCorrupt if the log's own segment is damaged, and then nothing
// was stored; those of reading the log, and of the store.
func (a *Archive) Put(ctx context.Context, log Log, roots []auditlog.Hash, note []byte) (added bool, err error) {
	n := uint64(len(roots) - 1)
	root := roots[n]
	var leaves []auditlog.Hash
	checkSegment := func() (err error) {
		leaves, err = a.leaves(ctx, n)
		if err == nil {
			err = a.compare(n, leaves, root)
		}
		return err
	}
	first, err := a.ensure(ctx, a.name(n, segmentEnd), checkSegment, func(w io.Writer) error { return writeSegment(w, log, n, root) })
	if err != nil {
		return false, err
	}
	var tiles bytes.Buffer
	if err := writeTiles(&tiles, leaves, roots); err != nil {
		return false, err
	}
	second, err := a.ensure(ctx, a.name(n, tilesEnd), func() error {
		have, err := a.read(ctx, a.name(n, tilesEnd), tiles.Len())
		if err == nil && !bytes.Equal(have, tiles.Bytes()) {
			err = a.altered(a.name(n, tilesEnd), "it has other hashes than the log")
		}
		return err
	}, func(w io.Writer) error {
		_, err := w.Write(tiles.Bytes())
		return err
	})
	if err != nil {
		return false, err
	}
	third, err := a.ensure(ctx, a.name(n, checkpointEnd), func() error { return a.checkCheckpoint(ctx, roots) }, func(w io.Writer) error {
		_, err := w.Write(note)
		return err
	})
	return first || second || third, err
}

// ensure makes an object unless there is one, and checks it.
func (a *Archive) ensure(ctx context.Context, name string, check func() error, write func(io.Writer) error) (added bool, err error) {
	if err := check(); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, err = a.store.Create(ctx, name, write)
	if err != nil && !errors.Is(err, fs.ErrExist) { // another node may have made it since
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return err == nil, check()
}

func (a *Archive) altered(name, format string, args ...any) error {
	return fmt.Errorf("%w: %s in %s: %s", ErrAltered, name, a.store, fmt.Sprintf(format, args...))
}

// compare checks the leaves of segment n against its root.
func (a *Archive) compare(n uint64, leaves []auditlog.Hash, root auditlog.Hash) error {
	if auditlog.SegmentRoot(leaves) != root {
		return a.altered(a.name(n, segmentEnd), "its records are not those of the log")
	}
	return nil
}

func (a *Archive) checkCheckpoint(ctx context.Context, roots []auditlog.Hash) error {
	name := a.name(uint64(len(roots)-1), checkpointEnd)
	note, err := a.read(ctx, name, layout.MaxCheckpoint)
	if err != nil {
		return err
	}
	c, err := checkpoint.Parse(note, a.keys)
	if err != nil {
		return a.altered(name, "%v", err)
	}
	if tree := auditlog.FoldSegments(roots); c.Size != tree.Size() || c.Root != tree.Root() {
		return a.altered(name, "it is of other records than those of the log")
	}
	return nil
}

// writeSegment writes segment n of a log. It reads all of it before it can say whether that is
// the cluster's, and ErrCorrupt then keeps the object from being made.
func writeSegment(w io.Writer, log Log, n uint64, root auditlog.Hash) error {
	out := bufio.NewWriterSize(w, 256<<10)
	if _, err := out.Write(layout.SegmentHeader(n)); err != nil {
		return err
	}
	leaves := make([]auditlog.Hash, 0, auditlog.SegmentSize)
	var frame []byte
	for next, end := n*auditlog.SegmentSize, (n+1)*auditlog.SegmentSize; next < end; {
		entries, err := log.Read(next, int(min(end-next, 4096)), 1<<20)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("%w: entry %d", auditlog.ErrMissing, next)
		}
		for i := range entries {
			leaf := entries[i].LeafHash()
			leaves = append(leaves, leaf)
			frame = auditlog.AppendFrame(frame[:0], &entries[i], &leaf)
			if _, err := out.Write(frame); err != nil {
				return err
			}
		}
		next += uint64(len(entries))
	}
	if auditlog.SegmentRoot(leaves) != root {
		return fmt.Errorf("%w: the root of %s is not the cluster's", auditlog.ErrCorrupt, layout.SegmentPath(n))
	}
	return out.Flush()
}

// writeTiles writes the tiles that the last of some segments fills.
func writeTiles(w io.Writer, leaves, roots []auditlog.Hash) error {
	return auditlog.EachTile(uint64(len(roots)-1), leaves, roots, func(_ int, _ uint64, hashes []auditlog.Hash) error {
		_, err := w.Write(auditlog.JoinHashes(hashes))
		return err
	})
}

// leaves returns the leaf hashes of segment n; see scan.
func (a *Archive) leaves(ctx context.Context, n uint64) ([]auditlog.Hash, error) {
	object, err := a.store.Open(ctx, a.name(n, segmentEnd))
	if err != nil {
		return nil, err
	}
	defer object.Close()
	leaves, _, err := a.scan(n, object)
	return leaves, err
}

// scan reads the file of segment n. It returns the leaf hashes of its records, and where each of
// them begins and the last one ends. The records are intact and numbered right, but whether they
// are the cluster's is known only from a root. Errors: ErrAltered; those of reading.
func (a *Archive) scan(n uint64, file io.Reader) (leaves []auditlog.Hash, offs []int64, err error) {
	name := a.name(n, segmentEnd)
	whole := &tracked{r: file}
	in := bufio.NewReaderSize(whole, 256<<10)
	// The store's own errors are not the fault of what is stored.
	fail := func(err error, format string, args ...any) ([]auditlog.Hash, []int64, error) {
		if whole.failed != nil {
			return nil, nil, fmt.Errorf("%s in %s: %w", name, a.store, whole.failed)
		}
		return nil, nil, a.altered(name, "%s: %v", fmt.Sprintf(format, args...), err)
	}
	head := make([]byte, layout.SegmentHeaderSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return fail(err, "header")
	}
	if !bytes.Equal(head, layout.SegmentHeader(n)) {
		return fail(auditlog.ErrMalformed, "header")
	}
	leaves = make([]auditlog.Hash, 0, auditlog.SegmentSize)
	offs = append(make([]int64, 0, auditlog.SegmentSize+1), layout.SegmentHeaderSize)
	frame := make([]byte, 0, 64<<10)
	for i := range auditlog.SegmentSize {
		index := n*auditlog.SegmentSize + uint64(i)
		frame = frame[:4]
		if _, err := io.ReadFull(in, frame); err != nil {
			return fail(err, "record %d", index)
		}
		size, err := layout.FrameLen(frame)
		if err != nil {
			return fail(err, "record %d", index)
		}
		frame = slices.Grow(frame, size-4)[:size]
		if _, err := io.ReadFull(in, frame[4:]); err != nil {
			return fail(err, "record %d", index)
		}
		e, leaf, err := auditlog.DecodeFrame(frame)
		if err == nil && e.Index != index {
			err = fmt.Errorf("%w: it is record %d", auditlog.ErrMalformed, e.Index)
		}
		if err != nil {
			return fail(err, "record %d", index)
		}
		leaves, offs = append(leaves, leaf), append(offs, offs[i]+int64(size))
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return fail(auditlog.ErrMalformed, "there is more after its records")
	}
	return leaves, offs, nil
}

// tracked remembers why reading failed, if not by the end of what is read.
type tracked struct {
	r      io.Reader
	failed error
}

// Read implements io.Reader.
func (t *tracked) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	if err != nil && err != io.EOF {
		t.failed = err
	}
	return n, err
}

// read returns an object of at most that many bytes.
func (a *Archive) read(ctx context.Context, name string, limit int) ([]byte, error) {
	object, err := a.store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	b, err := io.ReadAll(io.LimitReader(object, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", name, a.store, err)
	}
	if len(b) > limit {
		return nil, a.altered(name, "it has more than %d bytes", limit)
	}
	return b, nil
}
