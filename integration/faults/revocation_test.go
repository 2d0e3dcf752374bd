package faults

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
)

// authority is what one key's users may do.
type authority struct{ enabled, allowed bool }

// explains tells whether an answer is the right one under a.
func (a authority) explains(u use) bool {
	switch {
	case !a.allowed:
		return u.Code == "AccessDeniedException"
	case u.Name == "DescribeKey":
		return u.Code == "" && (u.state == "Enabled") == a.enabled
	case !a.enabled:
		return u.Code == "DisabledException"
	}
	return u.Code == ""
}

// switched is a change of authority: in force at the latest when it returned, and
// not before it began.
type switched struct {
	to              authority
	begun, returned time.Duration
}

// use is a use of the key, with the state that DescribeKey showed.
type use struct {
	harness.Op
	state string
}

// judge holds every use against what was in force while it was under way. Uses
// during which only one authority can have been in force are sharp: only they can
// show a fault.
func judge(changes []switched, uses []use) (sharp map[string]int, faults []error) {
	sharp = make(map[string]int)
	for _, u := range uses {
		if !u.Definite() {
			continue
		}
		possible, explained := 0, false
		var last authority
		for i, c := range changes {
			if c.begun > u.Returned {
				break
			}
			if i+1 < len(changes) && changes[i+1].returned < u.Invoked {
				continue
			}
			possible, last = possible+1, c.to
			explained = explained || c.to.explains(u)
		}
		if possible == 1 {
			sharp[u.Node]++
		}
		if !explained {
			faults = append(faults, fmt.Errorf("%s on %s, begun at %v and answered at %v: %q %s; the last authority in force was %+v",
				u.Name, u.Node, u.Invoked, u.Returned, u.Code, u.state, last))
		}
	}
	return sharp, faults
}

// TestJudge makes sure that the race test can fail.
func TestJudge(t *testing.T) {
	open, disabled, denied := authority{true, true}, authority{false, true}, authority{true, false}
	changes := []switched{{open, 0, 0}, {disabled, 10, 12}, {open, 20, 22}, {denied, 30, 32}}
	for _, c := range []struct {
		name, code, state string
		from, to          time.Duration
		ok                bool
	}{
		{"Encrypt", "", "", 1, 5, true},
		{"Encrypt", "", "", 9, 15, true},
		{"Encrypt", "", "", 11, 15, true},
		{"Encrypt", "", "", 13, 15, false},
		{"Encrypt", "", "", 13, 21, true},
		{"Encrypt", "DisabledException", "", 13, 15, true},
		{"Encrypt", "DisabledException", "", 23, 25, false},
		{"Encrypt", "DisabledException", "", 1, 9, false},
		{"Encrypt", "AccessDeniedException", "", 33, 35, true},
		{"Encrypt", "AccessDeniedException", "", 23, 29, false},
		{"Encrypt", "AccessDeniedException", "", 23, 30, true},
		{"DescribeKey", "", "Enabled", 13, 15, false},
		{"DescribeKey", "", "Disabled", 13, 15, true},
		{"DescribeKey", "", "Disabled", 23, 25, false},
		{"Decrypt", "ServiceUnavailable", "", 13, 15, true},
	} {
		u := use{harness.Op{Name: c.name, Code: c.code, Invoked: c.from, Returned: c.to}, c.state}
		if _, faults := judge(changes, []use{u}); (faults == nil) != c.ok {
			t.Errorf("%+v: %v", c, faults)
		}
	}
}

