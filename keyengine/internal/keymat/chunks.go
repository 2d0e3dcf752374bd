package keymat

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A file is encrypted in chunks, in the manner of the STREAM construction: each chunk is
// AES-256-GCM under one key for the file, and additional data is the position of the chunk
// and whether it is the last one. A file from which chunks were removed, to which some were
// added, or whose chunks were put in another order cannot be decrypted, nor can one that
// has chunks of another file.
const (
	// ChunkSize is the size of every chunk in the clear but the last one, which may be
	// smaller.
	ChunkSize = 64 << 10
	// ChunkOverhead is how much longer an encrypted chunk is.
	ChunkOverhead = gcmOverhead
	// MaxChunks bounds the number of chunks of a file, so that random nonces of one key do
	// not repeat (SP 800-38D, 8.3).
	MaxChunks = 1 << 32

	labelChunks = "chunks"
	chunkDomain = "conclave chunk v1\x00"
)

// ErrChunk is returned for a chunk that cannot be decrypted: it was changed or moved, or
// belongs to another file, or its file was cut short.
var ErrChunk = errors.New("a part of the file was changed, moved or removed")

// SealChunk appends chunk n of a file, encrypted, to dst. key has KeySize bytes and is of
// no other use; file identifies the file.
func SealChunk(dst []byte, key *Secret, file [32]byte, n uint64, last bool, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > ChunkSize || len(plain) < ChunkSize && !last || n >= MaxChunks {
		return dst, fmt.Errorf("%w: chunk %d of %d bytes", ErrSize, n, len(plain))
	}
	err := key.With(func(k []byte) error {
		derived := Derive(k, labelChunks, file[:], KeySize)
		defer clear(derived)
		dst = newAEAD(derived).Seal(dst, nil, plain, chunkAAD(n, last))
		return nil
	})
	return dst, err
}

// OpenChunk appends chunk n of a file in the clear to dst. It returns ErrChunk for
// everything that may be wrong with the chunk.
func OpenChunk(dst []byte, key *Secret, file [32]byte, n uint64, last bool, chunk []byte) ([]byte, error) {
	size := len(chunk) - ChunkOverhead
	if size < 1 || size > ChunkSize || size < ChunkSize && !last || n >= MaxChunks {
		return dst, ErrChunk
	}
	err := key.With(func(k []byte) error {
		derived := Derive(k, labelChunks, file[:], KeySize)
		defer clear(derived)
		out, err := newAEAD(derived).Open(dst, nil, chunk, chunkAAD(n, last))
		if err != nil {
			return ErrChunk
		}
		dst = out
		return nil
	})
	return dst, err
}

func chunkAAD(n uint64, last bool) []byte {
	b := binary.BigEndian.AppendUint64([]byte(chunkDomain), n)
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}
