package security

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/canary"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestSealedMemory searches the memory of servers that are sealed for what may not be
// left in it: after they were founded, after they were unsealed, used and sealed, and
// with a ceremony under way.
func TestSealedMemory(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	c := harness.Start(t, 3, harness.Options{Processes: true})
	c.Init()
	s := newSecrets(t, c)
	s.Add("unseal key", unsealKey(t, c.Shares[:harness.Threshold]))
	scan := func(when string) {
		t.Helper()
		for _, n := range c.Nodes {
			report(t, n.ID+" "+when, inMemory(t, &s.Set, n.PID()))
		}
	}
	scan("after the founding")

	c.Unseal()
	c.WaitReady()
	leader := c.Leader()
	// Of what clients gave to other nodes, the leader that executes it keeps nothing.
	plaintexts := forwardPlaintexts(t, c, leader)
	report(t, leader.ID+", which executed others' requests", inMemory(t, plaintexts, leader.PID()))

	for _, n := range c.Nodes {
		if _, err := n.Operator().Seal(t.Context(), &kmspb.SealRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	scan("after sealing")

	// The control: a share that somebody sends in the clear is found, where gRPC and TLS
	// have read it.
	n := c.Nodes[0]
	for range 50 {
		_, _ = n.Operator().SubmitShare(t.Context(), &kmspb.SubmitShareRequest{Nonce: make([]byte, 16), SealedShare: []byte(c.Shares[0])})
	}
	if found := inMemory(t, &s.Set, n.PID()); len(found) == 0 {
		t.Error("nothing was found of a share that was sent in the clear: the search looks in the wrong place")
	}
}

// forwardPlaintexts has followers encrypt with a key that changes all the time, until
// the leader has executed some of their requests, and returns what they encrypted.
func forwardPlaintexts(t *testing.T, c *harness.Cluster, leader *harness.Node) *canary.Set {
	t.Helper()
	created, err := leader.KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key := created.GetKeyMetadata().GetKeyId()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	var changes sync.WaitGroup
	for range 4 {
		changes.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				description := fmt.Sprint(i)
				_, _ = leader.KMS().UpdateKeyDescription(ctx, &kmspb.UpdateKeyDescriptionRequest{KeyId: &key, Description: &description})
			}
		})
	}
	s := new(canary.Set)
	var mu sync.Mutex
	var calls sync.WaitGroup
	var followers []*harness.Node
	for _, n := range c.Nodes {
		if n == leader {
			continue
		}
		followers = append(followers, n)
		for range 2 {
			calls.Go(func() {
				for ctx.Err() == nil {
					plaintext := []byte(randomText(64))
					mu.Lock()
					s.Add("a plaintext of "+n.ID, plaintext)
					mu.Unlock()
					_, _ = n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &key, Plaintext: plaintext})
				}
			})
		}
	}
	for _, n := range followers {
		for ctx.Err() == nil && forwarded(t, n) < 3 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	if ctx.Err() != nil {
		t.Errorf("too few requests were forwarded")
	}
	cancel()
	calls.Wait()
	changes.Wait()
	return s
}

var forwardedMetric = regexp.MustCompile(`(?m)^conclave_request_forwarded_total\{operation="Encrypt"\} (\d+)`)

// forwarded is how many requests a node has had the leader execute.
func forwarded(t *testing.T, n *harness.Node) (count int) {
	if m := forwardedMetric.FindSubmatch(harness.OpsGet(t, n, "/metrics")); m != nil {
		_, _ = fmt.Sscan(string(m[1]), &count)
	}
	return count
}

// inMemory is what of the secrets stands in the writable memory of a process.
func inMemory(t *testing.T, s *canary.Set, pid int) (found []string) {
	t.Helper()
	seen := make(map[string]bool)
	readMemory(t, pid, func(m mapping, at uint64, b []byte) {
		for _, f := range s.In(b) {
			what, _, _ := strings.Cut(f, ", at byte")
			if !seen[what] {
				seen[what] = true
				found = append(found, fmt.Sprintf("%s, at %#x: %s", what, at, m.line))
			}
		}
	})
	return found
}

// mapping is a range of a process's memory.
type mapping struct {
	from, to uint64
	line     string // of /proc/PID/smaps
	flags    []string
}

const memoryChunk, memoryOverlap = 1 << 20, 256

// readMemory reads the writable memory of a process in chunks. Each but the last of a
// mapping ends with the memoryOverlap bytes that the next begins with.
func readMemory(t *testing.T, pid int, read func(m mapping, at uint64, b []byte)) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("the memory of other processes cannot be read: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, memoryChunk+memoryOverlap)
	defer clear(buf)
	var size uint64
	for _, m := range writable(t, pid) {
		for at := m.from; at < m.to; at += memoryChunk {
			b := buf[:min(memoryChunk+memoryOverlap, m.to-at)]
			n, err := mem.ReadAt(b, int64(at))
			if err != nil && !errors.Is(err, syscall.EIO) {
				break // unmapped meanwhile
			}
			size += uint64(n)
			read(m, at, b[:n])
		}
	}
	if size < 1<<20 {
		t.Fatalf("only %d bytes of memory were read", size)
	}
}

// writable are the mappings that a process can write to.
func writable(t *testing.T, pid int) (list []mapping) {
	t.Helper()
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var m mapping
	var mode string
	for line := range strings.Lines(string(smaps)) {
		line = strings.TrimSpace(line)
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			if m.flags = strings.Fields(flags); strings.HasPrefix(mode, "rw") {
				list = append(list, m)
			}
		} else if fields := strings.Fields(line); !strings.HasSuffix(fields[0], ":") {
			m = mapping{line: line}
			if _, err := fmt.Sscanf(line, "%x-%x %s", &m.from, &m.to, &mode); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
	}
	return list
}

// unsealKey combines shares as the custodians' nodes do: Shamir's scheme over GF(2^8),
// byte by byte.
func unsealKey(t *testing.T, shares []string) []byte {
	t.Helper()
	mul := func(a, b byte) (p byte) {
		for ; b != 0; b >>= 1 {
			if b&1 == 1 {
				p ^= a
			}
			carry := a >> 7
			if a <<= 1; carry == 1 {
				a ^= 0x1b
			}
		}
		return p
	}
	inverse := func(a byte) byte {
		for b := 1; b < 256; b++ {
			if mul(a, byte(b)) == 1 {
				return byte(b)
			}
		}
		panic("0 has no inverse")
	}
	var envelopes [][]byte
	for _, share := range shares {
		raw, err := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).DecodeString(share[strings.LastIndexByte(share, '-')+1:])
		if err != nil {
			t.Fatal(err)
		}
		envelopes = append(envelopes, raw)
	}
	key := make([]byte, 32)
	for i, e := range envelopes {
		basis := byte(1)
		for j, o := range envelopes {
			if i != j {
				basis = mul(basis, mul(o[35], inverse(e[35]^o[35])))
			}
		}
		for k := range key {
			key[k] ^= mul(e[36+k], basis)
		}
	}
	return key
}
