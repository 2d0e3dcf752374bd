package faults

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
)

// The tests below plant the bugs that would break the promises, one at a time, and
// make sure that each shows: a check that cannot fail proves nothing.

// bug replaces how a node's engine commits a record.
type bug func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error)

// planted is what a node's engine sees of the cluster, with a bug in it, and able
// to lag: the engine then evaluates on an old state, as on a follower that learns
// of everything late, until it waits for a newer one.
type planted struct {
	keyengine.Replica

	mu    sync.Mutex
	stale *fsm.State
	bug   bug
}

// State implements keyengine.Replica.
func (p *planted) State() *fsm.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stale != nil {
		return p.stale
	}
	return p.Replica.State()
}

func (p *planted) lag() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = p.Replica.State()
}

func (p *planted) catchUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = nil
}

// WaitApplied implements keyengine.Replica.
func (p *planted) WaitApplied(ctx context.Context, index uint64) error {
	p.catchUp()
	return p.Replica.WaitApplied(ctx, index)
}

// Barrier implements keyengine.Replica.
func (p *planted) Barrier(ctx context.Context) error {
	p.catchUp()
	return p.Replica.Barrier(ctx)
}

func (p *planted) set(b bug) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bug = b
}

// Propose implements keyengine.Replica.
func (p *planted) Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error) {
	p.mu.Lock()
	b := p.bug
	p.mu.Unlock()
	if b == nil {
		return p.Replica.Propose(ctx, r)
	}
	return b(ctx, p, r)
}

// without forgets what records read of some kinds.
func without(forgotten func(fsmpb.Kind) bool) bug {
	return func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error) {
		r = proto.CloneOf(r)
		r.Reads = slices.DeleteFunc(r.Reads, func(read *fsmpb.Read) bool { return forgotten(read.Kind) })
		return p.Replica.Propose(ctx, r)
	}
}

func withoutKind(k fsmpb.Kind) bug {
	return without(func(have fsmpb.Kind) bool { return have == k })
}

// plantable starts a cluster whose nodes can have bugs planted.
func plantable(t *testing.T, network *harness.Network) (*harness.Cluster, map[string]*planted) {
	t.Helper()
	var mu sync.Mutex
	all := make(map[string]*planted)
	c := harness.NewCluster(t, 3, harness.Options{Network: network, Configure: func(n *harness.Node, cfg *node.Config) {
		if network != nil {
			// So that nobody calls an election while the network holds things back.
			t := &cfg.Timeouts
			t.Heartbeat, t.Election, t.Lease, t.Resubmit = 2*time.Second, 2*time.Second, time.Second, 5*time.Second
		}
		cfg.Test.Replica = func(r keyengine.Replica) keyengine.Replica {
			mu.Lock()
			defer mu.Unlock()
			all[n.ID] = &planted{Replica: r}
			return all[n.ID]
		}
	}})
	return c, all
}

// scene is what a case of TestReadSets plays on.
type scene struct {
	t           *testing.T
	ctx         context.Context
	c           *harness.Cluster
	early, late harness.Calls
	key, other  string // fresh for each case
	n           int    // makes names unique
}

func (s *scene) ok(o harness.Op) {
	s.t.Helper()
	if o.Code != "" {
		s.t.Fatal(o)
	}
}

func (s *scene) alias(i int) string { return fmt.Sprintf("alias/%d-%d", s.n, i) }

// encrypts is the outcome of Encrypt on the late node, and the key's ARN.
func (s *scene) encrypts(key string) (code, arn string) {
	_, arn, o := s.late.Encrypt(s.ctx, key, []byte("x"))
	return o.Code, arn
}

