package vault

import (
	"crypto/ed25519"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/auditlog"
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
	c.Keyring = []*fsmpb.WrappedKEK{{Generation: generation, Wrapped: wrapped, Created: c.Created}}
	if err := o.makeAuditKey(c); err != nil {
		return o, unseal, err
	}
	return o, unseal, o.makeOriginKey(c)
}

// Open opens the vault with the unseal key, and destroys the key.
func (v *Vault) Open(c *fsmpb.Cluster, unseal *keymat.Secret) error {
	defer unseal.Destroy()
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	root, err := keymat.UnwrapRoot(v.arena, unseal, cluster, set, c.Shares.Epoch, c.WrappedRoot)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer root.Destroy()
	ring := keymat.NewKeyring(v.arena, cluster)
	for _, k := range c.Keyring {
		if err := ring.Load(root, k.Generation, k.Wrapped); err != nil {
			ring.Wipe()
			return err
		}
	}
	o := newOpened(v.arena, ring)
	if err := o.loadOriginKeys(c); err != nil {
		o.Wipe()
		return err
	}
	if !v.Install(o) {
		o.Wipe() // opened in another call in the meantime, with the same result
	}
	return nil
}

// Verify checks that the unseal key unwraps the keyring that o holds, which may have been wiped
// since. The comparison takes the same time whatever the keys are.
func (v *Vault) Verify(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret) error {
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	root, err := keymat.UnwrapRoot(v.arena, unseal, cluster, set, c.Shares.Epoch, c.WrappedRoot)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer root.Destroy()
	newest := o.ring.Newest()
	ring := keymat.NewKeyring(v.arena, cluster)
	defer ring.Wipe()
	for _, k := range c.Keyring {
		if k.Generation != newest {
			continue
		}
		if err := ring.Load(root, k.Generation, k.Wrapped); err != nil {
			return err
		}
	}
	given, err := verification(ring, newest)
	if err != nil {
		return err
	}
	held, err := verification(o.ring, newest)
	if err != nil {
		return err
	}
	if !hmac.Equal(given[:], held[:]) {
		return errors.New("the unseal key is not that of the keyring in use")
	}
	return nil
}

// verification returns a MAC by which Verify compares two keyrings.
func verification(ring *keymat.Keyring, generation uint32) ([32]byte, error) {
	key, err := ring.DeriveMAC(generation, keymat.PurposeSession)
	if err != nil {
		return [32]byte{}, Gone(err)
	}
	tag, err := key.Sum([]byte("keyring verification v1\x00"))
	return tag, Gone(err)
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

// SignCheckpoint signs a checkpoint with the cluster's audit key, which is unwrapped only
// for the signature. origin names the audit log.
func (o *Opened) SignCheckpoint(c *fsmpb.Cluster, origin string, f auditlog.Frontier) ([]byte, error) {
	seed, err := o.ring.Unwrap(c.AuditKeyGeneration, keymat.PurposeAuditSigning, auditKeyBinding(c), c.WrappedAuditKey)
	if err != nil {
		return nil, fmt.Errorf("audit signing key: %w", Gone(err))
	}
	defer seed.Destroy()
	var note []byte
	err = seed.With(func(b []byte) error {
		if len(b) != ed25519.SeedSize {
			return fmt.Errorf("audit signing key has %d bytes", len(b))
		}
		key := ed25519.NewKeyFromSeed(b)
		defer clear(key)
		note, err = auditlog.SignCheckpoint(origin, key, f)
		return err
	})
	return note, Gone(err)
}
