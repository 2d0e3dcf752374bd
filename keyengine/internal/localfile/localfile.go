// Package localfile keeps what a node has computed from the audit log in a file, such as an
// index or counters, so that a thief of the disk cannot read it: without the cluster's keyring,
// the file shows how many values it has and how long they are, and the keys that its user
// chose, which must be tokens where they would say something.
//
// A file has nothing that cannot be computed again. It belongs to one cluster and to one
// generation of the keyring, by which its own random key is wrapped. One that is damaged, was
// written by another cluster, or whose generation is gone is removed and begins empty. The
// file cannot be told from an older copy of itself: a user notes in the file how far it got,
// and compares that with the log.
package localfile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	format   = 1
	saltSize = 16
	nonce    = 12
	tag      = 16
	// Overhead is how much longer a value is in the file, in bytes, not counting its key.
	Overhead = saltSize + nonce + tag

	labelMAC   = "conclave local file token v1"
	labelValue = "conclave local file value v1"
	labelOne   = "conclave local file one value v1"

	lockWait = time.Second
)

// TokenSize is the size of a token in bytes.
const TokenSize = sha256.Size

var (
	// ErrDamaged is returned for a file whose content was changed by anything but a File. Its
	// user calls Remove and opens it again.
	ErrDamaged = errors.New("file is damaged")
	// ErrFull is returned by Update when the file would become longer than it may.
	ErrFull = errors.New("file has reached its maximum size")

	errForeign = errors.New("file cannot be opened with this keyring")
)

// The buckets of bbolt: what opens the file, and one for each that the user names.
var (
	metaBucket = []byte("\x00conclave")
	formatKey  = []byte("format")
	wrappedKey = []byte("key")
)

// File is an open file. It is safe for concurrent use; there is one writer at a time.
type File struct {
	path   string
	db     *bbolt.DB
	fresh  bool
	damage error // of the file that this one replaced
	macKey *keymat.Secret
	key    *keymat.Secret
	closed chan struct{}
	once   sync.Once
}

// Open opens or creates a file. purpose is a constant that tells kinds of files apart, and
// maxSize bounds the file's length in bytes; 0 is no bound. A file that cannot be used is
// removed and created anew. Errors: vault.ErrSealed, and those of the file system, which say
// nothing about the content of the file. The keys of an open file are wiped when the node is
// sealed; then all methods but Close and Remove return vault.ErrSealed.
func Open(path, purpose string, maxSize int, v *vault.Vault) (*File, error) {
	f, err := open(path, purpose, maxSize, v)
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, errForeign) {
		return f, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	damage := err
	if f, err = open(path, purpose, maxSize, v); err == nil {
		f.damage = damage
	}
	return f, err
}

