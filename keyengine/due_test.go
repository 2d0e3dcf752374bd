package keyengine

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
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
)

// schedule has a key deleted after some time.
func (c *fakeCluster) schedule(id fsm.KeyID, after time.Duration) int64 {
	c.t.Helper()
	k, _ := c.state().Key(id)
	k = proto.CloneOf(k)
	k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, c.clock.Now().Add(after).UnixNano()
	c.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	return k.DeletionTime
}

func deletions(t testing.TB, c *fakeCluster, e *Engine) int {
	return strings.Count(strings.Join(names(records(t, c, e)), " "), "DeleteKey")
}

const week = 7 * 24 * time.Hour

func TestDueKeyIsDeletedOnce(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	makeKey(t, c, a, testKey)
	makeKey(t, c, a, fsm.KeyID{Account: testAccountNumber, Region: "eu-west-1", ID: [16]byte{9}})
	c.schedule(testKey, week)
	da, db, now := scheduleOf(a), scheduleOf(b), time.Now()
	if wait := da.Round(t.Context(), now); wait != schedule.LookMax {
		t.Errorf("waits %v for a key that is due in a week", wait)
	}
	c.advance(week - 20*time.Second)
	now = now.Add(week)
	if wait := da.Round(t.Context(), now); wait < 19*time.Second || wait > 20*time.Second || deletions(t, c, a) != 0 {
		t.Errorf("waits %v for a key that is due in 20 s; %d deletions", wait, deletions(t, c, a))
	}
	c.advance(20 * time.Second)
	now = now.Add(schedule.LookMax)
	db.Round(t.Context(), now)
	c.replica("a").freeze() // a leads, but has not heard of it
	if k, _ := c.state().Key(testKey); k != nil {
		t.Fatal("the key is not deleted")
	}
	da.Round(t.Context(), now)
	c.replica("a").thaw()
	for range 3 {
		now = now.Add(schedule.LookMax)
		da.Round(t.Context(), now)
		db.Round(t.Context(), now)
	}
	if n := deletions(t, c, a); n != 1 {
		t.Errorf("%d deletions", n)
	}
	if ts, _ := c.state().Tombstone(testKey); ts == nil {
		t.Error("no tombstone")
	}
	recs := records(t, c, a)
	r := recs[len(recs)-1]
	arn := "arn:aws:kms:eu-west-1:111122223333:key/01020300-0000-0000-0000-000000000000"
	if r.EventType != "AwsServiceEvent" || r.Identity.InvokedBy != "AWS Internal" || len(r.Resources) != 1 || r.Resources[0].Arn != arn ||
		r.ServiceEventDetails[0].GetText() != arn || r.ReadOnly {
		t.Errorf("record: %v", r)
	}
}

func TestDueOnAStateThatIsBehind(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	k := makeKey(t, c, a, testKey)
	c.schedule(testKey, week)
	c.advance(week)
	c.replica("b").freeze()
	k = proto.CloneOf(k)
	k.State = fsmpb.KeyState_KEY_STATE_DISABLED
	c.change(putKeyChange(k)) // cancelled
	d := scheduleOf(b)
	d.Round(t.Context(), time.Now())
	if k, _ := c.state().Key(testKey); k == nil {
		t.Error("a key whose deletion was cancelled is gone")
	}
	c.replica("b").thaw()
	d.Round(t.Context(), time.Now())
	if k, _ := c.state().Key(testKey); k == nil {
		t.Error("the key is gone")
	}
	if wait := d.Round(t.Context(), time.Now()); wait != schedule.LookMax {
		t.Errorf("it looks again after %v", wait)
	}
}

func TestDueIsNeverEarly(t *testing.T) {
	c, e, _ := openCluster(t)
	makeKey(t, c, e, testKey)
	at := c.schedule(testKey, week)
	ahead := &fakeClock{now: c.clock.Now().Add(2 * week)}
	setClock(e, ahead)
	d, now, r := scheduleOf(e), time.Now(), c.replica("a")
	before := r.proposals
	for range 3600 { // an hour of seconds
		d.Round(t.Context(), now)
		now = now.Add(time.Second)
		c.clock.advance(time.Second)
	}
	if k, _ := c.state().Key(testKey); k == nil {
		t.Fatalf("deleted %v early", time.Duration(at-c.clock.Now().UnixNano()))
	}
	if n := r.proposals - before; n == 0 || n > 80 {
		t.Errorf("a clock that is ahead caused %d tries in an hour", n)
	}
	c.advance(week)
	d.Round(t.Context(), now.Add(schedule.RetryMax))
	if k, _ := c.state().Key(testKey); k != nil {
		t.Error("not deleted in the end")
	}
}

func TestDueUnderClockJumps(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 20 {
		c, e, _ := openCluster(t)
		makeKey(t, c, e, testKey)
		at := c.schedule(testKey, week)
		d, now := scheduleOf(e), time.Now()
		for range 500 {
			jump := time.Duration(rng.Int64N(int64(24 * time.Hour)))
			if rng.IntN(3) == 0 {
				jump = -jump
			}
			c.clock.advance(jump)
			now = now.Add(schedule.LookMax)
			d.Round(t.Context(), now)
			k, _ := c.state().Key(testKey)
			if k == nil {
				if c.state().Time() < at {
					t.Fatalf("deleted at %d, due at %d", c.state().Time(), at)
				}
				break
			}
		}
		if n := deletions(t, c, e); n > 1 {
			t.Fatalf("%d deletions", n)
		}
	}
}

func TestRunDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, e, res := openCluster(t, "a", "b")
		makeKey(t, c, e, testKey)
		c.schedule(testKey, week)
		if err := e.Seal(t.Context(), testOperator); err != nil {
			t.Fatal(err)
		}
		c.advance(week)
		alive := func() bool { k, _ := c.state().Key(testKey); return k != nil }
		lead := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			e.Lead(ctx)
		}
		if lead(time.Minute); !alive() {
			t.Fatal("a sealed leader deletes")
		}
		c.leader = c.replica("b")
		unsealNode(t, e, res.Shares...)
		if lead(time.Minute); !alive() {
			t.Fatal("one who does not lead deletes")
		}
		c.leader = c.replica("a")
		c.replica("a").err = errors.New("no majority")
		if lead(time.Minute); !alive() {
			t.Fatal("deleted without a majority")
		}
		c.replica("a").err = nil
		// While it leads, whatever was in the way goes away.
		tries := 0
		c.replica("a").decide = func() fsm.Verdict {
			if tries++; tries > 3 {
				c.replica("a").decide = nil
			}
			return fsm.Early
		}
		if lead(time.Minute); alive() || tries != 4 {
			t.Errorf("not deleted after %d early tries", tries)
		}
	})
}
