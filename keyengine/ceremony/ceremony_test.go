package ceremony_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// unsealedNode returns a node of a new cluster, unsealed with two of its three shares.
func unsealedNode(t *testing.T) (*enginetest.Cluster, *enginetest.Node, *ceremony.InitResult) {
	t.Helper()
	c := enginetest.NewCluster(t, 1)
	n := c.NewNode("n1")
	res := n.Initialise(enginetest.InitParams(3, 2))
	n.Unseal(res.Shares...)
	return c, n, res
}

func TestInitUnsealSeal(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 3)
	a, b := c.NewNode("n1"), c.NewNode("n2")
	if st := a.SealStatus(); st.Initialised || !st.Sealed || st.NodeID != "n1" || st.ClusterID != "" {
		t.Errorf("status before Init: %+v", st)
	}
	if _, err := a.SubmitShare(t.Context(), enginetest.Operator, "conclave-share-1-x"); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("SubmitShare before Init: got error %v, want ErrNotInitialised", err)
	}
	if err := a.Seal(t.Context(), enginetest.Operator); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("Seal before Init: got error %v, want ErrNotInitialised", err)
	}
	p := enginetest.InitParams(3, 2)
	p.RootCertificate = "conclave://client/root"
	res := a.Initialise(p)
	if n := a.MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Init", n)
	}
	want := ceremony.SealStatus{
		Initialised: true, Sealed: true, NodeID: "n2", ClusterID: res.ClusterID, Account: "111122223333", Region: "eu-west-1", Partition: "aws",
		Threshold: 2, Shares: 3, VerifierKey: res.VerifierKey, MemoryLocked: b.SealStatus().MemoryLocked, ShareSet: res.ShareSet,
	}
	if d := cmp.Diff(want, b.SealStatus()); d != "" {
		t.Errorf("status after Init (-want +got):\n%s", d)
	}
	kind, _, ok := accesskey.Parse(res.AccessKeyID)
	if res.RootARN != "arn:aws:iam::111122223333:root" || !ok || kind != accesskey.LongTerm || len(res.SecretAccessKey) != 40 || len(res.Shares) != 3 {
		t.Errorf("Init returned %v with a secret access key of %d characters", res, len(res.SecretAccessKey))
	}
	if !strings.HasPrefix(res.VerifierKey, "conclave/"+res.ClusterID+"/0+") {
		t.Errorf("got verifier key %q, want one of cluster %s", res.VerifierKey, res.ClusterID)
	}
	if _, err := b.Init(t.Context(), enginetest.Operator, p); !errors.Is(err, ceremony.ErrInitialised) {
		t.Errorf("second Init: got error %v, want ErrInitialised", err)
	}

	st, err := b.SubmitShare(t.Context(), enginetest.Operator, res.Shares[2])
	if err != nil || !st.Sealed || st.Progress != 1 || !slices.Equal(st.Custodians, []int{3}) {
		t.Errorf("first share: got status %+v, error %v; want progress 1 by custodian 3", st, err)
	}
	st, err = b.SubmitShare(t.Context(), enginetest.Operator, strings.ToUpper(res.Shares[0][:30])+" \n"+res.Shares[0][30:])
	if err != nil || st.Sealed || st.Progress != 0 || b.Sealed() {
		t.Errorf("second share: got status %+v, error %v; want an unsealed node", st, err)
	}
	if _, err = b.SubmitShare(t.Context(), enginetest.Operator, res.Shares[1]); !errors.Is(err, ceremony.ErrUnsealed) {
		t.Errorf("share for an unsealed node: got error %v, want ErrUnsealed", err)
	}
	if !a.Sealed() {
		t.Error("the shares submitted to n2 unsealed n1")
	}
	if err := b.Seal(t.Context(), ceremony.Operator{Name: "conclave://operator/eve"}); err != nil || !b.Sealed() {
		t.Errorf("Seal: error %v, sealed %v", err, b.Sealed())
	}
	b.Unseal(res.Shares[1], res.Shares[2])
	got := enginetest.EventNames(b.Records())
	if d := cmp.Diff([]string{"Init", "SubmitShare", "SubmitShare", "Unseal", "Seal", "SubmitShare", "SubmitShare", "Unseal"}, got); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	for _, r := range b.Records() {
		who := enginetest.Operator.Name
		if r.EventName == "Seal" {
			who = "conclave://operator/eve"
		}
		if r.EventType != record.KindOperator || r.Identity.Certificate != who || r.RecipientAccountId != "111122223333" || r.Region != "eu-west-1" {
			t.Errorf("unexpected record of %s: %v", r.EventName, r)
		}
	}
}