// readSets has a case for each kind of object that a decision can read: change
// changes exactly that one, which the late node does not know of when use asks it.
// use returns what it got and what is right.
//
// KIND_TOMBSTONE has none: it is read only beside an absent KIND_KEY, and no key
// can come or go without that one changing too. KIND_CLUSTER is not read by
// requests, and KIND_NODE not at all.
var readSets = []struct {
	name    string
	kind    fsmpb.Kind
	prepare func(*scene)
	change  func(*scene)
	use     func(*scene) (got, want string)
}{
	{"a disabled key", fsmpb.Kind_KIND_KEY, nil,
		func(s *scene) { s.ok(s.early.DisableKey(s.ctx, s.key)) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.key); return code, "DisabledException" }},
	{"an enabled key", fsmpb.Kind_KIND_KEY,
		func(s *scene) { s.ok(s.early.DisableKey(s.ctx, s.key)) },
		func(s *scene) { s.ok(s.early.EnableKey(s.ctx, s.key)) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.key); return code, "" }},
	{"a new key", fsmpb.Kind_KIND_KEY, nil,
		func(s *scene) {
			var o harness.Op
			s.key, o = s.early.CreateKey(s.ctx, "")
			s.ok(o)
		},
		func(s *scene) (string, string) { _, o := s.late.DescribeKey(s.ctx, s.key); return o.Code, "" }},
	{"a policy that denies", fsmpb.Kind_KIND_KEY_POLICY, nil,
		func(s *scene) { s.ok(s.early.PutKeyPolicy(s.ctx, s.key, harness.DenyUse)) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.key); return code, "AccessDeniedException" }},
	{"a policy that allows again", fsmpb.Kind_KIND_KEY_POLICY,
		func(s *scene) { s.ok(s.early.PutKeyPolicy(s.ctx, s.key, harness.DenyUse)) },
		func(s *scene) { s.ok(s.early.PutKeyPolicy(s.ctx, s.key, harness.AllowAll)) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.key); return code, "" }},
	{"a moved alias", fsmpb.Kind_KIND_ALIAS,
		func(s *scene) { s.ok(s.early.CreateAlias(s.ctx, s.alias(0), s.key)) },
		func(s *scene) { s.ok(s.early.UpdateAlias(s.ctx, s.alias(0), s.other)) },
		func(s *scene) (string, string) {
			_, arn := s.encrypts(s.alias(0))
			return arn, "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/" + s.other
		}},
	{"a new alias", fsmpb.Kind_KIND_ALIAS, nil,
		func(s *scene) { s.ok(s.early.CreateAlias(s.ctx, s.alias(0), s.key)) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.alias(0)); return code, "" }},
	{"a deleted alias", fsmpb.Kind_KIND_ALIAS,
		func(s *scene) { s.ok(s.early.CreateAlias(s.ctx, s.alias(0), s.key)) },
		func(s *scene) { s.ok(s.early.DeleteAlias(s.ctx, s.alias(0))) },
		func(s *scene) (string, string) { code, _ := s.encrypts(s.alias(0)); return code, "NotFoundException" }},
	{"another's tag", fsmpb.Kind_KIND_KEY_TAGS,
		func(s *scene) { s.ok(s.early.Tag(s.ctx, s.key, "first", "1")) },
		func(s *scene) { s.ok(s.early.Tag(s.ctx, s.key, "second", "2")) },
		func(s *scene) (string, string) {
			// Tags that were not read are not replaced: the bug shows as a failure.
			if o := s.late.Tag(s.ctx, s.key, "third", "3"); o.Code != "" {
				return o.Code, ""
			}
			tags, o := s.early.Tags(s.ctx, s.key)
			s.ok(o)
			return fmt.Sprint(tags), fmt.Sprint(map[string]string{"first": "1", "second": "2", "third": "3"})
		}},
	{"the last place for an alias", fsmpb.Kind_KIND_KEY_ALIASES,
		func(s *scene) {
			for i := range 49 {
				s.ok(s.early.CreateAlias(s.ctx, s.alias(i), s.key))
			}
		},
		func(s *scene) { s.ok(s.early.CreateAlias(s.ctx, s.alias(49), s.key)) },
		func(s *scene) (string, string) {
			return s.late.CreateAlias(s.ctx, s.alias(50), s.key).Code, "LimitExceededException"
		}},
	// Last: nothing but this test can take a credential back, with a record that
	// nobody can read.
	{"a credential that was taken back", fsmpb.Kind_KIND_CREDENTIAL,
		func(s *scene) { s.activate(true) },
		func(s *scene) { s.activate(false) },
		func(s *scene) (string, string) {
			code, _ := s.encrypts(s.key)
			s.activate(true)
			return code, "UnrecognizedClientException"
		}},
}

