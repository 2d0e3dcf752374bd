package keyengine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

var testOperator = ceremony.Operator{Name: "conclave://operator/ada", SourceIP: "192.0.2.7"}

func testInit(shares, threshold int) ceremony.InitParams {
	return ceremony.InitParams{Shares: shares, Threshold: threshold, Account: "111122223333", Region: "eu-west-1"}
}

// initCluster founds the cluster and leaves the engine sealed.
func initCluster(t testing.TB, e *Engine, p ceremony.InitParams) *ceremony.InitResult {
	t.Helper()
	res, err := e.Init(t.Context(), testOperator, p)
	if err != nil {
		t.Fatalf("Init: %v", err)
	}
	if res.Shares != nil { // not encrypted
		e.replica.(*fakeReplica).cluster.watch(res.Shares)
	}
	return res
}

// unsealNode enters shares until the node is open.
func unsealNode(t testing.TB, e *Engine, shares ...string) {
	t.Helper()
	for i, s := range shares {
		op := testOperator
		op.RequestID = randomID()
		st, err := e.SubmitShare(t.Context(), op, s)
		if err != nil {
			t.Fatalf("share %d: %v", i+1, err)
		}
		if !st.Sealed {
			e.events.RecordPending(t.Context())
			return
		}
	}
	t.Fatalf("still sealed after %d shares", len(shares))
}

// openCluster is a one-node cluster of custodians' shares 2 of 3, unsealed.
func openCluster(t testing.TB, nodes ...string) (*fakeCluster, *Engine, *ceremony.InitResult) {
	t.Helper()
	if nodes == nil {
		nodes = []string{"a"}
	}
	c := newFakeCluster(t, nodes...)
	e := c.newEngine(nodes[0])
	res := initCluster(t, e, testInit(3, 2))
	unsealNode(t, e, res.Shares...)
	return c, e, res
}

// records opens every record in the audit log with an unsealed engine.
func records(t testing.TB, c *fakeCluster, e *Engine) []*auditpb.Record {
	t.Helper()
	entries, err := c.audit.Read(0, 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	var all []*auditpb.Record
	for _, entry := range entries {
		if bytes.Equal(entry.Body, []byte("behind")) {
			continue // a test's own change
		}
		b, err := e.vault.OpenBody(entry)
		if err != nil {
			t.Fatalf("entry %d: %v", entry.Index, err)
		}
		rec, err := auditlog.DecodeRecord(b)
		if err != nil {
			t.Fatalf("entry %d: %v", entry.Index, err)
		}
		all = append(all, rec)
	}
	return all
}

func names(recs []*auditpb.Record) []string {
	var n []string
	for _, r := range recs {
		name := r.EventName
		if r.ErrorCode != "" {
			name += "!" + r.ErrorCode
		}
		n = append(n, name)
	}
	return n
}

var testKey = fsm.KeyID{Account: testAccountNumber, Region: "eu-west-1", ID: [16]byte{1, 2, 3}}

// makeKey gives the state a key, as CreateKey would.
func makeKey(t testing.TB, c *fakeCluster, e *Engine, id fsm.KeyID) *fsmpb.Key {
	t.Helper()
	m, err := e.vault.NewMaterial(&fsmpb.Key{Account: uint64(testAccountNumber), Id: id.ID[:], Region: id.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS"}, 1)
	if err != nil {
		t.Fatalf("newMaterial: %v", err)
	}
	k := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: id.ID[:], Region: id.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS",
		State: fsmpb.KeyState_KEY_STATE_ENABLED, Created: 1, Materials: []*fsmpb.Material{m},
	}
	c.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	k, _ = c.state().Key(id)
	return k
}

func material(t testing.TB, e *Engine, k *fsmpb.Key) []byte {
	t.Helper()
	var out []byte
	if err := e.vault.WithMaterial(k, k.Materials[0], func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatalf("withMaterial: %v", err)
	}
	return out
}

func TestMaterialOpensOnEveryUnsealedNode(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares[2], res.Shares[0])
	k := makeKey(t, c, a, testKey)
	if m := material(t, a, k); len(m) != 32 || !bytes.Equal(m, material(t, b, k)) {
		t.Error("nodes have different material")
	}
	if len(k.Materials[0].MaterialId) != 32 || len(k.Materials[0].Id) != 16 {
		t.Errorf("material has ids of %d and %d bytes", len(k.Materials[0].MaterialId), len(k.Materials[0].Id))
	}
}

// used is how many slots of locked memory hold something.
func used(e *Engine) int {
	n, _ := e.vault.Arena().Usage()
	return n
}

func TestSealWipesEverything(t *testing.T) {
	c, e, res := openCluster(t)
	if used(e) == 0 {
		t.Fatal("an unsealed node holds nothing in locked memory")
	}
	k := makeKey(t, c, e, testKey)
	material(t, e, k)
	if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Fatal(err)
	}
	o, err := e.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if n := used(e); n != 0 {
		t.Errorf("%d slots of locked memory are in use after sealing", n)
	}
	if _, _, _, _, err := o.SealBody(c.clock.Now(), [16]byte{}, []byte("x")); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("a vault that was sealed sealed a record: %v", err)
	}
	if _, err := o.SignSession(&vault.Session{Credential: "x"}); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("a vault that was sealed made a MAC: %v", err)
	}
	// As it is found by those who ask now.
	if _, err := e.vault.NewMaterial(&fsmpb.Key{Account: uint64(testAccountNumber), Id: testKey.ID[:], Region: testKey.Region, Spec: "s", Usage: "u", Origin: "o"}, 1); !errors.Is(err, kmsapi.ErrUnavailable) && err != vault.ErrSealed {
		t.Errorf("newMaterial: %v", err)
	}
	for name, err := range sealedCalls(t, c, e, res, k) {
		if err != vault.ErrSealed {
			t.Errorf("%s on a sealed node: %v", name, err)
		}
	}
}

