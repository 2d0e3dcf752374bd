package keymat

import (
	"bytes"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func cacheID(n int) CacheID {
	return NewCacheID([16]byte{byte(n), byte(n >> 8)}, [16]byte{1}, []byte{byte(n)})
}

// material is what the tests' unwrap functions give for n.
func material(n int) []byte { return bytes.Repeat([]byte{byte(n) | 0x80, byte(n>>8) | 1}, 16) }

func nothing([]byte) error { return nil }

func TestCacheUse(t *testing.T) {
	a := newArena(t, 4096)
	c := NewCache(2)
	unwrapped := map[int]int{}
	use := func(n int) {
		t.Helper()
		err := c.Use(cacheID(n), func() (*Secret, error) {
			unwrapped[n]++
			return a.Store(material(n))
		}, func(b []byte) error {
			if !bytes.Equal(b, material(n)) {
				t.Errorf("material of %d is %x", n, b)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	use(1)
	use(1)
	use(2)
	use(1) // now 2 is the oldest
	use(3)
	use(1)
	use(2)
	if got := fmt.Sprint(unwrapped); got != "map[1:1 2:2 3:1]" {
		t.Errorf("unwrapped %s", got)
	}
	if got, want := c.Stats(), (CacheStats{Entries: 2, Hits: 3, Misses: 4, Evictions: 2}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	if used, _ := a.Usage(); used != 2 {
		t.Errorf("%d secrets live, want 2", used)
	}
	c.Purge()
	if used, _ := a.Usage(); used != 0 || c.Stats().Entries != 0 {
		t.Errorf("after Purge: %d secrets live, %+v", used, c.Stats())
	}
	if !isZero(a.mem.data) {
		t.Error("Purge left bytes")
	}
	use(1)
	if unwrapped[1] != 2 {
		t.Error("used what was purged")
	}
}

func TestCacheIDNamesTheBlob(t *testing.T) {
	id := NewCacheID([16]byte{1}, [16]byte{2}, []byte("blob"))
	for name, other := range map[string]CacheID{
		"key":     NewCacheID([16]byte{2}, [16]byte{2}, []byte("blob")),
		"version": NewCacheID([16]byte{1}, [16]byte{1}, []byte("blob")),
		"blob":    NewCacheID([16]byte{1}, [16]byte{2}, []byte("bloc")),
		"bound":   NewCacheID([16]byte{1}, [16]byte{2}, []byte("blob"), "to this"),
		"split":   NewCacheID([16]byte{1}, [16]byte{2}, []byte("blo"), "b"),
	} {
		if other == id {
			t.Errorf("another %s has the same id", name)
		}
	}
}

func TestCacheErrors(t *testing.T) {
	a := newArena(t, 4096)
	c := NewCache(2)
	fail := errors.New("fail")
	if err := c.Use(cacheID(1), func() (*Secret, error) { return nil, fail }, nothing); err != fail {
		t.Errorf("unwrap's error: %v", err)
	}
	if err := c.Use(cacheID(1), func() (*Secret, error) { return nil, nil }, nothing); !errors.Is(err, ErrDestroyed) {
		t.Errorf("unwrap without a secret: %v", err)
	}
	if c.Stats().Entries != 0 {
		t.Error("an error was kept")
	}
	if err := c.Use(cacheID(1), func() (*Secret, error) { return a.Store(material(1)) }, func([]byte) error { return fail }); err != fail {
		t.Errorf("user's error: %v", err)
	}
	if c.Stats().Entries != 1 {
		t.Error("an error of the user cost the material")
	}
	mustPanic(t, "unwrap", func() {
		_ = c.Use(cacheID(2), func() (*Secret, error) { panic("unwrap") }, nothing)
	})
	mustPanic(t, "user", func() {
		_ = c.Use(cacheID(1), nil, func([]byte) error { panic("user") })
	})
	if n := c.EvictKey(cacheID(1).Key); n != 1 {
		t.Errorf("evicted %d entries, want 1", n)
	}
	if used, _ := a.Usage(); used != 0 || c.Stats().Entries != 0 {
		t.Errorf("%d secrets live, %+v", used, c.Stats())
	}
	if err := c.Use(cacheID(2), func() (*Secret, error) { return a.Store(material(2)) }, nothing); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// Many ask for one key at once: it is unwrapped once, and an error or a panic
// of that one call reaches all who waited.
func TestCacheUnwrapsOnce(t *testing.T) {
	a := newArena(t, 4096)
	for name, result := range map[string]func() (*Secret, error){
		"secret": func() (*Secret, error) { return a.Store(material(1)) },
		"error":  func() (*Secret, error) { return nil, ErrUnwrap },
		"panic":  func() (*Secret, error) { panic("unwrap") },
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache(2)
			defer c.Purge()
			begun, goOn := make(chan struct{}), make(chan struct{})
			var calls, good, bad, panicked atomic.Int32
			use := func() {
				defer func() {
					if recover() != nil {
						panicked.Add(1)
					}
				}()
				err := c.Use(cacheID(1), func() (*Secret, error) {
					if calls.Add(1) == 1 {
						close(begun)
					}
					<-goOn
					return result()
				}, nothing)
				if err == nil {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
			var wg sync.WaitGroup
			wg.Go(use)
			<-begun
			for range 9 {
				wg.Go(use)
			}
			waitFor(t, "nine that wait", func() bool { return c.Stats().Hits == 9 })
			close(goOn)
			wg.Wait()
			want := map[string][3]int32{"secret": {10, 0, 0}, "error": {0, 10, 0}, "panic": {0, 9, 1}}[name]
			if got := [3]int32{good.Load(), bad.Load(), panicked.Load()}; got != want || calls.Load() != 1 {
				t.Errorf("%d calls; good, bad, panicked = %v, want %v", calls.Load(), got, want)
			}
		})
	}
}

func TestCachePurgeDuringUse(t *testing.T) {
	a := newArena(t, 4096)
	c := NewCache(4)
	unwrap := func() (*Secret, error) { return a.Store(material(1)) }
	if err := c.Use(cacheID(1), unwrap, func(b []byte) error {
		c.Purge()
		if !bytes.Equal(b, material(1)) {
			t.Error("wiped under its user")
		}
		// A use that begins now gets material of its own.
		return c.Use(cacheID(1), func() (*Secret, error) { return a.Store(material(2)) }, func(b2 []byte) error {
			if !bytes.Equal(b2, material(2)) {
				t.Error("a new use sees what was purged")
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if used, _ := a.Usage(); used != 1 {
		t.Errorf("%d secrets live, want the second one", used)
	}
	c.Purge()
	if used, _ := a.Usage(); used != 0 || !isZero(a.mem.data) {
		t.Errorf("%d secrets live after Purge", used)
	}
}

// A purge while a key is being unwrapped: those who wait get it, nobody later
// does, and it is wiped after them.
func TestCachePurgeDuringUnwrap(t *testing.T) {
	a := newArena(t, 4096)
	c := NewCache(4)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Use(cacheID(1), func() (*Secret, error) {
			close(begun)
			<-goOn
			return a.Store(material(1))
		}, nothing); err != nil {
			t.Error(err)
		}
	})
	<-begun
	c.Purge()
	close(goOn)
	wg.Wait()
	if used, _ := a.Usage(); used != 0 || c.Stats().Entries != 0 {
		t.Errorf("%d secrets live, %+v", used, c.Stats())
	}
}

func TestCacheMakesRoom(t *testing.T) {
	a := newArena(t, 4096) // 64 keys
	c := NewCache(1000)
	t.Cleanup(a.OnFull(c.Shrink))
	for n := range 200 {
		if err := c.Use(cacheID(n), func() (*Secret, error) { return a.Store(material(n)) }, nothing); err != nil {
			t.Fatalf("key %d: %v", n, err)
		}
	}
	if e := c.Stats().Entries; e < 50 || e > 64 {
		t.Errorf("%d entries left, want most of what there is room for", e)
	}
	// So does a secret that is not the cache's, in one piece.
	whole := random(t, a, 16*slotSize)
	whole.Destroy()
	// When the arena is full of other things, the error comes through.
	c.Purge()
	for range 64 {
		random(t, a, 32)
	}
	if err := c.Use(cacheID(1), func() (*Secret, error) { return a.Store(material(1)) }, nothing); !errors.Is(err, ErrArenaFull) {
		t.Errorf("err = %v, want ErrArenaFull", err)
	}
}

// Uses, evictions and purges at once: every user sees its own material, whole,
// to the end, and nothing stays behind.
func TestCacheConcurrent(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	a := newArena(t, 0)
	c := NewCache(8)
	stop := make(chan struct{})
	var users, disturbers sync.WaitGroup
	for g := range 8 {
		users.Go(func() {
			rng := mathrand.New(mathrand.NewPCG(seed, uint64(g)))
			for range 1500 {
				n := rng.IntN(24)
				err := c.Use(cacheID(n), func() (*Secret, error) {
					if rng.IntN(50) == 0 {
						return nil, ErrUnwrap
					}
					return a.Store(material(n))
				}, func(b []byte) error {
					for range 3 {
						if !bytes.Equal(b, material(n)) {
							return fmt.Errorf("material of %d is %x", n, b)
						}
					}
					return nil
				})
				if err != nil && err != ErrUnwrap {
					t.Error(err)
					return
				}
			}
		})
	}
	disturbers.Go(func() {
		rng := mathrand.New(mathrand.NewPCG(seed, 99))
		for {
			select {
			case <-stop:
				return
			default:
			}
			if rng.IntN(4) == 0 {
				c.Purge()
			} else {
				c.EvictKey(cacheID(rng.IntN(24)).Key)
			}
			if s := c.Stats(); s.Entries > 8 {
				t.Errorf("%d entries, at most 8 allowed", s.Entries)
				return
			}
		}
	})
	users.Wait()
	close(stop)
	disturbers.Wait()
	c.Purge()
	if used, _ := a.Usage(); used != 0 {
		t.Errorf("%d secrets leaked", used)
	}
	if !isZero(a.mem.data) {
		t.Error("bytes were left behind")
	}
	s := c.Stats()
	if s.Misses != s.Evictions || s.Entries != 0 {
		t.Errorf("%+v: every entry that came must have gone", s)
	}
}

func BenchmarkCacheHit(b *testing.B) {
	a := newArena(b, 0)
	c := NewCache(0)
	id := cacheID(1)
	unwrap := func() (*Secret, error) { return a.Store(material(1)) }
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Use(id, unwrap, nothing); err != nil {
			b.Fatal(err)
		}
	}
}