// TestRevocationRace switches a key off and on, and its users' authority, at
// random nodes, while readers use it at all of them, one of which learns of
// everything 300 ms late. What was taken away must be gone everywhere once the
// call returned, and what was given must be there.
func TestRevocationRace(t *testing.T) {
	seed := harness.NewSeed(t)
	toggles, budget := 100, 60*time.Second
	if harness.Full() {
		toggles, budget = 500, 5*time.Minute
	}
	network := harness.NewNetwork(seed)
	network.Break = true
	c := harness.NewCluster(t, 3, harness.Options{Network: network, Configure: func(n *harness.Node, cfg *node.Config) {
		harness.LongElections(n, cfg) // so that the late node stays a follower
		cfg.Timeouts.Resubmit = 3 * time.Second
	}})
	leader := c.Leader()
	late := c.Nodes[(leader.Index+1)%3]
	t.Logf("%s leads, %s is late", leader.ID, late.ID)
	h := harness.NewHistory()
	ctx := t.Context()
	key, o := h.At(leader).CreateKey(ctx, "raced for")
	blob, _, o2 := h.At(leader).Encrypt(ctx, key, []byte("plaintext"))
	if o.Code != "" || o2.Code != "" {
		t.Fatal(o, o2)
	}
	c.Converged()
	for _, nd := range c.Nodes {
		if nd != late {
			network.Set(nd.ID, late.ID, harness.Rule{Delay: 300 * time.Millisecond, Jitter: 20 * time.Millisecond})
		}
	}

	var mu sync.Mutex
	var uses []use
	var done, doneLate atomic.Int64
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for i := range 16 {
		// Each at one node: all of them would soon wait for the late one.
		at, random := c.Nodes[i%3], rand.New(rand.NewPCG(seed, uint64(100+i)))
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(2+random.IntN(8)) * time.Millisecond):
				}
				u := useOnce(t, h.At(at), random.IntN(4), i < 3, key, blob)
				mu.Lock()
				uses = append(uses, u)
				mu.Unlock()
				if done.Add(1); at == late {
					doneLate.Add(1)
				}
			}
		})
	}

	random := rand.New(rand.NewPCG(seed, 0))
	now := authority{true, true}
	changes := []switched{{to: now}}
	started := time.Now()
	unknown := 0
	for len(changes) <= toggles && time.Since(started) < budget {
		next := now
		if random.IntN(2) == 0 {
			next.enabled = !now.enabled
		} else {
			next.allowed = !now.allowed
		}
		s := switched{to: next, begun: h.Now()}
		for {
			at := c.Nodes[random.IntN(3)]
			if at == late && random.IntN(15) > 0 {
				at = leader // what the late node changes takes long; a few times will do
			}
			o := toggle(ctx, h.At(at), key, now, next)
			if o.Code == "" {
				break
			}
			if o.Definite() {
				t.Fatalf("%s on %s: %s", o.Name, o.Node, o.Code)
			}
			unknown++ // again: to do it twice changes nothing
		}
		s.returned = h.Now()
		changes, now = append(changes, s), next

		// Let some uses begin and end under what is in force now, at times some of
		// the late node's too: its five readers have one each that began before.
		count, enough, limit := &done, int64(12), 150*time.Millisecond
		if len(changes)%50 == 0 {
			count, enough, limit = &doneLate, 10, 20*time.Second
		}
		enough += count.Load()
		for until := time.Now().Add(limit); count.Load() < enough && time.Now().Before(until); {
			time.Sleep(2 * time.Millisecond)
		}
	}
	took := time.Since(started)
	close(stop)
	readers.Wait()
	network.Heal()

	sharp, faults := judge(changes, uses)
	for i, err := range faults {
		if i == 20 {
			break
		}
		t.Error(err)
	}
	dark := 0
	outcomes := make(map[string]int)
	for _, u := range uses {
		outcomes[u.Code]++
		if !u.Definite() {
			dark++
		}
	}
	t.Logf("%d changes and %d uses in %v; sharp by node: %v; outcomes: %v; changes tried again: %d", len(changes)-1, len(uses), took.Round(time.Millisecond), sharp, outcomes, unknown)
	if len(changes)-1 < toggles/2 || sharp[leader.ID] < toggles || sharp[late.ID] < toggles/50 {
		t.Errorf("void: too little was done to mean anything")
	}
	if dark*50 > len(uses) {
		t.Errorf("%d of %d uses were not answered", dark, len(uses))
	}
	harness.Witnessed(t, c, h)
}

// useOnce uses the key in one of four ways.
func useOnce(t *testing.T, at harness.Calls, how int, sdk bool, key string, blob []byte) (u use) {
	ctx := t.Context()
	wrong := func(what string) { t.Errorf("%s on %s (request %s): %s", u.Name, u.Node, u.RequestID, what) }
	var plaintext []byte
	switch {
	case how == 0 && sdk:
		blob, u.Op = at.AWSEncrypt(ctx, key, []byte("x"))
	case how == 0:
		blob, _, u.Op = at.Encrypt(ctx, key, []byte("x"))
	case how == 1 && sdk:
		plaintext, u.Op = at.AWSDecrypt(ctx, blob)
	case how == 1:
		plaintext, u.Op = at.Decrypt(ctx, blob)
	case how == 2 && !sdk:
		blob, plaintext, u.Op = at.DataKey(ctx, key)
	case sdk:
		u.state, u.Op = at.AWSDescribeKey(ctx, key)
	default:
		u.state, u.Op = at.DescribeKey(ctx, key)
	}
	switch {
	case u.Code != "" && plaintext != nil:
		wrong("a plaintext beside an error")
	case u.Code == "" && u.Name == "Decrypt" && !bytes.Equal(plaintext, []byte("plaintext")):
		wrong(fmt.Sprintf("plaintext %q", plaintext))
	case u.Code == "" && u.Name != "DescribeKey" && len(blob) == 0:
		wrong("no ciphertext")
	}
	return u
}

// toggle takes the one step from one authority to the other.
func toggle(ctx context.Context, at harness.Calls, key string, from, to authority) harness.Op {
	switch {
	case from.enabled && !to.enabled:
		return at.DisableKey(ctx, key)
	case !from.enabled && to.enabled:
		return at.EnableKey(ctx, key)
	case to.allowed:
		return at.PutKeyPolicy(ctx, key, harness.AllowAll)
	}
	return at.PutKeyPolicy(ctx, key, harness.DenyUse)
}
