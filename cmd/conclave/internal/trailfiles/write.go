package trailfiles

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// Config says how an export is written.
type Config struct {
	Dir string
	// Bucket is the bucket that the digests name. It counts when the export begins.
	Bucket string
	Key    *rsa.PrivateKey
	// Checkpoint returns a checkpoint of the log whose tree has the record with an index.
	Checkpoint func(index uint64) (Checkpoint, error)
}

// Checkpoint is a checkpoint of the log.
type Checkpoint struct {
	Origin string
	Size   uint64
	Note   string // signed
}

// state is the content of export.json.
type state struct {
	Version int    `json:"version"`
	Log     string `json:"log,omitempty"`
	Bucket  string `json:"bucket"`
	// Next is the index of the next record, and Leaf the leaf hash of the one before, or "".
	First uint64 `json:"first"`
	Next  uint64 `json:"next"`
	Leaf  string `json:"leaf,omitempty"`
	Last  []last `json:"digests"`
	// Pending are the digest files that are being written. If the program ends before Next
	// moves, the next run removes them.
	Pending []string `json:"pending,omitempty"`
}

// last is the newest digest of a place.
type last struct {
	Account   string `json:"account"`
	Region    string `json:"region"`
	Object    string `json:"object"`
	Hash      string `json:"hash"`
	Signature string `json:"signature"`
	End       string `json:"end"`
}

// Writer writes an export. It is not safe for concurrent use.
type Writer struct {
	cfg   Config
	lock  *os.File
	state state
	chain map[place]last

	checkpoint Checkpoint
	first      uint64 // record of the batch; state.Next if it is empty
	next       uint64
	leaf       string
	hour       time.Time
	open       map[place]*openFile
	done       map[place][]logFile
	size       int // bytes in open

	// Files and Digests count what was written.
	Files, Digests int
}

// openFile has the records of a log file that is not written yet.
type openFile struct {
	name    string
	content bytes.Buffer
	records int
	oldest  time.Time
	newest  time.Time
}

// Open continues the export in a directory, or begins one there with the record from. It fails
// if another process writes to the directory. The caller closes the Writer.
func Open(cfg Config, from uint64) (_ *Writer, err error) {
	if !bucketForm.MatchString(cfg.Bucket) {
		return nil, fmt.Errorf("%q is not the name of a bucket", cfg.Bucket)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	w := &Writer{cfg: cfg, chain: make(map[place]last), open: make(map[place]*openFile), done: make(map[place][]logFile)}
	if w.lock, err = os.OpenFile(filepath.Join(cfg.Dir, lockName), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = w.lock.Close()
		}
	}()
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another process exports to %s: %w", cfg.Dir, err)
	}
	st, err := readState(cfg.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := onlyLock(cfg.Dir); err != nil {
			return nil, err
		}
		w.state = state{Version: 1, Bucket: cfg.Bucket, First: from, Next: from, Last: []last{}}
	case err != nil:
		return nil, err
	default:
		w.state = *st
		w.cfg.Bucket = st.Bucket
	}
	for _, l := range w.state.Last {
		w.chain[place{l.Account, l.Region}] = l
	}
	if err := w.removePending(); err != nil {
		return nil, err
	}
	w.first, w.next, w.leaf = w.state.Next, w.state.Next, w.state.Leaf
	return w, nil
}

// onlyLock refuses a directory with anything in it.
func onlyLock(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockName && e.Name() != "AWSLogs" { // which a first run may leave
			return fmt.Errorf("%s has other files, such as %s: name an empty directory, or one with an export", dir, e.Name())
		}
	}
	return nil
}

func readState(dir string) (*state, error) {
	b, err := files.Read(filepath.Join(dir, stateName), maxState)
	if err != nil {
		return nil, err
	}
	st := new(state)
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("%s: %w", stateName, err)
	}
	if st.Version != 1 || st.Next < st.First || !bucketForm.MatchString(st.Bucket) {
		return nil, fmt.Errorf("%s is not the state of an export that this release writes", stateName)
	}
	return st, nil
}