// sealedCalls are the outcomes of everything that a sealed node must refuse.
func sealedCalls(t testing.TB, c *fakeCluster, e *Engine, res *ceremony.InitResult, k *fsmpb.Key) map[string]error {
	errs := make(map[string]error)
	errs["withMaterial"] = e.vault.WithMaterial(k, k.Materials[0], func([]byte) error { return nil })
	_, errs["current"] = e.vault.Current()
	entries, _ := c.audit.Read(0, 1, 1)
	_, errs["openBody"] = e.vault.OpenBody(entries[0])
	_, errs["mac"] = e.vault.MAC("x", nil)
	_, errs["sigv4"] = e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text"))
	_, _, errs["OpenSession"] = e.OpenSession(t.Context(), proofOf(res, c.clock.Now()))
	_, errs["AuthenticateSession"] = e.AuthenticateSession(t.Context(), strings.Repeat("A", 200))
	_, errs["certificate"] = e.AuthenticateCertificate(t.Context(), "spiffe://x")
	_, errs["ReadAudit"] = e.ReadAudit(t.Context(), &iam.Caller{Identity: iam.ForwardedIdentity(policy.Principal{}, res.AccessKeyID, [32]byte{}, "")}, 0)
	errs["ConfirmTime"] = e.ConfirmTime(t.Context(), testOperator)
	errs["Checkpoint"] = e.Checkpoint(t.Context())
	return errs
}

