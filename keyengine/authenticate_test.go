package keyengine

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

func deactivate(c *fsmpb.Credential) { c.Active = false }

func TestAuthenticateSigV4(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	good := enginetest.SigV4Proof(res, testRegion, "text")
	for range 2 { // derived, and from the cache
		id, err := e.AuthenticateSigV4(t.Context(), good)
		if err != nil || id.Principal().ARN != res.RootARN || id.Credential() != res.AccessKeyID {
			t.Errorf("got identity %v, error %v, want the root user", id, err)
		}
	}
	for i := range 256 {
		p := good
		p.Signature = bytes.Clone(good.Signature)
		p.Signature[i/8] ^= 1 << (i % 8)
		if _, err := e.AuthenticateSigV4(t.Context(), p); err != iam.ErrSignature {
			t.Fatalf("with bit %d of the signature flipped: got error %v, want ErrSignature", i, err)
		}
	}
	for name, edit := range map[string]func(*sigv4.Proof){
		"text":            func(p *sigv4.Proof) { p.StringToSign = []byte("texts") },
		"date":            func(p *sigv4.Proof) { p.Date = "20300103" },
		"date length":     func(p *sigv4.Proof) { p.Date = "" },
		"region":          func(p *sigv4.Proof) { p.Region = "eu-west-2" },
		"no region":       func(p *sigv4.Proof) { p.Region = "" },
		"service":         func(p *sigv4.Proof) { p.Service = "sts" },
		"moved border":    func(p *sigv4.Proof) { p.Region, p.Service = "eu-west-1k", "ms" },
		"short signature": func(p *sigv4.Proof) { p.Signature = p.Signature[:31] },
		"no signature":    func(p *sigv4.Proof) { p.Signature = nil },
		"long text":       func(p *sigv4.Proof) { p.StringToSign = make([]byte, 1<<20) },
	} {
		p := good
		edit(&p)
		if _, err := e.AuthenticateSigV4(t.Context(), p); err != iam.ErrSignature || !errors.Is(err, kmsapi.ErrInvalidSignature) {
			t.Errorf("another %s: got error %v, want ErrSignature", name, err)
		}
	}
	c.EditCredential(res.AccessKeyID, deactivate)
	if _, err := e.AuthenticateSigV4(t.Context(), good); err != iam.ErrUnrecognized || !errors.Is(err, kmsapi.ErrUnrecognizedClient) {
		t.Errorf("with an inactive access key: got error %v, want ErrUnrecognized", err)
	}
}

// A credential whose principal was edited authenticates nobody, also if its signing key is
// cached.
func TestCredentialOfAnotherPrincipal(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	// This caches the signing key.
	if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
		t.Fatal(err)
	}
	cred := c.Credential(res.AccessKeyID)
	cred.Principal = "arn:aws:iam::111122223333:user/eve"
	c.ReplaceState(cred)
	if id, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err == nil {
		t.Errorf("a credential whose principal was edited authenticates as %v", id)
	}
}

