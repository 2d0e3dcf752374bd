// Package auditindex finds records of the audit log by what is in them.
//
// The records are encrypted. The index, in a file of the node, has tokens of what they
// contain, such as the caller's ARN, and for each the records that have it; it cannot be read
// without the keyring. A search finds records by the index, reads them from the log, and
// compares each with the query: the index decides only what is looked at.
//
// The index follows the log in the background on an unsealed node. It is made of blocks, each
// of which covers 16,384 records and never changes. Records after the last block are in
// memory, and are indexed again after a restart. A file that is damaged, or was written by
// another cluster or for another log, or whose key's generation is gone, is made again from
// the log. The file has about 40 bytes for each record; DESIGN.md says why it is not smaller.
package auditindex

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfile"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	purpose = "audit index 1" // changes with the terms of records and the form of blocks

	// batch is how many records are read and indexed at once: it bounds the memory, and how
	// long a request waits for the processor.
	batch = 128
	// retryAfter is how long the index waits after an error that may end by itself.
	retryAfter  = 10 * time.Second
	headBucket  = "heads"   // of block: leaf hash of its last record
	partBucket  = "parts"   // of block and part
	marksBucket = "offsets" // of segment
)

// Log is the part of auditlog.Log that an Index uses besides reading.
type Log interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
	Changed() <-chan struct{}
	Marks(segment uint64) ([]int64, error)
	Remember(segment uint64, marks []int64)
	Forget(segment uint64)
}

// Config configures an Index.
type Config struct {
	Path  string // of the file
	Log   Log
	Feed  *auditfeed.Feed // of the same log
	Vault *vault.Vault
	// MayGrow reports whether the disk has room for the index; nil means always.
	MayGrow func() bool
	Logger  *slog.Logger
	// Eager makes the index use the processor without pauses, for measurements.
	Eager bool
}

// Index is an index of the audit log. It is safe for concurrent use.
type Index struct {
	cfg   Config
	block uint64 // records in a block: blockSize, except in tests

	mu      sync.RWMutex
	file    *localfile.File         // nil while the node is sealed
	blocks  uint64                  // in the file
	tail    []posting               // of the records after them, in their order
	next    uint64                  // the first record that is not indexed
	changed chan struct{}           // closed when next changes
	fail    context.CancelCauseFunc // makes Run begin anew; nil before it began

	origin auditfile.Origin // for Run only
}

// New returns an index that is built by Run.
func New(cfg Config) *Index {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Index{cfg: cfg, block: blockSize, changed: make(chan struct{})}
}

// Indexed returns the number of records that are indexed: those before that index in the log.
// It is 0 on a sealed node.
func (x *Index) Indexed() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.next
}

// Size returns the length of the file in bytes, or 0 if it is not open.
func (x *Index) Size() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.file == nil {
		return 0
	}
	n, err := x.file.Size()
	if err != nil {
		return 0
	}
	return n
}

// Run indexes the log, whenever the node is unsealed, until ctx ends.
func (x *Index) Run(ctx context.Context) {
	defer x.drop(false)
	for ctx.Err() == nil {
		changed := x.cfg.Log.Changed()
		err := x.follow(ctx)
		wait := retryAfter
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, vault.ErrSealed):
			x.drop(false)
			changed, wait = nil, time.Second
		case errors.Is(err, localfile.ErrDamaged):
			x.cfg.Logger.Warn("the index of the audit log is damaged and is made again", "err", err)
			x.drop(true)
			changed, wait = nil, time.Second
		case errors.Is(err, auditlog.ErrMissing), errors.Is(err, auditfile.ErrShort): // until the log has it
		default:
			x.cfg.Logger.Warn("cannot index the audit log", "err", err)
			changed = nil
		}
		auditfeed.Wait(ctx, wait, changed)
	}
}

// drop closes the file and forgets what is in memory.
func (x *Index) drop(remove bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.file == nil {
		return
	}
	end := x.file.Close
	if remove {
		end = x.file.Remove
	}
	if err := end(); err != nil {
		x.cfg.Logger.Warn("cannot close the index of the audit log", "err", err)
	}
	x.file, x.blocks, x.tail = nil, 0, nil
	x.moved(0)
}

// moved sets next. x.mu must be held.
func (x *Index) moved(next uint64) {
	x.next = next
	close(x.changed)
	x.changed = make(chan struct{})
}

