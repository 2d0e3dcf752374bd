package peerunseal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/peerunseal/peerunsealpb"
)

// group is a cluster of nodes whose services reach each other directly.
type group struct {
	t        *testing.T
	c        *enginetest.Cluster
	shares   []string
	members  []string
	services map[string]*Service
	nodes    map[string]*enginetest.Node
	files    map[string]*memoryFile

	mu    sync.Mutex
	wire  bytes.Buffer // all that nodes sent to each other
	log   bytes.Buffer
	down  map[string]bool
	tweak func(*Asker, []byte) []byte // changes what a peer hears
	// The last challenge.
	asker         Asker
	nonce, answer []byte
	part          []byte
}

// memoryFile is a file of return keys.
type memoryFile struct {
	mu    sync.Mutex
	b     []byte
	fails error
}

func (f *memoryFile) LoadKeys() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.b), nil
}

func (f *memoryFile) SaveKeys(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails == nil {
		f.b = slices.Clone(b)
	}
	return f.fails
}

func (f *memoryFile) RemoveKeys() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = nil
	return nil
}

// link is what one process of a node has of the others.
type link struct {
	*memoryFile
	g           *group
	id          string
	incarnation uint64
}

func (l *link) Others() []string {
	return slices.DeleteFunc(slices.Clone(l.g.members), func(id string) bool { return id == l.id })
}

func (l *link) Incarnation() uint64 { return l.incarnation }

// Ask does what package cluster/internal/peerunseal does, without its checks.
func (l *link) Ask(ctx context.Context, peer string, session [32]byte) (string, error) {
	g := l.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down[peer] {
		return "", errors.New("cannot be reached")
	}
	to := g.services[peer]
	if why := to.Willing(); why != "" {
		return why, nil
	}
	nonce := make([]byte, 32)
	copy(nonce, fmt.Sprintf("%s %d", peer, g.wire.Len()))
	id, answer, err := g.services[l.id].Answer(peer, nonce)
	if err != nil {
		return "", err
	}
	asker := Asker{Node: l.id, Address: l.id + ":1", Incarnation: l.incarnation, Members: g.members, Session: session}
	if id != session {
		return "another session", nil
	}
	g.asker, g.nonce, g.answer = asker, nonce, answer
	if g.tweak != nil {
		answer = g.tweak(&asker, answer)
	}
	before := len(g.releases())
	part, err := to.Release(ctx, asker, nonce, answer)
	if r := (*Refusal)(nil); errors.As(err, &r) {
		return r.Reason, nil
	}
	if err != nil {
		return "", err
	}
	if len(g.releases()) != before+1 {
		g.t.Errorf("a part of %s leaves it without a record", peer)
	}
	g.part = part
	g.wire.Write(answer)
	g.wire.Write(part)
	return "", g.services[l.id].Accept(ctx, peer, nonce, part)
}

// releases returns the ids of the audit log's entries, of which each release adds one.
func (g *group) releases() []uint64 {
	var list []uint64
	for _, e := range g.c.Audit.Entries() {
		list = append(list, e.Index)
	}
	return list
}

// newGroup returns a cluster of n nodes at level 2, all unsealed, in which the given number
// have to agree.
func newGroup(t *testing.T, n, agreements int) *group {
	t.Helper()
	g := &group{t: t, c: enginetest.NewCluster(t, n), services: make(map[string]*Service), nodes: make(map[string]*enginetest.Node), files: make(map[string]*memoryFile), down: make(map[string]bool)}
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		g.members = append(g.members, id)
		g.files[id] = new(memoryFile)
	}
	for _, id := range g.members {
		g.start(id, 1)
	}
	g.shares = g.nodes["n1"].Initialise(enginetest.InitParams(3, 2)).Shares
	for _, id := range g.members {
		g.nodes[id].Unseal(g.shares...)
	}
	g.c.Change(&fsmpb.Change{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: 2}}})
	if _, changed, err := g.services["n1"].Set(t.Context(), enginetest.Operator, agreements); err != nil || !changed {
		t.Fatalf("enabling: %v, %v", changed, err)
	}
	for _, id := range g.members {
		g.enrol(id)
	}
	return g
}

