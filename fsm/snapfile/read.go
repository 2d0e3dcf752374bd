package snapfile

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Reader reads a snapshot.
type Reader struct {
	z     *zstd.Decoder
	in    *bufio.Reader
	buf   []byte
	sum   hash.Hash // of the attested items
	items uint64
	limit int
}

// NewReader opens a snapshot for reading at its first item. The reader must be closed.
func NewReader(from io.Reader) (*Reader, error) {
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(z, 64<<10)
	begin := make([]byte, len(magic))
	if _, err := io.ReadFull(in, begin); err != nil || string(begin) != magic {
		z.Close()
		return nil, fmt.Errorf("%w: not a snapshot, or damaged", wire.ErrUnreadable)
	}
	return &Reader{z: z, in: in, buf: make([]byte, 64<<10), sum: sha256.New(), limit: maxHeader}, nil
}

// Close frees what the reader holds.
func (r *Reader) Close() { r.z.Close() }

// Next returns the next item, of which the first is the header and no other one is. After
// the last one it returns io.EOF, provided that the snapshot is whole and nothing follows
// it.
func (r *Reader) Next() (*fsmpb.SnapshotItem, error) {
	item, raw, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("item %d: %w", r.items, err)
	}
	if (item.GetHeader() != nil) != (r.items == 0) {
		return nil, fmt.Errorf("%w: header out of place", wire.ErrUnreadable)
	}
	if end := item.GetEnd(); end != nil {
		if end.Items != r.items {
			return nil, fmt.Errorf("%w: %d items of %d", wire.ErrUnreadable, r.items, end.Items)
		}
		if _, err := r.in.ReadByte(); err != io.EOF {
			return nil, fmt.Errorf("%w: data after the end", wire.ErrUnreadable)
		}
		return nil, io.EOF
	}
	if Attested(item) {
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(raw)))
		r.sum.Write(size[:])
		r.sum.Write(raw)
	}
	r.items++
	r.limit = maxItem
	return item, nil
}

// Digest returns the digest of the attested items that were read; see [Writer.Digest].
func (r *Reader) Digest() (digest [32]byte) {
	r.sum.Sum(digest[:0])
	return digest
}

// read reads an item of at most limit bytes. The bytes that it returns are valid until
// the next call.
func (r *Reader) read() (*fsmpb.SnapshotItem, []byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r.in, n[:]); err != nil {
		return nil, nil, fmt.Errorf("%w: cut short: %w", wire.ErrUnreadable, err)
	}
	size := binary.BigEndian.Uint32(n[:])
	if int64(size) > int64(r.limit) {
		return nil, nil, fmt.Errorf("%w: %d bytes", wire.ErrUnreadable, size)
	}
	buf := r.buf
	if int64(size) > int64(len(buf)) {
		buf = make([]byte, size)
	}
	b := buf[:size]
	if _, err := io.ReadFull(r.in, b); err != nil {
		return nil, nil, fmt.Errorf("%w: cut short: %w", wire.ErrUnreadable, err)
	}
	var item fsmpb.SnapshotItem
	if err := proto.Unmarshal(b, &item); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", wire.ErrUnreadable, err)
	}
	if h := item.GetHeader(); h != nil {
		// This error takes precedence, as it explains unknown fields.
		if err := level.Known.Check(h.Schema); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", wire.ErrUnreadable, err)
		}
	}
	if err := wire.Known(item.ProtoReflect()); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", wire.ErrUnreadable, err)
	}
	return &item, b, nil
}

// Index reads the beginning of a snapshot and returns the Raft index of the newest
// command that it covers.
func Index(from io.Reader) (uint64, error) {
	r, err := NewReader(from)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	header, err := r.Next()
	if err != nil {
		return 0, err
	}
	return header.GetHeader().Index, nil
}

// Cluster reads the beginning of a snapshot and returns the record of its cluster, or
// nil if that was not initialised yet.
func Cluster(from io.Reader) (*fsmpb.Cluster, error) {
	r, err := NewReader(from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := r.Next(); err != nil {
		return nil, err
	}
	item, err := r.Next() // the rows are in order of their kinds
	if err == io.EOF {
		return nil, nil
	}
	return item.GetCluster(), err
}
