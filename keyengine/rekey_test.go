package keyengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// A changeTest makes the operators' calls of ceremonies that replace keys, on a cluster with
// two of three shares.
type changeTest struct {
	*testCluster
	shares []string // those of the cluster's first set
	blobs  map[string][]byte
}

func newChangeTest(t *testing.T, options ...clusterOption) *changeTest {
	t.Helper()
	c := newTestCluster(t, append([]clusterOption{func(c *clusterConfig) {
		p := enginetest.InitParams(3, 2)
		p.RootCertificate, p.KeepUnsealed = rootURI, true
		c.init = p
	}}, options...)...)
	g := &changeTest{testCluster: c, shares: c.initResult.Shares, blobs: make(map[string][]byte)}
	g.raiseLevel()
	return g
}

// raiseLevel raises the feature level to that which ceremonies need.
func (g *changeTest) raiseLevel() {
	g.t.Helper()
	if _, _, err := g.engine.FinalizeUpgrade(g.t.Context(), enginetest.Operator, func(context.Context) (uint32, []string) { return 2, nil }); err != nil {
		g.t.Fatal(err)
	}
}

func operatorNow() ceremony.Operator {
	op := enginetest.Operator
	op.RequestID = randomID()
	return op
}

var changePurposes = map[ceremony.KeyChange]string{
	ceremony.Rekey: "conclave rekey share v1", ceremony.RotateRoot: "conclave root rotation share v1",
	ceremony.RotateKeyring: "conclave keyring rotation share v1",
}

