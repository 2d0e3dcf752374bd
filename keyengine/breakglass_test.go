package keyengine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// A glassTest makes the operators' calls of break-glass ceremonies on a cluster with two of three
// shares.
type glassTest struct {
	*testCluster
	answer *keymat.Receiver
}

func newGlassTest(t *testing.T, options ...clusterOption) *glassTest {
	c := newTestCluster(t, append(options, withShares(3, 2))...)
	to, err := keymat.NewReceiver(c.engine.vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Destroy)
	return &glassTest{c, to}
}

func (g *glassTest) op() ceremony.Operator {
	op := enginetest.Operator
	op.RequestID = randomID()
	return op
}

func (g *glassTest) begin(e *Engine) *ceremony.BreakGlass {
	g.t.Helper()
	b, err := e.BeginBreakGlass(g.t.Context(), g.op(), ceremony.BreakGlassParams{Reason: "nobody can change the policies"})
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// sealedFor encrypts a share for a ceremony, as clients do.
func (g *glassTest) sealedFor(purpose string, b *ceremony.BreakGlass, share string) []byte {
	g.t.Helper()
	info := slices.Concat([]byte(purpose+"\x00"), b.ClusterID[:], b.Nonce[:], []byte(b.NodeID))
	sealed, err := keymat.SealTo(b.PublicKey, info, []byte(share))
	if err != nil {
		g.t.Fatal(err)
	}
	return sealed
}

func (g *glassTest) submit(e *Engine, b *ceremony.BreakGlass, share string) (*ceremony.BreakGlass, *ceremony.BreakGlassKey, error) {
	g.t.Helper()
	return e.SubmitBreakGlassShare(g.t.Context(), g.op(), b.Nonce[:], g.sealedFor("conclave break-glass share v1", b, share), g.answer.Public())
}

// open returns an access key with its secret.
func (g *glassTest) open(key *ceremony.BreakGlassKey) *ceremony.InitResult {
	g.t.Helper()
	secret, err := g.answer.Open(iam.SecretInfo(key.AccessKeyID), key.SealedSecret)
	if err != nil {
		g.t.Fatal(err)
	}
	defer secret.Destroy()
	res := &ceremony.InitResult{AccessKeyID: key.AccessKeyID, RootARN: key.RootARN}
	if err := secret.With(func(b []byte) error { res.SecretAccessKey = string(b); return nil }); err != nil {
		g.t.Fatal(err)
	}
	return res
}

// complete holds a ceremony and returns its access key.
func (g *glassTest) complete(e *Engine) (*ceremony.BreakGlassKey, *ceremony.InitResult) {
	g.t.Helper()
	b := g.begin(e)
	if _, _, err := g.submit(e, b, g.initResult.Shares[2]); err != nil {
		g.t.Fatal(err)
	}
	_, key, err := g.submit(e, b, g.initResult.Shares[0])
	if err != nil || key == nil {
		g.t.Fatalf("the share that completes the threshold: got key %v, error %v", key, err)
	}
	return key, g.open(key)
}

// glassRecords returns the names of the records of break-glass ceremonies, with the error codes.
func (g *glassTest) glassRecords(e *Engine) (names []string) {
	g.t.Helper()
	nodeOf(e).Events.RecordPending(g.t.Context())
	for _, r := range nodeOf(e).Records() {
		if strings.HasSuffix(r.EventName, "BreakGlass") || strings.HasPrefix(r.EventName, "SubmitBreakGlass") {
			names = append(names, strings.TrimSpace(r.EventName+" "+r.ErrorCode))
		}
	}
	return names
}

func (g *glassTest) wantRecords(e *Engine, want ...string) {
	g.t.Helper()
	if got := g.glassRecords(e); !slices.Equal(got, want) {
		g.t.Errorf("got records %q, want %q", got, want)
	}
}

// breakGlassKeys returns the break-glass access keys in the state.
func (g *glassTest) breakGlassKeys() (ids []string) {
	for c := range fsm.Objects[*fsmpb.Credential](g.State(), fsm.AccountID(testAccountNumber), "") {
		if c.BreakGlassUntil != 0 {
			ids = append(ids, c.Id)
		}
	}
	return ids
}

// TestBreakGlass recovers an account whose root user has no credentials, and a key whose policy
// lets nobody in.
func TestBreakGlass(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t, withNodes(2))
	ctx, n1, n2, res := t.Context(), g.engine, g.engines["n2"], g.initResult
	root := rootCaller(t, n1, res)
	made, err := callAs[kmsapi.CreateKeyOutput](g.testCluster, n1, root.Identity, "CreateKey", &kmsapi.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	id := made.KeyMetadata.KeyId
	g.setPolicy(*id, policyDocument(`{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}`))
	open := policyDocument(rootStatement)
	put := &kmsapi.PutKeyPolicyInput{KeyId: id, Policy: &open}
	if _, err := callAs[request.None](g.testCluster, n1, root.Identity, "PutKeyPolicy", put); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Fatalf("the root user is not locked out: %v", err)
	}
	if err := n1.DeleteCredential(ctx, rootCaller(t, n1, res), res.AccessKeyID); err != nil {
		t.Fatalf("deleting the last credential: %v", err)
	}

	key, opened := g.complete(n1)
	if got := key.Expires.Sub(g.Clock.Now()); got > ceremony.DefaultBreakGlassLife || got < ceremony.DefaultBreakGlassLife-time.Minute {
		t.Errorf("the access key lasts %v", got)
	}
	if st, err := n1.BreakGlass(); err != nil || st.Active || len(st.Custodians) > 0 {
		t.Errorf("the ceremony is not over: %+v, %v", st, err)
	}
	for name, e := range g.engines {
		if got := testutil.ToFloat64(e.metrics.breakGlass); got != 1 {
			t.Errorf("%s counts %v access keys, want 1", name, got)
		}
	}
	g.wantRecords(n1, "BeginBreakGlass", "SubmitBreakGlassShare", "SubmitBreakGlassShare", "CompleteBreakGlass")
	for _, r := range nodeOf(n1).Records() {
		if !strings.Contains(r.EventName, "BreakGlass") {
			continue
		}
		if text := r.String(); !strings.Contains(text, "nobody can change the policies") || r.Identity.Certificate != enginetest.Operator.Name || r.SourceIp != enginetest.Operator.SourceIP {
			t.Errorf("the record of %s lacks the reason, operator or address: %v", r.EventName, r)
		}
		if strings.Contains(r.String(), opened.SecretAccessKey) {
			t.Errorf("the secret is in the record of %s", r.EventName)
		}
	}

	// On another node, which may be behind.
	who := rootCaller(t, n2, opened).Identity
	// The check for lock-outs does not count what break-glass may do.
	others := policyDocument(statement("Allow", testAccount, "kms:Decrypt"))
	_, err = callAs[request.None](g.testCluster, n2, who, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: id, Policy: &others})
	wantError(t, err, kmsapi.ErrMalformedPolicy, policy.LockoutMessage)
	if _, err := callAs[request.None](g.testCluster, n2, who, "PutKeyPolicy", put); err != nil {
		t.Errorf("PutKeyPolicy on the key that is closed: %v", err)
	}
	rec := g.lastRecord()
	if text := rec.String(); !strings.Contains(text, "breakGlass") || !strings.Contains(text, "kms:PutKeyPolicy Allow break-glass") {
		t.Errorf("the record does not say that it was by break-glass: %v", rec)
	}
	for name, in := range map[string]any{
		"Encrypt":     &kmsapi.EncryptInput{KeyId: id, Plaintext: []byte("x")},
		"CreateGrant": &kmsapi.CreateGrantInput{KeyId: id, GranteePrincipal: &opened.RootARN, Operations: []string{"Decrypt"}},
		"DisableKey":  &kmsapi.DisableKeyInput{KeyId: id},
	} {
		_, err := callAs[any](g.testCluster, n2, who, name, in)
		if !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "break-glass") {
			t.Errorf("%s: got error %v, want AccessDeniedException about break-glass", name, err)
		}
	}
	if _, err := n2.ReadAudit(ctx, g.caller(who), 0); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("reading the audit log: got error %v, want AccessDeniedException", err)
	}

	// It makes credentials that last, beside itself, and does not count against their quota.
	first := createAccessKey(t, n1, rootCaller(t, n1, opened), res)
	createAccessKey(t, n1, rootCaller(t, n1, opened), res)
	list, err := n1.Credentials(ctx, rootCaller(t, n1, first))
	if err != nil || len(list) != 3 || !slices.ContainsFunc(list, func(c CredentialInfo) bool { return c.ID == key.AccessKeyID && c.Expires.Equal(key.Expires) }) {
		t.Errorf("got credentials %+v, error %v; want three, one of which ends", list, err)
	}
	if _, err := callAs[kmsapi.EncryptOutput](g.testCluster, n1, rootCaller(t, n1, first).Identity, "Encrypt", &kmsapi.EncryptInput{KeyId: id, Plaintext: []byte("x")}); err != nil {
		t.Errorf("the root user is not let in again: %v", err)
	}
}

