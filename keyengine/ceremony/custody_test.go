package ceremony

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
)

// TestSharesOfAReplacedSet: shares of a set that is no longer the cluster's do not
// count, are wiped, and are not taken again.
func TestSharesOfAReplacedSet(t *testing.T) {
	arena, err := keymat.Open(1<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	old := shamir.SetInfo{Cluster: [16]byte{1}, Set: [16]byte{2}, Threshold: 2, Count: 3}
	shares, err := shamir.Split(rand.Reader, bytes.Repeat([]byte{7}, 32), old)
	if err != nil {
		t.Fatal(err)
	}
	now, u := time.Unix(1e9, 0), newCustody(unsealPurpose, 0, arena)
	add := func(i int, set shamir.SetInfo) error {
		given, err := arena.Store(shares[i].AppendText(make([]byte, 0, shamir.TextSize)))
		if err != nil {
			t.Fatal(err)
		}
		defer given.Destroy()
		_, _, err = u.addLocked(now, "operator", set, shamir.Commitments(shares), given)
		return err
	}
	if err := add(0, old); err != nil {
		t.Fatal(err)
	}
	cluster := func(set shamir.SetInfo) *fsmpb.Cluster {
		return &fsmpb.Cluster{Id: set.Cluster[:], Shares: &fsmpb.ShareSet{Id: set.Set[:]}}
	}
	if got, _ := u.status(now, cluster(old)); len(got) != 1 {
		t.Fatalf("shares that count are %v, want one", got)
	}
	next := old
	next.Set = [16]byte{3}
	if got, _ := u.status(now, cluster(next)); len(got) != 0 {
		t.Errorf("shares of the old set still count: %v", got)
	}
	if n, why := u.expireLocked(now, cluster(next)); n != 1 || why != "the share set was replaced" {
		t.Errorf("%d shares of the old set were wiped for %q, want 1", n, why)
	}
	if err := add(1, next); !errors.Is(err, ErrShare) || !strings.Contains(err.Error(), "another share set") {
		t.Errorf("share of the old set: %v", err)
	}
	if got, _ := u.status(now, cluster(next)); len(got) != 0 {
		t.Errorf("afterwards shares count: %v", got)
	}
}
