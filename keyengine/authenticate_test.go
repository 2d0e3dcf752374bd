package keyengine

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

func testMAC(key []byte, msg string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(msg))
	return h.Sum(nil)
}

// signed is a proof as a client makes it.
func signed(res *ceremony.InitResult, date, stringToSign string) sigv4.Proof {
	return signedFor(res, date, "eu-west-1", stringToSign)
}

func signedFor(res *ceremony.InitResult, date, region, stringToSign string) sigv4.Proof {
	key := make([]byte, sigv4.KeySize)
	sigv4.Derive(key, []byte(res.SecretAccessKey), date, region, "kms")
	return sigv4.Proof{
		AccessKeyID: res.AccessKeyID, Date: date, Region: region, Service: "kms",
		StringToSign: []byte(stringToSign), Signature: testMAC(key, stringToSign),
	}
}

var proofCount atomic.Int64

// proofOf is a session proof as a client makes it.
func proofOf(res *ceremony.InitResult, now time.Time) iam.SessionProof {
	p := iam.SessionProof{AccessKeyID: res.AccessKeyID, Time: now.Unix(), Nonce: fmt.Appendf(nil, "%016d", proofCount.Add(1)), SourceIP: "192.0.2.9"}
	p.MAC = testMAC(testMAC([]byte("CONCLAVE1"+res.SecretAccessKey), "session"),
		fmt.Sprintf("conclave session v2\n%s\n%d\n%s\n", p.AccessKeyID, p.Time, hex.EncodeToString(p.Nonce)))
	return p
}

// credential is a copy of one, to edit.
func (c *fakeCluster) credential(id string) *fsmpb.Credential {
	c.t.Helper()
	cred, _ := c.state().Credential(testAccountNumber, id)
	return proto.CloneOf(cred)
}

// edit changes a credential behind everybody's back.
func (c *fakeCluster) edit(id string, edit func(*fsmpb.Credential)) {
	c.t.Helper()
	cred := c.credential(id)
	edit(cred)
	c.change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
}

// asked is how many barriers the replica was asked for.
func (r *fakeReplica) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.barriers
}

func deactivate(c *fsmpb.Credential) { c.Active = false }

func TestAuthenticateSigV4(t *testing.T) {
	c, e, res := openCluster(t)
	good := signed(res, "20300102", "text")
	for range 2 { // derived, and from the cache
		id, err := e.AuthenticateSigV4(t.Context(), good)
		if err != nil || id.Principal().ARN != res.RootARN || id.Credential() != res.AccessKeyID {
			t.Errorf("identity %v, %v", id, err)
		}
	}
	for i := range 256 {
		p := good
		p.Signature = bytes.Clone(good.Signature)
		p.Signature[i/8] ^= 1 << (i % 8)
		if _, err := e.AuthenticateSigV4(t.Context(), p); err != iam.ErrSignature {
			t.Fatalf("flipped bit %d: %v", i, err)
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
			t.Errorf("another %s: %v", name, err)
		}
	}
	c.edit(res.AccessKeyID, deactivate)
	if _, err := e.AuthenticateSigV4(t.Context(), good); err != iam.ErrUnrecognized || !errors.Is(err, kmsapi.ErrUnrecognizedClient) {
		t.Errorf("inactive key: %v", err)
	}
}

func TestCredentialOfAnotherPrincipal(t *testing.T) {
	c, e, res := openCluster(t)
	// The signing key is at hand, and must not prove more than the secret did.
	if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Fatal(err)
	}
	cred := c.credential(res.AccessKeyID)
	cred.Principal = "arn:aws:iam::111122223333:user/eve"
	c.tamper(cred)
	if id, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err == nil {
		t.Errorf("a secret proves %v, for whom it was not made", id)
	}
}