// sealShare encrypts a share for a ceremony, as clients do.
func sealShare(t testing.TB, purpose string, st *ceremony.KeyChangeStatus, share string) []byte {
	t.Helper()
	sealed, err := keymat.SealTo(st.PublicKey, slices.Concat([]byte(purpose+"\x00"), st.ClusterID[:], st.Nonce[:], []byte(st.NodeID)), []byte(share))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func (g *changeTest) submit(ctx context.Context, e *Engine, st *ceremony.KeyChangeStatus, share string) (*ceremony.KeyChangeStatus, bool, error) {
	g.t.Helper()
	return e.KeyChanges.Submit(ctx, operatorNow(), st.Nonce[:], sealShare(g.t, changePurposes[st.Kind], st, share))
}

// newShares returns the shares of a rekey's new set.
func (g *changeTest) newShares(ctx context.Context, e *Engine, st *ceremony.KeyChangeStatus) ([]string, error) {
	g.t.Helper()
	to, err := keymat.NewReceiver(e.vault.Arena())
	if err != nil {
		g.t.Fatal(err)
	}
	defer to.Destroy()
	sealed, _, err := e.KeyChanges.NewShares(ctx, operatorNow(), st.Nonce[:], to.Public())
	if err != nil {
		return nil, err
	}
	message, err := to.Open(append([]byte("conclave rekey v1\x00"), st.Nonce[:]...), sealed)
	if err != nil {
		g.t.Fatal(err)
	}
	defer message.Destroy()
	var shares []string
	err = message.With(func(b []byte) error {
		var m kmspb.InitSecrets
		if err := proto.Unmarshal(b, &m); err != nil {
			return err
		}
		for _, s := range m.GetShares() {
			shares = append(shares, string(s))
		}
		if len(m.GetSecretAccessKey()) > 0 {
			return errors.New("there is a secret access key among the shares")
		}
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return shares, nil
}

// hold holds a ceremony up to its end, and returns the shares that are then valid, and
// those that would be if the outcome is not known.
func (g *changeTest) hold(ctx context.Context, e *Engine, p ceremony.KeyChangeParams) (before, after []string, err error) {
	g.t.Helper()
	before, after = g.shares, g.shares
	st, err := e.KeyChanges.Begin(ctx, operatorNow(), p)
	if err != nil {
		return before, after, err
	}
	for i := range 2 {
		if st, _, err = g.submit(ctx, e, st, before[2*i]); err != nil {
			return before, after, err
		}
	}
	if p.Kind != ceremony.Rekey {
		return before, after, nil
	}
	if after, err = g.newShares(ctx, e, st); err != nil {
		return before, before, err
	}
	for i := range p.Threshold {
		if st, _, err = g.submit(ctx, e, st, after[i]); err != nil {
			return before, after, err
		}
	}
	return before, after, nil
}

// mustHold holds a ceremony that has to succeed. Its shares are then the valid ones.
func (g *changeTest) mustHold(e *Engine, p ceremony.KeyChangeParams) {
	g.t.Helper()
	before, after, err := g.hold(g.t.Context(), e, p)
	if err != nil {
		g.t.Fatal(err)
	}
	if p.Kind == ceremony.Rekey && slices.Equal(before, after) {
		g.t.Fatal("the shares are the old ones")
	}
	g.shares = after
}

// encrypt encrypts something with a new key.
func (g *changeTest) encrypt() {
	g.t.Helper()
	id, _ := g.newKey()
	g.blobs[id] = must[kmsapi.EncryptOutput](g.testCluster, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte(id)}).CiphertextBlob
}

// wantAllOpen decrypts on all nodes what was ever encrypted.
func (g *changeTest) wantAllOpen() {
	g.t.Helper()
	for node, e := range g.engines {
		for id, blob := range g.blobs {
			out, err := callAs[kmsapi.DecryptOutput](g.testCluster, e, g.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
			if err != nil || string(out.Plaintext) != id {
				g.t.Errorf("%s: a ciphertext of %s does not open: %v", node, id, err)
			}
		}
	}
}

// restartAll restarts all nodes, whatever state they are in. They are sealed then.
func (g *changeTest) restartAll() {
	g.t.Helper()
	for node, e := range g.engines {
		e.Authenticator.Close() // waits for what it asks the log
		r := g.Replica(node)
		r.BeforeCommit, r.Err, r.LoseOutcome = nil, nil, false
		g.startEngine(node)
	}
	g.engine = g.engines["n1"]
}

// opens reports whether a node that has just been restarted is unsealed by these shares. If
// not, each of them must be refused.
func (g *changeTest) opens(e *Engine, shares []string) bool {
	g.t.Helper()
	refused := 0
	for _, s := range shares {
		st, err := e.SubmitShare(g.t.Context(), operatorNow(), s)
		if errors.Is(err, ceremony.ErrShare) {
			refused++
			continue
		}
		if err != nil {
			g.t.Fatal(err)
		}
		if !st.Sealed {
			return true
		}
	}
	if refused != len(shares) {
		g.t.Errorf("%d of %d shares are refused, and the node is still sealed", refused, len(shares))
	}
	return false
}

// wantOneSet restarts all nodes and checks that exactly one of the two sets works, the same
// on all of them. It returns that set.
func (g *changeTest) wantOneSet(old, new []string) (works []string) {
	g.t.Helper()
	g.restartAll()
	for node, e := range g.engines {
		opened := old
		if g.opens(e, old) {
			if !slices.Equal(old, new) && g.setInForce(new) {
				g.t.Errorf("%s: both sets work", node)
			}
		} else if opened = new; slices.Equal(old, new) || !g.opens(e, new) {
			g.t.Fatalf("%s: no share set works", node)
		}
		if works != nil && !slices.Equal(works, opened) {
			g.t.Fatalf("%s: another set of shares works than on the other node", node)
		}
		works = opened
	}
	return works
}

// setInForce reports whether the first of the shares belongs to the set in force.
func (g *changeTest) setInForce(shares []string) bool {
	g.t.Helper()
	set, err := g.engine.KeyChanges.ShareSet(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	_, err = set.Check([]byte(shares[0]))
	return err == nil
}

func (g *changeTest) names(contains string) (names []string) {
	g.t.Helper()
	nodeOf(g.engine).Events.RecordPending(g.t.Context())
	for _, name := range enginetest.EventNames(nodeOf(g.engine).Records()) {
		if strings.Contains(name, contains) {
			names = append(names, name)
		}
	}
	return names
}

func (g *changeTest) wantNames(contains string, want ...string) {
	g.t.Helper()
	if got := g.names(contains); !slices.Equal(got, want) {
		g.t.Errorf("got records %q, want %q", got, want)
	}
}

func TestRekey(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(2))
	g.encrypt()
	old := g.shares
	slots := nodeOf(g.engine).MemoryInUse()
	was, _ := g.State().Cluster()
	st, err := g.engine.KeyChanges.Begin(t.Context(), operatorNow(), ceremony.KeyChangeParams{Kind: ceremony.Rekey, Shares: 4, Threshold: 3})
	if err != nil {
		t.Fatal(err)
	}
	if !st.Active || st.Needed != 2 || !slices.Equal(st.Missing, []int{1, 2, 3}) || st.Proving || st.ShareSet.Epoch != 1 || st.New.Count != 4 {
		t.Errorf("it begins with %+v", st)
	}
	if st, _, err = g.submit(t.Context(), g.engine, st, old[2]); err != nil || st.Needed != 1 || !slices.Equal(st.Missing, []int{1, 2}) {
		t.Fatalf("the first share: %+v, %v", st, err)
	}
	if _, err := g.newShares(t.Context(), g.engine, st); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("new shares before the custodians agreed: %v", err)
	}
	if st, _, err = g.submit(t.Context(), g.engine, st, old[0]); err != nil || !st.Proving || st.Needed != 3 || !slices.Equal(st.Missing, []int{1, 2, 3, 4}) {
		t.Fatalf("the second share: %+v, %v", st, err)
	}
	if now, _ := g.State().Cluster(); !proto.Equal(now, was) {
		t.Fatal("the keys changed before the new shares were proven")
	}
	stranger := operatorNow()
	stranger.Name = "conclave://operator/eve"
	if _, _, err := g.engine.KeyChanges.NewShares(t.Context(), stranger, st.Nonce[:], pointOf(t, g.engine)); !errors.Is(err, ceremony.ErrOwner) {
		t.Errorf("new shares for another operator: %v", err)
	}
	shares, err := g.newShares(t.Context(), g.engine, st)
	if err != nil || len(shares) != 4 {
		t.Fatalf("got %d new shares, %v", len(shares), err)
	}
	if again, err := g.newShares(t.Context(), g.engine, st); err != nil || !slices.Equal(again, shares) {
		t.Errorf("the new shares, when the first answer was lost: %v", err)
	}
	if _, _, err := g.submit(t.Context(), g.engine, st, old[1]); !errors.Is(err, ceremony.ErrShare) || !strings.Contains(err.Error(), "another share set") {
		t.Errorf("an old share as a new one: %v", err)
	}
	for i, share := range shares[1:] {
		var done bool
		if st, done, err = g.submit(t.Context(), g.engine, st, share); err != nil || done != (i == 2) {
			t.Fatalf("new share %d: done %v, %v", i+2, done, err)
		}
		if i == 0 {
			if _, err := g.newShares(t.Context(), g.engine, st); !errors.Is(err, ceremony.ErrNoCeremony) {
				t.Errorf("new shares once one has come back: %v", err)
			}
		}
	}
	if st.Active || st.ShareSet.Epoch != 2 || st.ShareSet.Threshold != 3 || st.ShareSet.Count != 4 {
		t.Errorf("it ends with %+v", st)
	}
	g.wantNames("Rekey", "BeginRekey", "SubmitRekeyShare", "IssueRekeyShares!NoCeremonyException", "SubmitRekeyShare", "AuthorizeRekey", "IssueRekeyShares!CeremonyInProgressException", "IssueRekeyShares", "IssueRekeyShares",
		"SubmitRekeyShare!InvalidShareException", "SubmitRekeyShare", "IssueRekeyShares!NoCeremonyException", "SubmitRekeyShare", "SubmitRekeyShare", "CompleteRekey")
	for _, rec := range nodeOf(g.engine).Records() {
		for _, s := range append(slices.Clone(old), shares...) {
			if b, err := proto.Marshal(rec); err != nil || bytes.Contains(b, []byte(s)) {
				t.Errorf("%s contains a share", rec.EventName)
			}
		}
	}
	if n := nodeOf(g.engine).MemoryInUse(); n > slots {
		t.Errorf("%d slots of locked memory are in use, before there were %d", n, slots)
	}
	g.wantAllOpen()
	if works := g.wantOneSet(old, shares); !slices.Equal(works, shares) {
		t.Error("the old shares work after the rekey")
	}
	g.wantAllOpen()
	if n, err := must2(g.engine.KeyChanges.ShareSet(t.Context())).Check([]byte(old[0])); err == nil || n != 0 || !strings.Contains(err.Error(), "another share set") {
		t.Errorf("an old share is verified as share %d, %v", n, err)
	}
	if n, err := must2(g.engine.KeyChanges.ShareSet(t.Context())).Check([]byte(" " + shares[3] + "\n")); err != nil || n != 4 {
		t.Errorf("a new share is verified as share %d, %v", n, err)
	}
}

// TestRekeyToCustodians: with custodians, the operator gets no share but encrypted ones, each of
// which its custodian alone can decrypt, and the new set has the custodians' names.
func TestRekeyToCustodians(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t)
	g.encrypt()
	old := g.shares
	slots := nodeOf(g.engine).MemoryInUse()
	var given []ceremony.CustodianKey
	var private []*custodian.PrivateKey
	for _, name := range []string{"dora", "emil", "Çağrı"} {
		p, err := custodian.Generate()
		if err != nil {
			t.Fatal(err)
		}
		given, private = append(given, ceremony.CustodianKey{Name: name, Key: []byte(p.Public())}), append(private, p)
	}
	p := ceremony.KeyChangeParams{Kind: ceremony.Rekey, Threshold: 2, Custodians: given}
	for why, change := range map[string]func(*ceremony.KeyChangeParams){
		"number of shares":  func(p *ceremony.KeyChangeParams) { p.Shares = 4 },
		"threshold must be": func(p *ceremony.KeyChangeParams) { p.Threshold = 4 },
		"same key": func(p *ceremony.KeyChangeParams) {
			p.Custodians = append(slices.Clone(given), ceremony.CustodianKey{Name: "x", Key: given[0].Key})
		},
		"the key of custodian": func(p *ceremony.KeyChangeParams) {
			p.Custodians = []ceremony.CustodianKey{{Name: "x", Key: []byte("key")}, given[0]}
		},
		"leaves the shares":     func(p *ceremony.KeyChangeParams) { p.Kind, p.Threshold = ceremony.RotateRoot, 0 },
		"16 custodians at most": func(p *ceremony.KeyChangeParams) { p.Custodians = make([]ceremony.CustodianKey, 17) },
	} {
		q := p
		change(&q)
		if _, err := g.engine.KeyChanges.Begin(t.Context(), operatorNow(), q); !errors.Is(err, kmsapi.ErrValidation) || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want that it says %q", err, why)
		}
	}

	st, err := g.engine.KeyChanges.Begin(t.Context(), operatorNow(), p)
	if err != nil {
		t.Fatal(err)
	}
	if st.New.Count != 3 || len(st.New.Custodians) != 3 || st.New.Custodians[2].Name != "Çağrı" || st.New.Custodians[0].KeyFingerprint == "" || st.New.Commitments != nil {
		t.Errorf("the current custodians are to agree to %+v", st.New)
	}
	for _, share := range old[:2] {
		if st, _, err = g.submit(t.Context(), g.engine, st, share); err != nil {
			t.Fatal(err)
		}
	}
	take := func() []ceremony.EncryptedShare {
		t.Helper()
		sealed, encrypted, err := g.engine.KeyChanges.NewShares(t.Context(), operatorNow(), st.Nonce[:], pointOf(t, g.engine))
		if err != nil || sealed != nil || len(encrypted) != 3 {
			t.Fatalf("got %d bytes for the operator, and %d shares for the custodians, %v", len(sealed), len(encrypted), err)
		}
		return encrypted
	}
	var shares []string
	for i, s := range take() {
		if s.Custodian != st.New.Custodians[i] || s.Index != i+1 {
			t.Errorf("share %d is of %+v", s.Index, s.Custodian)
		}
		for j, key := range private {
			text, err := key.Decrypt([]byte(s.Text))
			if (err == nil) != (i == j) {
				t.Errorf("share %d by key %d: %v", i+1, j+1, err)
			}
			if i == j {
				shares = append(shares, string(text))
			}
		}
	}
	if st, _, err = g.submit(t.Context(), g.engine, st, shares[2]); err != nil {
		t.Fatal(err)
	}
	take() // also after one has come back, since they are encrypted
	if _, done, err := g.submit(t.Context(), g.engine, st, shares[0]); err != nil || !done {
		t.Fatalf("done %v, %v", done, err)
	}
	if got := g.engine.SealStatus().ShareSet; !slices.Equal(got.Custodians, st.New.Custodians) || got.Epoch != 2 {
		t.Errorf("afterwards the share set is %+v", got)
	}
	for _, rec := range nodeOf(g.engine).Records() {
		b, err := proto.Marshal(rec)
		for _, s := range append(slices.Clone(old), shares...) {
			if err != nil || bytes.Contains(b, []byte(s)) {
				t.Errorf("%s contains a share", rec.EventName)
			}
		}
		if rec.EventName == "BeginRekey" && rec.ErrorCode == "" && !bytes.Contains(b, []byte("Çağrı")) {
			t.Error("the record of the beginning does not name the custodians")
		}
	}
	if n := nodeOf(g.engine).MemoryInUse(); n > slots {
		t.Errorf("%d slots of locked memory are in use, before there were %d", n, slots)
	}
	if works := g.wantOneSet(old, shares); !slices.Equal(works, shares) {
		t.Error("the old shares work after the rekey")
	}
	g.wantAllOpen()
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRotateRoot(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(2))
	g.encrypt()
	was, _ := g.State().Cluster()
	g.mustHold(g.engine, ceremony.KeyChangeParams{Kind: ceremony.RotateRoot})
	now, _ := g.State().Cluster()
	if bytes.Equal(now.WrappedRoot, was.WrappedRoot) || bytes.Equal(now.Keyring[0].Wrapped, was.Keyring[0].Wrapped) || now.Shares.Epoch != 2 || !bytes.Equal(now.Shares.Id, was.Shares.Id) {
		t.Errorf("the keys are %v, they were %v", now, was)
	}
	g.encrypt() // without any key being opened anew
	g.wantAllOpen()
	g.wantNames("RootRotation", "BeginRootRotation", "SubmitRootRotationShare", "SubmitRootRotationShare", "CompleteRootRotation")
	g.wantOneSet(g.shares, g.shares)
	g.wantAllOpen()
	// The two can follow each other.
	g.mustHold(g.engine, ceremony.KeyChangeParams{Kind: ceremony.Rekey, Shares: 2, Threshold: 2})
	g.shares = []string{g.shares[0], "", g.shares[1]}
	g.mustHold(g.engines["n2"], ceremony.KeyChangeParams{Kind: ceremony.RotateRoot})
	g.restartAll()
	if !g.opens(g.engine, []string{g.shares[0], g.shares[2]}) {
		t.Error("the shares of the rekey do not work after the rotation")
	}
}

