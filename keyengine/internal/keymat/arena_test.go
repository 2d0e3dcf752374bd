package keymat

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newArena(t testing.TB, size int) *Arena {
	t.Helper()
	a, err := Open(size, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func store(t testing.TB, a *Arena, b []byte) *Secret {
	t.Helper()
	s, err := a.Store(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func random(t testing.TB, a *Arena, n int) *Secret {
	t.Helper()
	s, err := a.Random(n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reveal copies a secret out.
func reveal(t testing.TB, s *Secret) (out []byte) {
	t.Helper()
	if err := s.With(func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// waitFor polls until ok or a deadline.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSecretLife(t *testing.T) {
	a := newArena(t, 4096)
	plain := []byte("a secret of 27 bytes, long.")
	in := bytes.Clone(plain)
	s, err := a.Store(in)
	if err != nil {
		t.Fatal(err)
	}
	if !isZero(in) {
		t.Error("Store left its argument")
	}
	if got := reveal(t, s); !bytes.Equal(got, plain) || s.Len() != len(plain) {
		t.Errorf("secret is %q", got)
	}
	if err := s.With(func(b []byte) error {
		if cap(b) != len(plain) {
			t.Errorf("the slice can be grown to %d bytes, into other secrets", cap(b))
		}
		return ErrUnwrap
	}); err != ErrUnwrap {
		t.Errorf("With returned %v, not what the function did", err)
	}
	memory := s.blk.data
	s.Destroy()
	if !isZero(memory) {
		t.Error("Destroy did not wipe")
	}
	called := false
	if err := s.With(func([]byte) error { called = true; return nil }); !errors.Is(err, ErrDestroyed) || called {
		t.Errorf("use after Destroy: err = %v, called: %v", err, called)
	}
	// A second Destroy must not free what belongs to somebody else by now.
	other := random(t, a, 27)
	s.Destroy()
	s.Destroy()
	if isZero(reveal(t, other)) {
		t.Error("destroying again wiped another secret")
	}
	if used, total := a.Usage(); used != 1 || total != 64 {
		t.Errorf("usage %d of %d, want 1 of 64", used, total)
	}
	var none *Secret
	none.Destroy()
	for _, s := range []*Secret{none, {}} {
		if err := s.With(func([]byte) error { return nil }); !errors.Is(err, ErrDestroyed) || s.Len() != 0 {
			t.Errorf("nil or zero Secret: %v", err)
		}
	}
}

func TestDestroyDuringUse(t *testing.T) {
	a := newArena(t, 4096)
	s := random(t, a, 32)
	memory := s.blk.data
	want := reveal(t, s)
	err := s.With(func(b []byte) error {
		s.Destroy()
		s.Destroy() // must not drop the user's reference
		if !bytes.Equal(b, want) {
			t.Error("wiped under its user")
		}
		if err := s.With(func([]byte) error { return nil }); !errors.Is(err, ErrDestroyed) {
			t.Errorf("a new use after Destroy: %v", err)
		}
		if used, _ := a.Usage(); used != 1 {
			t.Error("slot was freed under its user")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !isZero(memory) {
		t.Error("not wiped after the last use")
	}
	// A panic in the user's function does not keep the secret.
	s = random(t, a, 32)
	memory = s.blk.data
	mustPanic(t, "With", func() { _ = s.With(func([]byte) error { panic("user") }) })
	s.Destroy()
	if !isZero(memory) {
		t.Error("not wiped after a panic")
	}
}

func TestArenaRefuses(t *testing.T) {
	a := newArena(t, 4096)
	for _, n := range []int{-1, 0, MaxSecret + 1} {
		if _, err := a.Random(n); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: err = %v, want ErrSize", n, err)
		}
	}
	if _, err := a.Store(make([]byte, 32)); !errors.Is(err, ErrZero) {
		t.Errorf("zeros: err = %v, want ErrZero", err)
	}
	var seen []byte
	fail := errors.New("fail")
	if s, err := a.Fill(32, func(b []byte) error { b[0] = 1; seen = b; return fail }); err != fail || s != nil {
		t.Errorf("failing Fill: %v", err)
	}
	if !isZero(seen) {
		t.Error("failing Fill left bytes")
	}
	mustPanic(t, "Fill", func() { _, _ = a.Fill(32, func(b []byte) error { b[1] = 1; panic("user") }) })
	if !isZero(seen) {
		t.Error("panicking Fill left bytes")
	}
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d slots leaked", used)
	}
	for _, size := range []int{-1, 1, 63, 1<<30 + 1} {
		if _, err := Open(size, false); !errors.Is(err, ErrSize) {
			t.Errorf("arena of %d bytes: err = %v, want ErrSize", size, err)
		}
	}
}

func TestArenaFull(t *testing.T) {
	a := newArena(t, 4096)
	var all []*Secret
	for range 64 {
		all = append(all, random(t, a, 64))
	}
	for _, n := range []int{1, 65} {
		if _, err := a.Random(n); !errors.Is(err, ErrArenaFull) {
			t.Errorf("%d bytes in a full arena: err = %v, want ErrArenaFull", n, err)
		}
	}
	// Two free slots that are not neighbours hold no longer secret.
	all[10].Destroy()
	all[12].Destroy()
	if _, err := a.Random(65); !errors.Is(err, ErrArenaFull) {
		t.Errorf("fragmented: err = %v, want ErrArenaFull", err)
	}
	all[11].Destroy()
	random(t, a, 129)
	if used, total := a.Usage(); used != total {
		t.Errorf("usage %d of %d", used, total)
	}
}

// Key material of any number and size leaves room for what must always work, and
// material that is in use is never taken away.
func TestMaterialLeavesAReserve(t *testing.T) {
	a := newArena(t, 0)
	c := NewCache(0)
	t.Cleanup(a.OnFull(c.Shrink))
	_, total := a.Usage()
	inUse, held := 0, make(chan struct{})
	var users sync.WaitGroup
	defer users.Wait()
	defer close(held)
	for { // RSA-2048 keys, each held by a request
		ready := make(chan error, 1)
		n := inUse
		users.Go(func() {
			err := c.Use(cacheID(n), func() (*Secret, error) { return a.Material().Random(1218) }, func([]byte) error {
				ready <- nil
				<-held
				return nil
			})
			if err != nil {
				ready <- err
			}
		})
		if err := <-ready; err != nil {
			if !errors.Is(err, ErrArenaFull) {
				t.Fatal(err)
			}
			break
		}
		inUse++
	}
	used, _ := a.Usage()
	if want := total - total/reserveShare; used > want || used < want-20 {
		t.Errorf("%d keys in use take %d of %d slots, want %d", inUse, used, total, want)
	}
	for range total / reserveShare {
		random(t, a, slotSize)
	}
}

// A cache that was unregistered is not asked any more.
func TestOnFullUnregisters(t *testing.T) {
	a := newArena(t, 4096)
	asked := 0
	first := a.OnFull(func() bool { asked++; return false })
	t.Cleanup(a.OnFull(func() bool { asked += 100; return false }))
	for range 64 {
		random(t, a, 32)
	}
	for _, want := range []int{101, 201} {
		if _, err := a.Random(1); !errors.Is(err, ErrArenaFull) {
			t.Errorf("err = %v, want ErrArenaFull", err)
		}
		if asked != want {
			t.Errorf("asked %d, want %d", asked, want)
		}
		first()
	}
}

// Random allocation against a model: no two secrets overlap, none changes, and
// everything that is freed can be used again.
func TestArenaModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	a := newArena(t, 64<<10)
	type entry struct {
		s    *Secret
		want []byte
	}
	var live []entry
	full := 0
	for range 20_000 {
		if len(live) > 0 && rng.IntN(100) < 45 {
			i := rng.IntN(len(live))
			if got := reveal(t, live[i].s); !bytes.Equal(got, live[i].want) {
				t.Fatal("a secret changed")
			}
			live[i].s.Destroy()
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
			continue
		}
		n := 1 + rng.IntN(64)
		if rng.IntN(10) == 0 {
			n = 1 + rng.IntN(MaxSecret)
		}
		want := make([]byte, n)
		_, _ = rand.Read(want)
		want[0] |= 1
		s, err := a.Fill(n, func(b []byte) error {
			if !isZero(b) {
				t.Fatal("new memory holds old bytes")
			}
			copy(b, want)
			return nil
		})
		if errors.Is(err, ErrArenaFull) {
			full++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		live = append(live, entry{s, want})
	}
	if full == 0 {
		t.Error("the arena was never full: the test is too small")
	}
	for _, e := range live {
		if !bytes.Equal(reveal(t, e.s), e.want) {
			t.Fatal("a secret changed")
		}
		e.s.Destroy()
	}
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d slots leaked", used)
	}
	if !isZero(a.mem.data) {
		t.Error("bytes were left behind")
	}
	for _, w := range a.used {
		if w != 0 {
			t.Fatal("slots are marked that nobody uses")
		}
	}
}

// Sizes are rounded up, and no slot beyond the end is given out.
func TestArenaOddSize(t *testing.T) {
	a := newArena(t, 3*4096-1)
	a2 := newArena(t, 64) // a page
	for _, a := range []*Arena{a, a2} {
		_, total := a.Usage()
		for range total {
			random(t, a, 64)
		}
		if _, err := a.Random(1); !errors.Is(err, ErrArenaFull) {
			t.Errorf("err = %v, want ErrArenaFull", err)
		}
	}
}

func TestClose(t *testing.T) {
	a, err := Open(4096, false)
	if err != nil {
		t.Fatal(err)
	}
	idle, inUse := random(t, a, 32), random(t, a, 32)
	if err := inUse.With(func(b []byte) error {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if isZero(b) { // and the memory must still be there to read
			t.Error("wiped under its user")
		}
		if err := idle.With(func([]byte) error { return nil }); !errors.Is(err, ErrDestroyed) {
			t.Errorf("idle secret after Close: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := inUse.With(func([]byte) error { return nil }); !errors.Is(err, ErrDestroyed) {
		t.Errorf("after Close: %v", err)
	}
	if a.mem.data != nil {
		t.Error("memory was not given back")
	}
	inUse.Destroy()
	if _, err := a.Random(32); !errors.Is(err, ErrArenaClosed) {
		t.Errorf("Random after Close: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	a.Usage()
}

func TestLostSecretIsWiped(t *testing.T) {
	a := newArena(t, 4096)
	func() { random(t, a, 32) }()
	waitFor(t, "collection of a lost secret", func() bool {
		runtime.GC()
		used, _ := a.Usage()
		return used == 0
	})
	if !isZero(a.mem.data) {
		t.Error("freed, not wiped")
	}
}

func TestMemoryCannotBeLocked(t *testing.T) {
	refuse := func([]byte) error { return errors.New("cannot allocate memory") }
	a, err := open(4096, false, refuse)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Locked() {
		t.Error("claims to be locked")
	}
	random(t, a, 32)
	_, err = open(4096, true, refuse)
	if !errors.Is(err, ErrNotLocked) {
		t.Fatalf("err = %v, want ErrNotLocked", err)
	}
	for _, advice := range []string{"cannot allocate memory", "LimitMEMLOCK", "memlock", "IPC_LOCK", "ulimit -l"} {
		if !strings.Contains(err.Error(), advice) {
			t.Errorf("error does not mention %s: %v", advice, err)
		}
	}
}

func TestArenaConcurrent(t *testing.T) {
	a := newArena(t, 64<<10)
	var wg sync.WaitGroup
	var destroyed atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			for i := range 300 {
				fill := byte(g*31+i) | 1
				n := 1 + (g*i)%200
				s, err := a.Fill(n, func(b []byte) error {
					for i := range b {
						b[i] = fill
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				var users sync.WaitGroup
				for range 3 {
					users.Go(func() {
						err := s.With(func(b []byte) error {
							for _, c := range b {
								if c != fill {
									return fmt.Errorf("byte %#x, want %#x", c, fill)
								}
							}
							return nil
						})
						if errors.Is(err, ErrDestroyed) {
							destroyed.Add(1)
						} else if err != nil {
							t.Error(err)
						}
					})
				}
				users.Go(s.Destroy)
				users.Go(s.Destroy)
				users.Wait()
			}
		})
	}
	wg.Wait()
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d slots leaked", used)
	}
	t.Logf("%d uses came too late", destroyed.Load())
}

func BenchmarkWith(b *testing.B) {
	a := newArena(b, 0)
	s := random(b, a, 32)
	for b.Loop() {
		_ = s.With(func([]byte) error { return nil })
	}
}

func BenchmarkStoreDestroy(b *testing.B) {
	a := newArena(b, 0)
	for range 4000 {
		random(b, a, 32)
	}
	in := make([]byte, 32)
	for b.Loop() {
		in[0] = 1
		s, err := a.Store(in)
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}
