package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

const (
	// soakUsers make the load.
	soakUsers = 16
	// soakRotations bounds the rotations of one key, below the quota.
	soakRotations = 20
	// judgedRun is the shortest run that says something of memory, goroutines and
	// descriptors; judgedFiles of files, for they grow until the Raft log has been cut
	// back for the first time, after 18,432 entries.
	judgedRun, judgedFiles = 3 * time.Minute, 30 * time.Minute
	// millionRun is the shortest run that has to make a million calls.
	millionRun = 75 * time.Minute
)

// TestSoak has three processes serve at half of what they can do, while they are
// killed, stopped, paused and cut off, and keys are rotated. All answers of the whole
// run must fit into one order, and what the nodes use must stay where it is: memory,
// goroutines and descriptors, and the files that are not the audit log. `make soak` runs
// it for 75 minutes; CONCLAVE_SOAK says how long, and by default it runs just long
// enough to show that it works.
//
// The clients make and remove the same things again and again, so that the state stays
// as large as it is. From time to time they pause: then every node is measured, and the
// piece of the audit log since the last pause is checked. The slope of each series is
// that of the least-squares line through the last two thirds of its samples, the first
// third being the time in which caches and heaps find their size. In that time the line
// may rise by a tenth of the mean, or by 32 MiB, 20 goroutines or 10 descriptors.
//
// Node a is never restarted, so that its process is as old as the run.
func TestSoak(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	lasts := 8 * time.Second
	if v := os.Getenv("CONCLAVE_SOAK"); v != "" {
		var err error
		if lasts, err = time.ParseDuration(v); err != nil || lasts < time.Second {
			t.Fatalf("CONCLAVE_SOAK=%s: want a duration of 1s or more", v)
		}
	}
	seed := harness.NewSeed(t)
	network := harness.NewNetwork(seed)
	network.Break = true
	c := harness.NewCluster(t, 3, harness.Options{Processes: true, Network: network})
	c.Finalize()
	s := &soak{t: t, c: c, network: network, random: rand.New(rand.NewPCG(seed, 0)), witness: harness.NewWitness(), hurry: 1}
	if lasts < judgedRun {
		s.hurry = 10
	}
	s.run(lasts)
}

// soak is a run of TestSoak.
type soak struct {
	t       *testing.T
	c       *harness.Cluster
	network *harness.Network
	random  *rand.Rand
	witness *harness.Witness
	users   []*soakUser
	series  []*series
	begun   time.Time
	hurry   time.Duration // divides the lengths of faults

	calls, definite, faults int
}

func (s *soak) run(lasts time.Duration) {
	t, c := s.t, s.c
	h := harness.NewHistory()
	for i := range soakUsers {
		key, o := h.At(c.Nodes[0]).CreateKey(t.Context(), "soak")
		if o.Code != "" {
			t.Fatal(o)
		}
		s.users = append(s.users, &soakUser{s: s, id: i, key: key, random: rand.New(rand.NewPCG(s.random.Uint64(), 0))})
	}
	s.begun = time.Now()

	// How much they can do, with nothing in the way.
	l := s.load(h, 0)
	time.Sleep(max(lasts/10, time.Second))
	can := float64(l.definite.Load()) / time.Since(l.begun).Seconds()
	s.pause(h, l)
	t.Logf("the nodes can do %.0f calls a second, and are given half of that", can)

	window := min(lasts/10, 2*time.Minute)
	for time.Since(s.begun) < lasts && !t.Failed() {
		h := harness.NewHistory()
		l := s.load(h, can/2)
		for first := true; first || time.Since(l.begun) < window; first = false {
			s.fault()
		}
		s.rotate(h)
		s.pause(h, l)
	}
	took := time.Since(s.begun)
	s.opens()
	rate := float64(s.definite) / took.Seconds()
	if err := s.witness.Unexplained(); err != nil {
		t.Error(err)
	}
	t.Logf("%d calls in %v, %d of them answered for good (%.0f a second), %d of which named their record, %d faults, %d records, %d of them of calls whose answer was lost",
		s.calls, took.Round(time.Second), s.definite, rate, s.witness.Receipts, s.faults, s.witness.Next, s.witness.Lost)
	if rate < can/20 {
		t.Errorf("void: %.0f answers a second, of %.0f that were asked for", rate, can/2)
	}
	if lasts >= millionRun && s.calls < 1_000_000 {
		t.Errorf("void: %d calls in %v, want a million", s.calls, took)
	}
	s.judge(lasts)
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	sameAudit(t, c, true)
}

