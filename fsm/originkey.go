package fsm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The origin key is an Ed25519 key of the cluster that only unsealed nodes have: the
// state holds its seed, wrapped by the keyring, and its public key. What it has
// signed comes from an unsealed node, and any node, sealed or not, can verify that.
// There is one for each generation of the keyring.

// originDomain begins every message that an origin key signs.
const originDomain = "conclave origin v1\x00"

// entryDomain separates the signatures of entries from the other messages that
// the key signs.
const entryDomain = "conclave entry v1"

// Sign signs a digest with the origin key; see [VerifyOrigin].
type Sign func(domain string, digest [32]byte) (generation uint32, signature []byte, err error)

// SignEntry signs an encoded entry that has no origin yet, and returns it with one.
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

// verifiedEntries is how many signatures of entries are remembered: enough for all
// entries that a node has received or made and not applied yet.
const verifiedEntries = 1024

// verified remembers signatures of entries that this node verified or made,
// because verifying a signature takes longer than anything else in apply. It is
// safe for concurrent use.
type verified struct {
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

// entry verifies the signature of an entry over its other bytes.
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

// SignEntry is [SignEntry] by this node, which then need not verify the signature
// when it applies the entry.
func (f *FSM) SignEntry(encoded []byte, sign Sign) ([]byte, error) {
	return SignEntry(encoded, func(domain string, digest [32]byte) (uint32, []byte, error) {
		g, sig, err := sign(domain, digest)
		if err == nil && len(sig) == ed25519.SignatureSize && g != 0 {
			f.verified.add(signedEntry{g, digest, [ed25519.SignatureSize]byte(sig)})
		}
		return g, sig, err
	})
}

// CheckEntry refuses an encoded entry that apply could not read, with ErrUnreadable,
// before it is stored. It does not decode an entry that an unsealed leader signed,
// since the leader did. It is safe for concurrent use.
func (f *FSM) CheckEntry(b []byte) error {
	if c, _ := f.Current().Cluster(); c != nil && f.signed(c, b) {
		return nil
	}
	_, err := wire.Decode(b)
	return err
}

// signed reports whether an unsealed leader of the cluster signed an encoded entry.
// It does not look at the contents.
func (f *FSM) signed(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && f.verified.entry(c, signed, o)
}

// EntrySigned reports whether an unsealed leader of the cluster signed an encoded
// entry. It does not look at the contents.
func EntrySigned(c *fsmpb.Cluster, b []byte) bool {
	signed, o := wire.CutOrigin(b)
	return o != nil && VerifyOrigin(c, o.Generation, entryDomain, sha256.Sum256(signed), o.Signature)
}

// EntryInitialises returns the record of the cluster that an encoded entry initialises, provided
// that none was initialised before it; nil if it initialises none.
func EntryInitialises(b []byte) *fsmpb.Cluster {
	e, err := wire.Decode(b)
	if err != nil {
		return nil
	}
	batches, _ := e.Command.([]wire.Batch)
	for i := range batches {
		if len(batches[i].Records) == 0 || !initialises(&batches[i]) {
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

// OriginMessage returns the message that an origin key signs: a digest, with a
// domain that says what it is a digest of. The domain contains no zero byte.
func OriginMessage(c *fsmpb.Cluster, domain string, digest [32]byte) []byte {
	m := make([]byte, 0, len(originDomain)+len(domain)+1+16+4+len(digest))
	m = append(m, originDomain...)
	m = append(m, domain...)
	m = append(m, 0)
	m = append(m, c.GetId()...)
	m = binary.BigEndian.AppendUint32(m, wire.Group) // so that old signatures stay valid once there are several groups
	return append(m, digest[:]...)
}

// VerifyOrigin reports whether signature is a valid signature of the digest in the
// domain by the cluster's origin key of that generation. It reports false if the
// cluster has no such key, or a malformed one.
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
