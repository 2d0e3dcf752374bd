package origin

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

var testKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize))

func testCluster() *fsmpb.Cluster {
	return &fsmpb.Cluster{
		Id:         bytes.Repeat([]byte{7}, 16),
		OriginKeys: []*fsmpb.OriginKey{{Generation: 1, PublicKey: testKey.Public().(ed25519.PublicKey)}},
	}
}

func testSign(domain string, digest [32]byte) (uint32, []byte, error) {
	return 1, ed25519.Sign(testKey, Message(testCluster(), domain, digest)), nil
}

func TestVerify(t *testing.T) {
	c := testCluster()
	digest := [32]byte{1}
	_, sig, _ := testSign("a", digest)
	if !Verify(c, 1, "a", digest, sig) {
		t.Fatal("a good signature is refused")
	}
	changed := func(change func(*fsmpb.Cluster)) *fsmpb.Cluster {
		c := proto.CloneOf(c)
		change(c)
		return c
	}
	long := append(bytes.Clone(sig), 0)
	flipped := bytes.Clone(sig)
	flipped[40] ^= 1
	for name, got := range map[string]bool{
		"another digest":     Verify(c, 1, "a", [32]byte{2}, sig),
		"another domain":     Verify(c, 1, "b", digest, sig),
		"another generation": Verify(c, 2, "a", digest, sig),
		"generation 0":       Verify(c, 0, "a", digest, sig),
		"a flipped bit":      Verify(c, 1, "a", digest, flipped),
		"a longer one":       Verify(c, 1, "a", digest, long),
		"none":               Verify(c, 1, "a", digest, nil),
		"no cluster":         Verify(nil, 1, "a", digest, sig),
		"another cluster":    Verify(changed(func(c *fsmpb.Cluster) { c.Id[0] ^= 1 }), 1, "a", digest, sig),
		"a short key":        Verify(changed(func(c *fsmpb.Cluster) { c.OriginKeys[0].PublicKey = c.OriginKeys[0].PublicKey[1:] }), 1, "a", digest, sig),
		"no key":             Verify(changed(func(c *fsmpb.Cluster) { c.OriginKeys = nil }), 1, "a", digest, sig),
	} {
		if got {
			t.Errorf("%s: verified", name)
		}
	}
}

// What is signed never changes, or old logs and snapshots could not be verified any more.
func TestMessage(t *testing.T) {
	want := "conclave origin v1\x00conclave entry v1\x00" + string(testCluster().Id) + "\x00\x00\x00\x00" + string(make([]byte, 32))
	if got := Message(testCluster(), entryDomain, [32]byte{}); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAttestation(t *testing.T) {
	digest := [32]byte{1}
	a, err := Attest(digest, testSign)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyAttestation(testCluster(), digest, a); err != nil {
		t.Error(err)
	}
	_, entrys, _ := testSign(entryDomain, digest)
	for name, err := range map[string]error{
		"none":           VerifyAttestation(testCluster(), digest, nil),
		"another state":  VerifyAttestation(testCluster(), [32]byte{2}, a),
		"of an entry":    VerifyAttestation(testCluster(), digest, &fsmpb.Attestation{Generation: 1, Signature: entrys}),
		"no cluster yet": VerifyAttestation(nil, digest, a),
	} {
		if !errors.Is(err, ErrAttestation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	failed := errors.New("sealed")
	if _, err := Attest(digest, func(string, [32]byte) (uint32, []byte, error) { return 0, nil, failed }); !errors.Is(err, failed) {
		t.Errorf("Attest of a sealed node: %v", err)
	}
}

func encoded(t *testing.T, wall int64) []byte {
	t.Helper()
	b, err := wire.EncodeEntry(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: wall}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// accepts reports what each way of verifying an encoded entry says, and fails unless
// they agree.
func accepts(t *testing.T, v *Verified, c *fsmpb.Cluster, b []byte) bool {
	t.Helper()
	signed := EntrySigned(c, b)
	for range 2 { // the second time from memory
		if got := v.Encoded(c, b); got != signed {
			t.Fatalf("Encoded is %t, and EntrySigned %t", got, signed)
		}
		if e, err := wire.Decode(b); err == nil && v.Entry(c, e) != signed {
			t.Fatalf("Entry is %t, and EntrySigned %t", !signed, signed)
		}
	}
	return signed
}

// A signature is accepted for its own entry only, whether it is remembered or not.
func TestSignedEntries(t *testing.T) {
	var v Verified
	plain := encoded(t, 1)
	other, err := SignEntry(encoded(t, 2), testSign)
	if err != nil {
		t.Fatal(err)
	}
	good, err := v.SignEntry(bytes.Clone(plain), testSign)
	if err != nil {
		t.Fatal(err)
	}
	if !accepts(t, &v, testCluster(), good) || !accepts(t, &v, testCluster(), other) {
		t.Fatal("a signed entry is refused")
	}
	if accepts(t, &v, testCluster(), plain) {
		t.Error("an entry without a signature is accepted")
	}
	if accepts(t, &v, testCluster(), append(bytes.Clone(plain), other[len(other)-(len(good)-len(plain)):]...)) {
		t.Error("an entry with another's signature is accepted")
	}
	for i := range len(good) * 8 {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if accepts(t, &v, testCluster(), b) {
			t.Fatalf("an entry with bit %d changed is accepted", i)
		}
	}
}

// Remembered signatures are verified without a key, and the oldest ones are forgotten.
func TestVerifiedIsBounded(t *testing.T) {
	var v Verified
	c := testCluster()
	first, err := v.SignEntry(encoded(t, 0), testSign)
	if err != nil {
		t.Fatal(err)
	}
	c.OriginKeys = nil // so that only memory can tell
	if !v.Encoded(c, first) {
		t.Error("a signature that this node made is not remembered")
	}
	for i := range verifiedEntries {
		if _, err := v.SignEntry(encoded(t, int64(i+1)), testSign); err != nil {
			t.Fatal(err)
		}
	}
	if v.Encoded(c, first) {
		t.Error("the oldest signature is not forgotten")
	}
	if n := len(v.known); n != verifiedEntries {
		t.Errorf("%d signatures are remembered, want %d", n, verifiedEntries)
	}
}

// A signer that fails, or returns what cannot be a signature, leaves nothing behind.
func TestBadSigners(t *testing.T) {
	for name, sign := range map[string]Sign{
		"sealed":       func(string, [32]byte) (uint32, []byte, error) { return 0, nil, fmt.Errorf("sealed") },
		"short":        func(string, [32]byte) (uint32, []byte, error) { return 1, []byte("short"), nil },
		"generation 0": func(string, [32]byte) (uint32, []byte, error) { return 0, make([]byte, ed25519.SignatureSize), nil },
	} {
		var v Verified
		b, err := v.SignEntry(encoded(t, 1), sign)
		if len(v.known) != 0 {
			t.Errorf("%s: the signature is remembered", name)
		}
		if (err == nil) && v.Encoded(testCluster(), b) {
			t.Errorf("%s: the entry is accepted", name)
		}
	}
}
