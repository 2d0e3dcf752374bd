package fsm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The origin key is an Ed25519 key of the cluster that only unsealed nodes have: its
// seed is in the state, wrapped by the keyring, and its public half beside it. What
// it has signed comes from an unsealed node, and any node can check that, sealed
// or not. There is one for each generation of the keyring.

// originDomain begins every message that an origin key signs.
const originDomain = "conclave origin v1\x00"

// entryDomain separates the signatures of entries from what else the key signs.
const entryDomain = "conclave entry v1"

// Sign signs a digest with the origin key; see [VerifyOrigin].
type Sign func(domain string, digest [32]byte) (generation uint32, signature []byte, err error)

// SignEntry signs an encoded entry that has no origin yet.
func SignEntry(encoded []byte, sign Sign) ([]byte, error) {
	g, sig, err := sign(entryDomain, sha256.Sum256(encoded))
	if err != nil {
		return nil, err
	}
	return wire.Within(wire.AppendOrigin(encoded, &fsmpb.Origin{Generation: g, Signature: sig}), nil)
}

// authentic reports whether an unsealed leader of the cluster signed the entry.
func authentic(e *wire.Entry, c *fsmpb.Cluster, known *verified) bool {
	return e.Signed != nil && known.entry(c, e.Signed, e.Origin)
}

// verifiedEntries is how many signatures of entries are remembered: as many as can
// lie between the moment in which a node gets or makes an entry and its apply.
const verifiedEntries = 1024

// verified remembers signatures of entries that were found good, or made, by this
// node: a signature takes longer to verify than anything else in apply. It is safe
// for concurrent use.
type verified struct {
	mu    sync.Mutex
	known map[signedEntry]struct{}
	order [verifiedEntries]signedEntry
	next  int
}

// signedEntry is everything that a signature's being good depends on; a cluster's
// id and its keys of a generation never change.
type signedEntry struct {
	generation uint32
	digest     [32]byte
	signature  [ed25519.SignatureSize]byte
}

func (v *verified) add(e signedEntry) {
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

func (v *verified) has(e signedEntry) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.known[e]
	return ok
}

// entry verifies the signature of an entry's other bytes.
func (v *verified) entry(c *fsmpb.Cluster, signed []byte, o *fsmpb.Origin) bool {
	if len(o.Signature) != ed25519.SignatureSize {
		return false
	}
	e := signedEntry{o.Generation, sha256.Sum256(signed), [ed25519.SignatureSize]byte(o.Signature)}
	if v.has(e) {
		return true
	}
	if !VerifyOrigin(c, o.Generation, entryDomain, e.digest, o.Signature) {
		return false
	}
	v.add(e)
	return true
}

// SignEntry is [SignEntry] by this node, which need not verify the signature when
// the entry comes back to be applied.
func (f *FSM) SignEntry(encoded []byte, sign Sign) ([]byte, error) {
	return SignEntry(encoded, func(domain string, digest [32]byte) (uint32, []byte, error) {
		g, sig, err := sign(domain, digest)
		if err == nil && len(sig) == ed25519.SignatureSize && g != 0 {
			f.verified.add(signedEntry{g, digest, [ed25519.SignatureSize]byte(sig)})
		}
		return g, sig, err
	})
}

// CheckEntry refuses, with ErrUnreadable, an encoded entry that apply could not read,
// before it is stored. An entry that an unsealed leader signed is not read, as the
// leader has. It may be called from anywhere.
func (f *FSM) CheckEntry(b []byte) error {
	if c, _ := f.Current().Cluster(); c != nil && f.signed(c, b) {
		return nil
	}
	_, err := wire.Decode(b)
	return err
}

// signed reports whether an unsealed leader of the cluster signed an encoded entry,
// whatever is in it.
func (f *FSM) signed(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && f.verified.entry(c, signed, o)
}

// EntrySigned reports whether an unsealed leader of the cluster signed an encoded
// entry, whatever is in it.
func EntrySigned(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && VerifyOrigin(c, o.Generation, entryDomain, sha256.Sum256(signed), o.Signature)
}

// EntryFounds is the cluster that an encoded entry founds, if none was founded
// before it; nil for none.
func EntryFounds(b []byte) *fsmpb.Cluster {
	e, err := wire.Decode(b)
	if err != nil {
		return nil
	}
	batches, _ := e.Command.([]wire.Batch)
	for i := range batches {
		if len(batches[i].Records) == 0 || !founds(&batches[i]) {
			continue
		}
		for _, c := range batches[i].Records[0].Changes {
			if n := c.GetPutCluster(); n != nil {
				return n
			}
		}
	}
	return nil
}

// OriginMessage is what an origin key signs: the digest of something, which domain
// tells from digests of other things. domain holds no zero byte.
func OriginMessage(c *fsmpb.Cluster, domain string, digest [32]byte) []byte {
	m := make([]byte, 0, len(originDomain)+len(domain)+1+16+4+len(digest))
	m = append(m, originDomain...)
	m = append(m, domain...)
	m = append(m, 0)
	m = append(m, c.GetId()...)
	m = binary.BigEndian.AppendUint32(m, wire.Group) // so that they mean the same when there are several
	return append(m, digest[:]...)
}

// VerifyOrigin reports whether signature is that of the cluster's origin key of
// that generation for the digest in the domain. A cluster without the key, or with
// a malformed one, verifies nothing.
func VerifyOrigin(c *fsmpb.Cluster, generation uint32, domain string, digest [32]byte, signature []byte) bool {
	if len(c.GetId()) != 16 {
		return false
	}
	for _, k := range c.OriginKeys {
		if k.Generation == generation {
			return len(k.PublicKey) == ed25519.PublicKeySize &&
				ed25519.Verify(k.PublicKey, OriginMessage(c, domain, digest), signature)
		}
	}
	return false
}