func open(path, purpose string, maxSize int, v *vault.Vault) (_ *File, err error) {
	o, err := v.Current()
	if err != nil {
		return nil, err
	}
	f := &File{path: path, closed: make(chan struct{})}
	// bbolt writes four pages at once, and has no error of its own for a shorter file.
	if st, err := os.Stat(path); err == nil && st.Size() > 0 && st.Size() < int64(4*os.Getpagesize()) {
		return nil, fmt.Errorf("opening %s: %w: it is too short", path, ErrDamaged)
	}
	err = guard(func() error {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: lockWait, FreelistType: bbolt.FreelistMapType, MaxSize: maxSize, NoStatistics: true,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	header := sha256.Sum256([]byte("conclave local file v1\x00" + purpose))
	key, err := f.fileKey(o, header)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	for label, to := range map[string]**keymat.Secret{labelMAC: &f.macKey, labelValue: &f.key} {
		err := key.With(func(b []byte) (err error) {
			*to, err = v.Arena().Store(keymat.Derive(b, label, header[:], keymat.KeySize))
			return err
		})
		if err != nil {
			return nil, vault.Gone(err)
		}
	}
	go func() {
		select {
		case <-o.Ended():
			f.wipe()
		case <-f.closed:
		}
	}()
	return f, nil
}

// fileKey returns the file's own key, and makes one for a new file. The caller must destroy
// it.
func (f *File) fileKey(o *vault.Opened, header [32]byte) (key *keymat.Secret, err error) {
	var stored []byte
	err = f.view(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return nil
		}
		if b := meta.Get(formatKey); len(b) != 1 || b[0] != format {
			return errForeign // of another version of this program
		}
		if stored = append(stored, meta.Get(wrappedKey)...); len(stored) < 4 {
			return ErrDamaged
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if stored != nil {
		key, err = vault.OpenFileKey(o, header, binary.BigEndian.Uint32(stored), stored[4:])
		if errors.Is(err, keymat.ErrUnwrap) || errors.Is(err, keymat.ErrGeneration) {
			return nil, errForeign
		}
		return key, err
	}
	key, generation, wrapped, err := vault.NewFileKey(o, header)
	if err != nil {
		return nil, err
	}
	f.fresh = true
	err = f.update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		if err := meta.Put(formatKey, []byte{format}); err != nil {
			return err
		}
		return meta.Put(wrappedKey, append(binary.BigEndian.AppendUint32(nil, generation), wrapped...))
	})
	if err != nil {
		key.Destroy()
		return nil, err
	}
	return key, nil
}

// Fresh reports whether the file was created when it was opened, and is empty.
func (f *File) Fresh() bool { return f.fresh }

// Replaced returns what was wrong with the file that was there when this one was opened; nil if
// there was none, or it is this one. Its user reports that.
func (f *File) Replaced() error { return f.damage }

// Size returns the length of the file in bytes.
func (f *File) Size() (int64, error) {
	st, err := os.Stat(f.path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *File) wipe() {
	f.macKey.Destroy()
	f.key.Destroy()
}

// Close wipes the file's keys and closes it, once all transactions have ended.
func (f *File) Close() (err error) {
	f.once.Do(func() {
		f.wipe()
		close(f.closed)
		err = guard(f.db.Close)
	})
	return err
}

// Remove closes the file and removes it.
func (f *File) Remove() error {
	_ = f.Close() // of a file that is removed, nothing needs to be written
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Term is a value of a field.
type Term struct{ Field, Value string }

// Tokens returns a token for each term: the same one for the same term in this file, and
// unrelated ones in other files. Nobody without the keyring can tell the term of a token, or
// test a guess.
func (f *File) Tokens(terms []Term) ([][TokenSize]byte, error) { return new(Tx{file: f}).Tokens(terms) }

// Tokens returns what File.Tokens does.
func (t *Tx) Tokens(terms []Term) (tokens [][TokenSize]byte, err error) {
	tokens = make([][TokenSize]byte, len(terms))
	err = t.file.macKey.With(func(key []byte) error {
		if t.mac == nil {
			t.mac = hmac.New(sha256.New, key)
		}
		mac := t.mac
		var b []byte
		for i, term := range terms {
			b = binary.BigEndian.AppendUint32(b[:0], uint32(len(term.Field)))
			b = append(append(b, term.Field...), term.Value...)
			mac.Reset()
			_, _ = mac.Write(b)
			mac.Sum(tokens[i][:0])
		}
		return nil
	})
	return tokens, vault.Gone(err)
}

// View calls fn with the content of the file as it is now, and returns what it returns.
// Errors: ErrDamaged, vault.ErrSealed.
func (f *File) View(fn func(*Tx) error) error {
	return f.view(func(tx *bbolt.Tx) error { return fn(&Tx{file: f, tx: tx}) })
}

// Update calls fn, and makes what it changed durable, all of it or, if fn fails, nothing.
// Errors: ErrDamaged, ErrFull, vault.ErrSealed, and those of the file system.
func (f *File) Update(fn func(*Tx) error) error {
	return f.update(func(tx *bbolt.Tx) error { return fn(&Tx{file: f, tx: tx}) })
}

func (f *File) view(fn func(*bbolt.Tx) error) error {
	return guard(func() error { return f.db.View(fn) })
}

func (f *File) update(fn func(*bbolt.Tx) error) error {
	return guard(func() error { return f.db.Update(fn) })
}

// Tx is a transaction. It must not be used after the function that got it returned, or
// concurrently.
type Tx struct {
	file *File
	tx   *bbolt.Tx
	// What derives the values' keys and makes tokens; made when it is needed. HMAC leaves what
	// it makes of a key in memory of the Go runtime, so that is done once in a transaction.
	keys *keymat.Deriver
	mac  hash.Hash
}

// Get returns a copy of a value; nil if there is none. Errors: ErrDamaged, vault.ErrSealed.
func (t *Tx) Get(bucket string, key []byte) ([]byte, error) {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil, nil
	}
	sealed := b.Get(key)
	if sealed == nil {
		return nil, nil
	}
	return t.open(bucket, key, sealed)
}

// Put stores a value, encrypted, under a key that can be read in the file. The bucket is
// created if it does not exist.
func (t *Tx) Put(bucket string, key, value []byte) error {
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	// What is written in ascending order of keys, as by an index, fills its pages.
	b.FillPercent = 0.9
	sealed, err := t.seal(bucket, key, value)
	if err != nil {
		return err
	}
	return b.Put(key, sealed)
}

// Delete removes a value, if it is there.
func (t *Tx) Delete(bucket string, key []byte) error {
	if b := t.tx.Bucket([]byte(bucket)); b != nil {
		return b.Delete(key)
	}
	return nil
}

// Drop removes a bucket with all values, if it is there.
func (t *Tx) Drop(bucket string) error {
	if t.tx.Bucket([]byte(bucket)) == nil {
		return nil
	}
	return t.tx.DeleteBucket([]byte(bucket))
}

// Each calls fn with all keys from a first one on, in ascending order, and their values, until
// fn returns an error, which Each returns. fn may keep the value and must not keep the key.
func (t *Tx) Each(bucket string, from []byte, fn func(key, value []byte) error) error {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, sealed := c.Seek(from); k != nil; k, sealed = c.Next() {
		value, err := t.open(bucket, k, sealed)
		if err != nil {
			return err
		}
		if err := fn(k, value); err != nil {
			return err
		}
	}
	return nil
}

// Last returns a copy of the last key of a bucket; nil if it is empty.
func (t *Tx) Last(bucket string) []byte {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	k, _ := b.Cursor().Last()
	return append([]byte(nil), k...)
}

// seal encrypts a value: salt, nonce, ciphertext, tag. Every value has a key of its own, which
// is derived by the salt, so that there may be any number of values with random nonces. A
// value is bound to its place, so that values cannot be exchanged.
func (t *Tx) seal(bucket string, key, value []byte) ([]byte, error) {
	sealed := make([]byte, saltSize, Overhead+len(value))
	_, _ = rand.Read(sealed)
	err := t.withValue(sealed[:saltSize], func(a cipher.AEAD) error {
		sealed = a.Seal(sealed, nil, value, place(bucket, key))
		return nil
	})
	return sealed, err
}

func (t *Tx) open(bucket string, key, sealed []byte) (value []byte, err error) {
	if len(sealed) < Overhead {
		return nil, ErrDamaged
	}
	err = t.withValue(sealed[:saltSize], func(a cipher.AEAD) error {
		if value, err = a.Open(make([]byte, 0, len(sealed)), nil, sealed[saltSize:], place(bucket, key)); err != nil {
			return ErrDamaged
		}
		return nil
	})
	return value, err
}

// withValue calls fn with the cipher of a value.
func (t *Tx) withValue(salt []byte, fn func(cipher.AEAD) error) error {
	return vault.Gone(t.file.key.With(func(b []byte) error {
		if t.keys == nil {
			t.keys = keymat.NewDeriver(b)
		}
		key := t.keys.Derive(labelOne, salt, keymat.KeySize)
		defer clear(key)
		block, err := aes.NewCipher(key)
		if err != nil {
			return err
		}
		a, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return err
		}
		return fn(a)
	}))
}

// place encodes where a value is.
func place(bucket string, key []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(bucket)))
	return append(append(b, bucket...), key...)
}

// guard calls fn and translates errors. bbolt trusts what it maps into memory: in a file that
// something else wrote to, or truncated, it panics or touches memory that is not there.
// Neither may end the process, for which the file is dispensable.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	err = fn()
	for _, damage := range []error{
		bbolterrors.ErrInvalid, bbolterrors.ErrVersionMismatch, bbolterrors.ErrChecksum, bbolterrors.ErrInvalidMapping, bbolterrors.ErrIncompatibleValue,
	} {
		if errors.Is(err, damage) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if errors.Is(err, bbolterrors.ErrMaxSizeReached) {
		return ErrFull
	}
	if errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		return vault.ErrSealed // closed, as a node's files are when it is sealed
	}
	return err
}
