package faults

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
)

const (
	// hungBar is how soon another node leads when the leader's disk hangs, and
	// slowBar how soon when it is slow: longer than a second, and not before the
	// writes of the last second were slow. They are what users are promised; a loaded
	// test machine gets as much again.
	hungBar = 2 * time.Second
	slowBar = 4 * time.Second
)

// badDisk is a cluster of processes whose leader gets a bad disk under load.
type badDisk struct {
	t      *testing.T
	c      *harness.Cluster
	h      *harness.History
	w      *harness.Workload
	old    *harness.Node
	others []*harness.Node
	ready  time.Duration // when the disk was still good
}

func startBadDisk(t *testing.T) *badDisk {
	t.Helper()
	harness.NotWithRaces(t)
	if err := harness.CanSlowDisks(); err != nil {
		optional.Skip(t, "disks cannot be made slow here: %v", err)
	}
	seed := harness.NewSeed(t)
	b := &badDisk{t: t, c: harness.NewCluster(t, 3, harness.Options{Processes: true}), h: harness.NewHistory()}
	b.w = harness.StartSteadyWorkload(t, b.c, b.h, seed, 9)
	b.w.AwaitAnswers(100)
	for range 3 { // on a machine that is busy enough tracing alone moves the leadership
		b.old = b.c.Leader()
		good := b.rate()
		b.ready = b.h.Now()
		mend := b.slow(0)
		t.Logf("%d answers a second, %d while the leader's system calls are traced", good, b.rate())
		mend()
		if b.c.Leader() == b.old {
			break
		}
	}
	b.old = b.c.Leader()
	for _, nd := range b.c.Nodes {
		if nd != b.old {
			b.others = append(b.others, nd)
		}
	}
	return b
}

// slow makes the old leader's disk slow.
func (b *badDisk) slow(by time.Duration) (mend func()) {
	b.t.Helper()
	mend, err := b.old.SlowDisk(by)
	if err != nil {
		b.t.Fatal(err)
	}
	return mend
}

// rate is the definite answers in a second, of two.
func (b *badDisk) rate() int64 {
	before := b.w.Answers.Load()
	time.Sleep(2 * time.Second)
	return (b.w.Answers.Load() - before) / 2
}

// handedOver waits until one of the others leads, and says how long after a moment
// both know.
func (b *badDisk) handedOver(from time.Duration) time.Duration {
	b.t.Helper()
	b.c.Eventually("another leader", func(ctx context.Context) error {
		ids := make(map[string]bool)
		for _, nd := range b.others {
			s, err := nd.Status(ctx)
			if err != nil {
				return err
			}
			ids[s.GetLeaderId()] = true
		}
		if len(ids) != 1 || ids[""] || ids[b.old.ID] {
			return fmt.Errorf("they take %v for the leader", ids)
		}
		return nil
	})
	return b.h.Now() - from
}