// Unknown access keys cause few barriers, however many callers use them, and do not delay a
// new access key for long.
func TestUnknownAccessKeysAreRationed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, withShares(3, 2))
		e, res := c.engine, c.initResult
		r := c.Replica("n1")
		stranger := func(i int) sigv4.Proof {
			p := enginetest.SigV4Proof(res, testRegion, "text")
			p.AccessKeyID = accesskey.ID(accesskey.LongTerm, testAccountNumber, [accesskey.Noise]byte{3: byte(i >> 8), 4: byte(i)})
			if kind, _, ok := accesskey.Parse(p.AccessKeyID); !ok || kind != accesskey.LongTerm {
				t.Fatalf("%q is not an access key id", p.AccessKeyID)
			}
			return p
		}
		before, start := r.Barriers.Load(), time.Now()
		for i := range 120 {
			if _, err := e.AuthenticateSigV4(t.Context(), stranger(i)); err != iam.ErrUnrecognized {
				t.Fatal(err)
			}
		}
		if n, d := r.Barriers.Load()-before, time.Since(start); n != 120 || d < 4*time.Second || d > 6*time.Second {
			t.Errorf("120 unknown access keys one after another: %d barriers in %v, want 120 in 4s to 6s", n, d)
		}
		before = r.Barriers.Load()
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				if _, err := e.AuthenticateSigV4(t.Context(), stranger(i)); err != iam.ErrUnrecognized {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := r.Barriers.Load() - before; n == 0 || n > 3 {
			t.Errorf("500 unknown access keys at once caused %d barriers, want 1 to 3", n)
		}
		// A new access key is recognised, and soon, while many callers use unknown ones.
		flood, calm := context.WithCancel(t.Context())
		for i := range 200 {
			wg.Go(func() {
				for flood.Err() == nil {
					e.AuthenticateSigV4(flood, stranger(i))
				}
			})
		}
		time.Sleep(time.Second)
		for range 5 {
			c.EditCredential(res.AccessKeyID, deactivate)
			r.FallBehind()
			c.EditCredential(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
			began := time.Now()
			if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
				t.Errorf("a new access key among unknown ones: %v", err)
			}
			if d := time.Since(began); d > 3*time.Second/iam.FreshRate {
				t.Errorf("a new access key was recognised after %v, want at most %v", d, 3*time.Second/iam.FreshRate)
			}
			r.CatchUp()
		}
		calm()
		wg.Wait()
		// The context bounds how long a caller waits.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := e.AuthenticateSigV4(ctx, stranger(0)); !enginetest.IsUnavailable(err) {
			t.Errorf("with an ending context: got error %v, want KMSUnavailable", err)
		}
		time.Sleep(time.Second)
		before = r.Barriers.Load()
		p := stranger(0)
		for _, id := range []string{"AKIA" + strings.Repeat("A", 16), "", "AKIA", "ASIA" + strings.Repeat("A", 16), "AKIA" + strings.Repeat("a", 16), "AKIA" + strings.Repeat("1", 16), strings.Repeat("A", 1<<16), "AKIA\x00" + strings.Repeat("A", 15)} {
			p.AccessKeyID = id
			if _, err := e.AuthenticateSigV4(t.Context(), p); err != iam.ErrUnrecognized {
				t.Errorf("access key %.30q: got error %v, want ErrUnrecognized", id, err)
			}
		}
		if n := r.Barriers.Load() - before; n != 0 {
			t.Errorf("malformed access key ids caused %d barriers, want 0", n)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err := e.FreshState(t.Context()); err == nil {
			t.Errorf("FreshState after Close returned state %v, want an error", s.Index())
		}
	})
}

func TestNewCredentialWorksOnANodeThatIsBehind(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	res, n1, n2 := c.initResult, c.engine, c.engines["n2"]
	rb := c.Replica("n2")
	c.EditCredential(res.AccessKeyID, deactivate)
	rb.FallBehind()
	c.EditCredential(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	if _, err := n2.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
		t.Errorf("with an access key that was activated: %v", err)
	}
	// Without a majority the answer is not that the access key is unknown.
	c.EditCredential(res.AccessKeyID, deactivate)
	c.Replica("n1").Err = errors.New("no majority")
	if _, err := n1.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err == nil || errors.Is(err, kmsapi.ErrUnrecognizedClient) {
		t.Errorf("without a majority: got error %v, want one that is not ErrUnrecognizedClient", err)
	}
}

func TestRevokedCredentialOnANodeThatIsBehind(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	res, n2 := c.initResult, c.engines["n2"]
	id, err := n2.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n2.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
		t.Errorf("before the access key was deactivated: %v", err)
	}
	c.Replica("n2").FallBehind()
	c.EditCredential(res.AccessKeyID, deactivate)
	// The node's state still has the credential, so the signature is accepted, but not the
	// request.
	if _, err := n2.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
		t.Errorf("AuthenticateSigV4 on the old state: %v", err)
	}
	if _, err := n2.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("ReadAudit with a deactivated access key: got error %v, want ErrUnrecognized", err)
	}
	c.EditCredential(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	c.Replica("n2").FallBehind()
	c.EditCredential(res.AccessKeyID, deactivate)
	if _, _, err := n2.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now())); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("OpenSession with a deactivated access key: got error %v, want ErrUnrecognized", err)
	}
}

