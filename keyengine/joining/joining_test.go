package joining

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/jointoken"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// realCA is what nodes have, without their own file of CAs.
type realCA struct{}

func (realCA) Check(certificate, key []byte, _ time.Time) error {
	_, err := pki.ParseCA(certificate, key)
	return err
}

func (realCA) Certify(certificate, key []byte, node string, names []string, public any, now time.Time) ([]byte, error) {
	ca, err := pki.ParseCA(certificate, key)
	if err != nil {
		return nil, err
	}
	return ca.CertifyNode(node, names, public, now)
}

// members are the members of the fixture's cluster.
type members struct {
	follows bool
	at      map[string]string
	gone    []string
	err     error // of Add
	added   int
}

func (m *members) Leads() bool { return !m.follows }

func (m *members) MayAdd(node, address string) error {
	if _, ok := m.at[node]; ok || slices.Contains(m.gone, node) || address == "" {
		return kmsapi.Errorf(kmsapi.ErrValidation, "the members were not changed: %s at %s", node, address)
	}
	return nil
}

func (m *members) Add(_ context.Context, node, address string) error {
	if m.err != nil {
		return m.err
	}
	m.added++
	m.at[node] = address
	return nil
}

func (m *members) Has(node, address string) bool { return m.at[node] == address }

type fixture struct {
	t       *testing.T
	c       *enginetest.Cluster
	node    *enginetest.Node
	members *members
	log     bytes.Buffer
	s       *Service
	ca      *pki.CA
	cert    []byte // the CA's, in DER
	key     []byte
}

// newFixture returns an unsealed cluster of one node, which has no CA.
func newFixture(t *testing.T, level uint32) *fixture {
	t.Helper()
	f := &fixture{t: t, c: enginetest.NewCluster(t, 1), members: &members{at: map[string]string{"n1": "10.0.0.1:7602"}}}
	f.node = f.c.NewNode("n1")
	f.node.Unseal(f.node.Initialise(enginetest.InitParams(1, 1)).Shares...)
	if level > 1 {
		f.c.Change(&fsmpb.Change{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: level}}})
	}
	f.ca = newCA(t)
	var err error
	if f.cert, f.key, err = f.ca.DER(); err != nil {
		t.Fatal(err)
	}
	f.start()
	return f
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("test", 24*365*20*time.Hour) // the cluster's clock is in 2030
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// start makes a Service, as after a restart.
func (f *fixture) start() {
	f.s = New(Config{
		NodeID: "n1", CA: realCA{}, Members: f.members, Vault: f.node.Vault, Replica: f.node.Replica, Events: f.node.Events, Clock: f.c.Clock,
		Log: slog.New(slog.NewTextHandler(&f.log, nil)), Fresh: f.node.FreshState,
	})
}

// give imports a CA as the client does.
func (f *fixture) give(certificate, key []byte) error {
	f.t.Helper()
	in, err := f.s.Show()
	if err != nil {
		return err
	}
	sealed, err := keymat.SealTo(in.Receiver, keyInfo(in.ClusterID, in.NodeID, certificate), key)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.s.Import(f.t.Context(), enginetest.Operator, certificate, sealed)
}

func (f *fixture) mustGive() {
	f.t.Helper()
	if err := f.give(f.cert, f.key); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) token(p TokenParams) string {
	f.t.Helper()
	text, _, err := f.s.CreateToken(f.t.Context(), enginetest.Operator, p)
	if err != nil {
		f.t.Fatal(err)
	}
	return text
}

var node4 = TokenParams{Node: "node-4", Address: "10.0.0.4:7602", Names: []string{"kms.example.com", "10.9.9.9"}}

// csr returns a request for a certificate with names that nobody agreed to.
func csr(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return csrOf(t, key)
}