// TestBreakGlassEnds: no node accepts the access key after its end, on whatever path.
func TestBreakGlassEnds(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t, withNodes(2))
	n1, n2 := g.engine, g.engines["n2"]
	key, opened := g.complete(n1)
	who := rootCaller(t, n2, opened)
	token, inSession := sessionCaller(t, g.testCluster, n2, opened)
	if _, err := n2.Credentials(t.Context(), inSession); err != nil {
		t.Fatal(err)
	}
	// The key ends between the evaluation of a request and its commit.
	g.Advance(key.Expires.Sub(g.Clock.Now()) - time.Second)
	g.Replica("n2").BeforeCommit = func(*fsmpb.Record) {
		g.Replica("n2").BeforeCommit = nil
		g.Advance(2 * time.Second)
	}
	if _, _, err := n2.CreateAccessKey(t.Context(), who, pointOf(t, n2)); !errors.Is(err, iam.ErrSessionEnded) {
		t.Errorf("a request that is committed after the end: got error %v, want ErrSessionEnded", err)
	}
	for name, err := range map[string]error{
		"a signature": func() error {
			_, err := n2.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(opened, testRegion, "text"))
			return err
		}(),
		"a new session": func() error {
			_, _, err := n2.OpenSession(t.Context(), enginetest.SessionProof(opened, g.Clock.Now()))
			return err
		}(),
		"an old session":                                  func() error { _, err := n2.AuthenticateSession(t.Context(), token); return err }(),
		"a caller who was authenticated before":           func() error { _, err := n1.Credentials(t.Context(), who); return err }(),
		"a caller who was authenticated with its session": func() error { _, err := n1.Credentials(t.Context(), inSession); return err }(),
	} {
		want := iam.ErrSessionEnded
		if name == "a signature" || name == "a new session" {
			want = iam.ErrUnrecognized
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: got error %v, want %v", name, err, want)
		}
	}
	// The next ceremony replaces it.
	next, _ := g.complete(n2)
	if got := g.breakGlassKeys(); !slices.Equal(got, []string{next.AccessKeyID}) {
		t.Errorf("the state has the break-glass access keys %q, want %s only", got, next.AccessKeyID)
	}
	// And it can be deleted before its end, by itself.
	if err := n1.DeleteCredential(t.Context(), rootCaller(t, n1, g.open(next)), next.AccessKeyID); err != nil || len(g.breakGlassKeys()) > 0 {
		t.Errorf("deleting it: %v", err)
	}
}

