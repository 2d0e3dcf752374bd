package ceremony

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const redacted = "[redacted]"

const (
	defaultShareTimeout = 15 * time.Minute

	// An operator may have refusedShares shares refused at once, and one more after each
	// refusalEvery. That is enough for typing errors and far too few for guessing.
	refusedShares = 20
	refusalEvery  = 3 * time.Second
	// maxRefused is the maximum number of operators that are tracked.
	maxRefused = 256
)

// custody holds the shares of an unfinished ceremony, in locked memory, and the key pair that
// they are encrypted to. It is formatted as [redacted].
type custody struct {
	// purpose is what shares are encrypted for, so that no share for one kind of ceremony
	// counts in another.
	purpose string
	arena   *keymat.Arena
	timeout time.Duration

	mu sync.Mutex
	// nonce identifies the ceremony that the next share is for. receiver holds its key
	// pair, and is nil until a challenge is requested. Both are replaced after each
	// ceremony.
	nonce    [16]byte
	receiver *keymat.Receiver
	made     time.Time // when receiver was created

	set    [16]byte // set that the shares belong to
	shares map[int]*keymat.Secret
	owner  string    // operator who began the ceremony
	began  time.Time // zero if there is no ceremony

	refused map[string]*rate.Limiter // by operator
}

func newCustody(purpose string, timeout time.Duration, arena *keymat.Arena) *custody {
	if timeout <= 0 {
		timeout = defaultShareTimeout
	}
	c := &custody{purpose: purpose, arena: arena, timeout: timeout, shares: make(map[int]*keymat.Secret), refused: make(map[string]*rate.Limiter)}
	_, _ = rand.Read(c.nonce[:]) // never fails: crypto/rand ends the process instead
	return c
}

// endLocked ends a ceremony, whatever its outcome, and wipes its secrets.
func (c *custody) endLocked() {
	for _, s := range c.shares {
		s.Destroy()
	}
	clear(c.shares)
	c.receiver.Destroy()
	c.receiver, c.owner, c.began = nil, "", time.Time{}
	_, _ = rand.Read(c.nonce[:])
}

// timedOutLocked reports whether a ceremony has lasted too long.
func (c *custody) timedOutLocked(now time.Time) bool {
	age := now.Sub(c.began)
	return age < 0 || age >= c.timeout
}

// staleLocked says that the share set of a ceremony is no longer the cluster's, or nothing.
func (c *custody) staleLocked(cluster *fsmpb.Cluster) string {
	if string(c.set[:]) != string(cluster.GetShares().GetId()) {
		return "the share set was replaced"
	}
	return ""
}

// lapsedLocked says why a ceremony must end: it has timed out, or its share set is no longer
// the cluster's. It returns "" if the ceremony may go on.
func (c *custody) lapsedLocked(now time.Time, cluster *fsmpb.Cluster) (why string) {
	if c.timedOutLocked(now) {
		return "timeout"
	}
	return c.staleLocked(cluster)
}

// expireLocked ends a ceremony that has lapsed. It returns the number of shares that were
// wiped, and why.
func (c *custody) expireLocked(now time.Time, cluster *fsmpb.Cluster) (n int, why string) {
	n = len(c.shares)
	if c.began.IsZero() {
		if age := now.Sub(c.made); c.receiver == nil || age >= 0 && age < c.timeout {
			return 0, ""
		}
	} else if why = c.lapsedLocked(now, cluster); why == "" {
		return 0, ""
	}
	c.endLocked()
	return n, why
}

// receiverLocked returns the public key that shares are encrypted to.
func (c *custody) receiverLocked(now time.Time) ([]byte, error) {
	if c.receiver == nil {
		r, err := keymat.NewReceiver(c.arena)
		if err != nil {
			return nil, err
		}
		c.receiver, c.made = r, now
	}
	return c.receiver.Public(), nil
}

// openLocked decrypts a share.
func (c *custody) openLocked(cluster [16]byte, node string, nonce, sealed []byte) (*keymat.Secret, error) {
	if c.receiver == nil || !slices.Equal(nonce, c.nonce[:]) {
		return nil, kmsapi.Errorf(ErrChallenge, "The share is encrypted for a ceremony that has ended. Ask this node for its challenge again.")
	}
	return c.receiver.Open(shareInfo(c.purpose, cluster, c.nonce, node), sealed)
}

// shareError returns the error that an operator gets for a share that was refused.
func shareError(err error) error {
	switch {
	case errors.Is(err, keymat.ErrReceiver):
		return kmsapi.Errorf(ErrShare, "The share is not encrypted to this node's key for this ceremony.")
	case errors.Is(err, keymat.ErrSize):
		return kmsapi.Errorf(ErrShare, "The share is empty or too long.")
	case errors.Is(err, keymat.ErrZero):
		return kmsapi.Errorf(ErrShare, "%v.", shamir.ErrFormat)
	}
	return err
}

