package tlog

import (
	"bytes"
	"encoding/hex"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/conclavekms/conclave/integration/tlog/outsider"
)

// example is the example of docs/audit-format.md.
type example struct {
	values                    map[string]string
	keys, checkpoint, receipt string
}

func readExample(t *testing.T) example {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "audit-format.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := func(name string) string {
		_, rest, ok := strings.Cut(string(raw), "```text "+name+"\n")
		text, _, closed := strings.Cut(rest, "```\n")
		if !ok || !closed {
			t.Fatalf("the page has no block %q", name)
		}
		return text
	}
	x := example{make(map[string]string), block("keys"), block("checkpoint"), block("receipt")}
	x.receipt += x.checkpoint
	for line := range strings.Lines(block("values")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		x.values[name] = string(b)
	}
	return x
}

func (x example) directory() fstest.MapFS {
	dir := make(fstest.MapFS)
	for _, name := range []string{"segments/00000000.seg", "durable"} {
		dir[name] = &fstest.MapFile{Data: []byte(x.values[name])}
	}
	dir["checkpoint"] = &fstest.MapFile{Data: []byte(x.checkpoint)}
	return dir
}

// TestExampleOfPage has the verifier that was written from the page verify the page's example, and
// refuse it with any bit changed.
func TestExampleOfPage(t *testing.T) {
	x := readExample(t)
	keys, err := outsider.ParseKeys(x.keys)
	if err != nil {
		t.Fatal(err)
	}
	dir := x.directory()
	if n, signed, err := keys.Directory(dir); err != nil || n != 3 || signed != 3 {
		t.Errorf("%d entries, %d signed: %v", n, signed, err)
	}
	if leaf, err := keys.Receipt([]byte(x.receipt)); err != nil || string(leaf) != x.values["leaf 1"] {
		t.Errorf("the receipt: %x, %v", leaf, err)
	}
	flips(func(bit int) bool { return bit < 8*600 || bit%97 == 0 }, []byte(x.receipt), func(bit int, b []byte) {
		if _, err := keys.Receipt(b); err == nil {
			t.Errorf("the receipt with bit %d changed is accepted", bit)
		}
	})
	for name, file := range dir {
		changed := maps.Clone(dir)
		flips(func(bit int) bool { return name != "checkpoint" || bit < 8*200 || bit%97 == 0 }, file.Data, func(bit int, b []byte) {
			changed[name] = &fstest.MapFile{Data: b}
			if _, _, err := keys.Directory(changed); err == nil {
				t.Errorf("%s with bit %d changed is accepted", name, bit)
			}
		})
		delete(changed, name)
		if _, _, err := keys.Directory(changed); err == nil {
			t.Errorf("the directory without %s is accepted", name)
		}
	}
}

// flips calls fn with b with each of the bits changed that which chooses.
func flips(which func(bit int) bool, b []byte, fn func(bit int, b []byte)) {
	for bit := range 8 * len(b) {
		if which(bit) {
			c := bytes.Clone(b)
			c[bit/8] ^= 1 << (bit % 8)
			fn(bit, c)
		}
	}
}

// testRolledBack gives a log its earlier checkpoint back. Nothing is wrong with it, unless somebody
// kept the later one.
func testRolledBack(t *testing.T, keys *outsider.Keys, dir fstest.MapFS, earlier []byte, command func(dir string, latest []byte) (string, bool)) {
	t.Helper()
	latest := dir["checkpoint"].Data
	back := maps.Clone(dir)
	back["checkpoint"] = &fstest.MapFile{Data: earlier}
	if _, _, err := keys.Directory(back); err != nil {
		t.Errorf("with its earlier checkpoint: %v", err)
	}
	if _, _, err := keys.Directory(back, latest); err == nil {
		t.Error("the log was rolled back: not noticed")
	}
	copied := filepath.Join(t.TempDir(), "audit")
	if err := os.CopyFS(copied, back); err != nil {
		t.Fatal(err)
	}
	if out, ok := command(copied, latest); ok || !strings.Contains(out, "rolled back") {
		t.Errorf("the log was rolled back: the command says %s", out)
	}
}

// testOutsider has the verifier that was written from the page verify what a stopped node leaves,
// and a receipt; and refuse them altered, as the command does.
func testOutsider(t *testing.T, s *server, earlier []byte) {
	raw := []byte(s.command(t, "audit", "receipt", "300", "--out", "-"))
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	keys, err := outsider.ParseKeys(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Receipt(raw); err != nil {
		t.Errorf("the receipt: %v", err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	flips(func(int) bool { return r.IntN(30) == 0 }, raw, func(bit int, b []byte) {
		if _, err := keys.Receipt(b); err == nil {
			t.Errorf("the receipt with bit %d changed is accepted", bit)
		}
	})

	from := filepath.Join(s.data, "node", "groups", "0", "audit")
	dir := make(fstest.MapFS)
	err = fs.WalkDir(os.DirFS(from), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(from, name))
		dir[name] = &fstest.MapFile{Data: b}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, signed, err := keys.Directory(dir, earlier)
	if err != nil || entries != signed || entries < 1000 {
		t.Fatalf("%d entries, %d signed: %v", entries, signed, err)
	}
	verify := func(dir string, more ...string) (string, bool) {
		return s.try(t, nil, append([]string{"audit", "verify", dir, "--key", s.keyFile(t)}, more...)...)
	}
	save := func(checkpoint []byte) string {
		path := filepath.Join(t.TempDir(), "checkpoint")
		if err := os.WriteFile(path, checkpoint, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if out, ok := verify(from, "--earlier", save(earlier)); !ok {
		t.Fatalf("the command: %s", out)
	}
	testRolledBack(t, keys, dir, earlier, func(dir string, latest []byte) (string, bool) { return verify(dir, "--earlier", save(latest)) })
	names := slices.Sorted(maps.Keys(dir))
	names = slices.DeleteFunc(names, func(name string) bool { return len(dir[name].Data) == 0 })
	copied := t.TempDir()
	for i := range 120 {
		name := names[i%len(names)]
		b := bytes.Clone(dir[name].Data)
		bit := r.IntN(8 * len(b))
		b[bit/8] ^= 1 << (bit % 8)
		changed := maps.Clone(dir)
		changed[name] = &fstest.MapFile{Data: b}
		if _, _, err := keys.Directory(changed, earlier); err == nil {
			t.Errorf("%s with bit %d changed is accepted", name, bit)
		}
		if i >= 8 {
			continue // starting the command takes longer
		}
		copy := filepath.Join(copied, string(rune('a'+i)))
		if err := os.CopyFS(copy, changed); err != nil {
			t.Fatal(err)
		}
		if out, ok := verify(copy); ok {
			t.Errorf("%s with bit %d changed: the command says %s", name, bit, out)
		}
	}
	t.Logf("%d entries in %d files", entries, len(names))
}
