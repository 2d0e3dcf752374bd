package keyengine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func TestInitUnsealSeal(t *testing.T) {
	c := newFakeCluster(t, "a", "b", "c")
	a, b := c.newEngine("a"), c.newEngine("b")
	if st := a.SealStatus(); st.Initialised || !st.Sealed || st.NodeID != "a" || st.ClusterID != "" {
		t.Errorf("before init: %+v", st)
	}
	if _, err := a.SubmitShare(t.Context(), testOperator, "conclave-share-1-x"); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("share before init: %v", err)
	}
	if err := a.Seal(t.Context(), testOperator); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("seal before init: %v", err)
	}
	p := testInit(3, 2)
	p.RootCertificate = "conclave://client/root"
	res := initCluster(t, a, p)
	if n := used(a); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Init", n)
	}
	want := ceremony.SealStatus{
		Initialised: true, Sealed: true, NodeID: "b", ClusterID: res.ClusterID, Account: "111122223333", Region: "eu-west-1", Partition: "aws",
		Threshold: 2, Shares: 3, VerifierKey: res.VerifierKey, MemoryLocked: b.SealStatus().MemoryLocked,
	}
	if d := cmp.Diff(want, b.SealStatus()); d != "" {
		t.Errorf("after init (-want +got):\n%s", d)
	}
	if res.RootARN != "arn:aws:iam::111122223333:root" || !isAccessKeyID(res.AccessKeyID) || len(res.SecretAccessKey) != 40 || len(res.Shares) != 3 {
		t.Errorf("result %v, secret of %d", res, len(res.SecretAccessKey))
	}
	if !strings.HasPrefix(res.VerifierKey, "conclave/"+res.ClusterID+"/0+") || a.VerifierKey() != res.VerifierKey {
		t.Errorf("verifier key %q and %q", res.VerifierKey, a.VerifierKey())
	}
	if _, err := b.Init(t.Context(), testOperator, p); !errors.Is(err, ceremony.ErrInitialised) {
		t.Errorf("second init: %v", err)
	}

	st, err := b.SubmitShare(t.Context(), testOperator, res.Shares[2])
	if err != nil || !st.Sealed || st.Progress != 1 || !slices.Equal(st.Custodians, []int{3}) {
		t.Errorf("first share: %+v, %v", st, err)
	}
	st, err = b.SubmitShare(t.Context(), testOperator, strings.ToUpper(res.Shares[0][:30])+" \n"+res.Shares[0][30:])
	if err != nil || st.Sealed || st.Progress != 0 || b.Sealed() {
		t.Errorf("second share: %+v, %v", st, err)
	}
	if _, err = b.SubmitShare(t.Context(), testOperator, res.Shares[1]); !errors.Is(err, ceremony.ErrUnsealed) {
		t.Errorf("share for an unsealed node: %v", err)
	}
	if !a.Sealed() {
		t.Error("one node's ceremony unsealed another")
	}
	if err := b.Seal(t.Context(), ceremony.Operator{Name: "conclave://operator/eve"}); err != nil || !b.Sealed() {
		t.Errorf("seal: %v", err)
	}
	unsealNode(t, b, res.Shares[1], res.Shares[2])
	got := names(records(t, c, b))
	if d := cmp.Diff([]string{"Init", "SubmitShare", "SubmitShare", "Unseal", "Seal", "SubmitShare", "SubmitShare", "Unseal"}, got); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	for _, r := range records(t, c, b) {
		who := testOperator.Name
		if r.EventName == "Seal" {
			who = "conclave://operator/eve"
		}
		if r.EventType != record.KindOperator || r.Identity.Certificate != who || r.RecipientAccountId != "111122223333" || r.Region != "eu-west-1" {
			t.Errorf("record of %s: %v", r.EventName, r)
		}
	}
}

func TestInitKeepUnsealed(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	p := testInit(1, 1)
	p.KeepUnsealed = true
	res := initCluster(t, e, p)
	if e.Sealed() {
		t.Fatal("the node is sealed")
	}
	if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Error(err)
	}
	again := c.newEngine("a")
	unsealNode(t, again, res.Shares[0])
}

