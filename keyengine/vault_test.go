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

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// All nodes have the same material, whichever shares unsealed them.
func TestMaterialOpensOnEveryUnsealedNode(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	n1, res := c.engine, c.initResult
	n2 := c.startEngine("n2")
	nodeOf(n2).Unseal(res.Shares[2], res.Shares[0])
	k := nodeOf(n1).PutKey(enginetest.KeyID)
	if m := nodeOf(n1).Material(k); len(m) != 32 || !bytes.Equal(m, nodeOf(n2).Material(k)) {
		t.Error("nodes have different material")
	}
	if len(k.Materials[0].MaterialId) != 32 || len(k.Materials[0].Id) != 16 {
		t.Errorf("the material has ids of %d and %d bytes, want 32 and 16", len(k.Materials[0].MaterialId), len(k.Materials[0].Id))
	}
}

func TestSealWipesEverything(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	if nodeOf(e).MemoryInUse() == 0 {
		t.Fatal("an unsealed node has nothing in locked memory")
	}
	k := nodeOf(e).PutKey(enginetest.KeyID)
	nodeOf(e).Material(k)
	if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
		t.Fatal(err)
	}
	o, err := e.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if n := nodeOf(e).MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Seal, want 0", n)
	}
	if _, _, _, _, err := o.SealBody(c.Clock.Now(), [16]byte{}, []byte("x")); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("SealBody with keys from before Seal: got error %v, want ErrSealed", err)
	}
	if _, err := o.SignSession(&vault.Session{Credential: "x"}); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("SignSession with keys from before Seal: got error %v, want ErrSealed", err)
	}
	// The vault itself.
	if _, err := e.vault.NewMaterial(&fsmpb.Key{Account: uint64(testAccountNumber), Id: enginetest.KeyID.ID[:], Region: enginetest.KeyID.Region, Spec: "s", Usage: "u", Origin: "o"}, 1); !errors.Is(err, kmsapi.ErrUnavailable) && err != vault.ErrSealed {
		t.Errorf("NewMaterial on a sealed node: got error %v, want ErrSealed", err)
	}
	for name, err := range sealedCalls(t, c, e, res, k) {
		if err != vault.ErrSealed {
			t.Errorf("%s on a sealed node: got error %v, want ErrSealed", name, err)
		}
	}
}

// sealedCalls returns the errors of everything that a sealed node must refuse.
func sealedCalls(t testing.TB, c *testCluster, e *Engine, res *ceremony.InitResult, k *fsmpb.Key) map[string]error {
	errs := make(map[string]error)
	errs["withMaterial"] = e.vault.WithMaterial(k, k.Materials[0], func([]byte) error { return nil })
	_, errs["current"] = e.vault.Current()
	entries, _ := c.Audit.Read(0, 1, 1)
	_, errs["openBody"] = e.vault.OpenBody(entries[0])
	_, errs["mac"] = e.vault.MAC("x", nil)
	_, errs["sigv4"] = e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text"))
	_, _, errs["OpenSession"] = e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	_, errs["AuthenticateSession"] = e.AuthenticateSession(t.Context(), strings.Repeat("A", 200))
	_, errs["certificate"] = e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: "spiffe://x"})
	_, errs["ReadAudit"] = e.ReadAudit(t.Context(), &iam.Caller{Identity: forwarded(t, iam.Identity{}, testAccountNumber, res.AccessKeyID, [32]byte{})}, 0)
	errs["ConfirmTime"] = e.ConfirmTime(t.Context(), enginetest.Operator)
	_, _, errs["FinalizeUpgrade"] = e.FinalizeUpgrade(t.Context(), enginetest.Operator, func(context.Context) (uint32, []string) { return 2, nil })
	errs["Checkpoint"] = e.Checkpoint(t.Context())
	return errs
}

