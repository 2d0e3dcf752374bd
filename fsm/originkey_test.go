package fsm

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// testOrigin is the origin key of theCluster.
var testOrigin = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize))

func signWith(k ed25519.PrivateKey, domain string, digest [32]byte) []byte {
	return ed25519.Sign(k, OriginMessage(theCluster().GetPutCluster(), domain, digest))
}

func testSign(domain string, digest [32]byte) (uint32, []byte, error) {
	return 1, signWith(testOrigin, domain, digest), nil
}

func TestVerifyOrigin(t *testing.T) {
	c := theCluster().GetPutCluster()
	digest := [32]byte{1}
	_, sig, _ := testSign("a", digest)
	if !VerifyOrigin(c, 1, "a", digest, sig) {
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
		"another digest":     VerifyOrigin(c, 1, "a", [32]byte{2}, sig),
		"another domain":     VerifyOrigin(c, 1, "b", digest, sig),
		"another generation": VerifyOrigin(c, 2, "a", digest, sig),
		"generation 0":       VerifyOrigin(c, 0, "a", digest, sig),
		"a flipped bit":      VerifyOrigin(c, 1, "a", digest, flipped),
		"a longer one":       VerifyOrigin(c, 1, "a", digest, long),
		"none":               VerifyOrigin(c, 1, "a", digest, nil),
		"no cluster":         VerifyOrigin(nil, 1, "a", digest, sig),
		"another cluster":    VerifyOrigin(changed(func(c *fsmpb.Cluster) { c.Id[0] ^= 1 }), 1, "a", digest, sig),
		"a short key":        VerifyOrigin(changed(func(c *fsmpb.Cluster) { c.OriginKeys[0].PublicKey = c.OriginKeys[0].PublicKey[1:] }), 1, "a", digest, sig),
		"no key":             VerifyOrigin(changed(func(c *fsmpb.Cluster) { c.OriginKeys = nil }), 1, "a", digest, sig),
	} {
		if got {
			t.Errorf("%s: verified", name)
		}
	}
}