// activate sets whether the root's access key is good.
func (s *scene) activate(active bool) {
	s.t.Helper()
	n := s.early.Node.InProcess().Cluster()
	if err := n.Barrier(s.ctx); err != nil { // it may not lead any more, and lag
		s.t.Fatal(err)
	}
	old, _ := n.State().Credential(fsm.AccountOf(n.State()), s.c.AccessKeyID)
	credential := proto.CloneOf(old)
	credential.Active = active
	r := &fsmpb.Record{
		RequestId: make([]byte, 16), Salt: make([]byte, 16), Commitment: make([]byte, 32), Body: []byte("no record"),
		Reads:   []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CREDENTIAL, Id: fsm.CredentialID(fsm.AccountOf(n.State()), old.Id), Version: old.Version}},
		Changes: []*fsmpb.Change{{Change: &fsmpb.Change_PutCredential{PutCredential: credential}}},
	}
	rand.Read(r.RequestId)
	d, err := n.Propose(s.ctx, r)
	if err != nil || d.Verdict != fsm.Accepted {
		s.t.Fatal(d, err)
	}
}

// TestReadSets makes the late node answer from an old state in every way that an
// answer can rest on one, without a bug and with the one that forgets to note just
// that.
func TestReadSets(t *testing.T) {
	c, nodes := plantable(t, nil)
	leader := c.Leader()
	late := c.Nodes[(leader.Index+1)%3]
	h := harness.NewHistory()
	n := 0
	for _, test := range readSets {
		for _, p := range []struct {
			name  string
			bug   bug
			right bool
		}{
			{"no bug", nil, true},
			{"reads of " + test.kind.String() + " forgotten", withoutKind(test.kind), false},
			{"reads of other kinds forgotten", without(func(k fsmpb.Kind) bool { return k != test.kind }), true},
			{"no check at all", without(func(fsmpb.Kind) bool { return true }), false},
		} {
			t.Run(test.name+"/"+p.name, func(t *testing.T) {
				n++
				s := &scene{t: t, ctx: t.Context(), c: c, early: h.At(leader), late: h.At(late), n: n}
				var o harness.Op
				s.key, o = s.early.CreateKey(s.ctx, "")
				s.ok(o)
				s.other, o = s.early.CreateKey(s.ctx, "")
				s.ok(o)
				if test.prepare != nil {
					test.prepare(s)
				}
				c.Converged()
				nodes[late.ID].lag()
				nodes[late.ID].set(p.bug)
				defer nodes[late.ID].set(nil)
				test.change(s)
				got, want := test.use(s)
				nodes[late.ID].catchUp()
				if right := got == want; right != p.right {
					t.Errorf("got %q, the right answer is %q; expected it to be right: %v", got, want, p.right)
				}
			})
		}
	}
}

