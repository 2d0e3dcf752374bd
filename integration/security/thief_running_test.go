package security

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
)

// diversion is an attacker in the network. What one node opens to another for Raft,
// which the first message of TLS says in the clear, goes elsewhere, and what two nodes
// say to each other gets lost.
type diversion struct {
	mu   sync.Mutex
	to   map[[2]string]string // from one node to another: the address instead
	cut  map[[2]string]bool
	open map[*diverted]struct{}
}

// diverted is a connection that may be.
type diverted struct {
	net.Conn // the node's end
	from, to string
	far      net.Conn
}

func newDiversion() *diversion {
	return &diversion{to: make(map[[2]string]string), cut: make(map[[2]string]bool), open: make(map[*diverted]struct{})}
}

// configure has a node open its connections through the attacker's network.
func (d *diversion) configure(n *harness.Node, cfg *node.Config) {
	next := cfg.Test.Cluster.Dial
	cfg.Test.Cluster.Dial = func(ctx context.Context, to, addr string) (net.Conn, error) {
		d.mu.Lock()
		lost := d.cut[[2]string{n.ID, to}]
		d.mu.Unlock()
		if lost {
			return nil, errors.New("lost")
		}
		c := &diverted{from: n.ID, to: to}
		c.Conn, c.far = net.Pipe()
		d.mu.Lock()
		d.open[c] = struct{}{}
		d.mu.Unlock()
		go func() {
			defer d.end(c)
			d.carry(c, func(raft bool) (net.Conn, error) {
				d.mu.Lock()
				other, divert := d.to[[2]string{n.ID, to}]
				d.mu.Unlock()
				if raft && divert {
					return net.Dial("tcp", other)
				}
				return next(ctx, to, addr)
			})
		}()
		return c, nil
	}
}

func (d *diversion) carry(c *diverted, dial func(raft bool) (net.Conn, error)) {
	hello := make([]byte, 16<<10)
	n, err := c.far.Read(hello)
	if err != nil {
		return
	}
	out, err := dial(bytes.Contains(hello[:n], []byte(peerRaft)))
	if err != nil {
		return
	}
	defer out.Close()
	if _, err := out.Write(hello[:n]); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(c.far, out)
		c.far.Close()
	}()
	_, _ = io.Copy(out, c.far)
}

func (d *diversion) end(c *diverted) {
	c.far.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, c)
}

// divert has what a node opens to another for Raft go to that address, or where it
// belongs if that is empty, from now on.
func (d *diversion) divert(from, to, addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addr == "" {
		delete(d.to, [2]string{from, to})
	} else {
		d.to[[2]string{from, to}] = addr
	}
	d.sever(from, to)
}

// lose has what two nodes say to each other get lost, or not any more.
func (d *diversion) lose(a, b string, lost bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut[[2]string{a, b}], d.cut[[2]string{b, a}] = lost, lost
	d.sever(a, b)
	d.sever(b, a)
}

func (d *diversion) sever(from, to string) {
	for c := range d.open {
		if c.from == from && c.to == to {
			c.far.Close()
		}
	}
}

