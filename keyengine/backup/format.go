package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/keyengine/backup/backuppb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	magic = "conclave backup\x00\x01"
	// schema is the newest schema of backups that this binary knows.
	schema = 1
	// maxHeader is far more than a cluster's record with all generations of its keyring.
	maxHeader = 1 << 20
	// keySize is the size of the generation and the wrapped key that follow the header.
	keySize = 4 + vault.WrappedFileKey

	// The parts of the content. Each begins with its kind and its length.
	partState = 1
	partAudit = 2
	partEnd   = 3
	partHead  = 1 + 4
	// maxPart is more than the largest entry of the audit log.
	maxPart = 256 << 10
)

var (
	// ErrFormat is returned for a file that is no backup, or whose beginning is damaged.
	ErrFormat = errors.New("not a backup of a Conclave cluster, or damaged")
	// ErrNewer is returned for a backup that a newer version wrote.
	ErrNewer = errors.New("the backup was written by a newer version")
	// ErrDamaged is returned for a backup that was changed, cut short or put together from
	// several, or that was not written by a node of the cluster.
	ErrDamaged = errors.New("the backup is damaged, or was tampered with")
)

// Header is the beginning of a backup. It is in the clear. Nothing of it is authenticated
// until the backup is opened.
type Header struct {
	*backuppb.Header
	hash       [32]byte // of all that precedes the wrapped key
	generation uint32
	wrapped    []byte
}

// begin returns the encoded beginning of a backup and its hash.
func begin(h *backuppb.Header) ([]byte, [32]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(h)
	if err == nil && len(b) > maxHeader {
		err = fmt.Errorf("a header of %d bytes", len(b))
	}
	if err != nil {
		return nil, [32]byte{}, err
	}
	out := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(b)))
	out = append(out, b...)
	return out, sha256.Sum256(out), nil
}

// ReadHeader reads the beginning of a backup, and nothing more. Its error wraps ErrFormat
// or ErrNewer, unless reading failed.
func ReadHeader(r io.Reader) (*Header, error) {
	head := make([]byte, len(magic)+4)
	if err := readFull(r, head); err != nil {
		return nil, err
	}
	if known := len(magic) - 1; string(head[:known]) == magic[:known] && head[known] > magic[known] {
		return nil, fmt.Errorf("%w: format %d, this one knows %d", ErrNewer, head[known], magic[known])
	}
	size := binary.BigEndian.Uint32(head[len(magic):])
	if !bytes.HasPrefix(head, []byte(magic)) || size > maxHeader {
		return nil, ErrFormat
	}
	b := make([]byte, size)
	if err := readFull(r, b); err != nil {
		return nil, err
	}
	h := &Header{Header: new(backuppb.Header)}
	sum := sha256.New()
	_, _ = sum.Write(head)
	_, _ = sum.Write(b)
	sum.Sum(h.hash[:0])
	if err := proto.Unmarshal(b, h.Header); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if h.Schema > schema {
		return nil, fmt.Errorf("%w: schema %d, this one knows %d", ErrNewer, h.Schema, schema)
	}
	if err := wire.Known(h.ProtoReflect()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if h.Schema == 0 || len(h.Id) != 16 || len(h.AuditRoot) != auditlog.HashSize || len(h.Cluster.GetId()) != 16 || len(h.Cluster.GetShares().GetId()) != 16 {
		return nil, fmt.Errorf("%w: its header is not complete", ErrFormat)
	}
	if err := wire.CheckGroup(h.Group); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	key := make([]byte, keySize)
	if err := readFull(r, key); err != nil {
		return nil, err
	}
	h.generation, h.wrapped = binary.BigEndian.Uint32(key), key[4:]
	return h, nil
}

// readFull is io.ReadFull for the beginning of a backup.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", ErrFormat)
	}
	return err
}

// writer encrypts the parts of a backup. After an error it writes nothing more.
type writer struct {
	to    io.Writer
	key   *keymat.Secret
	file  [32]byte
	n     uint64
	plain []byte // of the chunk that is being filled
	out   []byte
	err   error
}

// newWriter writes the beginning of a backup. The writer must be ended with close or
// destroy.
func newWriter(to io.Writer, o *vault.Opened, h *backuppb.Header) (*writer, error) {
	head, hash, err := begin(h)
	if err != nil {
		return nil, err
	}
	key, generation, wrapped, err := vault.NewFileKey(o, hash)
	if err != nil {
		return nil, err
	}
	w := &writer{to: to, key: key, file: hash, plain: make([]byte, 0, keymat.ChunkSize)}
	head = append(binary.BigEndian.AppendUint32(head, generation), wrapped...)
	if _, err := to.Write(head); err != nil {
		w.destroy()
		return nil, err
	}
	return w, nil
}

func (w *writer) destroy() { w.key.Destroy() }