func TestUnknownAccessKeysAreRationed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, e, res := openCluster(t)
		r := c.replica("a")
		stranger := func(i int) sigv4.Proof {
			p := signed(res, "20300102", "text")
			p.AccessKeyID = accesskey.ID(accesskey.LongTerm, testAccountNumber, [accesskey.Noise]byte{3: byte(i >> 8), 4: byte(i)})
			if !isAccessKeyID(p.AccessKeyID) {
				t.Fatalf("%q", p.AccessKeyID)
			}
			return p
		}
		before, start := r.asked(), time.Now()
		for i := range 120 {
			if _, err := e.AuthenticateSigV4(t.Context(), stranger(i)); err != iam.ErrUnrecognized {
				t.Fatal(err)
			}
		}
		if n, d := r.asked()-before, time.Since(start); n != 120 || d < 4*time.Second || d > 6*time.Second {
			t.Errorf("one stranger after the other: %d barriers in %v", n, d)
		}
		before = r.asked()
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				if _, err := e.AuthenticateSigV4(t.Context(), stranger(i)); err != iam.ErrUnrecognized {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := r.asked() - before; n == 0 || n > 3 {
			t.Errorf("strangers at once caused %d barriers", n)
		}
		// However many strangers ask, a key that has just been made elsewhere is
		// found, and soon.
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
			c.edit(res.AccessKeyID, deactivate)
			r.freeze()
			c.edit(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
			began := time.Now()
			if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
				t.Errorf("a new key among strangers: %v", err)
			}
			if d := time.Since(began); d > 3*time.Second/iam.FreshRate {
				t.Errorf("a new key waited %v", d)
			}
			r.thaw()
		}
		calm()
		wg.Wait()
		// Nobody waits longer than asked.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := e.AuthenticateSigV4(ctx, stranger(0)); !isUnavailable(err) {
			t.Errorf("without patience: %v", err)
		}
		time.Sleep(time.Second)
		before = r.asked()
		p := stranger(0)
		for _, id := range []string{accesskey.ID(accesskey.LongTerm, testAccountNumber+1, [accesskey.Noise]byte{}), "AKIA" + strings.Repeat("A", 16), "", "AKIA", "ASIA" + strings.Repeat("A", 16), "AKIA" + strings.Repeat("a", 16), "AKIA" + strings.Repeat("1", 16), strings.Repeat("A", 1<<16), "AKIA\x00" + strings.Repeat("A", 15)} {
			p.AccessKeyID = id
			if _, err := e.AuthenticateSigV4(t.Context(), p); err != iam.ErrUnrecognized {
				t.Errorf("%.30q: %v", id, err)
			}
		}
		if n := r.asked() - before; n != 0 {
			t.Errorf("ids that cannot be caused %d barriers", n)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err := e.FreshState(t.Context()); err == nil {
			t.Errorf("a closed engine has state %v", s.Index())
		}
	})
}

func TestNewCredentialWorksOnANodeThatIsBehind(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	rb := c.replica("b")
	c.edit(res.AccessKeyID, deactivate)
	rb.freeze()
	c.edit(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	if _, err := b.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Errorf("a key that is active: %v", err)
	}
	// And without a majority it is not called unknown.
	c.edit(res.AccessKeyID, deactivate)
	c.replica("a").err = errors.New("no majority")
	if _, err := a.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err == nil || errors.Is(err, kmsapi.ErrUnrecognizedClient) {
		t.Errorf("without a majority: %v", err)
	}
}

func TestRevokedCredentialOnANodeThatIsBehind(t *testing.T) {
	c, _, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	id, err := b.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
		t.Errorf("before: %v", err)
	}
	c.replica("b").freeze()
	c.edit(res.AccessKeyID, deactivate)
	// The node knows nothing of it yet: the signature is good, the log is not
	// deceived.
	if _, err := b.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Errorf("on the state of before: %v", err)
	}
	if _, err := b.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("after: %v", err)
	}
	c.edit(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	c.replica("b").freeze()
	c.edit(res.AccessKeyID, deactivate)
	if _, _, err := b.OpenSession(t.Context(), proofOf(res, c.clock.Now())); !errors.Is(err, iam.ErrUnrecognized) {
		t.Errorf("session: %v", err)
	}
}

func TestAdmissionLooksAgainBeforeItRefuses(t *testing.T) {
	c, e, res := openCluster(t)
	caller := rootCaller(t, e, res)
	c.edit(res.AccessKeyID, deactivate)
	r := c.replica("a")
	r.freeze()
	c.edit(res.AccessKeyID, func(cr *fsmpb.Credential) { cr.Active = true })
	before := r.proposals
	if _, err := e.ReadAudit(t.Context(), caller, 0); err != nil || r.proposals != before+1 {
		t.Errorf("%d records proposed: %v", r.proposals-before, err)
	}
}