// TestBreakGlassEndsWithItsMAC: nobody extends an access key by changing the state.
func TestBreakGlassEndsWithItsMAC(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t)
	key, _ := g.complete(g.engine)
	c, _ := g.State().Credential(testAccountNumber, key.AccessKeyID)
	longer := proto.CloneOf(c)
	longer.BreakGlassUntil = 0
	o, err := g.engine.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.engine.Identify(o, longer); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("without its end: got error %v, want ErrUnrecognized", err)
	}
}

func TestBreakGlassRefuses(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t, withNodes(2))
	ctx, n1, n2, shares := t.Context(), g.engine, g.engines["n2"], g.initResult.Shares
	for name, p := range map[string]ceremony.BreakGlassParams{
		"no reason":       {Reason: "  "},
		"a control":       {Reason: "a\nb"},
		"a long reason":   {Reason: strings.Repeat("a", 513)},
		"too long":        {Reason: "x", Life: time.Hour + time.Second},
		"too short":       {Reason: "x", Life: time.Second},
		"negative":        {Reason: "x", Life: -time.Hour},
		"unknown account": {Reason: "x", Account: "999988887777"},
		"no account":      {Reason: "x", Account: "me"},
	} {
		if _, err := n1.BeginBreakGlass(ctx, g.op(), p); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s: got error %v, want ValidationException", name, err)
		}
	}
	first := g.begin(n1)
	_, err := n1.BeginBreakGlass(ctx, g.op(), ceremony.BreakGlassParams{Reason: "again"})
	if !errors.Is(err, ceremony.ErrOwner) || !strings.Contains(err.Error(), enginetest.Operator.Name) {
		t.Errorf("a second ceremony: got error %v, want ErrOwner that names the operator", err)
	}
	if _, _, err := g.submit(n1, first, shares[0]); err != nil {
		t.Fatal(err)
	}
	other := g.begin(n2)
	for _, tt := range []struct {
		name    string
		on      *Engine
		b       *ceremony.BreakGlass
		purpose string
		share   string
		want    *kmsapi.Error
		message string
	}{
		{"the same share", n1, first, "", shares[0], ceremony.ErrShare, "1"},
		{"no share", n1, first, "", "conclave-share-1-x", ceremony.ErrShare, ""},
		{"a forged share", n1, first, "", enginetest.ForgedShare(t, g.Cluster, 2), ceremony.ErrShare, "2"},
		{"a share for unsealing", n1, first, "conclave share v1", shares[1], ceremony.ErrShare, ""},
		{"a share for another node", n1, other, "", shares[1], ceremony.ErrNoCeremony, ""},
	} {
		purpose := tt.purpose
		if purpose == "" {
			purpose = "conclave break-glass share v1"
		}
		_, key, err := tt.on.SubmitBreakGlassShare(ctx, g.op(), tt.b.Nonce[:], g.sealedFor(purpose, tt.b, tt.share), g.answer.Public())
		if !errors.Is(err, tt.want) || key != nil || !strings.Contains(err.Error(), tt.message) {
			t.Errorf("%s: got key %v, error %v; want %s", tt.name, key, err, tt.want.Code)
		}
	}
	if _, _, err := n1.SubmitBreakGlassShare(ctx, g.op(), first.Nonce[:], g.sealedFor("conclave break-glass share v1", first, shares[1]), []byte("key")); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("without an answer key: got error %v, want ValidationException", err)
	}
	if st, err := n1.BreakGlass(); err != nil || !slices.Equal(st.Custodians, []int{1}) {
		t.Errorf("the ceremony has shares %+v, error %v; want the first only", st, err)
	}
	// What two nodes have does not add up.
	if st, key, err := g.submit(n2, other, shares[1]); err != nil || key != nil || !slices.Equal(st.Custodians, []int{2}) {
		t.Errorf("a share on another node: got %+v, key %v, error %v", st, key, err)
	}

	// A cancelled ceremony keeps nothing, and its nonce is of no use.
	if err := n1.CancelBreakGlass(ctx, g.op(), other.Nonce[:]); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("cancelling with another nonce: got error %v, want ErrNoCeremony", err)
	}
	if err := n1.CancelBreakGlass(ctx, g.op(), first.Nonce[:]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.submit(n1, first, shares[1]); !errors.Is(err, ceremony.ErrNoCeremony) {
		t.Errorf("a share for a cancelled ceremony: got error %v, want ErrNoCeremony", err)
	}
	second := g.begin(n1)
	if second.Nonce == first.Nonce {
		t.Error("the nonce is used again")
	}
	if _, _, err := n1.SubmitBreakGlassShare(ctx, g.op(), second.Nonce[:], g.sealedFor("conclave break-glass share v1", first, shares[1]), g.answer.Public()); !errors.Is(err, ceremony.ErrShare) {
		t.Errorf("a share that was encrypted for the ceremony before: got error %v, want ErrShare", err)
	}
	if st, key, err := g.submit(n1, second, shares[1]); err != nil || key != nil || !slices.Equal(st.Custodians, []int{2}) {
		t.Errorf("a share after the cancellation: got %+v, key %v, error %v; want one share", st, key, err)
	}
	if got := g.breakGlassKeys(); len(got) > 0 {
		t.Errorf("there are access keys: %q", got)
	}
	got := strings.Join(g.glassRecords(n1), ", ")
	for _, want := range []string{"BeginBreakGlass CeremonyInProgressException", "SubmitBreakGlassShare InvalidShareException", "SubmitBreakGlassShare NoCeremonyException", "CancelBreakGlass NoCeremonyException", "CancelBreakGlass,"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no record of %s; there are %s", want, got)
		}
	}
}