func TestInitParameters(t *testing.T) {
	e := newFakeCluster(t, "a").newEngine("a")
	for name, edit := range map[string]func(*ceremony.InitParams){
		"no shares":         func(p *ceremony.InitParams) { p.Shares, p.Threshold = 0, 0 },
		"negative":          func(p *ceremony.InitParams) { p.Threshold = -1 },
		"17 shares":         func(p *ceremony.InitParams) { p.Shares = 17 },
		"threshold above":   func(p *ceremony.InitParams) { p.Threshold = 4 },
		"threshold of 1":    func(p *ceremony.InitParams) { p.Threshold = 1 },
		"short account":     func(p *ceremony.InitParams) { p.Account = "12345678901" },
		"letters":           func(p *ceremony.InitParams) { p.Account = "12345678901a" },
		"other digits":      func(p *ceremony.InitParams) { p.Account = "1234567890\u0663" },
		"no region":         func(p *ceremony.InitParams) { p.Region = "" },
		"upper case":        func(p *ceremony.InitParams) { p.Region = "EU-west-1" },
		"region with slash": func(p *ceremony.InitParams) { p.Region = "eu/west" },
		"region with NUL":   func(p *ceremony.InitParams) { p.Region = "eu\x00west" },
		"trailing hyphen":   func(p *ceremony.InitParams) { p.Region = "eu-" },
		"double hyphen":     func(p *ceremony.InitParams) { p.Region = "eu--west" },
		"long region":       func(p *ceremony.InitParams) { p.Region = strings.Repeat("a", 33) },
		"partition":         func(p *ceremony.InitParams) { p.Partition = "azure" },
		"partition colon":   func(p *ceremony.InitParams) { p.Partition = "aws-:x" },
		"certificate":       func(p *ceremony.InitParams) { p.RootCertificate = "no uri" },
		"node certificate":  func(p *ceremony.InitParams) { p.RootCertificate = "conclave://node/a" },
		"long certificate":  func(p *ceremony.InitParams) { p.RootCertificate = "x:" + strings.Repeat("a", 1024) },
	} {
		p := testInit(3, 2)
		edit(&p)
		if _, err := e.Init(t.Context(), testOperator, p); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := testInit(16, 16)
	p.Partition = "aws-cn"
	if res := initCluster(t, e, p); res.RootARN != "arn:aws-cn:iam::111122223333:root" {
		t.Errorf("root is %s", res.RootARN)
	}
}

func TestInitOfAHalfFormedCluster(t *testing.T) {
	c := newFakeCluster(t, "a", "b")
	e := c.newEngine("a")
	voters := func(ids ...string) {
		var conf raft.Configuration
		for _, id := range ids {
			conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
		c.index++
		c.fsm.Apply(&raft.Log{Index: c.index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)})
	}
	voters("a", "b", "zed")
	_, err := e.Init(t.Context(), testOperator, testInit(3, 2))
	if !errors.Is(err, ceremony.ErrNotReady) || !strings.Contains(err.Error(), "zed") {
		t.Errorf("a voter is missing: %v", err)
	}
	voters()
	if _, err := e.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, ceremony.ErrNotReady) {
		t.Errorf("nobody votes: %v", err)
	}
}

func TestTwoInits(t *testing.T) {
	c := newFakeCluster(t, "a", "b")
	a, b := c.newEngine("a"), c.newEngine("b")
	var res *ceremony.InitResult
	c.replica("a").before = func(*fsmpb.Record) {
		c.replica("a").before = nil
		res = initCluster(t, b, testInit(3, 2))
	}
	if _, err := a.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, ceremony.ErrInitialised) {
		t.Errorf("the slower of two: %v", err)
	}
	unsealNode(t, a, res.Shares...)
}