// TestKeyChangeDiesAtEachStep ends the node that holds a ceremony at each of its records: once
// before the record is committed, and once after, before anybody hears of it. Then all nodes
// are restarted. Exactly one share set works, the same everywhere, and everything opens.
func TestKeyChangeDiesAtEachStep(t *testing.T) {
	t.Parallel()
	for kind, p := range map[string]ceremony.KeyChangeParams{
		"rekey":          {Kind: ceremony.Rekey, Shares: 3, Threshold: 2},
		"rotate root":    {Kind: ceremony.RotateRoot},
		"rotate keyring": {Kind: ceremony.RotateKeyring},
	} {
		for _, committed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, committed %v", kind, committed), func(t *testing.T) {
				t.Parallel()
				g := newChangeTest(t, withNodes(2))
				g.encrypt()
				for step := 1; ; step++ {
					was, _ := g.State().Cluster()
					ctx, die := context.WithCancel(t.Context())
					r, n := g.Replica("n1"), 0
					r.BeforeCommit = func(*fsmpb.Record) {
						if n++; n < step {
							return
						}
						if !committed {
							r.Decide = func() fsm.Verdict { return fsm.Conflict }
						}
						r.Err = fsm.ErrNodeStopped // from the next call on
						r.LoseOutcome = true
						die()
					}
					old, new, err := g.hold(ctx, g.engine, p)
					r.Decide = nil
					die()
					finished := n < step
					if finished != (err == nil) {
						t.Fatalf("step %d of %d: %v", step, n, err)
					}
					works := g.wantOneSet(old, new)
					now, _ := g.State().Cluster()
					changed := now.Shares.Epoch != was.Shares.Epoch || len(now.Keyring) != len(was.Keyring)
					if want := slices.Equal(works, new); !slices.Equal(old, new) && changed != want {
						t.Errorf("step %d: the record was changed: %v, and the new set works: %v", step, changed, want)
					}
					if last := n == step; changed && !finished && (!last || !committed) {
						t.Errorf("step %d: the keys were replaced although the last record was not committed", step)
					}
					g.shares = works
					g.wantAllOpen()
					g.encrypt()
					g.settle(g.engine)
					if finished {
						if step < 4 {
							t.Errorf("the ceremony had only %d steps", step-1)
						}
						return
					}
				}
			})
		}
	}
}

