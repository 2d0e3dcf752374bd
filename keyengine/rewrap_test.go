package keyengine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/rewrap"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

var rotateKeyring = ceremony.KeyChangeParams{Kind: ceremony.RotateKeyring}

func newRewrapper(e *Engine) *rewrap.Rewrapper {
	return rewrap.New(rewrap.Config{Vault: e.vault, Replica: e.replica, Events: e.events, Log: e.log})
}

// settle wraps everything by the newest generation, and lets the time of the handover pass.
func (g *changeTest) settle(e *Engine) {
	g.t.Helper()
	g.Cluster.Leader = g.Replica(e.cfg.NodeID)
	r := newRewrapper(e)
	for try := 0; ; try++ {
		if c, _ := g.State().Cluster(); len(c.Keyring[len(c.Keyring)-1].Handover) == 0 {
			return
		}
		if try == 20 {
			g.t.Fatal("the generation is not settled")
		}
		n, err := r.Round(g.t.Context())
		if err != nil {
			g.t.Fatal(err)
		}
		if n == 0 {
			g.Advance(rewrap.SettleAfter)
		}
	}
}

// wantNewest checks that nothing in the state is wrapped by an older generation.
func (g *changeTest) wantNewest() {
	g.t.Helper()
	c, _ := g.State().Cluster()
	newest := c.Keyring[len(c.Keyring)-1].Generation
	for k := range g.State().AllKeys() {
		for _, m := range k.Materials {
			if m.Generation != newest && len(m.Wrapped) > 0 {
				g.t.Errorf("material of key %x is wrapped by generation %d", k.Id, m.Generation)
			}
		}
	}
	for c := range fsm.Objects[*fsmpb.Credential](g.State(), nil, "") {
		if c.MacGeneration != newest || len(c.WrappedSecret) > 0 && c.Generation != newest {
			g.t.Errorf("credential %s is wrapped by generation %d, and has a MAC by %d", c.Id, c.Generation, c.MacGeneration)
		}
	}
	for s := range fsm.Objects[*fsmpb.KeyStore](g.State(), nil, "") {
		if s.Generation != newest {
			g.t.Errorf("the secret of store %s is wrapped by generation %d", s.Id, s.Generation)
		}
	}
	if a := c.Authority; a != nil && a.Generation != newest {
		g.t.Errorf("the key of the CA is wrapped by generation %d", a.Generation)
	}
	if c.AuditKeyGeneration != newest || c.OriginKeys[0].WrappedGeneration != newest {
		g.t.Errorf("the cluster's own keys are wrapped by generations %d and %d", c.AuditKeyGeneration, c.OriginKeys[0].WrappedGeneration)
	}
}

// importCA gives the cluster a CA and returns it with its key.
func (g *changeTest) importCA() (cert, key []byte) {
	g.t.Helper()
	ca, err := pki.NewCA("test", 24*time.Hour)
	if err != nil {
		g.t.Fatal(err)
	}
	if cert, key, err = ca.DER(); err != nil {
		g.t.Fatal(err)
	}
	o, err := g.engine.vault.Current()
	if err != nil {
		g.t.Fatal(err)
	}
	c, _ := g.State().Cluster()
	c = proto.CloneOf(c)
	c.Authority = &fsmpb.CertificateAuthority{Certificate: cert, Created: 1}
	if err := vault.WrapAuthority(o, c.Authority, key); err != nil {
		g.t.Fatal(err)
	}
	g.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
	return cert, key
}

// wantCA checks that every node opens the key of the CA.
func (g *changeTest) wantCA(cert, key []byte) {
	g.t.Helper()
	c, _ := g.State().Cluster()
	if !bytes.Equal(c.GetAuthority().GetCertificate(), cert) {
		g.t.Fatal("the CA is gone")
	}
	for node, e := range g.engines {
		o, err := e.vault.Current()
		if err == nil {
			err = vault.WithAuthority(o, c.Authority, func(b []byte) error {
				if !bytes.Equal(b, key) {
					return errors.New("it is another key")
				}
				return nil
			})
		}
		if err != nil {
			g.t.Errorf("%s: the key of the CA: %v", node, err)
		}
	}
}