func TestSealDuringUse(t *testing.T) {
	c, e, _ := openCluster(t)
	k := makeKey(t, c, e, testKey)
	err := e.vault.WithMaterial(k, k.Materials[0], func(b []byte) error {
		before := bytes.Clone(b)
		if err := e.Seal(t.Context(), testOperator); err != nil {
			return err
		}
		if !bytes.Equal(b, before) {
			return errors.New("the key was wiped under its user's hands")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n := used(e); n != 0 {
		t.Errorf("%d slots are in use after the last user left", n)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, e, res := openCluster(t)
	sealed := c.newEngine("a")
	if _, err := sealed.SubmitShare(t.Context(), testOperator, res.Shares[0]); err != nil {
		t.Fatal(err)
	}
	k := makeKey(t, c, e, testKey)
	key := material(t, e, k)
	id, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text"))
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{res.SecretAccessKey, string(key), fmt.Sprintf("%x", key), fmt.Sprint(key), fmt.Sprintf("%#v", key)}
	for _, s := range res.Shares {
		secrets = append(secrets, s, s[len(s)-60:])
	}
	o, err := e.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	things := map[string]any{
		"engine": e, "engine value": map[string]any{"e": e}, "sealed engine": sealed, "vault": e.vault, "opened": o, "ceremonies": sealed.Ceremonies,
		"result": res, "result value": *res, "identity": id, "caller": iam.Caller{Identity: id}, "events": sealed.events.Pending,
		"error": fmt.Errorf("with %v", res),
	}
	for name, thing := range things {
		var out strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", thing)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("message", "thing", thing)
		}
		for i, s := range secrets {
			if strings.Contains(out.String(), s) {
				t.Errorf("%s shows secret %d", name, i)
			}
		}
	}
	if !strings.Contains(fmt.Sprintf("%+v", res), res.ClusterID) {
		t.Error("a result shows nothing at all")
	}
}

func TestRecordsHoldNoSecrets(t *testing.T) {
	c, e, res := openCluster(t)
	if _, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now())); err != nil {
		t.Fatal(err)
	}
	for _, r := range records(t, c, e) {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append([]string{res.SecretAccessKey}, res.Shares...) {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("record of %s holds a secret", r.EventName)
			}
		}
	}
}

// waitFor polls until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("gave up waiting until %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// What is kept of a credential goes once the state has it no more as it was.
func TestSweepForgetsIdentities(t *testing.T) {
	r := newRoom(t)
	arn := "arn:aws:iam::" + testAccount + ":user/alice"
	r.user(arn)
	before := r.cluster.state()
	alice, _ := before.Credential(testAccountNumber, "spiffe://test/"+arn)
	root, _ := before.Credential(testAccountNumber, rootURI)
	identified := func(c *fsmpb.Credential) *vault.Known {
		t.Helper()
		o, err := r.first.vault.Current()
		if err != nil {
			t.Fatal(err)
		}
		k, err := o.Identify(c)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := map[*fsmpb.Credential]*vault.Known{alice: identified(alice), root: identified(root)}
	// What is not kept is made anew.
	kept := func(c *fsmpb.Credential) bool { return identified(c) == first[c] }
	r.first.vault.Sweep(before, r.cluster.clock.Now())
	if !kept(alice) || !kept(root) {
		t.Fatal("identities of good credentials are not kept")
	}
	r.cluster.edit(alice.Id, deactivate)
	r.first.vault.Sweep(r.cluster.state(), r.cluster.clock.Now())
	if kept(alice) || !kept(root) {
		t.Errorf("after the credential was switched off: its identity is kept: %v, the other one: %v", kept(alice), kept(root))
	}
}

// However many keys were used, there is room for another, for new keys, for
// signing and checkpoints, and for the next ceremony.
func TestKeyMemoryMakesRoom(t *testing.T) {
	r := newRoom(t)
	e := r.first
	k := &fsmpb.Key{Id: testKey.ID[:], Region: testKey.Region, Spec: "RSA_2048", Usage: "SIGN_VERIFY", Origin: "AWS_KMS"}
	fill := func() {
		t.Helper()
		for n := range 2 * 430 { // RSA-2048 keys, twice what there is room for
			m, err := e.vault.GivenMaterial(k, 1, bytes.Repeat([]byte{1}, 1218))
			if err == nil {
				err = e.vault.WithMaterial(k, m, func([]byte) error { return nil })
			}
			if err != nil {
				t.Fatalf("key %d: %v", n, err)
			}
		}
		if used, total := e.vault.Arena().Usage(); used < total*3/4 {
			t.Fatalf("%d of %d slots in use: the test fills nothing", used, total)
		}
	}
	fill()
	for range 100 {
		must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{})
	}
	fill()
	key := must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P521"), KeyUsage: new(kmsapi.UsageSign)})
	must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: key.KeyMetadata.KeyId, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_512")})
	fill()
	if err := e.Checkpoint(t.Context()); err != nil {
		t.Errorf("Checkpoint: %v", err)
	}
	if err := e.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	unsealNode(t, e, r.share)
	must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: key.KeyMetadata.KeyId, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_512")})
}
