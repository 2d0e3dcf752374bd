package schedule_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
)

const week = 7 * 24 * time.Hour

// newCluster returns an initialised cluster with a key, enginetest.KeyID, and its nodes, which
// are unsealed.
func newCluster(t *testing.T, nodes int) (*enginetest.Cluster, []*enginetest.Node) {
	t.Helper()
	c := enginetest.NewCluster(t, nodes)
	list := []*enginetest.Node{c.NewNode("n1")}
	res := list[0].Initialise(enginetest.InitParams(3, 2))
	if nodes == 2 {
		list = append(list, c.NewNode("n2"))
	}
	for _, n := range list {
		n.Unseal(res.Shares...)
	}
	list[0].PutKey(enginetest.KeyID)
	return c, list
}

func newSchedule(n *enginetest.Node) *schedule.Schedule {
	return schedule.New(schedule.Config{Services: n.Services, Replica: n.Replica, Events: n.Events})
}

// scheduleDeletion schedules the deletion of the key in a week, and returns when it is due.
func scheduleDeletion(c *enginetest.Cluster) int64 {
	k, _ := c.State().Key(enginetest.KeyID)
	k = proto.CloneOf(k)
	k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, c.Clock.Now().Add(week).UnixNano()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	return k.DeletionTime
}

func keyExists(c *enginetest.Cluster) bool {
	k, _ := c.State().Key(enginetest.KeyID)
	return k != nil
}

// deletions returns the number of records of deletions.
func deletions(n *enginetest.Node) int {
	return strings.Count(strings.Join(enginetest.EventNames(n.Records()), " "), "DeleteKey")
}

// A key is deleted when its deletion is due, not earlier, and only once, although two nodes
// take it for due.
func TestDueKeyIsDeletedOnce(t *testing.T) {
	t.Parallel()
	c, nodes := newCluster(t, 2)
	first := nodes[0]
	first.PutKey(fsm.KeyID{Account: enginetest.AccountNumber, Region: enginetest.Region, ID: [16]byte{9}}) // is not deleted
	scheduleDeletion(c)
	s1, s2, now := newSchedule(first), newSchedule(nodes[1]), time.Now()
	if wait := s1.Round(t.Context(), now); wait != schedule.LookMax {
		t.Errorf("with a key that is due in a week, Round returned %v, want %v", wait, schedule.LookMax)
	}
	c.Advance(week - 20*time.Second)
	now = now.Add(week)
	if wait := s1.Round(t.Context(), now); wait < 19*time.Second || wait > 20*time.Second || deletions(first) != 0 {
		t.Errorf("with a key that is due in 20s, Round returned %v and made %d deletions, want about 20s and none", wait, deletions(first))
	}
	c.Advance(20 * time.Second)
	now = now.Add(schedule.LookMax)
	s2.Round(t.Context(), now)
	c.Replica("n1").FallBehind() // n1 leads, but has not applied the deletion
	if keyExists(c) {
		t.Fatal("the key was not deleted when it was due")
	}
	s1.Round(t.Context(), now)
	c.Replica("n1").CatchUp()
	for range 3 {
		now = now.Add(schedule.LookMax)
		s1.Round(t.Context(), now)
		s2.Round(t.Context(), now)
	}
	if n := deletions(first); n != 1 {
		t.Errorf("got %d records of a deletion, want 1", n)
	}
	if ts, _ := c.State().Tombstone(enginetest.KeyID); ts == nil {
		t.Error("the deleted key has no tombstone")
	}
	recs := first.Records()
	r := recs[len(recs)-1]
	arn := "arn:aws:kms:eu-west-1:111122223333:key/01020300-0000-0000-0000-000000000000"
	if r.EventType != "AwsServiceEvent" || r.Identity.InvokedBy != "AWS Internal" || len(r.Resources) != 1 || r.Resources[0].Arn != arn ||
		r.ServiceEventDetails[0].GetText() != arn || r.ReadOnly {
		t.Errorf("unexpected record of the deletion: %v", r)
	}
}

