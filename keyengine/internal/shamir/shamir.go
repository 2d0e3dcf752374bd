// Package shamir splits a 32-byte secret among custodians, so that any threshold of them
// can recover it and fewer learn nothing about it.
//
// It implements Shamir's scheme, byte by byte, over GF(2^8) with the AES polynomial
// (0x11b). The package guarantees the following:
//
//   - Arithmetic on secrets has neither branches nor table lookups that depend
//     on them, so caches and branch predictors reveal nothing.
//   - A share contains its cluster and share set, its index and a checksum. A
//     share that was mistyped, truncated, or made for something else is refused
//     with an error that says what is wrong.
//   - A [Collector] knows the commitment of every share of its set. It refuses
//     a wrong share when it is entered, and keeps the good ones.
//   - Shares and collectors are formatted as [redacted] for every verb. Only
//     [Share.AppendText] reveals a share.
//
// The checksum detects mistakes, not forgeries: an attacker who can choose a share can also
// compute its checksum. Forged shares do not match the commitments.
package shamir

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// SecretSize is the length in bytes of a secret and of a share's value.
const SecretSize = 32

// MaxShares is the maximum number of shares in a set: one for each non-zero element of the
// field.
const MaxShares = 255

var (
	// ErrParameters is returned for a threshold, count or secret that cannot
	// be split or combined.
	ErrParameters = errors.New("invalid share parameters")
	// ErrTooFew is returned when there are fewer shares than the threshold.
	ErrTooFew = errors.New("too few shares")
	// ErrInconsistent is returned when the shares of a set are not on one polynomial: at
	// least one of them was not dealt.
	ErrInconsistent = errors.New("shares do not belong together")
	// ErrWrongCluster is returned for a share of another cluster.
	ErrWrongCluster = errors.New("share belongs to another cluster")
	// ErrForeignSet is returned for a share of this cluster from another share set, such as
	// one that was replaced by a rekey.
	ErrForeignSet = errors.New("share belongs to another share set")
	// ErrRepeated is returned for a share that was added before.
	ErrRepeated = errors.New("share was given already")
	// ErrWrongShare is returned for a well-formed share that is not the one dealt with its
	// index.
	ErrWrongShare = errors.New("share differs from the one that was issued")
	// ErrWiped is returned for a share that has no value or whose value has been wiped.
	ErrWiped = errors.New("share has been wiped")
)

// ShareError says which share an error is about.
type ShareError struct {
	Index int   // the share's index, from 1
	Err   error // one of this package's errors
}

// Error returns the index of the share and the error.
func (e *ShareError) Error() string { return fmt.Sprintf("share %d: %v", e.Index, e.Err) }

// Unwrap returns the error without the index.
func (e *ShareError) Unwrap() error { return e.Err }

// SetInfo identifies a set of shares. It is not secret.
type SetInfo struct {
	Cluster   [16]byte // the cluster that the secret unseals
	Set       [16]byte // new for each split
	Threshold int      // shares needed, at least 1
	Count     int      // shares dealt, Threshold to MaxShares
}

func (s SetInfo) validate() error {
	if s.Threshold < 1 || s.Count < s.Threshold || s.Count > MaxShares {
		return fmt.Errorf("%w: threshold %d of %d shares; need 1 <= threshold <= shares <= %d",
			ErrParameters, s.Threshold, s.Count, MaxShares)
	}
	return nil
}

// Split splits secret into set.Count shares with indices 1 to set.Count, any set.Threshold
// of which recover it. It reads exactly (Threshold-1)*SecretSize bytes from random, which
// must be a cryptographic source: the coefficients of x, then those of x², and so on. The
// caller must wipe secret and the shares.
func Split(random io.Reader, secret []byte, set SetInfo) ([]Share, error) {
	if err := set.validate(); err != nil {
		return nil, err
	}
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("%w: the secret has %d bytes, not %d", ErrParameters, len(secret), SecretSize)
	}
	if subtle.ConstantTimeCompare(secret, make([]byte, SecretSize)) == 1 {
		return nil, fmt.Errorf("%w: the secret is all zero", ErrParameters)
	}
	coefficients := make([]byte, (set.Threshold-1)*SecretSize)
	defer clear(coefficients)
	if _, err := io.ReadFull(random, coefficients); err != nil {
		return nil, fmt.Errorf("reading randomness: %w", err)
	}

	shares := make([]Share, set.Count)
	for i := range shares {
		s := Share{set: set, index: byte(i + 1), cell: newCell()}
		for k := set.Threshold - 2; k >= 0; k-- { // Horner, highest power first
			for j, c := range coefficients[k*SecretSize : (k+1)*SecretSize] {
				s.cell.v.b[j] = mul(s.cell.v.b[j]^c, s.index)
			}
		}
		subtle.XORBytes(s.cell.v.b[:], s.cell.v.b[:], secret)
		shares[i] = s
	}
	return shares, nil
}

// Combine returns the secret that shares were split from. The shares must be of one set and
// have different indices, and there must be at least as many as its threshold; those beyond
// the threshold must agree with the rest. The caller must wipe the result.
//
// With exactly as many shares as the threshold, Combine cannot detect a forged share and
// returns a wrong secret. Use a [Collector] wherever people enter shares.
func Combine(shares []Share) ([]byte, error) {
	if len(shares) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrTooFew)
	}
	set := shares[0].set
	if err := set.validate(); err != nil {
		return nil, err
	}
	var seen [MaxShares + 1]bool
	for _, s := range shares {
		if err := s.checkSet(set); err != nil {
			return nil, err
		}
		if seen[s.index] {
			return nil, &ShareError{int(s.index), ErrRepeated}
		}
		seen[s.index] = true
	}
	if len(shares) < set.Threshold {
		return nil, fmt.Errorf("%w: have %d, need %d", ErrTooFew, len(shares), set.Threshold)
	}

	base, extra := shares[:set.Threshold], shares[set.Threshold:]
	var at [SecretSize]byte
	defer clear(at[:])
	for _, s := range extra {
		interpolate(&at, s.index, base)
		if subtle.ConstantTimeCompare(at[:], s.cell.v.b[:]) != 1 {
			// With more than one additional share a majority could identify the wrong one.
			// A Collector identifies it in every case.
			return nil, ErrInconsistent
		}
	}
	secret := new([SecretSize]byte)
	interpolate(secret, 0, base)
	return secret[:], nil
}

// interpolate sets out to the value at x of the polynomial of least degree through shares
// (Lagrange). Indices are public, so the order of operations may depend on them, although
// it does not here.
func interpolate(out *[SecretSize]byte, x byte, shares []Share) {
	clear(out[:])
	for i, s := range shares {
		num, den := byte(1), byte(1)
		for j, o := range shares {
			if i != j {
				num = mul(num, x^o.index)
				den = mul(den, s.index^o.index)
			}
		}
		basis := mul(num, inverse(den))
		for k, y := range s.cell.v.b[:] {
			out[k] ^= mul(y, basis)
		}
	}
}
