package layout

import (
	"encoding/binary"
	"fmt"
)

// Removed says which segments were removed from a log directory: the first Segments ones,
// which are in the archive at Place. Their tiles are still there.
type Removed struct {
	Segments uint64
	Place    string
}

// maxPlace is the length of the longest place, in bytes.
const maxPlace = 2048

// MaxRemoved is the longest RemovedFile, in bytes.
const MaxRemoved = sealedHead + 8 + maxPlace + 32

// Encode returns the content of RemovedFile.
func (r Removed) Encode() ([]byte, error) {
	if len(r.Place) > maxPlace {
		return nil, fmt.Errorf("%w: a place of %d bytes", ErrMalformed, len(r.Place))
	}
	return Seal(RemovedMagic, append(binary.BigEndian.AppendUint64(nil, r.Segments), r.Place...)), nil
}

// DecodeRemoved is the inverse of Encode.
func DecodeRemoved(b []byte) (Removed, error) {
	c, n, err := Unseal(RemovedMagic, b)
	if err != nil {
		return Removed{}, err
	}
	if n != len(b) || len(c) < 8 || len(c) > 8+maxPlace || binary.BigEndian.Uint64(c) > 1<<47 {
		return Removed{}, fmt.Errorf("%w: what was removed", ErrMalformed)
	}
	return Removed{binary.BigEndian.Uint64(c), string(c[8:])}, nil
}
