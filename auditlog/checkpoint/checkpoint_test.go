package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/note"
)

const testOrigin = "conclave/00112233445566778899aabbccddeeff/0"

var (
	testPriv = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	testKey  = VerifierKey(testOrigin, testPriv.Public().(ed25519.PublicKey))
	testRoot = sha256.Sum256([]byte("root"))
)

func TestFormat(t *testing.T) {
	msg, err := Sign(testOrigin, testPriv, nil, 5, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(msg, testKey)
	if err != nil || c != (Checkpoint{Origin: testOrigin, Size: 5, Root: testRoot}) {
		t.Fatalf("%+v, %v", c, err)
	}
	if want := testOrigin + "\n5\n" + base64.StdEncoding.EncodeToString(testRoot[:]) + "\n\n— " + testOrigin + " "; !strings.HasPrefix(string(msg), want) {
		t.Fatalf("checkpoint %q, want prefix %q", msg, want)
	}
	for i := range msg {
		for bit := range 8 {
			b := bytes.Clone(msg)
			b[i] ^= 1 << bit
			if _, err := Parse(b, testKey); err == nil {
				t.Fatalf("byte %d bit %d flipped: still taken", i, bit)
			}
		}
		if _, err := Parse(msg[:i], testKey); err == nil {
			t.Fatalf("cut at %d: still taken", i)
		}
	}
	cosigned := append(bytes.Clone(msg), "— witness.example/w 3q2+7wAAAAAAAAAA\n"...)
	if got, err := Parse(cosigned, testKey); err != nil || got != c {
		t.Fatalf("with a witness's signature: %v", err)
	}
	for _, origin := range []string{"", "a b", "a+b", "a\nb"} {
		if _, err := Sign(origin, testPriv, nil, 5, testRoot); err == nil {
			t.Errorf("origin %q is taken", origin)
		}
		if VerifierKey(origin, testPriv.Public().(ed25519.PublicKey)) != "" {
			t.Errorf("a key for origin %q", origin)
		}
	}
	if _, err := Sign(testOrigin, nil, nil, 5, testRoot); err == nil {
		t.Error("no key is taken")
	}
}

func mldsaKey(t testing.TB, b byte) *mldsa.PrivateKey {
	t.Helper()
	k, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), bytes.Repeat([]byte{b}, mldsa.PrivateKeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTwoSignatures(t *testing.T) {
	pq := mldsaKey(t, 1)
	both := testKey + "\n" + MLDSAVerifierKey(testOrigin, pq.PublicKey()) + "\n"
	one, err := Sign(testOrigin, testPriv, nil, 5, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Sign(testOrigin, testPriv, pq, 5, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Sign(testOrigin, testPriv, pq, 5, testRoot); err != nil || !bytes.Equal(two, again) {
		t.Errorf("signing again (%v) led to other bytes", err)
	}
	if !bytes.HasPrefix(two, one) {
		t.Fatal("the second signature does not follow the first")
	}
	want := Checkpoint{Origin: testOrigin, Size: 5, Root: testRoot}
	for _, keys := range []string{testKey, both} {
		if c, err := Parse(two, keys); err != nil || c != want {
			t.Errorf("got %+v, %v", c, err)
		}
	}
	if _, err := Parse(one, testKey); err != nil {
		t.Errorf("a checkpoint with one signature and its key: %v", err)
	}
	if _, err := Parse(one, both); err == nil {
		t.Error("a checkpoint without the second signature is taken although its key is given")
	}
	if _, err := ParseKept(one, both); err != nil {
		t.Errorf("a kept checkpoint without the second signature: %v", err)
	}
	// Without the first signature there is no checkpoint, whatever else has signed.
	head, _, _ := bytes.Cut(one, []byte("\n\n"))
	second := append(append(bytes.Clone(head), "\n\n"...), two[len(one):]...)
	for _, keys := range []string{testKey, both} {
		if _, err := ParseKept(second, keys); err == nil {
			t.Error("a checkpoint without the Ed25519 signature is taken")
		}
	}
	// Another key's or another tree's second signature.
	other, err := Sign(testOrigin, testPriv, mldsaKey(t, 2), 5, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(other, both); err == nil {
		t.Error("the signature of another ML-DSA-44 key is taken")
	}
	forged, err := Sign(testOrigin, testPriv, nil, 6, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	forged = append(forged, two[len(one):]...)
	for _, parse := range []func([]byte, string) (Checkpoint, error){Parse, ParseKept} {
		if _, err := parse(forged, both); err == nil {
			t.Error("the ML-DSA-44 signature of another tree is taken")
		}
	}
	for i := range two {
		b := bytes.Clone(two)
		b[i] ^= 1 << (i % 8)
		if _, err := Parse(b, both); err == nil {
			t.Fatalf("byte %d changed: still taken", i)
		}
	}
	for name, keys := range map[string]string{
		"none":             "",
		"second only":      MLDSAVerifierKey(testOrigin, pq.PublicKey()),
		"twice":            testKey + "\n" + testKey,
		"of another name":  testKey + "\n" + MLDSAVerifierKey("other", pq.PublicKey()),
		"of a witness":     testKey + "\n" + Ed25519CosignatureKey(testOrigin, testPriv.Public().(ed25519.PublicKey)),
		"with another end": both[:len(both)-2],
	} {
		if _, err := Parse(two, keys); err == nil {
			t.Errorf("keys: %s: taken", name)
		}
	}
}

func TestCosignatures(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	clock := func() time.Time { return now }
	msg, err := Sign(testOrigin, testPriv, nil, 5, testRoot)
	if err != nil {
		t.Fatal(err)
	}
	witness := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	ed, err := NewEd25519Cosigner("witness.example/1", witness, clock)
	if err != nil {
		t.Fatal(err)
	}
	pq, err := NewMLDSACosigner("witness.example/2", mldsaKey(t, 9), clock)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Cosigner{ed, pq} {
		n, err := note.Open(msg, note.VerifierList(must(note.NewVerifier(testKey))))
		if err != nil {
			t.Fatal(err)
		}
		cosigned, err := note.Sign(n, c)
		if err != nil {
			t.Fatal(err)
		}
		n, err = note.Open(cosigned, note.VerifierList(c))
		if err != nil || len(n.Sigs) != 1 {
			t.Fatalf("%s: %v", c.Name(), err)
		}
		if at, err := CosignatureTime(n.Sigs[0]); err != nil || !at.Equal(now) {
			t.Errorf("%s: signed at %v (%v), want %v", c.Name(), at, err, now)
		}
		if _, err := Parse(cosigned, testKey); err != nil {
			t.Errorf("%s: the log's signature: %v", c.Name(), err)
		}
		sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
		if err != nil {
			t.Fatal(err)
		}
		sig = sig[4:]
		text := []byte(n.Text)
		if !c.Verify(text, sig) {
			t.Fatalf("%s: not verified", c.Name())
		}
		for i := range sig {
			b := bytes.Clone(sig)
			b[i] ^= 1 << (i % 8)
			if c.Verify(text, b) {
				t.Errorf("%s: byte %d of the signature changed: still verified", c.Name(), i)
			}
		}
		for i := range text {
			b := bytes.Clone(text)
			b[i] ^= 1
			if c.Verify(b, sig) {
				t.Errorf("%s: byte %d of the text changed: still verified", c.Name(), i)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestQuorum: enough different witnesses have to have cosigned, and a wrong cosignature of one of
// them is an error.
func TestQuorum(t *testing.T) {
	now := func() time.Time { return time.Unix(1_700_000_000, 0) }
	pub := func(seed byte) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	}
	msg := must(Sign(testOrigin, testPriv, mldsaKey(t, 1), 5, testRoot))
	n := must(note.Open(msg, note.VerifierList(must(note.NewVerifier(testKey)), must(NewCosignatureVerifier(MLDSAVerifierKey(testOrigin, mldsaKey(t, 1).PublicKey()))))))
	both := must(note.Sign(n, must(NewEd25519Cosigner("a.example", pub(2), now)), must(NewMLDSACosigner("a.example", mldsaKey(t, 2), now)), must(NewEd25519Cosigner("b.example", pub(3), now))))
	a := must(ParseWitness(Ed25519CosignatureKey("a.example", pub(2).Public().(ed25519.PublicKey)) + "\n" + MLDSAVerifierKey("a.example", mldsaKey(t, 2).PublicKey())))
	b := must(ParseWitness(Ed25519CosignatureKey("b.example", pub(3).Public().(ed25519.PublicKey))))
	c := must(ParseWitness(Ed25519CosignatureKey("c.example", pub(4).Public().(ed25519.PublicKey))))
	half := must(ParseWitness(Ed25519CosignatureKey("b.example", pub(3).Public().(ed25519.PublicKey)) + "\n" + MLDSAVerifierKey("b.example", mldsaKey(t, 3).PublicKey())))
	itself := must(ParseWitness(MLDSAVerifierKey(testOrigin, mldsaKey(t, 1).PublicKey())))
	for name, q := range map[string]struct {
		of   []*Witness
		need int
		want int
	}{
		"two of three":      {[]*Witness{a, b, c}, 2, 2},
		"three of three":    {[]*Witness{a, b, c}, 3, -2},
		"one that has not":  {[]*Witness{c}, 1, 0},
		"one of two keys":   {[]*Witness{half}, 1, 0},
		"the log itself":    {[]*Witness{itself}, 1, 0},
		"both keys of one":  {[]*Witness{a}, 1, 1},
		"one, and a second": {[]*Witness{b, itself}, 1, 1},
	} {
		names, err := must(NewQuorum(q.of, q.need)).Check(both)
		if got := len(names); (err == nil) != (q.want > 0) || got != max(q.want, -q.want) {
			t.Errorf("%s: %v, %v", name, names, err)
		}
		if names, err := must(NewQuorum(q.of, q.need)).Check(msg); err == nil || len(names) > 0 {
			t.Errorf("%s: without cosignatures: %v, %v", name, names, err)
		}
	}
	q := must(NewQuorum([]*Witness{a, b, c}, 1))
	for i := len(msg); i < len(both); i += 7 {
		wrong := bytes.Clone(both)
		wrong[i] ^= 1
		if names, err := q.Check(wrong); err == nil && len(names) > 1 {
			t.Fatalf("byte %d changed: still cosigned by %v", i, names)
		}
	}
	if names, err := (Quorum{}).Check(msg); err != nil || len(names) > 0 {
		t.Errorf("without witnesses: %q, %v", names, err)
	}
	renamed := must(ParseWitness(Ed25519CosignatureKey("z.example", pub(3).Public().(ed25519.PublicKey))))
	for name, bad := range map[string]struct {
		of   []*Witness
		need int
	}{"none": {nil, 1}, "no quorum": {[]*Witness{a}, 0}, "too large": {[]*Witness{a, b}, 3}, "twice": {[]*Witness{a, a}, 2}, "one key, two names": {[]*Witness{b, renamed}, 2}} {
		if _, err := NewQuorum(bad.of, bad.need); err == nil {
			t.Errorf("%s: a quorum", name)
		}
	}
}