// removePending removes the digest files of a run that was interrupted.
func (w *Writer) removePending() error {
	for _, name := range w.state.Pending {
		if !digestForm.MatchString(name) {
			return fmt.Errorf("%s names %.200q, which is not a digest file", stateName, name)
		}
		for _, file := range []string{w.path(name), w.path(name) + signatureSuffix} {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	w.state.Pending = nil
	return nil
}

func (w *Writer) path(object string) string {
	return filepath.Join(w.cfg.Dir, filepath.FromSlash(object))
}

// Next returns the index of the record that Add takes next. If there is an export already, the
// record before it is to be passed to Check first.
func (w *Writer) Next() (index uint64, begun bool) { return w.next, w.leaf != "" }

// First returns the index of the first record of the export.
func (w *Writer) First() uint64 { return w.state.First }

// Log returns the origin of the log that is exported, or "" if nothing was.
func (w *Writer) Log() string { return w.state.Log }

// Check fails unless line is the last record that was exported: the log is another one then.
func (w *Writer) Check(line []byte) error {
	r, err := parseRecord(line)
	if err != nil {
		return err
	}
	if *r.Conclave.Index+1 != w.state.Next || r.Conclave.LeafHash != w.state.Leaf {
		return fmt.Errorf("%s has an export of another log (%s): its last record, %d, is not that of this log", w.cfg.Dir, w.state.Log, w.state.Next-1)
	}
	return nil
}

// Time returns the time of a record.
func Time(line []byte) (time.Time, error) {
	r, err := parseRecord(line)
	if err != nil {
		return time.Time{}, err
	}
	return r.time, nil
}

// Add adds the next record of the log.
func (w *Writer) Add(line []byte) error {
	r, err := parseRecord(line)
	if err != nil {
		return err
	}
	if *r.Conclave.Index != w.next {
		return fmt.Errorf("record %d came in place of record %d", *r.Conclave.Index, w.next)
	}
	p, err := r.place()
	if err != nil {
		return err
	}
	if hour := r.time.Truncate(time.Hour); !hour.Equal(w.hour) {
		if err := w.Flush(); err != nil {
			return err
		}
		w.hour = hour
	}
	f, before := w.open[p], 0
	if f == nil {
		f = &openFile{name: p.logName(r), oldest: r.time}
		w.open[p] = f
		f.content.WriteString(`{"Records":[`)
	} else {
		before = f.content.Len()
		f.content.WriteByte(',')
	}
	f.content.Write(line)
	f.records++
	f.newest = r.time
	w.next, w.leaf = w.next+1, r.Conclave.LeafHash
	w.size += f.content.Len() - before
	switch {
	case f.records >= fileRecords || f.content.Len() >= fileBytes:
		return w.writeLog(p)
	case w.size >= openBytes:
		return w.writeLogs()
	}
	return nil
}

// writeLogs writes all open log files.
func (w *Writer) writeLogs() error {
	for p := range w.open {
		if err := w.writeLog(p); err != nil {
			return err
		}
	}
	return nil
}

// writeLog writes the open log file of a place.
func (w *Writer) writeLog(p place) error {
	f := w.open[p]
	delete(w.open, p)
	w.size -= f.content.Len()
	f.content.WriteString(`]}`)
	if err := w.write(f.name, f.content.Bytes()); err != nil {
		return err
	}
	w.done[p] = append(w.done[p], logFile{
		Bucket: w.cfg.Bucket, Object: f.name, HashValue: hashOf(f.content.Bytes()), HashAlgorithm: hashAlgorithm,
		Newest: f.newest.Format(timeForm), Oldest: f.oldest.Format(timeForm),
	})
	w.Files++
	return nil
}

// write writes a compressed file.
func (w *Writer) write(object string, content []byte) error {
	b, err := compress(content)
	if err != nil {
		return err
	}
	return w.writeRaw(object, b)
}

func (w *Writer) writeRaw(object string, b []byte) error {
	name := w.path(object)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return files.Write(name, b)
}

// Flush ends the batch: it writes the files that are open and the digests, and then moves the
// state.
func (w *Writer) Flush() error {
	if w.next == w.first {
		return nil
	}
	if err := w.writeLogs(); err != nil {
		return err
	}
	if w.checkpoint.Size < w.next {
		c, err := w.cfg.Checkpoint(w.next - 1)
		if err != nil {
			return err
		}
		if c.Size < w.next {
			return fmt.Errorf("the checkpoint is of %d records and does not have record %d", c.Size, w.next-1)
		}
		w.checkpoint = c
	}
	if w.state.Log == "" {
		w.state.Log = w.checkpoint.Origin
	}
	if w.state.Log != w.checkpoint.Origin {
		return fmt.Errorf("%s has an export of another log: %s, and not %s", w.cfg.Dir, w.state.Log, w.checkpoint.Origin)
	}
	made := make(map[place]*digest, len(w.done))
	for p, list := range w.done {
		d, err := w.digest(p, list)
		if err != nil {
			return err
		}
		made[p] = d
		w.state.Pending = append(w.state.Pending, d.Object)
	}
	if err := w.saveState(); err != nil {
		return err
	}
	for p, d := range made {
		if err := w.writeDigest(p, d); err != nil {
			return err
		}
	}
	w.state.Next, w.state.Leaf, w.state.Pending, w.state.Last = w.next, w.leaf, nil, w.state.Last[:0]
	for _, l := range w.chain {
		w.state.Last = append(w.state.Last, l)
	}
	slices.SortFunc(w.state.Last, func(a, b last) int { return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Region, b.Region)) })
	w.first = w.next
	clear(w.done)
	return w.saveState()
}