// Before a credential is refused, it is looked up in a newer state.
func TestAdmissionLooksAgainBeforeItRefuses(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	caller := rootCaller(t, e, res)
	c.EditCredential(res.AccessKeyID, deactivate)
	r := c.Replica("n1")
	r.FallBehind()
	c.EditCredential(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	before := r.Proposals.Load()
	if _, err := e.ReadAudit(t.Context(), caller, 0); err != nil || r.Proposals.Load() != before+1 {
		t.Errorf("got %d proposals and error %v, want one proposal", r.Proposals.Load()-before, err)
	}
}

func TestSigningKeysOfRevokedCredentialsLeaveMemory(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	idle := nodeOf(e).MemoryInUse()
	if _, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text")); err != nil {
		t.Fatal(err)
	}
	if nodeOf(e).MemoryInUse() == idle {
		t.Fatal("the signing key is not cached")
	}
	e.vault.Sweep(c.State(), c.Clock.Now())
	if nodeOf(e).MemoryInUse() == idle {
		t.Error("Sweep dropped the signing key of an active credential")
	}
	c.EditCredential(res.AccessKeyID, deactivate)
	e.vault.Sweep(c.State(), c.Clock.Now())
	if n := nodeOf(e).MemoryInUse(); n != idle {
		t.Errorf("%d slots of locked memory are in use after Sweep, want %d", n, idle)
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2), withShares(3, 2))
	res, n1, n2 := c.initResult, c.engine, c.engines["n2"]
	size := c.Audit.Size()
	token, expires, err := n1.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if want := c.Clock.Now().Add(iam.SessionLife).Unix(); expires.Unix() != want || c.Audit.Size() != size+1 {
		t.Errorf("the session expires at %v, and %d records were made; want %d and one", expires.Unix(), c.Audit.Size()-size, want)
	}
	if got := nodeOf(n1).Records(); got[len(got)-1].EventName != "CreateSession" || got[len(got)-1].Identity.AccessKeyId != res.AccessKeyID {
		t.Errorf("unexpected record: %v", got[len(got)-1])
	}
	for _, e := range []*Engine{n2, n1, n1} {
		id, err := e.AuthenticateSession(t.Context(), token)
		if err != nil || id.Principal().ARN != res.RootARN || id.Session() == "" {
			t.Fatalf("got identity %v, error %v, want the root user", id, err)
		}
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
			t.Errorf("request in a session: %v", err)
		}
	}
	c.Advance(iam.SessionLife - time.Second)
	if _, err := n2.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("just before the session expires: %v", err)
	}
	c.Advance(time.Second)
	for _, e := range []*Engine{n1, n2} {
		if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, kmsapi.ErrExpiredToken) {
			if code, _ := record.Outcome(err); code != string(kmsapi.ErrExpiredToken.Code) {
				t.Errorf("after the session expired: got error %v, want ErrExpiredToken", err)
			}
		}
	}
}

func TestSessionEndsWithItsCredential(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	token, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	id, err := e.AuthenticateSession(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*fsmpb.Credential){
		"inactive":          deactivate,
		"another secret":    func(c *fsmpb.Credential) { c.WrappedSecret = append(bytes.Clone(c.WrappedSecret[:20]), 1) },
		"another principal": func(c *fsmpb.Credential) { c.Principal = "arn:aws:iam::111122223333:user/eve" },
		"another kind": func(c *fsmpb.Credential) {
			c.Kind, c.WrappedSecret = fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, nil
		},
	} {
		cred := c.Credential(res.AccessKeyID)
		edit(cred)
		undo := c.ReplaceState(cred)
		if _, err := e.AuthenticateSession(t.Context(), token); err != iam.ErrUnrecognized {
			t.Errorf("%s: got error %v, want ErrUnrecognized", name, err)
		}
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != iam.ErrUnrecognized {
			t.Errorf("%s, with an identity from before: got error %v, want ErrUnrecognized", name, err)
		}
		undo()
	}
	if _, err := e.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("with the credential restored: %v", err)
	}
}