// start starts a process of a node, which is sealed.
func (g *group) start(id string, incarnation uint64) *Service {
	n := g.c.NewNode(id)
	s := New(Config{
		NodeID: id, Peers: &link{g.files[id], g, id, incarnation}, Vault: n.Vault, Replica: n.Replica, Events: n.Events, Clock: g.c.Clock,
		Log: slog.New(slog.NewTextHandler(&g.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Released: func() {}, Refused: func() {}, Fresh: n.Authenticator.FreshState,
	})
	g.nodes[id], g.services[id] = n, s
	return s
}

func (g *group) cluster() *fsmpb.Cluster {
	c, _ := g.c.State().Cluster()
	return c
}

func (g *group) enrol(id string) {
	g.t.Helper()
	if !g.services[id].enrol(g.t.Context(), g.cluster()) {
		g.t.Fatalf("%s has no return key", id)
	}
}

// recordSealing has a node commit the record of a sealing, with what Forget adds to it.
func (g *group) recordSealing(id string, add func(*fsm.State, *record.Event)) {
	g.t.Helper()
	if _, err := g.nodes[id].Events.CommitEvent(g.t.Context(), func(state *fsm.State) (record.Event, error) {
		ev := record.ServiceEvent("Seal", g.c.Clock.Now())
		add(state, &ev)
		return ev, nil
	}); err != nil {
		g.t.Fatal(err)
	}
}

// restart starts a new process of a node, which asks once.
func (g *group) restart(id string) *Service {
	g.t.Helper()
	s := g.start(id, 2)
	s.ask(g.t.Context(), g.cluster())
	return s
}

// TestUnseal: a node that restarts is unsealed by as many peers as are needed. It has the
// keyring, and a new return key afterwards. The log has each part before it leaves.
func TestUnseal(t *testing.T) {
	for _, tt := range []struct{ nodes, agreements int }{{2, 1}, {3, 1}, {3, 2}, {5, 3}, {5, 4}} {
		t.Run(fmt.Sprintf("%d of %d", tt.agreements, tt.nodes-1), func(t *testing.T) {
			g := newGroup(t, tt.nodes, tt.agreements)
			id := g.members[tt.nodes-1]
			before := string(g.files[id].b)
			s := g.restart(id)
			n := g.nodes[id]
			if n.Vault.Sealed() || s.Status() != "" {
				t.Fatalf("the node is sealed: %s", s.Status())
			}
			if used := n.MemoryInUse(); used != g.nodes["n1"].MemoryInUse() {
				t.Errorf("%d slots of locked memory are in use, and %d on the others", used, g.nodes["n1"].MemoryInUse())
			}
			secret := func(n *enginetest.Node) (text string) {
				o, err := n.Vault.Current()
				if err != nil {
					t.Fatal(err)
				}
				k, err := vault.PeerKeys{Opened: o}.Secret([]byte("test"))
				if err != nil {
					t.Fatal(err)
				}
				defer k.Destroy()
				_ = k.With(func(b []byte) error { text = hex.EncodeToString(b); return nil })
				return text
			}
			if secret(n) != secret(g.nodes["n1"]) {
				t.Error("the node has another keyring")
			}
			n.Events.RecordPending(t.Context())
			g.enrol(id)
			if string(g.files[id].b) == before {
				t.Error("the return key is the old one")
			}
			names := enginetest.EventNames(g.nodes["n1"].Records())
			if !slices.Contains(names, "UnsealByPeers") || !slices.Contains(names, "ReleaseUnsealPart") {
				t.Errorf("records %v", names)
			}
		})
	}
}

// TestTooFew: with fewer parts than are needed a node stays sealed, says what it waits for,
// and goes on with the parts that it has.
func TestTooFew(t *testing.T) {
	g := newGroup(t, 4, 3)
	g.nodes["n2"].Vault.Seal()
	g.down["n3"] = true
	s := g.restart("n4")
	if want := "peer-assisted unseal: 1 of 3 peers agreed; n2: it is sealed itself; n3: cannot be reached"; s.Status() != want {
		t.Errorf("status %q, want %q", s.Status(), want)
	}
	g.down["n3"] = false
	s.ask(t.Context(), g.cluster())
	if !g.nodes["n4"].Vault.Sealed() || !strings.Contains(s.Status(), "2 of 3 peers agreed; n2: it is sealed itself") {
		t.Errorf("with two parts: %q", s.Status())
	}
	// The parts are in locked memory, and wiped when the session ends.
	s.end()
	if used := g.nodes["n4"].MemoryInUse(); used != 0 {
		t.Errorf("%d slots of locked memory are in use after the session", used)
	}
	g.nodes["n2"].Unseal(g.shares...)
	s.ask(t.Context(), g.cluster())
	if g.nodes["n4"].Vault.Sealed() {
		t.Errorf("with all peers: %q", s.Status())
	}
}

// TestRefusals: a peer gives nothing to whoever is not the newest process of a node.
func TestRefusals(t *testing.T) {
	edit := func(f func(*peerunsealpb.Answer)) func(*group) {
		return func(g *group) {
			g.tweak = func(_ *Asker, b []byte) []byte {
				a := new(peerunsealpb.Answer)
				if err := proto.Unmarshal(b, a); err != nil {
					g.t.Fatal(err)
				}
				f(a)
				b, err := proto.Marshal(a)
				if err != nil {
					g.t.Fatal(err)
				}
				return b
			}
		}
	}
	replay := func(f func(g *group, to *Asker)) func(*group) {
		return func(g *group) {
			// A challenge that was answered before.
			g.start("n3", 2)
			g.down["n2"] = true
			g.services["n3"].ask(g.t.Context(), g.cluster())
			old := g.answer
			g.down["n2"] = false
			g.tweak = func(to *Asker, b []byte) []byte {
				if f != nil {
					f(g, to)
				}
				return old
			}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*group)
		want   string
	}{
		{"an answer to another nonce", replay(nil), "does not have its return key"},
		{"an answer of another session", replay(func(g *group, to *Asker) { to.Session[0] ^= 1 }), "does not have its return key"},
		{"garbage", func(g *group) { g.tweak = func(*Asker, []byte) []byte { return []byte("\xffgarbage") } }, "malformed"},
		{"a field that is not known", func(g *group) {
			g.tweak = func(_ *Asker, b []byte) []byte { return append(b, 0x7a, 1, 'x') }
		}, "malformed"},
		{"much", func(g *group) {
			g.tweak = func(_ *Asker, b []byte) []byte { return append(b, make([]byte, maxAnswer)...) }
		}, "malformed"},
		{"fewer agreements", edit(func(a *peerunsealpb.Answer) { a.Agreements = 1 }), "of another session"},
		{"the same peer twice", edit(func(a *peerunsealpb.Answer) { a.Peers = []string{"n1", "n1"} }), "malformed"},
		{"another public key", edit(func(a *peerunsealpb.Answer) { a.Key[10] ^= 1 }), "of another session"},
		{"a return key of nobody", edit(func(a *peerunsealpb.Answer) { a.ReturnKey = make([]byte, 32) }), "old return key"},
		{"another signature", edit(func(a *peerunsealpb.Answer) { a.Signature[3] ^= 1 }), "does not have its return key"},
		{"no signature", edit(func(a *peerunsealpb.Answer) { a.Signature = nil }), "does not have its return key"},
		{"a process that was started before", func(g *group) {
			g.tweak = func(to *Asker, b []byte) []byte { to.Incarnation = 1; return b }
		}, "of another session"},
		{"another node", func(g *group) {
			g.tweak = func(to *Asker, b []byte) []byte { to.Node = "n2"; return b }
		}, "old return key"},
		{"a peer that was removed", func(g *group) {
			g.tweak = func(to *Asker, b []byte) []byte { to.Members = []string{"n1", "n3"}; return b }
		}, "members of the cluster have changed"},
		{"a node without a return key", func(g *group) {
			c := proto.CloneOf(g.cluster())
			g.tweak = func(_ *Asker, b []byte) []byte {
				c.PeerUnseal.Keys = nil
				g.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
				return b
			}
		}, "by the custodians once"},
		{"peer-assisted unsealing is disabled meanwhile", func(g *group) {
			c := proto.CloneOf(g.cluster())
			g.tweak = func(_ *Asker, b []byte) []byte {
				c.PeerUnseal = nil
				g.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
				return b
			}
		}, "not enabled"},
		{"another process was unsealed meanwhile", func(g *group) {
			g.tweak = func(_ *Asker, b []byte) []byte {
				g.c.Commit(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n3", Incarnation: 3, SchemaMin: 1, SchemaMax: 2}}})
				return b
			}
		}, "a newer process of n3 was unsealed meanwhile"},
		{"an older copy of the files", func(g *group) {
			old := slices.Clone(g.files["n3"].b)
			g.services["n3"].enrolled = nil
			g.enrol("n3") // as after the next unsealing
			g.files["n3"].b = old
		}, "does not have the return key that its peers know"},
		{"no file", func(g *group) { g.files["n3"].b = nil }, "does not have the return key that its peers know"},
		{"a damaged file", func(g *group) { g.files["n3"].b = []byte("{") }, "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGroup(t, 3, 2)
			tt.change(g)
			before := g.wire.Len()
			s := g.start("n3", 2)
			s.ask(t.Context(), g.cluster())
			if !g.nodes["n3"].Vault.Sealed() {
				t.Fatal("the node is unsealed")
			}
			if !strings.Contains(s.Status(), tt.want) {
				t.Errorf("status %q, want %q", s.Status(), tt.want)
			}
			if g.wire.Len() != before {
				t.Error("a part was sent")
			}
		})
	}
}

// TestAccept: a sealed node takes a part once, for the challenge that it answered, and only
// from an unsealed node.
func TestAccept(t *testing.T) {
	g := newGroup(t, 4, 3)
	g.down["n2"], g.down["n3"] = true, true
	s := g.restart("n4")
	part, nonce := g.part, g.nonce
	if err := s.Accept(t.Context(), "n1", nonce, part); !errors.Is(err, errNotAsking) {
		t.Errorf("a part that is sent again: %v", err)
	}
	other := bytes.Repeat([]byte{7}, 32)
	if _, _, err := s.Answer("n1", other); !errors.Is(err, errNotAsking) {
		t.Errorf("a challenge of a peer that has given its part: %v", err)
	}
	if _, _, err := s.Answer("n9", other); !errors.Is(err, errNotAsking) {
		t.Errorf("a challenge of a stranger: %v", err)
	}
	if _, _, err := s.Answer("n2", other); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"another peer's part": part, "garbage": []byte("\xff"), "nothing": nil} {
		if err := s.Accept(t.Context(), "n2", other, b); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if _, _, err := s.Answer("n2", other); err != nil {
			t.Fatal(err)
		}
	}
	// A part that a sealed node makes up.
	p := new(peerunsealpb.Part)
	if err := proto.Unmarshal(part, p); err != nil {
		t.Fatal(err)
	}
	p.Number = 2
	forged, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(t.Context(), "n2", other, forged); err == nil || !strings.Contains(err.Error(), "not from an unsealed node") {
		t.Errorf("a forged part: %v", err)
	}
	// A part for a challenge that another one has replaced.
	first := bytes.Repeat([]byte{8}, 32)
	id, answer, err := s.Answer("n2", first)
	if err != nil {
		t.Fatal(err)
	}
	late, err := g.services["n2"].Release(t.Context(), Asker{Node: "n4", Incarnation: 2, Members: g.members, Session: id}, first, answer)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Answer("n2", other); err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(t.Context(), "n2", first, late); !errors.Is(err, errNotAsking) {
		t.Errorf("a part for an old challenge: %v", err)
	}
	// Nothing of that has harmed the session.
	g.down["n2"], g.down["n3"] = false, false
	s.ask(t.Context(), g.cluster())
	if g.nodes["n4"].Vault.Sealed() {
		t.Errorf("the node is sealed: %s", s.Status())
	}
	if _, _, err := s.Answer("n1", nonce); !errors.Is(err, errNotAsking) {
		t.Errorf("a challenge of an unsealed node: %v", err)
	}
}

// TestKilledWhileEnrolling: a node that is killed before or after its new return key is in
// the state has the key that the state has.
func TestKilledWhileEnrolling(t *testing.T) {
	for _, committed := range []bool{false, true} {
		g := newGroup(t, 3, 2)
		s := g.services["n3"]
		old := slices.Clone(g.files["n3"].b)
		s.enrolled = nil
		g.enrol("n3")
		before, after := new(returnKeys), new(returnKeys)
		*before, *after = *mustLoad(t, old), *mustLoad(t, g.files["n3"].b)
		killed := &returnKeys{Format: keyFormat, Current: before.Current, Next: after.Current}
		if !committed {
			// The state still has the old key.
			c := proto.CloneOf(g.cluster())
			for _, k := range c.PeerUnseal.Keys {
				if k.Node == "n3" {
					k.PublicKey = publicOf(ed25519.NewKeyFromSeed(before.Current))
				}
			}
			g.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
		}
		if err := killed.save(g.files["n3"]); err != nil {
			t.Fatal(err)
		}
		next := g.restart("n3")
		if g.nodes["n3"].Vault.Sealed() {
			t.Fatalf("committed %v: the node is sealed: %s", committed, next.Status())
		}
		g.enrol("n3")
		if k := mustLoad(t, g.files["n3"].b); k.Next != nil || !bytes.Equal(publicOf(ed25519.NewKeyFromSeed(k.Current)), returnKeyOf(g.cluster(), "n3")) {
			t.Errorf("committed %v: the file does not have the key of the state", committed)
		}
	}
}

func mustLoad(t *testing.T, b []byte) *returnKeys {
	t.Helper()
	k, err := loadKeys(&memoryFile{b: b})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestForget: a node that an operator seals has no return key any more, in its file or in
// the state.
func TestForget(t *testing.T) {
	g := newGroup(t, 3, 2)
	s := g.services["n3"]
	add, done := s.Forget()
	// The node is not sealed yet, and has no return key that it could miss.
	if s.enrol(t.Context(), g.cluster()) || g.files["n3"].b != nil {
		t.Error("the node got another return key while it was being sealed")
	}
	g.recordSealing("n3", add)
	// An enrolment that was under way does not bring the file back.
	if err := s.edit(0, func(*returnKeys) {}); !errors.Is(err, errForgotten) {
		t.Errorf("writing the file afterwards: %v", err)
	}
	if s.enrol(t.Context(), g.cluster()) {
		t.Error("the node got another return key after the record of its sealing")
	}
	g.nodes["n3"].Vault.Seal()
	done()
	if s.enrol(t.Context(), g.cluster()) {
		t.Error("the node got another return key when it was sealed")
	}
	if g.files["n3"].b != nil || returnKeyOf(g.cluster(), "n3") != nil {
		t.Error("there is a return key")
	}
	if s := g.restart("n3"); !g.nodes["n3"].Vault.Sealed() || !strings.Contains(s.Status(), "custodians have to unseal this node once") {
		t.Errorf("status %q", s.Status())
	}
}

// TestForgetDuringEnrolment: an operator seals a node while the record of its next return key is
// on its way. The record loses to that of the sealing, and is not written again.
func TestForgetDuringEnrolment(t *testing.T) {
	g := newGroup(t, 3, 2)
	s := g.restart("n3")
	n := g.nodes["n3"]
	if n.Vault.Sealed() || returnKeyOf(g.cluster(), "n3") == nil {
		t.Fatalf("the node is sealed, or has no return key to replace: %s", s.Status())
	}
	var once sync.Once
	n.Events.Replica = &racing{n.Replica, func() {
		once.Do(func() {
			add, done := s.Forget()
			defer done()
			g.recordSealing("n1", add) // the Events of n3 are those that race
		})
	}}
	if s.enrol(t.Context(), g.cluster()) || returnKeyOf(g.cluster(), "n3") != nil || g.files["n3"].b != nil {
		t.Error("the node that was sealed has a return key")
	}
}

// TestSet: who sets what is checked and recorded.
func TestSet(t *testing.T) {
	g := newGroup(t, 3, 2)
	s := g.services["n1"]
	for _, n := range []int{-1, 3} {
		if _, _, err := s.Set(t.Context(), enginetest.Operator, n); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%d agreements: %v", n, err)
		}
	}
	if st, changed, err := s.Set(t.Context(), enginetest.Operator, 1); err != nil || !changed || st.Agreements != 1 || len(st.Nodes) != 3 {
		t.Errorf("1 agreement: %+v, %v, %v", st, changed, err)
	}
	if st, changed, err := s.Set(t.Context(), enginetest.Operator, 0); err != nil || !changed || st.Agreements != 0 || len(st.Nodes) != 0 {
		t.Errorf("disabling: %+v, %v, %v", st, changed, err)
	}
	if s.enrol(t.Context(), g.cluster()) && returnKeyOf(g.cluster(), "n1") != nil {
		t.Error("a return key is in the state although it is disabled")
	}
	g.nodes["n1"].Vault.Seal()
	if _, _, err := s.Set(t.Context(), enginetest.Operator, 1); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("on a sealed node: %v", err)
	}

	old := newLevel1(t)
	if _, _, err := old.Set(t.Context(), enginetest.Operator, 1); !errors.Is(err, ceremony.ErrNotUpgraded) || !strings.Contains(err.Error(), "it needs feature level 2") {
		t.Errorf("at level 1: %v", err)
	}
}

