package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog"
)

// fetchTimeout bounds how long a reader waits for a segment.
const fetchTimeout = 2 * time.Minute

// Reader is a node's log whose removed segments are read from the archive, so that readers need
// not know where a segment is. One segment is kept, in a file that no other process sees, until
// another one is read.
type Reader struct {
	*auditlog.Log

	mu     sync.Mutex
	source func() (*Archive, []auditlog.Hash)
	file   auditlog.File // nil if none is kept
	number uint64
	offs   []int64 // of each entry of the segment, and of its end
}

// SetSource sets what returns the archive, and the roots of the segments in the replicated state.
// The archive is nil while the cluster is not known. Until SetSource is called, there is none.
func (r *Reader) SetSource(source func() (*Archive, []auditlog.Hash)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.source = source
}

// Read is auditlog.Log.Read. Entries that are neither here nor in the archive are ErrArchived;
// those that the archive has, and that are not the cluster's, are ErrAltered too.
func (r *Reader) Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error) {
	entries, err := r.Log.Read(from, max, maxBytes)
	if !errors.Is(err, auditlog.ErrArchived) {
		return entries, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source == nil {
		return nil, err
	}
	a, roots := r.source()
	n := from / auditlog.SegmentSize
	if a == nil || n >= uint64(len(roots)) {
		return nil, err
	}
	if r.file == nil || r.number != n {
		if failed := r.keep(a, n, roots[n]); failed != nil {
			return nil, fmt.Errorf("%w: %w", err, failed)
		}
	}
	size := 0
	for i := int(from % auditlog.SegmentSize); i < auditlog.SegmentSize && len(entries) < max; i++ {
		frame := make([]byte, r.offs[i+1]-r.offs[i])
		if _, err := r.file.ReadAt(frame, r.offs[i]); err != nil {
			return nil, err
		}
		e, _, err := auditlog.DecodeFrame(frame)
		if err != nil {
			return nil, err
		}
		if size += len(e.Body); len(entries) > 0 && size > maxBytes {
			break
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// keep fetches segment n and checks that it is the cluster's. r.mu is held.
func (r *Reader) keep(a *Archive, n uint64, root auditlog.Hash) (err error) {
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	file, err := a.fetch(ctx, a.name(n, segmentEnd))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	size, err := file.Size()
	if err != nil {
		return err
	}
	leaves, offs, err := a.scan(n, io.NewSectionReader(file, 0, size))
	if err == nil {
		err = a.compare(n, leaves, root)
	}
	if err != nil {
		return err
	}
	r.file, r.number, r.offs = file, n, offs
	return nil
}

// Close closes the log, and drops what is kept of the archive.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.Log.Close()
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
		r.file = nil
	}
	return err
}