func TestSigningKeysOfRevokedCredentialsLeaveMemory(t *testing.T) {
	c, e, res := openCluster(t)
	idle := used(e)
	if _, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text")); err != nil {
		t.Fatal(err)
	}
	if used(e) == idle {
		t.Fatal("the signing key is not cached")
	}
	e.vault.Sweep(c.state(), c.clock.Now())
	if used(e) == idle {
		t.Error("the signing key of a good credential was dropped")
	}
	c.edit(res.AccessKeyID, deactivate)
	e.vault.Sweep(c.state(), c.clock.Now())
	if n := used(e); n != idle {
		t.Errorf("%d slots in use, want %d", n, idle)
	}
}

func TestSession(t *testing.T) {
	c, a, res := openCluster(t, "a", "b")
	b := c.newEngine("b")
	unsealNode(t, b, res.Shares...)
	size := c.audit.Size()
	token, expires, err := a.OpenSession(t.Context(), proofOf(res, c.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if want := c.clock.Now().Add(iam.SessionLife).Unix(); expires.Unix() != want || c.audit.Size() != size+1 {
		t.Errorf("expires %v, %d records", expires, c.audit.Size()-size)
	}
	if got := records(t, c, a); got[len(got)-1].EventName != "CreateSession" || got[len(got)-1].Identity.AccessKeyId != res.AccessKeyID {
		t.Errorf("record: %v", got[len(got)-1])
	}
	for _, e := range []*Engine{b, a, a} {
		id, err := e.AuthenticateSession(t.Context(), token)
		if err != nil || id.Principal().ARN != res.RootARN || id.Session() == "" {
			t.Fatalf("identity %v, %v", id, err)
		}
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
			t.Errorf("a request in the session: %v", err)
		}
	}
	c.advance(iam.SessionLife - time.Second)
	if _, err := b.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("just before it expires: %v", err)
	}
	c.advance(time.Second)
	for _, e := range []*Engine{a, b} {
		if _, err := e.AuthenticateSession(t.Context(), token); !errors.Is(err, kmsapi.ErrExpiredToken) {
			if code, _ := record.Outcome(err); code != string(kmsapi.ErrExpiredToken.Code) {
				t.Errorf("after: %v", err)
			}
		}
	}
}

func TestSessionEndsWithItsCredential(t *testing.T) {
	c, e, res := openCluster(t)
	token, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now()))
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
		cred := c.credential(res.AccessKeyID)
		edit(cred)
		undo := c.tamper(cred)
		if _, err := e.AuthenticateSession(t.Context(), token); err != iam.ErrUnrecognized {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != iam.ErrUnrecognized {
			t.Errorf("%s, a request of before: %v", name, err)
		}
		undo()
	}
	if _, err := e.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

func TestForgedTokens(t *testing.T) {
	c, e, res := openCluster(t)
	_, other, otherRes := openCluster(t)
	token, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := other.OpenSession(t.Context(), proofOf(otherRes, c.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, token string) {
		t.Helper()
		if _, err := e.AuthenticateSession(t.Context(), token); err != iam.ErrUnrecognized {
			t.Errorf("%s: %v", what, err)
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
		t.Fatalf("the token is of account %v: %v", claims.Account, err)
	}
	claims.Account++
	strange, err := o.SignSession(&claims)
	if err != nil {
		t.Fatal(err)
	}
	refused("another account's", strange)
	if e.KnowsToken(strange) || !e.KnowsToken(token) {
		t.Error("a token of another account is known, or the right one is not")
	}
}

func FuzzVerifyToken(f *testing.F) {
	c := newFakeCluster(f, "a")
	e := c.newEngine("a")
	p := testInit(1, 1)
	p.KeepUnsealed = true
	res := initCluster(f, e, p)
	token, _, err := e.OpenSession(f.Context(), proofOf(res, c.clock.Now()))
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
			t.Errorf("%q: %v", b, err)
		}
	})
}

