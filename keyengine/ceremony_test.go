package keyengine

import (
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

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
)

func TestInitUnsealSeal(t *testing.T) {
	c := newFakeCluster(t, "a", "b", "c")
	a, b := c.newEngine("a"), c.newEngine("b")
	if st := a.SealStatus(); st.Initialised || !st.Sealed || st.NodeID != "a" || st.ClusterID != "" {
		t.Errorf("before init: %+v", st)
	}
	if _, err := a.SubmitShare(t.Context(), testOperator, "conclave-share-1-x"); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("share before init: %v", err)
	}
	if err := a.Seal(t.Context(), testOperator); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("seal before init: %v", err)
	}
	p := testInit(3, 2)
	p.RootCertificate = "conclave://client/root"
	res := initCluster(t, a, p)
	if n := used(a); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Init", n)
	}
	want := SealStatus{
		Initialised: true, Sealed: true, NodeID: "b", ClusterID: res.ClusterID, Account: "111122223333", Region: "eu-west-1", Partition: "aws",
		Threshold: 2, Shares: 3, VerifierKey: res.VerifierKey, MemoryLocked: b.SealStatus().MemoryLocked,
	}
	if d := cmp.Diff(want, b.SealStatus()); d != "" {
		t.Errorf("after init (-want +got):\n%s", d)
	}
	if res.RootARN != "arn:aws:iam::111122223333:root" || !isAccessKeyID(res.AccessKeyID) || len(res.SecretAccessKey) != 40 || len(res.Shares) != 3 {
		t.Errorf("result %v, secret of %d", res, len(res.SecretAccessKey))
	}
	if !strings.HasPrefix(res.VerifierKey, "conclave/"+res.ClusterID+"+") || a.VerifierKey() != res.VerifierKey {
		t.Errorf("verifier key %q and %q", res.VerifierKey, a.VerifierKey())
	}
	if _, err := b.Init(t.Context(), testOperator, p); !errors.Is(err, ErrInitialised) {
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
	if _, err = b.SubmitShare(t.Context(), testOperator, res.Shares[1]); !errors.Is(err, ErrUnsealed) {
		t.Errorf("share for an unsealed node: %v", err)
	}
	if !a.Sealed() {
		t.Error("one node's ceremony unsealed another")
	}
	if err := b.Seal(t.Context(), Operator{Name: "conclave://operator/eve"}); err != nil || !b.Sealed() {
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
		if r.EventType != eventOperator || r.Identity.Certificate != who || r.RecipientAccountId != "111122223333" || r.Region != "eu-west-1" {
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
	for name, edit := range map[string]func(*InitParams){
		"no shares":         func(p *InitParams) { p.Shares, p.Threshold = 0, 0 },
		"negative":          func(p *InitParams) { p.Threshold = -1 },
		"17 shares":         func(p *InitParams) { p.Shares = 17 },
		"threshold above":   func(p *InitParams) { p.Threshold = 4 },
		"threshold of 1":    func(p *InitParams) { p.Threshold = 1 },
		"short account":     func(p *InitParams) { p.Account = "12345678901" },
		"letters":           func(p *InitParams) { p.Account = "12345678901a" },
		"other digits":      func(p *InitParams) { p.Account = "1234567890\u0663" },
		"no region":         func(p *InitParams) { p.Region = "" },
		"upper case":        func(p *InitParams) { p.Region = "EU-west-1" },
		"region with slash": func(p *InitParams) { p.Region = "eu/west" },
		"region with NUL":   func(p *InitParams) { p.Region = "eu\x00west" },
		"trailing hyphen":   func(p *InitParams) { p.Region = "eu-" },
		"double hyphen":     func(p *InitParams) { p.Region = "eu--west" },
		"long region":       func(p *InitParams) { p.Region = strings.Repeat("a", 33) },
		"partition":         func(p *InitParams) { p.Partition = "azure" },
		"partition colon":   func(p *InitParams) { p.Partition = "aws-:x" },
		"certificate":       func(p *InitParams) { p.RootCertificate = "no uri" },
		"long certificate":  func(p *InitParams) { p.RootCertificate = "x:" + strings.Repeat("a", 1024) },
	} {
		p := testInit(3, 2)
		edit(&p)
		if _, err := e.Init(t.Context(), testOperator, p); !errors.Is(err, ErrValidation) {
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
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "zed") {
		t.Errorf("a voter is missing: %v", err)
	}
	voters()
	if _, err := e.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, ErrNotReady) {
		t.Errorf("nobody votes: %v", err)
	}
}

func TestTwoInits(t *testing.T) {
	c := newFakeCluster(t, "a", "b")
	a, b := c.newEngine("a"), c.newEngine("b")
	var res *InitResult
	c.replica("a").before = func(*fsmpb.Record) {
		c.replica("a").before = nil
		res = initCluster(t, b, testInit(3, 2))
	}
	if _, err := a.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, ErrInitialised) {
		t.Errorf("the slower of two: %v", err)
	}
	unsealNode(t, a, res.Shares...)
}

func TestInitWithoutACluster(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	c.replica("a").err = fsm.ErrNoLeader
	if _, err := e.Init(t.Context(), testOperator, testInit(3, 2)); !errors.Is(err, ErrUnavailable) && !isUnavailable(err) {
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
	r := &unknowing{fakeReplica: d.replica("a")}
	e.replica = r
	if _, err := e.Init(ctx, testOperator, testInit(3, 2)); !isUnavailable(err) || !strings.Contains(err.Error(), "not known") {
		t.Errorf("outcome unknown for good: %v", err)
	}
}

// unknowing loses records and does not know it.
type unknowing struct{ *fakeReplica }

func (*unknowing) Propose(context.Context, *fsmpb.Record) (fsm.Decision, error) {
	return fsm.Decision{}, fsm.ErrOutcomeUnknown
}

func isUnavailable(err error) bool {
	code, _ := outcome(err)
	return code == string(ErrUnavailable.Code)
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
				e.vault.seal()
				e.pending.events = nil
			})
			subsetsOf(set.n, set.t-1, func(pick []int) {
				for _, p := range pick {
					if st, err := e.SubmitShare(t.Context(), testOperator, res.Shares[p]); err != nil || !st.Sealed {
						t.Fatalf("subset %v: %+v, %v", pick, st, err)
					}
				}
				if err := e.ResetShares(t.Context(), testOperator); err != nil {
					t.Fatal(err)
				}
				e.pending.events = nil
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
	set, _, err := shareSet(cl)
	if err != nil {
		t.Fatal(err)
	}
	secret := sha256.Sum256([]byte("a guess"))
	shares, err := shamir.Split(strings.NewReader(strings.Repeat("r", 32*set.Threshold)), secret[:], set)
	if err != nil {
		t.Fatal(err)
	}
	return shares[index-1].Text()
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
		{"forged", forged(t, c, 1), "not the one that was dealt"},
	}
	for _, tc := range cases {
		st, err := e.SubmitShare(t.Context(), testOperator, tc.share)
		if !errors.Is(err, ErrShare) || !strings.Contains(err.Error(), tc.says) {
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
		want = append(want, "SubmitShare!"+string(ErrShare.Code))
	}
	want = append(want, "SubmitShare", "SubmitShare", "Unseal")
	if d := cmp.Diff(want, names(recs)); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	// Known custodians are named.
	if f := recs[len(recs)-4].RequestParameters; len(f) != 2 || f[0].Name != "custodian" || f[0].GetNumber() != 1 {
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

func TestShareTimeout(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(5, 3))
	submit := func(i int) SealStatus {
		t.Helper()
		st, err := e.SubmitShare(t.Context(), testOperator, res.Shares[i])
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	submit(0)
	c.clock.advance(defaultShareTimeout - time.Second)
	if st := submit(1); st.Progress != 2 {
		t.Errorf("progress is %d before the time", st.Progress)
	}
	c.clock.advance(time.Second)
	e.expireShares()
	if st := e.SealStatus(); st.Progress != 0 {
		t.Errorf("progress is %d after the time", st.Progress)
	}
	if n := used(e); n != 0 {
		t.Errorf("%d slots of locked memory are in use", n)
	}
	// Also without anybody looking.
	submit(0)
	submit(1)
	c.clock.advance(defaultShareTimeout)
	if st := submit(2); st.Progress != 1 || !st.Sealed {
		t.Errorf("shares that were too old counted: %+v", st)
	}
	unsealNode(t, e, res.Shares[3], res.Shares[4])
	if got := strings.Join(names(records(t, c, e)), " "); strings.Count(got, "AbandonShares") != 2 {
		t.Errorf("records: %s", got)
	}
}

func TestSharesOfAReplacedSet(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 2))
	if _, err := e.SubmitShare(t.Context(), testOperator, res.Shares[0]); err != nil {
		t.Fatal(err)
	}
	cl, _ := c.state().Cluster()
	next := &fsmpb.Cluster{
		Id: cl.Id, Account: cl.Account, Region: cl.Region, Partition: cl.Partition, WrappedRoot: cl.WrappedRoot, Keyring: cl.Keyring,
		Shares: &fsmpb.ShareSet{Id: make([]byte, 16), Epoch: 2, Threshold: 2, Count: 3, Commitments: cl.Shares.Commitments},
	}
	c.change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: next}})
	if st := e.SealStatus(); st.Progress != 0 {
		t.Errorf("shares of the old set still count: %+v", st)
	}
	if _, err := e.SubmitShare(t.Context(), testOperator, res.Shares[1]); !errors.Is(err, ErrShare) || !strings.Contains(err.Error(), "another share set") {
		t.Errorf("share of the old set: %v", err)
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
	e.recordPending(t.Context())
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

func TestPendingEventsAreBounded(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	res := initCluster(t, e, testInit(3, 2))
	for range maxPendingEvents + 44 {
		if _, err := e.SubmitShare(t.Context(), testOperator, "nonsense"); !errors.Is(err, ErrShare) {
			t.Fatal(err)
		}
	}
	unsealNode(t, e, res.Shares...)
	recs := records(t, c, e)
	// The two good shares and the unsealing found no room either.
	if len(recs) != 1+maxPendingEvents {
		t.Errorf("%d records", len(recs))
	}
	if d := recs[1].ServiceEventDetails; len(d) != 1 || d[0].Name != "eventsNotRecorded" || d[0].GetNumber() != 47 {
		t.Errorf("the record of what was dropped: %v", d)
	}
	if e.pending.dropped != 0 {
		t.Errorf("%d drops are still to be told", e.pending.dropped)
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
