package keyengine

import (
	"crypto/ed25519"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// errTampered is a state whose origin keys are not the keyring's: somebody who had
// no share wrote it.
var errTampered = errors.New("the state on this node was tampered with: its origin keys are not those of the cluster's keyring. " +
	"Do not use this node; replace its data directory")

// originBinding ties an origin key's seed to its public half.
func originBinding(k *fsmpb.OriginKey) keymat.Binding {
	return keymat.Binding{Object: k.PublicKey, Spec: "Ed25519"}
}

// originKey makes the cluster's first origin key.
func (f *founding) originKey(arena *keymat.Arena) error {
	seed, err := arena.Random(ed25519.SeedSize)
	if err != nil {
		return err
	}
	defer seed.Destroy()
	k := &fsmpb.OriginKey{Created: f.cluster.Created}
	err = seed.With(func(b []byte) error {
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		k.PublicKey = append([]byte(nil), key[ed25519.SeedSize:]...)
		k.Generation, k.WrappedSeed, err = f.ring.WrapFor(keymat.PurposeCommand, originBinding(k), b)
		return err
	})
	if err != nil {
		return err
	}
	f.cluster.OriginKeys = []*fsmpb.OriginKey{k}
	return f.opened.loadOriginKeys(arena, f.cluster)
}

// loadOriginKeys checks that the origin keys of a state are the keyring's, one for
// each generation, and keeps the newest to sign with. A state that anybody but an
// unsealed node wrote does not pass, as its signatures are by other keys.
func (o *opened) loadOriginKeys(arena *keymat.Arena, c *fsmpb.Cluster) error {
	if len(c.OriginKeys) != len(c.Keyring) {
		return errTampered
	}
	for i, k := range c.OriginKeys {
		if k.Generation != c.Keyring[i].Generation {
			return errTampered
		}
		seed, err := o.ring.Unwrap(k.Generation, keymat.PurposeCommand, originBinding(k), k.WrappedSeed)
		if errors.Is(err, keymat.ErrUnwrap) {
			return errTampered
		}
		if err != nil {
			return fmt.Errorf("origin key %d: %w", k.Generation, err)
		}
		key, err := expandOrigin(arena, seed, k.PublicKey)
		seed.Destroy()
		if err != nil {
			return err
		}
		o.origin.Destroy()
		o.origin, o.originGeneration, o.originCluster = key, k.Generation, c
	}
	return nil
}

// expandOrigin is the private key, seed and public half, in locked memory.
func expandOrigin(arena *keymat.Arena, seed *keymat.Secret, public []byte) (key *keymat.Secret, err error) {
	err = seed.With(func(b []byte) error {
		if len(b) != ed25519.SeedSize {
			return errTampered
		}
		private := ed25519.NewKeyFromSeed(b)
		if subtle.ConstantTimeCompare(private[ed25519.SeedSize:], public) != 1 {
			clear(private)
			return errTampered
		}
		key, err = arena.Store(private) // wipes private
		return err
	})
	return key, err
}

// signOrigin signs with the newest origin key.
func (o *opened) signOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	err = o.origin.With(func(b []byte) error {
		// The standard library keeps what it derives of a key by the address of the
		// key's first byte, which has to be of Go's heap.
		key := ed25519.PrivateKey(append(make([]byte, 0, len(b)), b...))
		defer clear(key)
		signature = ed25519.Sign(key, fsm.OriginMessage(o.originCluster, domain, digest))
		return nil
	})
	return o.originGeneration, signature, gone(err)
}

// PeerMAC authenticates what this node sends to other unsealed nodes, under the
// keyring's newest generation. The error of a sealed node is ErrUnavailable.
func (e *Engine) PeerMAC(message []byte) (generation uint32, mac []byte, err error) {
	o, err := e.vault.current()
	if err != nil {
		return 0, nil, err
	}
	generation = o.ring.Newest()
	key, err := o.ring.DeriveMAC(generation, keymat.PurposePeer)
	if err != nil {
		return 0, nil, gone(err)
	}
	tag, err := key.Sum(message)
	return generation, tag[:], gone(err)
}

// CheckPeerMAC checks what PeerMAC of another unsealed node gave. The error is
// ErrUnavailable when this node is sealed, or does not have the generation yet, and
// another one when no unsealed node made the MAC.
func (e *Engine) CheckPeerMAC(generation uint32, message, mac []byte) error {
	o, err := e.vault.current()
	if err != nil {
		return err
	}
	key, err := o.ring.DeriveMAC(generation, keymat.PurposePeer)
	if errors.Is(err, keymat.ErrGeneration) {
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not have the keyring's generation %d.", generation)
	}
	if err != nil {
		return gone(err)
	}
	return gone(key.Verify(message, mac))
}

// SignOrigin signs a digest as an unsealed node of the cluster; domain tells what
// it is the digest of. See [fsm.VerifyOrigin]. The error of a sealed node is
// ErrUnavailable.
func (e *Engine) SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	o, err := e.vault.current()
	if err != nil {
		return 0, nil, err
	}
	return o.signOrigin(domain, digest)
}

// RecordForgery records that another node sent what only an unsealed node can,
// without being one: its disk or its identity is in wrong hands. It does not block.
func (e *Engine) RecordForgery(node, reason string) {
	e.pending.add(serviceEvent("RefuseForgery", e.clock.Now(), auditfield.Text("node", node), auditfield.Text("reason", reason)))
}
