package keymat

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
)

var testCluster = [16]byte{0xc1, 0xc2}

func newKeyring(t testing.TB, a *Arena) *Keyring {
	t.Helper()
	k := NewKeyring(a, testCluster)
	if g, err := k.Generate(); err != nil || g != 1 {
		t.Fatalf("first generation %d, %v", g, err)
	}
	return k
}

type goldenHierarchy struct {
	Cluster, Unseal, Root, KEK, ShareSet, WrappedRoot, WrappedKEK string
	Generation, Epoch                                             uint32
	Wrapped                                                       []struct{ Purpose, Object, Version, Spec, Usage, Origin, Plaintext, Blob string }
	Audit                                                         struct{ Salt, RequestID, Record, Commitment, Body string }
	MAC                                                           struct{ Purpose, Message, Tag string }
}

// The blobs were made by a separate implementation. They open for ever: from
// the unseal key down to an audit record.
func TestGoldenHierarchy(t *testing.T) {
	var g goldenHierarchy
	readJSON(t, "testdata/hierarchy-v1.json", &g)
	a := newArena(t, 0)
	cluster, set := [16]byte(unhex(t, g.Cluster)), [16]byte(unhex(t, g.ShareSet))
	root, err := UnwrapRoot(a, store(t, a, unhex(t, g.Unseal)), cluster, set, g.Epoch, unhex(t, g.WrappedRoot))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(reveal(t, root), unhex(t, g.Root)) {
		t.Error("another root key")
	}
	ring := NewKeyring(a, cluster)
	if err := ring.Load(root, g.Generation, unhex(t, g.WrappedKEK)); err != nil {
		t.Fatal(err)
	}
	if kek, _ := ring.kek(g.Generation); !bytes.Equal(reveal(t, kek), unhex(t, g.KEK)) {
		t.Error("another KEK")
	}
	if len(g.Wrapped) != 5 {
		t.Fatalf("%d wrapped secrets, want 5", len(g.Wrapped))
	}
	for _, w := range g.Wrapped {
		b := Binding{Object: unhex(t, w.Object), Version: unhex(t, w.Version), Spec: w.Spec, Usage: w.Usage, Origin: w.Origin}
		s, err := ring.Unwrap(g.Generation, Purpose(w.Purpose), b, unhex(t, w.Blob))
		if err != nil {
			t.Errorf("%s of %d bytes: %v", w.Purpose, len(w.Plaintext)/2, err)
			continue
		}
		if !bytes.Equal(reveal(t, s), unhex(t, w.Plaintext)) {
			t.Errorf("%s: another plaintext", w.Purpose)
		}
	}
	sealer, err := ring.AuditKey(g.Generation, [16]byte(unhex(t, g.Audit.Salt)))
	if err != nil {
		t.Fatal(err)
	}
	record, err := sealer.Open([16]byte(unhex(t, g.Audit.RequestID)), [32]byte(unhex(t, g.Audit.Commitment)), unhex(t, g.Audit.Body))
	if err != nil || !bytes.Equal(record, unhex(t, g.Audit.Record)) {
		t.Errorf("audit record: %v", err)
	}
	mac, err := ring.DeriveMAC(g.Generation, Purpose(g.MAC.Purpose))
	if err != nil {
		t.Fatal(err)
	}
	if err := mac.Verify(unhex(t, g.MAC.Message), unhex(t, g.MAC.Tag)); err != nil {
		t.Errorf("MAC: %v", err)
	}
}

func TestRootKey(t *testing.T) {
	a := newArena(t, 4096)
	unseal, root := random(t, a, KeySize), random(t, a, KeySize)
	set := [16]byte{5}
	blob, err := WrapRoot(unseal, root, testCluster, set, 3)
	if err != nil {
		t.Fatal(err)
	}
	got, err := UnwrapRoot(a, unseal, testCluster, set, 3, blob)
	if err != nil || !bytes.Equal(reveal(t, got), reveal(t, root)) {
		t.Fatalf("round trip: %v", err)
	}
	for name, try := range map[string]func() (*Secret, error){
		"wrong unseal key": func() (*Secret, error) { return UnwrapRoot(a, root, testCluster, set, 3, blob) },
		"other cluster":    func() (*Secret, error) { return UnwrapRoot(a, unseal, [16]byte{1}, set, 3, blob) },
		"other share set":  func() (*Secret, error) { return UnwrapRoot(a, unseal, testCluster, [16]byte{6}, 3, blob) },
		"other epoch":      func() (*Secret, error) { return UnwrapRoot(a, unseal, testCluster, set, 4, blob) },
		"as a KEK":         func() (*Secret, error) { return UnwrapKEK(a, unseal, testCluster, 3, blob) },
		"empty":            func() (*Secret, error) { return UnwrapRoot(a, unseal, testCluster, set, 3, nil) },
		"longer": func() (*Secret, error) {
			return UnwrapRoot(a, unseal, testCluster, set, 3, append(bytes.Clone(blob), 0))
		},
	} {
		if s, err := try(); !errors.Is(err, ErrUnwrap) || s != nil {
			t.Errorf("%s: err = %v, want ErrUnwrap", name, err)
		}
	}
}

