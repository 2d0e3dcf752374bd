package auditlog

import (
	"bytes"
	"testing"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

func FuzzDecodeFrame(f *testing.F) {
	for _, i := range []uint64{0, 7, 31} {
		e := testEntry(i)
		leaf := e.LeafHash()
		f.Add(AppendFrame(nil, &e, &leaf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, leaf, err := DecodeFrame(b)
		if err != nil {
			return
		}
		if e.Check() != nil || leaf != e.LeafHash() || !bytes.Equal(AppendFrame(nil, &e, &leaf), b) {
			t.Fatal("a frame was taken that is not the encoding of its entry")
		}
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	good := testCheckpoint(f, 9)
	f.Add(good)
	f.Add(append(bytes.Clone(good), "— witness.example/w 3q2+7wAAAAAAAAAA\n"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := checkpoint.Parse(b, testKey); err == nil && !bytes.HasPrefix(b, good) {
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
	m := DurableMark{Tree: tree, Pending: []PendingRange{{5, 9}}}
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var g DurableMark
		if g.decode(b) == nil && !bytes.Equal(g.encode(), b) {
			t.Fatal("a mark has two encodings")
		}
	})
}
