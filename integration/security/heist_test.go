package security

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/integration/harness"
)

// servesWithin bounds how long honest nodes may take to answer again, on both faces,
// when an attack begins, while it goes on and when it has ended. A leader that does
// not prove itself is left after some ten heartbeat timeouts, 3 s here; the rest is
// for slow machines.
const servesWithin = 60 * time.Second

// heist is a cluster from which one node was stolen: its process is gone, or it runs on
// as one of the honest nodes, and the thief has what the test says of its disk and its
// TLS identity.
type heist struct {
	t      *testing.T
	c      *harness.Cluster
	h      *harness.History
	s      *secrets
	dir    string
	stolen *harness.Node
	honest []*harness.Node

	dead, live string // keys: one that was disabled, and one in use
	blob       []byte // under dead
	disk       string // a copy of the stolen node's data directory
	old        string // an older one, of when dead was enabled
	before     map[string]string
	down       bool // the honest nodes did not answer when they were last asked
}

// theft says how a node is stolen.
type theft struct {
	leads     bool // the node that leads; else another one
	runs      bool // its files were copied, and it runs on
	old       bool // an older copy of its disk was made as well
	processes bool // the honest nodes are real processes
	configure func(n *harness.Node, cfg *node.Config)
}

// steal founds a cluster of three nodes, gives it something to lose and takes a node
// from it.
func steal(t *testing.T, how theft) *heist {
	t.Helper()
	x := &heist{t: t, h: harness.NewHistory(), dir: t.TempDir()}
	x.c = harness.NewCluster(t, 3, harness.Options{Processes: how.processes, Dir: x.dir, Configure: func(n *harness.Node, cfg *node.Config) {
		cfg.OpsListen = n.Ops
		if how.old {
			cfg.Test.SnapshotEntries = 10
			cfg.Timeouts.Snapshot = 200 * time.Millisecond
		}
		if how.configure != nil {
			how.configure(n, cfg)
		}
	}})
	x.s = newSecrets(t, x.c)
	leader := x.c.Leader()
	x.stolen = leader
	if !how.leads {
		x.stolen = x.c.Nodes[(leader.Index+1)%3]
	}
	for _, n := range x.c.Nodes {
		if n != x.stolen || how.runs {
			x.honest = append(x.honest, n)
		}
	}
	at := x.h.At(x.honest[0])
	ctx := t.Context()
	ok := func(o harness.Op) {
		t.Helper()
		if o.Code != "" {
			t.Fatal(o)
		}
	}
	var o harness.Op
	x.dead, o = at.CreateKey(ctx, "disabled before the theft")
	ok(o)
	x.live, o = at.CreateKey(ctx, "in use")
	ok(o)
	ok(at.PutKeyPolicy(ctx, x.live, harness.AllowAll))
	ok(at.CreateAlias(ctx, "alias/live", x.live))
	ok(at.Tag(ctx, x.live, "owner", "honest"))
	plaintext := make([]byte, 64)
	rand.Read(plaintext)
	x.s.Add("a plaintext", plaintext)
	x.blob, _, o = at.Encrypt(ctx, x.dead, plaintext)
	ok(o)
	_, dataKey, o := at.DataKey(ctx, x.live)
	ok(o)
	x.s.Add("a data key", dataKey)
	if how.old {
		made := x.c.Converged()
		x.c.Eventually("waiting for a snapshot of the node to be stolen", func(ctx context.Context) error {
			_, o := at.AWSEncrypt(ctx, x.live, plaintext)
			if i, err := harness.SnapshotIndex(x.stolen); err != nil || i < made || o.Code != "" {
				return fmt.Errorf("its newest is of index %d, want %d: %v", i, made, err)
			}
			return nil
		})
		x.old = x.copyDisk("old")
	}
	ok(at.DisableKey(ctx, x.dead))
	x.c.Converged()
	x.before = x.state(x.honest[0])
	if how.runs {
		x.disk = x.copyDisk("disk")
		return x
	}
	x.stolen.Kill()
	x.disk = x.copyDisk("disk")
	x.c.Network.Rejoin(x.stolen.ID) // the thief may answer there
	return x
}

