package keyengine

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// hidden has texts to search for, masked so that the search does not find them here.
type hidden struct {
	mask  [32]byte
	texts map[uint64][][32]byte // by their first 8 bytes, all masked
	n     int
}

func newHidden() *hidden {
	h := &hidden{texts: make(map[uint64][][32]byte)}
	_, _ = rand.Read(h.mask[:])
	return h
}

// add adds a text of 32 bytes.
func (h *hidden) add(text []byte) {
	var m [32]byte
	for i := range m {
		m[i] = text[i] ^ h.mask[i]
	}
	first := binary.NativeEndian.Uint64(m[:])
	h.texts[first] = append(h.texts[first], m)
	h.n++
}

// inMemory counts the occurrences of the texts in the memory of this process.
func (h *hidden) inMemory(t *testing.T) (found int) {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Skipf("memory cannot be searched here: %v", err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skipf("memory cannot be searched here: %v", err)
	}
	defer mem.Close()
	mask := binary.NativeEndian.Uint64(h.mask[:])
	window := make([]byte, 1<<20+31)
	defer clear(window)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var flags string
		if _, err := fmt.Sscanf(strings.Replace(lines.Text(), "-", " ", 1), "%x %x %s", &from, &to, &flags); err != nil || !strings.HasPrefix(flags, "rw") {
			continue
		}
		for at := from; at < to; at += 1 << 20 {
			n, err := mem.ReadAt(window[:min(int64(len(window)), to-at)], at)
			if err != nil && err != io.EOF && n == 0 {
				break
			}
			b := window[:n]
			for i := 0; i+32 <= len(b); i++ {
				for _, m := range h.texts[binary.NativeEndian.Uint64(b[i:])^mask] {
					same := true
					for j := range m {
						same = same && m[j]^h.mask[j] == b[i+j]
					}
					if same {
						found++
						clear(b[i : i+32])
					}
				}
			}
		}
	}
	return found
}

// Neither node has a copy of a forwarded plaintext in its memory once the request is answered.
// Nothing but overwriting every buffer on the way ensures that.
func TestForwardedPlaintextLeavesNoCopy(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	if testing.Short() {
		t.Skip("the race detector makes the search slow, and the memory large: make test runs it")
	}
	// A goroutine that is preempted while it copies a plaintext leaves the registers on its
	// stack, which no code of ours can overwrite. That is rare, and what a buffer keeps is
	// there every time.
	const tries = 3
	for i := range tries {
		n := copiesOfForwarded(t)
		if n == 0 {
			return
		}
		t.Logf("try %d of %d: %d copies in memory", i+1, tries, n)
	}
	t.Error("copies of forwarded plaintexts were in memory after each try")
}

// copiesOfForwarded makes requests that are forwarded, and returns the number of copies of
// their plaintexts that are in memory afterwards.
func copiesOfForwarded(t *testing.T) int {
	t.Helper()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	replica := c.Replica("n2")
	replica.BeforeCommit = func(*fsmpb.Record) { c.modifyKey(id, func(k *fsmpb.Key) { k.Description += "." }) }
	h := newHidden()
	do := func(name string, in any) any {
		t.Helper()
		op := OperationNamed(KMS, name)
		forwarded := replica.Forwarded.Load()
		out, err := c.engines["n2"].Do(t.Context(), c.caller(c.root), op, in)
		if err != nil {
			t.Fatal(err)
		}
		if replica.Forwarded.Load() != forwarded+1 {
			t.Fatalf("%s was not forwarded", name)
		}
		op.Input().WipeAll(in) // as every face does
		return out
	}
	const times = 20
	for range times {
		plaintext := make([]byte, 32)
		_, _ = rand.Read(plaintext)
		h.add(plaintext)
		blob := do("Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext}).(*kmsapi.EncryptOutput).CiphertextBlob
		opened := do("Decrypt", &kmsapi.DecryptInput{CiphertextBlob: bytes.Clone(blob)})
		OperationNamed(KMS, "Decrypt").Output().Wipe(opened)
		key := do("GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
		h.add(key.(*kmsapi.GenerateDataKeyOutput).Plaintext)
		OperationNamed(KMS, "GenerateDataKey").Output().Wipe(key)
	}
	if h.n != 2*times {
		t.Fatalf("got %d texts, want %d", h.n, 2*times)
	}
	kept := bytes.Repeat([]byte{1}, 32) // shows that the search finds what is there
	_, _ = rand.Read(kept)
	h.add(kept)
	runtime.GC()
	debug.FreeOSMemory()
	n := h.inMemory(t)
	if n == 0 {
		t.Fatal("the search did not find the copy of this test")
	}
	runtime.KeepAlive(kept)
	clear(kept)
	return n - 1
}
