package receipt

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const origin = "conclave/00112233445566778899aabbccddeeff/0"

var (
	private = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key     = checkpoint.VerifierKey(origin, private.Public().(ed25519.PublicKey))
)

func entry(i uint64) auditlog.Entry {
	return auditlog.Entry{Index: i, RaftIndex: 10 + i, Time: 1_700_000_000_000_000_000 + int64(i), RequestID: [16]byte{1, byte(i)}, Generation: 3, Salt: [16]byte{byte(i)}, Commitment: auditlog.Hash{2, byte(i)}, Body: fmt.Appendf(nil, "record %d", i)}
}

// receiptOf makes the receipt of a record in a log of size entries.
func receiptOf(t *testing.T, index, size uint64) []byte {
	t.Helper()
	l, err := auditlog.Open(t.TempDir(), auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Restore(auditlog.Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	var tree auditlog.Frontier
	for i := range size {
		e := entry(i)
		tree.Append(e.LeafHash())
		if err := l.Append([]auditlog.Entry{e}, []auditlog.Hash{e.LeafHash()}); err != nil {
			t.Fatal(err)
		}
	}
	signed, err := checkpoint.Sign(origin, private, nil, size, tree.Root())
	if err != nil {
		t.Fatal(err)
	}
	path, err := l.ProveInclusion(index, size)
	if err != nil {
		t.Fatal(err)
	}
	e := entry(index)
	r := Receipt{Index: index, Leaf: e.AppendLeaf(nil), Proof: path, Checkpoint: signed}
	return r.Marshal()
}

// accepted verifies a receipt with package merkle as well, and demands that both agree.
func accepted(t *testing.T, text []byte) bool {
	t.Helper()
	r, err := Parse(text)
	if err != nil {
		return false
	}
	_, c, err := r.Verify(key)
	if cp, signed := checkpoint.Parse(r.Checkpoint, key); signed == nil {
		hashes := make([][]byte, len(r.Proof))
		for i := range r.Proof {
			hashes[i] = r.Proof[i][:]
		}
		theirs := proof.VerifyInclusion(rfc6962.DefaultHasher, r.Index, cp.Size, rfc6962.DefaultHasher.HashLeaf(r.Leaf), hashes, cp.Root[:])
		if c == cp && theirs != nil && err == nil {
			t.Errorf("verified here, but not by package merkle (%v):\n%s", theirs, text)
		}
	}
	return err == nil
}

func TestReceipt(t *testing.T) {
	for _, at := range [][2]uint64{{0, 1}, {0, 2}, {4, 7}, {6, 7}, {299, 300}, {255, 513}} {
		text := receiptOf(t, at[0], at[1])
		r, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Marshal(), text) {
			t.Fatalf("parsed and written again, it is\n%s\nnot\n%s", r.Marshal(), text)
		}
		e, c, err := r.Verify(key)
		want := entry(at[0])
		want.Body = nil
		if err != nil || c.Size != at[1] || fmt.Sprint(e) != fmt.Sprint(want) {
			t.Fatalf("entry %d in %d: got %+v in %+v (%v)", at[0], at[1], e, c, err)
		}
		if !accepted(t, text) {
			t.Fatal("package merkle disagrees")
		}
	}
}

func TestAlteredReceipt(t *testing.T) {
	text := receiptOf(t, 4, 7)
	for i := range text {
		for bit := range 8 {
			b := bytes.Clone(text)
			b[i] ^= 1 << bit
			if accepted(t, b) {
				t.Fatalf("byte %d bit %d changed: still taken:\n%s", i, bit, b)
			}
		}
		if accepted(t, text[:i]) {
			t.Fatalf("cut off at byte %d: still taken", i)
		}
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	for i := range lines {
		without := bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
		twice := bytes.Join(append(append(append([][]byte{}, lines[:i+1]...), lines[i]), lines[i+1:]...), nil)
		if len(lines[i]) > 0 && (accepted(t, without) || accepted(t, twice)) {
			t.Errorf("line %d removed or doubled: still taken", i)
		}
	}
	// The proof of one record is none of another.
	other, err := Parse(receiptOf(t, 5, 7))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	r.Leaf, r.Index = other.Leaf, other.Index
	if accepted(t, r.Marshal()) {
		t.Error("the leaf of another record is taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + "extra AAAA\nindex 0\n\nx\n1\nAA==\n\n— x AAAA\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Marshal(), b) {
			t.Fatal("a second encoding is taken")
		}
		if _, _, err := r.Verify(key); err == nil {
			t.Fatal("a forged receipt is taken")
		}
	})
}