func TestKeyringGenerations(t *testing.T) {
	a := newArena(t, 64<<10)
	root := random(t, a, KeySize)
	ring := newKeyring(t, a)
	b := Binding{Object: []byte("key")}
	g1, blob1, err := ring.WrapFor(PurposeMaterial, b, []byte("first"))
	if err != nil || g1 != 1 {
		t.Fatalf("generation %d, %v", g1, err)
	}
	if g, err := ring.Generate(); err != nil || g != 2 {
		t.Fatalf("second generation %d, %v", g, err)
	}
	g2, blob2, err := ring.WrapFor(PurposeMaterial, b, []byte("second"))
	if err != nil || g2 != 2 || ring.Newest() != 2 {
		t.Fatalf("generation %d, %v", g2, err)
	}

	// Another node loads the generations, newest first.
	other := NewKeyring(a, testCluster)
	for _, g := range []uint32{2, 1} {
		wrapped, err := ring.WrapGeneration(root, g)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Load(root, g+1, wrapped); !errors.Is(err, ErrUnwrap) {
			t.Errorf("generation %d as %d: err = %v, want ErrUnwrap", g, g+1, err)
		}
		if err := other.Load(root, g, wrapped); err != nil {
			t.Fatal(err)
		}
		if err := other.Load(root, g, wrapped); !errors.Is(err, ErrGeneration) {
			t.Errorf("generation %d again: err = %v, want ErrGeneration", g, err)
		}
	}
	if got := other.Generations(); !slices.Equal(got, []uint32{1, 2}) || other.Newest() != 2 {
		t.Errorf("generations %v, newest %d", got, other.Newest())
	}
	for _, tc := range []struct {
		g    uint32
		blob []byte
		want string
	}{{g1, blob1, "first"}, {g2, blob2, "second"}} {
		s, err := other.Unwrap(tc.g, PurposeMaterial, b, tc.blob)
		if err != nil || string(reveal(t, s)) != tc.want {
			t.Errorf("generation %d: %v", tc.g, err)
		}
	}
	if _, err := other.Unwrap(1, PurposeMaterial, b, blob2); !errors.Is(err, ErrUnwrap) {
		t.Errorf("wrong generation: %v", err)
	}
	if _, err := other.Unwrap(3, PurposeMaterial, b, blob2); !errors.Is(err, ErrGeneration) {
		t.Errorf("missing generation: %v", err)
	}
	if _, err := other.Unwrap(2, PurposeCredential, b, blob2); !errors.Is(err, ErrUnwrap) {
		t.Errorf("wrong purpose: %v", err)
	}

	for name, err := range map[string]error{
		"generation 0": ring.Add(0, random(t, a, KeySize)),
		"taken":        ring.Add(1, random(t, a, KeySize)),
	} {
		if !errors.Is(err, ErrGeneration) {
			t.Errorf("%s: err = %v, want ErrGeneration", name, err)
		}
	}
	for name, kek := range map[string]*Secret{"short": random(t, a, 16), "nil": nil} {
		if err := ring.Add(9, kek); !errors.Is(err, ErrSize) {
			t.Errorf("%s KEK: err = %v, want ErrSize", name, err)
		}
	}
}