// TestBreakGlassIsForgotten: when its time is over, when its node is sealed or restarts, a
// ceremony leaves nothing behind.
func TestBreakGlassIsForgotten(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(g *glassTest) *Engine{
		"timeout": func(g *glassTest) *Engine {
			g.Advance(15 * time.Minute)
			g.engine.Expire()
			return g.engine
		},
		"sealed": func(g *glassTest) *Engine {
			if err := g.engine.Seal(g.t.Context(), g.op()); err != nil {
				g.t.Fatal(err)
			}
			if _, err := g.engine.BreakGlass(); !enginetest.IsUnavailable(err) {
				g.t.Errorf("the ceremony of a sealed node: got error %v, want KMSUnavailable", err)
			}
			if _, err := g.engine.BeginBreakGlass(g.t.Context(), g.op(), ceremony.BreakGlassParams{Reason: "x"}); !enginetest.IsUnavailable(err) {
				g.t.Errorf("beginning on a sealed node: got error %v, want KMSUnavailable", err)
			}
			nodeOf(g.engine).Unseal(g.initResult.Shares...)
			return g.engine
		},
		"": func(g *glassTest) *Engine { // a restart, which nothing records
			e := g.startEngine("n1")
			nodeOf(e).Unseal(g.initResult.Shares...)
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGlassTest(t)
			idle := nodeOf(g.engine).MemoryInUse()
			b := g.begin(g.engine)
			if _, _, err := g.submit(g.engine, b, g.initResult.Shares[0]); err != nil {
				t.Fatal(err)
			}
			e := end(g)
			if st, err := e.BreakGlass(); err != nil || st.Active {
				t.Errorf("the ceremony goes on: %+v, error %v", st, err)
			}
			if _, key, err := g.submit(e, b, g.initResult.Shares[1]); !errors.Is(err, ceremony.ErrNoCeremony) || key != nil {
				t.Errorf("another share: got key %v, error %v; want ErrNoCeremony", key, err)
			}
			if name == "timeout" && nodeOf(e).MemoryInUse() > idle {
				t.Errorf("%d slots of locked memory are in use, %d before the ceremony", nodeOf(e).MemoryInUse(), idle)
			}
			want := []string{"BeginBreakGlass", "SubmitBreakGlassShare"}
			if name != "" {
				want = append(want, "ExpireBreakGlass")
			}
			g.wantRecords(e, append(want, "SubmitBreakGlassShare NoCeremonyException")...)
			if name != "" && !slices.ContainsFunc(nodeOf(e).Records(), func(r *auditpb.Record) bool {
				return r.EventName == "ExpireBreakGlass" && strings.Contains(r.String(), name)
			}) {
				t.Errorf("no record says that the cause is %q", name)
			}
		})
	}
}