// TestLaggingFollower is the first of those cases with a network that really holds
// back what the leader says.
func TestLaggingFollower(t *testing.T) {
	network := harness.NewNetwork(1)
	network.Break = true
	c, nodes := plantable(t, network)
	leader := c.Leader()
	late := c.Nodes[(leader.Index+1)%3]
	h := harness.NewHistory()
	for _, p := range []struct {
		name string
		bug  bug
		want string
	}{
		{"no bug", nil, "DisabledException"},
		{"key not in the read set", withoutKind(fsmpb.Kind_KIND_KEY), ""},
	} {
		t.Run(p.name, func(t *testing.T) {
			s := &scene{t: t, ctx: t.Context(), c: c, early: h.At(leader), late: h.At(late)}
			var o harness.Op
			s.key, o = s.early.CreateKey(s.ctx, "")
			s.ok(o)
			_, _, o = s.late.Encrypt(s.ctx, s.key, []byte("x")) // opens the session
			s.ok(o)
			c.Converged()
			nodes[late.ID].set(p.bug)
			defer nodes[late.ID].set(nil)
			network.Set(leader.ID, late.ID, harness.Rule{Hold: true})
			s.ok(s.early.DisableKey(s.ctx, s.key))
			answer := make(chan harness.Op)
			go func() {
				_, _, o := s.late.Encrypt(s.ctx, s.key, []byte("x"))
				answer <- o
			}()
			select {
			case o := <-answer:
				t.Errorf("answered without the leader: %v", o)
			case <-time.After(200 * time.Millisecond):
				network.Heal()
				if o := <-answer; o.Code != p.want {
					t.Errorf("%v; want %q", o, p.want)
				}
			}
		})
	}
}

// TestWitnessFindsBugs plants bugs that no single answer shows, and makes sure
// that the witness check finds them in the log.
func TestWitnessFindsBugs(t *testing.T) {
	// meanwhile is what happens elsewhere at the worst moment.
	meanwhile := func(s *scene) { s.ok(s.early.DisableKey(context.Background(), s.key)) }
	for name, plant := range map[string]func(*scene) bug{
		"": func(*scene) bug { return nil },
		// The check is made, but before the record has its place in the log.
		"check when proposing": func(s *scene) bug {
			return func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error) {
				newest := s.early.Node.InProcess().Cluster().State()
				for _, read := range r.Reads {
					if newest.VersionOf(read.Kind, read.Id) != read.Version {
						return fsm.Decision{Verdict: fsm.Conflict, Index: newest.Index()}, nil
					}
				}
				meanwhile(s)
				return without(func(fsmpb.Kind) bool { return true })(ctx, p, r)
			}
		},
		// What is submitted again is not known to have been submitted before.
		"no memory of batches": func(*scene) bug {
			return func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error) {
				if d, err := p.Replica.Propose(ctx, r); err != nil {
					return d, err
				}
				return p.Replica.Propose(ctx, r)
			}
		},
		"answer before the log has it": func(s *scene) bug {
			return func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error) {
				meanwhile(s)
				go p.Replica.Propose(context.WithoutCancel(ctx), r)
				return fsm.Decision{Verdict: fsm.Accepted, Index: p.Replica.State().Index()}, nil
			}
		},
		"no record at all": func(*scene) bug {
			return func(context.Context, *planted, *fsmpb.Record) (fsm.Decision, error) {
				return fsm.Decision{Verdict: fsm.Accepted}, nil
			}
		},
		// A verdict that is not the record's own.
		"conflicts taken for consent": func(s *scene) bug {
			return func(ctx context.Context, p *planted, r *fsmpb.Record) (fsm.Decision, error) {
				meanwhile(s)
				d, err := p.Replica.Propose(ctx, r)
				d.Verdict = fsm.Accepted
				return d, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, nodes := plantable(t, nil)
			leader := c.Leader()
			late := c.Nodes[(leader.Index+1)%3]
			h := harness.NewHistory()
			s := &scene{t: t, ctx: t.Context(), c: c, early: h.At(leader), late: h.At(late)}
			var o harness.Op
			s.key, o = s.early.CreateKey(s.ctx, "")
			s.ok(o)
			_, _, o = s.late.Encrypt(s.ctx, s.key, []byte("x"))
			s.ok(o)
			c.Converged()
			nodes[late.ID].set(plant(s))
			_, _, o = s.late.Encrypt(s.ctx, s.key, []byte("x"))
			nodes[late.ID].set(nil)
			s.ok(o)
			_, err := harness.CheckWitness(leader.ReadLog(0), h.Ops())
			if (err != nil) != (name != "") {
				t.Errorf("the witness check says: %v", err)
			}
			t.Log(err)
		})
	}
}