// copyDisk copies the stolen node's data directory.
func (x *heist) copyDisk(name string) string {
	x.t.Helper()
	to := filepath.Join(x.t.TempDir(), name)
	// A running node's files may come and go.
	if err := harness.Poll(x.t.Context(), harness.Patience, func(context.Context) error { return copyTree(to, x.stolen.Data) }); err != nil {
		x.t.Fatal(err)
	}
	return to
}

// copyTree copies a data directory to where nothing else is left, for its owner alone.
func copyTree(to, from string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
}

// thief has the stolen node's TLS identity.
func (x *heist) thief() *thief {
	x.t.Helper()
	peers := make(map[string]string)
	for _, n := range x.honest {
		if n != x.stolen {
			peers[n.ID] = n.Peer
		}
	}
	return newThief(x.t, x.dir, x.stolen.ID, x.stolen.Peer, peers)
}

// state is what a node believes, object by object, but for the newest uses of keys.
func (x *heist) state(n *harness.Node) map[string]string {
	x.t.Helper()
	rows := make(map[string]string)
	if n.InProcess() == nil {
		return rows
	}
	s := n.InProcess().Cluster().State()
	put := func(what string, m proto.Message) {
		if m != nil && m.ProtoReflect().IsValid() {
			b, err := prototext.MarshalOptions{}.Marshal(m)
			if err != nil {
				x.t.Fatal(err)
			}
			rows[what] = string(b)
		}
	}
	c, _ := s.Cluster()
	put("cluster", c)
	for k := range s.AllKeys() {
		id := fsm.IDOf(k)
		name := fmt.Sprintf(" of key %x", k.Id)
		put("key"+name, k)
		policy, _ := s.KeyPolicy(id)
		put("policy"+name, policy)
		tags, _ := s.KeyTags(id)
		put("tags"+name, tags)
		aliases, _ := s.KeyAliases(id)
		put("aliases"+name, aliases)
		grants, _ := s.KeyGrants(id)
		put("grants"+name, grants)
	}
	for a := range s.Aliases(fsm.AccountOf(s), harness.Region, "") {
		put("alias "+a.Name, a)
	}
	for _, id := range []string{x.c.AccessKeyID, thiefAccessKey, x.thiefCertificate()} {
		cred, _ := s.Credential(fsm.AccountOf(s), id)
		put("credential "+id, cred)
	}
	for r := range s.Nodes() {
		put("node "+r.Node, r)
	}
	return rows
}

const thiefAccessKey = "AKIATHIEFTHIEFTHIEF1"

// thiefCertificate is the URI in the stolen node's certificate.
func (x *heist) thiefCertificate() string { return "conclave://node/" + x.stolen.ID }

// unharmed checks that no honest node believes anything else than before, and none
// has ended or is sealed.
func (x *heist) unharmed(after string) {
	x.t.Helper()
	for _, n := range x.honest {
		if err := n.Fault(); err != nil {
			x.t.Errorf("%s: %s ended by itself: %v", after, n.ID, err)
			continue
		}
		if n.InProcess() == nil {
			continue
		}
		if n.InProcess().Engine().Sealed() {
			x.t.Errorf("%s: %s is sealed", after, n.ID)
		}
		now := x.state(n)
		for _, what := range slices.Sorted(maps.Keys(now)) {
			// Nodes register themselves when they start.
			if now[what] != x.before[what] && !strings.HasPrefix(what, "node ") {
				at := differsAt(now[what], x.before[what])
				x.t.Errorf("%s: on %s, %s is …%.120s, and was …%.120s", after, n.ID, what, now[what][at:], x.before[what][at:])
			}
		}
		for what := range x.before {
			if _, ok := now[what]; !ok {
				x.t.Errorf("%s: %s lost %s", after, n.ID, what)
			}
		}
		if ahead := time.Until(time.Unix(0, n.InProcess().Cluster().State().Time())); ahead > time.Hour {
			x.t.Errorf("%s: cluster time on %s is %v ahead", after, n.ID, ahead)
		}
		members := append(n.InProcess().Cluster().Peers(), n.ID)
		if slices.Sort(members); !slices.Equal(members, []string{"a", "b", "c"}) {
			x.t.Errorf("%s: for %s the cluster is %v", after, n.ID, members)
		}
		for _, other := range x.honest {
			r, _ := n.InProcess().Cluster().State().Node(other.ID)
			if r.GetIncarnation() >= 1<<62 || r.GetWatermark() >= 1<<62 {
				x.t.Errorf("%s: on %s, %s is registered as %v", after, n.ID, other.ID, r)
			}
		}
	}
}