func TestKeyChangeRefuses(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(2))
	ctx, n1, n2 := t.Context(), g.engine, g.engines["n2"]
	for name, p := range map[string]ceremony.KeyChangeParams{
		"nothing":              {},
		"no shares":            {Kind: ceremony.Rekey},
		"too many shares":      {Kind: ceremony.Rekey, Shares: 17, Threshold: 2},
		"a threshold of one":   {Kind: ceremony.Rekey, Shares: 2, Threshold: 1},
		"a threshold too high": {Kind: ceremony.Rekey, Shares: 2, Threshold: 3},
		"shares of a root key": {Kind: ceremony.RotateRoot, Shares: 2, Threshold: 2},
	} {
		if _, err := n1.KeyChanges.Begin(ctx, operatorNow(), p); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s: got error %v, want ValidationException", name, err)
		}
	}
	p := ceremony.KeyChangeParams{Kind: ceremony.Rekey, Shares: 2, Threshold: 2}
	st, err := n1.KeyChanges.Begin(ctx, operatorNow(), p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n1.KeyChanges.Begin(ctx, operatorNow(), ceremony.KeyChangeParams{Kind: ceremony.RotateRoot}); !errors.Is(err, ceremony.ErrOwner) {
		t.Errorf("two at once: %v", err)
	}
	if _, _, err := g.submit(ctx, n1, st, g.shares[0]); err != nil {
		t.Fatal(err)
	}
	stale := *st
	stale.Nonce[0]++
	other := *st
	other.Kind = ceremony.RotateRoot
	for name, tt := range map[string]struct {
		st    *ceremony.KeyChangeStatus
		share string
		want  *kmsapi.Error
	}{
		"the same share":             {st, g.shares[0], ceremony.ErrShare},
		"a forged share":             {st, enginetest.ForgedShare(t, g.Cluster, 2), ceremony.ErrShare},
		"no share":                   {st, "conclave-share-1-x", ceremony.ErrShare},
		"an empty share":             {st, "", ceremony.ErrShare},
		"a long share":               {st, strings.Repeat("a", 1<<20), ceremony.ErrShare},
		"a stale nonce":              {&stale, g.shares[1], ceremony.ErrNoCeremony},
		"for another kind of change": {&other, g.shares[1], ceremony.ErrShare},
	} {
		if _, _, err := g.submit(ctx, n1, tt.st, tt.share); !errors.Is(err, tt.want) {
			t.Errorf("%s: got error %v, want %s", name, err, tt.want.Code)
		}
	}
	if now, err := n1.KeyChanges.Status(); err != nil || !slices.Equal(now.Custodians, []int{1}) {
		t.Errorf("refused shares spoil the progress: %+v, %v", now, err)
	}
	if _, _, err := g.submit(ctx, n2, st, g.shares[1]); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("on another node: %v", err)
	}
	for name, nonce := range map[string][]byte{"no nonce": nil, "a stale nonce": stale.Nonce[:], "a prefix": st.Nonce[:8]} {
		if err := n1.KeyChanges.Cancel(ctx, operatorNow(), nonce); !errors.Is(err, ceremony.ErrNoCeremony) {
			t.Errorf("cancel with %s: %v", name, err)
		}
	}
	if err := n1.KeyChanges.Cancel(ctx, operatorNow(), st.Nonce[:]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.submit(ctx, n1, st, g.shares[1]); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("after it was cancelled: %v", err)
	}

	// It ends by itself: when its time is over, and when the node is sealed.
	if st, err = n1.KeyChanges.Begin(ctx, operatorNow(), p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.submit(ctx, n1, st, g.shares[0]); err != nil {
		t.Fatal(err)
	}
	g.Advance(15 * time.Minute)
	if _, _, err := g.submit(ctx, n1, st, g.shares[1]); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("after its time: %v", err)
	}
	if got := g.names("ExpireRekey"); len(got) != 1 {
		t.Errorf("got %d records of its end", len(got))
	}
	if st, err = n1.KeyChanges.Begin(ctx, operatorNow(), p); err != nil {
		t.Fatal(err)
	}
	if err := n1.Seal(ctx, operatorNow()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.submit(ctx, n1, st, g.shares[0]); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("on a sealed node: %v", err)
	}
	nodeOf(n1).Unseal(g.shares...)
	if now, err := n1.KeyChanges.Status(); err != nil || now.Active {
		t.Errorf("after the node was sealed: %+v, %v", now, err)
	}
}