// TestBreakGlassWithoutALog: what is not recorded does not happen. In particular, a node that
// combines the shares and then fails leaves no access key behind.
func TestBreakGlassWithoutALog(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t)
	r, e, shares := g.Replica("n1"), g.engine, g.initResult.Shares
	failing := func(f func()) {
		r.Err = fsm.ErrNoLeader
		defer func() { r.Err = nil }()
		f()
	}
	failing(func() {
		if _, err := e.BeginBreakGlass(t.Context(), g.op(), ceremony.BreakGlassParams{Reason: "x"}); !enginetest.IsUnavailable(err) {
			t.Errorf("beginning: got error %v, want KMSUnavailable", err)
		}
	})
	if st, err := e.BreakGlass(); err != nil || st.Active {
		t.Fatalf("a ceremony without a record: %+v, %v", st, err)
	}
	b := g.begin(e)
	failing(func() {
		if _, _, err := g.submit(e, b, shares[0]); !enginetest.IsUnavailable(err) {
			t.Errorf("a share: got error %v, want KMSUnavailable", err)
		}
	})
	if st, err := e.BreakGlass(); err != nil || !st.Active || len(st.Custodians) > 0 {
		t.Errorf("a share counts without a record: %+v, error %v", st, err)
	}
	if _, _, err := g.submit(e, b, shares[0]); err != nil {
		t.Fatal(err)
	}
	// The record of the share is committed, that of the access key is not.
	r.BeforeCommit = func(rec *fsmpb.Record) {
		if len(rec.Changes) > 0 {
			r.BeforeCommit = nil
			r.LoseRecord = true
		}
	}
	_, key, err := g.submit(e, b, shares[1])
	r.LoseRecord = false
	if !enginetest.IsUnavailable(err) || key != nil {
		t.Errorf("the last share: got key %v, error %v; want KMSUnavailable", key, err)
	}
	if got := g.breakGlassKeys(); len(got) > 0 {
		t.Errorf("there are access keys: %q", got)
	}
	if st, err := e.BreakGlass(); err != nil || st.Active {
		t.Errorf("the ceremony goes on: %+v, error %v", st, err)
	}
	if got := fmt.Sprint(g.glassRecords(e)); !strings.Contains(got, "CompleteBreakGlass KMS") && !strings.Contains(got, "CompleteBreakGlass ") {
		t.Errorf("the failure is not recorded: %s", got)
	}
}

