package auditlog

import (
	"encoding/binary"
	"fmt"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// DurableMark says what the newest Sync made durable. Nothing that it covers
// can have been torn by a crash, so anything wrong there is damage.
type DurableMark struct {
	Tree    Frontier
	Pending []PendingRange
}

// PendingRange is the entries of a pending file that were durable, [First, Next).
type PendingRange struct{ First, Next uint64 }

// maxPending bounds how many pending runs a mark names. There is one for each
// snapshot that was installed while a gap was open.
const maxPending = 1 << 16

// ReadDurableMark reads the mark of the log directory dir. The error is
// fs.ErrNotExist if nothing was synced there yet, and ErrMalformed if the mark is
// damaged.
func ReadDurableMark(fsys FS, dir string) (m DurableMark, err error) {
	b, err := ReadFile(fsys, filepath.Join(dir, layout.DurableFile), int64(layout.SealedSize(2+maxFrontier+maxPending*16)))
	if err != nil {
		return m, err
	}
	err = m.decode(b)
	return m, err
}

func (m *DurableMark) encode() []byte {
	tree := m.Tree.appendBinary(nil)
	b := binary.BigEndian.AppendUint16(nil, uint16(len(tree)))
	b = append(b, tree...)
	for _, p := range m.Pending {
		b = binary.BigEndian.AppendUint64(b, p.First)
		b = binary.BigEndian.AppendUint64(b, p.Next)
	}
	return layout.Seal(layout.DurableMagic, b)
}

func (m *DurableMark) decode(b []byte) error {
	c, n, err := layout.Unseal(layout.DurableMagic, b)
	if err != nil {
		return err
	}
	if n != len(b) || len(c) < 2 {
		return fmt.Errorf("%w: length", ErrMalformed)
	}
	tree := int(binary.BigEndian.Uint16(c))
	if c = c[2:]; tree > len(c) || (len(c)-tree)%16 != 0 || (len(c)-tree)/16 > maxPending {
		return fmt.Errorf("%w: length", ErrMalformed)
	}
	*m = DurableMark{}
	if err := m.Tree.UnmarshalBinary(c[:tree]); err != nil {
		return err
	}
	for c = c[tree:]; len(c) > 0; c = c[16:] {
		p := PendingRange{binary.BigEndian.Uint64(c), binary.BigEndian.Uint64(c[8:])}
		if p.Next < p.First {
			return fmt.Errorf("%w: pending entries %d to %d", ErrMalformed, p.First, p.Next)
		}
		m.Pending = append(m.Pending, p)
	}
	return nil
}