// TestKeyChangeOfTwoNodes: the first of two ceremonies to be committed ends the other, and
// unsealings that wait for shares of the old set.
func TestKeyChangeOfTwoNodes(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(3))
	ctx, n1, n2, n3, old := t.Context(), g.engine, g.engines["n2"], g.engines["n3"], g.shares
	late, err := n2.KeyChanges.Begin(ctx, operatorNow(), ceremony.KeyChangeParams{Kind: ceremony.Rekey, Shares: 2, Threshold: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range old[:2] {
		if late, _, err = g.submit(ctx, n2, late, s); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := g.newShares(ctx, n2, late)
	if err != nil {
		t.Fatal(err)
	}
	if late, _, err = g.submit(ctx, n2, late, lost[0]); err != nil {
		t.Fatal(err)
	}
	if err := n3.Seal(ctx, operatorNow()); err != nil {
		t.Fatal(err)
	}
	if st, err := n3.SubmitShare(ctx, operatorNow(), old[0]); err != nil || st.Progress != 1 {
		t.Fatal(err)
	}
	g.mustHold(n1, ceremony.KeyChangeParams{Kind: ceremony.Rekey, Shares: 3, Threshold: 2})
	if _, _, err := g.submit(ctx, n2, late, lost[1]); !errors.Is(err, ceremony.ErrNoCeremony) || !strings.Contains(err.Error(), "another one has replaced the shares") {
		t.Errorf("the later ceremony: %v", err)
	}
	if st := n3.SealStatus(); st.Progress != 0 || st.Threshold != 2 {
		t.Errorf("an unsealing with the old shares goes on: %+v", st)
	}
	if _, err := n3.SubmitShare(ctx, operatorNow(), old[1]); !errors.Is(err, ceremony.ErrShare) || !strings.Contains(err.Error(), "were replaced by a rekey") {
		t.Errorf("an old share: %v", err)
	}
	nodeOf(n3).Unseal(g.shares...)
	var cause string
	for _, rec := range nodeOf(n3).Records() {
		if rec.EventName == "AbandonShares" {
			cause = rec.String()
		}
	}
	if !strings.Contains(cause, "the share set was replaced") {
		t.Errorf("the unsealing was abandoned with the record %s", cause)
	}
}

// TestKeyChangeNeedsItsLevel: nodes of the release before would refuse the record.
func TestKeyChangeNeedsItsLevel(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	for _, p := range []ceremony.KeyChangeParams{{Kind: ceremony.Rekey, Shares: 2, Threshold: 2}, {Kind: ceremony.RotateRoot}} {
		_, err := c.engine.KeyChanges.Begin(t.Context(), operatorNow(), p)
		if !errors.Is(err, kmsapi.ErrUnsupported) || !strings.Contains(err.Error(), "feature level 2") || !strings.Contains(err.Error(), "conclave cluster upgrade finalize") {
			t.Errorf("got error %v", err)
		}
	}
}

// TestKeyChangeUnknownOutcome: the log does not say whether the last record was committed,
// and it was.
func TestKeyChangeUnknownOutcome(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t)
	st, err := g.engine.KeyChanges.Begin(t.Context(), operatorNow(), ceremony.KeyChangeParams{Kind: ceremony.RotateRoot})
	if err != nil {
		t.Fatal(err)
	}
	if st, _, err = g.submit(t.Context(), g.engine, st, g.shares[0]); err != nil {
		t.Fatal(err)
	}
	r, n := g.Replica("n1"), 0
	r.BeforeCommit = func(*fsmpb.Record) {
		if n++; n == 2 { // the first is that of the share
			r.LoseOutcome = true
		}
	}
	st, done, err := g.submit(t.Context(), g.engine, st, g.shares[1])
	r.BeforeCommit, r.LoseOutcome = nil, false
	if err != nil || !done || st.ShareSet.Epoch != 2 {
		t.Errorf("got %+v, done %v, error %v", st, done, err)
	}
	g.wantOneSet(g.shares, g.shares)
}