func TestForgedTokens(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	other := newTestCluster(t, withShares(3, 2))
	token, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := other.engine.OpenSession(t.Context(), enginetest.SessionProof(other.initResult, c.Clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, token string) {
		t.Helper()
		if _, err := e.AuthenticateSession(t.Context(), token); err != iam.ErrUnrecognized {
			t.Errorf("%s: got error %v, want ErrUnrecognized", what, err)
		}
	}
	refused("another cluster's", foreign)
	refused("empty", "")
	refused("1 MB", strings.Repeat("A", 1<<20))
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(raw) * 8 {
		b := bytes.Clone(raw)
		b[i/8] ^= 1 << (i % 8)
		refused(fmt.Sprintf("flipped bit %d", i), base64.RawURLEncoding.EncodeToString(b))
	}
	for i := range raw {
		refused(fmt.Sprintf("cut at %d", i), base64.RawURLEncoding.EncodeToString(raw[:i]))
	}
	refused("padded", token+"=")
	refused("with a line break", token[:20]+"\n"+token[20:])
	refused("longer", base64.RawURLEncoding.EncodeToString(append(raw, 0)))

	o, err := e.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	claims, err := o.VerifySession(token)
	if err != nil || claims.Account != testAccountNumber {
		t.Fatalf("got account %v (%v), want %v", claims.Account, err, testAccountNumber)
	}
	claims.Account++
	strange, err := o.SignSession(&claims)
	if err != nil {
		t.Fatal(err)
	}
	refused("another account's", strange)
	if e.KnowsToken(strange) || !e.KnowsToken(token) {
		t.Error("KnowsToken accepts a token of another account, or refuses a genuine one")
	}
}

func FuzzVerifyToken(f *testing.F) {
	c := newTestCluster(f)
	e, res := c.engine, c.initResult
	token, _, err := e.OpenSession(f.Context(), enginetest.SessionProof(res, c.Clock.Now()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(token))
	f.Add([]byte(strings.Repeat("A", 300)))
	o, err := e.vault.Current()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := o.VerifySession(string(b)); (err == nil) != (string(b) == token) {
			t.Errorf("token %q: got error %v; only the genuine one is valid", b, err)
		}
	})
}

func FuzzOpenTemporary(f *testing.F) {
	c := newTestCluster(f)
	alice := c.storeUser(testAccountNumber, "alice", "")
	cr := c.sessionToken(alice)
	f.Add(*cr.AccessKeyId, *cr.SessionToken)
	f.Add(*cr.AccessKeyId, strings.Repeat("A", 300))
	f.Add("ASIA", *cr.SessionToken)
	f.Fuzz(func(t *testing.T, id, token string) {
		p := proofOf(&iamapi.Credentials{AccessKeyId: &id, SecretAccessKey: cr.SecretAccessKey, SessionToken: &token})
		if _, err := c.engine.AuthenticateSigV4(t.Context(), p); (err == nil) != (id == *cr.AccessKeyId && token == *cr.SessionToken) {
			t.Errorf("access key %q with token %q: got error %v; only the genuine one is valid", id, token, err)
		}
	})
}

func FuzzOpenMessage(f *testing.F) {
	c := newTestCluster(f)
	o, err := c.engine.vault.Current()
	if err != nil {
		f.Fatal(err)
	}
	genuine, err := o.SealMessage([]byte("contents"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(genuine)
	f.Add(strings.Repeat("A", 300))
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := o.OpenMessage(text); (err == nil) != (text == genuine) {
			t.Errorf("message %q: got error %v; only the genuine one is valid", text, err)
		}
	})
}

func TestSessionProofs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	now := c.Clock.Now()
	if _, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, now.Add(iam.SessionSkew))); err != nil {
		t.Errorf("with a proof %v ahead: %v", iam.SessionSkew, err)
	}
	if _, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, now.Add(-iam.SessionSkew))); err != nil {
		t.Errorf("with a proof %v behind: %v", iam.SessionSkew, err)
	}
	for name, p := range map[string]iam.SessionProof{
		"ahead":  enginetest.SessionProof(res, now.Add(iam.SessionSkew+time.Second)),
		"behind": enginetest.SessionProof(res, now.Add(-iam.SessionSkew-time.Second)),
		"far":    {AccessKeyID: res.AccessKeyID, Time: -1 << 63, Nonce: make([]byte, 16), MAC: make([]byte, 32)},
	} {
		if _, _, err := e.OpenSession(t.Context(), p); err == nil || !strings.Contains(err.Error(), "time of the proof") {
			t.Errorf("%s: got error %v, want one about the time of the proof", name, err)
		}
	}
	for name, edit := range map[string]func(*iam.SessionProof){
		"mac":         func(p *iam.SessionProof) { p.MAC[0] ^= 1 },
		"short mac":   func(p *iam.SessionProof) { p.MAC = p.MAC[:16] },
		"no mac":      func(p *iam.SessionProof) { p.MAC = nil },
		"nonce":       func(p *iam.SessionProof) { p.Nonce = bytes.Repeat([]byte{8}, 16) },
		"short nonce": func(p *iam.SessionProof) { p.Nonce = p.Nonce[:15] },
		"long nonce":  func(p *iam.SessionProof) { p.Nonce = make([]byte, 65) },
		"time":        func(p *iam.SessionProof) { p.Time++ },
		"channel":     func(p *iam.SessionProof) { p.Channel = []byte{1} },
	} {
		p := enginetest.SessionProof(res, now)
		edit(&p)
		if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrSignature {
			t.Errorf("another %s: got error %v, want ErrSignature", name, err)
		}
	}
	p := enginetest.SessionProof(res, now)
	p.AccessKeyID = accesskey.ID(accesskey.LongTerm, testAccountNumber, [accesskey.Noise]byte{})
	if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrUnrecognized {
		t.Errorf("with an unknown access key: got error %v, want ErrUnrecognized", err)
	}
	// The credential is rewritten, unchanged, between evaluation and commit.
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		c.Replica("n1").BeforeCommit = nil
		c.EditCredential(res.AccessKeyID, func(*fsmpb.Credential) {})
	}
	if token, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, now)); err != nil {
		t.Errorf("OpenSession with a conflict: %v", err)
	} else if _, err := e.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("the token made after a conflict: %v", err)
	}
	c.Replica("n1").LateAnswer = true
	if token, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, now)); err != record.ErrHeldUp || token != "" {
		t.Errorf("with a late answer: got error %v, want ErrHeldUp and no token", err)
	}
}