func csrOf(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "node node-1"}, DNSNames: []string{"node-1", "evil.example"},
		URIs: []*url.URL{{Scheme: "conclave", Host: "operator", Path: "/root"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (f *fixture) join(token string, csr []byte) ([]byte, error) {
	cert, _, err := f.s.Join(f.t.Context(), &Request{Token: token, CSR: csr, SourceIP: "192.0.2.9", RequestID: [16]byte{1}})
	return cert, err
}

// records returns the records with that name.
func (f *fixture) records(name string) (list []*auditpb.Record) {
	for _, r := range f.node.Records() {
		if r.EventName == name {
			list = append(list, r)
		}
	}
	return list
}

// TestJoin: a token of an operator makes one machine a member, with a certificate for its own
// key that has the names of the token and no others.
func TestJoin(t *testing.T) {
	f := newFixture(t, 2)
	f.mustGive()
	token := f.token(node4)
	if len(f.records("CreateJoinToken")) != 1 || len(f.records("ImportCA")) != 1 {
		t.Error("the CA or the token has no record")
	}
	f.start() // nothing is in memory
	request := csr(t)
	der, err := f.join(token, request)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	kind, name, err := pki.CertificateIdentity(cert)
	if err != nil || kind != pki.KindNode || name != "node-4" {
		t.Errorf("the certificate is of %s %s, %v", kind, name, err)
	}
	if err := f.ca.Issued(cert); err != nil {
		t.Error(err)
	}
	if want := []string{"node-4", "kms.example.com"}; !slices.Equal(cert.DNSNames, want) || len(cert.URIs) != 1 || len(cert.IPAddresses) != 2 || cert.Subject.CommonName != "node node-4" {
		t.Errorf("the certificate has the names %q, %v, %v, %v", cert.DNSNames, cert.URIs, cert.IPAddresses, cert.Subject)
	}
	parsed, _ := x509.ParseCertificateRequest(request)
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, parsed.RawSubjectPublicKeyInfo) {
		t.Error("the certificate is for another key")
	}
	if f.members.at["node-4"] != "10.0.0.4:7602" || f.members.added != 1 {
		t.Errorf("the members are %v", f.members.at)
	}
	if got := f.records("JoinNode"); len(got) != 2 || got[0].ErrorCode != "" || got[1].ErrorCode != "" || got[0].SourceIp != "192.0.2.9" {
		t.Errorf("the records are %v", got)
	}

	// The answer may have been lost: the same machine gets another one. Nobody else does.
	if _, err := f.join(token, request); err != nil || f.members.added != 1 {
		t.Errorf("the same machine again: %v", err)
	}
	f.start()
	f.refused("used by another machine", token, csr(t), "it was used before, by another machine")
	delete(f.members.at, "node-4") // and it never registered
	f.refused("used, and removed since", token, request, "it was used before, and its node is not a member")
}

// refused checks that a token is refused like all others, and what the log and the records say.
func (f *fixture) refused(name, token string, csr []byte, why string) {
	f.t.Helper()
	f.start() // the number of attempts is limited
	f.log.Reset()
	before, added := len(f.records("JoinNode")), f.members.added
	cert, err := f.join(token, csr)
	if cert != nil || f.members.added != added {
		f.t.Errorf("%s: the token was used", name)
	}
	if !errors.Is(err, kmsapi.ErrAccessDenied) || err.Error() != errRefused.Error() {
		f.t.Errorf("%s: the answer is %v, want the same as to every other token", name, err)
	}
	if log := f.log.String(); !strings.Contains(log, why) {
		f.t.Errorf("%s: the log does not say %q:\n%s", name, why, log)
	}
	// Only what the cluster has issued is worth a record.
	want := before + 1
	if strings.Contains(why, "did not issue") || strings.Contains(why, "not a join token") {
		want = before
	}
	if got := f.records("JoinNode"); len(got) != want || want > before && got[len(got)-1].ErrorCode != "AccessDeniedException" {
		f.t.Errorf("%s: there are %d records of it, want %d", name, len(got)-before, want-before)
	}
}

// TestHostileTokens: whatever is wrong with a token, the answer is the same.
func TestHostileTokens(t *testing.T) {
	f := newFixture(t, 2)
	f.mustGive()
	other := newFixture(t, 2)
	if err := other.give(f.cert, f.key); err != nil { // the same CA, another keyring
		t.Fatal(err)
	}
	good := f.token(node4)
	parsed, body, mac, err := jointoken.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	const notIssued = "did not issue"
	f.refused("no token", "", csr(t), "not a join token")
	f.refused("garbage", "conclave-join-"+strings.Repeat("A", 300), csr(t), "not a join token")
	f.refused("of another cluster", other.token(node4), csr(t), notIssued)
	for name, change := range map[string]func(*jointoken.Token){
		"another node id":           func(t *jointoken.Token) { t.Node = "node-5" },
		"another address":           func(t *jointoken.Token) { t.Address = "10.0.0.66:7602" },
		"another name":              func(t *jointoken.Token) { t.Names = []string{"evil.example"} },
		"without its names":         func(t *jointoken.Token) { t.Names = nil },
		"valid for longer":          func(t *jointoken.Token) { t.Expires = t.Expires.Add(time.Hour) },
		"another token id":          func(t *jointoken.Token) { t.ID[0]++ },
		"another CA":                func(t *jointoken.Token) { t.Authority[0]++ },
		"a generation that is none": func(t *jointoken.Token) { t.Generation = 9 },
	} {
		forged := *parsed
		change(&forged)
		f.refused(name, jointoken.Encode(forged.Body(), mac), csr(t), notIssued)
	}
	for i := range mac {
		flipped := bytes.Clone(mac)
		flipped[i] ^= 0x80
		if _, err := f.join(jointoken.Encode(body, flipped), csr(t)); !errors.Is(err, kmsapi.ErrAccessDenied) && !errors.Is(err, kmsapi.ErrThrottling) {
			t.Fatalf("byte %d of the MAC: %v", i, err)
		}
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	f.refused("no request", good, nil, "empty or too long")
	f.refused("a long request", good, make([]byte, maxRequest+1), "empty or too long")
	spoiled := csr(t)
	spoiled[len(spoiled)-1] ^= 1
	f.refused("a request for a key that the machine does not have", good, spoiled, "malformed")
	f.refused("a key of another kind", good, csrOf(t, ed), "not ECDSA")

	f.c.Clock.Advance(time.Hour)
	f.refused("expired", good, csr(t), "it has expired")

	late := f.token(node4)
	f.members.at["node-4"] = node4.Address
	f.refused("of a member", late, csr(t), "the members were not changed")
	delete(f.members.at, "node-4")
	f.members.gone = []string{"node-4"}
	f.refused("of a node that was removed", late, csr(t), "the members were not changed")
	f.members.gone = nil

	// Another CA, and none.
	before := f.token(node4)
	next, nextKey, _ := newCA(t).DER()
	if err := f.give(next, nextKey); err != nil {
		t.Fatal(err)
	}
	f.refused("of a CA that was replaced", before, csr(t), "does not have that CA any more")
	if err := f.s.Remove(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	f.refused("of a CA that was removed", before, csr(t), "does not have that CA any more")
	if _, err := f.s.Authority(); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("the CA that was removed: %v", err)
	}
	if _, _, err := f.s.CreateToken(t.Context(), enginetest.Operator, node4); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("a token without a CA: %v", err)
	}
	if err := f.s.Remove(t.Context(), enginetest.Operator); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("removing the CA twice: %v", err)
	}
}

