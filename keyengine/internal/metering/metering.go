// Package metering counts who made how many requests with which key, by hour, day and month, and
// when keys existed and were rotated. It counts the records of the audit log, which has every
// request, so that no request is missed or counted twice, also across restarts, and every
// unsealed node has the same counts. They are in a file that nobody can read without the
// cluster's keyring, and that is made anew from the log when it is missing.
package metering

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfile"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
)

// A Period is how long the requests of a row were made.
type Period uint8

// The periods.
const (
	Hour Period = iota
	Day
	Month
)

// periods says where rows of a period are, how many periods are kept (0: all), and how many
// rows one of them may have. What comes after is counted without principal and key, so that
// the sums stay right and somebody who makes many keys cannot fill the disk: a row has some
// 400 bytes.
var periods = [...]struct {
	bucket string
	keep   int
	rows   int
}{
	Hour:  {"hours", 35 * 24, 2000},
	Day:   {"days", 400, 5000},
	Month: {"months", 0, 20000},
}

// Others stands for the keys and principals of a period that has too many of them.
const Others = "(others)"

// number returns the number of the period that a time is in.
func (p Period) number(t time.Time) uint32 {
	t = t.UTC()
	switch p {
	case Hour:
		return uint32(t.Unix() / 3600)
	case Day:
		return uint32(t.Unix() / 86400)
	default:
		return uint32(t.Year()*12 + int(t.Month()) - 1)
	}
}

// start returns when a period begins.
func (p Period) start(n uint32) time.Time {
	switch p {
	case Hour:
		return time.Unix(int64(n)*3600, 0).UTC()
	case Day:
		return time.Unix(int64(n)*86400, 0).UTC()
	default:
		return time.Date(int(n/12), time.Month(n%12+1), 1, 0, 0, 0, 0, time.UTC)
	}
}

// Row counts requests of one kind.
type Row struct {
	Start     time.Time `json:"-"`
	Account   string    `json:"a"` // of the principal
	Principal string    `json:"p"` // an ARN; of a session of a role, the role's
	Key       string    `json:"k,omitempty"`
	Operation string    `json:"o"`
	Kind      string    `json:"c"`
	// Requests succeeded, and Errors were refused or failed.
	Requests uint64 `json:"n,omitempty"`
	Errors   uint64 `json:"e,omitempty"`
}

// Life says when a key existed.
type Life struct {
	Key     string `json:"k"`
	Account string `json:"a"`
	Spec    string `json:"s,omitempty"`
	// In Unix nanoseconds; 0 if it did not happen. Pending is when its deletion was scheduled,
	// and Ended when it was deleted.
	Created int64 `json:"b"`
	Pending int64 `json:"w,omitempty"`
	Ended   int64 `json:"d,omitempty"`
	// Rotations are the times of the first ones, at most MaxRotations.
	Rotations []int64 `json:"r,omitempty"`
}

// MaxRotations is how many rotations of a key are noted.
const MaxRotations = 8

// Progress says how far the counting has come.
type Progress struct {
	Counted uint64 // records
	Unread  uint64 // of these, those that cannot be decrypted
}

// Config configures a Meter.
type Config struct {
	Path string // of the file
	Feed *auditfeed.Feed
	Log  *slog.Logger
}

// Meter counts. It is safe for concurrent use.
type Meter struct {
	file *auditfile.File // nil in tests
	// view calls a function with the content of the file. Errors: vault.ErrSealed, also just
	// after the node was unsealed, and those of localfile.File.View.
	view func(func(*localfile.Tx) error) error
}

const (
	// atOnce is how many records are counted in one transaction at most. Their rows are all over
	// the file, and bbolt holds tens of kilobytes for each until the transaction ends.
	atOnce = 256
	// collect is how long records are collected at the end of the log.
	collect = 500 * time.Millisecond
)

// New returns a meter, which counts while Run runs.
func New(cfg Config) *Meter {
	f := auditfile.New(auditfile.Config{
		Path: cfg.Path, Purpose: "usage", Feed: cfg.Feed, AtOnce: atOnce, Collect: collect, Each: count, Log: cfg.Log,
	})
	return &Meter{f, f.View}
}

