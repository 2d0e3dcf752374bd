package vault

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// copyOf returns a copy of a secret.
func copyOf(t *testing.T, v *Vault, s *keymat.Secret) (c *keymat.Secret) {
	t.Helper()
	if err := s.With(func(b []byte) (err error) { c, err = v.arena.Store(bytes.Clone(b)); return err }); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestKeyChanges: each change of the keys opens with the key that it should, and nothing is
// left in memory.
func TestKeyChanges(t *testing.T) {
	v, _ := newVault(t)
	c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{7}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := v.Initialise(c)
	if err != nil {
		t.Fatal(err)
	}
	v.Install(o)
	k := makeKey(t, v)
	plain := material(t, v, k)
	slots := used(v)
	wrong, err := v.arena.Random(keymat.KeySize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.RotateRoot(c, o, wrong); !errors.Is(err, keymat.ErrUnwrap) {
		t.Errorf("with a wrong unseal key: %v", err)
	}
	if _, err := v.RotateKeyring(c, o, wrong, 2); !errors.Is(err, keymat.ErrUnwrap) {
		t.Errorf("with a wrong unseal key: %v", err)
	}
	wrong.Destroy()

	rooted, err := v.RotateRoot(c, o, unseal)
	if err != nil {
		t.Fatal(err)
	}
	set := &fsmpb.ShareSet{Id: bytes.Repeat([]byte{9}, 16), Threshold: 1, Count: 1}
	rekeyed, next, err := v.Rekey(rooted, o, unseal, set)
	if err != nil {
		t.Fatal(err)
	}
	grown, err := v.RotateKeyring(rekeyed, o, next, 2)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		c      *fsmpb.Cluster
		with   *keymat.Secret
		opened bool
	}{
		"a new root key":               {rooted, unseal, true},
		"a new share set":              {rekeyed, next, true},
		"a new share set, old shares":  {rekeyed, unseal, false},
		"a new generation":             {grown, next, true},
		"a new generation, old shares": {grown, unseal, false},
		"the old record, new shares":   {c, next, false},
	} {
		other, _ := newVault(t)
		err := other.Open(tt.c, copyOf(t, other, tt.with))
		if (err == nil) != tt.opened {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && !bytes.Equal(material(t, other, k), plain) {
			t.Errorf("%s: other material", name)
		}
		other.Seal()
		if n := used(other); n != 0 {
			t.Errorf("%s: %d slots of locked memory are in use", name, n)
		}
	}
	next.Destroy()
	unseal.Destroy()
	if n := used(v); n > slots-1 { // the unseal key was one of them
		t.Errorf("%d slots of locked memory are in use, before there were %d", n, slots)
	}

	// What is handed over can be added to that keyring only, and in that order.
	for name, edit := range map[string]func(*fsmpb.Cluster){
		"changed":               func(c *fsmpb.Cluster) { c.Keyring[1].Handover = flipped(c.Keyring[1].Handover) },
		"gone":                  func(c *fsmpb.Cluster) { c.Keyring[1].Handover = nil },
		"of another generation": func(c *fsmpb.Cluster) { c.Keyring[1].Generation++ },
		"the wrapped key":       func(c *fsmpb.Cluster) { c.Keyring[1].Handover = c.Keyring[1].Wrapped },
	} {
		bad := proto.CloneOf(grown)
		edit(bad)
		if err := v.Adopt(bad); !errors.Is(err, ErrNotHandedOver) || Newest(o) != 1 {
			t.Errorf("%s: %v, generation %d", name, err, Newest(o))
		}
	}
	if err := v.Adopt(grown); err != nil || Newest(o) != 2 || o.ring.Settled() != 1 {
		t.Fatalf("adopting: %v, generation %d, settled %d", err, Newest(o), o.ring.Settled())
	}
	done := proto.CloneOf(grown)
	done.Keyring[1].Handover = nil
	for _, c := range []*fsmpb.Cluster{done, grown} { // also if another call is late
		if err := v.Adopt(c); err != nil || o.ring.Settled() != 2 {
			t.Errorf("settling: %v, settled %d", err, o.ring.Settled())
		}
	}
	n, err := RewrapKey(o, k)
	if err != nil || n.Materials[0].Generation != 2 || !bytes.Equal(material(t, v, n), plain) {
		t.Errorf("wrapped again: %v, %v", n, err)
	}
	if again, err := RewrapKey(o, n); again != nil || err != nil {
		t.Errorf("wrapped a third time: %v, %v", again, err)
	}
	v.Seal()
	if err := v.Adopt(grown); err != nil {
		t.Errorf("while closed: %v", err)
	}
}