// TestTokenOfAClockBehind: a token that was forgotten, since it had expired, is not taken by a
// leader whose clock says that it has not.
func TestTokenOfAClockBehind(t *testing.T) {
	f := newFixture(t, 2)
	f.mustGive()
	token, request := f.token(node4), csr(t)
	if _, err := f.join(token, request); err != nil {
		t.Fatal(err)
	}
	f.c.Clock.Advance(2 * time.Hour)
	five := node4
	five.Node, five.Address = "node-5", "10.0.0.5:7602"
	if _, err := f.join(f.token(five), csr(t)); err != nil {
		t.Fatal(err)
	}
	c, _ := f.c.State().Cluster()
	if n := len(c.UsedJoinTokens); n != 1 {
		t.Errorf("%d used tokens are remembered, want the one that has not expired", n)
	}
	delete(f.members.at, "node-4")
	f.s.cfg.Clock = enginetest.NewClock(f.c.Clock.Now().Add(-2 * time.Hour))
	f.s.cfg.Members = f.members
	if _, err := f.join(token, csr(t)); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("got error %v, want AccessDeniedException", err)
	}
	if got := f.records("JoinNode"); !strings.Contains(got[len(got)-1].String(), "it has expired") {
		t.Errorf("the record is %v", got[len(got)-1])
	}
}

// TestNotNow: a node that is sealed or does not lead, and too many attempts, use no token.
func TestNotNow(t *testing.T) {
	f := newFixture(t, 2)
	f.mustGive()
	token, request := f.token(node4), csr(t)
	f.members.follows = true
	if _, err := f.join(token, request); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("a follower: %v", err)
	}
	f.members.follows = false
	for range joinBurst {
		_, _ = f.join("x", nil)
	}
	if _, err := f.join(token, request); !errors.Is(err, kmsapi.ErrThrottling) {
		t.Errorf("after %d attempts: %v", joinBurst, err)
	}
	f.c.Clock.Advance(time.Second)
	f.members.err = kmsapi.Errorf(kmsapi.ErrInvalidState, "another change of the members is in progress")
	if _, err := f.join(token, request); !errors.Is(err, kmsapi.ErrInvalidState) {
		t.Errorf("when the member cannot be added: %v", err)
	}
	if got := f.records("JoinNode"); got[len(got)-1].ErrorCode != "KMSInvalidStateException" {
		t.Errorf("the record is %v", got[len(got)-1])
	}
	f.node.Vault.Seal()
	f.start()
	if _, err := f.join(token, request); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("sealed: %v", err)
	}
	if _, err := f.s.Show(); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("showing the CA, sealed: %v", err)
	}
	if err := f.s.Remove(t.Context(), enginetest.Operator); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("removing the CA, sealed: %v", err)
	}
	if _, _, err := f.s.CreateToken(t.Context(), enginetest.Operator, node4); !errors.Is(err, vault.ErrSealed) {
		t.Errorf("making a token, sealed: %v", err)
	}
}