// open opens the file unless it is open.
func (x *Index) open() error {
	if x.file != nil { // which only this goroutine sets
		return nil
	}
	file, err := localfile.Open(x.cfg.Path, purpose, 0, x.cfg.Vault)
	if err != nil {
		return err
	}
	if err := file.Replaced(); err != nil {
		x.cfg.Logger.Warn("the index of the audit log is damaged and is made again", "err", err)
	}
	blocks, err := x.covered(file)
	if err != nil {
		end := file.Close
		if errors.Is(err, localfile.ErrDamaged) {
			end = file.Remove
		}
		return errors.Join(err, end())
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.file, x.blocks = file, blocks
	x.moved(blocks * x.block)
	return nil
}

// covered returns the number of blocks in a file. It returns localfile.ErrDamaged if they are
// not of this log, which may have been replaced with the rest of the node's data.
func (x *Index) covered(file *localfile.File) (blocks uint64, err error) {
	var leaf []byte
	err = file.View(func(tx *localfile.Tx) error {
		last := tx.Last(headBucket)
		if len(last) == 0 {
			return nil
		}
		if len(last) != 4 {
			return localfile.ErrDamaged
		}
		blocks = uint64(binary.BigEndian.Uint32(last)) + 1
		leaf, err = tx.Get(headBucket, last)
		return err
	})
	if err != nil || blocks == 0 {
		return 0, err
	}
	return blocks, x.origin.Check(x.cfg.Log, blocks*x.block-1, leaf)
}

// follow indexes the log until an error.
func (x *Index) follow(ctx context.Context) error {
	if err := x.open(); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	x.mu.Lock()
	x.fail = fail
	x.mu.Unlock()
	var pace auditfeed.Pace
	err := x.cfg.Feed.Follow(ctx, x.next, batch, func(items []auditfeed.Item) error {
		start := time.Now()
		for len(items) > 0 {
			n := int(min(uint64(len(items)), x.block-x.next%x.block))
			// A block may be left over, for which there was no space.
			if err := x.flush(ctx); err != nil {
				return err
			}
			if err := x.add(items[:n]); err != nil {
				return err
			}
			items = items[n:]
		}
		if err := x.flush(ctx); err != nil {
			return err
		}
		if !x.cfg.Eager {
			// Under load, several records are indexed at once.
			auditfeed.Wait(ctx, max(pace.Rest(time.Since(start), x.cfg.Feed.Size(), time.Now()), 20*time.Millisecond), nil)
		}
		return nil
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// add indexes the next records, which belong to one block, in memory.
func (x *Index) add(items []auditfeed.Item) error {
	var terms []localfile.Term
	var of []uint64
	for i := range items {
		for f, under := range fields {
			if f != under {
				continue
			}
			for _, v := range Values(f, &items[i]) {
				terms = append(terms, localfile.Term{Field: string(f), Value: v})
				of = append(of, items[i].Entry.Index%x.block)
			}
		}
	}
	tokens, err := x.file.Tokens(terms)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, t := range tokens {
		x.tail = append(x.tail, makePosting(newTerm(t), of[i]))
	}
	x.moved(items[len(items)-1].Entry.Index + 1)
	return nil
}

// flush moves the records in memory to the file if they are a whole block, once the disk has
// room for it.
func (x *Index) flush(ctx context.Context) error {
	if x.next < (x.blocks+1)*x.block {
		return nil
	}
	for x.cfg.MayGrow != nil && !x.cfg.MayGrow() {
		if auditfeed.Wait(ctx, time.Second, nil); ctx.Err() != nil {
			return ctx.Err()
		}
		if x.cfg.Vault.Sealed() {
			return vault.ErrSealed
		}
	}
	leaf, err := auditfile.Leaf(x.cfg.Log, x.next-1)
	if err != nil {
		return err
	}
	block := x.blocks
	encoded := encodeParts(slices.Clone(x.tail))
	err = x.file.Update(func(tx *localfile.Tx) error {
		for n, part := range encoded {
			if err := tx.Put(partBucket, partKey(block, byte(n)), part); err != nil {
				return err
			}
		}
		if segment := x.next / auditlog.SegmentSize; x.next%auditlog.SegmentSize == 0 {
			if marks, err := x.cfg.Log.Marks(segment - 1); err == nil {
				if err := tx.Put(marksBucket, blockKey(segment-1), encodeMarks(marks)); err != nil {
					return err
				}
			}
		}
		return tx.Put(headBucket, blockKey(block), leaf)
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.blocks++
	x.tail = x.tail[:0]
	return nil
}

func blockKey(n uint64) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

func partKey(block uint64, part byte) []byte { return append(blockKey(block), part) }
