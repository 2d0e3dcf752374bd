package tlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog"
)

// TestJudges has all judges look at one server, one after the other: what a step adds, the next
// one sees.
func TestJudges(t *testing.T) {
	s := start(t)
	// Full tiles and full bundles of entries, and begun ones.
	s.record(t, 700)
	first := s.published(t, 700)
	t.Run("fsck", func(t *testing.T) { testFsck(t, s) })
	t.Run("tessera client", func(t *testing.T) { testTesseraClient(t, s, first) })
	t.Run("torchwood", func(t *testing.T) { testTorchwood(t, s) })
	t.Run("altered proofs", func(t *testing.T) { testAlteredProofs(t, s) })
	t.Run("altered checkpoints and receipts", func(t *testing.T) { testAlteredTexts(t, s) })
	t.Run("by the page alone", func(t *testing.T) { testOutsider(t, s, first) }) // stops the server
}

// verifiers are others' verifiers of the log's two keys.
func (s *server) verifiers(t *testing.T) (ed, pq note.Verifier) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(s.keys), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d keys", len(lines))
	}
	ed, err := note.NewVerifier(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	if pq, err = fnote.NewVerifierForCosignatureV1(lines[1]); err != nil {
		t.Fatal(err)
	}
	return ed, pq
}

// bundleHashes are the leaf hashes of the entries of a bundle. Conclave's entries are the leaves
// themselves, so this is what Tessera's own command does.
func bundleHashes(raw []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(raw); err != nil {
		return nil, err
	}
	hashes := make([][]byte, len(b.Entries))
	for i, e := range b.Entries {
		hashes[i] = rfc6962.DefaultHasher.HashLeaf(e)
	}
	return hashes, nil
}

// check has Tessera's checker check a log, within a time. After an error, Check may wait for
// itself for good, so it has a goroutine of its own.
func check(t *testing.T, v note.Verifier, f fsck.Fetcher) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// More workers than tiles, so that none is waited for that gave up.
	c := fsck.New(v.Name(), v, f, bundleHashes, fsck.Opts{N: 16})
	done := make(chan error, 1)
	go func() { done <- c.Check(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("the check did not end")
	}
}

// faulty flips a bit in one resource.
type faulty struct {
	fsck.Fetcher
	at  string
	bit int
}

func (f *faulty) answer(name string, b []byte, err error) ([]byte, error) {
	if err == nil && name == f.at {
		b = slices.Clone(b)
		b[f.bit/8] ^= 1 << (f.bit % 8)
	}
	return b, err
}

func (f *faulty) ReadCheckpoint(ctx context.Context) ([]byte, error) {
	b, err := f.Fetcher.ReadCheckpoint(ctx)
	return f.answer("checkpoint", b, err)
}

func (f *faulty) ReadTile(ctx context.Context, l, i uint64, p uint8) ([]byte, error) {
	b, err := f.Fetcher.ReadTile(ctx, l, i, p)
	return f.answer(fmt.Sprintf("tile %d/%d.%d", l, i, p), b, err)
}

func (f *faulty) ReadEntryBundle(ctx context.Context, i uint64, p uint8) ([]byte, error) {
	b, err := f.Fetcher.ReadEntryBundle(ctx, i, p)
	return f.answer(fmt.Sprintf("entries %d.%d", i, p), b, err)
}

