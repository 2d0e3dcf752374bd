package tlog

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/transparency-dev/formats/log"
	fproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/receipt"
)

// statement is what a Merkle proof is said to prove. For inclusion, a is the index and from the
// leaf's hash; for consistency, a is the smaller size and from its root.
type statement struct {
	consistency bool
	a, size     uint64
	from, root  auditlog.Hash
	proof       []auditlog.Hash
}

func (s statement) clone() statement {
	s.proof = slices.Clone(s.proof)
	return s
}

func (s statement) equal(o statement) bool {
	return s.a == o.a && s.size == o.size && s.from == o.from && s.root == o.root && slices.Equal(s.proof, o.proof)
}

func (s statement) ours() error {
	if s.consistency {
		return auditlog.VerifyConsistency(s.proof, s.a, s.size, s.from, s.root)
	}
	return auditlog.VerifyInclusion(s.proof, s.a, s.size, s.from, s.root)
}

func (s statement) theirs() error {
	p := make([][]byte, len(s.proof))
	for i := range p {
		p[i] = s.proof[i][:]
	}
	if s.consistency {
		return proof.VerifyConsistency(rfc6962.DefaultHasher, s.a, s.size, p, s.from[:], s.root[:])
	}
	return proof.VerifyInclusion(rfc6962.DefaultHasher, s.a, s.size, s.from[:], p, s.root[:])
}

// alterations are statements that differ from s in one thing, by what it is.
func (s statement) alterations(r *rand.Rand) map[string]statement {
	out := make(map[string]statement)
	add := func(what string, change func(*statement)) {
		c := s.clone()
		change(&c)
		out[what] = c
	}
	flip := func(h *auditlog.Hash) { h[r.IntN(len(h))] ^= 1 << r.IntN(8) }
	for i := range s.proof {
		add(fmt.Sprintf("a bit of hash %d", i), func(c *statement) { flip(&c.proof[i]) })
		add(fmt.Sprintf("hash %d left out", i), func(c *statement) { c.proof = slices.Delete(c.proof, i, i+1) })
		add(fmt.Sprintf("hash %d twice", i), func(c *statement) { c.proof = slices.Insert(c.proof, i, c.proof[i]) })
		if i > 0 {
			add(fmt.Sprintf("hashes %d and %d exchanged", i-1, i), func(c *statement) { c.proof[i-1], c.proof[i] = c.proof[i], c.proof[i-1] })
		}
	}
	add("no hashes", func(c *statement) { c.proof = nil })
	add("a hash more", func(c *statement) { c.proof = append(c.proof, auditlog.Hash{1}) })
	for range 4 {
		add(fmt.Sprintf("a bit of the first hash %d", len(out)), func(c *statement) { flip(&c.from) })
		add(fmt.Sprintf("a bit of the root %d", len(out)), func(c *statement) { flip(&c.root) })
	}
	add("the roots exchanged", func(c *statement) { c.from, c.root = c.root, c.from })
	for _, d := range []uint64{1, 2, 256, ^uint64(0), ^uint64(1), 1 << 40, 1 << 62, 1 << 63} {
		add(fmt.Sprintf("index or size %+d", int64(d)), func(c *statement) { c.a += d })
	}
	return out
}

// sizes are statements that differ from s in the size of the tree alone.
func (s statement) sizes() (out []statement) {
	for _, d := range []uint64{1, 2, 3, 256, ^uint64(0), ^uint64(1), 1 << 40, 1 << 62, 1 << 63} {
		c := s.clone()
		c.size += d
		out = append(out, c)
	}
	return out
}

// testAlteredProofs compares our verdicts on proofs with those of transparency-dev/merkle: both
// accept each proof and refuse each that was altered.
func testAlteredProofs(t *testing.T, s *server) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	statements := s.statements(t, r)
	verdict := func(err error) string {
		if err == nil {
			return "accepted"
		}
		return "refused"
	}
	altered, shapes := 0, 0
	for _, st := range statements {
		name := fmt.Sprintf("consistency %v, %d in %d", st.consistency, st.a, st.size)
		if err := errors.Join(st.ours(), st.theirs()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for what, c := range st.alterations(r) {
			if c.equal(st) {
				continue // such as the hashes of no hashes left out
			}
			// Every tree continues the empty one, which theirs accept as proved and we refuse: a
			// checkpoint of nothing shows nothing.
			if c.consistency && c.a == 0 {
				if c.ours() == nil {
					t.Errorf("%s: ours proves a continuation of nothing", name)
				}
				continue
			}
			altered++
			if ours, theirs := c.ours(), c.theirs(); ours == nil || theirs == nil {
				t.Errorf("%s: %s: %s by ours (%v), %s by theirs (%v)", name, what, verdict(ours), ours, verdict(theirs), theirs)
			}
		}
		// A proof alone does not always say how large the tree is: the hash of a tree of 3 is made
		// of record 0's in the same way as that of one of 4. The checkpoint says it, and is signed.
		for _, c := range st.sizes() {
			altered++
			ours, theirs := c.ours(), c.theirs()
			if (ours == nil) != (theirs == nil) {
				t.Errorf("%s: size %d: %s by ours (%v), %s by theirs (%v)", name, c.size, verdict(ours), ours, verdict(theirs), theirs)
			}
			if ours == nil && theirs == nil {
				shapes++
			}
		}
	}
	t.Logf("%d proofs, %d altered; the same verdict on all, of which %d say the same of a tree of another size", len(statements), altered, shapes)
}

