package snapfile

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Writer writes a snapshot. After an error it writes nothing more; Err and Close return
// the error.
type Writer struct {
	z     *zstd.Encoder // nil if only the digest is wanted
	w     *bufio.Writer
	sum   hash.Hash // of the attested items, while those are written
	head  []byte
	buf   []byte
	items uint64
	err   error
}

// NewWriter begins a snapshot. It must be ended with Close or Abandon.
func NewWriter(to io.Writer) (*Writer, error) {
	// One goroutine and a fixed level, so that the bytes do not depend on the machine.
	z, err := zstd.NewWriter(to, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, err
	}
	w := &Writer{z: z, w: bufio.NewWriterSize(z, 64<<10)}
	w.raw([]byte(magic))
	w.sum = sha256.New()
	return w, nil
}

// Digest returns the digest of the attested items that write writes; see
// [Writer.Digest].
func Digest(write func(*Writer)) [32]byte {
	w := &Writer{w: bufio.NewWriter(io.Discard), sum: sha256.New()}
	write(w)
	return w.Digest()
}

func (w *Writer) raw(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
	if w.sum != nil {
		w.sum.Write(b)
	}
}

// Item writes the SnapshotItem that holds m. It panics if none does.
func (w *Writer) Item(m proto.Message) {
	field := FieldOf(m)
	if field == 0 {
		panic(fmt.Sprintf("%s is not part of a snapshot", m.ProtoReflect().Descriptor().FullName()))
	}
	w.Field(field, m)
}

// Field writes a SnapshotItem that holds m in the given field: the tag of the field, the
// length of m, and m.
func (w *Writer) Field(field protowire.Number, m proto.Message) {
	w.buf = wire.Marshal(w.buf[:0], m)
	w.head = protowire.AppendTag(append(w.head[:0], 0, 0, 0, 0), field, protowire.BytesType)
	w.head = protowire.AppendVarint(w.head, uint64(len(w.buf)))
	binary.BigEndian.PutUint32(w.head, uint32(len(w.head)-4+len(w.buf)))
	w.raw(w.head)
	w.raw(w.buf)
	if w.items++; w.items%yieldEvery == 0 {
		runtime.Gosched()
	}
}

// yieldEvery is how many items are written before the goroutine yields, which is every
// millisecond or two. A snapshot can be hundreds of thousands of items, and nobody waits
// for it. Left alone, the scheduler would let it run for 10 ms at a time while requests
// wait. A goroutine that yields goes behind all that are ready to run.
const yieldEvery = 128

// Digest ends the attested items, which come first, and returns the digest of all
// items so far, which an [fsmpb.Attestation] signs.
func (w *Writer) Digest() (digest [32]byte) {
	w.sum.Sum(digest[:0])
	w.sum = nil
	return digest
}

// Err returns the first error.
func (w *Writer) Err() error { return w.err }

// Close writes the end of the snapshot.
func (w *Writer) Close() error {
	w.Item(&fsmpb.SnapshotEnd{Items: w.items})
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return errors.Join(w.err, w.z.Close())
}

// Abandon ends a snapshot that is of no use, because of cause. It returns cause, and what
// else went wrong.
func (w *Writer) Abandon(cause error) error { return errors.Join(cause, w.z.Close()) }
