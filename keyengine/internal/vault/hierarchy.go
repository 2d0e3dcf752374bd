package vault

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"filippo.io/mldsa"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// Initialise creates the key hierarchy of a new cluster and stores it, wrapped, in c, which must
// have the cluster's id, its share set and its time of creation. The caller must split the
// unseal key into shares and destroy it, and either install the Opened or wipe it.
func (v *Vault) Initialise(c *fsmpb.Cluster) (o *Opened, unseal *keymat.Secret, err error) {
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	ring := keymat.NewKeyring(v.arena, cluster)
	o = newOpened(v.arena, ring)
	defer func() {
		if err != nil {
			o.Wipe()
			unseal.Destroy()
			o, unseal = nil, nil
		}
	}()
	root, err := v.arena.Random(keymat.KeySize)
	if err != nil {
		return o, nil, err
	}
	defer root.Destroy()
	if unseal, err = v.arena.Random(keymat.KeySize); err != nil {
		return o, nil, err
	}
	if c.WrappedRoot, err = keymat.WrapRoot(unseal, root, cluster, set, c.Shares.Epoch); err != nil {
		return o, unseal, err
	}
	generation, err := ring.Generate()
	if err != nil {
		return o, unseal, err
	}
	wrapped, err := ring.WrapGeneration(root, generation)
	if err != nil {
		return o, unseal, err
	}
	if err := ring.Settle(generation); err != nil {
		return o, unseal, err
	}
	c.Keyring = []*fsmpb.WrappedKEK{{Generation: generation, Wrapped: wrapped, Created: c.Created}}
	if err := o.makeAuditKey(c); err != nil {
		return o, unseal, err
	}
	return o, unseal, o.makeOriginKey(c)
}

// Open opens the vault with the unseal key, and destroys the key.
func (v *Vault) Open(c *fsmpb.Cluster, unseal *keymat.Secret) error {
	return v.OpenWith(c, unseal, nil)
}

// OpenWith is Open. If it has opened the vault, it calls opened with the root key, which must
// not be kept; opened may be nil.
func (v *Vault) OpenWith(c *fsmpb.Cluster, unseal *keymat.Secret, opened func(c *fsmpb.Cluster, root *keymat.Secret)) error {
	defer unseal.Destroy()
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	root, err := keymat.UnwrapRoot(v.arena, unseal, cluster, set, c.Shares.Epoch, c.WrappedRoot)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer root.Destroy()
	if err := v.OpenKeyring(c, root, c.Keyring); err != nil {
		return err
	}
	if opened != nil {
		opened(c, root)
	}
	return nil
}

// WrapRoot wraps the root key by the key of a seal with the given name, for
// [Vault.OpenSealed].
func WrapRoot(c *fsmpb.Cluster, name string, key, root *keymat.Secret) ([]byte, error) {
	return keymat.WrapRoot(key, root, [16]byte(c.Id), sealID(name), 0)
}

// OpenSealed opens the vault with the root key as WrapRoot has wrapped it.
func (v *Vault) OpenSealed(c *fsmpb.Cluster, name string, key *keymat.Secret, wrapped []byte) error {
	root, err := keymat.UnwrapRoot(v.arena, key, [16]byte(c.Id), sealID(name), 0, wrapped)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer root.Destroy()
	return v.OpenKeyring(c, root, c.Keyring)
}

// sealID stands for a seal where a share set stands for the custodians. Ids of share sets are
// random, so none is equal to it.
func sealID(name string) [16]byte {
	h := sha256.Sum256(append([]byte("conclave seal v1\x00"), name...))
	return [16]byte(h[:16])
}

