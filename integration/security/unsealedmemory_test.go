package security

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestUnsealedMemory searches the memory of unsealed nodes, after ten thousand calls,
// for what their key memory holds: the keyring, which everything else comes from, and
// key material. It may stand there and nowhere else. What HMAC makes of its key, the key
// XORed with a constant, it keeps in the heap, and there it stays until the collector
// has come and the place is used again: how often that is found is logged, and must be
// far less than once a call. Nothing may be left of the shares and of the unseal key.
func TestUnsealedMemory(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	calls := 10_000
	c := harness.NewCluster(t, 3, harness.Options{Processes: true})
	custodians := newSecrets(t, c)
	custodians.Add("unseal key", unsealKey(t, c.Shares[:harness.Threshold]))
	h := harness.NewHistory()
	var keys []string
	for i := range 20 {
		key, o := h.At(c.Nodes[i%3]).CreateKey(t.Context(), "")
		if o.Code != "" {
			t.Fatal(o)
		}
		keys = append(keys, key)
	}
	useKeys(t, h, c.Nodes, keys, calls)
	for _, n := range c.Nodes {
		report(t, n.ID+", unsealed", inMemory(t, &custodians.Set, n.PID()))
		held := keyMemory(t, n.PID())
		if len(held.secrets) < 5 {
			t.Errorf("%s has %d secrets of 32 bytes in its key memory: is it read as it should be?", n.ID, len(held.secrets))
		}
		inside, outside, pads := held.search(t, n.PID())
		most := slices.Max(pads)
		t.Logf("%s: %d secrets in key memory, each of their pads up to %d times in the heap", n.ID, len(held.secrets), most)
		for i := range held.secrets {
			if inside[i] == 0 {
				t.Errorf("%s: secret %d was not found in key memory, where it was read: the search looks in the wrong place", n.ID, i)
			}
			if outside[i] > 0 {
				t.Errorf("%s: secret %d stands outside of key memory, %d times", n.ID, i, outside[i])
			}
		}
		// Each node uses the keyring for a third of the calls, several times for each.
		if most > calls/2 {
			t.Errorf("%s: a pad of one secret stands in the heap %d times after %d calls", n.ID, most, calls)
		}
	}
}

// useKeys encrypts and decrypts, at all nodes, with so many calls.
func useKeys(t *testing.T, h *harness.History, nodes []*harness.Node, keys []string, calls int) {
	t.Helper()
	var next atomic.Int64
	var users sync.WaitGroup
	for range 16 {
		users.Go(func() {
			for {
				i := int(next.Add(1))
				if 2*i > calls {
					return
				}
				at, other := h.At(nodes[i%len(nodes)]), h.At(nodes[(i+1)%len(nodes)])
				var blob []byte
				o := harness.UntilDefinite(func() (o harness.Op) {
					blob, _, o = at.Encrypt(t.Context(), keys[i%len(keys)], []byte("plaintext"))
					return o
				})
				if o.Code == "" {
					o = harness.UntilDefinite(func() (o harness.Op) {
						_, o = other.Decrypt(t.Context(), blob)
						return o
					})
				}
				if o.Code != "" {
					t.Error(o)
					return
				}
			}
		})
	}
	users.Wait()
}

// heldSecrets are what a process has in its key memory.
type heldSecrets struct {
	arena   mapping
	secrets [][]byte
}

// keyMemory finds a process's key memory, which is the only large mapping that is left
// out of core files and of forked children, and reads the secrets of 32 bytes in it: the
// keyring, and symmetric material.
func keyMemory(t *testing.T, pid int) (h heldSecrets) {
	t.Helper()
	for _, m := range writable(t, pid) {
		// The C library's and the kernel's random states, a page each, are such mappings too.
		if m.to-m.from >= 256<<10 && slices.Contains(m.flags, "dd") && slices.Contains(m.flags, "wf") {
			if h.arena.to != 0 {
				t.Fatalf("two mappings look like key memory: %s and %s", h.arena.line, m.line)
			}
			h.arena = m
		}
	}
	if h.arena.to == 0 {
		t.Skip("this kernel does not tell which mapping is key memory")
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	b := make([]byte, h.arena.to-h.arena.from)
	if _, err := mem.ReadAt(b, int64(h.arena.from)); err != nil {
		t.Fatal(err)
	}
	defer clear(b)
	const slot, size = 64, 32
	empty := make([]byte, slot)
	for s := range slices.Chunk(b, slot) {
		if bytes.Equal(s[size:], empty[size:]) && !bytes.Equal(s[size-8:size], empty[:8]) {
			h.secrets = append(h.secrets, bytes.Clone(s[:size]))
		}
	}
	return h
}

// search counts, for each secret, how often it stands in key memory, how often outside
// of it, and how often one of its pads of HMAC does.
func (h heldSecrets) search(t *testing.T, pid int) (inside, outside, pads []int) {
	t.Helper()
	type form struct {
		b      []byte
		pad    bool
		secret int
	}
	forms := make(map[uint64][]form)
	var first [1 << 16]bool // whether a form begins with these two bytes
	for i, s := range h.secrets {
		for _, x := range []byte{0, 0x36, 0x5c} {
			b := bytes.Clone(s)
			for j := range b {
				b[j] ^= x
			}
			k := binary.LittleEndian.Uint64(b)
			first[uint16(k)] = true
			forms[k] = append(forms[k], form{b, x != 0, i})
		}
	}
	inside, outside, pads = make([]int, len(h.secrets)), make([]int, len(h.secrets)), make([]int, len(h.secrets))
	readMemory(t, pid, func(m mapping, at uint64, b []byte) {
		end := len(b) - 32
		if at+uint64(len(b)) < m.to {
			end = memoryChunk - 1 // the next chunk has the rest
		}
		for i := 0; i <= end; i++ {
			if !first[binary.LittleEndian.Uint16(b[i:])] {
				continue
			}
			for _, f := range forms[binary.LittleEndian.Uint64(b[i:])] {
				switch {
				case !bytes.HasPrefix(b[i:], f.b):
				case f.pad:
					pads[f.secret]++
				case m.from == h.arena.from:
					inside[f.secret]++
				default:
					outside[f.secret]++
				}
			}
		}
	})
	return inside, outside, pads
}