// statements are what the served tiles prove.
func (s *server) statements(t *testing.T, r *rand.Rand) (out []statement) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ed, _ := s.verifiers(t)
	f := s.fetcher(t)
	raw, err := f.ReadCheckpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	latest, _, _, err := log.ParseCheckpoint(raw, ed.Name(), ed)
	if err != nil {
		t.Fatal(err)
	}
	// Everything is proved in the newest tree, or in an earlier one, whose root follows from the
	// leaves.
	leaves, err := client.FetchLeafHashes(ctx, f.ReadTile, 0, latest.Size, latest.Size)
	if err != nil {
		t.Fatal(err)
	}
	rootOf := func(size uint64) auditlog.Hash {
		var tree auditlog.Frontier
		for _, leaf := range leaves[:size] {
			tree.Append(auditlog.Hash(leaf))
		}
		return tree.Root()
	}
	if rootOf(latest.Size) != auditlog.Hash(latest.Hash) {
		t.Fatal("the leaves do not lead to the root")
	}
	for _, size := range []uint64{1, 2, 3, 7, 256, 257, 512, 700, latest.Size} {
		pb, err := client.NewProofBuilder(ctx, size, f.ReadTile)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []uint64{0, size / 2, size - 1, r.Uint64N(size)} {
			p, err := pb.InclusionProof(ctx, i)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, statement{a: i, size: size, from: auditlog.Hash(leaves[i]), root: rootOf(size), proof: hashes(p)})
		}
		for _, old := range []uint64{1, (size + 1) / 2, size, 1 + r.Uint64N(size)} {
			p, err := pb.ConsistencyProof(ctx, old, size)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, statement{consistency: true, a: old, size: size, from: rootOf(old), root: rootOf(size), proof: hashes(p)})
		}
	}
	return out
}

// said is what a checkpoint or a receipt says, once it was verified.
type said struct {
	index, size uint64
	root        auditlog.Hash
	leaf        string
	proof       string
}