// part writes one part.
func (w *writer) part(kind byte, b []byte) error {
	if len(b) > maxPart {
		return fmt.Errorf("a part of %d bytes", len(b))
	}
	w.append([]byte{kind})
	w.append(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	w.append(b)
	return w.err
}

func (w *writer) append(b []byte) {
	for len(b) > 0 && w.err == nil {
		if len(w.plain) == keymat.ChunkSize {
			w.flush(false) // only now, since a full chunk may be the last one
		}
		n := min(len(b), keymat.ChunkSize-len(w.plain))
		w.plain = append(w.plain, b[:n]...)
		b = b[n:]
	}
}

func (w *writer) flush(last bool) {
	if w.err != nil {
		return
	}
	if w.out, w.err = keymat.SealChunk(w.out[:0], w.key, w.file, w.n, last, w.plain); w.err == nil {
		_, w.err = w.to.Write(w.out)
	}
	w.err = vault.Gone(w.err)
	w.n++
	w.plain = w.plain[:0]
}

// close ends the backup.
func (w *writer) close() error {
	defer w.destroy()
	if err := w.part(partEnd, nil); err != nil {
		return err
	}
	w.flush(true)
	return w.err
}

// stateWriter writes a state snapshot in parts.
type stateWriter struct{ w *writer }

// Write implements io.Writer.
func (s stateWriter) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += maxPart {
		if err := s.w.part(partState, b[n:min(n+maxPart, len(b))]); err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// reader decrypts a backup after its header.
type reader struct {
	from  *bufio.Reader
	key   *keymat.Secret
	file  [32]byte
	n     uint64
	last  bool
	plain []byte // what is left of the chunk
	chunk []byte
	buf   []byte
}

func newReader(from io.Reader, key *keymat.Secret, h *Header) *reader {
	const size = keymat.ChunkSize + keymat.ChunkOverhead
	return &reader{from: bufio.NewReaderSize(from, size+1), key: key, file: h.hash, chunk: make([]byte, size), buf: make([]byte, 0, keymat.ChunkSize)}
}

// next decrypts the next chunk. Whether it is the last one follows from the end of the
// file, and is authenticated with the chunk.
func (r *reader) next() error {
	if r.last {
		return fmt.Errorf("%w: it ends within its content", ErrDamaged)
	}
	n, err := io.ReadFull(r.from, r.chunk)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		r.last = true
	case err != nil:
		return err
	default:
		_, err := r.from.Peek(1)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		r.last = err != nil
	}
	r.plain, err = keymat.OpenChunk(r.buf[:0], r.key, r.file, r.n, r.last, r.chunk[:n])
	if errors.Is(err, keymat.ErrChunk) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	r.n++
	return vault.Gone(err)
}

// read fills b.
func (r *reader) read(b []byte) error {
	for len(b) > 0 {
		if len(r.plain) == 0 {
			if err := r.next(); err != nil {
				return err
			}
		}
		n := copy(b, r.plain)
		b, r.plain = b[n:], r.plain[n:]
	}
	return nil
}

// part returns the next part, which is valid until the next call. The parts are in the
// order of their kinds, and nothing follows the last one.
func (r *reader) part(b []byte) (kind byte, _ []byte, err error) {
	var head [partHead]byte
	if err := r.read(head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] < partState || head[0] > partEnd || size > maxPart || head[0] == partEnd && size > 0 {
		return 0, nil, fmt.Errorf("%w: an unknown part", ErrDamaged)
	}
	if int(size) > cap(b) {
		b = make([]byte, size)
	}
	b = b[:size]
	if err := r.read(b); err != nil {
		return 0, nil, err
	}
	if head[0] == partEnd && (!r.last || len(r.plain) > 0) {
		return 0, nil, fmt.Errorf("%w: it goes on after its end", ErrDamaged)
	}
	return head[0], b, nil
}

// entryProto returns an audit entry as a message.
func entryProto(e *auditlog.Entry) *backuppb.AuditEntry {
	return &backuppb.AuditEntry{
		Index: e.Index, RaftIndex: e.RaftIndex, Time: e.Time, RequestId: e.RequestID[:], Generation: e.Generation,
		Salt: e.Salt[:], Commitment: e.Commitment[:], Body: e.Body,
	}
}

// parseEntry returns the audit entry in a part.
func parseEntry(b []byte) (auditlog.Entry, error) {
	var m backuppb.AuditEntry
	if err := proto.Unmarshal(b, &m); err != nil {
		return auditlog.Entry{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := wire.Known(m.ProtoReflect()); err != nil {
		return auditlog.Entry{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if len(m.RequestId) != 16 || len(m.Salt) != 16 || len(m.Commitment) != auditlog.HashSize {
		return auditlog.Entry{}, fmt.Errorf("%w: an audit entry", ErrDamaged)
	}
	e := auditlog.Entry{
		Index: m.Index, RaftIndex: m.RaftIndex, Time: m.Time, RequestID: [16]byte(m.RequestId), Generation: m.Generation,
		Salt: [16]byte(m.Salt), Commitment: auditlog.Hash(m.Commitment), Body: m.Body,
	}
	if err := e.Check(); err != nil {
		return auditlog.Entry{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return e, nil
}