func TestAuthenticateCertificate(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, uninitialised())
	e := c.engine
	p := enginetest.InitParams(1, 1)
	p.KeepUnsealed, p.RootCertificate = true, "conclave://client/root"
	res := nodeOf(e).Initialise(p)
	id, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: p.RootCertificate})
	if err != nil || id.Principal().ARN != res.RootARN || id.Credential() != p.RootCertificate {
		t.Fatalf("got identity %v, error %v, want the root user", id, err)
	}
	if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
		t.Error(err)
	}
	for _, uri := range []string{"", "conclave://client/Root", "conclave://client/root/", res.AccessKeyID, strings.Repeat("x", 1025)} {
		if _, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: uri}); err != iam.ErrUnrecognized {
			t.Errorf("certificate %.40q: got error %v, want ErrUnrecognized", uri, err)
		}
	}
	// A certificate is not an access key.
	q := enginetest.SigV4Proof(res, testRegion, "text")
	q.AccessKeyID = p.RootCertificate
	if _, err := e.AuthenticateSigV4(t.Context(), q); err != iam.ErrUnrecognized {
		t.Errorf("with a certificate as access key: got error %v, want ErrUnrecognized", err)
	}
	c.EditCredential(p.RootCertificate, deactivate)
	if _, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: p.RootCertificate}); err != iam.ErrUnrecognized {
		t.Errorf("with an inactive certificate: got error %v, want ErrUnrecognized", err)
	}
	if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != iam.ErrUnrecognized {
		t.Errorf("with an identity from before: got error %v, want ErrUnrecognized", err)
	}
}

func TestMadeUpIdentity(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	id, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text"))
	if err != nil {
		t.Fatal(err)
	}
	proof, wrong := [32]byte(id.Proof()), [32]byte(id.Proof())
	wrong[0] ^= 1
	for name, other := range map[string]iam.Identity{
		"nobody":     {},
		"proof":      forwarded(t, id, id.Account(), id.Credential(), wrong),
		"credential": forwarded(t, id, id.Account(), "x", proof),
		"account":    forwarded(t, id, id.Account()+1, id.Credential(), proof),
	} {
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: other}, 0); err != iam.ErrUnrecognized {
			t.Errorf("another %s: got error %v, want ErrUnrecognized", name, err)
		}
	}
}