// newLevel1 returns the service of an unsealed node in a cluster of level 1.
func newLevel1(t *testing.T) *Service {
	g := &group{t: t, c: enginetest.NewCluster(t, 2), members: []string{"n1", "n2"}, services: make(map[string]*Service), nodes: make(map[string]*enginetest.Node), files: map[string]*memoryFile{"n1": new(memoryFile)}}
	s := g.start("n1", 1)
	g.nodes["n1"].Unseal(g.nodes["n1"].Initialise(enginetest.InitParams(3, 2)).Shares...)
	return s
}

// TestSecrets looks for the root key, the keyring, the session's key and its shares in all
// that nodes sent to each other, in the logs, in the files and in the state.
func TestSecrets(t *testing.T) {
	g := newGroup(t, 4, 2)
	s := g.start("n4", 2)
	c := g.cluster()
	on, err := s.begin(c) // ask goes on with it
	if err != nil {
		t.Fatal(err)
	}
	arena := g.nodes["n1"].Vault.Arena()
	secrets := map[string][]byte{}
	keep := func(name string, k *keymat.Secret, err error) *keymat.Secret {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		_ = k.With(func(b []byte) error { secrets[name] = slices.Clone(b); return nil })
		return k
	}
	var given []shamir.Share
	for _, text := range g.shares[:2] {
		share, err := shamir.ParseShare([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, share)
	}
	combined, err := shamir.Combine(given)
	if err != nil {
		t.Fatal(err)
	}
	unseal, err := arena.Store(combined)
	keep("unseal key", unseal, err)
	root, err := keymat.UnwrapRoot(arena, unseal, [16]byte(c.Id), [16]byte(c.Shares.Id), c.Shares.Epoch, c.WrappedRoot)
	keep("root key", root, err)
	kek, err := keymat.UnwrapKEK(arena, root, [16]byte(c.Id), c.Keyring[0].Generation, c.Keyring[0].Wrapped)
	keep("keyring", kek, err)
	o, err := g.nodes["n1"].Vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		h := hash([]byte(keyDomain), on.id[:], number(uint64(i)))
		k, err := vault.PeerKeys{Opened: o}.Secret(h[:])
		keep(fmt.Sprintf("secret %d of the session", i), k, err)
	}
	s.ask(t.Context(), c)
	if g.nodes["n4"].Vault.Sealed() {
		t.Fatalf("the node is sealed: %s", s.Status())
	}
	seed := mustLoad(t, g.files["n4"].b).Current
	places := map[string][]byte{"what nodes sent": g.wire.Bytes(), "the log": g.log.Bytes()}
	for id, f := range g.files {
		places["the file of "+id] = f.b
	}
	state, err := proto.Marshal(g.cluster())
	if err != nil {
		t.Fatal(err)
	}
	places["the state"] = state
	for i, e := range g.c.Audit.Entries() {
		places[fmt.Sprintf("record %d", i)] = e.Body
	}
	if len(places["what nodes sent"]) == 0 || len(secrets) != 5 {
		t.Fatalf("nothing to look at: %d bytes, %d secrets", g.wire.Len(), len(secrets))
	}
	find := func(name string, secret []byte, skip string) {
		for _, form := range [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret)[:40])} {
			for place, b := range places {
				if place != skip && bytes.Contains(b, form) {
					t.Errorf("the %s is in %s", name, place)
				}
			}
		}
	}
	for name, secret := range secrets {
		find(name, secret, "")
	}
	find("return key", seed, "the file of n4")
	if bytes.Contains(g.wire.Bytes(), []byte("conclave-share")) {
		t.Error("a share was sent in the clear")
	}
}

// racing changes the state before each of a node's records is committed.
type racing struct {
	record.Log
	change func()
}

func (r *racing) Propose(ctx context.Context, rec *fsmpb.Record) (fsm.Decision, error) {
	r.change()
	return r.Log.Propose(ctx, rec)
}

// TestChangesMeanwhile: what a peer has checked still holds when the record of the release
// is committed, or it gives nothing.
func TestChangesMeanwhile(t *testing.T) {
	for name, change := range map[string]func(*group){
		"the setting": func(g *group) {
			c := proto.CloneOf(g.cluster())
			c.PeerUnseal = nil
			g.c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
		},
		"the registration": func(g *group) {
			g.c.Commit(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n3", Incarnation: 9, SchemaMin: 1, SchemaMax: 2}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, 3, 1)
			g.down["n2"] = true
			var once sync.Once
			g.nodes["n1"].Events.Replica = &racing{g.nodes["n1"].Replica, func() { once.Do(func() { change(g) }) }}
			s := g.restart("n3")
			if !g.nodes["n3"].Vault.Sealed() || g.part != nil {
				t.Errorf("a part was given: %s", s.Status())
			}
		})
	}
}
