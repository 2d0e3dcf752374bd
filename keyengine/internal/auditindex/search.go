package auditindex

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// MaxConditions bounds the conditions of a query.
	MaxConditions = 16
	// maxRead bounds how many records one Search decrypts, and maxBytes how long those that
	// it returns may be. Then it returns what it found, and where to go on.
	maxRead  = 8192
	maxBytes = 1 << 20
	// near is the distance up to which records are read with those between them.
	near = 4
)

// ErrBehind is returned if the index does not have the records that a search was to look at,
// because it is being made again. It ends by itself.
var ErrBehind = errors.New("the index of the audit log is being made")

// Position is where a search goes on.
type Position struct {
	// Bound is the number of records that the search is about: the log's from the beginning. It
	// stays the same, so that records that are added in the meantime move no page.
	Bound uint64
	// Next is the first record to look at or, newest first, the one after it.
	Next uint64
}

// Start returns the position of a search of the records before bound.
func Start(q *Query, bound uint64) Position {
	if q.OldestFirst {
		return Position{Bound: bound}
	}
	return Position{Bound: bound, Next: bound}
}

// Result is what a search found.
type Result struct {
	Items []auditfeed.Item
	// Next is nil if there are no more records. A result with no items may have it.
	Next *Position
}

// Wait waits until the records before an index in the log are indexed, for as long as patience
// allows, and returns how many are, at most that many.
func (x *Index) Wait(ctx context.Context, until uint64, patience time.Duration) uint64 {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		x.mu.RLock()
		next, changed := x.next, x.changed
		x.mu.RUnlock()
		if next >= until {
			return until
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return next
		case <-timer.C:
			return next
		}
	}
}

// TimeOf returns the cluster time of a record that the log has.
func (x *Index) TimeOf(index uint64) (time.Time, error) {
	e, err := auditfeed.At(x.cfg.Log, index)
	if err != nil {
		return time.Time{}, err
	}
	if e == nil {
		return time.Time{}, ErrBehind
	}
	return time.Unix(0, e.Time), nil
}

