package auditlog

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"pgregory.net/rapid"
)

// TestFrontierAgainstReference compares roots with an independent RFC 6962 tree.
func TestFrontierAgainstReference(t *testing.T) {
	ref := testonly.New(rfc6962.DefaultHasher)
	var f Frontier
	if got := f.Root(); !bytes.Equal(got[:], ref.Hash()) {
		t.Fatalf("empty root %x, want %x", got, ref.Hash())
	}
	for i := range 1500 {
		h := Hash(rfc6962.DefaultHasher.HashLeaf([]byte{byte(i), byte(i >> 8)}))
		ref.Append(h[:])
		f.Append(h)
		if got := f.Root(); !bytes.Equal(got[:], ref.Hash()) {
			t.Fatalf("root of %d leaves %x, want %x", i+1, got, ref.Hash())
		}
	}
}

// TestFrontierSegments checks that segment roots are the reference's roots of
// whole segments, and that they fold to the tree.
func TestFrontierSegments(t *testing.T) {
	var f Frontier
	var roots []Hash
	for s := range 3 {
		ref := testonly.New(rfc6962.DefaultHasher)
		var leaves []Hash
		for i := range SegmentSize {
			h := Hash{byte(s), byte(i), byte(i >> 8)}
			ref.Append(append([]byte(nil), h[:]...))
			f.Append(h)
			leaves = append(leaves, h)
		}
		root := f.SegmentRoot()
		if !bytes.Equal(root[:], ref.Hash()) {
			t.Fatalf("root of segment %d differs from the reference", s)
		}
		if SegmentRoot(leaves) != root || SegmentRoot(leaves[1:]) != (Hash{}) {
			t.Fatalf("root of the leaves of segment %d differs, or one less leads to a root", s)
		}
		roots = append(roots, root)
		if g := FoldSegments(roots); !g.Equal(f) {
			t.Fatalf("%d segment roots do not fold to the tree", s+1)
		}
	}
	f.Append(Hash{9})
	if g := f.segments(); !g.Equal(FoldSegments(roots)) {
		t.Fatal("the part of whole segments differs")
	}
	defer func() {
		if recover() == nil {
			t.Fatal("SegmentRoot in the middle of a segment does not panic")
		}
	}()
	f.SegmentRoot()
}

func TestFrontierIsAValue(t *testing.T) {
	f, _ := testState(777)
	g, root := f, f.Root()
	for i := range 300 {
		g.Append(Hash{byte(i)})
	}
	if f.Size() != 777 || f.Root() != root {
		t.Fatal("appending to a copy changed the original")
	}
}

func TestFrontierBinary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Frontier{size: rapid.Uint64Max(1<<63).Draw(t, "size") &^ (1 << 63)}
		r := rand.New(rand.NewPCG(f.size, 1))
		for l := range f.nodes {
			if f.size>>l&1 == 1 {
				for i := range f.nodes[l] {
					f.nodes[l][i] = byte(r.Uint32())
				}
			}
		}
		b, err := f.MarshalBinary()
		if err != nil || len(b) > maxFrontier {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		var g Frontier
		if err := g.UnmarshalBinary(b); err != nil || !g.Equal(f) {
			t.Fatalf("decoding: %v", err)
		}
		for _, bad := range [][]byte{b[:len(b)-1], append(bytes.Clone(b), 0), append([]byte{2}, b[1:]...), nil} {
			if err := g.UnmarshalBinary(bad); err == nil {
				t.Fatalf("%d bytes are taken for the %d of a frontier", len(bad), len(b))
			}
		}
	})
}

func BenchmarkFrontierAppend(b *testing.B) {
	var f Frontier
	for b.Loop() {
		f.Append(Hash{1})
	}
}
