package faketime

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// imports has a node import, until the answer is no longer that the cluster cannot
// say.
func (w *world) imports(n *worldNode, in *kmsapi.ImportKeyMaterialInput) (err error) {
	w.t.Helper()
	w.poll("an import", func() bool {
		_, err = ask[kmsapi.ImportKeyMaterialOutput](w, n, "ImportKeyMaterial", in)
		return !errors.Is(err, kmsapi.ErrUnavailable)
	})
	return err
}

// importsOf counts the imports into a key that succeeded.
func (w *world) importsOf(key string) int {
	w.t.Helper()
	return len(slices.DeleteFunc(w.records(w.leader(), key), func(l logged) bool {
		return l.Name != "ImportKeyMaterial" || l.Error != ""
	}))
}

// TestImportToken takes tokens through what can happen in their 24 hours.
func TestImportToken(t *testing.T) {
	restart := func(w *world, nodes ...*worldNode) {
		w.stop(nodes...)
		w.start(nodes...)
		w.unseal(nodes...)
	}
	for _, c := range []struct {
		name string
		// during happens between giving and using the token.
		during func(w *world, in *kmsapi.ImportKeyMaterialInput)
		want   *kmsapi.Error // nil: it works
	}{
		{"nothing", func(*world, *kmsapi.ImportKeyMaterialInput) {}, nil},
		{"leader killed", func(w *world, _ *kmsapi.ImportKeyMaterialInput) {
			l := w.leader()
			l.kill()
			w.leader()
			w.start(l)
			w.unseal(l)
		}, nil},
		{"all restarted", func(w *world, _ *kmsapi.ImportKeyMaterialInput) { restart(w, w.nodes...) }, nil},
		{"almost a day", func(w *world, _ *kmsapi.ImportKeyMaterialInput) {
			w.leap(w.now().Add(timeDay - 5*time.Second))
		}, nil},
		{"a day", func(w *world, _ *kmsapi.ImportKeyMaterialInput) { w.leap(w.now().Add(timeDay + time.Second)) },
			kmsapi.ErrExpiredImportToken},
		{"a day of which the cluster was down", func(w *world, _ *kmsapi.ImportKeyMaterialInput) {
			w.stop(w.nodes...)
			w.suspend(timeDay + 5*time.Second) // cluster time may be 2 s behind
			w.start(w.nodes...)
			w.unseal(w.nodes...)
			w.caughtUp()
		}, kmsapi.ErrExpiredImportToken},
		{"a day, on nodes whose clocks are behind", func(w *world, _ *kmsapi.ImportKeyMaterialInput) {
			l := w.leader()
			w.leap(w.now().Add(timeDay + time.Second))
			for _, n := range w.others(l)[:1] {
				n.turn(-2 * time.Hour)
			}
		}, kmsapi.ErrExpiredImportToken},
		{"used", func(w *world, in *kmsapi.ImportKeyMaterialInput) {
			if err := w.imports(w.nodes[2], in); err != nil {
				w.t.Error(err)
			}
		}, kmsapi.ErrInvalidImportToken},
		{"used, and all restarted", func(w *world, in *kmsapi.ImportKeyMaterialInput) {
			if err := w.imports(w.nodes[2], in); err != nil {
				w.t.Error(err)
			}
			restart(w, w.nodes...)
		}, kmsapi.ErrInvalidImportToken},
		{"another key's", func(w *world, in *kmsapi.ImportKeyMaterialInput) {
			*in.KeyId = w.newKey(w.nodes[0], "EXTERNAL")
		}, kmsapi.ErrInvalidImportToken},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inTime(t, func(w *world) {
				key := w.newKey(w.nodes[0], "EXTERNAL")
				in, _ := w.forImport(w.nodes[0], key, 1)
				c.during(w, in)
				first := true
				for _, n := range w.nodes {
					err := w.imports(n, in)
					want := error(kmsapi.ErrInvalidImportToken) // it works once
					if c.want != nil {
						want = c.want
					} else if first {
						want = nil
					}
					if first = false; !errors.Is(err, want) {
						t.Errorf("import on %s: %v, want %v", n.id, err, want)
					}
				}
				want := 1
				if c.want != nil && !errors.Is(c.want, kmsapi.ErrInvalidImportToken) || *in.KeyId != key {
					want = 0
				}
				if n := w.importsOf(key); n != want {
					t.Errorf("%d imports are in the audit log, want %d", n, want)
				}
				if err := w.converged(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// raceImports has all nodes import at the same time with one token.
func (w *world) raceImports() error {
	w.t.Helper()
	key := w.newKey(w.nodes[0], "EXTERNAL")
	in, _ := w.forImport(w.nodes[0], key, 1)
	errs := make([]error, len(w.nodes))
	var wg sync.WaitGroup
	for i, n := range w.nodes {
		wg.Go(func() { errs[i] = w.imports(n, in) })
	}
	wg.Wait()
	worked := 0
	for i, err := range errs {
		if err == nil {
			worked++
		} else if !errors.Is(err, kmsapi.ErrInvalidImportToken) {
			return fmt.Errorf("import on %s: %w", w.nodes[i].id, err)
		}
	}
	if logged := w.importsOf(key); worked != 1 || logged != 1 {
		return fmt.Errorf("one token worked %d times, and %d times by the audit log", worked, logged)
	}
	return w.converged()
}

func TestRacingImports(t *testing.T) {
	t.Parallel()
	inTime(t, func(w *world) {
		for range 3 {
			if err := w.raceImports(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTokenOfAWrongClock: a token lives for a day and a minute at most by cluster
// time, also when the node that gave it has a clock that is ahead.
func TestTokenOfAWrongClock(t *testing.T) {
	t.Parallel()
	inTime(t, func(w *world) {
		n := w.others(w.leader())[0]
		n.turn(25 * time.Hour)
		key := w.newKey(w.leader(), "EXTERNAL")
		given := w.now()
		in, p := w.forImport(n, key, 1)
		if life := p.ParametersValidTo.Sub(given); life > timeDay+2*time.Minute {
			t.Errorf("the token is said to live %v", life)
		}
		n.turn(-25 * time.Hour)
		w.leap(given.Add(timeDay + 2*time.Minute))
		for _, n := range w.nodes {
			if err := w.imports(n, in); !errors.Is(err, kmsapi.ErrExpiredImportToken) {
				t.Errorf("import on %s: %v", n.id, err)
			}
		}
	})
}

// TestCancelAtTheLastMoment: of a cancellation and the deletion at the same time
// exactly one happens, and the caller is told which.
func TestCancelAtTheLastMoment(t *testing.T) {
	for _, before := range []time.Duration{20 * time.Millisecond, 0, -20 * time.Millisecond} {
		t.Run(before.String(), func(t *testing.T) {
			t.Parallel()
			inTime(t, func(w *world) {
				key := w.newKey(w.nodes[0], "AWS_KMS")
				due := *mustAsk[kmsapi.ScheduleKeyDeletionOutput](w, w.nodes[0], "ScheduleKeyDeletion",
					&kmsapi.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: new(int32(7))}).DeletionDate
				w.leap(due.Add(-5 * time.Second))
				follower := w.others(w.leader())[0]
				w.sleepUntil(due.Add(-before))
				var err error
				w.poll("the cancellation", func() bool {
					_, err = ask[kmsapi.CancelKeyDeletionOutput](w, follower, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &key})
					return !errors.Is(err, kmsapi.ErrUnavailable)
				})
				time.Sleep(promptly)
				if err := w.converged(); err != nil {
					t.Error(err)
				}
				names := map[string]int{}
				for _, l := range w.records(w.leader(), key) {
					if l.Error == "" {
						names[l.Name]++
					}
				}
				e := &estate{world: w}
				for _, n := range w.nodes {
					gone := e.stored(n.cluster.State(), key) == nil
					switch {
					case err == nil && (gone || names["CancelKeyDeletion"] != 1 || names["DeleteKey"] != 0),
						errors.Is(err, kmsapi.ErrNotFound) && (!gone || names["CancelKeyDeletion"] != 0 || names["DeleteKey"] != 1),
						err != nil && !errors.Is(err, kmsapi.ErrNotFound):
						t.Errorf("the cancellation said %v; on %s the key is gone: %v; records %v", err, n.id, gone, names)
					}
				}
				if before != 0 && (err == nil) != (before > 0) {
					t.Errorf("cancelled %v before the deletion: %v", before, err)
				}
			})
		})
	}
}

// TestMissedRotations: of the dates that pass while the cluster is down one rotation
// is made up for, once an operator has confirmed what time it is.
func TestMissedRotations(t *testing.T) {
	for _, c := range []struct {
		name string
		down time.Duration // from a day before the first date on
		next time.Duration // that is to be the next, from the first or the confirmation on
	}{
		{"one", 10 * timeDay, period},
		{"three", 300 * timeDay, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inTime(t, func(w *world) {
				e := &estate{world: w, rotated: w.newKey(w.nodes[0], "AWS_KMS")}
				mustAsk[struct{}](w, w.nodes[0], "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &e.rotated, RotationPeriodInDays: new(int32(90))})
				e.due = e.nextRotation(w.nodes[0])
				e.blobs = [][]byte{e.encrypt(w.nodes[0], e.rotated)}
				w.leap(e.due.Add(-timeDay))
				w.stop(w.nodes...)
				w.suspend(c.down)
				w.start(w.nodes...)
				w.unseal(w.nodes...)
				time.Sleep(2 * promptly)
				rotations := func() int { return len(e.events(e.rotated, "RotateKey")) }
				if n := rotations(); n != 0 {
					t.Errorf("%d rotations before anybody confirmed the time", n)
				}
				w.caughtUp()
				confirmed := w.now()
				time.Sleep(promptly + time.Minute)
				if n := rotations(); n != 1 {
					t.Errorf("%d rotations, want one", n)
				}
				next, want := e.nextRotation(w.nodes[1]), e.due.Add(c.next)
				if c.next == 0 {
					want = confirmed.Add(period)
				}
				if d := next.Sub(want); d < 0 || d > promptly+time.Minute {
					t.Errorf("the next rotation is at %v, want %v", next, want)
				}
				e.blobs = append(e.blobs, e.encrypt(w.nodes[1], e.rotated))
				for _, n := range w.nodes {
					for i, b := range e.blobs {
						if err := e.opens(n, b); err != nil {
							t.Errorf("what version %d encrypted, on %s: %v", i+1, n.id, err)
						}
					}
				}
				if err := w.converged(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