// differsAt is a little before the first byte in which two texts differ.
func differsAt(a, b string) int {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	return min(max(0, i-20), len(a), len(b))
}

// serves waits until every honest node answers on both faces, and the disabled key is
// dead at each.
func (x *heist) serves(when string) {
	x.t.Helper()
	plaintext := make([]byte, 64)
	rand.Read(plaintext)
	x.s.Add("a plaintext, "+when, plaintext)
	began := time.Now()
	err := harness.Poll(x.t.Context(), servesWithin, func(ctx context.Context) error {
		for _, n := range x.honest {
			at := x.h.At(n)
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			_, _, g := at.Encrypt(ctx, x.live, plaintext)
			_, a := at.AWSEncrypt(ctx, x.live, plaintext)
			_, d := at.Decrypt(ctx, x.blob)
			cancel()
			for _, o := range []harness.Op{g, a} {
				if o.Code != "" {
					return errors.New(o.String())
				}
			}
			if d.Code == "" {
				x.t.Errorf("%s: %s decrypted with the disabled key", when, n.ID)
			} else if d.Code != "DisabledException" {
				return errors.New(d.String())
			}
		}
		return nil
	})
	if x.down = err != nil; x.down {
		x.t.Errorf("%s: the honest nodes do not serve: %v", when, err)
		return
	}
	x.t.Logf("%s: every honest node served after %v", when, time.Since(began).Round(time.Millisecond))
}

// settle waits until the honest nodes have the same entries. The thief votes for what it does
// not store, so an entry can be committed that one honest node alone has; to end that node
// then would be a second fault, and one of three nodes is all that may fail.
func (x *heist) settle() { x.c.Converged() }