// judge compares the verdicts on a text with two bits changed in each of its bytes, or in each
// fourth one of the ML-DSA-44 signature. Ours accepts one
// text only. Theirs accept another spelling of the same: of base64's last digit, a few bits mean
// nothing. What they accept must say what the text said before.
func judge(t *testing.T, text []byte, ours, theirs func([]byte) (said, error)) {
	t.Helper()
	before, err := ours(text)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := theirs(text); err != nil || same != before {
		t.Fatalf("theirs: %v, %+v instead of %+v", err, same, before)
	}
	altered, spellings := 0, 0
	try := func(what string, c []byte) {
		altered++
		if _, err := ours(c); err == nil {
			t.Errorf("ours accepts it with %s", what)
		}
		switch now, err := theirs(c); {
		case err != nil:
		case now == before:
			spellings++
		default:
			t.Errorf("theirs accept with %s that it is %+v", what, now)
		}
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for i := range len(text) - 1 {
		if text[i] == '=' || text[i+1] != '=' {
			continue
		}
		for _, digit := range []byte(digits) {
			if c := bytes.Clone(text); digit != text[i] {
				c[i] = digit
				try(fmt.Sprintf("the last digit at byte %d changed to %c", i, digit), c)
			}
		}
	}
	for i := range text {
		if i > 600 && i%4 != 0 && i < len(text)-8 {
			continue // within the longer signature
		}
		for _, bit := range []byte{1 << (i % 8), 1 << ((i + 3) % 8)} {
			c := bytes.Clone(text)
			c[i] ^= bit
			try(fmt.Sprintf("bits %#02x of byte %d changed", bit, i), c)
		}
		if i%16 == 0 {
			try(fmt.Sprintf("byte %d left out", i), slices.Delete(bytes.Clone(text), i, i+1))
			try(fmt.Sprintf("byte %d twice", i), slices.Insert(bytes.Clone(text), i, text[i]))
			try(fmt.Sprintf("its end at byte %d", i), text[:i])
		}
	}
	if spellings == 0 || spellings > altered/50 {
		t.Errorf("theirs accept %d of %d altered texts", spellings, altered)
	}
	t.Logf("%d altered texts: ours refuse all; theirs take %d for another spelling of the same", altered, spellings)
}

// testAlteredTexts compares the verdicts on checkpoints and receipts.
func testAlteredTexts(t *testing.T, s *server) {
	ed, pq := s.verifiers(t)
	// theirCheckpoint wants both signatures, as ours does with both keys.
	theirCheckpoint := func(raw []byte) (said, error) {
		c, rest, n, err := log.ParseCheckpoint(raw, ed.Name(), ed, pq)
		if err != nil {
			return said{}, err
		}
		if len(n.Sigs) != 2 || len(rest) > 0 {
			return said{}, errors.New("not both signatures, or more text")
		}
		return said{size: c.Size, root: auditlog.Hash(c.Hash)}, nil
	}
	t.Run("checkpoint", func(t *testing.T) {
		raw := s.published(t, 1)
		judge(t, raw, func(b []byte) (said, error) {
			c, err := checkpoint.Parse(b, s.keys)
			return said{size: c.Size, root: c.Root}, err
		}, theirCheckpoint)
	})
	for _, index := range []string{"0", "300"} {
		t.Run("receipt "+index, func(t *testing.T) {
			raw := []byte(s.command(t, "audit", "receipt", index, "--out", "-"))
			judge(t, raw, func(b []byte) (said, error) {
				r, err := receipt.Parse(b)
				if err != nil {
					return said{}, err
				}
				e, c, err := r.Verify(s.keys)
				return said{index: e.Index, size: c.Size, root: c.Root, leaf: string(r.Leaf), proof: fmt.Sprint(r.Proof)}, err
			}, func(b []byte) (said, error) {
				var p fproof.TLogProof
				if err := p.Unmarshal(b); err != nil {
					return said{}, err
				}
				c, err := theirCheckpoint(p.Checkpoint)
				if err != nil {
					return said{}, err
				}
				var hashes [][]byte
				for i := range p.Hashes {
					hashes = append(hashes, p.Hashes[i][:])
				}
				err = proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, c.size, rfc6962.DefaultHasher.HashLeaf(p.ExtraData), hashes, c.root[:])
				return said{index: p.Index, size: c.size, root: c.root, leaf: string(p.ExtraData), proof: fmt.Sprint(p.Hashes)}, err
			})
			s.judgeByCommand(t, raw)
		})
	}
}

// judgeByCommand has the command that people use judge a receipt, as it is and altered.
func (s *server) judgeByCommand(t *testing.T, raw []byte) {
	t.Helper()
	verify := func(b []byte) (string, bool) {
		return s.try(t, b, "audit", "verify-receipt", "-", "--key", s.keyFile(t))
	}
	if out, ok := verify(raw); !ok {
		t.Fatalf("the command refuses a receipt: %s", out)
	}
	for i := 0; i < len(raw); i += len(raw) / 5 {
		c := bytes.Clone(raw)
		c[i] ^= 2
		if out, ok := verify(c); ok {
			t.Errorf("byte %d changed: the command says %s", i, out)
		}
	}
}

// TestCosignatures: witnesses' cosignatures of Ed25519 are the same for Torchwood and for us.
func TestCosignatures(t *testing.T) {
	logKey := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	const name = "witness.example/w1"
	signed, err := checkpoint.Sign("conclave/00112233445566778899aabbccddeeff/0", logKey, nil, 7, auditlog.Hash{9})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := torchwood.NewCosignatureSigner(name, key)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := checkpoint.NewEd25519Cosigner(name, key, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if want := theirs.Verifier().String(); checkpoint.Ed25519CosignatureKey(name, key.Public().(ed25519.PublicKey)) != want {
		t.Errorf("our form of the key is not %s", want)
	}
	ourVerifier, err := checkpoint.NewCosignatureVerifier(theirs.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	text = append(text, '\n')
	for what, signer := range map[string]note.Signer{"theirs": theirs, "ours": ours} {
		sig, err := signer.Sign(text)
		if err != nil {
			t.Fatal(err)
		}
		for verifier, v := range map[string]note.Verifier{"theirs": theirs.Verifier(), "ours": ourVerifier} {
			if !v.Verify(text, sig) {
				t.Errorf("%s does not verify what %s signed", verifier, what)
			}
			for i := range text {
				c := bytes.Clone(text)
				if c[i] ^= 4; v.Verify(c, sig) {
					t.Errorf("%s accepts byte %d of the text changed", verifier, i)
				}
			}
			for i := range sig {
				c := bytes.Clone(sig)
				if c[i] ^= 4; v.Verify(text, c) {
					t.Errorf("%s accepts byte %d of the cosignature changed", verifier, i)
				}
			}
		}
	}
}
