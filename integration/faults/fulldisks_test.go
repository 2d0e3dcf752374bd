package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
)

// Of small disks the marks lie at 96, 64, 48 and 32 MiB: as much as a node needs to
// end what it has begun, and something between one and the next.
const (
	smallDisk  = 512 << 20
	lowRoom    = 80 << 20
	scarceRoom = 56 << 20
	yieldRoom  = 40 << 20
	fullRoom   = 20 << 20
)

// smallDisks is a cluster of processes with small disks.
type smallDisks struct {
	t *testing.T
	c *harness.Cluster
	h *harness.History
}

// fill leaves so little room on nodes' disks, and waits until they say so.
func (s *smallDisks) fill(free int64, level float64, name string, nodes ...*harness.Node) {
	s.t.Helper()
	start := s.h.Now()
	for _, nd := range nodes {
		if err := nd.FillDisk(free); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, nd := range nodes {
		s.says(nd, level, name)
	}
	s.t.Logf("%d MiB left on %d nodes: %s within %v", free>>20, len(nodes), name, (s.h.Now() - start).Round(time.Millisecond))
}

// empty makes room again, and waits until the nodes serve as ever.
func (s *smallDisks) empty(nodes ...*harness.Node) {
	s.t.Helper()
	start := s.h.Now()
	for _, nd := range nodes {
		if err := nd.EmptyDisk(); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, nd := range nodes {
		s.says(nd, 0, "ample")
		answersAgain(s.t, s.c, s.h, nd)
	}
	s.t.Logf("%d nodes served %v after there was room again", len(nodes), (s.h.Now() - start).Round(time.Millisecond))
	s.c.NoFaults()
}

// says waits until a node says, wherever an operator looks, how much room its disk has.
func (s *smallDisks) says(nd *harness.Node, level float64, name string) {
	s.t.Helper()
	s.c.Eventually(fmt.Sprintf("%s to say that its room is %s", nd.ID, name), func(ctx context.Context) error {
		if v := harness.Metric(s.t, nd, "conclave_disk_space"); v != level {
			return fmt.Errorf("conclave_disk_space = %v", v)
		}
		code, disk := readyz(s.t, nd)
		if disk != name || level == 4 && code != http.StatusServiceUnavailable {
			return fmt.Errorf("/readyz: %d, disk %q", code, disk)
		}
		st, err := nd.Status(ctx)
		if err != nil {
			return err
		}
		faults := strings.Join(st.GetFaults(), "; ")
		if (level > 0) != strings.Contains(faults, "free disk space is "+name) {
			return fmt.Errorf("the status names the faults %q", faults)
		}
		return nil
	})
}

// readyz is what a balancer and whoever watches see.
func readyz(t *testing.T, nd *harness.Node) (code int, disk string) {
	t.Helper()
	resp, err := harness.OpsClient.Get("http://" + nd.Ops + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct{ Disk string }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body.Disk
}

// grows tells whether a node makes a key, and fails the test if the answer is neither
// yes nor that there is too little room.
func (s *smallDisks) grows(nd *harness.Node) bool {
	s.t.Helper()
	o := harness.UntilDefinite(func() (o harness.Op) {
		_, o = s.h.At(nd).CreateKey(s.t.Context(), "growth")
		return o
	})
	if o.Code != "" && o.Code != "LimitExceededException" {
		s.t.Error(o)
	}
	return o.Code == ""
}

// uses checks that nodes use a key and change it.
func (s *smallDisks) uses(key string, nodes ...*harness.Node) {
	s.t.Helper()
	for _, nd := range nodes {
		at := s.h.At(nd)
		var blob []byte
		used := harness.UntilDefinite(func() (o harness.Op) {
			blob, _, o = at.Encrypt(s.t.Context(), key, []byte("plaintext"))
			return o
		})
		changed := harness.UntilDefinite(func() harness.Op { return at.UpdateKeyDescription(s.t.Context(), key, "changed") })
		if used.Code != "" || changed.Code != "" {
			s.t.Errorf("%v; %v", used, changed)
		}
		harness.Opens(s.t, at, blob, []byte("plaintext"))
	}
}

// otherLeads waits until a node that is none of these leads.
func (s *smallDisks) otherLeads(than ...*harness.Node) {
	s.t.Helper()
	start := s.h.Now()
	s.c.Eventually("another leader", func(context.Context) error {
		if l := s.c.Leader(); slices.Contains(than, l) {
			return fmt.Errorf("%s leads", l.ID)
		}
		return nil
	})
	s.t.Logf("a node with room led within %v", (s.h.Now() - start).Round(time.Millisecond))
}

// TestFullDisk fills the leader's disk step by step, to the last byte; where the tests
// run at length, the disks of two nodes then. They warn, refuse what grows, leave the
// leadership to others and stop serving, in that order, and are there again when there
// is room. None ends, and nothing is lost.
func TestFullDisk(t *testing.T) {
	harness.NotWithRaces(t)
	if err := harness.CanMakeDisks(); err != nil {
		optional.Skip(t, "nodes cannot have small disks here: %v", err)
	}
	seed := harness.NewSeed(t)
	c := harness.NewCluster(t, 3, harness.Options{Processes: true, Disk: smallDisk})
	s := &smallDisks{t: t, c: c, h: harness.NewHistory()}
	w := harness.StartSteadyWorkload(t, c, s.h, seed, 3)
	w.AwaitAnswers(100)
	victim := c.Leader()
	others := []*harness.Node{c.Nodes[(victim.Index+1)%3], c.Nodes[(victim.Index+2)%3]}
	key := harness.MadeKey(t, s.h.At(victim), "of the test")
	s.says(victim, 0, "ample")

	s.fill(lowRoom, 1, "low", victim)
	if !s.grows(victim) {
		t.Error("a key was refused although low room is but a warning")
	}
	s.fill(scarceRoom, 2, "scarce", victim)
	if s.grows(victim) {
		t.Error("a key was made although room is scarce")
	}
	if !s.grows(others[0]) || !s.grows(others[1]) {
		t.Error("one node's disk kept the others from making keys")
	}
	s.uses(key, c.Nodes...)
	if l := c.Leader(); l != victim {
		t.Logf("%s leads before the disk of %s made it: nothing is handed over below", l.ID, victim.ID)
	}
	s.fill(yieldRoom, 3, "yield", victim)
	s.otherLeads(victim)
	s.uses(key, c.Nodes...)
	s.fill(fullRoom, 4, "full", victim)
	s.fill(0, 4, "full", victim) // as what runs wild on a disk does
	if _, _, o := s.h.At(victim).Encrypt(t.Context(), key, []byte("plaintext")); o.Code != "ServiceUnavailable" {
		t.Errorf("a node without room answered %v", o)
	}
	s.uses(key, others...)
	w.AwaitAnswers(300)
	c.NoFaults()
	s.empty(victim)

	if harness.Full() {
		s.fillTwo(key, w)
	}
	w.AwaitAnswers(100)
	w.Finish()
	w.OpensEverywhere(rand.New(rand.NewPCG(seed, 0)))
	keysAreThere(t, c, s.h, w)
	harness.Witnessed(t, c, s.h)
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	sameAudit(t, c, true)
}

// fillTwo fills the disks of two nodes of three: what a minority's disks cannot do, a
// majority's can.
func (s *smallDisks) fillTwo(key string, w *harness.Workload) {
	t, c := s.t, s.c
	t.Helper()
	full := c.Leader()
	two := []*harness.Node{full, c.Nodes[(full.Index+1)%3]}
	third := c.Nodes[(full.Index+2)%3]
	s.fill(scarceRoom, 2, "scarce", two...)
	c.Eventually("growth to be refused everywhere", func(context.Context) error {
		if s.grows(third) {
			return errors.New("a key was made")
		}
		return nil
	})
	s.uses(key, c.Nodes...)
	s.fill(yieldRoom, 3, "yield", two...)
	s.otherLeads(two...)
	s.uses(key, c.Nodes...)
	s.fill(0, 4, "full", two...) // nothing between
	time.Sleep(3 * time.Second)  // for what was under way
	before := w.Answers.Load()
	time.Sleep(2 * time.Second)
	if n := w.Answers.Load() - before; n > 0 {
		t.Errorf("%d answers, with room on the disk of one node of three", n)
	}
	c.NoFaults()
	s.empty(two...)
	c.Eventually("growth on "+third.ID, func(context.Context) error {
		if !s.grows(third) {
			return errors.New("it is refused still")
		}
		return nil
	})
}
