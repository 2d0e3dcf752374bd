package shamir

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"sync"
)

// Collector collects the shares of one set until there are enough. It accepts only shares
// that match its commitments, so a bad share never spoils the progress of the others. It is
// safe for concurrent use and is formatted as [redacted].
type Collector struct {
	set         SetInfo
	commitments [][sha256.Size]byte // by index-1

	mu  sync.Mutex
	got map[int]Share
}

// NewCollector returns an empty Collector for set. commitments has the commitment of each
// of the set's shares, by index from 1.
func NewCollector(set SetInfo, commitments [][sha256.Size]byte) (*Collector, error) {
	if err := set.validate(); err != nil {
		return nil, err
	}
	if len(commitments) != set.Count {
		return nil, fmt.Errorf("%w: %d commitments for %d shares", ErrParameters, len(commitments), set.Count)
	}
	return &Collector{
		set:         set,
		commitments: append([][sha256.Size]byte(nil), commitments...),
		got:         make(map[int]Share),
	}, nil
}

// Add adds a copy of s, which the caller may then wipe, and returns the number of shares it
// has and needs. A share that is refused changes nothing. The error, a *[ShareError], wraps
// ErrWrongCluster, ErrForeignSet, ErrWrongShare, ErrRepeated or ErrWiped.
func (c *Collector) Add(s Share) (have, need int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(s); err != nil {
		return len(c.got), c.set.Threshold, err
	}
	c.got[s.Index()] = s.clone()
	return len(c.got), c.set.Threshold, nil
}

func (c *Collector) check(s Share) error {
	if err := s.checkSet(c.set); err != nil {
		return err
	}
	// Check this first, so that a forged share is not reported as repeated.
	if !c.dealt(s) {
		return &ShareError{s.Index(), ErrWrongShare}
	}
	if _, ok := c.got[s.Index()]; ok {
		return &ShareError{s.Index(), ErrRepeated}
	}
	return nil
}

// dealt reports whether s, a share of the set, is the one that was dealt with its index.
// The time that it takes does not depend on the share's value.
func (c *Collector) dealt(s Share) bool {
	sum := Commitment(s)
	return subtle.ConstantTimeCompare(sum[:], c.commitments[s.index-1][:]) == 1
}

// Progress returns the number of shares that the Collector has and needs.
func (c *Collector) Progress() (have, need int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got), c.set.Threshold
}

// Secret combines the shares. It returns an error that wraps [ErrTooFew] if there are not
// enough. The caller must wipe the result, and call Reset when the shares are no longer
// needed.
func (c *Collector) Secret() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	shares := make([]Share, 0, len(c.got))
	for _, s := range c.got {
		shares = append(shares, s)
	}
	if len(shares) < c.set.Threshold {
		return nil, fmt.Errorf("%w: have %d, need %d", ErrTooFew, len(shares), c.set.Threshold)
	}
	return Combine(shares)
}

// Reset wipes the shares, so that collecting starts again.
func (c *Collector) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.got {
		s.Wipe()
	}
	clear(c.got)
}

// String returns "[redacted]".
func (*Collector) String() string { return redacted }

// GoString returns "[redacted]".
func (*Collector) GoString() string { return redacted }

// Format writes "[redacted]" for every verb.
func (*Collector) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns "[redacted]".
func (*Collector) LogValue() slog.Value { return slog.StringValue(redacted) }