// end checks that the audit log has what honest clients did, and refusals of
// forgeries, and nothing else; and that the thief learned nothing.
func (x *heist) end(th *thief) {
	x.t.Helper()
	x.unharmed("in the end")
	if x.down {
		x.t.Fatal("the honest nodes do not serve in the end")
	}
	log := x.honest[0].ReadLog(0)
	ops := x.h.Ops()
	if _, err := harness.CheckWitness(log, ops); err != nil {
		x.t.Errorf("the audit log is no witness of what honest clients saw:\n%v", err)
	}
	honest, unanswered := make(map[string]bool), make(map[string]int)
	for _, o := range ops {
		if honest[o.RequestID] = true; o.RequestID == "" {
			unanswered[o.Name]++ // it may have a record, whose id its client was not told
		}
	}
	names := make(map[string]int)
	for _, r := range log {
		names[r.Name]++
		// The harness reads the log and opens sessions.
		if r.Type != "AwsApiCall" || honest[r.RequestID] || r.Name == "ListKeys" {
			continue
		}
		if unanswered[r.Name]--; unanswered[r.Name] < 0 {
			x.t.Errorf("record %d is of %s %s, which no honest client asked for", r.Index, r.Name, r.RequestID)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !slices.Contains(honestEvents, name) {
			x.t.Errorf("the audit log has %d records of %s", names[name], name)
		}
	}
	x.t.Logf("the audit log has %v", names)
	x.c.Converged()
	if th != nil {
		heard := th.all()
		found, _ := x.s.InFile(heard)
		report(x.t, "what the thief was sent", found)
		x.t.Logf("the thief was sent %d bytes, and these requests: %s", len(heard), th.requests())
	}
	found, _, _ := x.s.InDir(x.t, x.disk)
	report(x.t, "the stolen disk", found)
}

// honestEvents are what the audit log of such a cluster has.
var honestEvents = []string{
	"Init", "SubmitShare", "Unseal", "CreateSession", "ReadAudit", "ListKeys", "CreateKey", "PutKeyPolicy", "CreateAlias", "TagResource",
	"Encrypt", "Decrypt", "GenerateDataKey", "DisableKey", "EnableKey", "DescribeKey", "AnswersWithheld", "RefuseForgery", "StartNode",
}

// named checks that some honest node counted a forgery of the stolen node, and that
// the audit log names it and no honest node.
func (x *heist) named() {
	x.t.Helper()
	x.c.Eventually("waiting for the audit log to name the thief", func(ctx context.Context) error {
		found := false
		for _, line := range harness.ReadAudit(x.t, x.honest[0], 0) {
			if line.EventName != "RefuseForgery" {
				continue
			}
			if !strings.Contains(line.Raw, fmt.Sprintf(`"node":%q`, x.stolen.ID)) {
				x.t.Errorf("the audit log names somebody else: %s", line.Raw)
			}
			found = true
		}
		if !found {
			return errors.New("no record names it")
		}
		return nil
	})
	counted := false
	for _, n := range x.honest {
		metrics := string(harness.OpsGet(x.t, n, "/metrics"))
		for _, m := range x.c.Nodes {
			has := strings.Contains(metrics, fmt.Sprintf("conclave_peer_forgeries_total{node=%q}", m.ID))
			if has && m != x.stolen {
				x.t.Errorf("%s counts forgeries of %s, which is honest", n.ID, m.ID)
			}
			counted = counted || has
		}
	}
	if !counted {
		x.t.Error("no honest node counts the forgeries")
	}
}

// forgeries are entries that would give the thief something, each with a signature
// that it could think of. signed are authentic ones of the log.
func (x *heist) forgeries(signed [][]byte) map[string][]byte {
	x.t.Helper()
	s := x.honest[0].InProcess().Cluster().State()
	var dead *fsmpb.Key
	for k := range s.AllKeys() {
		if k.Description == "disabled before the theft" {
			dead = proto.CloneOf(k)
		}
	}
	if dead == nil || dead.State != fsmpb.KeyState_KEY_STATE_DISABLED {
		x.t.Fatal("the disabled key is not there")
	}
	dead.State = fsmpb.KeyState_KEY_STATE_ENABLED
	root, _ := s.Credential(fsm.AccountOf(s), x.c.AccessKeyID)
	planted, certificate := proto.CloneOf(root), proto.CloneOf(root)
	planted.Id, certificate.Id = thiefAccessKey, x.thiefCertificate()
	c, _ := s.Cluster()
	seal := proto.CloneOf(c)
	rand.Read(seal.WrappedRoot)
	put := map[string][]*fsmpb.Change{
		"a disabled key enabled":    {{Change: &fsmpb.Change_PutKey{PutKey: dead}}},
		"a credential of root":      {{Change: &fsmpb.Change_PutCredential{PutCredential: planted}}},
		"the node as root":          {{Change: &fsmpb.Change_PutCredential{PutCredential: certificate}}},
		"another seal":              {{Change: &fsmpb.Change_PutCluster{PutCluster: seal}}},
		"a key deleted":             {{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: dead.Account, Region: dead.Region, Key: dead.Id}}}},
		"time confirmed for a year": {{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: time.Now().AddDate(1, 0, 0).UnixNano()}}}},
		"noise in the audit log":    nil,
	}
	forged := make(map[string][]byte)
	for what, changes := range put {
		for _, by := range x.c.Nodes { // in anybody's name
			n, _ := s.Node(by.ID)
			record := &fsmpb.Record{RequestId: make([]byte, 16), Commitment: make([]byte, 32), Salt: make([]byte, 16), Body: make([]byte, 99), Generation: 1, Changes: changes}
			for _, b := range [][]byte{record.RequestId, record.Commitment, record.Salt, record.Body} {
				rand.Read(b)
			}
			e, err := wire.EncodeEntry(&fsmpb.Entry{Clock: x.clock(), Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{{
				Node: by.ID, Incarnation: n.GetIncarnation(), Seq: 1 << 40, Records: []*fsmpb.Record{record},
			}}}}})
			if err != nil {
				x.t.Fatal(err)
			}
			forged[what+", as "+by.ID] = e
		}
	}
	for _, n := range x.honest {
		e, err := wire.EncodeEntry(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: n.ID, Incarnation: 1 << 62, Watermark: 1 << 62}}})
		if err != nil {
			x.t.Fatal(err)
		}
		forged[n.ID+" fenced"] = e
	}
	check, err := wire.EncodeEntry(&fsmpb.Entry{StateCheck: &fsmpb.StateCheck{Index: 1000, Hash: make([]byte, 32)}})
	if err != nil {
		x.t.Fatal(err)
	}
	forged["a wrong hash"] = check
	// The same with signatures: of another entry, and made up.
	for what, e := range maps.Clone(forged) {
		signature := make([]byte, 64)
		rand.Read(signature)
		forged[what+", signed at random"] = appendOrigin(x.t, e, &fsmpb.Origin{Generation: 1, Signature: signature})
		if len(signed) > 0 {
			var donor fsmpb.Entry
			if err := proto.Unmarshal(signed[len(signed)-1], &donor); err != nil {
				x.t.Fatal(err)
			}
			forged[what+", with another's signature"] = appendOrigin(x.t, e, donor.Origin)
		}
	}
	return forged
}

