package auditlog

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

func proofBytes(p []Hash) [][]byte {
	out := make([][]byte, len(p))
	for i := range p {
		out[i] = p[i][:]
	}
	return out
}

// TestProofsAgainstReference compares proofs for all sizes with an independent
// RFC 6962 implementation, and damages each proof in every possible place.
func TestProofsAgainstReference(t *testing.T) {
	const n = 1500
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, n)
	ref := testonly.New(rfc6962.DefaultHasher)
	leaves := testLeaves(n)
	for i := range leaves {
		ref.Append(leaves[i][:])
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for size := uint64(1); size <= n; size++ {
		root := Hash(ref.HashAt(size))
		for range 3 {
			i := r.Uint64N(size)
			p, err := l.ProveInclusion(i, size)
			if err != nil {
				t.Fatal(err)
			}
			want, err := ref.InclusionProof(i, size)
			if err != nil || !equalProofs(p, want) {
				t.Fatalf("inclusion of %d in %d differs from the reference: %v", i, size, err)
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, size, leaves[i][:], proofBytes(p), root[:]); err != nil {
				t.Fatal(err)
			}
			mutate(p, r, func(what string, q []Hash) {
				if err := VerifyInclusion(q, i, size, leaves[i], root); !errors.Is(err, ErrProof) {
					t.Fatalf("inclusion of %d in %d, proof %s: %v, want ErrProof", i, size, what, err)
				}
			})
			other := leaves[i]
			other[r.IntN(32)] ^= 1
			if VerifyInclusion(p, i, size, other, root) == nil || VerifyInclusion(p, i, size, leaves[i], other) == nil ||
				size > 1 && VerifyInclusion(p, (i+1)%size, size, leaves[i], root) == nil {
				t.Fatalf("inclusion of %d in %d proves something else", i, size)
			}

			old := 1 + r.Uint64N(size)
			p, err = l.ProveConsistency(old, size)
			if err != nil {
				t.Fatal(err)
			}
			want, err = ref.ConsistencyProof(old, size)
			if err != nil || !equalProofs(p, want) {
				t.Fatalf("consistency of %d and %d differs from the reference: %v", old, size, err)
			}
			oldRoot := Hash(ref.HashAt(old))
			if err := VerifyConsistency(p, old, size, oldRoot, root); err != nil {
				t.Fatal(err)
			}
			mutate(p, r, func(what string, q []Hash) {
				if err := VerifyConsistency(q, old, size, oldRoot, root); !errors.Is(err, ErrProof) {
					t.Fatalf("consistency of %d and %d, proof %s: %v, want ErrProof", old, size, what, err)
				}
			})
			if VerifyConsistency(p, old, size, other, root) == nil || VerifyConsistency(p, old, size, oldRoot, other) == nil {
				t.Fatalf("consistency of %d and %d proves something else", old, size)
			}
		}
	}
}

func equalProofs(p []Hash, want [][]byte) bool {
	if len(p) != len(want) {
		return false
	}
	for i := range p {
		if !bytes.Equal(p[i][:], want[i]) {
			return false
		}
	}
	return true
}

func mutate(p []Hash, r *rand.Rand, try func(string, []Hash)) {
	clone := func() []Hash { return append([]Hash(nil), p...) }
	for i := range p {
		q := clone()
		q[i][r.IntN(32)] ^= 1 << r.IntN(8)
		try("with a flipped bit", q)
		q = clone()
		try("without a hash", append(q[:i], q[i+1:]...))
		if i > 0 && p[i] != p[i-1] {
			q = clone()
			q[i], q[i-1] = q[i-1], q[i]
			try("with swapped hashes", q)
		}
	}
	try("with a hash too many", append(clone(), Hash{1}))
}

