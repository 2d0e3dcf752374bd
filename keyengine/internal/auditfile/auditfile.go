// Package auditfile keeps local files, which are computed from the audit log, in step with it.
package auditfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// shortPatience is how long the log may be shorter than a file, as after a crash, until
	// Raft has replayed what the log had lost. Then it is another log.
	shortPatience = time.Minute
	// retry is how long to wait after an error, and before a sealed node is looked at again.
	retry = time.Second
	// fewRecords are too few for a transaction of their own.
	fewRecords = 1000
)

// ErrShort is returned while the log is shorter than a file that was computed from it.
var ErrShort = errors.New("the audit log is shorter than what was computed from it")

// Origin checks that a file was computed from the log that the node has now: both may have
// been replaced, by a restore for example. It is for one goroutine.
type Origin struct {
	short time.Time // when the log was first too short
}

// Check checks the file's last record, given by its index and leaf hash. Errors: ErrShort, after
// which the check is to be repeated; localfile.ErrDamaged for another log; those of reading it.
func (o *Origin) Check(log auditfeed.Log, index uint64, leaf []byte) error {
	now, err := Leaf(log, index)
	if err == ErrShort && o.short.IsZero() {
		o.short = time.Now()
	}
	if err == ErrShort && time.Since(o.short) > shortPatience || err == nil && !bytes.Equal(leaf, now) {
		o.short = time.Time{}
		return fmt.Errorf("%w: it is not of this log", localfile.ErrDamaged)
	}
	return err
}

// Leaf returns the leaf hash of a record, or ErrShort.
func Leaf(log auditfeed.Log, index uint64) ([]byte, error) {
	e, err := auditfeed.At(log, index)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, ErrShort
	}
	h := e.LeafHash()
	return h[:], nil
}

// Config configures a File.
type Config struct {
	// Path, Purpose and MaxSize are those of localfile.Open.
	Path, Purpose string
	MaxSize       int
	Feed          *auditfeed.Feed
	// AtOnce is how many records are computed from in one transaction at most, and Collect how
	// long records are collected at the end of the log, since each transaction is an fsync.
	AtOnce  int
	Collect time.Duration
	// Each computes from records, in the transaction that notes them.
	Each func(*localfile.Tx, []auditfeed.Item) error
	// Done, if not nil, is called after that transaction.
	Done func()
	Log  *slog.Logger
}

// File is a file that is computed from the log while the node is unsealed. One that is damaged,
// full or of another log is begun again. It is safe for concurrent use.
type File struct {
	cfg    Config
	origin Origin

	mu   sync.Mutex
	file *localfile.File // nil while the node is sealed
	next uint64
}

// New returns a File, which follows the log while Run runs.
func New(cfg Config) *File { return &File{cfg: cfg} }

// Run follows the log until ctx ends.
func (f *File) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.follow(ctx)
		switch {
		case errors.Is(err, vault.ErrSealed), errors.Is(err, auditlog.ErrMissing), errors.Is(err, ErrShort), ctx.Err() != nil:
		case errors.Is(err, localfile.ErrDamaged), errors.Is(err, localfile.ErrFull):
			f.cfg.Log.Warn("what was computed from the audit log is computed anew", "file", f.cfg.Path, "err", err)
		default:
			f.cfg.Log.Error("computing from the audit log", "file", f.cfg.Path, "err", err)
		}
		auditfeed.Wait(ctx, retry, nil)
	}
}

// follow opens the file and follows the log. After it returns, the file is closed, and removed
// if it cannot be used any more.
func (f *File) follow(ctx context.Context) (err error) {
	file, err := localfile.Open(f.cfg.Path, f.cfg.Purpose, f.cfg.MaxSize, f.cfg.Feed.Vault)
	if err != nil {
		return err
	}
	if err := file.Replaced(); err != nil {
		f.cfg.Log.Warn("what was computed from the audit log is computed anew", "file", f.cfg.Path, "err", err)
	}
	defer func() {
		f.set(nil, 0)
		if errors.Is(err, localfile.ErrDamaged) || errors.Is(err, localfile.ErrFull) {
			err = errors.Join(err, file.Remove())
			return
		}
		err = errors.Join(err, file.Close())
	}()
	var next uint64
	var leaf []byte
	err = file.View(func(tx *localfile.Tx) (err error) {
		next, leaf, err = position(tx)
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case file.Fresh():
		err = file.Update(func(tx *localfile.Tx) error { return setPosition(tx, 0, auditlog.Hash{}) })
	case leaf == nil:
		err = fmt.Errorf("%w: it is of a release that noted elsewhere how far it was", localfile.ErrDamaged)
	}
	if err != nil {
		return err
	}
	if next > 0 {
		if err := f.origin.Check(f.cfg.Feed.Log, next-1, leaf); err != nil {
			return err
		}
	}
	f.set(file, next)
	var pace auditfeed.Pace
	return f.cfg.Feed.Follow(ctx, next, f.cfg.AtOnce, func(items []auditfeed.Item) error {
		start := time.Now()
		err := file.Update(func(tx *localfile.Tx) error { return Apply(tx, items, f.cfg.Each) })
		if err != nil {
			return err
		}
		if f.cfg.Done != nil {
			f.cfg.Done()
		}
		next := items[len(items)-1].Entry.Index + 1
		f.set(file, next)
		size := f.cfg.Feed.Size()
		rest := pace.Rest(time.Since(start), size, time.Now())
		if size < next+fewRecords {
			rest = max(rest, f.cfg.Collect)
		}
		auditfeed.Wait(ctx, rest, nil)
		return nil
	})
}

func (f *File) set(file *localfile.File, next uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.file, f.next = file, next
}

// View calls fn with the content of the file. Errors: vault.ErrSealed, also just after the node
// was unsealed, and those of localfile.File.View.
func (f *File) View(fn func(*localfile.Tx) error) error {
	f.mu.Lock()
	file := f.file
	f.mu.Unlock()
	if file == nil {
		return vault.ErrSealed
	}
	return file.View(fn)
}

// Has reports whether the file is open and has the records before an index.
func (f *File) Has(next uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file != nil && f.next >= next
}

// The position of a file is in a bucket of its own.
const positionBucket = "position"

var positionKey = []byte("next")

// position returns the index of the next record, and the leaf hash of the one before it, which is
// nil if the file has no position.
func position(tx *localfile.Tx) (next uint64, leaf []byte, err error) {
	b, err := tx.Get(positionBucket, positionKey)
	if err != nil || b == nil {
		return 0, nil, err
	}
	if len(b) != 8+auditlog.HashSize {
		return 0, nil, localfile.ErrDamaged
	}
	return binary.BigEndian.Uint64(b), b[8:], nil
}

// Next returns the index of the next record to compute from.
func Next(tx *localfile.Tx) (uint64, error) {
	next, _, err := position(tx)
	return next, err
}

// Apply calls each with records, and notes them as the last ones that the file has.
func Apply(tx *localfile.Tx, items []auditfeed.Item, each func(*localfile.Tx, []auditfeed.Item) error) error {
	if err := each(tx, items); err != nil {
		return err
	}
	last := &items[len(items)-1].Entry
	return setPosition(tx, last.Index+1, last.LeafHash())
}

func setPosition(tx *localfile.Tx, next uint64, leaf auditlog.Hash) error {
	return tx.Put(positionBucket, positionKey, append(binary.BigEndian.AppendUint64(nil, next), leaf[:]...))
}
