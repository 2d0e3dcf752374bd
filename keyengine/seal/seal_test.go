package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// keyFile writes a file with a new key and returns the description of its seal.
func keyFile(t *testing.T) (path, text string) {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	path = filepath.Join(t.TempDir(), "seal.key")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, "file:" + path
}

func parse(t *testing.T, text string) Seal {
	t.Helper()
	s, err := Parse(t.Context(), "n1", text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fixture is a node of a cluster.
type fixture struct {
	c      *enginetest.Cluster
	shares []string
	log    bytes.Buffer
	node   *enginetest.Node
	s      *Service
}

func newFixture(t *testing.T, level uint32) *fixture {
	t.Helper()
	f := &fixture{c: enginetest.NewCluster(t, 1)}
	f.start(t)
	f.shares = f.node.Initialise(enginetest.InitParams(3, 2)).Shares
	if level > 1 {
		f.c.Change(&fsmpb.Change{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: level}}})
	}
	return f
}

// start starts a process with the given seals.
func (f *fixture) start(t *testing.T, seals ...Seal) {
	t.Helper()
	f.node = f.c.NewNode("n1")
	f.s = New(Config{NodeID: "n1", Seals: seals, Vault: f.node.Vault, Replica: f.node.Replica, Events: f.node.Events, Clock: f.c.Clock, Log: slog.New(slog.NewTextHandler(&f.log, nil))})
}

// custodians unseal the node, as the engine does.
func (f *fixture) custodians(t *testing.T) {
	t.Helper()
	f.node.OnOpened(f.s.Opened)
	f.node.Unseal(f.shares...)
	f.s.step(t.Context())
}

func (f *fixture) cluster() *fsmpb.Cluster {
	c, _ := f.c.State().Cluster()
	return c
}

// TestMigration: the custodians unseal a node with a seal once, which then unseals it. With
// their shares another seal is added, and the first one is removed; or all are.
func TestMigration(t *testing.T) {
	f := newFixture(t, 2)
	_, text := keyFile(t)
	_, other := keyFile(t)
	a, b := parse(t, text), parse(t, other)
	f.start(t, a)
	if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), "the custodians have to unseal a node that is configured with it") {
		t.Fatalf("before the seal is added: %q", f.s.Status())
	}
	f.custodians(t)
	if l := f.s.List(); len(l) != 1 || l[0].Name != a.Name() || !l[0].Configured {
		t.Fatalf("the cluster has the seals %v", l)
	}
	used := f.node.MemoryInUse()
	for range 2 {
		f.start(t, a)
		if f.s.step(t.Context()); f.node.Vault.Sealed() {
			t.Fatalf("the node is sealed: %q", f.s.Status())
		}
		f.node.Events.RecordPending(t.Context())
		if now := f.node.MemoryInUse(); now > used {
			t.Errorf("%d slots of locked memory are in use, and %d after the custodians", now, used)
		}
	}
	// An operator's seal lasts in this process.
	f.node.Vault.Seal()
	if f.s.step(t.Context()); !f.node.Vault.Sealed() {
		t.Error("a node that an operator sealed was unsealed")
	}

	f.start(t, b)
	f.custodians(t)
	if err := f.s.Remove(t.Context(), enginetest.Operator, a.Name()); err != nil {
		t.Fatal(err)
	}
	if err := f.s.Remove(t.Context(), enginetest.Operator, a.Name()); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("removing it again: %v", err)
	}
	f.start(t, a)
	if f.s.step(t.Context()); !f.node.Vault.Sealed() {
		t.Error("a seal that was removed unsealed the node")
	}
	f.start(t, a, b)
	if f.s.step(t.Context()); f.node.Vault.Sealed() {
		t.Errorf("the other seal: %q", f.s.Status())
	}
	if err := f.s.Remove(t.Context(), enginetest.Operator, b.Name()); err != nil {
		t.Fatal(err)
	}
	f.start(t)
	f.node.Unseal(f.shares[1:]...)
	names := enginetest.EventNames(f.node.Records())
	for _, want := range []string{"PutSeal", "UnsealBySeal", "RemoveSeal"} {
		if !slices.Contains(names, want) {
			t.Errorf("the log has no %s: %v", want, names)
		}
	}
}