// TestProofsOfLargeTrees makes proofs across full segments, from tiles only.
func TestProofsOfLargeTrees(t *testing.T) {
	const n = 2*SegmentSize + 4321
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, n)
	ref := testonly.New(rfc6962.DefaultHasher)
	leaves := testLeaves(n)
	for i := range leaves {
		ref.Append(leaves[i][:])
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		size := 1 + r.Uint64N(n)
		i, old := r.Uint64N(size), 1+r.Uint64N(size)
		p, err := l.ProveInclusion(i, size)
		want, refErr := ref.InclusionProof(i, size)
		if err != nil || refErr != nil || !equalProofs(p, want) {
			t.Fatalf("inclusion of %d in %d: %v, %v", i, size, err, refErr)
		}
		p, err = l.ProveConsistency(old, size)
		want, refErr = ref.ConsistencyProof(old, size)
		if err != nil || refErr != nil || !equalProofs(p, want) {
			t.Fatalf("consistency of %d and %d: %v, %v", old, size, err, refErr)
		}
	}
}

func TestProofLimits(t *testing.T) {
	for _, size := range []uint64{0, 1 << 57, 1 << 62, 1<<63 - 1, 1<<64 - 1} {
		if err := VerifyInclusion(nil, size-1, size, Hash{}, Hash{}); !errors.Is(err, ErrProof) {
			t.Errorf("inclusion in %d: %v", size, err)
		}
		if err := VerifyConsistency(nil, 1, size, Hash{}, Hash{}); !errors.Is(err, ErrProof) {
			t.Errorf("consistency with %d: %v", size, err)
		}
	}
	l := mustOpen(t, newLog(t, 10), nil)
	defer l.Close()
	for _, c := range [][2]uint64{{0, 11}, {5, 5}, {6, 5}, {0, 1 << 63}} {
		if _, err := l.ProveInclusion(c[0], c[1]); err == nil {
			t.Errorf("ProveInclusion(%d, %d) succeeds", c[0], c[1])
		}
	}
	for _, c := range [][2]uint64{{0, 5}, {6, 5}, {1, 11}} {
		if _, err := l.ProveConsistency(c[0], c[1]); err == nil {
			t.Errorf("ProveConsistency(%d, %d) succeeds", c[0], c[1])
		}
	}
}

// The tiles of a tree are those of every larger tree, and each is what RFC 6962 says.
func TestTile(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	const size = SegmentSize + 700
	mustAppend(t, l, 0, size)
	leaves := testLeaves(size)
	root := func(level int, n uint64) Hash { // of a complete subtree
		return fold(leaves[n<<(8*level) : (n+1)<<(8*level)])
	}
	for _, c := range []struct {
		level int
		n     uint64
		width int
		size  uint64
	}{
		{0, 0, 1, 1}, {0, 0, 256, 256}, {0, 0, 17, 300}, {0, 1, 44, 300}, {1, 0, 1, 256}, {1, 0, 256, size},
		{0, 256, 256, size}, {0, 258, 188, size}, {1, 1, 2, size}, {2, 0, 1, size},
	} {
		got, err := l.Tile(c.level, c.n, c.width, c.size)
		if err != nil || len(got) != c.width {
			t.Fatalf("%+v: %d hashes, %v", c, len(got), err)
		}
		for i, h := range got {
			if h != root(c.level, c.n*256+uint64(i)) {
				t.Fatalf("%+v: hash %d is wrong", c, i)
			}
		}
	}
	for _, c := range []struct {
		level int
		n     uint64
		width int
		size  uint64
	}{
		{0, 0, 0, 10}, {0, 0, 11, 10}, {0, 0, 257, size}, {-1, 0, 1, size}, {7, 0, 1, size}, {1, 0, 1, 255},
		{3, 0, 1, size}, {0, 1 << 60, 1, size}, {6, 1 << 47, 1, size}, {0, 0, 1, size + 1}, {0, 259, 1, size},
	} {
		if got, err := l.Tile(c.level, c.n, c.width, c.size); err == nil {
			t.Errorf("%+v: %d hashes", c, len(got))
		}
	}
}