// TestRotateKeyring: clients notice nothing on any node, before, while and after everything is
// wrapped again.
func TestRotateKeyring(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(3))
	n1, n2, res := g.engine, g.engines["n2"], g.initResult
	for range 40 {
		g.encrypt()
	}
	for _, spec := range []string{"RSA_2048", "ECC_NIST_P256"} {
		g.newKeyOf(spec, kmsapi.UsageSign)
	}
	user := g.newUser("arn:aws:iam::" + testAccount + ":user/ann")
	role := g.newUser("arn:aws:sts::" + testAccount + ":assumed-role/deploy/session")
	token, inSession := sessionCaller(t, g.testCluster, n2, res)
	page := must[kmsapi.ListKeysOutput](g.testCluster, "ListKeys", &kmsapi.ListKeysInput{Limit: new(int32(3))})
	key, _ := g.newKey()
	grant := must[kmsapi.CreateGrantOutput](g.testCluster, "CreateGrant", &kmsapi.CreateGrantInput{KeyId: &key, GranteePrincipal: new("arn:aws:iam::" + testAccount + ":root"), Operations: []string{"Encrypt"}})
	first, _ := g.State().Credential(testAccountNumber, res.AccessKeyID)

	unchanged := func(when string) {
		t.Helper()
		for node, e := range g.engines {
			if _, err := e.AuthenticateSession(t.Context(), token); err != nil {
				t.Errorf("%s, %s: an old session: %v", when, node, err)
			}
			if _, err := e.Credentials(t.Context(), &iam.Caller{Identity: inSession.Identity, RequestID: randomID()}); err != nil {
				t.Errorf("%s, %s: a caller in a session: %v", when, node, err)
			}
			if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
				t.Errorf("%s, %s: a signature: %v", when, node, err)
			}
			if _, err := callAs[kmsapi.ListKeysOutput](g.testCluster, e, g.root, "ListKeys", &kmsapi.ListKeysInput{Limit: new(int32(3)), Marker: page.NextMarker}); err != nil {
				t.Errorf("%s, %s: the next page: %v", when, node, err)
			}
			if _, err := callAs[kmsapi.EncryptOutput](g.testCluster, e, g.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x"), GrantTokens: []string{*grant.GrantToken}}); err != nil {
				t.Errorf("%s, %s: a grant token: %v", when, node, err)
			}
			for who, id := range map[string]iam.Identity{"a user": user, "a role": role} {
				// Neither has a policy: what counts is that both are still who they were.
				if _, err := callAs[kmsapi.EncryptOutput](g.testCluster, e, id, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); !errors.Is(err, kmsapi.ErrAccessDenied) {
					t.Errorf("%s, %s: %s: got error %v, want AccessDeniedException", when, node, who, err)
				}
			}
		}
		g.wantAllOpen()
		nodeOf(g.engine).Records() // all can be opened
	}
	ca, caKey := g.importCA()
	unchanged("before")
	g.mustHold(n2, rotateKeyring)
	if st, err := n1.KeyChanges.Status(); err != nil || st.Generation != 2 || st.Settled || st.ShareSet.Epoch != 1 {
		t.Errorf("the status is %+v, %v", st, err)
	}
	g.encrypt()
	made := 0
	for k := range g.State().AllKeys() {
		if k.Materials[0].Generation == 2 {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d keys are wrapped by the new generation, want the one that was made since", made)
	}
	unchanged("after the rotation")
	if _, err := n1.KeyChanges.Begin(t.Context(), operatorNow(), rotateKeyring); !errors.Is(err, ceremony.ErrNotSettled) {
		t.Errorf("another rotation at once: %v", err)
	}
	// It does not keep anybody from other ceremonies.
	g.mustHold(n1, ceremony.KeyChangeParams{Kind: ceremony.RotateRoot})
	g.settle(n1)
	g.wantNewest()
	unchanged("when it is settled")
	if c, _ := g.State().Credential(testAccountNumber, res.AccessKeyID); !bytes.Equal(c.FirstWrapped, first.WrappedSecret) || c.FirstGeneration != 1 || bytes.Equal(c.WrappedSecret, first.WrappedSecret) {
		t.Errorf("the access key is %v, it was %v", c, first)
	}
	if got := g.names("KeyringRotation"); !slices.Equal(got, []string{"BeginKeyringRotation", "SubmitKeyringRotationShare", "SubmitKeyringRotationShare", "CompleteKeyringRotation", "BeginKeyringRotation!RotationInProgressException"}) &&
		!slices.Equal(got, []string{"BeginKeyringRotation", "SubmitKeyringRotationShare", "SubmitKeyringRotationShare", "CompleteKeyringRotation"}) {
		t.Errorf("got records %q", got)
	}
	if got := g.names("RewrapSecrets"); len(got) < 3 || len(got) > 10 {
		t.Errorf("there are %d records of wrapping", len(got))
	}
	g.wantNames("SettleKeyring", "SettleKeyring")

	g.wantCA(ca, caKey)

	// The shares open all generations, on all nodes.
	g.wantOneSet(g.shares, g.shares)
	unchanged("after a restart")
	g.mustHold(g.engine, rotateKeyring)
	g.settle(g.engines["n3"])
	g.wantNewest()
	g.wantCA(ca, caKey)
	unchanged("after the second rotation")
	g.wantOneSet(g.shares, g.shares)
	unchanged("after the second restart")
	if err := g.engine.Checkpoint(t.Context()); err != nil {
		t.Errorf("signing a checkpoint: %v", err)
	}
}