// usualTime is the median duration of the Encrypts that nodes answered in a time. No
// change of a key is among them: one that takes authority away waits for all nodes.
func usualTime(ops []harness.Op, nodes []*harness.Node, from, to time.Duration) time.Duration {
	var took []time.Duration
	for _, o := range ops {
		if o.Name == "Encrypt" && o.Code == "" && o.Invoked >= from && o.Returned <= to &&
			slices.ContainsFunc(nodes, func(nd *harness.Node) bool { return nd.ID == o.Node }) {
			took = append(took, o.Returned-o.Invoked)
		}
	}
	if len(took) == 0 {
		return math.MaxInt64
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// end finishes the load and checks that nothing was lost.
func (b *badDisk) end() {
	b.t.Helper()
	answersAgain(b.t, b.c, b.h, b.old)
	b.w.Finish()
	b.w.OpensEverywhere(rand.New(rand.NewPCG(1, 0)))
	keysAreThere(b.t, b.c, b.h, b.w)
	harness.Witnessed(b.t, b.c, b.h)
}

// TestHungDisk has the disk of the leader's process hang for ten seconds. Another node
// leads soon, the others hardly stop serving, and the node goes on as a follower.
func TestHungDisk(t *testing.T) {
	b := startBadDisk(t)
	at := b.h.At(b.old)
	key := harness.MadeKey(t, at, "that nobody changes")
	from := b.h.Now()
	mend, err := b.old.HangDisk()
	if err != nil {
		t.Fatal(err)
	}
	took := b.handedOver(from)
	uses := 0
	for b.h.Now() < from+10*time.Second {
		if _, _, o := at.Encrypt(t.Context(), key, []byte("while the disk hangs")); o.Code == "" {
			uses++
		} else if o.Definite() {
			t.Error(o)
		}
	}
	to := b.h.Now()
	if st, err := b.old.Status(t.Context()); err != nil || !strings.Contains(strings.Join(st.GetFaults(), "; "), "the disk does not answer") {
		t.Errorf("the status of a node whose disk hangs: %v, %v", st, err)
	}
	if v := harness.Metric(t, b.old, "conclave_disk_behind_seconds"); v < 5 {
		t.Errorf("conclave_disk_behind_seconds = %v", v)
	}
	if l := b.c.Leader(); l == b.old {
		t.Errorf("%s leads again with its hung disk", l.ID)
	}
	ops := b.h.Ops()
	for _, nd := range b.c.Nodes {
		s := silence(ops, nd, from, to)
		t.Logf("%s answered nothing for %v at most", nd.ID, s.Round(time.Millisecond))
		if s > 2*hungBar {
			t.Errorf("%s answered nothing for %v; the bar is %v", nd.ID, s, hungBar)
		}
	}
	t.Logf("%s's disk hung; another led after %v; it served %d uses of a key in %v", b.old.ID, took.Round(time.Millisecond), uses, (to - from).Round(time.Millisecond))
	if uses < 20 {
		t.Error("a node whose disk hangs must go on serving keys that nobody changes")
	}
	if took > 2*hungBar {
		t.Errorf("another node led after %v; the bar is %v", took, hungBar)
	}
	mend()
	start := b.h.Now()
	answersAgain(t, b.c, b.h, b.old)
	t.Logf("it changed keys again %v after the disk answered", (b.h.Now() - start).Round(time.Millisecond))
	b.end()
}

// TestSlowDisk has each fsync of the leader's process take half a second more. The
// leadership goes to a node that is quicker, and stays with the quick ones; the slow
// one serves.
func TestSlowDisk(t *testing.T) {
	b := startBadDisk(t)
	from := b.h.Now()
	mend := b.slow(500 * time.Millisecond)
	took := b.handedOver(from)
	t.Logf("another node led %v after the disk became slow", took.Round(time.Millisecond))
	if took > 2*slowBar {
		t.Errorf("another node led after %v; the bar is %v", took, slowBar)
	}
	from = b.h.Now()
	time.Sleep(5 * time.Second)
	to := b.h.Now()
	slow := 0
	ops := b.h.Ops()
	for _, o := range ops {
		if o.Node == b.old.ID && o.Definite() && o.Returned > from {
			slow++
		}
	}
	before, during := usualTime(ops, b.others, 0, b.ready), usualTime(ops, b.others, from, to)
	t.Logf("an Encrypt at the others took %v with the slow disk on a follower, %v before; %d answers in %v from the node that has it",
		during.Round(10*time.Microsecond), before.Round(10*time.Microsecond), slow, (to - from).Round(time.Millisecond))
	// Far less than the half second by which each fsync of the slow disk is late.
	if during > 5*before+50*time.Millisecond {
		t.Errorf("an Encrypt at the others took %v with the slow disk on a follower, %v before", during, before)
	}
	if slow == 0 {
		t.Error("the node with the slow disk answered nothing")
	}
	if l := b.c.Leader(); l == b.old {
		t.Errorf("%s leads again with its slow disk", l.ID)
	}
	mend()
	b.end()
}