func TestInitWithoutACluster(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	c.replica("a").err = fsm.ErrNoLeader
	if _, err := e.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, kmsapi.ErrUnavailable) && !isUnavailable(err) {
		t.Errorf("without a leader: %v", err)
	}
	c.replica("a").err = nil
	c.replica("a").lost = true
	res := initCluster(t, e, testInit(3, 2))
	c.replica("a").lost = false
	unsealNode(t, e, res.Shares...)

	// One that is never applied.
	d := newFakeCluster(t, "a")
	e = d.newEngine("a")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	d.replica("a").unknown = true
	if _, err := e.Init(ctx, testOperator, testInit(3, 2)); !isUnavailable(err) || !strings.Contains(err.Error(), "not known") {
		t.Errorf("outcome unknown for good: %v", err)
	}
}

func isUnavailable(err error) bool {
	code, _ := record.Outcome(err)
	return code == string(kmsapi.ErrUnavailable.Code)
}

// subsets calls fn with each k of n indexes.
func subsetsOf(n, k int, fn func([]int)) {
	for mask := range 1 << n {
		var pick []int
		for i := range n {
			if mask>>i&1 == 1 {
				pick = append(pick, i)
			}
		}
		if len(pick) == k {
			fn(pick)
		}
	}
}

func TestEverySubsetUnseals(t *testing.T) {
	for _, set := range []struct{ t, n int }{{1, 1}, {2, 3}, {3, 5}, {5, 9}} {
		t.Run(fmt.Sprintf("%d of %d", set.t, set.n), func(t *testing.T) {
			c := newFakeCluster(t, "a")
			e := c.newEngine("a")
			res := initCluster(t, e, testInit(set.n, set.t))
			var probe *fsmpb.Key
			var want []byte
			subsetsOf(set.n, set.t, func(pick []int) {
				for i, p := range pick {
					st, err := e.SubmitShare(t.Context(), testOperator, res.Shares[p])
					if err != nil || st.Sealed != (i < set.t-1) || st.Sealed && st.Progress != i+1 {
						t.Fatalf("subset %v, share %d: %+v, %v", pick, p+1, st, err)
					}
				}
				if probe == nil {
					probe = makeKey(t, c, e, testKey)
					want = material(t, e, probe)
				}
				if got := material(t, e, probe); string(got) != string(want) {
					t.Fatalf("subset %v opens something else", pick)
				}
				e.vault.Seal()
				e.events.Pending.Events = nil
			})
			subsetsOf(set.n, set.t-1, func(pick []int) {
				for _, p := range pick {
					if st, err := e.SubmitShare(t.Context(), testOperator, res.Shares[p]); err != nil || !st.Sealed {
						t.Fatalf("subset %v: %+v, %v", pick, st, err)
					}
				}
				if err := e.ResetShares(t.Context(), testOperator, nil); err != nil {
					t.Fatal(err)
				}
				e.events.Pending.Events = nil
			})
			if n := used(e); n != 0 {
				t.Errorf("%d slots of locked memory are in use", n)
			}
		})
	}
}

// forged is a well-formed share of the right set, dealt by somebody else.
func forged(t *testing.T, c *fakeCluster, index int) string {
	t.Helper()
	cl, _ := c.state().Cluster()
	set := shamir.SetInfo{Cluster: [16]byte(cl.Id), Set: [16]byte(cl.Shares.Id), Threshold: int(cl.Shares.Threshold), Count: int(cl.Shares.Count)}
	secret := sha256.Sum256([]byte("a guess"))
	shares, err := shamir.Split(strings.NewReader(strings.Repeat("r", 32*set.Threshold)), secret[:], set)
	if err != nil {
		t.Fatal(err)
	}
	return string(shares[index-1].AppendText(make([]byte, 0, shamir.TextSize)))
}