// clock is evidence of a time a year ahead that every voter agrees to.
func (x *heist) clock() *fsmpb.Clock {
	wall := time.Now().AddDate(1, 0, 0).UnixNano()
	c := &fsmpb.Clock{Wall: wall, Elapsed: int64(24 * time.Hour)}
	for _, n := range x.c.Nodes {
		c.Readings = append(c.Readings, &fsmpb.ClockReading{Node: n.ID, Wall: wall})
	}
	return c
}

func appendOrigin(t *testing.T, entry []byte, o *fsmpb.Origin) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(slices.Clone(entry), &fsmpb.Entry{Origin: o})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// logOf is the log as the thief was sent it, as a follower: the whole of it, unless
// nobody sends it anything any more.
func (x *heist) logOf(th *thief) []*raft.Log {
	x.t.Helper()
	if x.down {
		x.t.Fatal("the honest nodes do not serve")
	}
	want := x.c.Converged()
	if err := harness.Poll(x.t.Context(), 10*time.Second, func(context.Context) error {
		if have := uint64(len(th.entries())); have < want {
			return fmt.Errorf("the thief has %d entries of %d", have, want)
		}
		return nil
	}); err != nil {
		x.t.Log(err)
	}
	log := th.entries()
	if len(log) == 0 {
		x.t.Fatal("void: the thief was sent no entry")
	}
	return log
}

// authentic are the entries that an unsealed leader signed.
func authentic(log []*raft.Log) (signed [][]byte) {
	for _, l := range log {
		var e fsmpb.Entry
		if l.Type == raft.LogCommand && proto.Unmarshal(l.Data, &e) == nil && e.Origin != nil {
			signed = append(signed, l.Data)
		}
	}
	return signed
}

// servesAgain enables the live key at a node, takes the version that it has by now for the
// right one, and checks that every honest node serves.
func (x *heist) servesAgain(at *harness.Node) {
	x.t.Helper()
	if o := harness.UntilDefinite(func() harness.Op { return x.h.At(at).EnableKey(x.t.Context(), x.live) }); o.Code != "" {
		x.t.Error(o)
	}
	x.c.Converged()
	for what, row := range x.state(x.honest[0]) {
		if strings.Contains(row, "in use") {
			x.before[what] = row
		}
	}
	x.serves("after all")
}
