// Package origin signs with the origin key of a cluster, and verifies what that key
// signed.
//
// The origin key is an Ed25519 key of the cluster that only unsealed nodes have: the
// state holds its seed, wrapped by the keyring, and its public key. What it has signed
// comes from an unsealed node, and any node, sealed or not, can verify that. There is
// one for each generation of the keyring.
//
// It signs Raft entries and the states of snapshots, both here, and answers by which
// nodes prove to each other that they are unsealed. Each has a domain of its own, so
// that no signature can be passed off as one of another.
package origin

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// prefix begins every message that an origin key signs.
	prefix = "conclave origin v1\x00"
	// entryDomain and stateDomain separate the signatures of entries and the
	// attestations of states from each other and from all others.
	entryDomain = "conclave entry v1"
	stateDomain = "conclave state v1"
)

// Sign signs a digest with the origin key; see [Verify].
type Sign func(domain string, digest [32]byte) (generation uint32, signature []byte, err error)

// Message returns the message that an origin key signs: a digest, with a domain that
// says what it is a digest of. The domain contains no zero byte.
func Message(c *fsmpb.Cluster, domain string, digest [32]byte) []byte {
	m := make([]byte, 0, len(prefix)+len(domain)+1+16+4+len(digest))
	m = append(m, prefix...)
	m = append(m, domain...)
	m = append(m, 0)
	m = append(m, c.GetId()...)
	m = binary.BigEndian.AppendUint32(m, wire.Group) // so that old signatures stay valid once there are several groups
	// After a restore the cluster has the same keys as before. With the id of the lineage,
	// what was signed in one of the two histories is not valid in the other.
	m = append(m, c.GetLineage().GetId()...)
	return append(m, digest[:]...)
}

// Verify reports whether signature is a valid signature of the digest in the domain by
// the cluster's origin key of that generation. It reports false if the cluster has no
// such key, or a malformed one.
func Verify(c *fsmpb.Cluster, generation uint32, domain string, digest [32]byte, signature []byte) bool {
	if len(c.GetId()) != 16 {
		return false
	}
	for _, k := range c.OriginKeys {
		if k.Generation == generation {
			return len(k.PublicKey) == ed25519.PublicKeySize &&
				ed25519.Verify(k.PublicKey, Message(c, domain, digest), signature)
		}
	}
	return false
}

var (
	// ErrAttestation is returned for a snapshot without a valid attestation by an
	// unsealed node of this cluster.
	ErrAttestation = errors.New("snapshot without a valid attestation")
	// ErrNoAttestation is returned when no unsealed node is available to attest a snapshot.
	ErrNoAttestation = errors.New("no unsealed node attests the state")
)

// Attest signs the digest of a state.
func Attest(digest [32]byte, sign Sign) (*fsmpb.Attestation, error) {
	g, sig, err := sign(stateDomain, digest)
	if err != nil {
		return nil, err
	}
	return &fsmpb.Attestation{Generation: g, Signature: sig}, nil
}

// VerifyAttestation verifies an attestation of a state with that digest against the
// cluster's origin keys. Its error wraps ErrAttestation.
func VerifyAttestation(c *fsmpb.Cluster, digest [32]byte, a *fsmpb.Attestation) error {
	if a == nil || !Verify(c, a.Generation, stateDomain, digest, a.Signature) {
		return ErrAttestation
	}
	return nil
}