// Search returns at most limit records that q asks for, from a position on. Errors: ErrBehind,
// vault.ErrSealed, ctx's, and those of reading the log.
func (x *Index) Search(ctx context.Context, q *Query, pos Position, limit int) (Result, error) {
	r, err := x.search(ctx, q, pos, limit)
	if errors.Is(err, localfile.ErrDamaged) {
		x.mu.RLock()
		defer x.mu.RUnlock()
		if x.fail != nil {
			x.fail(err)
		}
		return Result{}, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	return r, err
}

func (x *Index) search(ctx context.Context, q *Query, pos Position, limit int) (r Result, err error) {
	s := &searcher{x: x, q: q, limit: limit, segment: -1}
	if s.terms, err = x.terms(q); err != nil {
		return r, err
	}
	lo, hi := uint64(0), pos.Bound
	if !q.From.IsZero() {
		if lo, err = s.firstAt(hi, q.From.UnixNano()); err != nil {
			return r, err
		}
	}
	if !q.To.IsZero() {
		if hi, err = s.firstAt(hi, q.To.UnixNano()); err != nil {
			return r, err
		}
	}
	if q.OldestFirst {
		lo = max(lo, pos.Next)
	} else {
		hi = min(hi, pos.Next)
	}
	for lo < hi {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		block := lo / x.block
		if !q.OldestFirst {
			block = (hi - 1) / x.block
		}
		at, err := x.candidates(block, s.terms)
		if err != nil {
			return r, err
		}
		from, to := max(lo, block*x.block), min(hi, (block+1)*x.block)
		next, done, err := s.visit(ctx, block*x.block, at, from, to)
		if err != nil {
			return r, err
		}
		if done {
			return Result{Items: s.found, Next: &Position{Bound: pos.Bound, Next: next}}, nil
		}
		if q.OldestFirst {
			lo = to
		} else {
			hi = from
		}
	}
	return Result{Items: s.found}, nil
}

// terms returns the terms of a query.
func (x *Index) terms(q *Query) ([]wanted, error) {
	list := make([]localfile.Term, len(q.Where))
	for i, c := range q.Where {
		list[i] = localfile.Term{Field: string(fields[c.Field]), Value: c.Value}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.file == nil {
		return nil, x.closed()
	}
	tokens, err := x.file.Tokens(list)
	terms := make([]wanted, len(tokens))
	for i, t := range tokens {
		terms[i].term = newTerm(t)
	}
	return terms, err
}

// closed returns why there is no index.
func (x *Index) closed() error {
	if x.cfg.Vault.Sealed() {
		return vault.ErrSealed
	}
	return ErrBehind
}

// all is the places of all records of a block.
var all = func() []uint16 {
	at := make([]uint16, blockSize)
	for i := range at {
		at[i] = uint16(i)
	}
	return at
}()

// wanted is a term of a query, and how many records had it in the last block where that was
// looked at.
type wanted struct {
	term  term
	count int
}

// candidates returns the places, in ascending order, of the records of a block that have all
// terms. The caller must not change them. It sorts the terms, so that the rarest ones come first
// in the next block, and the others need not be looked at if no record has those.
func (x *Index) candidates(block uint64, terms []wanted) (at []uint16, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch {
	case x.file == nil:
		return nil, x.closed()
	case block > x.blocks:
		return nil, ErrBehind
	case len(terms) == 0:
		return all, nil
	case block == x.blocks:
		for i, t := range terms {
			if have := findPostings(x.tail, t.term); i == 0 {
				at = have
			} else {
				at = intersect(at, have)
			}
		}
		return at, nil
	}
	err = x.file.View(func(tx *localfile.Tx) error {
		for i := range terms {
			t := terms[i].term
			part, err := tx.Get(partBucket, partKey(block, t.part()))
			if err == nil && part == nil {
				err = fmt.Errorf("%w: part %d of block %d is gone", localfile.ErrDamaged, t.part(), block)
			}
			if err != nil {
				return err
			}
			have, err := findPart(part, t)
			if err != nil {
				return fmt.Errorf("%w: %w", localfile.ErrDamaged, err)
			}
			if terms[i].count = len(have); i == 0 {
				at = have
			} else {
				at = intersect(at, have)
			}
			if len(at) == 0 {
				break
			}
		}
		return nil
	})
	slices.SortStableFunc(terms, func(a, b wanted) int { return cmp.Compare(a.count, b.count) })
	return at, err
}

// searcher is a search that goes on.
type searcher struct {
	x       *Index
	q       *Query
	terms   []wanted
	limit   int
	found   []auditfeed.Item
	bytes   int
	read    int
	segment int64 // whose marks the log was told last
}

// visit reads the records with these places in the block that begins at base, as far as they
// are from from to before to, and keeps those that match. If done is true, it ended before it
// was through, and next is where to go on.
func (s *searcher) visit(ctx context.Context, base uint64, at []uint16, from, to uint64) (next uint64, done bool, err error) {
	a, _ := slices.BinarySearch(at, uint16(from-base))
	b := len(at)
	if to-base < blockSize {
		b, _ = slices.BinarySearch(at, uint16(to-base))
	}
	at = at[a:max(a, b)]
	for len(at) > 0 {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		group := nearby(at, min(batch, 2*(s.limit-len(s.found))), s.q.OldestFirst)
		items, err := s.items(base, group)
		if err != nil {
			return 0, false, err
		}
		if !s.q.OldestFirst {
			slices.Reverse(items)
		}
		for i := range items {
			it := &items[i]
			s.read++
			if s.q.matches(it) {
				s.found = append(s.found, *it)
				s.bytes += len(it.Entry.Body)
			}
			if len(s.found) == s.limit || s.bytes > maxBytes || s.read >= maxRead {
				if s.q.OldestFirst {
					return it.Entry.Index + 1, true, nil
				}
				return it.Entry.Index, true, nil
			}
		}
		if s.q.OldestFirst {
			at = at[len(group):]
		} else {
			at = at[:len(at)-len(group)]
		}
	}
	return 0, false, nil
}

// nearby returns the first places, or the last ones, that are read at once: at most n.
func nearby(at []uint16, n int, first bool) []uint16 {
	k := 1
	if first {
		for k < min(n, len(at)) && at[k]-at[k-1] <= near {
			k++
		}
		return at[:k]
	}
	for k < min(n, len(at)) && at[len(at)-k]-at[len(at)-k-1] <= near {
		k++
	}
	return at[len(at)-k:]
}

// items returns the records with these places in the block that begins at base, in ascending
// order.
func (s *searcher) items(base uint64, at []uint16) ([]auditfeed.Item, error) {
	from, to := base+uint64(at[0]), base+uint64(at[len(at)-1])+1
	items := make([]auditfeed.Item, 0, len(at))
	for i := from; i < to; {
		some, err := readNear(s, i, func() ([]auditfeed.Item, error) { return s.x.cfg.Feed.Read(i, int(to-i)) })
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			return nil, ErrBehind // the log became shorter: it was replaced
		}
		for _, it := range some {
			if _, ok := slices.BinarySearch(at, uint16(it.Entry.Index-base)); ok {
				items = append(items, it)
			}
		}
		i += uint64(len(some))
	}
	return items, nil
}

// readNear calls read, which reads the log at an index, after it told the log where to find
// the record. Otherwise the log would read the whole segment to find out.
func readNear[T any](s *searcher, index uint64, read func() (T, error)) (T, error) {
	segment := index / auditlog.SegmentSize
	told := false
	if int64(segment) != s.segment {
		s.segment = int64(segment)
		marks, err := s.x.marks(segment)
		if err != nil {
			var none T
			return none, err
		}
		if told = marks != nil; told {
			s.x.cfg.Log.Remember(segment, marks)
		}
	}
	v, err := read()
	if errors.Is(err, auditlog.ErrCorrupt) && told {
		// The file of the segment may have been replaced since. If it is damaged, so is what
		// the log finds out by itself.
		s.x.cfg.Log.Forget(segment)
		return read()
	}
	return v, err
}

// marks returns what the index knows of where records are in a segment; nil if nothing.
func (x *Index) marks(segment uint64) (marks []int64, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.file == nil {
		return nil, x.closed()
	}
	err = x.file.View(func(tx *localfile.Tx) error {
		b, err := tx.Get(marksBucket, blockKey(segment))
		if err != nil {
			return err
		}
		if marks, err = decodeMarks(b); err != nil {
			return fmt.Errorf("%w: %w", localfile.ErrDamaged, err)
		}
		return nil
	})
	return marks, err
}

// firstAt returns the first record whose time is not before t, among those before end. The
// time of the log never goes back.
func (s *searcher) firstAt(end uint64, t int64) (uint64, error) {
	lo, hi := uint64(0), end
	for lo < hi {
		mid := lo + (hi-lo)/2
		e, err := readNear(s, mid, func() (*auditlog.Entry, error) { return auditfeed.At(s.x.cfg.Log, mid) })
		if err != nil {
			return 0, err
		}
		if e == nil {
			return 0, ErrBehind
		}
		if e.Time < t {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}