// Seal does not wipe material while it is in use, but when its last user is done.
func TestSealDuringUse(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e := c.engine
	k := nodeOf(e).PutKey(enginetest.KeyID)
	err := e.vault.WithMaterial(k, k.Materials[0], func(b []byte) error {
		before := bytes.Clone(b)
		if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
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
	if n := nodeOf(e).MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after the last user was done, want 0", n)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	sealed := c.startEngine("n1")
	if _, err := sealed.SubmitShare(t.Context(), enginetest.Operator, res.Shares[0]); err != nil {
		t.Fatal(err)
	}
	k := nodeOf(e).PutKey(enginetest.KeyID)
	key := nodeOf(e).Material(k)
	id, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text"))
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
				t.Errorf("printing %s shows secret %d", name, i)
			}
		}
	}
	if !strings.Contains(fmt.Sprintf("%+v", res), res.ClusterID) {
		t.Error("printing a result shows nothing")
	}
}

func TestRecordsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	if _, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now())); err != nil {
		t.Fatal(err)
	}
	for _, r := range nodeOf(e).Records() {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append([]string{res.SecretAccessKey}, res.Shares...) {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("the record of %s has a secret", r.EventName)
			}
		}
	}
}

// Sweep drops the cached identity of a credential that has changed.
func TestSweepForgetsIdentities(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	arn := "arn:aws:iam::" + testAccount + ":user/alice"
	c.newUser(arn)
	before := c.State()
	alice, _ := before.Credential(testAccountNumber, "spiffe://test/"+arn)
	root, _ := before.Credential(testAccountNumber, rootURI)
	identified := func(cred *fsmpb.Credential) *vault.Known {
		t.Helper()
		o, err := c.engine.vault.Current()
		if err != nil {
			t.Fatal(err)
		}
		k, err := o.Identify(cred)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := map[*fsmpb.Credential]*vault.Known{alice: identified(alice), root: identified(root)}
	// An identity that is not cached is another pointer.
	kept := func(cred *fsmpb.Credential) bool { return identified(cred) == first[cred] }
	c.engine.vault.Sweep(before, c.Clock.Now())
	if !kept(alice) || !kept(root) {
		t.Fatal("Sweep dropped the identities of active credentials")
	}
	c.EditCredential(alice.Id, deactivate)
	c.engine.vault.Sweep(c.State(), c.Clock.Now())
	if kept(alice) || !kept(root) {
		t.Errorf("after one credential was deactivated: its identity is cached: %v, that of the other: %v; want false, true", kept(alice), kept(root))
	}
}

// However many keys were used, there is locked memory for another, for new keys, for
// signatures, checkpoints, and the next ceremony.
func TestKeyMemoryMakesRoom(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	e := c.engine
	k := &fsmpb.Key{Id: enginetest.KeyID.ID[:], Region: enginetest.KeyID.Region, Spec: "RSA_2048", Usage: "SIGN_VERIFY", Origin: "AWS_KMS"}
	fill := func() {
		t.Helper()
		for n := range 2 * 430 { // RSA-2048 keys, twice what there is room for
			m, err := e.vault.GivenMaterial(k, 1, bytes.Repeat([]byte{1}, 1218))
			if err == nil {
				err = e.vault.WithMaterial(k, m, func([]byte) error { return nil })
			}
			if err != nil {
				t.Fatalf("using key %d: %v", n, err)
			}
		}
		if used, total := e.vault.Arena().Usage(); used < total*3/4 {
			t.Fatalf("%d of %d slots of locked memory are in use, want most of them", used, total)
		}
	}
	fill()
	for range 100 {
		must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{})
	}
	fill()
	key := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P521"), KeyUsage: new(kmsapi.UsageSign)})
	must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: key.KeyMetadata.KeyId, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_512")})
	fill()
	if err := e.Checkpoint(t.Context()); err != nil {
		t.Errorf("Checkpoint: %v", err)
	}
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	nodeOf(e).Unseal(c.initResult.Shares[0])
	must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: key.KeyMetadata.KeyId, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_512")})
}
