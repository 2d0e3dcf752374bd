package shamir

import (
	"crypto/rand"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"time"
)

// welchBar is the t statistic from which on two classes count as told apart by their
// timing. By chance it is reached once in 150,000 measurements.
const welchBar = 4.5

// TestTiming measures whether the time that shares take tells anything of their values,
// as dudect does (Reparaz, Balasch and Verbauwhede, 2017). Each case has two inputs of
// the same form, and an operation that everybody may see the outcome of:
//
//   - Combine with as many shares as the threshold, all good or one of them forged:
//     nobody can tell which, and the time must not.
//   - Combine with one share more, which disagrees in its first byte or in its last.
//   - A Collector's comparison of a share with its commitment, good or forged, and two
//     forged ones whose commitments differ from the right one early and late.
//
// The operation reads its input from one place, to which either is copied before the
// clock starts. Which one it is a coin decides each time, so that whatever else the
// machine does falls on both alike. Of all measurements the slowest tenth is left out,
// interruptions for the most part, and Welch's t must stay below 4.5. As noise can pass
// that once, and a leak does so always, a case fails when three measurements in a row
// say so.
//
// The control, a comparison that ends with the first difference, must be found out.
//
// CONCLAVE_TIMING_RUNS is how often each input is measured: 10,000 times by default,
// a million times by `make soak`.
func TestTiming(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector has timings of its own")
	}
	runs := 10_000
	if v := os.Getenv("CONCLAVE_TIMING_RUNS"); v != "" {
		var err error
		if runs, err = strconv.Atoi(v); err != nil || runs < 1000 {
			t.Fatalf("CONCLAVE_TIMING_RUNS=%s: want a number from 1000", v)
		}
	}
	set := newSet(3, 5)
	_, shares := deal(t, set)
	collector := newCollector(t, set, shares)
	good := shares[3].cell.v.b
	forged := func(flip ...int) [SecretSize]byte {
		v := good
		for _, i := range flip {
			v[i] ^= byte(1 + mathrand.IntN(255))
		}
		return v
	}
	random := func() (v [SecretSize]byte) {
		_, _ = rand.Read(v[:])
		return v
	}
	// commits is a forged share whose commitment first differs from the right one in its
	// first byte, or later than that.
	right := Commitment(shares[3])
	commits := func(early bool) [SecretSize]byte {
		s := shares[3].clone()
		for {
			s.cell.v.b = random()
			if sum := Commitment(s); (sum[0] != right[0]) == early {
				return s.cell.v.b
			}
		}
	}
	input := shares[3].clone() // what operations read
	threshold := []Share{shares[0], shares[1], input}
	more := []Share{shares[0], shares[1], shares[2], input}
	combine := func(shares []Share, want error) func() {
		return func() {
			if secret, err := Combine(shares); !errors.Is(err, want) {
				panic("Combine returned another error")
			} else if err == nil {
				clear(secret)
			}
		}
	}
	// What comes of a comparison goes where no branch is needed, whose prediction the
	// clock would see.
	var found int
	var dealt bool
	for _, c := range []struct {
		name  string
		a, b  func() [SecretSize]byte
		do    func()
		leaks bool
	}{
		{"control", func() [SecretSize]byte { return forged(0) }, func() [SecretSize]byte { return forged(SecretSize - 1) }, func() {
			for range 8 { // enough for a clock that ticks slowly
				for i, b := range input.cell.v.b {
					if b != good[i] {
						found++
						break
					}
				}
			}
		}, true},
		{"combine good or forged", func() [SecretSize]byte { return good }, random, combine(threshold, nil), false},
		{"combine with one that disagrees", func() [SecretSize]byte { return forged(0) }, func() [SecretSize]byte { return forged(SecretSize - 1) }, combine(more, ErrInconsistent), false},
		{"compare good or forged", func() [SecretSize]byte { return good }, random, func() {
			dealt = collector.dealt(input)
		}, false},
		{"compare with a commitment", func() [SecretSize]byte { return commits(true) }, func() [SecretSize]byte { return commits(false) }, func() {
			dealt = collector.dealt(input)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told []float64
			for range 3 {
				x := welch(runs, c.a(), c.b(), &input.cell.v.b, c.do)
				told = append(told, x)
				if math.Abs(x) < welchBar {
					break
				}
			}
			t.Logf("t = %.2f, %d runs of each", told, runs)
			leaks := math.Abs(told[len(told)-1]) >= welchBar
			if leaks && !c.leaks {
				t.Errorf("the time tells which of two inputs it was: t = %.1f, want less than %v", told, welchBar)
			}
			if !leaks && c.leaks {
				t.Errorf("a comparison that leaks is not found out: t = %.1f", told)
			}
		})
	}
	runtime.KeepAlive(found)
	runtime.KeepAlive(dealt)
}

// welch measures an operation runs times with each of two inputs, and returns Welch's t
// of the durations.
func welch(runs int, a, b [SecretSize]byte, input *[SecretSize]byte, do func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	inputs := [2][SecretSize]byte{a, b}
	coins := make([]byte, 2*runs)
	_, _ = rand.Read(coins)
	all := make([]time.Duration, len(coins))
	for i := range coins {
		if i%100_000 == 0 {
			runtime.GC()
		}
		coins[i] &= 1
		*input = inputs[coins[i]]
		began := time.Now()
		do()
		all[i] = time.Since(began)
	}
	sorted := slices.Sorted(slices.Values(all))
	most := sorted[len(sorted)*9/10]
	var n, mean, squares [2]float64 // Welford
	for i, d := range all {
		if d > most {
			continue
		}
		c := coins[i]
		n[c]++
		delta := float64(d) - mean[c]
		mean[c] += delta / n[c]
		squares[c] += delta * (float64(d) - mean[c])
	}
	spread := squares[0]/(n[0]-1)/n[0] + squares[1]/(n[1]-1)/n[1]
	if spread == 0 {
		return 0
	}
	return (mean[0] - mean[1]) / math.Sqrt(spread)
}
