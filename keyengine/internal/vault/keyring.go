package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrBehind is returned for what is wrapped by a generation of the keyring that this node has
// not added yet. It will have, or will be sealed, within moments.
var ErrBehind = kmsapi.Errorf(kmsapi.ErrUnavailable, "The keyring of this node is behind the cluster's. Retry the request, or send it to another node.")

// ErrNotHandedOver is returned by Adopt if the keyring in memory cannot be brought up to date.
var ErrNotHandedOver = errors.New("the cluster's keyring has a generation that was handed over while this node was behind: the node must be unsealed again")

// behind is Gone for a secret in the state. Every generation that a state names is in the
// keyring of that state's cluster.
func behind(err error) error {
	if errors.Is(err, keymat.ErrGeneration) {
		return ErrBehind
	}
	return Gone(err)
}

// handoverBinding binds a generation's key to its number.
func handoverBinding(generation uint32) keymat.Binding {
	return keymat.Binding{Spec: "KEYRING", Version: binary.BigEndian.AppendUint32(nil, generation)}
}

// settled returns the newest generation of a cluster's keyring that is not being handed over.
func settled(c *fsmpb.Cluster) uint32 {
	for i := len(c.Keyring) - 1; i > 0; i-- {
		if k := c.Keyring[i]; len(k.Handover) == 0 {
			return k.Generation
		}
	}
	return c.Keyring[0].Generation
}

// RotateKeyring returns the cluster's record with another generation of the keyring, which
// also wraps the cluster's own keys, and which the generation before it hands over to other
// unsealed nodes. The generation is not added to o: see Adopt.
func (v *Vault) RotateKeyring(c *fsmpb.Cluster, o *Opened, unseal *keymat.Secret, created int64) (n *fsmpb.Cluster, err error) {
	root, err := v.openRoot(c, o, unseal)
	if err != nil {
		return nil, err
	}
	defer root.Destroy()
	last := c.Keyring[len(c.Keyring)-1]
	if last.Generation != o.ring.Newest() {
		return nil, ErrBehind
	}
	cluster, g := [16]byte(c.Id), last.Generation+1
	kek, err := v.arena.Random(keymat.KeySize)
	if err != nil {
		return nil, Gone(err)
	}
	next := keymat.NewKeyring(v.arena, cluster)
	defer next.Wipe()
	if err := next.Add(g, kek); err != nil {
		kek.Destroy()
		return nil, err
	}
	k := &fsmpb.WrappedKEK{Generation: g, Created: created}
	if k.Wrapped, err = keymat.WrapKEK(root, cluster, g, kek); err != nil {
		return nil, err
	}
	err = kek.With(func(b []byte) error {
		_, k.Handover, err = o.ring.WrapFor(keymat.PurposeHandover, handoverBinding(g), b)
		return err
	})
	if err != nil {
		return nil, Gone(err)
	}
	n = proto.CloneOf(c)
	n.Keyring = append(n.Keyring, k)
	if n.AuditKeyGeneration, n.WrappedAuditKey, err = rewrap(o.ring, next, keymat.PurposeAuditSigning, auditKeyBinding(c), c.AuditKeyGeneration, c.WrappedAuditKey); err != nil {
		return nil, fmt.Errorf("audit signing key: %w", err)
	}
	for _, key := range n.OriginKeys {
		if key.WrappedGeneration, key.WrappedSeed, err = rewrap(o.ring, next, keymat.PurposeCommand, originBinding(key), wrappedBy(key), key.WrappedSeed); err != nil {
			return nil, fmt.Errorf("origin key %d: %w", key.Generation, err)
		}
	}
	// A record that does not open would lock everybody out at the next restart.
	return n, v.Verify(n, o, unseal)
}

// rewrap unwraps a secret with one keyring and wraps it with the newest generation of
// another.
func rewrap(from, to *keymat.Keyring, p keymat.Purpose, b keymat.Binding, generation uint32, wrapped []byte) (uint32, []byte, error) {
	secret, err := from.Unwrap(generation, p, b, wrapped)
	if err != nil {
		return 0, nil, behind(err)
	}
	defer secret.Destroy()
	err = secret.With(func(plain []byte) error {
		generation, wrapped, err = to.WrapFor(p, b, plain)
		return err
	})
	return generation, wrapped, Gone(err)
}