// soakLoad is what all users do until they are told to pause.
type soakLoad struct {
	begun    time.Time
	definite atomic.Int64 // answers
	stop     chan struct{}
	users    sync.WaitGroup
}

// load has the users make so many calls a second in all, or as many as they can if
// rate is 0.
func (s *soak) load(h *harness.History, rate float64) *soakLoad {
	l := &soakLoad{begun: time.Now(), stop: make(chan struct{})}
	for _, u := range s.users {
		l.users.Go(func() { u.work(l, h, rate/soakUsers) })
	}
	return l
}

// soakUser is a client. Beside its own key it uses those of others.
type soakUser struct {
	s             *soak
	id, n         int
	key           string
	rotations     int
	aliases, tags []string // that there may be
	kept          []harness.Sealed
	random        *rand.Rand
}

func (u *soakUser) work(l *soakLoad, h *harness.History, rate float64) {
	due := time.Now()
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(time.Until(due)):
		}
		if rate > 0 {
			// Who is late does not make up for it.
			due = due.Add(time.Duration(float64(time.Second) / rate))
			if now := time.Now(); due.Before(now) {
				due = now
			}
		}
		if o := u.call(h.At(u.s.c.Nodes[u.random.IntN(len(u.s.c.Nodes))])); o.Definite() {
			l.definite.Add(1)
		} else {
			time.Sleep(time.Duration(5+u.random.IntN(20)) * time.Millisecond)
		}
	}
}

// call makes one call. What it makes another removes, as long as it may be there.
func (u *soakUser) call(at harness.Calls) (o harness.Op) {
	ctx := context.Background()
	u.n++
	name := fmt.Sprintf("%d-%d", u.id, u.n)
	key := u.key
	if u.random.IntN(4) == 0 {
		key = u.s.users[u.random.IntN(soakUsers)].key
	}
	switch u.random.IntN(16) {
	case 0, 1:
		if len(u.aliases) < 2 {
			u.aliases = append(u.aliases, "alias/"+name)
			return at.CreateAlias(ctx, "alias/"+name, u.key)
		}
		if o = at.DeleteAlias(ctx, u.aliases[0]); o.Definite() {
			u.aliases = u.aliases[1:]
		}
	case 2, 3:
		if len(u.tags) < 2 {
			u.tags = append(u.tags, name)
			return at.Tag(ctx, u.key, name, "v")
		}
		if o = at.Untag(ctx, u.key, u.tags[0]); o.Definite() {
			u.tags = u.tags[1:]
		}
	case 4:
		o = at.UpdateKeyDescription(ctx, key, name)
	case 5:
		o = at.DisableKey(ctx, key)
	case 6, 7, 8:
		o = at.EnableKey(ctx, key)
	case 9:
		_, o = at.DescribeKey(ctx, key)
	case 10, 11:
		if len(u.kept) > 0 {
			x := u.kept[u.random.IntN(len(u.kept))]
			var plaintext []byte
			if plaintext, o = at.Decrypt(ctx, x.Blob); o.Code == "" && !bytes.Equal(plaintext, x.Plaintext) {
				u.s.t.Errorf("%s on %s gave another plaintext", o.RequestID, o.Node)
			}
			return o
		}
		fallthrough
	default:
		x := harness.Sealed{Key: key, Plaintext: []byte(name)}
		if x.Blob, _, o = at.Encrypt(ctx, key, x.Plaintext); o.Code == "" {
			if len(u.kept) < 10 {
				u.kept = append(u.kept, x)
			} else {
				u.kept[u.random.IntN(len(u.kept))] = x
			}
		}
	}
	return o
}