// TestBreakGlassOfAnotherAccount: the access key is one of the account that was named, and is
// good for that account's keys only.
func TestBreakGlassOfAnotherAccount(t *testing.T) {
	t.Parallel()
	g := newGlassTest(t)
	e := g.engine
	if _, _, err := e.CreateAccount(t.Context(), rootCaller(t, e, g.initResult), otherAccount.String(), "other", pointOf(t, e)); err != nil {
		t.Fatal(err)
	}
	made, err := callAs[kmsapi.CreateKeyOutput](g.testCluster, e, rootCaller(t, e, g.initResult).Identity, "CreateKey", &kmsapi.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.BeginBreakGlass(t.Context(), g.op(), ceremony.BreakGlassParams{Reason: "x", Account: otherAccount.String(), Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.submit(e, b, g.initResult.Shares[0]); err != nil {
		t.Fatal(err)
	}
	_, key, err := g.submit(e, b, g.initResult.Shares[1])
	if err != nil {
		t.Fatal(err)
	}
	who := rootCaller(t, e, g.open(key)).Identity
	if want := "arn:aws:iam::" + otherAccount.String() + ":root"; key.RootARN != want || who.Principal().ARN != want {
		t.Errorf("the access key is that of %s, %s; want %s", key.RootARN, who.Principal().ARN, want)
	}
	_, err = callAs[kmsapi.DescribeKeyOutput](g.testCluster, e, who, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: made.KeyMetadata.Arn})
	if !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("a key of the first account: got error %v, want AccessDeniedException", err)
	}
	if _, err := callAs[iamapi.ListUsersOutput](g.testCluster, e, who, "ListUsers", &iamapi.ListUsersInput{}); err != nil {
		t.Errorf("ListUsers: %v", err)
	}
}