func TestBadSharesAreNamedAndDoNoHarm(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 3))
	_, _, foreign := openCluster(t)
	if _, err := e.SubmitShare(t.Context(), testOperator, res.Shares[1]); err != nil {
		t.Fatal(err)
	}
	flipped := []byte(res.Shares[0])
	if flipped[100]++; flipped[100] > 'z' || flipped[100] > '7' && flipped[100] < 'a' {
		flipped[100] = 'a'
	}
	cases := []struct{ name, share, says string }{
		{"empty", " \n", "empty"},
		{"1 MB", strings.Repeat("a", 1<<20), "too long"},
		{"not a share", "hunter2", "not a conclave share"},
		{"cut short", res.Shares[0][:100], "cut short"},
		{"other version", "conclave-share-2-aaaa", "version"},
		{"mistyped", string(flipped), "checksum"},
		{"other cluster", foreign.Shares[0], "another cluster"},
		{"repeated", res.Shares[1], "already"},
		{"forged", forged(t, c, 1), "differs from the one that was issued"},
	}
	for _, tc := range cases {
		st, err := e.SubmitShare(t.Context(), testOperator, tc.share)
		if !errors.Is(err, ceremony.ErrShare) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if strings.Contains(fmt.Sprint(err), tc.share) && len(tc.share) > 20 {
			t.Errorf("%s: the error quotes the share", tc.name)
		}
		if st.Progress != 1 || !st.Sealed {
			t.Errorf("%s: progress is %d", tc.name, st.Progress)
		}
	}
	unsealNode(t, e, res.Shares[0], res.Shares[2])
	recs := records(t, c, e)
	want := []string{"Init", "SubmitShare"}
	for range cases {
		want = append(want, "SubmitShare!"+string(ceremony.ErrShare.Code))
	}
	want = append(want, "SubmitShare", "SubmitShare", "Unseal")
	if d := cmp.Diff(want, names(recs)); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	// Known custodians are named.
	if f := recs[len(recs)-4].RequestParameters; len(f) != 4 || f[0].Name != "custodian" || f[0].GetNumber() != 1 {
		t.Errorf("record of the wrong share of custodian 1: %v", f)
	}
	ids := make(map[string]bool)
	for _, r := range recs {
		if ids[string(r.RequestId)] {
			t.Errorf("request id of %s stands twice", r.EventName)
		}
		ids[string(r.RequestId)] = true
	}
}

// How long shares are kept, and how many may be refused at once and after a time.
const (
	shareTimeout      = 15 * time.Minute
	shareRefusals     = 20
	shareRefusalEvery = 3 * time.Second
)

func TestShareTimeout(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(5, 3))
	submit := func(i int) ceremony.SealStatus {
		t.Helper()
		st, err := e.SubmitShare(t.Context(), testOperator, res.Shares[i])
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	submit(0)
	c.clock.advance(shareTimeout - time.Second)
	if st := submit(1); st.Progress != 2 {
		t.Errorf("progress is %d before the time", st.Progress)
	}
	c.clock.advance(time.Second)
	e.Ceremonies.Expire()
	if st := e.SealStatus(); st.Progress != 0 {
		t.Errorf("progress is %d after the time", st.Progress)
	}
	if n := used(e); n != 0 {
		t.Errorf("%d slots of locked memory are in use", n)
	}
	// Also without anybody looking.
	submit(0)
	submit(1)
	c.clock.advance(shareTimeout)
	if st := submit(2); st.Progress != 1 || !st.Sealed {
		t.Errorf("shares that were too old counted: %+v", st)
	}
	unsealNode(t, e, res.Shares[3], res.Shares[4])
	if got := strings.Join(names(records(t, c, e)), " "); strings.Count(got, "AbandonShares") != 2 {
		t.Errorf("records: %s", got)
	}
}

func TestRestart(t *testing.T) {
	c, e, res := openCluster(t)
	k := makeKey(t, c, e, testKey)
	want := material(t, e, k)
	again := c.newEngine("a")
	if !again.Sealed() {
		t.Fatal("a node is unsealed after its start")
	}
	unsealNode(t, again, res.Shares[1], res.Shares[2])
	if got := material(t, again, k); string(got) != string(want) {
		t.Error("other material after a restart")
	}
}