// fault does something to a node, and waits until all nodes serve again.
func (s *soak) fault() {
	c, random := s.c, s.random
	// A while without faults, in which whatever the last one left ends.
	time.Sleep(time.Duration(500+random.IntN(4500)) * time.Millisecond / s.hurry)
	victim := c.Nodes[random.IntN(len(c.Nodes))]
	mortal := c.Nodes[1+random.IntN(len(c.Nodes)-1)]
	hold := time.Duration(500+random.IntN(5500)) * time.Millisecond / s.hurry
	switch s.faults++; random.IntN(6) {
	case 0:
		mortal.Kill()
		time.Sleep(hold)
		mortal.Start()
		mortal.Unseal()
	case 1:
		mortal.Stop()
		mortal.Start()
		mortal.Unseal()
	case 2:
		if err := victim.Pause(hold); err != nil {
			s.t.Error(err)
		}
	case 3:
		s.network.Set(harness.Anyone, victim.ID, harness.Rule{Hold: true})
		time.Sleep(hold)
	case 4:
		s.network.SetBoth(harness.Anyone, victim.ID, harness.Rule{Hold: true})
		time.Sleep(hold)
	case 5:
		s.network.SetBoth(harness.Anyone, victim.ID, harness.Rule{Reset: 0.02, Delay: time.Millisecond, Jitter: 20 * time.Millisecond})
		time.Sleep(hold)
	}
	s.network.Heal()
	c.WaitReady()
	if c.NoFaults(); s.t.Failed() {
		s.t.FailNow()
	}
}

// rotate gives new material to some keys.
func (s *soak) rotate(h *harness.History) {
	for range 4 {
		u := s.users[s.random.IntN(soakUsers)]
		if u.rotations++; u.rotations <= soakRotations {
			// A disabled one stays as it is.
			o := harness.UntilDefinite(func() harness.Op {
				return h.At(s.c.Nodes[s.random.IntN(len(s.c.Nodes))]).RotateKeyOnDemand(s.t.Context(), u.key)
			})
			if o.Code != "" && o.Code != "DisabledException" {
				s.t.Error(o)
			}
		}
	}
}

// pause ends the load, checks what clients were told since the last pause, and
// measures the nodes.
func (s *soak) pause(h *harness.History, l *soakLoad) {
	close(l.stop)
	l.users.Wait()
	ops := h.Ops()
	if err := s.witness.Check(s.c.Nodes[0].ReadLog(s.witness.Next), ops); err != nil {
		s.t.Errorf("the audit log is no witness of what clients saw:\n%v", err)
	}
	s.calls += len(ops)
	for _, o := range ops {
		if o.Definite() {
			s.definite++
		}
	}
	s.c.Converged()
	s.measure()
}

// opens checks that what clients have opens at every node, under keys that were
// rotated since.
func (s *soak) opens() {
	h := harness.NewHistory()
	for _, u := range s.users {
		for _, x := range u.kept {
			for _, nd := range s.c.Nodes {
				at := h.At(nd)
				if o := harness.UntilDefinite(func() harness.Op { return at.EnableKey(s.t.Context(), x.Key) }); o.Code != "" {
					s.t.Error(o)
				}
				harness.Opens(s.t, at, x.Blob, x.Plaintext)
			}
		}
	}
	if err := s.witness.Check(s.c.Nodes[0].ReadLog(s.witness.Next), h.Ops()); err != nil {
		s.t.Errorf("the audit log is no witness of what clients saw:\n%v", err)
	}
}

// series is what a node used of something.
type series struct {
	node, what string
	// A rise of less than either, in the time that is judged, is none.
	rise, ofMean float64
	// shortest is the shortest run that says something of it.
	shortest time.Duration
	at       []float64 // seconds
	values   []float64
}