// A node whose state is behind does not delete a key whose deletion was cancelled.
func TestDueOnAStateThatIsBehind(t *testing.T) {
	t.Parallel()
	c, nodes := newCluster(t, 2)
	k, _ := c.State().Key(enginetest.KeyID)
	scheduleDeletion(c)
	c.Advance(week)
	c.Replica("n2").FallBehind()
	k = proto.CloneOf(k)
	k.State = fsmpb.KeyState_KEY_STATE_DISABLED
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}) // cancels the deletion
	s := newSchedule(nodes[1])
	s.Round(t.Context(), time.Now())
	if !keyExists(c) {
		t.Error("a node that is behind deleted a key whose deletion was cancelled")
	}
	c.Replica("n2").CatchUp()
	s.Round(t.Context(), time.Now())
	if !keyExists(c) {
		t.Error("the key was deleted although its deletion was cancelled")
	}
	if wait := s.Round(t.Context(), time.Now()); wait != schedule.LookMax {
		t.Errorf("with nothing due, Round returned %v, want %v", wait, schedule.LookMax)
	}
}

// A node whose clock is ahead deletes nothing early, and retries seldom.
func TestDueIsNeverEarly(t *testing.T) {
	t.Parallel()
	c, nodes := newCluster(t, 1)
	at := scheduleDeletion(c)
	nodes[0].Services.Clock = enginetest.NewClock(c.Clock.Now().Add(2 * week))
	s, now, r := newSchedule(nodes[0]), time.Now(), c.Replica("n1")
	before := r.Proposals.Load()
	for range 3600 { // an hour, second by second
		s.Round(t.Context(), now)
		now = now.Add(time.Second)
		c.Clock.Advance(time.Second)
	}
	if !keyExists(c) {
		t.Fatalf("the key was deleted %v early", time.Duration(at-c.Clock.Now().UnixNano()))
	}
	if n := r.Proposals.Load() - before; n == 0 || n > 80 {
		t.Errorf("a clock that is ahead caused %d proposals in an hour, want 1 to 80", n)
	}
	c.Advance(week)
	s.Round(t.Context(), now.Add(schedule.RetryMax))
	if keyExists(c) {
		t.Error("the key was not deleted when it was due")
	}
}

// Random jumps of the clock cause no deletion that is early by cluster time.
func TestDueUnderClockJumps(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 20 {
		c, nodes := newCluster(t, 1)
		at := scheduleDeletion(c)
		s, now := newSchedule(nodes[0]), time.Now()
		for range 500 {
			jump := time.Duration(rng.Int64N(int64(24 * time.Hour)))
			if rng.IntN(3) == 0 {
				jump = -jump
			}
			c.Clock.Advance(jump)
			now = now.Add(schedule.LookMax)
			s.Round(t.Context(), now)
			if !keyExists(c) {
				if c.State().Time() < at {
					t.Fatalf("the key was deleted at %d, want not before %d", c.State().Time(), at)
				}
				break
			}
		}
		if n := deletions(nodes[0]); n > 1 {
			t.Fatalf("got %d records of a deletion, want at most 1", n)
		}
	}
}

// Run deletes nothing while the node is sealed, does not lead, or reaches no majority, and
// retries a deletion that is early.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := enginetest.NewCluster(t, 2)
		n := c.NewNode("n1")
		res := n.Initialise(enginetest.InitParams(3, 2))
		n.Unseal(res.Shares...)
		n.PutKey(enginetest.KeyID)
		scheduleDeletion(c)
		if err := n.Seal(t.Context(), enginetest.Operator); err != nil {
			t.Fatal(err)
		}
		c.Advance(week)
		run := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			newSchedule(n).Run(ctx)
		}
		if run(time.Minute); !keyExists(c) {
			t.Fatal("a sealed leader deleted the key")
		}
		c.Leader = c.Replica("n2")
		n.Unseal(res.Shares...)
		if run(time.Minute); !keyExists(c) {
			t.Fatal("a node that does not lead deleted the key")
		}
		r := c.Replica("n1")
		c.Leader = r
		r.Err = errors.New("no majority")
		if run(time.Minute); !keyExists(c) {
			t.Fatal("the key was deleted without a majority")
		}
		r.Err = nil
		tries := 0
		r.Decide = func() fsm.Verdict {
			if tries++; tries > 3 {
				r.Decide = nil
			}
			return fsm.Early
		}
		if run(time.Minute); keyExists(c) || tries != 4 {
			t.Errorf("after %d proposals that were early, the key exists: %v; want 4 and a deleted key", tries, keyExists(c))
		}
	})
}