func TestEventsWaitForALeader(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 2))
	r := c.replica("a")
	r.err = fsm.ErrNoLeader
	for _, s := range res.Shares[:2] {
		if _, err := e.SubmitShare(t.Context(), testOperator, s); err != nil {
			t.Fatal(err)
		}
	}
	e.events.RecordPending(t.Context())
	if e.Sealed() || c.audit.Size() != 1 {
		t.Fatalf("sealed %v, %d records", e.Sealed(), c.audit.Size())
	}
	r.err = nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	waitFor(t, "the ceremony is recorded", func() bool { return c.audit.Size() == 4 })
	cancel()
	<-done
	if got := strings.Join(names(records(t, c, e)), " "); got != "Init SubmitShare SubmitShare Unseal" {
		t.Errorf("records: %s", got)
	}
}

// TestRealStepsAreNotPushedOut: wrong shares without end, by an operator whose
// certificate somebody has, leave the records of what others did, and of the first
// that was refused.
func TestRealStepsAreNotPushedOut(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 2))
	eve := ceremony.Operator{Name: "conclave://operator/eve"}
	for i := range 500 {
		want := ceremony.ErrShare
		if i >= shareRefusals {
			want = kmsapi.ErrThrottling
		}
		if _, err := e.SubmitShare(t.Context(), eve, "nonsense"); !errors.Is(err, want) {
			t.Fatalf("share %d: %v, want %v", i+1, err, want)
		}
	}
	unsealNode(t, e, res.Shares...) // others are not held up by it
	var real, single int
	summaries := make(map[string]int64)
	for _, r := range records(t, c, e)[1:] {
		switch {
		case r.Identity.Certificate == testOperator.Name:
			real++
		case r.ServiceEventDetails == nil:
			single++
		default:
			summaries[r.ErrorCode] = r.ServiceEventDetails[0].GetNumber()
		}
	}
	if real != 3 || single != record.MaxPendingRefused {
		t.Errorf("%d records of the unsealing, %d of single refusals", real, single)
	}
	want := map[string]int64{string(ceremony.ErrShare.Code): shareRefusals - record.MaxPendingRefused, string(kmsapi.ErrThrottling.Code): 500 - shareRefusals}
	if d := cmp.Diff(want, summaries); d != "" {
		t.Errorf("summaries (-want +got):\n%s", d)
	}
	if len(e.events.Pending.Events) != 0 {
		t.Errorf("%d events are still to be recorded", len(e.events.Pending.Events))
	}

	// A minute later the operator is heard again.
	again := c.newEngine("a")
	for range shareRefusals {
		_, _ = again.SubmitShare(t.Context(), eve, "nonsense")
	}
	c.clock.advance(shareRefusalEvery)
	if _, err := again.SubmitShare(t.Context(), eve, res.Shares[0]); err != nil {
		t.Errorf("a good share after a while: %v", err)
	}
}

// TestPendingEventsAreBounded: neither many operators nor many steps of one fill
// the memory, and each has a record of what it did.
func TestPendingEventsAreBounded(t *testing.T) {
	p := record.NewPending()
	const operators = record.MaxPendingOperators + 8
	at := time.Unix(1, 0)
	for i := range operators {
		op := fmt.Sprintf("conclave://operator/%d", i)
		for range 3 * record.MaxPendingSteps {
			at = at.Add(time.Second)
			ev := record.Event{Name: "ResetShares", Kind: record.KindOperator, At: at, Identity: &auditpb.Identity{Certificate: op}}
			p.Add(ev)
		}
	}
	if n, most := len(p.Events), record.MaxPendingOperators*(record.MaxPendingSteps+1)+1; n != most {
		t.Errorf("%d events wait, want %d", n, most)
	}
	times := make(map[string]int)
	for len(p.Events) > 0 {
		ev, _ := p.First()
		times[ev.Actor()] += max(1, ev.Times)
		if ev.Summary && ev.Actor() == "" {
			// More of it happens while it is being recorded.
			p.Events[0].Times++
			p.Done(ev)
			if len(p.Events) != 1 || p.Events[0].Times != 1 {
				t.Fatalf("what happened during the recording: %+v", p.Events)
			}
			times[""]++
			p.Events = nil
			break
		}
		p.Done(ev)
	}
	if len(times) != record.MaxPendingOperators+1 || times["conclave://operator/0"] != 3*record.MaxPendingSteps {
		t.Errorf("%d operators, the first with %d steps", len(times), times["conclave://operator/0"])
	}
	if want := (operators-record.MaxPendingOperators)*3*record.MaxPendingSteps + 1; times[""] != want {
		t.Errorf("%d steps of the others, want %d", times[""], want)
	}
}

