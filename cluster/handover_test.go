package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// slowDisks lets a test say how each node's log disk behaves.
type slowDisks struct {
	mu   sync.Mutex
	hung map[string]chan struct{}
	slow map[string]time.Duration
}

func newSlowDisks() *slowDisks {
	return &slowDisks{hung: map[string]chan struct{}{}, slow: map[string]time.Duration{}}
}

func (d *slowDisks) edit(id string, cfg *Config) {
	cfg.Hooks.Store.Before = func(op string) error {
		d.mu.Lock()
		hung, slow := d.hung[id], d.slow[id]
		d.mu.Unlock()
		if hung != nil {
			<-hung
		}
		if op == "store" {
			time.Sleep(slow)
		}
		return nil
	}
}

// hang makes a node's disk hang until the function that is returned is called.
func (d *slowDisks) hang(id string) (release func()) {
	c := make(chan struct{})
	d.mu.Lock()
	d.hung[id] = c
	d.mu.Unlock()
	return sync.OnceFunc(func() {
		d.mu.Lock()
		delete(d.hung, id)
		d.mu.Unlock()
		close(c)
	})
}

func (d *slowDisks) slowBy(id string, by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow[id] = by
}

// proposals keeps proposing on a node, and knows the longest time without an answer.
type proposals struct {
	stop   context.CancelFunc
	done   chan struct{}
	worst  atomic.Int64
	count  atomic.Int64
	failed atomic.Int64
}

func keepProposing(n *testNode) *proposals {
	ctx, cancel := context.WithCancel(context.Background())
	p := &proposals{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		last := time.Now()
		for ctx.Err() == nil {
			if _, err := n.Propose(context.Background(), clustertest.Record()); err != nil {
				p.failed.Add(1)
				continue
			}
			p.count.Add(1)
			p.worst.Store(max(p.worst.Load(), int64(time.Since(last))))
			last = time.Now()
		}
	}()
	return p
}

func (p *proposals) end() time.Duration {
	p.stop()
	<-p.done
	return time.Duration(p.worst.Load())
}

// TestHungDiskOfTheLeader hangs the leader's disk for some seconds. Another node
// leads within two, for all nodes, the one with the hung disk included, and that one
// is there again when its disk is.
func TestHungDiskOfTheLeader(t *testing.T) {
	t.Parallel()
	disks := newSlowDisks()
	c := startCluster(t, 3, disks.edit)
	old := c.leader()
	var ps []*proposals
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
		ps = append(ps, keepProposing(n))
	}
	release := disks.hang(old.id)
	defer release()
	start := time.Now()
	var next *testNode
	clustertest.Eventually(t, time.Minute, "another leader, known everywhere", func() bool {
		for _, n := range c.up() {
			id, _ := n.Leader()
			if id == old.id || id == "" {
				return false
			}
			next = c.nodes[id]
		}
		return !old.IsLeader()
	})
	took := time.Since(start)
	time.Sleep(3 * time.Second)
	if id, _ := next.Leader(); id != next.id {
		t.Errorf("%s leads after %s had taken over", id, next.id)
	}
	release()
	c.caughtUp(t, ps)
	for i, p := range ps {
		worst := p.end()
		t.Logf("%s: %d records, %d refused, longest time without an answer %v", c.ids[i], p.count.Load(), p.failed.Load(), worst.Round(time.Millisecond))
		if worst > hungLimit {
			t.Errorf("%s had no answers for %v, want at most %v", c.ids[i], worst, hungLimit)
		}
	}
	t.Logf("all nodes knew the new leader %v after the disk hung", took.Round(time.Millisecond))
	c.converged()
	mustPropose(t, old, clustertest.Record())
	c.noFaults()
}

// hungLimit is what users are promised, with as much again for a loaded machine.
const hungLimit = 4 * time.Second

// caughtUp waits until the node whose disk hung has caught up, while load goes on.
func (c *testCluster) caughtUp(t *testing.T, ps []*proposals) {
	t.Helper()
	var want int64
	for _, p := range ps {
		want += p.count.Load()
	}
	clustertest.Eventually(t, time.Minute, "the node to catch up", func() bool {
		for _, n := range c.up() {
			if f, _ := n.State().Audit(); int64(f.Size()) < want {
				return false
			}
		}
		return true
	})
}

