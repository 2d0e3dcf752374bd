package layout

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"testing"
)

func TestSegmentNumber(t *testing.T) {
	for _, n := range []uint64{0, 1, 99_999_999, 100_000_000} {
		if got, ok := SegmentNumber(filepath.Base(SegmentPath(n))); !ok || got != n {
			t.Errorf("segment %d: got %d, %v", n, got, ok)
		}
	}
	for _, name := range []string{"", "1.seg", "000000001.seg", "00000001", "00000001.seg~", "+0000001.seg", "-0000001.seg", "999999999999999999.seg"} {
		if n, ok := SegmentNumber(name); ok {
			t.Errorf("%q was taken for segment %d", name, n)
		}
	}
}

func TestTilePath(t *testing.T) {
	for want, got := range map[string]string{
		"tile/0/000":           TilePath(0, 0),
		"tile/1/999":           TilePath(1, 999),
		"tile/0/x001/234":      TilePath(0, 1234),
		"tile/6/x001/x234/567": TilePath(6, 1_234_567),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestUnseal(t *testing.T) {
	content := []byte("content")
	b := Seal(DurableMagic, content)
	if got, n, err := Unseal(DurableMagic, append(bytes.Clone(b), "more"...)); err != nil || n != len(b) || n != SealedSize(len(content)) || !bytes.Equal(got, content) {
		t.Fatalf("got %q, %d bytes, %v", got, n, err)
	}
	if _, _, err := Unseal(PendingMagic, b); err == nil {
		t.Error("another magic was taken")
	}
	for i := range b {
		if _, _, err := Unseal(DurableMagic, b[:i]); err == nil {
			t.Fatalf("cut at %d: taken", i)
		}
		b[i] ^= 1
		if _, _, err := Unseal(DurableMagic, b); err == nil {
			t.Fatalf("byte %d changed: taken", i)
		}
		b[i] ^= 1
	}
}

func FuzzScanFrames(f *testing.F) {
	var b []byte
	for i := range 5 {
		rest := FrameOverhead - 4 + 1 + i
		b = binary.BigEndian.AppendUint32(b, uint32(rest))
		b = append(b, bytes.Repeat([]byte{byte(i)}, rest)...)
	}
	f.Add(b)
	f.Add(append(binary.BigEndian.AppendUint32(nil, FrameOverhead-4), b...)) // no body
	f.Fuzz(func(t *testing.T, b []byte) {
		end := int64(0)
		err := ScanFrames(bytes.NewReader(b), 0, int64(len(b)), func(off int64, frame []byte) error {
			if off != end || len(frame) <= FrameOverhead || !bytes.Equal(frame, b[off:off+int64(len(frame))]) {
				t.Fatalf("frame of %d bytes at %d, expected at %d", len(frame), off, end)
			}
			end = off + int64(len(frame))
			return nil
		})
		if err == nil && end != int64(len(b)) {
			t.Fatalf("%d of %d bytes scanned", end, len(b))
		}
	})
}