// sealShare encrypts a share as operators' clients do.
func sealShare(t *testing.T, ch *ceremony.Challenge, share string) []byte {
	t.Helper()
	sealed, err := keymat.SealTo(ch.PublicKey, slices.Concat([]byte("conclave share v1\x00"), ch.ClusterID[:], ch.Nonce[:], []byte(ch.NodeID)), []byte(share))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealedShares(t *testing.T) {
	c := newFakeCluster(t, "a", "b")
	a, b := c.newEngine("a"), c.newEngine("b")
	if _, err := a.Challenge(t.Context()); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("challenge before init: %v", err)
	}
	res := initCluster(t, a, testInit(3, 2))
	challenge := func(e *Engine) *ceremony.Challenge {
		t.Helper()
		ch, err := e.Challenge(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	submit := func(e *Engine, ch *ceremony.Challenge, sealed []byte) error {
		_, err := e.SubmitSealedShare(t.Context(), testOperator, ch.Nonce[:], sealed)
		return err
	}
	forA, forB := challenge(a), challenge(b)
	if again := challenge(a); again.Nonce != forA.Nonce || !bytes.Equal(again.PublicKey, forA.PublicKey) {
		t.Error("two challenges of one ceremony differ")
	}
	if forA.Nonce == forB.Nonce || bytes.Equal(forA.PublicKey, forB.PublicKey) {
		t.Error("two nodes have one key")
	}
	share := sealShare(t, forA, res.Shares[0])
	if err := submit(b, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("another node's: %v", err)
	}
	if err := submit(b, forB, share); !errors.Is(err, ceremony.ErrShare) {
		t.Errorf("another node's, with this one's nonce: %v", err)
	}
	if err := submit(a, forA, share); err != nil {
		t.Fatal(err)
	}
	if st := a.SealStatus(); st.Progress != 1 || st.Ceremony == nil || st.Ceremony.Nonce != forA.Nonce || st.Ceremony.Owner != testOperator.Name {
		t.Errorf("status %+v", st)
	}
	if err := a.ResetShares(t.Context(), testOperator, nil); err != nil {
		t.Fatal(err)
	}
	if err := submit(a, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("a share for a ceremony that was reset: %v", err)
	}
	// One that nobody gave a share in ends too.
	forA = challenge(a)
	c.clock.advance(shareTimeout)
	a.Ceremonies.Expire()
	if n := used(a); n != 0 {
		t.Errorf("%d slots are in use after the challenge expired", n)
	}
	if err := submit(a, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("a share for a challenge that expired: %v", err)
	}
	forA = challenge(a)
	for _, i := range []int{2, 0} {
		if err := submit(a, forA, sealShare(t, forA, res.Shares[i]+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	if a.Sealed() {
		t.Error("two of two shares, and still sealed")
	}
	if _, err := a.Challenge(t.Context()); !errors.Is(err, ceremony.ErrUnsealed) {
		t.Errorf("challenge of an open node: %v", err)
	}
	if err := a.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if n := used(a); n != 0 {
		t.Errorf("%d slots are in use after the node was sealed again", n)
	}
}

// TestSealedSecrets: what Init hands out for an answer key is for that key.
func TestSealedSecrets(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	p := testInit(3, 2)
	p.AnswerKey = make([]byte, 65)
	if _, err := e.Init(t.Context(), testOperator, p); !errors.Is(err, kmsapi.ErrValidation) {
		t.Fatalf("a key that is none: %v", err)
	}
	r, err := keymat.NewReceiver(e.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	p.AnswerKey = r.Public()
	res := initCluster(t, e, p)
	if res.Shares != nil || res.SecretAccessKey != "" {
		t.Error("secrets are in the result in the clear")
	}
	message, err := r.Open([]byte("conclave init v1\x00"+res.ClusterID), res.SealedSecrets)
	if err != nil {
		t.Fatal(err)
	}
	_ = message.With(func(b []byte) error {
		var fields []string
		for len(b) > 0 {
			_, _, n := protowire.ConsumeTag(b)
			v, m := protowire.ConsumeBytes(b[n:])
			fields, b = append(fields, string(v)), b[n+m:]
		}
		if len(fields) != 4 || len(fields[3]) != iam.SecretLen {
			t.Fatalf("%d fields", len(fields))
		}
		e.replica.(*fakeReplica).cluster.watch(fields[:3])
		unsealNode(t, e, fields[2], fields[0])
		return nil
	})
	message.Destroy()
	r.Destroy()
}

// TestCeremoniesHaveOwners: another operator does not undo a ceremony unless it
// says so, and the records tell.
func TestCeremoniesHaveOwners(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 2))
	eve := ceremony.Operator{Name: "conclave://operator/eve"}
	begin := func() *ceremony.Status {
		t.Helper()
		if _, err := e.SubmitShare(t.Context(), testOperator, res.Shares[0]); err != nil {
			t.Fatal(err)
		}
		return e.SealStatus().Ceremony
	}
	first := begin()
	for name, f := range map[string]func() error{
		"reset":            func() error { return e.ResetShares(t.Context(), eve, nil) },
		"reset of another": func() error { return e.ResetShares(t.Context(), eve, make([]byte, 16)) },
		"seal when sealed": func() error { return e.Seal(t.Context(), eve) },
	} {
		if err := f(); !errors.Is(err, ceremony.ErrOwner) || !strings.Contains(err.Error(), testOperator.Name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := e.SealStatus(); st.Progress != 1 {
		t.Fatalf("progress %d", st.Progress)
	}
	if err := e.ResetShares(t.Context(), eve, first.Nonce[:]); err != nil || e.SealStatus().Progress != 0 {
		t.Fatalf("by force: %v", err)
	}
	if second := begin(); second.Nonce == first.Nonce {
		t.Error("two ceremonies have one nonce")
	} else if err := e.ResetShares(t.Context(), eve, first.Nonce[:]); !errors.Is(err, ceremony.ErrOwner) {
		t.Errorf("with the nonce of an earlier one: %v", err)
	}
	if err := e.ResetShares(t.Context(), testOperator, nil); err != nil {
		t.Errorf("by its owner: %v", err)
	}
	// One that expired is nobody's.
	begin()
	c.clock.advance(shareTimeout)
	if err := e.ResetShares(t.Context(), eve, nil); err != nil {
		t.Errorf("one that expired: %v", err)
	}
	unsealNode(t, e, res.Shares...)
	var forced []string
	for _, r := range records(t, c, e) {
		for _, f := range r.RequestParameters {
			if f.Name == "forced" {
				forced = append(forced, r.EventName+" by "+r.Identity.Certificate)
			}
		}
	}
	if d := cmp.Diff([]string{"ResetShares by " + eve.Name}, forced); d != "" {
		t.Errorf("forced (-want +got):\n%s", d)
	}
}

func TestSealWithoutAMajority(t *testing.T) {
	c, e, res := openCluster(t)
	c.replica("a").err = fsm.ErrNoLeader
	if err := e.Seal(t.Context(), testOperator); err != nil || !e.Sealed() {
		t.Fatalf("sealed %v, %v", e.Sealed(), err)
	}
	c.replica("a").err = nil
	unsealNode(t, e, res.Shares...)
	if got := strings.Join(names(records(t, c, e)), " "); !strings.HasSuffix(got, "Seal SubmitShare SubmitShare Unseal") {
		t.Errorf("records: %s", got)
	}
}

func TestConfirmTime(t *testing.T) {
	c, e, _ := openCluster(t)
	if err := e.ConfirmTime(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if got, want := c.state().ConfirmedTime(), c.clock.Now().Add(time.Hour).UnixNano(); got != want {
		t.Errorf("confirmed until %d, want %d", got, want)
	}
	if got := names(records(t, c, e)); got[len(got)-1] != "ConfirmTime" {
		t.Errorf("records: %v", got)
	}
}