// Run counts until ctx ends.
func (m *Meter) Run(ctx context.Context) { m.file.Run(ctx) }

// Has reports whether the records below an index are counted. It is false on a sealed node.
func (m *Meter) Has(index uint64) bool { return m.file.Has(index) }

const stateBucket, lifeBucket = "state", "keys"

// unreadKey is where the number of records is that cannot be decrypted.
var unreadKey = []byte("unread")

// progress returns how far the counting came.
func progress(tx *localfile.Tx) (p Progress, err error) {
	if p.Counted, err = auditfile.Next(tx); err != nil {
		return p, err
	}
	_, err = get(tx, stateBucket, unreadKey, &p.Unread)
	return p, err
}

// get decodes a value, and leaves v as it is if there is none.
func get(tx *localfile.Tx, bucket string, key []byte, v any) (found bool, err error) {
	raw, err := tx.Get(bucket, key)
	if err != nil || raw == nil {
		return false, err
	}
	return true, decode(raw, v)
}

func decode(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %w", localfile.ErrDamaged, err)
	}
	return nil
}

func put(tx *localfile.Tx, bucket string, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Put(bucket, key, raw)
}

// cell is the identity of a row, without its counts.
type cell struct {
	hour uint32
	row  Row
}

// count counts records.
func count(tx *localfile.Tx, items []auditfeed.Item) error {
	cells := make(map[cell]*Row)
	lives := &lives{tx: tx, known: make(map[string]*Life)}
	unread, newest := uint64(0), int64(0)
	for i := range items {
		it := &items[i]
		if it.Record == nil {
			unread++
			continue
		}
		newest = max(newest, it.Entry.Time)
		rows, err := lives.rows(it)
		if err != nil {
			return err
		}
		for _, r := range rows {
			id := r
			id.Requests, id.Errors = 0, 0
			c := cell{Hour.number(time.Unix(0, it.Entry.Time)), id}
			if cells[c] == nil {
				cells[c] = &Row{}
			}
			cells[c].Requests += r.Requests
			cells[c].Errors += r.Errors
		}
	}
	if err := lives.write(); err != nil {
		return err
	}
	if err := add(tx, cells); err != nil {
		return err
	}
	if newest > 0 {
		if err := prune(tx, time.Unix(0, newest)); err != nil {
			return err
		}
	}
	if unread == 0 {
		return nil
	}
	before := uint64(0)
	if _, err := get(tx, stateBucket, unreadKey, &before); err != nil {
		return err
	}
	return put(tx, stateBucket, unreadKey, before+unread)
}

