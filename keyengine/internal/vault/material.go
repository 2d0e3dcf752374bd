package vault

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"strconv"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// NewMaterial creates a version of a symmetric key's material: 32 random bytes, wrapped for
// this key.
func (v *Vault) NewMaterial(k *fsmpb.Key, created int64) (*fsmpb.Material, error) {
	secret, err := v.arena.Material().Random(keymat.KeySize)
	if err != nil {
		return nil, Gone(err)
	}
	return v.wrapMaterial(k, created, secret)
}

// GivenMaterial wraps existing material as a version of a key's material. It wipes b.
func (v *Vault) GivenMaterial(k *fsmpb.Key, created int64, b []byte) (*fsmpb.Material, error) {
	secret, err := v.arena.Material().Store(b)
	if err != nil {
		return nil, Gone(err)
	}
	return v.wrapMaterial(k, created, secret)
}

// wrapMaterial wraps a secret for a key, and destroys the secret.
func (v *Vault) wrapMaterial(k *fsmpb.Key, created int64, secret *keymat.Secret) (*fsmpb.Material, error) {
	defer secret.Destroy()
	version := make([]byte, 16)
	_, _ = rand.Read(version) // never fails: crypto/rand ends the process instead
	m := &fsmpb.Material{Id: version, Created: created}
	return m, secret.With(func(b []byte) error {
		m.MaterialId = KeyMaterialID(k, b)
		return v.WrapAgain(k, m, b)
	})
}

// WrapAgain wraps material for a key under the newest generation of the keyring, as the
// version m.
func (v *Vault) WrapAgain(k *fsmpb.Key, m *fsmpb.Material, b []byte) error {
	o, err := v.Current()
	if err != nil {
		return err
	}
	id := fsm.IDOf(k)
	m.Generation, m.Wrapped, err = o.ring.WrapFor(keymat.PurposeMaterial, materialBinding(id, m.Id, k.Spec, k.Usage, k.Origin), b)
	if err != nil {
		return fmt.Errorf("wrapping material of key %v: %w", id, Gone(err))
	}
	return nil
}

// KeyMaterialID returns AWS's KeyMaterialId, which depends on the key and the material. All
// keys of a multi-Region set have the same one.
func KeyMaterialID(k *fsmpb.Key, material []byte) []byte {
	h := sha256.New()
	_, _ = io.WriteString(h, "conclave key material id v1\x00")
	_, _ = h.Write(k.Id)
	_, _ = h.Write(material)
	return h.Sum(nil)
}

func materialBinding(id fsm.KeyID, version []byte, spec, usage, origin string) keymat.Binding {
	return keymat.Binding{Object: id.Bytes(), Version: version, Spec: spec, Usage: usage, Origin: origin}
}

// WithMaterial calls use with a version of a key's material in the clear. use must neither
// keep nor change it.
func (v *Vault) WithMaterial(k *fsmpb.Key, m *fsmpb.Material, use func(material []byte) error) error {
	o, err := v.Current()
	if err != nil {
		return err
	}
	if err := checkMaterial(k, m); err != nil {
		return err
	}
	id := fsm.IDOf(k)
	var used error
	cached := keymat.NewCacheID(id.ID, [16]byte(m.Id), m.Wrapped, k.Region, k.Spec, k.Usage, k.Origin, strconv.Itoa(int(m.Generation)))
	err = o.materials.Use(cached, func() (*keymat.Secret, error) { return unwrapMaterial(o, k, m) }, func(b []byte) error {
		used = use(b)
		return nil
	})
	if err != nil {
		return fmt.Errorf("unwrapping material of key %v: %w", id, behind(err))
	}
	return used
}

// Opens returns an error unless a version of a key's material can be unwrapped. It leaves the
// cache of material alone.
func (v *Vault) Opens(k *fsmpb.Key, m *fsmpb.Material) error {
	o, err := v.Current()
	if err != nil {
		return err
	}
	if err := checkMaterial(k, m); err != nil {
		return err
	}
	secret, err := unwrapMaterial(o, k, m)
	if err != nil {
		return fmt.Errorf("unwrapping material of key %v: %w", fsm.IDOf(k), Gone(err))
	}
	secret.Destroy()
	return nil
}

func checkMaterial(k *fsmpb.Key, m *fsmpb.Material) error {
	if len(k.Id) != 16 || len(m.Id) != 16 {
		return fmt.Errorf("key %x has material %x in an unknown format", k.Id, m.Id)
	}
	return nil
}

func unwrapMaterial(o *Opened, k *fsmpb.Key, m *fsmpb.Material) (*keymat.Secret, error) {
	return o.ring.Unwrap(m.Generation, keymat.PurposeMaterial, materialBinding(fsm.IDOf(k), m.Id, k.Spec, k.Usage, k.Origin), m.Wrapped)
}

// HandOver wraps material m of one key as material n of another key of its set. Material
// passes from Region to Region here only, in the locked memory of this vault. For a Region
// of another cluster, it would have to be wrapped under that cluster's public key.
func (v *Vault) HandOver(from *fsmpb.Key, m *fsmpb.Material, to *fsmpb.Key, n *fsmpb.Material) error {
	return v.WithMaterial(from, m, func(material []byte) error { return v.WrapAgain(to, n, material) })
}