// testFsck has Tessera's checker make every tile again from the entries, and compare each with
// the served one and the root with the signed one; by either signature. It must also refuse what
// it is served with a bit changed, or its success would say nothing.
func testFsck(t *testing.T, s *server) {
	ed, pq := s.verifiers(t)
	for _, v := range []note.Verifier{ed, pq} {
		if err := check(t, v, s.fetcher(t)); err != nil {
			t.Errorf("key %08x: %v", v.KeyHash(), err)
		}
	}
	// Everything is fetched here, one after the other, so that the checks read from memory only.
	kept := &kept{Fetcher: s.fetcher(t), answers: make(map[string][]byte)}
	c, _, _, err := client.FetchCheckpoint(t.Context(), kept.ReadCheckpoint, ed, ed.Name())
	if err != nil {
		t.Fatal(err)
	}
	for level, n := uint64(0), c.Size; n > 0; level, n = level+1, n/256 {
		for i := range (n + 255) / 256 {
			p := uint8(min(256, n-256*i))
			if _, err := kept.ReadTile(t.Context(), level, i, p); err != nil {
				t.Fatal(err)
			}
			if level == 0 {
				if _, err := kept.ReadEntryBundle(t.Context(), i, p); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := check(t, ed, kept); err != nil {
		t.Fatalf("the log as it was fetched: %v", err)
	}
	altered := 0
	for name, b := range kept.answers {
		bits := 8 * len(b)
		for _, bit := range []int{0, 1, bits / 3, bits / 2, bits - 20} {
			if name == "checkpoint" {
				bit %= 8 * 60 // the text; what follows is the subject of another test
			}
			if err := check(t, ed, &faulty{Fetcher: kept, at: name, bit: bit}); err == nil {
				t.Errorf("%s with bit %d changed passes the check", name, bit)
			}
			altered++
		}
	}
	t.Logf("%d records, %d resources, %d altered answers refused", c.Size, len(kept.answers), altered)
}

// kept answers from memory what was asked before.
type kept struct {
	fsck.Fetcher
	answers map[string][]byte
}

func (k *kept) answer(name string, fetch func() ([]byte, error)) ([]byte, error) {
	if b, ok := k.answers[name]; ok {
		return b, nil
	}
	b, err := fetch()
	if err == nil {
		k.answers[name] = b
	}
	return b, err
}

func (k *kept) ReadCheckpoint(ctx context.Context) ([]byte, error) {
	return k.answer("checkpoint", func() ([]byte, error) { return k.Fetcher.ReadCheckpoint(ctx) })
}

func (k *kept) ReadTile(ctx context.Context, l, i uint64, p uint8) ([]byte, error) {
	return k.answer(fmt.Sprintf("tile %d/%d.%d", l, i, p), func() ([]byte, error) { return k.Fetcher.ReadTile(ctx, l, i, p) })
}

func (k *kept) ReadEntryBundle(ctx context.Context, i uint64, p uint8) ([]byte, error) {
	return k.answer(fmt.Sprintf("entries %d.%d", i, p), func() ([]byte, error) { return k.Fetcher.ReadEntryBundle(ctx, i, p) })
}

// testTesseraClient has Tessera's client make proofs of the served tiles, verifies them with its
// own and with ours, and has it follow the log while that grows.
func testTesseraClient(t *testing.T, s *server, first []byte) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ed, _ := s.verifiers(t)
	f := s.fetcher(t)
	old, _, _, err := log.ParseCheckpoint(first, ed.Name(), ed)
	if err != nil {
		t.Fatal(err)
	}
	tracker, err := client.NewLogStateTracker(ctx, f.ReadTile, first, ed, ed.Name(), client.UnilateralConsensus(f.ReadCheckpoint))
	if err != nil {
		t.Fatal(err)
	}
	size := old.Size
	for _, more := range []int{1, 3, 120, 200} {
		s.record(t, more)
		s.published(t, size+uint64(more))
		before, proofs, now, err := tracker.Update(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got := tracker.Latest().Size; got < size+uint64(more) || len(proofs) == 0 || string(before) == string(now) {
			t.Fatalf("the tracker is at %d after %d, with a proof of %d hashes", got, size, len(proofs))
		}
		size = tracker.Latest().Size
	}
	// A log whose tiles do not lead from one checkpoint to the next is not followed.
	wrong := func(ctx context.Context, l, i uint64, p uint8) ([]byte, error) {
		b, err := f.ReadTile(ctx, l, i, p)
		for at := 0; at < len(b); at += 32 {
			b[at] ^= 1
		}
		return b, err
	}
	forked, err := client.NewLogStateTracker(ctx, wrong, first, ed, ed.Name(), client.UnilateralConsensus(f.ReadCheckpoint))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := forked.Update(ctx); !errors.As(err, new(client.ErrInconsistency)) {
		t.Errorf("another log was followed: %v", err)
	}

	latest := tracker.Latest()
	pb, err := client.NewProofBuilder(ctx, latest.Size, f.ReadTile)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{0, 1, 255, 256, 511, 600, latest.Size - 1} {
		p, err := pb.InclusionProof(ctx, i)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := client.FetchLeafHashes(ctx, f.ReadTile, i, 1, latest.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, latest.Size, leaves[0], p, latest.Hash); err != nil {
			t.Errorf("record %d: theirs: %v", i, err)
		}
		if err := auditlog.VerifyInclusion(hashes(p), i, latest.Size, auditlog.Hash(leaves[0]), auditlog.Hash(latest.Hash)); err != nil {
			t.Errorf("record %d: ours: %v", i, err)
		}
	}
	p, err := pb.ConsistencyProof(ctx, old.Size, latest.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, latest.Size, p, old.Hash, latest.Hash); err != nil {
		t.Errorf("consistency: theirs: %v", err)
	}
	if err := auditlog.VerifyConsistency(hashes(p), old.Size, latest.Size, auditlog.Hash(old.Hash), auditlog.Hash(latest.Hash)); err != nil {
		t.Errorf("consistency: ours: %v", err)
	}
}

func hashes(proof [][]byte) []auditlog.Hash {
	out := make([]auditlog.Hash, len(proof))
	for i, h := range proof {
		out[i] = auditlog.Hash(h)
	}
	return out
}

// testTorchwood has Torchwood's client read all entries, which it compares with the tree, and
// single ones with their proofs.
func testTorchwood(t *testing.T, s *server) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ed, pq := s.verifiers(t)
	f, err := torchwood.NewTileFetcher(s.url(), torchwood.WithHTTPClient(s.http()), torchwood.WithConcurrencyLimit(4))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := f.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(raw, note.VerifierList(ed, pq))
	if err != nil || len(n.Sigs) != 2 {
		t.Fatalf("the checkpoint: %v, %+v", err, n)
	}
	c, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil || c.Origin != ed.Name() || c.Extension != "" {
		t.Fatalf("%+v, %v", c, err)
	}
	if at, err := torchwood.CosignatureTimestamp(n.Sigs[1]); err != nil || at != 0 {
		t.Errorf("the time of the log's own cosignature: %d, %v", at, err)
	}
	reader, err := torchwood.NewClient(f, torchwood.WithTimeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	next := int64(0)
	for range 3 { // it leaves out the last tile at first, if that is begun only
		for i, entry := range reader.Entries(ctx, c.Tree, next) {
			if i != next || len(entry) != 125 || entry[0] != 1 {
				t.Fatalf("entry %d has %d bytes, after %d entries", i, len(entry), next)
			}
			next++
		}
		if err := reader.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if next != c.N {
		t.Errorf("%d entries of %d", next, c.N)
	}
	for _, i := range []int64{0, 255, 256, c.N - 1} {
		entry, p, err := reader.Entry(ctx, c.Tree, i)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(p, c.N, c.Hash, i, tlog.RecordHash(entry)); err != nil {
			t.Errorf("entry %d: %v", i, err)
		}
	}
	// Another tree of the same size is not what the tiles lead to.
	c.Hash[5] ^= 1
	if _, _, err := reader.Entry(ctx, c.Tree, 3); err == nil {
		t.Error("an entry was proved in a tree with another root")
	}
}
