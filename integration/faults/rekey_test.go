package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	rekeys         = kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY
	rotatesRoot    = kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT
	rotatesKeyring = kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING
)

// keyChange is a ceremony on the leader, which a test kills.
type keyChange struct {
	t      *testing.T
	c      *harness.Cluster
	random *rand.Rand
	kind   kmspb.KeyChangeKind
	sets   map[string][]string // shares by the id of their set
}

// hold holds a ceremony on the leader, and kills the leader after a number of its steps, or
// within the next one. It returns whether the ceremony ended before that.
func (k *keyChange) hold(steps int, within bool) (victim *harness.Node, over bool) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	victim = k.c.Leader()
	op := victim.Operator()
	step := 0
	// next makes a step, and reports whether the leader is still alive afterwards.
	next := func(what string, do func() error) bool {
		if step++; step > steps {
			if within {
				done := make(chan error, 1)
				go func() { done <- do() }()
				time.Sleep(time.Duration(k.random.Int64N(int64(60 * time.Millisecond))))
				victim.Kill()
				<-done
			} else {
				victim.Kill()
			}
			return false
		}
		if err := do(); err != nil {
			k.t.Fatalf("%s: %v", what, err)
		}
		return true
	}
	req := &kmspb.BeginKeyChangeRequest{Kind: k.kind}
	shares := harness.Threshold
	if k.kind == rekeys {
		req.Shares, req.Threshold = harness.Shares, harness.Threshold
	}
	var st *kmspb.KeyChange
	if !next("beginning", func() error {
		res, err := op.BeginKeyChange(ctx, req)
		st = res.GetCeremony()
		return err
	}) {
		return victim, false
	}
	submit := func(share string) func() error {
		return func() (err error) {
			now, _, err := client.SubmitKeyChangeShare(ctx, op, st, []byte(share))
			if err == nil {
				st = now
			}
			return err
		}
	}
	for i := range shares {
		if !next(fmt.Sprintf("share %d", i+1), submit(k.c.Shares[i])) {
			return victim, false
		}
	}
	if k.kind != rekeys {
		victim.Kill() // after the answer
		return victim, true
	}
	var fresh []string
	if !next("getting the new shares", func() error {
		list, err := client.NewShares(ctx, op, st.GetNonce())
		if err != nil {
			return err
		}
		for _, s := range list.Shares {
			fresh = append(fresh, string(s))
		}
		k.sets[string(st.GetNewShareSet().GetId())] = fresh
		return nil
	}) {
		return victim, false
	}
	for i := range shares {
		if !next(fmt.Sprintf("new share %d", i+1), submit(fresh[i])) {
			return victim, false
		}
	}
	victim.Kill()
	return victim, true
}

// inForce returns the id of the share set and the epoch by what a node says, which has asked
// the leader.
func (k *keyChange) inForce(n *harness.Node) (set []byte, epoch uint32) {
	k.t.Helper()
	k.c.Eventually("asking "+n.ID+" for the share set", func(ctx context.Context) error {
		res, err := n.Operator().GetShareSet(ctx, &kmspb.GetShareSetRequest{})
		set, epoch = res.GetShareSet().GetId(), res.GetShareSet().GetEpoch()
		return err
	})
	return set, epoch
}

// TestReplacingKeysUnderKills kills the leader at each step of a rekey and of rotations of
// the root key and of the keyring, while clients use the cluster, and restarts it. In the end
// all nodes are restarted. One share set works, the same everywhere, no other does, and
// everything that was ever encrypted opens.
func TestReplacingKeysUnderKills(t *testing.T) {
	seed := harness.NewSeed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	c := harness.NewCluster(t, 3, harness.Options{Processes: true})
	c.Finalize()
	h := harness.NewHistory()
	w := harness.StartWorkload(t, c, h, seed, 8)
	k := &keyChange{t: t, c: c, random: random, sets: make(map[string][]string)}
	first, _ := k.inForce(c.Nodes[0])
	k.sets[string(first)] = c.Shares
	for _, kind := range []kmspb.KeyChangeKind{rekeys, rotatesRoot, rotatesKeyring} {
		k.kind = kind
		steps := 1 + harness.Threshold // to begin, and the shares
		if kind == rekeys {
			steps += 1 + harness.Threshold
		}
		// The last step is the one that replaces the keys.
		at := []int{1 + random.IntN(steps-2), steps - 1, steps}
		if harness.Full() {
			at = nil
			for i := range steps + 1 {
				at = append(at, i, i)
			}
		}
		for i, step := range at {
			w.AwaitAnswers(20)
			_, before := k.inForce(c.Leader())
			victim, over := k.hold(step, step == steps-1 || i%2 == 0)
			set, after := k.inForce(c.Nodes[(victim.Index+1)%3])
			if over && kind != rotatesKeyring && after != before+1 {
				t.Errorf("%v: the epoch is %d after an answer that it was replaced, it was %d", kind, after, before)
			}
			if step < steps-1 && after != before {
				t.Errorf("%v: the epoch is %d although the leader died in step %d of %d", kind, after, step+1, steps)
			}
			shares, ok := k.sets[string(set)]
			if !ok {
				t.Fatalf("%v: a share set is in force whose shares nobody has", kind)
			}
			t.Logf("%v: killed %s after %d of %d steps: epoch %d, was %d", kind, victim.ID, step, steps, after, before)
			c.Shares = shares
			victim.Start()
			victim.Unseal()
			c.WaitReady(victim)
			if kind == rotatesKeyring {
				res, err := c.Leader().Operator().GetKeyChange(t.Context(), &kmspb.GetKeyChangeRequest{})
				if err == nil && res.GetCeremony().GetGeneration() > 1 {
					t.Logf("the keyring has %d generations", res.GetCeremony().GetGeneration())
					break // the next rotation has to wait until this one is settled
				}
			}
		}
	}
	// While the leader wraps everything by the new generation.
	for range 2 {
		time.Sleep(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
		victim := c.Leader()
		victim.Kill()
		victim.Start()
		victim.Unseal()
		c.WaitReady(victim)
	}
	w.AwaitAnswers(50)
	w.Finish()
	for _, nd := range c.Nodes {
		nd.Kill()
	}
	for _, nd := range c.Nodes {
		nd.Start()
	}
	set, _ := k.inForce(c.Nodes[0])
	for id, shares := range k.sets {
		if bytes.Equal([]byte(id), set) {
			c.Shares = shares
			continue
		}
		for _, nd := range c.Nodes {
			c.Eventually("an old share on "+nd.ID, func(ctx context.Context) error {
				st, err := client.SubmitShare(ctx, nd.Operator(), []byte(shares[0]))
				if err == nil && st.GetError().GetType() != "InvalidShareException" {
					err = errors.New("it is not refused") // while the node is behind
				}
				return err
			})
		}
	}
	c.Unseal()
	c.WaitReady()
	w.OpensEverywhere(random)
	keysAreThere(t, c, h, w)
	harness.Witnessed(t, c, h)
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	sameAudit(t, c, true)
}