func TestSessionProofs(t *testing.T) {
	c, e, res := openCluster(t)
	now := c.clock.Now()
	if _, _, err := e.OpenSession(t.Context(), proofOf(res, now.Add(iam.SessionSkew))); err != nil {
		t.Errorf("five minutes ahead: %v", err)
	}
	if _, _, err := e.OpenSession(t.Context(), proofOf(res, now.Add(-iam.SessionSkew))); err != nil {
		t.Errorf("five minutes behind: %v", err)
	}
	for name, p := range map[string]iam.SessionProof{
		"ahead":  proofOf(res, now.Add(iam.SessionSkew+time.Second)),
		"behind": proofOf(res, now.Add(-iam.SessionSkew-time.Second)),
		"far":    {AccessKeyID: res.AccessKeyID, Time: -1 << 63, Nonce: make([]byte, 16), MAC: make([]byte, 32)},
	} {
		if _, _, err := e.OpenSession(t.Context(), p); err == nil || !strings.Contains(err.Error(), "time of the proof") {
			t.Errorf("%s: %v", name, err)
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
		p := proofOf(res, now)
		edit(&p)
		if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrSignature {
			t.Errorf("another %s: %v", name, err)
		}
	}
	p := proofOf(res, now)
	p.AccessKeyID = accesskey.ID(accesskey.LongTerm, testAccountNumber, [accesskey.Noise]byte{})
	if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrUnrecognized {
		t.Errorf("unknown key: %v", err)
	}
	// The credential is written anew, the same, between proof and record.
	c.replica("a").before = func(*fsmpb.Record) {
		c.replica("a").before = nil
		c.edit(res.AccessKeyID, func(*fsmpb.Credential) {})
	}
	if token, _, err := e.OpenSession(t.Context(), proofOf(res, now)); err != nil {
		t.Errorf("conflict: %v", err)
	} else if _, err := e.AuthenticateSession(t.Context(), token); err != nil {
		t.Errorf("token after a conflict: %v", err)
	}
	c.replica("a").late = true
	if token, _, err := e.OpenSession(t.Context(), proofOf(res, now)); err != record.ErrHeldUp || token != "" {
		t.Errorf("late: %v", err)
	}
}

func TestAuthenticateCertificate(t *testing.T) {
	c := newFakeCluster(t, "a")
	e := c.newEngine("a")
	p := testInit(1, 1)
	p.KeepUnsealed, p.RootCertificate = true, "conclave://client/root"
	res := initCluster(t, e, p)
	id, err := e.AuthenticateCertificate(t.Context(), p.RootCertificate)
	if err != nil || id.Principal().ARN != res.RootARN || id.Credential() != p.RootCertificate {
		t.Fatalf("identity %v, %v", id, err)
	}
	if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != nil {
		t.Error(err)
	}
	for _, uri := range []string{"", "conclave://client/Root", "conclave://client/root/", res.AccessKeyID, strings.Repeat("x", 1025)} {
		if _, err := e.AuthenticateCertificate(t.Context(), uri); err != iam.ErrUnrecognized {
			t.Errorf("%.40q: %v", uri, err)
		}
	}
	// An access key is proven by its secret only.
	q := signed(res, "20300102", "text")
	q.AccessKeyID = p.RootCertificate
	if _, err := e.AuthenticateSigV4(t.Context(), q); err != iam.ErrUnrecognized {
		t.Errorf("certificate as access key: %v", err)
	}
	c.edit(p.RootCertificate, deactivate)
	if _, err := e.AuthenticateCertificate(t.Context(), p.RootCertificate); err != iam.ErrUnrecognized {
		t.Errorf("inactive: %v", err)
	}
	if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0); err != iam.ErrUnrecognized {
		t.Errorf("a request of before: %v", err)
	}
}