// add adds what was counted to the rows of the file.
func add(tx *localfile.Tx, cells map[cell]*Row) error {
	for p := range periods {
		p := Period(p)
		// The same row of several hours is one of a day.
		sums := make(map[cell]Row)
		for c, n := range cells {
			c.hour = p.number(Hour.start(c.hour))
			s := sums[c]
			s.Requests, s.Errors = s.Requests+n.Requests, s.Errors+n.Errors
			sums[c] = s
		}
		for c, n := range sums {
			if err := addTo(tx, p, c, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// addTo adds to a row of a period, or to that of all others if there are too many.
func addTo(tx *localfile.Tx, p Period, c cell, n Row) error {
	key, err := place(tx, c)
	if err != nil {
		return err
	}
	row := c.row
	found, err := get(tx, periods[p].bucket, key, &row)
	if err != nil {
		return err
	}
	if !found {
		var rows int
		size := binary.BigEndian.AppendUint32([]byte("rows-"+periods[p].bucket+"-"), c.hour)
		if _, err := get(tx, stateBucket, size, &rows); err != nil {
			return err
		}
		if rows >= periods[p].rows && c.row.Principal != Others {
			c.row.Principal, c.row.Key = Others, Others
			return addTo(tx, p, c, n)
		}
		if err := put(tx, stateBucket, size, rows+1); err != nil {
			return err
		}
	}
	row.Requests, row.Errors = row.Requests+n.Requests, row.Errors+n.Errors
	return put(tx, periods[p].bucket, key, row)
}

// place returns where a row is: the number of the period, so that they are in order, and a token.
func place(tx *localfile.Tx, c cell) ([]byte, error) {
	r := c.row
	id, err := json.Marshal([]string{r.Account, r.Principal, r.Key, r.Operation, r.Kind})
	if err != nil {
		return nil, err
	}
	tokens, err := tx.Tokens([]localfile.Term{{Field: "row", Value: string(id)}})
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, c.hour), tokens[0][:16]...), nil
}

// maxPruned bounds what one transaction removes.
const maxPruned = 20000

var errEnough = errors.New("enough")

// prune removes the rows of periods that are no longer kept.
func prune(tx *localfile.Tx, now time.Time) error {
	for i, p := range periods {
		if p.keep == 0 {
			continue
		}
		first := Period(i).number(now) - uint32(p.keep)
		var old [][]byte
		err := tx.Each(p.bucket, nil, func(key, _ []byte) error {
			if binary.BigEndian.Uint32(key) >= first || len(old) >= maxPruned {
				return errEnough
			}
			old = append(old, append([]byte(nil), key...))
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		for _, key := range old {
			if err := tx.Delete(p.bucket, key); err != nil {
				return err
			}
			if err := tx.Delete(stateBucket, append([]byte("rows-"+p.bucket+"-"), key[:4]...)); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxScanned bounds how many values one page looks at.
const maxScanned = 10000

// Rows returns at most max rows of the periods that begin at from or later and before to, of an
// account, or of all accounts if it is empty. after is where the page before ended, and next is
// where this one does; it is nil at the end. A page may have fewer rows than there are.
func (m *Meter) Rows(p Period, from, to time.Time, account string, after []byte, max int) (rows []Row, next []byte, at Progress, err error) {
	first := p.number(from)
	if p.start(first).Before(from) {
		first++
	}
	next, at, err = m.page(periods[p].bucket, binary.BigEndian.AppendUint32(nil, first), after, func(key, value []byte) (full bool, err error) {
		start := p.start(binary.BigEndian.Uint32(key))
		if !start.Before(to) {
			return false, errEnd
		}
		if len(rows) >= max {
			return true, nil
		}
		r := Row{}
		if err := decode(value, &r); err != nil {
			return false, err
		}
		r.Start = start
		if account == "" || r.Account == account {
			rows = append(rows, r)
		}
		return false, nil
	})
	return rows, next, at, err
}

// Lives returns at most max keys that existed between from and to, as Rows does.
func (m *Meter) Lives(from, to time.Time, account string, after []byte, max int) (keys []Life, next []byte, at Progress, err error) {
	next, at, err = m.page(lifeBucket, nil, after, func(_, value []byte) (full bool, err error) {
		if len(keys) >= max {
			return true, nil
		}
		l := Life{}
		if err := decode(value, &l); err != nil {
			return false, err
		}
		if (account == "" || l.Account == account) && l.Created < to.UnixNano() && (l.Ended == 0 || l.Ended > from.UnixNano()) {
			keys = append(keys, l)
		}
		return false, nil
	})
	return keys, next, at, err
}

// errEnd is returned for the first value behind the last page.
var errEnd = errors.New("end")

// page calls take with the values of a bucket from a key on, or behind the last key of the page
// before, until take has enough of them or has seen the last one, or there have been many. next
// is the last key of this page, or nil if none follows.
func (m *Meter) page(bucket string, begin, after []byte, take func(key, value []byte) (full bool, err error)) (next []byte, at Progress, err error) {
	if after != nil {
		begin = append(after[:len(after):len(after)], 0)
	}
	scanned := 0
	err = m.view(func(tx *localfile.Tx) (err error) {
		if at, err = progress(tx); err != nil {
			return err
		}
		return tx.Each(bucket, begin, func(key, value []byte) error {
			if scanned++; scanned > maxScanned {
				return errEnough
			}
			if full, err := take(key, value); err != nil {
				return err
			} else if full {
				return errEnough
			}
			next = append([]byte(nil), key...)
			return nil
		})
	})
	switch {
	case errors.Is(err, errEnough):
		return next, at, nil
	case errors.Is(err, errEnd):
		err = nil
	}
	return nil, at, err
}
