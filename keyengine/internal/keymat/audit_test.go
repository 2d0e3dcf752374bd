package keymat

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
)

func newSealer(t testing.TB) (*Keyring, *BodySealer) {
	t.Helper()
	ring := newKeyring(t, newArena(t, 4096))
	s, err := ring.NewAuditKey()
	if err != nil {
		t.Fatal(err)
	}
	return ring, s
}

func TestCommitment(t *testing.T) {
	if got, want := Commitment([]byte("abc")), sha256.Sum256([]byte("conclave audit record v1\x00abc")); got != want {
		t.Errorf("Commitment = %x, want %x", got, want)
	}
}

// TestAuditFormatPage: the body in docs/audit-format.md, which was made as the page says, is
// opened.
func TestAuditFormatPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/audit-format.md")
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) []byte {
		t.Helper()
		_, rest, ok := strings.Cut(string(page), "\n"+name+" = ")
		line, _, _ := strings.Cut(rest, "\n")
		b, err := hex.DecodeString(line)
		if !ok || err != nil {
			t.Fatalf("the page has no value %q: %v", name, err)
		}
		return b
	}
	a := newArena(t, 4096)
	kek, err := a.Store(value("keyring key, generation 1"))
	if err != nil {
		t.Fatal(err)
	}
	ring := NewKeyring(a, [16]byte(value("cluster id")))
	if err := ring.Add(1, kek); err != nil {
		t.Fatal(err)
	}
	leaf := value("leaf 0")
	id, salt, commitment := [16]byte(leaf[25:]), [16]byte(leaf[45:]), [32]byte(leaf[61:])
	s, err := ring.AuditKey(1, salt)
	if err != nil {
		t.Fatal(err)
	}
	record, err := s.Open(id, commitment, value("body 0"))
	if err != nil || !bytes.Equal(record, value("record 0 in the clear")) {
		t.Errorf("%x, %v", record, err)
	}
}

func TestBodySealer(t *testing.T) {
	ring, s := newSealer(t)
	id := [16]byte{1, 2, 3}
	for _, n := range []int{1, 600, MaxRecord} {
		record := bytes.Repeat([]byte{'r'}, n)
		body, commitment, err := s.Seal(id, record)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) != n+BodyOverhead || cap(body) != len(body) || commitment != Commitment(record) {
			t.Errorf("%d bytes became a body of %d, capacity %d", n, len(body), cap(body))
		}
		// Another node opens it by what stands in the entry.
		reader, err := ring.AuditKey(s.Generation(), s.Salt())
		if err != nil {
			t.Fatal(err)
		}
		got, err := reader.Open(id, commitment, body)
		if err != nil || !bytes.Equal(got, record) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, n := range []int{0, MaxRecord + 1} {
		if _, _, err := s.Seal(id, make([]byte, n)); !errors.Is(err, ErrSize) {
			t.Errorf("record of %d bytes: err = %v, want ErrSize", n, err)
		}
	}
	other, _ := ring.NewAuditKey()
	if other.Salt() == s.Salt() {
		t.Error("two sealers with one salt")
	}
}

func TestBodyEveryBitAndTruncation(t *testing.T) {
	ring, s := newSealer(t)
	id := [16]byte{1}
	record := []byte("a record")
	body, commitment, err := s.Seal(id, record)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, s *BodySealer, id [16]byte, commitment [32]byte, body []byte) {
		t.Helper()
		if got, err := s.Open(id, commitment, body); err != ErrBody || got != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range len(body) * 8 {
		b := bytes.Clone(body)
		b[i/8] ^= 1 << (i % 8)
		refuse("bit of the body", s, id, commitment, b)
	}
	for i := range len(id) * 8 {
		x := id
		x[i/8] ^= 1 << (i % 8)
		refuse("bit of the request id", s, x, commitment, body)
	}
	for i := range len(commitment) * 8 {
		x := commitment
		x[i/8] ^= 1 << (i % 8)
		refuse("bit of the commitment", s, id, x, body)
	}
	for i := range body {
		refuse("truncated", s, id, commitment, body[:i])
	}
	refuse("nil", s, id, commitment, nil)
	refuse("longer", s, id, commitment, append(bytes.Clone(body), 0))
	refuse("huge", s, id, commitment, make([]byte, 1<<20))
	if _, err := ring.Generate(); err != nil {
		t.Fatal(err)
	}
	generation, _ := ring.AuditKey(2, s.Salt())
	refuse("other generation", generation, id, commitment, body)
	salt := s.Salt()
	salt[0] ^= 1
	salted, _ := ring.AuditKey(1, salt)
	refuse("other salt", salted, id, commitment, body)
	otherRing, _ := newSealer(t)
	stranger, _ := otherRing.AuditKey(1, s.Salt())
	refuse("other keyring", stranger, id, commitment, body)

	// An origin that lies about the commitment: the record is not handed out.
	lie := Commitment([]byte("another record"))
	aead := *s.aead.Load()
	forged := aead.Seal(nil, nil, record, s.appendAAD(nil, &id, &lie))
	refuse("wrong commitment, rightly sealed", s, id, lie, forged)
}

func TestBodySealerLimit(t *testing.T) {
	_, s := newSealer(t)
	s.seals.Store(maxBodySeals - 1)
	if _, _, err := s.Seal([16]byte{}, []byte("last")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := s.Seal([16]byte{}, []byte("one more")); !errors.Is(err, ErrSealerSpent) {
			t.Errorf("err = %v, want ErrSealerSpent", err)
		}
	}
	if n := s.seals.Load(); n != maxBodySeals {
		t.Errorf("count is %d, want %d", n, maxBodySeals)
	}
}

func TestBodySealerConcurrent(t *testing.T) {
	ring, s := newSealer(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				id := [16]byte{byte(g), byte(i)}
				body, commitment, err := s.Seal(id, id[:])
				if errors.Is(err, ErrWiped) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				got, err := s.Open(id, commitment, body)
				if err != nil && !errors.Is(err, ErrWiped) || err == nil && !bytes.Equal(got, id[:]) {
					t.Error(err)
					return
				}
				if g == 0 && i == 150 {
					ring.Wipe()
				}
			}
		})
	}
	wg.Wait()
}

func TestBodySealerWipe(t *testing.T) {
	_, s := newSealer(t)
	s.Wipe()
	if _, _, err := s.Seal([16]byte{}, []byte("r")); !errors.Is(err, ErrWiped) {
		t.Errorf("Seal: err = %v, want ErrWiped", err)
	}
}

func BenchmarkBodySeal600B(b *testing.B) {
	_, s := newSealer(b)
	record := make([]byte, 600)
	b.SetBytes(600)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.Seal([16]byte{}, record); err != nil {
			b.Fatal(err)
		}
	}
}