// OpenKeyring opens the vault with a keyring that is wrapped by the given key: that of the
// cluster's record with the root key, or one of [PeerKeys.WrapKeyring]. It returns ErrTampered
// if it is not the keyring of the cluster. The caller must destroy the key.
func (v *Vault) OpenKeyring(c *fsmpb.Cluster, key *keymat.Secret, keyring []*fsmpb.WrappedKEK) error {
	ring := keymat.NewKeyring(v.arena, [16]byte(c.Id))
	for _, k := range keyring {
		if err := ring.Load(key, k.GetGeneration(), k.GetWrapped()); err != nil {
			ring.Wipe()
			return err
		}
	}
	o := newOpened(v.arena, ring)
	if err := errors.Join(ring.Settle(settled(c)), o.loadOriginKeys(c)); err != nil {
		o.Wipe()
		return err
	}
	if !v.Install(o) {
		o.Wipe() // opened in another call in the meantime, with the same result
	}
	return nil
}

// makeAuditKey creates the key that signs checkpoints.
func (o *Opened) makeAuditKey(c *fsmpb.Cluster) error {
	seed, err := o.arena.Random(ed25519.SeedSize)
	if err != nil {
		return err
	}
	defer seed.Destroy()
	return seed.With(func(b []byte) error {
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		c.AuditPublicKey = slices.Clone(key.Public().(ed25519.PublicKey))
		c.AuditKeyGeneration, c.WrappedAuditKey, err = o.ring.WrapFor(keymat.PurposeAuditSigning, auditKeyBinding(c), b)
		return err
	})
}

// auditKeyBinding binds the signing key to its public key.
func auditKeyBinding(c *fsmpb.Cluster) keymat.Binding {
	return keymat.Binding{Object: c.AuditPublicKey, Spec: "Ed25519"}
}

// SignCheckpoint signs a checkpoint with the cluster's audit keys, which are unwrapped only
// for the signatures. origin names the audit log.
func (o *Opened) SignCheckpoint(c *fsmpb.Cluster, origin string, f auditlog.Frontier) (note []byte, err error) {
	err = withAuditKeys(o, c, func(key ed25519.PrivateKey, pq *mldsa.PrivateKey) error {
		note, err = checkpoint.Sign(origin, key, pq, f.Size(), f.Root())
		return err
	})
	return note, err
}

// MLDSAAuditKey returns the text form of the ML-DSA-44 key that verifies checkpoints. origin
// names the audit log.
func MLDSAAuditKey(o *Opened, c *fsmpb.Cluster, origin string) (key string, err error) {
	err = withAuditKeys(o, c, func(_ ed25519.PrivateKey, pq *mldsa.PrivateKey) error {
		key = checkpoint.MLDSAVerifierKey(origin, pq.PublicKey())
		return nil
	})
	return key, err
}

// withAuditKeys unwraps the keys that sign checkpoints for use, and no longer. There is one
// secret, the seed of the Ed25519 key, as clusters had before there was a second key. The seed
// of the ML-DSA-44 key is derived from it by HKDF, so it is wrapped, wrapped again and
// restored with the other one. Whoever computes the Ed25519 private key from the public one,
// with a quantum computer, has the scalar and not the seed: the scalar is part of the seed's
// SHA-512, from which neither the seed nor what HKDF derives from it follows.
func withAuditKeys(o *Opened, c *fsmpb.Cluster, use func(ed25519.PrivateKey, *mldsa.PrivateKey) error) error {
	seed, err := o.ring.Unwrap(c.AuditKeyGeneration, keymat.PurposeAuditSigning, auditKeyBinding(c), c.WrappedAuditKey)
	if err != nil {
		return fmt.Errorf("audit signing key: %w", behind(err))
	}
	defer seed.Destroy()
	err = seed.With(func(b []byte) error {
		if len(b) != ed25519.SeedSize {
			return fmt.Errorf("audit signing key has %d bytes", len(b))
		}
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		derived, err := hkdf.Expand(sha256.New, b, "conclave audit signing ML-DSA-44 v1", mldsa.PrivateKeySize)
		if err != nil {
			return fmt.Errorf("audit signing key: %w", err)
		}
		defer clear(derived)
		pq, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), derived)
		if err != nil {
			return fmt.Errorf("audit signing key: %w", err)
		}
		return use(key, pq)
	})
	return Gone(err)
}