// measure takes a sample of everything.
func (s *soak) measure() {
	s.t.Helper()
	now := time.Since(s.begun).Seconds()
	i := 0
	sample := func(nd *harness.Node, what string, rise float64, shortest time.Duration, v float64) {
		if i == len(s.series) {
			s.series = append(s.series, &series{node: nd.ID, what: what, rise: rise, ofMean: 0.1, shortest: shortest})
		}
		s.series[i].at, s.series[i].values = append(s.series[i].at, now), append(s.series[i].values, v)
		i++
	}
	for _, nd := range s.c.Nodes {
		if nd.Index == 0 {
			// The others' is that of processes of all ages.
			// Files that are mapped, as the Raft log is, are not memory that is used up.
			sample(nd, "bytes of memory", 32<<20, judgedRun, anonymous(s.t, nd.PID()))
		}
		sample(nd, "goroutines", 20, judgedRun, harness.Metric(s.t, nd, "go_goroutines"))
		sample(nd, "descriptors", 10, judgedRun, harness.Metric(s.t, nd, "process_open_fds"))
		size, err := treeSize(filepath.Join(nd.Data, "groups", "0", "raft"))
		if err != nil {
			s.t.Fatal(err)
		}
		sample(nd, "bytes of Raft log and snapshots", 32<<20, judgedFiles, size)
	}
}

// anonymous is how many bytes of a process's resident memory stand in no file.
func anonymous(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RssAnon:\s*(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no RssAnon in\n%s", b)
	}
	kilobytes, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return 1024 * kilobytes
}

// treeSize is how many bytes the files under a directory take. Files that go meanwhile
// do not count.
func treeSize(dir string) (sum float64, err error) {
	return sum, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += float64(info.Size())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// judge looks for what grows.
func (s *soak) judge(lasts time.Duration) {
	s.t.Helper()
	for _, x := range s.series {
		drift, mean := x.drift()
		s.t.Logf("node %s: %.0f %s, and %+.0f in the last two thirds, by %d samples", x.node, mean, x.what, drift, len(x.values))
		if lasts >= x.shortest && x.grows() {
			s.t.Errorf("node %s: %s grow: %.0f", x.node, x.what, x.values)
		}
	}
}

// drift is how far the line that fits best rises over the last two thirds of the
// samples, and their mean.
func (x *series) drift() (drift, mean float64) {
	at, values := x.at[len(x.at)/3:], x.values[len(x.at)/3:]
	n := float64(len(at))
	var meanAt float64
	for i := range at {
		meanAt += at[i] / n
		mean += values[i] / n
	}
	var above, below float64
	for i := range at {
		above += (at[i] - meanAt) * (values[i] - mean)
		below += (at[i] - meanAt) * (at[i] - meanAt)
	}
	if below == 0 {
		return 0, mean
	}
	return above / below * (at[len(at)-1] - at[0]), mean
}

// grows tells whether the drift is more than chance makes it.
func (x *series) grows() bool {
	drift, mean := x.drift()
	return drift > max(x.rise, x.ofMean*mean)
}

// TestSoakFindsLeaks has the judgement find what leaks, and only that.
func TestSoakFindsLeaks(t *testing.T) {
	random := rand.New(rand.NewPCG(harness.NewSeed(t), 0))
	for range 100 {
		flat := &series{rise: 20, ofMean: 0.1}
		leak := &series{rise: 20, ofMean: 0.1}
		filling := &series{rise: 20, ofMean: 0.1}
		for i := range 40 {
			noise := 10 * random.Float64()
			for _, x := range []*series{flat, leak, filling} {
				x.at = append(x.at, float64(i))
			}
			flat.values = append(flat.values, 100+noise)
			leak.values = append(leak.values, 100+float64(2*i)+noise)
			filling.values = append(filling.values, min(100, float64(10*i))+noise)
		}
		if flat.grows() || filling.grows() || !leak.grows() {
			t.Errorf("flat grows: %v, filling: %v, leak: %v", flat.grows(), filling.grows(), leak.grows())
		}
	}
}