// allowLocked refuses operators whose shares have been refused too often.
func (c *custody) allowLocked(now time.Time, operator string) error {
	if r := c.refused[operator]; r != nil && r.TokensAt(now) < 1 {
		return kmsapi.Errorf(kmsapi.ErrThrottling, "Too many shares of this operator were refused. Wait a minute.")
	}
	return nil
}

// refusedLocked counts a refused share against an operator.
func (c *custody) refusedLocked(now time.Time, operator string) {
	r := c.refused[operator]
	if r == nil {
		maps.DeleteFunc(c.refused, func(_ string, r *rate.Limiter) bool {
			return len(c.refused) >= maxRefused && r.TokensAt(now) >= refusedShares
		})
		for who := range c.refused { // if that is not enough, remove arbitrary ones
			if len(c.refused) < maxRefused {
				break
			}
			delete(c.refused, who)
		}
		r = rate.NewLimiter(rate.Every(refusalEvery), refusedShares)
		c.refused[operator] = r
	}
	r.AllowN(now, 1)
}

// status returns the indexes of the shares submitted so far, and the ceremony in progress,
// if any.
func (c *custody) status(now time.Time, cluster *fsmpb.Cluster) ([]int, *Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.shares) == 0 || c.lapsedLocked(now, cluster) != "" {
		return nil, nil // the ceremony is about to be abandoned
	}
	return slices.Sorted(maps.Keys(c.shares)), &Status{Nonce: c.nonce, Owner: c.owner, Began: c.began, Expires: c.began.Add(c.timeout)}
}

// indexes returns the indexes of the shares as a field of a record.
func (c *custody) indexes(name string) *auditpb.Field {
	var indexes []string
	for _, i := range slices.Sorted(maps.Keys(c.shares)) {
		indexes = append(indexes, strconv.Itoa(i))
	}
	return auditfield.TextList(name, indexes)
}

// fieldsLocked returns the fields that identify the ceremony in a record, if there is one.
func (c *custody) fieldsLocked() []*auditpb.Field {
	if c.began.IsZero() {
		return nil
	}
	return []*auditpb.Field{auditfield.Text("ceremony", hex.EncodeToString(c.nonce[:])), auditfield.Text("owner", c.owner)}
}

// addLocked accepts a share and keeps it. Once there are enough shares, it combines them
// into the unseal key. index is 0 if the text is not a share of this set.
func (c *custody) addLocked(now time.Time, operator string, set shamir.SetInfo, commitments [][32]byte, given *keymat.Secret) (index int, secret *keymat.Secret, err error) {
	var s shamir.Share
	if err := given.With(func(b []byte) (err error) { s, err = shamir.ParseShare(b); return err }); err != nil {
		return 0, nil, kmsapi.Errorf(ErrShare, "%v.", err)
	}
	defer s.Wipe()
	all, err := shamir.NewCollector(set, commitments)
	if err != nil {
		return 0, nil, err
	}
	defer all.Reset()
	for _, kept := range c.shares {
		if err := kept.With(func(b []byte) error { return collect(all, b) }); err != nil {
			return 0, nil, fmt.Errorf("a share kept from before: %w", err)
		}
	}
	have, need, err := all.Add(s)
	if err != nil {
		if s.Set().Cluster != set.Cluster || s.Set() != set {
			// The index belongs to another set.
			if errors.Is(err, shamir.ErrForeignSet) {
				return 0, nil, kmsapi.Errorf(ErrShare, "%v. The set in force is %x; the shares of every set before it were replaced by a rekey.", err, set.Set)
			}
			return 0, nil, kmsapi.Errorf(ErrShare, "%v.", err)
		}
		return s.Index(), nil, kmsapi.Errorf(ErrShare, "%v.", err)
	}
	// Keep the share without the white space that it was entered with.
	kept, err := c.arena.Fill(shamir.TextSize, func(dst []byte) error {
		s.AppendText(dst[:0])
		return nil
	})
	if err != nil {
		return s.Index(), nil, err
	}
	if c.began.IsZero() {
		c.set, c.began, c.owner = set.Set, now, operator
	}
	c.shares[s.Index()] = kept
	if have < need {
		return s.Index(), nil, nil
	}
	key, err := all.Secret()
	if err != nil {
		return s.Index(), nil, err
	}
	secret, err = c.arena.Store(key) // wipes key
	return s.Index(), secret, err
}

// collect parses the text of a share that was accepted before, and adds the share.
func collect(all *shamir.Collector, share []byte) error {
	s, err := shamir.ParseShare(share)
	if err != nil {
		return err
	}
	defer s.Wipe()
	_, _, err = all.Add(s)
	return err
}

// String and the other formatting methods return "[redacted]".
func (*custody) String() string             { return redacted }
func (*custody) GoString() string           { return redacted }
func (*custody) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*custody) LogValue() slog.Value       { return slog.StringValue(redacted) }