func TestInitKeepUnsealed(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	p := enginetest.InitParams(1, 1)
	p.KeepUnsealed = true
	res := e.Initialise(p)
	if e.Sealed() {
		t.Fatal("the node is sealed after Init with KeepUnsealed")
	}
	if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, enginetest.Region, "text")); err != nil {
		t.Errorf("authenticating with the root user's access key: %v", err)
	}
	again := c.NewNode("n1")
	again.Unseal(res.Shares[0])
}

func TestInitParameters(t *testing.T) {
	t.Parallel()
	e := enginetest.NewCluster(t, 1).NewNode("n1")
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
		p := enginetest.InitParams(3, 2)
		edit(&p)
		if _, err := e.Init(t.Context(), enginetest.Operator, p); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s: got error %v, want ValidationException", name, err)
		}
	}
	p := enginetest.InitParams(16, 16)
	p.Partition = "aws-cn"
	if res := e.Initialise(p); res.RootARN != "arn:aws-cn:iam::111122223333:root" {
		t.Errorf("got root user %s, want one of partition aws-cn", res.RootARN)
	}
}

// Init refuses while a voter has not registered, or before there are voters.
func TestInitOfAnIncompleteCluster(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 2)
	e := c.NewNode("n1")
	c.SetVoters("n1", "n2", "zed")
	_, err := e.Init(t.Context(), enginetest.Operator, enginetest.InitParams(3, 2))
	if !errors.Is(err, ceremony.ErrNotReady) || !strings.Contains(err.Error(), "zed") {
		t.Errorf("with a voter that is not registered: got error %v, want ErrNotReady that names it", err)
	}
	c.SetVoters()
	if _, err := e.Init(t.Context(), enginetest.Operator, enginetest.InitParams(3, 2)); !errors.Is(err, ceremony.ErrNotReady) {
		t.Errorf("without voters: got error %v, want ErrNotReady", err)
	}
}

// Of two concurrent Inits one fails, and the cluster has the shares of the other.
func TestTwoInits(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 2)
	a, b := c.NewNode("n1"), c.NewNode("n2")
	var res *ceremony.InitResult
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		c.Replica("n1").BeforeCommit = nil
		res = b.Initialise(enginetest.InitParams(3, 2))
	}
	if _, err := a.Init(t.Context(), enginetest.Operator, enginetest.InitParams(3, 2)); !errors.Is(err, ceremony.ErrInitialised) {
		t.Errorf("Init after another node's Init was committed: got error %v, want ErrInitialised", err)
	}
	a.Unseal(res.Shares...)
}

