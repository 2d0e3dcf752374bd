package localfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const purpose = "test"

// openVault returns an open vault of a new cluster with a given id.
func openVault(t *testing.T, id byte) *vault.Vault {
	t.Helper()
	v, err := vault.New(time.Now, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{id}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := v.Initialise(c)
	if err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	if !v.Install(o) {
		t.Fatal("the vault is open already")
	}
	return v
}

func mustOpen(t *testing.T, path string, v *vault.Vault) *File {
	t.Helper()
	f, err := Open(path, purpose, 0, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mustClose(t *testing.T, f *File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, f *File, bucket, key, value string) {
	t.Helper()
	if err := f.Update(func(tx *Tx) error { return tx.Put(bucket, []byte(key), []byte(value)) }); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, f *File, bucket, key string) string {
	t.Helper()
	var b []byte
	if err := f.View(func(tx *Tx) (err error) { b, err = tx.Get(bucket, []byte(key)); return err }); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReopened: what was stored is there after closing, in the order of its keys.
func TestReopened(t *testing.T) {
	v, path := openVault(t, 7), filepath.Join(t.TempDir(), "file")
	f := mustOpen(t, path, v)
	if !f.Fresh() {
		t.Error("a new file is not fresh")
	}
	for i := range 5 {
		put(t, f, "a", fmt.Sprint(i), fmt.Sprint("value ", i))
	}
	put(t, f, "b", "1", "other")
	before, err := f.Tokens([]Term{{"x", "y"}, {"xy", ""}, {"x", "y"}})
	if err != nil {
		t.Fatal(err)
	}
	if before[0] != before[2] || before[0] == before[1] {
		t.Errorf("tokens: %x", before)
	}
	mustClose(t, f)
	f = mustOpen(t, path, v)
	if f.Fresh() {
		t.Error("the file was made anew")
	}
	if after, err := f.Tokens([]Term{{"x", "y"}}); err != nil || after[0] != before[0] {
		t.Errorf("the token changed: %x, %v", after, err)
	}
	err = f.Update(func(tx *Tx) error {
		if got := string(tx.Last("a")); got != "4" {
			t.Errorf("last key: %q", got)
		}
		if err := tx.Drop("b"); err != nil {
			return err
		}
		return tx.Delete("a", []byte("3"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, f, "b", "1"); got != "" {
		t.Errorf("a dropped bucket has %q", got)
	}
	var got string
	err = f.View(func(tx *Tx) error {
		return tx.Each("a", []byte("1"), func(key, value []byte) error { got += fmt.Sprintf("%s=%s;", key, value); return nil })
	})
	if want := "1=value 1;2=value 2;4=value 4;"; err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

// TestUpdateFails: what a failed Update wrote is not there.
func TestUpdateFails(t *testing.T) {
	f := mustOpen(t, filepath.Join(t.TempDir(), "file"), openVault(t, 7))
	errMine := errors.New("mine")
	err := f.Update(func(tx *Tx) error {
		if err := tx.Put("a", []byte("k"), []byte("v")); err != nil {
			return err
		}
		return errMine
	})
	if !errors.Is(err, errMine) || get(t, f, "a", "k") != "" {
		t.Errorf("got %v and %q", err, get(t, f, "a", "k"))
	}
}

// TestUnreadable: the file shows neither values nor terms.
func TestUnreadable(t *testing.T) {
	v, path := openVault(t, 7), filepath.Join(t.TempDir(), "file")
	f := mustOpen(t, path, v)
	tokens, err := f.Tokens([]Term{{"principal", "CANARY-term"}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "a", string(tokens[0][:]), "CANARY-value")
	mustClose(t, f)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("CANARY")) {
		t.Error("the file shows what it holds")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// TestSealed: keys of an open file are gone with the vault's.
func TestSealed(t *testing.T) {
	v := openVault(t, 7)
	f := mustOpen(t, filepath.Join(t.TempDir(), "file"), v)
	put(t, f, "a", "k", "v")
	v.Seal()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f.View(func(tx *Tx) error { _, err := tx.Get("a", []byte("k")); return err })
		_, err2 := f.Tokens([]Term{{"x", "y"}})
		if errors.Is(err, vault.ErrSealed) && errors.Is(err2, vault.ErrSealed) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v and %v, want %v", err, err2, vault.ErrSealed)
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "other"), purpose, 0, v); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("Open on a sealed node: %v", err)
	}
}

// TestForeign: a file of another cluster, or of another purpose, is replaced by an empty one.
func TestForeign(t *testing.T) {
	for name, other := range map[string]func(t *testing.T, path string, v *vault.Vault) (*File, error){
		"cluster": func(t *testing.T, path string, _ *vault.Vault) (*File, error) {
			return Open(path, purpose, 0, openVault(t, 9))
		},
		"purpose": func(_ *testing.T, path string, v *vault.Vault) (*File, error) { return Open(path, "else", 0, v) },
	} {
		t.Run(name, func(t *testing.T) {
			v, path := openVault(t, 7), filepath.Join(t.TempDir(), "file")
			f := mustOpen(t, path, v)
			put(t, f, "a", "k", "v")
			mustClose(t, f)
			f, err := other(t, path, v)
			if err != nil {
				t.Fatal(err)
			}
			defer mustClose(t, f)
			if !f.Fresh() || get(t, f, "a", "k") != "" {
				t.Error("what another wrote is there")
			}
		})
	}
}

// TestInUse: a file that another process has open is neither waited for without end nor
// removed.
func TestInUse(t *testing.T) {
	v, path := openVault(t, 7), filepath.Join(t.TempDir(), "file")
	f := mustOpen(t, path, v)
	put(t, f, "a", "k", "v")
	if _, err := Open(path, purpose, 0, v); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if got := get(t, f, "a", "k"); got != "v" {
		t.Errorf("got %q", got)
	}
}

// TestFull: a file does not exceed its size, and what it has stays readable.
func TestFull(t *testing.T) {
	f, err := Open(filepath.Join(t.TempDir(), "file"), purpose, 1<<20, openVault(t, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, f)
	put(t, f, "a", "first", "v")
	for i := 0; ; i++ {
		err := f.Update(func(tx *Tx) error { return tx.Put("a", fmt.Append(nil, i), make([]byte, 100<<10)) })
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil || i > 20 {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	if got := get(t, f, "a", "first"); got != "v" {
		t.Errorf("got %q", got)
	}
}

// TestDamaged: a file that was overwritten or truncated is reported or replaced, or answers
// with what was stored; it never gives something else and does not end the process.
func TestDamaged(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	v, path := openVault(t, 7), filepath.Join(t.TempDir(), "file")
	f := mustOpen(t, path, v)
	for i := range 200 {
		put(t, f, "a", fmt.Sprint(i), fmt.Sprint("value ", i))
	}
	mustClose(t, f)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"short":     func(b []byte) []byte { return b[:100] },
		"one page":  func(b []byte) []byte { return b[:os.Getpagesize()] },
		"two pages": func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"zeros":     func(b []byte) []byte { clear(b); return b },
		"text":      func([]byte) []byte { return bytes.Repeat([]byte("not a database\n"), 5000) },
		"no pages":  func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
	}
	for i := range 40 {
		damages[fmt.Sprint("page ", i)] = func(b []byte) []byte {
			page := os.Getpagesize()
			at := rnd.IntN(min(len(b)/page, 40)) * page
			for j := range page {
				b[at+j] = byte(rnd.Uint32())
			}
			return b
		}
	}
	replaced, reported := 0, 0
	for name, damage := range damages {
		if err := os.WriteFile(path, damage(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path, purpose, 0, v)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if f.Fresh() {
			replaced++
		}
		// An empty file is none.
		if want := f.Fresh() && name != "empty"; (f.Replaced() != nil) != want {
			t.Errorf("%s: replaced: %v, a new file: %v", name, f.Replaced(), f.Fresh())
		}
		for i := range 200 {
			err := f.View(func(tx *Tx) error {
				b, err := tx.Get("a", fmt.Append(nil, i))
				if err == nil && len(b) > 0 && string(b) != fmt.Sprint("value ", i) {
					t.Errorf("%s: value %d is %q", name, i, b)
				}
				return err
			})
			if errors.Is(err, ErrDamaged) {
				reported++
			} else if err != nil {
				t.Errorf("%s: value %d: %v", name, i, err)
			}
		}
		if err := f.Remove(); err != nil {
			t.Errorf("%s: Remove: %v", name, err)
		}
		f, err = Open(path, purpose, 0, v)
		if err != nil || !f.Fresh() {
			t.Fatalf("%s: after Remove: %v", name, err)
		}
		mustClose(t, f)
	}
	if replaced == 0 || reported == 0 {
		t.Errorf("%d replaced, %d reported: no damage was done", replaced, reported)
	}
}

// TestMoved: a value that is moved to another key is not taken for that key's.
func TestMoved(t *testing.T) {
	f := mustOpen(t, filepath.Join(t.TempDir(), "file"), openVault(t, 7))
	put(t, f, "a", "k", "v")
	var sealed []byte
	if err := f.View(func(tx *Tx) error {
		sealed = append(sealed, tx.tx.Bucket([]byte("a")).Get([]byte("k"))...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(func(tx *Tx) error { return tx.tx.Bucket([]byte("a")).Put([]byte("other"), sealed) }); err != nil {
		t.Fatal(err)
	}
	err := f.View(func(tx *Tx) error { _, err := tx.Get("a", []byte("other")); return err })
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want %v", err, ErrDamaged)
	}
}
