package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Files is an archive as the directory of a log, for reading: its newest checkpoint, its
// segments and its tiles. It is for one goroutine.
type Files struct {
	ctx     context.Context
	archive *Archive
	// names are the names in each directory, and places where the content of each file is.
	names  map[string][]string
	places map[string]place
	count  int
	// checkpoints are the numbers of the segments that have one. They are those of the same
	// listing, as an archive grows while it is read.
	checkpoints []uint64

	tiles     []byte // the object of tiles that was read last
	tilesName string
}

// place is a part of an object.
type place struct {
	object string
	off    int // of a tile in an object of tiles
}

// Files returns what is in the archive now. An object that does not belong to an archive is shown
// as a file with a name that no log has. ctx is used by all later reading.
func (a *Archive) Files(ctx context.Context) (*Files, error) {
	objects, err := a.store.List(ctx, a.prefix())
	if err != nil {
		return nil, err
	}
	f := &Files{ctx: ctx, archive: a, names: make(map[string][]string), places: make(map[string]place)}
	for _, dir := range []string{layout.SegmentDir, layout.TileDir, layout.PendingDir, layout.TmpDir} {
		f.names[dir] = nil
		f.names["."] = append(f.names["."], dir+"/")
	}
	for _, object := range objects {
		if n, ok := a.number(object, segmentEnd); ok {
			f.add(layout.SegmentPath(n), place{object: object})
			f.count++
		} else if n, ok := a.number(object, tilesEnd); ok {
			f.addTiles(n, object)
		} else if n, ok := a.number(object, checkpointEnd); ok {
			f.checkpoints = append(f.checkpoints, n)
		} else {
			f.add(object, place{object: object})
		}
	}
	slices.Sort(f.checkpoints) // nine digits come before eight in the listing
	if n := len(f.checkpoints); n > 0 {
		f.add(layout.CheckpointFile, place{object: a.name(f.checkpoints[n-1], checkpointEnd)})
	}
	for _, names := range f.names {
		slices.Sort(names)
	}
	return f, nil
}

// Segments returns how many segments there are.
func (f *Files) Segments() int { return f.count }

// Checkpoints returns the checkpoints of all segments, in their order.
func (f *Files) Checkpoints() (notes [][]byte, err error) {
	for _, n := range f.checkpoints {
		note, err := f.archive.read(f.ctx, f.archive.name(n, checkpointEnd), layout.MaxCheckpoint)
		if err != nil {
			return nil, err
		}
		notes = append(notes, note)
	}
	return notes, nil
}

// add adds a file, and the directories that it is in.
func (f *Files) add(name string, at place) {
	f.places[name] = at
	for base := filepath.Base(name); ; {
		dir := filepath.Dir(name)
		_, known := f.names[dir]
		f.names[dir] = append(f.names[dir], base)
		if known || dir == "." {
			return
		}
		name, base = dir, filepath.Base(dir)+"/"
	}
}

// addTiles adds the tiles of segment n, in the order of auditlog.EachTile.
func (f *Files) addTiles(n uint64, object string) {
	const size = auditlog.TileWidth * auditlog.HashSize
	off := 0
	tile := func(level int, t uint64) {
		f.add(layout.TilePath(level, t), place{object: object, off: off})
		off += size
	}
	for i := range uint64(auditlog.TileWidth) {
		tile(0, n*auditlog.TileWidth+i)
	}
	tile(1, n)
	for level, each := 2, uint64(auditlog.TileWidth); (n+1)%each == 0; level, each = level+1, each*auditlog.TileWidth {
		tile(level, (n+1)/each-1)
	}
}

// clean returns a name relative to the root, which is "".
func clean(name string) string { return path.Clean(filepath.ToSlash(name)) }

// ReadDir implements auditlog.FS.
func (f *Files) ReadDir(name string) ([]string, error) {
	names, ok := f.names[clean(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return names, nil
}

// OpenFile implements auditlog.FS, for reading.
func (f *Files) OpenFile(name string, flag int, _ fs.FileMode) (auditlog.File, error) {
	at, ok := f.places[clean(name)]
	switch {
	case flag != os.O_RDONLY:
		return nil, errReadOnly
	case !ok:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case strings.HasSuffix(at.object, tilesEnd) && strings.HasPrefix(clean(name), layout.TileDir+"/"):
		return f.openTile(at)
	case strings.HasSuffix(at.object, segmentEnd):
		return f.archive.fetch(f.ctx, at.object)
	}
	b, err := f.archive.read(f.ctx, at.object, layout.MaxCheckpoint)
	if err != nil {
		return nil, err
	}
	return inMemory(b), nil
}

// maxTiles bounds an object of tiles: of a segment that fills one of each level.
const maxTiles = (auditlog.TileWidth + 8) * auditlog.TileWidth * auditlog.HashSize

func (f *Files) openTile(at place) (auditlog.File, error) {
	if f.tilesName != at.object {
		b, err := f.archive.read(f.ctx, at.object, maxTiles)
		if err != nil {
			return nil, err
		}
		f.tiles, f.tilesName = b, at.object
	}
	from := min(at.off, len(f.tiles))
	return inMemory(f.tiles[from:min(from+auditlog.TileWidth*auditlog.HashSize, len(f.tiles))]), nil
}

// maxSegment bounds the file of a segment.
const maxSegment = layout.SegmentHeaderSize + auditlog.SegmentSize*layout.MaxFrame

// fetch copies an object to a file that is gone when it is closed.
func (a *Archive) fetch(ctx context.Context, object string) (_ auditlog.File, err error) {
	from, err := a.store.Open(ctx, object)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	file, err := os.CreateTemp("", "conclave-audit-*") // mode 0600
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	size, err := io.Copy(file, io.LimitReader(cancelable{ctx, from}, maxSegment+1))
	if err == nil && size > maxSegment {
		err = a.altered(object, "it is longer than a segment")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s in %s: %w", object, a.store, err), file.Close())
	}
	return fetched{file, size}, nil
}

// cancelable stops reading when its context ends, which not every store looks at.
type cancelable struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c cancelable) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

var errReadOnly = errors.New("an archive is only read")

// readOnly is what Files and its files do not do.
type readOnly struct{}

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
func (readOnly) Truncate(int64) error               { return errReadOnly }
func (readOnly) Sync() error                        { return errReadOnly }

// MkdirAll implements auditlog.FS.
func (f *Files) MkdirAll(string, fs.FileMode) error { return errReadOnly }

// Rename implements auditlog.FS.
func (f *Files) Rename(_, _ string) error { return errReadOnly }

// Remove implements auditlog.FS.
func (f *Files) Remove(string) error { return errReadOnly }

// SyncDir implements auditlog.FS.
func (f *Files) SyncDir(string) error { return errReadOnly }

// Lock implements auditlog.FS.
func (f *Files) Lock(string) (io.Closer, error) { return nil, errReadOnly }

// fetched is a file with the content of an object.
type fetched struct {
	*os.File
	size int64
}

// Size implements auditlog.File.
func (f fetched) Size() (int64, error) { return f.size, nil }

// memory is a small object.
type memory struct {
	readOnly
	*bytes.Reader
}

// inMemory returns a file with the content b, which nobody changes.
func inMemory(b []byte) auditlog.File { return memory{Reader: bytes.NewReader(b)} }

func (m memory) Size() (int64, error) { return m.Reader.Size(), nil }
func (memory) Close() error           { return nil }