func TestInitWithoutACluster(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	c.Replica("n1").Err = fsm.ErrNoLeader
	if _, err := e.Init(t.Context(), enginetest.Operator, enginetest.InitParams(3, 2)); !errors.Is(err, kmsapi.ErrUnavailable) && !enginetest.IsUnavailable(err) {
		t.Errorf("without a leader: got error %v, want KMSUnavailable", err)
	}
	c.Replica("n1").Err = nil
	c.Replica("n1").LoseOutcome = true
	res := e.Initialise(enginetest.InitParams(3, 2))
	c.Replica("n1").LoseOutcome = false
	e.Unseal(res.Shares...)

	// The outcome stays unknown, as the record is never committed.
	synctest.Test(t, func(t *testing.T) {
		c := enginetest.NewCluster(t, 1)
		e := c.NewNode("n1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c.Replica("n1").LoseRecord = true
		if _, err := e.Init(ctx, enginetest.Operator, enginetest.InitParams(3, 2)); !enginetest.IsUnavailable(err) || !strings.Contains(err.Error(), "not known") {
			t.Errorf("with a lost record: got error %v, want one that says that the outcome is not known", err)
		}
	})
}

// subsetsOf calls fn with each set of k of the first n indexes.
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
	t.Parallel()
	for _, set := range []struct{ t, n int }{{1, 1}, {2, 3}, {3, 5}, {5, 9}} {
		t.Run(fmt.Sprintf("%d of %d", set.t, set.n), func(t *testing.T) {
			t.Parallel()
			c := enginetest.NewCluster(t, 1)
			e := c.NewNode("n1")
			res := e.Initialise(enginetest.InitParams(set.n, set.t))
			var probe *fsmpb.Key
			var want []byte
			subsetsOf(set.n, set.t, func(pick []int) {
				for i, p := range pick {
					st, err := e.SubmitShare(t.Context(), enginetest.Operator, res.Shares[p])
					if err != nil || st.Sealed != (i < set.t-1) || st.Sealed && st.Progress != i+1 {
						t.Fatalf("subset %v, share %d: got status %+v, error %v", pick, p+1, st, err)
					}
				}
				if probe == nil {
					probe = e.PutKey(enginetest.KeyID)
					want = e.Material(probe)
				}
				if got := e.Material(probe); string(got) != string(want) {
					t.Fatalf("subset %v unseals another keyring", pick)
				}
				e.Vault.Seal()
				e.Events.Pending.Events = nil
			})
			subsetsOf(set.n, set.t-1, func(pick []int) {
				for _, p := range pick {
					if st, err := e.SubmitShare(t.Context(), enginetest.Operator, res.Shares[p]); err != nil || !st.Sealed {
						t.Fatalf("subset %v, which is too small: got status %+v, error %v; want a sealed node", pick, st, err)
					}
				}
				if err := e.ResetShares(t.Context(), enginetest.Operator, nil); err != nil {
					t.Fatal(err)
				}
				e.Events.Pending.Events = nil
			})
			if n := e.MemoryInUse(); n != 0 {
				t.Errorf("%d slots of locked memory are in use after all subsets, want 0", n)
			}
		})
	}
}

func TestBadSharesAreNamedAndDoNoHarm(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	res := e.Initialise(enginetest.InitParams(3, 3))
	_, _, foreign := unsealedNode(t)
	if _, err := e.SubmitShare(t.Context(), enginetest.Operator, res.Shares[1]); err != nil {
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
		{"forged", enginetest.ForgedShare(t, c, 1), "differs from the one that was issued"},
	}
	for _, tc := range cases {
		st, err := e.SubmitShare(t.Context(), enginetest.Operator, tc.share)
		if !errors.Is(err, ceremony.ErrShare) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got error %v, want ErrShare with %q", tc.name, err, tc.says)
		}
		if strings.Contains(fmt.Sprint(err), tc.share) && len(tc.share) > 20 {
			t.Errorf("%s: the error contains the share", tc.name)
		}
		if st.Progress != 1 || !st.Sealed {
			t.Errorf("%s: sealed %v with progress %d, want progress 1", tc.name, st.Sealed, st.Progress)
		}
	}
	e.Unseal(res.Shares[0], res.Shares[2])
	recs := e.Records()
	want := []string{"Init", "SubmitShare"}
	for range cases {
		want = append(want, "SubmitShare!"+string(ceremony.ErrShare.Code))
	}
	want = append(want, "SubmitShare", "SubmitShare", "Unseal")
	if d := cmp.Diff(want, enginetest.EventNames(recs)); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	// The record of a wrong share names its custodian.
	if f := recs[len(recs)-4].RequestParameters; len(f) != 4 || f[0].Name != "custodian" || f[0].GetNumber() != 1 {
		t.Errorf("record of the wrong share of custodian 1: %v", f)
	}
	ids := make(map[string]bool)
	for _, r := range recs {
		if ids[string(r.RequestId)] {
			t.Errorf("the record of %s has a request id that another record has", r.EventName)
		}
		ids[string(r.RequestId)] = true
	}
}

