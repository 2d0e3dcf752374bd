package faults

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestPartitions breaks the network between nodes in one way after the other while
// clients reach all of them. Whatever is answered must fit into one order, those
// who have a majority must go on, and everybody must when the network is whole.
func TestPartitions(t *testing.T) {
	seed := harness.NewSeed(t)
	network := harness.NewNetwork(seed)
	network.Break = true
	c := harness.NewCluster(t, 3, harness.Options{Network: network})
	h := harness.NewHistory()
	c.Finalize()
	w := harness.StartSteadyWorkload(t, c, h, seed, 12)
	w.AwaitAnswers(50)
	hold := harness.Rule{Hold: true}
	ways := []struct {
		name   string
		serves bool // whether a majority finds together
		cut    func(leader, x, y string)
	}{
		{"the leader is cut off", true, func(leader, x, y string) {
			network.SetBoth(leader, x, hold)
			network.SetBoth(leader, y, hold)
		}},
		{"the leader hears nobody", true, func(leader, x, y string) {
			network.Set(x, leader, hold)
			network.Set(y, leader, hold)
		}},
		{"nobody hears the leader", true, func(leader, x, y string) {
			network.Set(leader, x, hold)
			network.Set(leader, y, hold)
		}},
		{"a follower hears nobody", true, func(leader, x, y string) {
			network.Set(leader, x, hold)
			network.Set(y, x, hold)
		}},
		// The rest find together only around y, who need not have the newest log.
		{"the leader and a follower are apart", true, func(leader, x, _ string) { network.SetBoth(leader, x, hold) }},
		{"connections break", true, func(leader, x, y string) {
			breaks := harness.Rule{Reset: 0.02, Jitter: 5 * time.Millisecond}
			network.SetBoth(leader, x, breaks)
			network.SetBoth(leader, y, breaks)
			network.SetBoth(x, y, breaks)
		}},
		{"everybody is alone", false, func(leader, x, y string) {
			network.SetBoth(leader, x, hold)
			network.SetBoth(leader, y, hold)
			network.SetBoth(x, y, hold)
		}},
	}
	random := rand.New(rand.NewPCG(seed, 0))
	if !harness.Full() {
		random.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
		ways = ways[:3]
	}
	for _, p := range ways {
		leader := c.Leader()
		x, y := c.Nodes[(leader.Index+1)%3], c.Nodes[(leader.Index+2)%3]
		start := time.Now()
		p.cut(leader.ID, x.ID, y.ID)
		if p.serves {
			w.AwaitAnswers(100)
			// Long enough for elections, where there is something to elect about.
			time.Sleep(time.Until(start.Add(1500 * time.Millisecond)))
		} else {
			// Time for the old leader to notice and for what was under way to end.
			time.Sleep(2 * time.Second)
			before := w.Answers.Load()
			time.Sleep(2 * time.Second)
			if n := w.Answers.Load() - before; n > 0 {
				t.Errorf("%s: %d answers without a majority", p.name, n)
			}
		}
		broken := time.Since(start)
		network.Heal()
		start = time.Now()
		w.AwaitAnswers(100)
		c.WaitReady()
		t.Logf("%s: for %v, all was well %v after it", p.name, broken.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
	w.Finish()
	w.OpensEverywhere(random)
	harness.Witnessed(t, c, h)
}

// TestPausedLeader stops the leader's process, with requests in its sockets, for
// so long that another leads, and takes the use of a key away there. When the old
// leader wakes up it must not answer by what it knew.
func TestPausedLeader(t *testing.T) {
	seed := harness.NewSeed(t)
	const rounds, want = 2, 40
	c := harness.NewCluster(t, 3, harness.Options{Processes: true})
	h := harness.NewHistory()
	ctx := t.Context()
	var sharp int
	asleep := 3 * time.Second
	// A slow machine has fewer uses in a round, and takes longer to elect a leader.
	for round := 0; round < rounds || sharp < want && round < 5*rounds; round++ {
		leader := c.Leader()
		others := []*harness.Node{c.Nodes[(leader.Index+1)%3], c.Nodes[(leader.Index+2)%3]}
		at := h.At(leader)
		key, o := at.CreateKey(ctx, "")
		if o.Code != "" {
			t.Fatal(o)
		}
		blob, _, o := at.Encrypt(ctx, key, []byte("plaintext"))
		if o.Code != "" {
			t.Fatal(o)
		}
		changes := []switched{{to: authority{true, true}}}

		var mu sync.Mutex
		var uses []use
		stop := make(chan struct{})
		var users sync.WaitGroup
		for i := range 40 {
			random := rand.New(rand.NewPCG(seed, uint64(100*round+i)))
			users.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(random.IntN(100)) * time.Millisecond):
					}
					u := useOnce(t, at, random.IntN(4), i%8 == 0, key, blob)
					mu.Lock()
					uses = append(uses, u)
					mu.Unlock()
				}
			})
		}
		paused := make(chan error)
		go func() { paused <- leader.Pause(asleep) }()
		s := switched{to: authority{false, true}, begun: h.Now()}
		for start := time.Now(); ; {
			o := h.At(others[0]).DisableKey(ctx, key)
			if o.Code == "" {
				break
			}
			if o.Definite() || time.Since(start) > harness.Patience {
				t.Fatal(o)
			}
		}
		s.returned = h.Now()
		changes = append(changes, s)
		select {
		case err := <-paused:
			if err != nil {
				t.Fatal(err)
			}
			asleep *= 2
			t.Logf("round %d is void: the leader was awake before the others had another; the next one lasts %v", round, asleep)
		default:
			// More that the sleeping leader will find in its sockets.
			time.Sleep(300 * time.Millisecond)
			if err := <-paused; err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(500 * time.Millisecond)
		close(stop)
		users.Wait()
		n, faults := judge(changes, uses)
		for _, err := range faults {
			t.Error(err)
		}
		sharp += n[leader.ID]
		c.WaitReady()
	}
	t.Logf("%d uses of the old leaders could only be answered in one way", sharp)
	if sharp < want {
		t.Error("void: too few to mean anything")
	}
	harness.Witnessed(t, c, h)
}