// terms are the terms that the nodes are in, and the leaders that they know.
func (x *heist) terms() string {
	x.t.Helper()
	var all []string
	for _, n := range x.honest {
		s, err := n.Status(x.t.Context())
		if err != nil {
			x.t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s: term %d, leader %s", n.ID, s.GetRaft().GetTerm(), s.GetLeaderId()))
	}
	return strings.Join(all, "; ")
}

// patientNodes are not replaced as leaders because a busy machine keeps them waiting, or
// its disk does, so that a change of the leader is the thief's doing.
func patientNodes(_ *harness.Node, cfg *node.Config) {
	t := &cfg.Timeouts
	t.Heartbeat, t.Election, t.Lease = 6*time.Second, 6*time.Second, 3*time.Second
	t.DiskYield = 20 * time.Second
}

// TestThiefOfARunningLeader has the TLS identity of a node that leads, unsealed, and goes
// on doing so. The others, asking the node, know that it is unsealed; the thief says
// what a leader might say.
func TestThiefOfARunningLeader(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{leads: true, runs: true, configure: patientNodes})
	th := x.thief()
	// It begins with nothing, with what an honest node began with, and with noise.
	frames, last := 0, []byte(nil)
	th.frame = func(*tls.Conn) []byte {
		th.mu.Lock()
		defer th.mu.Unlock()
		frames++
		switch last = th.shown; frames % 3 {
		case 1:
			if last != nil {
				return last
			}
		case 2:
			noise := make([]byte, 69)
			rand.Read(noise)
			noise[0], noise[1], noise[2], noise[3], noise[4] = 68, 0, 0, 0, 1
			return noise
		}
		return []byte{0}
	}
	x.serves("before")
	before := x.terms()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	taken := make(map[string]int)
	go func() {
		defer close(done)
		took := func(what string, err error) {
			if err == nil {
				taken[what]++
			}
		}
		for ctx.Err() == nil {
			leader, err := x.stolen.Status(ctx)
			if err != nil {
				continue
			}
			term, index := leader.GetRaft().GetTerm(), leader.GetRaft().GetLastIndex()
			for _, id := range th.nodes() {
				server, addr := raft.ServerID(id), raft.ServerAddress(th.peers[id])
				_, err := th.claim(id, th.header(), term, nil, nil, 0)
				took("heartbeats", err)
				_, err = th.claim(id, th.header(), term+1, nil, nil, 0)
				took("heartbeats of the next term", err)
				_, err = th.claim(id, th.header(), term, nil, []*raft.Log{{Index: 1, Term: term, Type: raft.LogNoop}}, 1)
				took("entries in place of others", err)
				_, err = th.claim(id, th.header(), term, &raft.Log{Index: index, Term: term}, []*raft.Log{{Index: index + 1, Term: term, Type: raft.LogNoop}}, index+1)
				took("entries", err)
				_, err = th.claim(id, th.header(), term, nil, []*raft.Log{{Index: 1, Term: term, Type: raft.LogCommand, Data: []byte("garbage")}}, 1)
				took("garbage", err)
				took("votes", th.raft.RequestVote(server, addr, &raft.RequestVoteRequest{
					RPCHeader: th.header(), Term: term + 1, LastLogIndex: 1 << 40, LastLogTerm: term, LeadershipTransfer: true,
				}, new(raft.RequestVoteResponse)))
				took("votes beforehand", th.raft.RequestPreVote(server, addr, &raft.RequestPreVoteRequest{
					RPCHeader: th.header(), Term: term + 1, LastLogIndex: 1 << 40, LastLogTerm: term,
				}, new(raft.RequestPreVoteResponse)))
				took("elections", th.raft.TimeoutNow(server, addr, &raft.TimeoutNowRequest{RPCHeader: th.header()}, new(raft.TimeoutNowResponse)))
				took("snapshots", th.install(id, th.header(), term, &raft.SnapshotMeta{Index: 1 << 40, Term: term}, []byte("a snapshot")))
			}
			th.raft.CloseStreams() // and with another frame
			select {
			case <-time.After(30 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	x.serves("while the thief says that it is the leader")
	time.Sleep(2 * time.Second)
	x.serves("while the thief goes on")
	stop()
	<-done
	for what, n := range taken {
		t.Errorf("%d times the thief's %s were taken", n, what)
	}
	if frames < 6 || last == nil {
		t.Errorf("void: the thief opened %d connections, and was shown no proof", frames)
	}
	if after := x.terms(); after != before {
		t.Errorf("the thief moved the leadership: %s; it was: %s", after, before)
	}
	x.unharmed("after the thief said that it is the leader")
	x.end(th)
}

// TestThiefOfARunningFollower has the TLS identity of a node that follows, unsealed, and
// goes on doing so. Those of the leader's connections that are for Raft are diverted to
// the thief, who would say that it has stored everything and that there are later terms:
// it proves nothing, so it is not asked.
func TestThiefOfARunningFollower(t *testing.T) {
	t.Parallel()
	d := newDiversion()
	x := steal(t, theft{runs: true, configure: func(n *harness.Node, cfg *node.Config) {
		d.configure(n, cfg)
		patientNodes(n, cfg)
	}})
	leader := x.c.Leader()
	other := x.c.Nodes[3-leader.Index-x.stolen.Index]
	th := x.thief()
	th.listen = "127.0.0.1:0"
	th.open()
	x.serves("before")
	before := x.terms()
	if len(th.entries()) > 0 {
		t.Fatal("void: the thief was sent entries before")
	}

	th.mu.Lock()
	th.ahead = 1
	th.mu.Unlock()
	d.divert(leader.ID, x.stolen.ID, th.port.ln.Addr().String())
	for i := range 4 {
		for _, n := range []*harness.Node{leader, other} {
			if _, _, o := x.h.At(n).Encrypt(t.Context(), x.live, []byte("x")); o.Code != "" {
				t.Errorf("round %d with a follower of a later term: %v", i, o)
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
	if th.was("connection") == 0 {
		t.Error("void: no connection came to the thief")
	}
	for _, n := range []*harness.Node{leader, other} {
		if s, err := n.Status(t.Context()); err != nil || !strings.Contains(before, fmt.Sprintf("%s: term %d, leader %s", n.ID, s.GetRaft().GetTerm(), s.GetLeaderId())) {
			t.Errorf("the thief moved the leadership: %s is in term %d and follows %q; it was: %s", n.ID, s.GetRaft().GetTerm(), s.GetLeaderId(), before)
		}
	}

	// By the thief's word alone something would be stored by a majority, that is to say
	// by the leader, while the other two elect somebody who does not have it.
	th.mu.Lock()
	th.ahead = 0
	th.mu.Unlock()
	d.lose(leader.ID, other.ID, true)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	o := x.h.At(leader).DisableKey(ctx, x.live)
	cancel()
	t.Logf("with nobody but the thief: %v", o)
	x.c.Eventually("waiting for the two to elect one of them", func(ctx context.Context) error {
		s, err := other.Status(ctx)
		if err == nil && (s.GetLeaderId() == "" || s.GetLeaderId() == leader.ID) {
			err = fmt.Errorf("its leader is %q", s.GetLeaderId())
		}
		return err
	})
	d.lose(leader.ID, other.ID, false)
	d.divert(leader.ID, x.stolen.ID, "")
	if err := harness.Poll(t.Context(), servesWithin, func(ctx context.Context) error {
		for _, n := range x.honest {
			state, d := x.h.At(n).DescribeKey(ctx, x.live)
			if !d.Definite() {
				return errors.New(d.String())
			}
			if o.Code == "" && state != "Disabled" {
				t.Errorf("%s says that the key is %s, and %s was acknowledged", n.ID, state, o)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	x.c.NoFaults()
	x.servesAgain(other)
	x.end(th)
}