const (
	shareTimeout      = 15 * time.Minute // after which shares are forgotten
	shareRefusals     = 20               // that one operator may cause at once
	shareRefusalEvery = 3 * time.Second  // after which the operator may cause another
)

func TestShareTimeout(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	res := e.Initialise(enginetest.InitParams(5, 3))
	submit := func(i int) ceremony.SealStatus {
		t.Helper()
		st, err := e.SubmitShare(t.Context(), enginetest.Operator, res.Shares[i])
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	submit(0)
	c.Clock.Advance(shareTimeout - time.Second)
	if st := submit(1); st.Progress != 2 {
		t.Errorf("progress is %d before the timeout, want 2", st.Progress)
	}
	c.Clock.Advance(time.Second)
	e.Ceremonies.Expire()
	if st := e.SealStatus(); st.Progress != 0 {
		t.Errorf("progress is %d after the timeout, want 0", st.Progress)
	}
	if n := e.MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after the timeout, want 0", n)
	}
	// Old shares do not count either if Expire was not called meanwhile.
	submit(0)
	submit(1)
	c.Clock.Advance(shareTimeout)
	if st := submit(2); st.Progress != 1 || !st.Sealed {
		t.Errorf("after the timeout, a share leads to status %+v, want progress 1", st)
	}
	e.Unseal(res.Shares[3], res.Shares[4])
	if got := strings.Join(enginetest.EventNames(e.Records()), " "); strings.Count(got, "AbandonShares") != 2 {
		t.Errorf("got records %s, want two of AbandonShares", got)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	c, e, res := unsealedNode(t)
	k := e.PutKey(enginetest.KeyID)
	want := e.Material(k)
	again := c.NewNode("n1")
	if !again.Sealed() {
		t.Fatal("the node is unsealed after a restart")
	}
	again.Unseal(res.Shares[1], res.Shares[2])
	if got := again.Material(k); string(got) != string(want) {
		t.Error("the key has other material after a restart")
	}
}

// Shares are accepted without a leader, and recorded once there is one.
func TestEventsWaitForALeader(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	res := e.Initialise(enginetest.InitParams(3, 2))
	r := c.Replica("n1")
	r.Err = fsm.ErrNoLeader
	for _, s := range res.Shares[:2] {
		if _, err := e.SubmitShare(t.Context(), enginetest.Operator, s); err != nil {
			t.Fatal(err)
		}
	}
	e.Events.RecordPending(t.Context())
	if e.Sealed() || c.Audit.Size() != 1 {
		t.Fatalf("without a leader: sealed %v with %d records, want an unsealed node and 1 record", e.Sealed(), c.Audit.Size())
	}
	r.Err = nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Events.Run(ctx); close(done) }()
	enginetest.WaitFor(t, "the ceremony is recorded", func() bool { return c.Audit.Size() == 4 })
	cancel()
	<-done
	if got, want := strings.Join(enginetest.EventNames(e.Records()), " "), "Init SubmitShare SubmitShare Unseal"; got != want {
		t.Errorf("got records %s, want %s", got, want)
	}
}