// TestTampering: a seal opens only what it has wrapped for this cluster, and only with the
// cluster's root key.
func TestTampering(t *testing.T) {
	for name, change := range map[string]func(f *fixture, s *fsmpb.Seal){
		"the wrapped key":          func(_ *fixture, s *fsmpb.Seal) { s.WrappedKey[20] ^= 1 },
		"the wrapped root key":     func(_ *fixture, s *fsmpb.Seal) { s.WrappedRoot[20] ^= 1 },
		"the custodians' root key": func(f *fixture, s *fsmpb.Seal) { s.WrappedRoot = f.cluster().WrappedRoot },
		"nothing":                  func(_ *fixture, s *fsmpb.Seal) { s.WrappedKey, s.WrappedRoot = nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, 2)
			_, text := keyFile(t)
			f.start(t, parse(t, text))
			f.custodians(t)
			c := proto.CloneOf(f.cluster())
			change(f, c.Seals[0])
			f.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
			f.start(t, parse(t, text))
			if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), "auto-unseal: file:") {
				t.Errorf("the node says %q", f.s.Status())
			}
			f.node.Unseal(f.shares...) // the custodians still can
		})
	}
}

// broken is a seal whose service fails.
type broken struct{ Seal }

func (broken) Wrap(context.Context, *keymat.Arena, *keymat.Secret, Context) ([]byte, error) {
	return nil, errors.New("the service is down")
}

// TestAddingFails: a seal that cannot be added does not keep the custodians from unsealing
// the node, and is added as soon as it answers. Below level 2 there is none.
func TestAddingFails(t *testing.T) {
	f := newFixture(t, 2)
	_, text := keyFile(t)
	f.start(t, broken{parse(t, text)})
	f.custodians(t)
	if f.node.Vault.Sealed() || len(f.s.List()) != 0 || len(f.s.pending) != 1 {
		t.Errorf("sealed %v, seals %v", f.node.Vault.Sealed(), f.s.List())
	}
	f.s.pending[0].seal = parse(t, text)
	if !f.s.step(t.Context()) || len(f.s.List()) != 1 || len(f.s.pending) != 0 {
		t.Errorf("after the service is back: %v", f.s.List())
	}

	old := newFixture(t, 1)
	old.start(t, parse(t, text))
	old.custodians(t)
	if len(old.s.List()) != 0 || len(old.s.pending) != 0 || !strings.Contains(old.log.String(), string(ceremony.ErrNotUpgraded.Code)) {
		t.Errorf("at level 1: %v\n%s", old.s.List(), old.log.String())
	}
}

// hanging is a seal whose service does not answer.
type hanging struct {
	Seal
	asked chan struct{}
}