// Adopt adds the generations of the cluster's keyring that the open vault does not have yet.
// The node calls it with each new state. It returns ErrNotHandedOver if that is not possible:
// the caller must then seal the vault, which would otherwise go on without knowing what
// others know. While the vault is closed, Adopt does nothing.
func (v *Vault) Adopt(c *fsmpb.Cluster) error {
	o := v.opened.Load()
	if o == nil || c == nil || o.adopted.Load() == c {
		return nil
	}
	v.mu.Lock() // one at a time
	defer v.mu.Unlock()
	for _, k := range c.Keyring {
		newest := o.ring.Newest()
		if k.Generation <= newest || newest == 0 { // 0 if it was wiped
			continue
		}
		if k.Generation != newest+1 || len(k.Handover) == 0 {
			return ErrNotHandedOver
		}
		kek, err := o.ring.Unwrap(newest, keymat.PurposeHandover, handoverBinding(k.Generation), k.Handover)
		if errors.Is(err, keymat.ErrUnwrap) {
			return ErrNotHandedOver
		}
		if err == nil {
			if err = o.ring.Add(k.Generation, kek); err != nil {
				kek.Destroy()
			}
		}
		if err != nil {
			return Gone(err)
		}
	}
	if g := settled(c); g > o.ring.Settled() { // c may be older than that of another call
		if err := o.ring.Settle(g); err != nil {
			return Gone(err)
		}
	}
	o.adopted.Store(c)
	return nil
}

// Newest returns the newest generation of the keyring that o has.
func Newest(o *Opened) uint32 { return o.ring.Newest() }

// RewrapKey returns a key whose material is wrapped by the newest generation of the keyring,
// or nil if all of it is already. The material does not get into the cache.
func RewrapKey(o *Opened, k *fsmpb.Key) (n *fsmpb.Key, err error) {
	for i, m := range k.Materials {
		if len(m.Wrapped) == 0 || m.Generation >= o.ring.Newest() {
			continue
		}
		if n == nil {
			n = proto.CloneOf(k)
		}
		id, m := fsm.IDOf(k), n.Materials[i]
		m.Generation, m.Wrapped, err = rewrap(o.ring, o.ring, keymat.PurposeMaterial, materialBinding(id, m.Id, k.Spec, k.Usage, k.Origin), m.Generation, m.Wrapped)
		if err != nil {
			return nil, fmt.Errorf("wrapping material of key %v again: %w", id, err)
		}
	}
	return n, nil
}

// RewrapCredential returns a credential whose secret is wrapped, and whose MAC is made, by the
// newest generation of the keyring, or nil if they are already. Sessions and proofs of the
// credential stay valid. It returns ErrForged for one that no unsealed node wrote.
func RewrapCredential(o *Opened, c *fsmpb.Credential) (n *fsmpb.Credential, err error) {
	newest, secret := o.ring.Newest(), len(c.WrappedSecret) > 0
	if c.MacGeneration >= newest && (!secret || c.Generation >= newest) {
		return nil, nil
	}
	ok, err := o.genuine(c)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrForged
	}
	n = proto.CloneOf(c)
	if secret && c.Generation < newest {
		if n.FirstGeneration == 0 {
			n.FirstWrapped, n.FirstGeneration = bytes.Clone(c.WrappedSecret), c.Generation
		}
		if n.Generation, n.WrappedSecret, err = rewrap(o.ring, o.ring, keymat.PurposeCredential, credentialBinding(c), c.Generation, c.WrappedSecret); err != nil {
			return nil, fmt.Errorf("wrapping the secret of %s again: %w", c.Id, err)
		}
	}
	return n, o.SignCredential(n)
}

// RewrapStore returns a key store whose secret is wrapped by the newest generation of the
// keyring, or nil if it is already or the store has none.
func RewrapStore(o *Opened, s *fsmpb.KeyStore) (n *fsmpb.KeyStore, err error) {
	if len(s.WrappedSecret) == 0 || s.Generation >= o.ring.Newest() {
		return nil, nil
	}
	n = proto.CloneOf(s)
	if n.Generation, n.WrappedSecret, err = rewrap(o.ring, o.ring, keymat.PurposeCredential, storeBinding(s), s.Generation, s.WrappedSecret); err != nil {
		return nil, fmt.Errorf("wrapping the secret of key store %s again: %w", s.Id, err)
	}
	return n, nil
}
