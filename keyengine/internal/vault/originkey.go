package vault

import (
	"cmp"
	"crypto/ed25519"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrTampered is returned by Open if the origin keys in the state do not belong to the
// keyring: the state was written without the shares of the cluster.
var ErrTampered = errors.New("the state on this node was tampered with: its origin keys are not those of the cluster's keyring. " +
	"Do not use this node; replace its data directory")

// originBinding binds an origin key's seed to its public key.
func originBinding(k *fsmpb.OriginKey) keymat.Binding {
	return keymat.Binding{Object: k.PublicKey, Spec: "Ed25519"}
}

// makeOriginKey creates the cluster's first origin key.
func (o *Opened) makeOriginKey(c *fsmpb.Cluster) error {
	seed, err := o.arena.Random(ed25519.SeedSize)
	if err != nil {
		return err
	}
	defer seed.Destroy()
	k := &fsmpb.OriginKey{Created: c.Created}
	err = seed.With(func(b []byte) error {
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		k.PublicKey = append([]byte(nil), key[ed25519.SeedSize:]...)
		k.Generation, k.WrappedSeed, err = o.ring.WrapFor(keymat.PurposeCommand, originBinding(k), b)
		return err
	})
	if err != nil {
		return err
	}
	c.OriginKeys = []*fsmpb.OriginKey{k}
	return o.loadOriginKeys(c)
}

// wrappedBy returns the generation of the keyring that wraps an origin key.
func wrappedBy(k *fsmpb.OriginKey) uint32 { return cmp.Or(k.WrappedGeneration, k.Generation) }

// loadOriginKeys checks that the origin keys in a state belong to the keyring, and keeps the
// newest one for signing. It detects a state that was not written by unsealed nodes, because
// its signatures are made with other keys.
func (o *Opened) loadOriginKeys(c *fsmpb.Cluster) error {
	if len(c.OriginKeys) == 0 {
		return ErrTampered
	}
	for _, k := range c.OriginKeys {
		seed, err := o.ring.Unwrap(wrappedBy(k), keymat.PurposeCommand, originBinding(k), k.WrappedSeed)
		if errors.Is(err, keymat.ErrUnwrap) || errors.Is(err, keymat.ErrGeneration) {
			return ErrTampered
		}
		if err != nil {
			return fmt.Errorf("origin key %d: %w", k.Generation, err)
		}
		key, err := expandOrigin(o.arena, seed, k.PublicKey)
		seed.Destroy()
		if err != nil {
			return err
		}
		o.origin.Destroy()
		o.origin, o.originGeneration, o.originCluster = key, k.Generation, c
	}
	return nil
}

// expandOrigin returns the private key, which is the seed with the public key, in locked
// memory.
func expandOrigin(arena *keymat.Arena, seed *keymat.Secret, public []byte) (key *keymat.Secret, err error) {
	err = seed.With(func(b []byte) error {
		if len(b) != ed25519.SeedSize {
			return ErrTampered
		}
		private := ed25519.NewKeyFromSeed(b)
		if subtle.ConstantTimeCompare(private[ed25519.SeedSize:], public) != 1 {
			clear(private)
			return ErrTampered
		}
		key, err = arena.Store(private) // wipes private
		return err
	})
	return key, err
}

// SignOrigin signs a digest with the newest origin key.
func (o *Opened) SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	return o.SignOriginOf(o.originCluster, domain, digest)
}

// SignOriginOf signs a digest with the newest origin key for another lineage of the cluster,
// whose record is c.
func (o *Opened) SignOriginOf(c *fsmpb.Cluster, domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	err = o.origin.With(func(b []byte) error {
		// The standard library caches values derived from a key by the address of its first
		// byte, which must be on Go's heap.
		key := ed25519.PrivateKey(append(make([]byte, 0, len(b)), b...))
		defer clear(key)
		signature = ed25519.Sign(key, origin.Message(c, domain, digest))
		return nil
	})
	return o.originGeneration, signature, Gone(err)
}

// PeerMAC authenticates a message between unsealed nodes with a key of the settled
// generation of the keyring.
func (o *Opened) PeerMAC(message []byte) (generation uint32, mac []byte, err error) {
	generation = o.ring.Settled()
	key, err := o.ring.DeriveMAC(generation, keymat.PurposePeer)
	if err != nil {
		return 0, nil, Gone(err)
	}
	tag, err := key.Sum(message)
	return generation, tag[:], Gone(err)
}

// CheckPeerMAC verifies a MAC that PeerMAC made on another unsealed node. It returns
// ErrUnavailable if the vault was sealed in the meantime or does not have the generation
// yet, and another error if the MAC is wrong.
func (o *Opened) CheckPeerMAC(generation uint32, message, mac []byte) error {
	key, err := o.ring.DeriveMAC(generation, keymat.PurposePeer)
	if errors.Is(err, keymat.ErrGeneration) {
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not have the keyring's generation %d.", generation)
	}
	if err != nil {
		return Gone(err)
	}
	return Gone(key.Verify(message, mac))
}

// SealTransit encrypts a message for other unsealed nodes and binds it to context.
func (o *Opened) SealTransit(context, plain []byte) ([]byte, error) {
	message, err := o.ring.SealTransit(keymat.PurposeForward, context, plain)
	return message, Gone(err)
}

// OpenTransit decrypts a message that SealTransit made on another unsealed node with the
// same context. The caller must wipe the result.
func (o *Opened) OpenTransit(context, message []byte) ([]byte, error) {
	plain, err := o.ring.OpenTransit(keymat.PurposeForward, context, message)
	return plain, Gone(err)
}