func BenchmarkAuthenticateSigV4(b *testing.B) {
	c := newTestCluster(b, withShares(3, 2))
	e, res := c.engine, c.initResult
	p := enginetest.SigV4Proof(res, testRegion, strings.Repeat("t", 150))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.AuthenticateSigV4(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSignIn measures signatures of users in turn: of so few that their signing keys stay in
// the cache, and of so many that each needs its secret again.
func BenchmarkSignIn(b *testing.B) {
	for _, n := range []int{500, 4000} {
		b.Run(fmt.Sprintf("users=%d", n), func(b *testing.B) {
			c := newTestCluster(b, withShares(3, 2))
			o, err := c.engine.vault.Current()
			if err != nil {
				b.Fatal(err)
			}
			proofs := make([]sigv4.Proof, n)
			for i := range proofs {
				name := fmt.Sprintf("user-%06d", i)
				key, secret, err := iam.NewAccessKey(c.engine.vault.Arena(), o, testAccountNumber, uniqueID("AIDA", name), 1, 0)
				if err != nil {
					b.Fatal(err)
				}
				res := &ceremony.InitResult{AccessKeyID: key.Id}
				_ = secret.With(func(s []byte) error { res.SecretAccessKey = string(s); return nil })
				secret.Destroy()
				c.putUser(name, func(u *fsmpb.User) { u.AccessKeys = []string{key.Id} })
				c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: key}})
				proofs[i] = enginetest.SigV4Proof(res, testRegion, strings.Repeat("t", 150))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if _, err := c.engine.AuthenticateSigV4(b.Context(), proofs[i%n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAdmit(b *testing.B) {
	c := newTestCluster(b, withShares(3, 2))
	e, res := c.engine, c.initResult
	id, err := e.AuthenticateSigV4(b.Context(), enginetest.SigV4Proof(res, testRegion, "t"))
	if err != nil {
		b.Fatal(err)
	}
	caller := &iam.Caller{Identity: id}
	b.ReportAllocs()
	for b.Loop() {
		ev := &request.Evaluation{Ctx: b.Context(), Services: e.services, State: c.State(), Caller: caller}
		if err := ev.Admit(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCredentialsAreAuthenticated checks that a credential that no unsealed node wrote, or that
// was edited since, authenticates nobody: not one that somebody added for the root user, and not
// one that somebody activated.
func TestCredentialsAreAuthenticated(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, kmsapi.ErrUnrecognizedClient) {
			t.Errorf("%s: got error %v, want UnrecognizedClientException", what, err)
		}
	}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://operator/thief", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
		Mac: make([]byte, 32), MacGeneration: 1,
	}}})
	_, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: "conclave://operator/thief"})
	refused("planted", err)

	ann := &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://operator/ann", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: "arn:aws:iam::111122223333:user/ann", Created: 1,
	}
	put := putSigned(t, e, ann)
	signed := proto.CloneOf(ann)
	c.Change(put)
	for name, edit := range map[string]func(*fsmpb.Credential){
		"switched on":   func(c *fsmpb.Credential) { c.Active = true },
		"another's":     func(c *fsmpb.Credential) { c.Active, c.Principal = true, res.RootARN },
		"another date":  func(c *fsmpb.Credential) { c.Active, c.Created = true, 2 },
		"another epoch": func(c *fsmpb.Credential) { c.Active, c.SessionEpoch = true, 1 },
		"another MAC":   func(c *fsmpb.Credential) { c.Active, c.Mac = true, make([]byte, 32) },
	} {
		edited := proto.CloneOf(signed)
		edit(edited)
		undo := c.ReplaceState(edited)
		_, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: ann.Id})
		refused(name, err)
		undo()
	}
	for name, edit := range map[string]func(*fsmpb.Credential){
		"another's":        func(c *fsmpb.Credential) { c.Principal = res.RootARN },
		"other generation": func(c *fsmpb.Credential) { c.MacGeneration = 7 },
		"no MAC":           func(c *fsmpb.Credential) { c.Mac = nil },
	} {
		edited := proto.CloneOf(signed)
		edit(edited)
		if v, _ := c.Verdict(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: edited}}); v != fsm.Invalid {
			t.Errorf("%s: got verdict %v, want Invalid", name, v)
		}
	}
	good := proto.CloneOf(signed)
	good.Active = true
	c.Change(putSigned(t, e, good))
	if _, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: ann.Id}); err != nil {
		t.Errorf("with a credential that an unsealed node wrote: %v", err)
	}
	// A node's certificate cannot be a credential.
	node := &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://node/a", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
	}
	if v, _ := c.Verdict(putSigned(t, e, node)); v != fsm.Invalid {
		t.Errorf("a credential for a node's certificate: got verdict %v, want Invalid", v)
	}
}

// A proof opens only one session, also while its time is still valid.
func TestProofsAreUsedOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	p := enginetest.SessionProof(res, c.Clock.Now())
	if _, _, err := e.OpenSession(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrSignature {
		t.Errorf("with the same proof again: got error %v, want ErrSignature", err)
	}
	if _, _, err := e.OpenSession(t.Context(), enginetest.SessionProof(res, c.Clock.Now())); err != nil {
		t.Errorf("with another proof: %v", err)
	}
}

// forwarded returns an identity as another node would forward it.
func forwarded(t testing.TB, of iam.Identity, account fsm.Account, credential string, proof [32]byte) iam.Identity {
	t.Helper()
	id, err := iam.ForwardedIdentity(of.Principal(), account, credential, proof, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