func (h hanging) Unwrap(ctx context.Context, _ *keymat.Arena, _ []byte, _ Context) (*keymat.Secret, error) {
	close(h.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestHangs: while a seal does not answer, the custodians unseal the node. What the seal
// answers afterwards changes nothing.
func TestHangs(t *testing.T) {
	f := newFixture(t, 2)
	_, text := keyFile(t)
	f.start(t, parse(t, text))
	f.custodians(t)
	h := hanging{parse(t, text), make(chan struct{})}
	f.start(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.s.step(ctx)
	}()
	<-h.asked
	f.node.Unseal(f.shares...)
	cancel()
	<-done
	if f.s.step(t.Context()); f.node.Vault.Sealed() || f.s.Status() != "" {
		t.Errorf("sealed %v, status %q", f.node.Vault.Sealed(), f.s.Status())
	}
}

// TestRetries: a node tries a seal that fails again, and is unsealed when it works.
func TestRetries(t *testing.T) {
	f := newFixture(t, 2)
	path, text := keyFile(t)
	s := parse(t, text)
	f.start(t, s)
	f.custodians(t)
	f.start(t, s)
	away := path + ".away"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.s.Run(ctx)
	}()
	defer func() { cancel(); <-done }()
	enginetest.WaitFor(t, "the seal to fail", func() bool { return strings.Contains(f.s.Status(), "no such file") })
	if err := os.Rename(away, path); err != nil {
		t.Fatal(err)
	}
	enginetest.WaitFor(t, "the seal to unseal the node", func() bool { return !f.node.Vault.Sealed() })
}

// TestKeysAreReplaced: with another root key there are no seals any more, and one that was
// about to be added is not.
func TestKeysAreReplaced(t *testing.T) {
	f := newFixture(t, 2)
	_, text := keyFile(t)
	_, other := keyFile(t)
	f.start(t, parse(t, text), broken{parse(t, other)})
	f.custodians(t)
	if len(f.s.List()) != 1 || len(f.s.pending) != 1 {
		t.Fatalf("seals %v", f.s.List())
	}
	var given []shamir.Share
	for _, text := range f.shares[:2] {
		share, err := shamir.ParseShare([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, share)
	}
	combined, err := shamir.Combine(given)
	if err != nil {
		t.Fatal(err)
	}
	unseal, err := f.node.Vault.Arena().Store(combined)
	if err != nil {
		t.Fatal(err)
	}
	o, err := f.node.Vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	next, err := f.node.Vault.RotateRoot(f.cluster(), o, unseal)
	if err != nil {
		t.Fatal(err)
	}
	f.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: next}})
	f.s.pending[0].seal = parse(t, other)
	if f.s.step(t.Context()); len(f.s.List()) != 0 || len(f.s.pending) != 0 {
		t.Errorf("seals %v, and %d are to be added", f.s.List(), len(f.s.pending))
	}
	f.start(t, parse(t, text))
	if f.s.step(t.Context()); !f.node.Vault.Sealed() {
		t.Error("a seal with the old root key unsealed the node")
	}
	f.custodians(t)
	f.start(t, parse(t, text))
	if f.s.step(t.Context()); f.node.Vault.Sealed() {
		t.Errorf("the seal that was added again: %q", f.s.Status())
	}
}

// TestFile: what is not a private file with a key is refused, and a key file is warned of.
func TestFile(t *testing.T) {
	path, text := keyFile(t)
	s := parse(t, text)
	if again := parse(t, text); s.Name() != again.Name() {
		t.Errorf("names %s and %s", s.Name(), again.Name())
	}
	f := new(fixture)
	f.c = enginetest.NewCluster(t, 1)
	f.start(t, s)
	if !strings.Contains(f.log.String(), "KEY FILE") {
		t.Errorf("no warning: %s", f.log.String())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.Name(), hex.EncodeToString(b[:4])) || strings.Contains(f.log.String(), strings.TrimSpace(string(b))) {
		t.Error("the key is in the name or in the log")
	}
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, content := range map[string]string{"empty": "", "short": "AAAA", "zeros": zeros, "not base64": strings.Repeat("!", 44), "much": strings.Repeat("A", 10_000)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(t.Context(), "n1", text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(t.Context(), "n1", text); err == nil || !strings.Contains(err.Error(), "only its owner") {
		t.Errorf("a file that others can read: %v", err)
	}
	for _, bad := range []string{
		"", "card:x", "file:", "file:/does/not/exist", "awskms:", "awskms:k?zone=x", "awskms:k?region=a&region=b", "awskms:k?region=eu-west-1&ca=/does/not/exist",
		"pkcs11:", "pkcs11:/m.so", "pkcs11:?token=t&key=k&pin=p", "pkcs11:/m.so?token=t&key=k", "pkcs11:/m.so?token=t&key=k&pin=p&create=no", "pkcs11:/m.so?token=t&key=k&pin=p&slot=1",
		"tpm:?pcrs=", "tpm:?pcrs=24", "tpm:?pcrs=7+7", "tpm:?pcrs=-1", "tpm:?pcrs=7.11", "tpm:?pcr=7",
	} {
		if _, err := Parse(t.Context(), "n1", bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