// TestRewrapDiesAtEachStep: the leader fails at each record of wrapping again, before the
// record is committed or after, and all nodes are restarted. What is left is done afterwards.
func TestRewrapDiesAtEachStep(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprintf("committed %v", committed), func(t *testing.T) {
			t.Parallel()
			g := newChangeTest(t, withNodes(2))
			for range 40 {
				g.encrypt()
			}
			g.mustHold(g.engine, rotateKeyring)
			for step := 1; ; step++ {
				r, n := g.Replica("n1"), 0
				r.BeforeCommit = func(*fsmpb.Record) {
					if n++; n < step {
						return
					}
					if !committed {
						r.Decide = func() fsm.Verdict { return fsm.Conflict }
					}
					r.Err, r.LoseOutcome = fsm.ErrNodeStopped, true
				}
				_, err := newRewrapper(g.engine).Round(t.Context())
				r.Decide = nil
				g.wantOneSet(g.shares, g.shares)
				g.wantAllOpen()
				if n < step {
					if err != nil || step < 2 {
						t.Fatalf("step %d: %v", step, err)
					}
					break
				}
			}
			g.settle(g.engines["n2"])
			g.wantNewest()
			g.restartAll()
			g.wantOneSet(g.shares, g.shares)
			g.wantAllOpen()
		})
	}
}

// TestRewrapYields: an object that changes while it is wrapped again keeps the change.
func TestRewrapYields(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t)
	g.encrypt()
	id, _ := g.newKey()
	g.mustHold(g.engine, rotateKeyring)
	r := g.Replica("n1")
	r.BeforeCommit = func(rec *fsmpb.Record) {
		r.BeforeCommit = nil
		if len(rec.Changes) == 0 {
			t.Error("the first record wraps nothing")
		}
		g.modifyKey(id, func(k *fsmpb.Key) { k.Description = "changed" })
	}
	if n, err := newRewrapper(g.engine).Round(t.Context()); n != 0 || err != nil {
		t.Errorf("with a conflict: wrapped %d objects, %v", n, err)
	}
	g.settle(g.engine)
	g.wantNewest()
	if k := g.storedKey(id); k.Description != "changed" {
		t.Errorf("the key's description is %q", k.Description)
	}
	g.wantAllOpen()
}

// TestRewrapBlessesNothing: what no unsealed node wrote gets no MAC by the new generation, and
// no secret.
func TestRewrapBlessesNothing(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t)
	g.mustHold(g.engine, rotateKeyring)
	forged := g.Credential(g.initResult.AccessKeyID)
	forged.Principal = "arn:aws:iam::" + testAccount + ":root"
	forged.SessionEpoch += 7
	g.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: forged}})
	g.settle(g.engine)
	c, _ := g.State().Credential(testAccountNumber, forged.Id)
	if c.MacGeneration != 1 || !bytes.Equal(c.Mac, forged.Mac) {
		t.Errorf("a forged credential is now %v", c)
	}
}

// TestKeyringMissed: a node that was behind for longer than a generation is handed over does
// not go on with old keys.
func TestKeyringMissed(t *testing.T) {
	t.Parallel()
	g := newChangeTest(t, withNodes(2))
	n1, n2 := g.engine, g.engines["n2"]
	r := g.Replica("n2")
	follow := r.OnApply
	r.OnApply = nil // as if the node was paused
	g.mustHold(n1, rotateKeyring)
	g.encrypt()
	// Before it has added the generation, it says so.
	for _, blob := range g.blobs {
		if _, err := callAs[kmsapi.DecryptOutput](g.testCluster, n2, g.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}); !errors.Is(err, kmsapi.ErrUnavailable) {
			t.Errorf("a key that the node cannot unwrap: got error %v, want unavailability", err)
		}
	}
	g.settle(n1)
	r.OnApply = follow
	g.Commit(&fsmpb.Entry{})
	if !n2.Sealed() {
		t.Fatal("the node serves with old keys")
	}
	if _, err := callAs[kmsapi.ListKeysOutput](g.testCluster, n2, g.root, "ListKeys", &kmsapi.ListKeysInput{}); !errors.Is(err, kmsapi.ErrUnavailable) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("got error %v", err)
	}
	nodeOf(n2).Unseal(g.shares...)
	g.wantAllOpen()
	if got := g.names("SealOutdated"); len(got) > 1 {
		t.Errorf("got records %q", got)
	}
	var said bool
	for _, rec := range nodeOf(n1).Records() {
		said = said || rec.EventName == "SealOutdated"
	}
	if !said {
		t.Error("there is no record of why the node was sealed")
	}
}