// TestSlowDiskOfTheLeader makes the leader's disk slow, but not stuck. The leadership
// goes to a node with a quick one, and stays with the quick ones.
func TestSlowDiskOfTheLeader(t *testing.T) {
	t.Parallel()
	disks := newSlowDisks()
	c := startCluster(t, 3, disks.edit)
	old := c.leader()
	var ps []*proposals
	for _, n := range c.up() {
		ps = append(ps, keepProposing(n))
	}
	clustertest.Eventually(t, time.Minute, "load", func() bool { return ps[0].count.Load() > 20 })
	disks.slowBy(old.id, 300*time.Millisecond)
	start := time.Now()
	clustertest.Eventually(t, time.Minute, "another leader", func() bool {
		id, _ := old.Leader()
		return id != "" && id != old.id
	})
	t.Logf("handed over %v after the disk became slow", time.Since(start).Round(time.Millisecond))
	before := ps[0].count.Load()
	time.Sleep(2 * time.Second)
	if n := ps[0].count.Load() - before; n < 20 {
		t.Errorf("%d records in two seconds on %s, with a majority of quick disks", n, c.ids[0])
	}
	if old.IsLeader() {
		t.Error("the node with the slow disk leads again")
	}
	for _, p := range ps {
		p.end()
	}
	disks.slowBy(old.id, 0)
	c.converged()
	c.noFaults()
}

// TestHungDisksEverywhere: when no disk answers nothing is committed, and all goes on
// when they do, under the same leader. There is nobody to hand over to, although those
// that write nothing learn of their disks only when they are asked.
func TestHungDisksEverywhere(t *testing.T) {
	t.Parallel()
	disks := newSlowDisks()
	c := startCluster(t, 3, func(id string, cfg *Config) {
		disks.edit(id, cfg)
		slowElections(id, cfg)
	})
	old := c.leader()
	mustPropose(t, old, clustertest.Record())
	term := old.Status().Term
	releases := map[string]func(){}
	for _, id := range c.ids {
		releases[id] = disks.hang(id)
		defer releases[id]()
	}
	p := keepProposing(old)
	clustertest.Eventually(t, time.Minute, "the leader to look for another", func() bool { return old.Status().Behind > 0 })
	time.Sleep(2 * time.Second) // for what it may do about it
	// The leader's disk answers first. If another did, the leader could hand over to it in
	// between, as it should.
	releases[old.id]()
	clustertest.Eventually(t, time.Minute, "the leader's disk to answer", func() bool { return old.Status().Behind == 0 })
	for _, release := range releases {
		release()
	}
	before := p.count.Load()
	clustertest.Eventually(t, time.Minute, "progress", func() bool { return p.count.Load() > before+5 })
	p.end()
	c.converged()
	for _, n := range c.up() {
		if s := n.Status(); s.Term != term || s.Leader != old.id {
			t.Errorf("%s: %s leads in term %d; before all disks hung %s did in term %d", n.id, s.Leader, s.Term, old.id, term)
		}
	}
	c.noFaults()
}

// TestFailingDiskOfTheLeader breaks the leader's disk in a running cluster.
func TestFailingDiskOfTheLeader(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"error", "hang"} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			breakIt := func() error {
				if name == "hang" {
					<-release
				}
				return syscall.EIO
			}
			bad := make(chan string, 1)
			c := startCluster(t, 3, func(id string, cfg *Config) {
				cfg.Timeouts.Disk = 500 * time.Millisecond
				var broken atomic.Bool
				cfg.Hooks.Store.Before = func(op string) error {
					select {
					case who := <-bad:
						if who == id {
							broken.Store(true)
						} else {
							bad <- who
						}
					default:
					}
					if broken.Load() {
						return breakIt()
					}
					return nil
				}
			})
			t.Cleanup(func() { close(release) })
			old := c.leader()
			f := c.followers()[0]
			mustPropose(t, f, clustertest.Record())
			bad <- old.id
			mustPropose(t, f, clustertest.Record()) // by the next leader
			select {
			case err := <-old.faults:
				if !errors.Is(err, ErrStorage) && !errors.Is(err, ErrDiskStuck) {
					t.Errorf("fault = %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the old leader did not notice")
			}
			if _, err := old.Propose(within(t, 20*time.Second), clustertest.Record()); !errors.Is(err, ErrFenced) {
				t.Errorf("Propose on the broken node = %v", err)
			}
		})
	}
}
