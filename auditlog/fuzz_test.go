package auditlog

import (
	"bytes"
	"testing"
)

func FuzzDecodeFrame(f *testing.F) {
	for _, i := range []uint64{0, 7, 31} {
		e := testEntry(i)
		leaf := e.LeafHash()
		f.Add(appendFrame(nil, &e, &leaf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, leaf, err := decodeFrame(b)
		if err != nil {
			return
		}
		if e.Check() != nil || leaf != e.LeafHash() || !bytes.Equal(appendFrame(nil, &e, &leaf), b) {
			t.Fatal("a frame was taken that is not the encoding of its entry")
		}
	})
}

func FuzzScanFrames(f *testing.F) {
	var b []byte
	for i := range uint64(5) {
		e := testEntry(i)
		leaf := e.LeafHash()
		b = appendFrame(b, &e, &leaf)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		end := int64(0)
		err := scanFrames(bytes.NewReader(b), 0, int64(len(b)), func(off int64, frame []byte) error {
			if off != end || len(frame) <= frameOverhead || !bytes.Equal(frame, b[off:off+int64(len(frame))]) {
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

func FuzzParseCheckpoint(f *testing.F) {
	good := testCheckpoint(f, 9)
	f.Add(good)
	f.Add(append(bytes.Clone(good), "— witness.example/w 3q2+7wAAAAAAAAAA\n"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCheckpoint(b, testKey); err == nil && !bytes.HasPrefix(b, good) {
			t.Fatalf("a forged checkpoint of %d entries is taken", c.Size)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := EncodeRecord(testRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := DecodeRecord(b)
		if err != nil {
			return
		}
		line, err := RenderJSON(testEntry(1), rec)
		if err != nil {
			t.Fatal(err)
		}
		checkLine(t, line)
		if _, err := EncodeRecord(rec); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzFrontier(f *testing.F) {
	tree, _ := testState(300)
	f.Add(tree.appendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var g Frontier
		if g.UnmarshalBinary(b) == nil && !bytes.Equal(g.appendBinary(nil), b) {
			t.Fatal("a frontier has two encodings")
		}
	})
}

func FuzzDurableMark(f *testing.F) {
	tree, _ := testState(300)
	m := durableMark{tree: tree, pending: []durablePending{{5, 9}}}
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var g durableMark
		if g.decode(b) == nil && !bytes.Equal(g.encode(), b) {
			t.Fatal("a mark has two encodings")
		}
	})
}