func TestMadeUpIdentity(t *testing.T) {
	_, e, res := openCluster(t)
	id, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text"))
	if err != nil {
		t.Fatal(err)
	}
	proof, wrong, principal := [32]byte(id.Proof()), [32]byte(id.Proof()), id.Principal()
	wrong[0] ^= 1
	principal.ARN += "x"
	for name, other := range map[string]iam.Identity{
		"nobody":     {},
		"proof":      iam.ForwardedIdentity(id.Principal(), id.Credential(), wrong, ""),
		"credential": iam.ForwardedIdentity(id.Principal(), "x", proof, ""),
		"principal":  iam.ForwardedIdentity(principal, id.Credential(), proof, ""),
	} {
		if _, err := e.ReadAudit(t.Context(), &iam.Caller{Identity: other}, 0); err != iam.ErrUnrecognized {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

func BenchmarkAuthenticateSigV4(b *testing.B) {
	_, e, res := openCluster(b)
	p := signed(res, "20300102", strings.Repeat("t", 150))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.AuthenticateSigV4(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	c, e, res := openCluster(b)
	id, err := e.AuthenticateSigV4(b.Context(), signed(res, "20300102", "t"))
	if err != nil {
		b.Fatal(err)
	}
	caller := &iam.Caller{Identity: id}
	b.ReportAllocs()
	for b.Loop() {
		ev := &request.Evaluation{Ctx: b.Context(), Services: e.services, State: c.state(), Caller: caller}
		if err := ev.Admit(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCredentialsAreAuthenticated: what stands in the state and was not written by an
// unsealed node, or was edited since, proves nothing: not a row for the root user that
// somebody planted, not one that was switched on again.
func TestCredentialsAreAuthenticated(t *testing.T) {
	c, e, res := openCluster(t)
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, kmsapi.ErrUnrecognizedClient) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://operator/thief", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
		Mac: make([]byte, 32), MacGeneration: 1,
	}}})
	_, err := e.AuthenticateCertificate(t.Context(), "conclave://operator/thief")
	refused("planted", err)

	ann := &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://operator/ann", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: "arn:aws:iam::111122223333:user/ann", Created: 1,
	}
	put := putSigned(t, e, ann)
	signed := proto.CloneOf(ann)
	c.change(put)
	for name, edit := range map[string]func(*fsmpb.Credential){
		"switched on":   func(c *fsmpb.Credential) { c.Active = true },
		"another's":     func(c *fsmpb.Credential) { c.Active, c.Principal = true, res.RootARN },
		"another date":  func(c *fsmpb.Credential) { c.Active, c.Created = true, 2 },
		"another epoch": func(c *fsmpb.Credential) { c.Active, c.SessionEpoch = true, 1 },
		"another MAC":   func(c *fsmpb.Credential) { c.Active, c.Mac = true, make([]byte, 32) },
	} {
		edited := proto.CloneOf(signed)
		edit(edited)
		undo := c.tamper(edited)
		_, err := e.AuthenticateCertificate(t.Context(), ann.Id)
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
		if v, _ := c.verdict(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: edited}}); v != fsm.Invalid {
			t.Errorf("%s: the log finds it %v", name, v)
		}
	}
	good := proto.CloneOf(signed)
	good.Active = true
	c.change(putSigned(t, e, good))
	if _, err := e.AuthenticateCertificate(t.Context(), ann.Id); err != nil {
		t.Errorf("as an unsealed node writes it: %v", err)
	}
	// A node's certificate is nobody's credential, whoever writes it.
	node := &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://node/a", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: res.RootARN, Active: true, Created: 1,
	}
	if v, _ := c.verdict(putSigned(t, e, node)); v != fsm.Invalid {
		t.Errorf("a credential for a node's certificate: %v", v)
	}
}

// TestProofsAreUsedOnce: a proof that opened a session opens no other, while its time
// is still good.
func TestProofsAreUsedOnce(t *testing.T) {
	c, e, res := openCluster(t)
	p := proofOf(res, c.clock.Now())
	if _, _, err := e.OpenSession(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.OpenSession(t.Context(), p); err != iam.ErrSignature {
		t.Errorf("the same proof again: %v", err)
	}
	if _, _, err := e.OpenSession(t.Context(), proofOf(res, c.clock.Now())); err != nil {
		t.Errorf("another proof: %v", err)
	}
}

// TestUsedProofsAreBounded: those whose time has passed are forgotten.
func TestUsedProofsAreBounded(t *testing.T) {
	var u iam.UsedProofs
	now := time.Unix(1_000_000, 0)
	for i := range iam.MaxProofs {
		if err := u.Use(now, &iam.SessionProof{Time: now.Unix(), MAC: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.Use(now, &iam.SessionProof{Time: now.Unix(), MAC: []byte("more")}); err != record.ErrThrottled {
		t.Errorf("one more: %v", err)
	}
	later := now.Add(iam.SessionSkew + time.Second)
	if err := u.Use(later, &iam.SessionProof{Time: later.Unix(), MAC: []byte("more")}); err != nil || len(u.Seen) != 1 {
		t.Errorf("%d are remembered, %v", len(u.Seen), err)
	}
}
