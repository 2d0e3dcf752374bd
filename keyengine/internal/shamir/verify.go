package shamir

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
)

// VerifyShares tries all subsets if there are at most exhaustive, and otherwise every run
// of neighbours and a random sample.
const (
	exhaustive = 200
	sampled    = 100
)

// VerifyShares checks shares before they are handed out, by recombining them and comparing
// the result with secret. shares must be the whole set. With at most 200 subsets of
// threshold size it tries each of them; otherwise each cyclic run of neighbouring indices,
// which uses every share, and 100 random subsets.
func VerifyShares(secret []byte, shares []Share) error {
	if len(secret) != SecretSize {
		return fmt.Errorf("%w: the secret has %d bytes, not %d", ErrParameters, len(secret), SecretSize)
	}
	if len(shares) == 0 {
		return fmt.Errorf("%w: none given", ErrTooFew)
	}
	set := shares[0].set
	if len(shares) != set.Count {
		return fmt.Errorf("%w: %d shares of a set of %d", ErrParameters, len(shares), set.Count)
	}
	try := func(pick []int) error {
		subset := make([]Share, len(pick))
		for i, p := range pick {
			subset[i] = shares[p]
		}
		got, err := Combine(subset)
		if err != nil {
			return fmt.Errorf("subset %v: %w", indices(subset), err)
		}
		defer clear(got)
		if subtle.ConstantTimeCompare(got, secret) != 1 {
			return fmt.Errorf("subset %v: %w", indices(subset), ErrInconsistent)
		}
		return nil
	}

	if binomialAtMost(set.Count, set.Threshold, exhaustive) {
		return subsets(set.Count, set.Threshold, try)
	}
	pick := make([]int, set.Threshold)
	for start := range set.Count {
		for i := range pick {
			pick[i] = (start + i) % set.Count
		}
		if err := try(pick); err != nil {
			return err
		}
	}
	for range sampled {
		if err := try(randomSubset(set.Count, set.Threshold)); err != nil {
			return err
		}
	}
	return nil
}

func indices(shares []Share) []int {
	x := make([]int, len(shares))
	for i, s := range shares {
		x[i] = s.Index()
	}
	return x
}

// subsets calls fn with each k-subset of 0..n-1 in lexical order, until fn fails.
func subsets(n, k int, fn func([]int) error) error {
	pick := make([]int, k)
	for i := range pick {
		pick[i] = i
	}
	for {
		if err := fn(pick); err != nil {
			return err
		}
		i := k - 1
		for i >= 0 && pick[i] == n-k+i {
			i--
		}
		if i < 0 {
			return nil
		}
		pick[i]++
		for j := i + 1; j < k; j++ {
			pick[j] = pick[j-1] + 1
		}
	}
}

// binomialAtMost reports whether n over k is at most limit.
func binomialAtMost(n, k, limit int) bool {
	k = min(k, n-k)
	c := 1
	for i := range k {
		// The division is exact: c*(n-i) is a multiple of i+1. c grows with i up to n/2, so
		// returning early is correct and prevents overflow.
		if c = c * (n - i) / (i + 1); c > limit {
			return false
		}
	}
	return true
}

// randomSubset returns k different numbers below n. n is at most 255.
func randomSubset(n, k int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	for i := range k { // Fisher–Yates shuffle, as far as needed
		j := i + randomBelow(n-i)
		all[i], all[j] = all[j], all[i]
	}
	return all[:k]
}

// randomBelow returns a uniform random number below n, 1 <= n <= 256.
func randomBelow(n int) int {
	limit := 256 - 256%n
	var b [1]byte
	for {
		_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
		if int(b[0]) < limit {
			return int(b[0]) % n
		}
	}
}
