package origin

import (
	"crypto/ed25519"
	"crypto/sha256"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// SignEntry signs an encoded entry that has no origin yet, and returns it with one.
func SignEntry(encoded []byte, sign Sign) ([]byte, error) {
	g, sig, err := sign(entryDomain, sha256.Sum256(encoded))
	if err != nil {
		return nil, err
	}
	return wire.Within(wire.AppendOrigin(encoded, &fsmpb.Origin{Generation: g, Signature: sig}), nil)
}

// EntrySigned reports whether an unsealed leader of the cluster signed an encoded
// entry. It does not look at the contents.
func EntrySigned(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && Verify(c, o.Generation, entryDomain, sha256.Sum256(signed), o.Signature)
}

// verifiedEntries is how many signatures of entries are remembered: enough for all
// entries that a node has received or made and not applied yet.
const verifiedEntries = 1024

// Verified remembers signatures of entries that this node verified or made, because
// verifying a signature takes longer than anything else in apply. The zero value
// remembers none. It is for the entries of one cluster, and safe for concurrent use.
type Verified struct {
	mu    sync.Mutex
	known map[signedEntry]struct{}
	order [verifiedEntries]signedEntry
	next  int
}

// signedEntry is everything that the validity of a signature depends on. The id
// of a cluster, and its key of a generation, never change.
type signedEntry struct {
	generation uint32
	digest     [32]byte
	signature  [ed25519.SignatureSize]byte
}

func (v *Verified) add(e signedEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = make(map[signedEntry]struct{}, verifiedEntries)
	}
	if _, ok := v.known[e]; ok {
		return
	}
	delete(v.known, v.order[v.next%verifiedEntries])
	v.order[v.next%verifiedEntries] = e
	v.known[e] = struct{}{}
	v.next++
}

func (v *Verified) has(e signedEntry) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.known[e]
	return ok
}

// valid verifies the signature of an entry over its other bytes.
func (v *Verified) valid(c *fsmpb.Cluster, signed []byte, o *fsmpb.Origin) bool {
	if len(o.Signature) != ed25519.SignatureSize {
		return false
	}
	e := signedEntry{o.Generation, sha256.Sum256(signed), [ed25519.SignatureSize]byte(o.Signature)}
	if v.has(e) {
		return true
	}
	if !Verify(c, o.Generation, entryDomain, e.digest, o.Signature) {
		return false
	}
	v.add(e)
	return true
}

// Entry reports whether an unsealed leader of the cluster signed a decoded entry.
func (v *Verified) Entry(c *fsmpb.Cluster, e *wire.Entry) bool {
	return e.Signed != nil && v.valid(c, e.Signed, e.Origin)
}

// Encoded is [EntrySigned], which remembers the signature.
func (v *Verified) Encoded(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && v.valid(c, signed, o)
}

// SignEntry is [SignEntry] by this node, which then need not verify the signature
// when it applies the entry.
func (v *Verified) SignEntry(encoded []byte, sign Sign) ([]byte, error) {
	return SignEntry(encoded, func(domain string, digest [32]byte) (uint32, []byte, error) {
		g, sig, err := sign(domain, digest)
		if err == nil && len(sig) == ed25519.SignatureSize && g != 0 {
			v.add(signedEntry{g, digest, [ed25519.SignatureSize]byte(sig)})
		}
		return g, sig, err
	})
}
