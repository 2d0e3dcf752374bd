package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog"
)

// fetchTimeout bounds how long a reader waits for a segment.
const fetchTimeout = 2 * time.Minute

// maxKept is how many segments a reader keeps, so that readers who are at different places, or go
// back and forth, do not have the same ones fetched again and again.
const maxKept = 4

// Reader is a node's log whose removed segments are read from the archive, so that readers need
// not know where a segment is. A few segments are kept, in files that no other process sees.
type Reader struct {
	*auditlog.Log
	// life ends with Close, and so does the fetching of a segment, for which others wait.
	life context.Context
	end  context.CancelFunc
	keep int // how many segments are kept; tests set it

	mu     sync.Mutex
	source func() (*Archive, []auditlog.Hash)
	kept   []*kept // the one that was read last is the last
}

// kept is a segment of the cluster that was fetched.
type kept struct {
	number uint64
	file   auditlog.File
	offs   []int64 // of each entry of the segment, and of its end
}

// NewReader returns a Reader, which has the log from now on.
func NewReader(log *auditlog.Log) *Reader {
	r := &Reader{Log: log, keep: maxKept}
	r.life, r.end = context.WithCancel(context.Background())
	return r
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
	k, failed := r.segment(from / auditlog.SegmentSize)
	if failed != nil {
		return nil, fmt.Errorf("%w: %w", err, failed)
	}
	if k == nil {
		return nil, err
	}
	size := 0
	for i := int(from % auditlog.SegmentSize); i < auditlog.SegmentSize && len(entries) < max; i++ {
		frame := make([]byte, k.offs[i+1]-k.offs[i])
		if _, err := k.file.ReadAt(frame, k.offs[i]); err != nil {
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

// segment returns segment n, which it fetches unless it is kept; nil if the archive or the
// segment's root is not known. r.mu is held.
func (r *Reader) segment(n uint64) (*kept, error) {
	if i := slices.IndexFunc(r.kept, func(k *kept) bool { return k.number == n }); i >= 0 {
		k := r.kept[i]
		r.kept = append(slices.Delete(r.kept, i, i+1), k)
		return k, nil
	}
	if r.source == nil {
		return nil, nil
	}
	a, roots := r.source()
	if a == nil || n >= uint64(len(roots)) {
		return nil, nil
	}
	// Before the next one is fetched, so that there is never room for more.
	if len(r.kept) == r.keep {
		_ = r.kept[0].file.Close()
		r.kept = slices.Delete(r.kept, 0, 1)
	}
	k, err := r.fetch(a, n, roots[n])
	if err == nil {
		r.kept = append(r.kept, k)
	}
	return k, err
}

// fetch fetches segment n and checks that it is the cluster's.
func (r *Reader) fetch(a *Archive, n uint64, root auditlog.Hash) (_ *kept, err error) {
	ctx, cancel := context.WithTimeout(r.life, fetchTimeout)
	defer cancel()
	file, err := a.fetch(ctx, a.name(n, segmentEnd))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	leaves, offs, err := a.scan(n, io.NewSectionReader(file, 0, size))
	if err == nil {
		err = a.compare(n, leaves, root)
	}
	if err != nil {
		return nil, err
	}
	return &kept{n, file, offs}, nil
}

// Close closes the log, and drops what is kept of the archive. It does not wait for the archive.
func (r *Reader) Close() error {
	r.end()
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.Log.Close()
	for _, k := range r.kept {
		err = errors.Join(err, k.file.Close())
	}
	r.kept = nil
	return err
}
