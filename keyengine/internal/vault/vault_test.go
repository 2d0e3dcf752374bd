package vault

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// clock is a time that tests turn.
type clock struct {
	sync.Mutex
	now time.Time
}

func (c *clock) advance(d time.Duration) {
	c.Lock()
	defer c.Unlock()
	c.now = c.now.Add(d)
}

// newVault is a closed vault.
func newVault(t testing.TB) (*Vault, *clock) {
	t.Helper()
	c := &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	v, err := New(func() time.Time { c.Lock(); defer c.Unlock(); return c.now }, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v, c
}

// current returns what an open vault holds.
func current(t testing.TB, v *Vault) *Opened {
	t.Helper()
	o, err := v.Current()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// openVault is an open vault of a new cluster, with the cluster.
func openVault(t testing.TB) (*Vault, *clock, *fsmpb.Cluster) {
	t.Helper()
	v, clock := newVault(t)
	c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{7}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := v.Initialise(c)
	if err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	if !v.Install(o) {
		t.Fatal("the vault is open already")
	}
	return v, clock, c
}

var testKey = fsm.KeyID{Region: "eu-west-1", ID: [16]byte{1, 2, 3}}

func makeKey(t testing.TB, v *Vault) *fsmpb.Key {
	t.Helper()
	k := &fsmpb.Key{Id: testKey.ID[:], Region: testKey.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS"}
	m, err := v.NewMaterial(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	k.Materials = []*fsmpb.Material{m}
	return k
}

func material(t testing.TB, v *Vault, k *fsmpb.Key) (out []byte) {
	t.Helper()
	if err := v.WithMaterial(k, k.Materials[0], func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatalf("WithMaterial: %v", err)
	}
	return out
}

// used is how many slots of locked memory hold something.
func used(v *Vault) int {
	n, _ := v.arena.Usage()
	return n
}

func flipped(b []byte) []byte { return append([]byte{^b[0]}, b[1:]...) }

// TestOpen: the unseal key opens what Initialise made, and nothing that was edited since.
func TestOpen(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*fsmpb.Cluster)
		want error // nil for any
		ok   bool
	}{
		"as it was":             {edit: func(*fsmpb.Cluster) {}, ok: true},
		"another cluster":       {edit: func(c *fsmpb.Cluster) { c.Id = flipped(c.Id) }},
		"another share set":     {edit: func(c *fsmpb.Cluster) { c.Shares.Id = flipped(c.Shares.Id) }},
		"another epoch":         {edit: func(c *fsmpb.Cluster) { c.Shares.Epoch++ }},
		"another root key":      {edit: func(c *fsmpb.Cluster) { c.WrappedRoot = flipped(c.WrappedRoot) }},
		"another keyring":       {edit: func(c *fsmpb.Cluster) { c.Keyring[0].Wrapped = flipped(c.Keyring[0].Wrapped) }},
		"no origin key":         {edit: func(c *fsmpb.Cluster) { c.OriginKeys = nil }, want: ErrTampered},
		"another origin key":    {edit: func(c *fsmpb.Cluster) { c.OriginKeys[0].PublicKey = flipped(c.OriginKeys[0].PublicKey) }, want: ErrTampered},
		"of another generation": {edit: func(c *fsmpb.Cluster) { c.OriginKeys[0].Generation++ }, want: ErrTampered},
	} {
		v, _ := newVault(t)
		c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{7}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
		o, unseal, err := v.Initialise(c)
		if err != nil {
			t.Fatal(err)
		}
		o.Wipe()
		tt.edit(c)
		err = v.Open(c, unseal)
		if (err == nil) != tt.ok || tt.want != nil && !errors.Is(err, tt.want) || v.Sealed() == tt.ok {
			t.Errorf("%s: %v, and the vault is sealed: %v", name, err, v.Sealed())
		}
		v.Seal()
		if n := used(v); n != 0 {
			t.Errorf("%s: %d slots of locked memory are in use afterwards", name, n)
		}
	}
}

func TestMaterialOpensOnlyAsWhatItWasMadeFor(t *testing.T) {
	v, _, _ := openVault(t)
	k := makeKey(t, v)
	// Not from a cold cache, and not from one that has the material.
	for _, warm := range []bool{false, true} {
		if warm {
			material(t, v, k)
		}
		for name, edit := range map[string]func(k *fsmpb.Key, m *fsmpb.Material){
			"id":         func(k *fsmpb.Key, m *fsmpb.Material) { k.Id = flipped(k.Id) },
			"region":     func(k *fsmpb.Key, m *fsmpb.Material) { k.Region = "eu-west-2" },
			"spec":       func(k *fsmpb.Key, m *fsmpb.Material) { k.Spec = "HMAC_256" },
			"usage":      func(k *fsmpb.Key, m *fsmpb.Material) { k.Usage = "SIGN_VERIFY" },
			"origin":     func(k *fsmpb.Key, m *fsmpb.Material) { k.Origin = "EXTERNAL" },
			"version":    func(k *fsmpb.Key, m *fsmpb.Material) { m.Id = flipped(m.Id) },
			"generation": func(k *fsmpb.Key, m *fsmpb.Material) { m.Generation = 2 },
			"blob":       func(k *fsmpb.Key, m *fsmpb.Material) { m.Wrapped = append(bytes.Clone(m.Wrapped[:40]), 1) },
			"long id":    func(k *fsmpb.Key, m *fsmpb.Material) { k.Id = make([]byte, 17) },
		} {
			edited := &fsmpb.Key{Id: k.Id, Region: k.Region, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin}
			m := &fsmpb.Material{Id: k.Materials[0].Id, Generation: k.Materials[0].Generation, Wrapped: k.Materials[0].Wrapped}
			edit(edited, m)
			if err := v.WithMaterial(edited, m, func([]byte) error { return nil }); err == nil {
				t.Errorf("material opens with another %s (cached: %v)", name, warm)
			}
		}
	}
}

func TestUseErrorIsPassedOn(t *testing.T) {
	v, _, _ := openVault(t)
	k := makeKey(t, v)
	want := errors.New("of the caller")
	if err := v.WithMaterial(k, k.Materials[0], func([]byte) error { return want }); err != want {
		t.Errorf("got %v", err)
	}
}

func TestDestroyedMaterialLeavesMemory(t *testing.T) {
	v, clock, _ := openVault(t)
	k := makeKey(t, v)
	idle := used(v)
	material(t, v, k)
	if used(v) == idle {
		t.Fatal("material is not cached")
	}
	v.Follow(fsm.Events{Destroyed: []fsm.KeyID{testKey}})
	if n := used(v); n != idle {
		t.Errorf("%d slots in use after the key was destroyed, want %d", n, idle)
	}
	// A request that began before puts it back; the next sweep finds it.
	material(t, v, k)
	clock.advance(time.Second)
	v.Sweep(nil, v.now())
	if n := used(v); n != idle {
		t.Errorf("%d slots in use after the sweep, want %d", n, idle)
	}
	clock.advance(destroyedFor)
	v.Sweep(nil, v.now())
	if n := len(v.destroyed.keys); n != 0 {
		t.Errorf("%d destroyed keys are still looked for", n)
	}
	material(t, v, k)
	v.Follow(fsm.Events{Restored: true})
	if n := used(v); n != idle {
		t.Errorf("%d slots in use after a restore, want %d", n, idle)
	}
}

func TestSealingKeyIsReplaced(t *testing.T) {
	v, clock, _ := openVault(t)
	salt := func() [16]byte {
		_, _, s, _, err := current(t, v).SealBody(v.now(), [16]byte{1}, []byte("record"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := salt()
	if salt() != first {
		t.Error("another key for the next record")
	}
	clock.advance(sealerAge)
	second := salt()
	if second == first {
		t.Error("the same key after its time")
	}
	clock.advance(-time.Hour)
	third := salt()
	if third == second {
		t.Error("the same key after the clock was set back")
	}
	var wg sync.WaitGroup
	o := current(t, v)
	for range 4 {
		wg.Go(func() {
			for range sealerRecords / 4 {
				if _, _, _, _, err := o.SealBody(v.now(), [16]byte{1}, []byte("r")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if salt() == third {
		t.Error("the same key after its records")
	}
}

func TestBodyOpensOnlyInItsPlace(t *testing.T) {
	v, _, _ := openVault(t)
	made := auditlog.Entry{RequestID: [16]byte{1}}
	var err error
	if made.Body, made.Generation, made.Salt, made.Commitment, err = current(t, v).SealBody(v.now(), made.RequestID, []byte("a record in the clear")); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*auditlog.Entry){
		"request id": func(e *auditlog.Entry) { e.RequestID[3] ^= 1 },
		"salt":       func(e *auditlog.Entry) { e.Salt[3] ^= 1 },
		"generation": func(e *auditlog.Entry) { e.Generation++ },
		"commitment": func(e *auditlog.Entry) { e.Commitment[3] ^= 1 },
		"body":       func(e *auditlog.Entry) { e.Body = bytes.Clone(e.Body); e.Body[20] ^= 1 },
	} {
		entry := made
		edit(&entry)
		if _, err := v.OpenBody(entry); err == nil {
			t.Errorf("a record with another %s opens", name)
		}
	}
	if _, err := v.OpenBody(made); err != nil {
		t.Error(err)
	}
}

func TestMACsAreKeptApart(t *testing.T) {
	v, _, _ := openVault(t)
	other, _, _ := openVault(t)
	m := func(v *Vault, purpose, data string) [32]byte {
		tag, err := v.MAC(purpose, []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	base := m(v, "p", "data")
	if m(v, "p", "data") != base {
		t.Error("a MAC changes")
	}
	for what, tag := range map[string][32]byte{
		"purpose": m(v, "q", "data"), "data": m(v, "p", "datA"), "cluster": m(other, "p", "data"), "border": m(v, "pd", "ata"),
	} {
		if tag == base {
			t.Errorf("the same MAC for another %s", what)
		}
	}
}

// TestGrantTokenOfANewerGeneration: tokens name their generation.
func TestGrantTokenOfANewerGeneration(t *testing.T) {
	v, _ := newVault(t)
	behind, _ := newVault(t)
	c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{7}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := v.Initialise(c)
	if err != nil {
		t.Fatal(err)
	}
	v.Install(o)
	var other *keymat.Secret
	if err := unseal.With(func(b []byte) (err error) { other, err = behind.arena.Store(bytes.Clone(b)); return err }); err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	if err := behind.Open(c, other); err != nil {
		t.Fatal(err)
	}
	old, err := v.GrantToken(testKey, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.ring.Generate(); err != nil {
		t.Fatal(err)
	}
	unsettled, err := v.GrantToken(testKey, [32]byte{3})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.ring.Settle(2); err != nil {
		t.Fatal(err)
	}
	newer, err := v.GrantToken(testKey, [32]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		v     *Vault
		token string
		grant byte // 0 for refused
	}{
		{"under a newer generation", v, old, 1}, {"of the newer generation", v, newer, 2},
		{"made while not all nodes have the newer one", behind, unsettled, 3},
		{"on another node", behind, old, 1}, {"of a generation that there is not", behind, newer, 0},
	} {
		key, grant, err := tt.v.GrantOfToken(tt.token)
		if tt.grant == 0 {
			if !errors.Is(err, kmsapi.ErrInvalidGrantToken) {
				t.Errorf("%s: %v", tt.name, err)
			}
		} else if err != nil || key != testKey || grant != [32]byte{tt.grant} {
			t.Errorf("%s: %v, %v, %v", tt.name, key, grant[0], err)
		}
	}
}

// The ML-DSA-44 key is stored nowhere, so its derivation must never change.
func TestCheckpointKeys(t *testing.T) {
	v, _, c := openVault(t)
	o := current(t, v)
	const origin = "conclave/test/0"
	var tree auditlog.Frontier
	tree.Append(auditlog.Hash{1})
	first, err := o.SignCheckpoint(c, origin, tree)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := o.SignCheckpoint(c, origin, tree); err != nil || !bytes.Equal(first, again) {
		t.Errorf("signing again (%v) led to other bytes", err)
	}
	pq, err := MLDSAAuditKey(o, c, origin)
	if err != nil {
		t.Fatal(err)
	}
	ed := checkpoint.VerifierKey(origin, c.AuditPublicKey)
	if cp, err := checkpoint.Parse(first, ed+"\n"+pq); err != nil || cp.Size != 1 {
		t.Errorf("got %+v (%v)", cp, err)
	}
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	c.AuditPublicKey = key.Public().(ed25519.PublicKey)
	if c.AuditKeyGeneration, c.WrappedAuditKey, err = o.ring.WrapFor(keymat.PurposeAuditSigning, auditKeyBinding(c), seed); err != nil {
		t.Fatal(err)
	}
	pq, err = MLDSAAuditKey(o, c, origin)
	if err != nil {
		t.Fatal(err)
	}
	const want = "e52a2f3d9a642e00289f92f1d54750d044016d5903b0cbbb246f15d802ff7fc8"
	if got := fmt.Sprintf("%x", sha256.Sum256([]byte(pq))); got != want {
		t.Errorf("the key that is derived from a known seed has hash %s, want %s", got, want)
	}
}
