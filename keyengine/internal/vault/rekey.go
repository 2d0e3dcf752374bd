package vault

import (
	"crypto/hmac"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// Unsealed nodes do not keep the root key. What replaces a key above the keyring therefore
// needs the unseal key, which takes the custodians' threshold each time, and leaves the
// keyring in memory as it is. The functions below return the new record of the cluster; the
// caller commits it, or drops it and has changed nothing. They do not destroy the unseal key.

// openRoot unwraps the root key with the unseal key, and checks that it is that of the
// keyring which o holds. o may have been wiped since. The comparison takes the same time
// whatever the keys are.
func (v *Vault) openRoot(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret) (root *keymat.Secret, err error) {
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	if root, err = keymat.UnwrapRoot(v.arena, unseal, cluster, set, c.Shares.Epoch, c.WrappedRoot); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	defer func() {
		if err != nil {
			root.Destroy()
			root = nil
		}
	}()
	ring := keymat.NewKeyring(v.arena, cluster)
	defer ring.Wipe()
	for _, k := range c.Keyring {
		if err := ring.Load(root, k.Generation, k.Wrapped); err != nil {
			return root, err
		}
	}
	held := o.ring.Generations()
	if len(held) == 0 {
		return root, ErrSealed
	}
	for _, g := range held {
		a, err := verification(ring, g)
		if err != nil {
			return root, err
		}
		b, err := verification(o.ring, g)
		if err != nil {
			return root, err
		}
		if !hmac.Equal(a[:], b[:]) {
			return root, errors.New("the unseal key is not that of the keyring in use")
		}
	}
	return root, nil
}

// Verify checks that the unseal key unwraps the keyring that o holds, which may have been wiped
// since.
func (v *Vault) Verify(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret) error {
	root, err := v.openRoot(c, o, unseal)
	root.Destroy()
	return err
}

// verification returns a MAC by which openRoot compares two keyrings.
func verification(ring *keymat.Keyring, generation uint32) ([32]byte, error) {
	key, err := ring.DeriveMAC(generation, keymat.PurposeSession)
	if err != nil {
		return [32]byte{}, Gone(err)
	}
	tag, err := key.Sum([]byte("keyring verification v1\x00"))
	return tag, Gone(err)
}

// Rekey returns the cluster's record with another share set, without its commitments, and
// the unseal key for it, which the caller has to split and to destroy. The root key stays.
func (v *Vault) Rekey(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret, set *fsmpb.ShareSet) (n *fsmpb.Cluster, next *keymat.Secret, err error) {
	root, err := v.openRoot(c, o, unseal)
	if err != nil {
		return nil, nil, err
	}
	defer root.Destroy()
	if next, err = v.arena.Random(keymat.KeySize); err != nil {
		return nil, nil, Gone(err)
	}
	n = proto.CloneOf(c)
	n.Shares = proto.CloneOf(set)
	n.Shares.Epoch = c.Shares.Epoch + 1
	if n.WrappedRoot, err = keymat.WrapRoot(next, root, [16]byte(c.Id), [16]byte(set.Id), n.Shares.Epoch); err != nil {
		next.Destroy()
		return nil, nil, err
	}
	return n, next, nil
}

// RotateRoot returns the cluster's record with another root key, by which the whole keyring
// is wrapped anew. The share set stays, in a new epoch. Seals have the old root key, so there
// are none any more.
func (v *Vault) RotateRoot(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret) (n *fsmpb.Cluster, err error) {
	root, err := v.openRoot(c, o, unseal)
	if err != nil {
		return nil, err
	}
	defer root.Destroy()
	next, err := v.arena.Random(keymat.KeySize)
	if err != nil {
		return nil, Gone(err)
	}
	defer next.Destroy()
	cluster := [16]byte(c.Id)
	n = proto.CloneOf(c)
	n.Seals = nil
	n.Shares.Epoch++
	if n.WrappedRoot, err = keymat.WrapRoot(unseal, next, cluster, [16]byte(c.Shares.Id), n.Shares.Epoch); err != nil {
		return nil, err
	}
	for _, k := range n.Keyring {
		kek, err := keymat.UnwrapKEK(v.arena, root, cluster, k.Generation, k.Wrapped)
		if err != nil {
			return nil, fmt.Errorf("keyring generation %d: %w", k.Generation, err)
		}
		k.Wrapped, err = keymat.WrapKEK(next, cluster, k.Generation, kek)
		kek.Destroy()
		if err != nil {
			return nil, err
		}
	}
	// A record that does not open would lock everybody out at the next restart.
	return n, v.Verify(n, o, unseal)
}