func TestKeyringPurposes(t *testing.T) {
	a := newArena(t, 4096)
	ring := newKeyring(t, a)
	for _, p := range []Purpose{"", "kek", "root", "Material", "material\x00", "audit"} {
		if _, _, err := ring.WrapFor(p, Binding{}, []byte{1}); !errors.Is(err, ErrPurpose) {
			t.Errorf("WrapFor(%q): err = %v, want ErrPurpose", p, err)
		}
		if _, err := ring.Unwrap(1, p, Binding{}, []byte{1}); !errors.Is(err, ErrPurpose) {
			t.Errorf("Unwrap(%q): err = %v, want ErrPurpose", p, err)
		}
		if _, err := ring.DeriveMAC(1, p); !errors.Is(err, ErrPurpose) {
			t.Errorf("DeriveMAC(%q): err = %v, want ErrPurpose", p, err)
		}
	}
	// What the caller writes into the binding's own fields does not count.
	b := Binding{Purpose: "x", Cluster: [16]byte{9}, Generation: 77, Format: 9}
	_, blob, err := ring.WrapFor(PurposeCA, b, []byte("ca"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Unwrap(1, PurposeCA, Binding{}, blob); err != nil {
		t.Errorf("fields that the keyring sets were taken from the caller: %v", err)
	}
	empty := NewKeyring(a, testCluster)
	if _, _, err := empty.WrapFor(PurposeCA, b, []byte("ca")); !errors.Is(err, ErrGeneration) {
		t.Errorf("empty keyring: err = %v, want ErrGeneration", err)
	}
	if _, err := empty.NewAuditKey(); !errors.Is(err, ErrGeneration) {
		t.Errorf("empty keyring: err = %v, want ErrGeneration", err)
	}
}

func TestMAC(t *testing.T) {
	a := newArena(t, 4096)
	ring := newKeyring(t, a)
	if _, err := ring.Generate(); err != nil {
		t.Fatal(err)
	}
	key := func(g uint32, p Purpose) *MACKey {
		t.Helper()
		m, err := ring.DeriveMAC(g, p)
		if err != nil {
			t.Fatal(err)
		}
		if m.Generation() != g {
			t.Errorf("Generation() = %d, want %d", m.Generation(), g)
		}
		return m
	}
	m := key(1, PurposeSession)
	msg := []byte("token")
	tag, err := m.Sum(msg)
	if err != nil {
		t.Fatal(err)
	}
	if err := key(1, PurposeSession).Verify(msg, tag[:]); err != nil {
		t.Error(err)
	}
	for i := range len(tag) * 8 {
		bad := tag
		bad[i/8] ^= 1 << (i % 8)
		if err := m.Verify(msg, bad[:]); !errors.Is(err, ErrMAC) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for i := range tag {
		if err := m.Verify(msg, tag[:i]); !errors.Is(err, ErrMAC) {
			t.Fatalf("tag of %d bytes: %v", i, err)
		}
	}
	for name, err := range map[string]error{
		"other message":    m.Verify([]byte("tokeN"), tag[:]),
		"longer tag":       m.Verify(msg, append(tag[:], 0)),
		"other generation": key(2, PurposeSession).Verify(msg, tag[:]),
		"other purpose":    key(1, PurposeGrant).Verify(msg, tag[:]),
	} {
		if !errors.Is(err, ErrMAC) {
			t.Errorf("%s: err = %v, want ErrMAC", name, err)
		}
	}
	if _, err := ring.DeriveMAC(3, PurposeSession); !errors.Is(err, ErrGeneration) {
		t.Errorf("missing generation: %v", err)
	}
}

func TestKeyringWipe(t *testing.T) {
	a := newArena(t, 4096)
	ring := newKeyring(t, a)
	root := random(t, a, KeySize)
	_, blob, err := ring.WrapFor(PurposeMaterial, Binding{}, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	mac, _ := ring.DeriveMAC(1, PurposeSession)
	sealer, _ := ring.NewAuditKey()
	body, commitment, err := sealer.Seal([16]byte{}, []byte("record"))
	if err != nil {
		t.Fatal(err)
	}
	kek, _ := ring.kek(1)
	memory := kek.blk.data
	ring.Wipe()
	ring.Wipe()
	if !isZero(memory) {
		t.Error("a KEK was left")
	}
	if used, _ := a.Usage(); used != 1 { // the root key
		t.Errorf("%d slots in use, want 1", used)
	}
	calls := map[string]func() error{
		"WrapFor":        func() error { _, _, err := ring.WrapFor(PurposeMaterial, Binding{}, []byte("x")); return err },
		"Unwrap":         func() error { _, err := ring.Unwrap(1, PurposeMaterial, Binding{}, blob); return err },
		"Generate":       func() error { _, err := ring.Generate(); return err },
		"Add":            func() error { return ring.Add(5, root) },
		"WrapGeneration": func() error { _, err := ring.WrapGeneration(root, 1); return err },
		"DeriveMAC":      func() error { _, err := ring.DeriveMAC(1, PurposeSession); return err },
		"AuditKey":       func() error { _, err := ring.AuditKey(1, [16]byte{}); return err },
		"Seal":           func() error { _, _, err := sealer.Seal([16]byte{}, []byte("r")); return err },
		"Open":           func() error { _, err := sealer.Open([16]byte{}, commitment, body); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrWiped) {
			t.Errorf("%s after Wipe: err = %v, want ErrWiped", name, err)
		}
	}
	if _, err := mac.Sum(nil); !errors.Is(err, ErrDestroyed) {
		t.Errorf("MAC after Wipe: err = %v, want ErrDestroyed", err)
	}
	if err := mac.Verify(nil, nil); !errors.Is(err, ErrDestroyed) {
		t.Errorf("MAC after Wipe: err = %v, want ErrDestroyed", err)
	}
	if !errors.Is(ErrWiped, ErrDestroyed) {
		t.Error("ErrWiped does not wrap ErrDestroyed")
	}
	if sealer.aead.Load() != nil {
		t.Error("the sealer still holds its key")
	}
}

func TestKeyringConcurrent(t *testing.T) {
	a := newArena(t, 0)
	ring := newKeyring(t, a)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				g, blob, err := ring.WrapFor(PurposeMaterial, Binding{}, []byte("x"))
				if errors.Is(err, ErrDestroyed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				s, err := ring.Unwrap(g, PurposeMaterial, Binding{}, blob)
				if errors.Is(err, ErrDestroyed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				s.Destroy()
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if _, err := ring.Generate(); err != nil {
				t.Error(err)
			}
		}
		ring.Wipe()
	})
	wg.Wait()
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d slots leaked", used)
	}
}