// TestLevel1: nothing of this gets into the state before the upgrade is finalized, and the
// error says what to do.
func TestLevel1(t *testing.T) {
	f := newFixture(t, 1)
	for name, err := range map[string]error{
		"importing": f.give(f.cert, f.key), "removing": f.s.Remove(t.Context(), enginetest.Operator),
		"a token": func() error { _, _, err := f.s.CreateToken(t.Context(), enginetest.Operator, node4); return err }(),
	} {
		if !errors.Is(err, ceremony.ErrNotUpgraded) || !strings.Contains(err.Error(), "conclave cluster upgrade finalize") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Somebody has the token of a cluster that was finalized, of the same keyring.
	_, err := f.join("conclave-join-AAAA", csr(t))
	if !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("joining: %v", err)
	}
	if c, _ := f.c.State().Cluster(); c.Authority != nil {
		t.Error("the state has a CA")
	}
}

// TestImport: a CA whose key is another one, or that was encrypted to another node or too long
// ago, is refused, and its key is in the state only wrapped.
func TestImport(t *testing.T) {
	f := newFixture(t, 2)
	_, otherKey, _ := newCA(t).DER()
	if err := f.give(f.cert, otherKey); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("another key: %v", err)
	}
	if err := f.give([]byte("certificate"), f.key); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("no certificate: %v", err)
	}
	if err := f.give(nil, f.key); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("an empty certificate: %v", err)
	}
	in, err := f.s.Show()
	if err != nil || in.Certificate != nil {
		t.Fatalf("got %+v, %v", in, err)
	}
	seal := func(node string) []byte {
		sealed, err := keymat.SealTo(in.Receiver, keyInfo(in.ClusterID, node, f.cert), f.key)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	if err := f.s.Import(t.Context(), enginetest.Operator, f.cert, seal("n2")); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("encrypted for another node: %v", err)
	}
	if err := f.s.Import(t.Context(), enginetest.Operator, f.cert, seal("n1")); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("a receiver that was used: %v", err)
	}
	if in, err = f.s.Show(); err != nil {
		t.Fatal(err)
	}
	sealed := seal("n1")
	f.c.Clock.Advance(receiverLife)
	if err := f.s.Import(t.Context(), enginetest.Operator, f.cert, sealed); !errors.Is(err, kmsapi.ErrValidation) {
		t.Errorf("too late: %v", err)
	}
	used := f.node.MemoryInUse()
	f.mustGive()
	if now := f.node.MemoryInUse(); now > used {
		t.Errorf("%d slots of locked memory are in use, and %d before", now, used)
	}
	c, _ := f.c.State().Cluster()
	if bytes.Contains(c.Authority.WrappedKey, f.key[len(f.key)-32:]) || !bytes.Equal(c.Authority.Certificate, f.cert) {
		t.Error("the CA in the state is not what was imported, wrapped")
	}
	if in, err = f.s.Show(); err != nil || !bytes.Equal(in.Certificate, f.cert) || !in.Imported.Equal(f.c.Clock.Now()) {
		t.Errorf("got %+v, %v", in, err)
	}
	for _, r := range f.node.Records() {
		if strings.Contains(r.String(), "PRIVATE") {
			t.Errorf("a key is in the record %v", r)
		}
	}
}

// TestTokenParams: what a token would be for is checked before it is made.
func TestTokenParams(t *testing.T) {
	f := newFixture(t, 2)
	f.mustGive()
	for name, p := range map[string]TokenParams{
		"a day and a second": {Node: "node-4", Address: "a:1", Life: MaxTokenLife + time.Second}, "a second": {Node: "node-4", Address: "a:1", Life: time.Second},
		"negative": {Node: "node-4", Address: "a:1", Life: -time.Hour}, "a wildcard": {Node: "node-4", Address: "a:1", Names: []string{"*.example.com"}},
		"an empty name": {Node: "node-4", Address: "a:1", Names: []string{""}}, "a URI": {Node: "node-4", Address: "a:1", Names: []string{"conclave://operator/root"}},
		"too many names": {Node: "node-4", Address: "a:1", Names: make([]string, jointoken.MaxNames+1)}, "a member": {Node: "n1", Address: "a:1"}, "no address": {Node: "node-4"},
	} {
		if _, _, err := f.s.CreateToken(t.Context(), enginetest.Operator, p); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, expires, err := f.s.CreateToken(t.Context(), enginetest.Operator, node4)
	if err != nil || !expires.Equal(f.c.Clock.Now().Add(time.Hour).Truncate(time.Second)) {
		t.Errorf("by default, a token expires %v, %v", expires, err)
	}
}
