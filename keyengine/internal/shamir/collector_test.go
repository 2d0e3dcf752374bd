package shamir

import (
	"bytes"
	"errors"
	"sync"
	"testing"
)

func newCollector(t *testing.T, set SetInfo, shares []Share) *Collector {
	t.Helper()
	c, err := NewCollector(set, Commitments(shares))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// One ceremony with everything that people get wrong in between.
func TestCollectorKeepsProgress(t *testing.T) {
	set := newSet(3, 5)
	secret, shares := deal(t, set)
	c := newCollector(t, set, shares)

	foreignSet := set
	foreignSet.Set[3] ^= 1
	_, foreign := deal(t, foreignSet)
	_, cluster := deal(t, newSet(3, 5))
	lowered := shares[3].clone()
	lowered.set.Threshold = 1
	wrong := shares[1].clone()
	wrong.cell.v.b[0] ^= 1
	forgedRepeat := shares[0].clone()
	forgedRepeat.cell.v.b[9] ^= 1
	moved := shares[1].clone()
	moved.index = 4
	wiped := shares[4].clone()
	wiped.Wipe()

	for _, step := range []struct {
		name  string
		share Share
		want  error
		have  int
	}{
		{"foreign set first", foreign[0], ErrForeignSet, 0},
		{"first", shares[0], nil, 1},
		{"first again", shares[0], ErrRepeated, 1},
		{"forged share at a taken index", forgedRepeat, ErrWrongShare, 1},
		{"wrong value", wrong, ErrWrongShare, 1},
		{"value moved to another index", moved, ErrWrongShare, 1},
		{"other cluster", cluster[1], ErrWrongCluster, 1},
		{"lowered threshold", lowered, ErrForeignSet, 1},
		{"wiped", wiped, ErrWiped, 1},
		{"zero Share", Share{}, ErrWiped, 1},
		{"second", shares[3], nil, 2},
		{"foreign set", foreign[4], ErrForeignSet, 2},
		{"third", shares[1], nil, 3},
	} {
		if step.have < 3 {
			if _, err := c.Secret(); !errors.Is(err, ErrTooFew) {
				t.Errorf("before %q: Secret: err = %v, want ErrTooFew", step.name, err)
			}
		}
		have, need, err := c.Add(step.share)
		if !errors.Is(err, step.want) || have != step.have || need != 3 {
			t.Fatalf("%s: have %d of %d, err = %v; want %d of 3, %v", step.name, have, need, err, step.have, step.want)
		}
		var se *ShareError
		if err != nil && (!errors.As(err, &se) || se.Index != step.share.Index()) {
			t.Errorf("%s: error %v does not name the share", step.name, err)
		}
	}
	// The collector has copies: callers wipe what they entered.
	for _, s := range shares {
		s.Wipe()
	}
	got, err := c.Secret()
	if err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("Secret: %v", err)
	}
	held := c.got[1].cell.v
	c.Reset()
	if *held != (value{}) {
		t.Error("Reset left a share in memory")
	}
	if have, need := c.Progress(); have != 0 || need != 3 {
		t.Errorf("after Reset: %d of %d", have, need)
	}
	if _, err := c.Secret(); !errors.Is(err, ErrTooFew) {
		t.Errorf("after Reset: err = %v, want ErrTooFew", err)
	}
}

func TestCollectorMoreThanThreshold(t *testing.T) {
	set := newSet(2, 4)
	secret, shares := deal(t, set)
	c := newCollector(t, set, shares)
	for _, s := range shares {
		if _, _, err := c.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Secret(); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("Secret: %v", err)
	}
}

func TestNewCollectorRefuses(t *testing.T) {
	set := newSet(2, 3)
	_, shares := deal(t, set)
	if _, err := NewCollector(set, Commitments(shares)[:2]); !errors.Is(err, ErrParameters) {
		t.Errorf("too few commitments: err = %v", err)
	}
	set.Threshold = 0
	if _, err := NewCollector(set, Commitments(shares)); !errors.Is(err, ErrParameters) {
		t.Errorf("threshold 0: err = %v", err)
	}
}

func TestCollectorConcurrent(t *testing.T) {
	set := newSet(5, 9)
	secret, shares := deal(t, set)
	c := newCollector(t, set, shares)
	var wg sync.WaitGroup
	for _, s := range shares {
		for range 3 {
			wg.Go(func() {
				if _, _, err := c.Add(s); err != nil && !errors.Is(err, ErrRepeated) {
					t.Error(err)
				}
				_, _ = c.Secret()
			})
		}
	}
	wg.Wait()
	if have, _ := c.Progress(); have != 9 {
		t.Errorf("have %d shares, want 9", have)
	}
	if got, err := c.Secret(); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("Secret: %v", err)
	}
}