// However many wrong shares one operator submits, the steps of others are recorded, and so
// are that operator's first refusals. The other refusals are summarised.
func TestRealStepsAreNotPushedOut(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	res := e.Initialise(enginetest.InitParams(3, 2))
	eve := ceremony.Operator{Name: "conclave://operator/eve"}
	for i := range 500 {
		want := ceremony.ErrShare
		if i >= shareRefusals {
			want = kmsapi.ErrThrottling
		}
		if _, err := e.SubmitShare(t.Context(), eve, "nonsense"); !errors.Is(err, want) {
			t.Fatalf("share %d: got error %v, want %v", i+1, err, want)
		}
	}
	e.Unseal(res.Shares...) // other operators are not throttled
	var real, single int
	summaries := make(map[string]int64)
	for _, r := range e.Records()[1:] {
		switch {
		case r.Identity.Certificate == enginetest.Operator.Name:
			real++
		case r.ServiceEventDetails == nil:
			single++
		default:
			summaries[r.ErrorCode] = r.ServiceEventDetails[0].GetNumber()
		}
	}
	if real != 3 || single != record.MaxPendingRefused {
		t.Errorf("got %d records of the unsealing and %d of single refusals, want 3 and %d", real, single, record.MaxPendingRefused)
	}
	want := map[string]int64{string(ceremony.ErrShare.Code): shareRefusals - record.MaxPendingRefused, string(kmsapi.ErrThrottling.Code): 500 - shareRefusals}
	if d := cmp.Diff(want, summaries); d != "" {
		t.Errorf("summaries (-want +got):\n%s", d)
	}
	if len(e.Events.Pending.Events) != 0 {
		t.Errorf("%d events are not recorded yet, want 0", len(e.Events.Pending.Events))
	}

	// A while later the operator may submit shares again.
	again := c.NewNode("n1")
	for range shareRefusals {
		_, _ = again.SubmitShare(t.Context(), eve, "nonsense")
	}
	c.Clock.Advance(shareRefusalEvery)
	if _, err := again.SubmitShare(t.Context(), eve, res.Shares[0]); err != nil {
		t.Errorf("a good share after %v: %v", shareRefusalEvery, err)
	}
}