// digest returns the digest of a place for a batch. Its end is that of the newest record's
// second or, if there is a digest of that time already, later.
func (w *Writer) digest(p place, list []logFile) (*digest, error) {
	newest, err := time.Parse(timeForm, list[len(list)-1].Newest)
	if err != nil {
		return nil, err
	}
	d := &digest{
		Account: p.Account, Start: w.hour.Format(timeForm), Bucket: w.cfg.Bucket, KeyFingerprint: Fingerprint(&w.cfg.Key.PublicKey),
		SignatureAlgorithm: signatureAlgorithm, Newest: list[len(list)-1].Newest, Oldest: list[0].Oldest, LogFiles: list,
		Conclave: extension{
			Log: w.state.Log, FirstRecord: w.first, LastRecord: w.next - 1, TreeSize: w.checkpoint.Size, Checkpoint: w.checkpoint.Note,
		},
	}
	end := newest.Add(time.Second)
	if before, ok := w.chain[p]; ok {
		last, err := time.Parse(timeForm, before.End)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stateName, err)
		}
		if !end.After(last) {
			end = last.Add(time.Second)
		}
		d.Start = before.End
		d.PreviousBucket, d.PreviousObject, d.PreviousHash, d.PreviousSignature = &d.Bucket, &before.Object, &before.Hash, &before.Signature
		d.PreviousAlgorithm = new(hashAlgorithm)
	}
	d.End, d.Object = end.Format(timeForm), p.digestName(end)
	return d, nil
}

// writeDigest writes a digest, and before it its signature.
func (w *Writer) writeDigest(p place, d *digest) error {
	content, err := json.Marshal(d)
	if err != nil {
		return err
	}
	sum := d.toSign(content)
	sig, err := rsa.SignPKCS1v15(rand.Reader, w.cfg.Key, crypto.SHA256, sum[:])
	if err != nil {
		return err
	}
	l := last{p.Account, p.Region, d.Object, hashOf(content), hex.EncodeToString(sig), d.End}
	meta, err := json.Marshal(signature{l.Signature, signatureAlgorithm})
	if err != nil {
		return err
	}
	if err := w.writeRaw(d.Object+signatureSuffix, append(meta, '\n')); err != nil {
		return err
	}
	if err := w.write(d.Object, content); err != nil {
		return err
	}
	w.chain[p] = l
	w.Digests++
	return nil
}

func (w *Writer) saveState() error {
	b, err := json.MarshalIndent(w.state, "", " ")
	if err != nil {
		return err
	}
	return files.Write(filepath.Join(w.cfg.Dir, stateName), append(b, '\n'))
}

// Close lets other processes write to the directory. What was added after the last Flush is
// left out.
func (w *Writer) Close() error { return w.lock.Close() }