// sealShare encrypts a share as an operator's client does.
func sealShare(t *testing.T, ch *ceremony.Challenge, share string) []byte {
	t.Helper()
	sealed, err := keymat.SealTo(ch.PublicKey, slices.Concat([]byte("conclave share v1\x00"), ch.ClusterID[:], ch.Nonce[:], []byte(ch.NodeID)), []byte(share))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealedShares(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 2)
	a, b := c.NewNode("n1"), c.NewNode("n2")
	if _, err := a.Challenge(t.Context()); !errors.Is(err, ceremony.ErrNotInitialised) {
		t.Errorf("Challenge before Init: got error %v, want ErrNotInitialised", err)
	}
	res := a.Initialise(enginetest.InitParams(3, 2))
	challenge := func(e *enginetest.Node) *ceremony.Challenge {
		t.Helper()
		ch, err := e.Challenge(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	submit := func(e *enginetest.Node, ch *ceremony.Challenge, sealed []byte) error {
		_, err := e.SubmitSealedShare(t.Context(), enginetest.Operator, ch.Nonce[:], sealed)
		return err
	}
	forA, forB := challenge(a), challenge(b)
	if again := challenge(a); again.Nonce != forA.Nonce || !bytes.Equal(again.PublicKey, forA.PublicKey) {
		t.Error("two challenges of the same ceremony differ")
	}
	if forA.Nonce == forB.Nonce || bytes.Equal(forA.PublicKey, forB.PublicKey) {
		t.Error("the challenges of two nodes have the same nonce or key")
	}
	share := sealShare(t, forA, res.Shares[0])
	if err := submit(b, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("a share for another node: got error %v, want ErrChallenge", err)
	}
	if err := submit(b, forB, share); !errors.Is(err, ceremony.ErrShare) {
		t.Errorf("a share for another node, with this node's nonce: got error %v, want ErrShare", err)
	}
	if err := submit(a, forA, share); err != nil {
		t.Fatal(err)
	}
	if st := a.SealStatus(); st.Progress != 1 || st.Ceremony == nil || st.Ceremony.Nonce != forA.Nonce || st.Ceremony.Owner != enginetest.Operator.Name {
		t.Errorf("got status %+v, want progress 1 in the ceremony of %s", st, enginetest.Operator.Name)
	}
	if err := a.ResetShares(t.Context(), enginetest.Operator, nil); err != nil {
		t.Fatal(err)
	}
	if err := submit(a, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("a share for a ceremony that was reset: got error %v, want ErrChallenge", err)
	}
	// A ceremony without any shares expires too.
	forA = challenge(a)
	c.Clock.Advance(shareTimeout)
	a.Ceremonies.Expire()
	if n := a.MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after the challenge expired, want 0", n)
	}
	if err := submit(a, forA, share); !errors.Is(err, ceremony.ErrChallenge) {
		t.Errorf("a share for a challenge that expired: got error %v, want ErrChallenge", err)
	}
	forA = challenge(a)
	for _, i := range []int{2, 0} {
		if err := submit(a, forA, sealShare(t, forA, res.Shares[i]+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	if a.Sealed() {
		t.Error("the node is sealed after two shares of a threshold of two")
	}
	if _, err := a.Challenge(t.Context()); !errors.Is(err, ceremony.ErrUnsealed) {
		t.Errorf("Challenge of an unsealed node: got error %v, want ErrUnsealed", err)
	}
	if err := a.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if n := a.MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Seal, want 0", n)
	}
}

// If there is an answer key, Init returns all secrets encrypted to it.
func TestSealedSecrets(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	p := enginetest.InitParams(3, 2)
	p.AnswerKey = make([]byte, 65)
	if _, err := e.Init(t.Context(), enginetest.Operator, p); !errors.Is(err, kmsapi.ErrValidation) {
		t.Fatalf("with an invalid answer key: got error %v, want ValidationException", err)
	}
	r, err := keymat.NewReceiver(e.Vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	p.AnswerKey = r.Public()
	res := e.Initialise(p)
	if res.Shares != nil || res.SecretAccessKey != "" {
		t.Error("the result has secrets in the clear")
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
			t.Fatalf("the secrets have %d fields, want 3 shares and a secret access key", len(fields))
		}
		c.SignEntries(fields[:3])
		e.Unseal(fields[2], fields[0])
		return nil
	})
	message.Destroy()
	r.Destroy()
}

// TestCeremoniesHaveOwners checks that an operator resets the ceremony of another only by
// force, and that this is recorded.
func TestCeremoniesHaveOwners(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	res := e.Initialise(enginetest.InitParams(3, 2))
	eve := ceremony.Operator{Name: "conclave://operator/eve"}
	begin := func() *ceremony.Status {
		t.Helper()
		if _, err := e.SubmitShare(t.Context(), enginetest.Operator, res.Shares[0]); err != nil {
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
		if err := f(); !errors.Is(err, ceremony.ErrOwner) || !strings.Contains(err.Error(), enginetest.Operator.Name) {
			t.Errorf("%s: got error %v, want ErrOwner that names the owner", name, err)
		}
	}
	if st := e.SealStatus(); st.Progress != 1 {
		t.Fatalf("progress is %d after refused resets, want 1", st.Progress)
	}
	if err := e.ResetShares(t.Context(), eve, first.Nonce[:]); err != nil || e.SealStatus().Progress != 0 {
		t.Fatalf("reset by force: error %v, progress %d", err, e.SealStatus().Progress)
	}
	if second := begin(); second.Nonce == first.Nonce {
		t.Error("two ceremonies have the same nonce")
	} else if err := e.ResetShares(t.Context(), eve, first.Nonce[:]); !errors.Is(err, ceremony.ErrOwner) {
		t.Errorf("reset with the nonce of an earlier ceremony: got error %v, want ErrOwner", err)
	}
	if err := e.ResetShares(t.Context(), enginetest.Operator, nil); err != nil {
		t.Errorf("reset by the owner: %v", err)
	}
	// A ceremony that has expired has no owner.
	begin()
	c.Clock.Advance(shareTimeout)
	if err := e.ResetShares(t.Context(), eve, nil); err != nil {
		t.Errorf("reset of an expired ceremony: %v", err)
	}
	e.Unseal(res.Shares...)
	var forced []string
	for _, r := range e.Records() {
		for _, f := range r.RequestParameters {
			if f.Name == "forced" {
				forced = append(forced, r.EventName+" by "+r.Identity.Certificate)
			}
		}
	}
	if d := cmp.Diff([]string{"ResetShares by " + eve.Name}, forced); d != "" {
		t.Errorf("records of forced resets (-want +got):\n%s", d)
	}
}

func TestSealWithoutAMajority(t *testing.T) {
	t.Parallel()
	c, e, res := unsealedNode(t)
	c.Replica("n1").Err = fsm.ErrNoLeader
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil || !e.Sealed() {
		t.Fatalf("Seal without a leader: sealed %v, error %v", e.Sealed(), err)
	}
	c.Replica("n1").Err = nil
	e.Unseal(res.Shares...)
	if got := strings.Join(enginetest.EventNames(e.Records()), " "); !strings.HasSuffix(got, "Seal SubmitShare SubmitShare Unseal") {
		t.Errorf("got records %s, want the sealing and the unsealing at the end", got)
	}
}

// TestFinalizeUpgrade: the level rises only if no node stands in the way. Both outcomes are
// recorded, and a second call does nothing.
func TestFinalizeUpgrade(t *testing.T) {
	t.Parallel()
	c, e, _ := unsealedNode(t)
	answers := func(to uint32, obstacles ...string) func(context.Context) (uint32, []string) {
		return func(context.Context) (uint32, []string) { return to, obstacles }
	}
	_, _, err := e.FinalizeUpgrade(t.Context(), enginetest.Operator, answers(2, "node b is old", "node c did not answer"))
	if want := "The feature level stays 1: node b is old; node c did not answer."; !errors.Is(err, ceremony.ErrNotUpgraded) || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %s", err, want)
	}
	records := e.Records()
	if rec := records[len(records)-1]; rec.EventName != "FinalizeUpgrade" || rec.ErrorCode != string(ceremony.ErrNotUpgraded.Code) || rec.GetIdentity().GetPrincipalId() != enginetest.Operator.Name {
		t.Errorf("the refusal is recorded as %v", rec)
	}
	// A voter that registered an older release keeps the level, even if nobody noticed.
	c.Commit(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n9", Incarnation: 1, SchemaMin: 1, SchemaMax: 1}}})
	c.SetVoters("n1", "n9")
	c.ExpectInvalid = true
	if _, _, err := e.FinalizeUpgrade(t.Context(), enginetest.Operator, answers(2)); !errors.Is(err, ceremony.ErrNotUpgraded) {
		t.Errorf("with a voter of the release before: %v", err)
	}
	c.ExpectInvalid = false
	c.SetVoters("n1")
	if got := c.State().Level(); got != 1 {
		t.Fatalf("the level is %d", got)
	}
	for i, want := range []bool{true, false} {
		level, raised, err := e.FinalizeUpgrade(t.Context(), enginetest.Operator, answers(2))
		if err != nil || level != 2 || raised != want || c.State().Level() != 2 {
			t.Errorf("call %d: level %d, raised %v, %v; the state has %d", i, level, raised, err, c.State().Level())
		}
	}
	records = e.Records()
	if rec := records[len(records)-1]; rec.EventName != "FinalizeUpgrade" || rec.ErrorCode != "" || len(records[len(records)-2].ErrorCode) == 0 {
		t.Errorf("the last record is %v", rec)
	}
}

func TestConfirmTime(t *testing.T) {
	t.Parallel()
	c, e, _ := unsealedNode(t)
	if err := e.ConfirmTime(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if got, want := c.State().ConfirmedTime(), c.Clock.Now().Add(time.Hour).UnixNano(); got != want {
		t.Errorf("time is confirmed until %d, want %d", got, want)
	}
	if got := enginetest.EventNames(e.Records()); got[len(got)-1] != "ConfirmTime" {
		t.Errorf("got records %v, want ConfirmTime at the end", got)
	}
}
