package grpcapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/joining"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// fakeEngine accepts the token "good" and the certificate of alice.
type fakeEngine struct {
	do func(ctx context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error)

	mu      sync.Mutex
	caller  *iam.Caller
	in      any
	op      string
	calls   int
	expired bool
	proof   iam.SessionProof
}

func (f *fakeEngine) Do(ctx context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error) {
	f.mu.Lock()
	f.caller, f.op, f.in, f.calls = c, op.Name, in, f.calls+1
	f.mu.Unlock()
	if f.do == nil {
		return op.NewOutput(), nil
	}
	return f.do(ctx, c, op, in)
}

func (f *fakeEngine) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeEngine) AuthenticateSession(_ context.Context, token string) (iam.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case token == "expired", f.expired:
		return iam.Identity{}, &kmsapi.Error{Code: kmsapi.ErrExpiredToken.Code, Message: "expired"}
	case token == "good":
		return iam.ForwardedIdentity(iam.Identity{}.Principal(), 0, "AKIA", [32]byte{}, "session", nil, nil)
	}
	return iam.Identity{}, errBadToken
}

func (f *fakeEngine) KnowsToken(token string) bool { return token == "good" }

func (f *fakeEngine) AuthenticateCertificate(_ context.Context, cert iam.Certificate) (iam.Identity, error) {
	if cert.URI == "conclave://operator/alice" || cert.URI == "spiffe://example.org/web" {
		return iam.Identity{}, nil
	}
	return iam.Identity{}, errCertificate
}

func (f *fakeEngine) OpenSession(_ context.Context, p iam.SessionProof) (string, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proof = p
	if p.AccessKeyID != "AKIAABCDEFGHIJKLMNOP" {
		return "", time.Time{}, errBadToken
	}
	return "good", time.Now().Add(time.Hour), nil
}

func (f *fakeEngine) managed(c *iam.Caller, what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.caller, f.op, f.calls = c, what, f.calls+1
	return nil
}

func (f *fakeEngine) Credentials(_ context.Context, c *iam.Caller) ([]keyengine.CredentialInfo, error) {
	return []keyengine.CredentialInfo{{ID: "AKIA"}, {ID: "conclave://operator/root", Certificate: true}}, f.managed(c, "list")
}

func (f *fakeEngine) CreateAccount(_ context.Context, c *iam.Caller, _, _ string, answerKey []byte) (string, []byte, error) {
	return f.CreateAccessKey(context.Background(), c, answerKey)
}

func (f *fakeEngine) Accounts(context.Context, *iam.Caller) ([]keyengine.AccountInfo, error) {
	return []keyengine.AccountInfo{{Number: "111122223333", Name: "first"}}, nil
}

func (f *fakeEngine) CreateCertificateMapping(_ context.Context, _ *iam.Caller, pattern, principal string) (string, error) {
	return pattern + " is " + principal, nil
}

func (f *fakeEngine) CertificateMappings(context.Context, *iam.Caller) ([]keyengine.CertificateMapping, error) {
	return []keyengine.CertificateMapping{{Pattern: "spiffe://a/b", ARN: "arn", Principal: "ann"}}, nil
}

func (f *fakeEngine) DeleteCertificateMapping(_ context.Context, c *iam.Caller, pattern string) error {
	return f.managed(c, "unmap "+pattern)
}

func (f *fakeEngine) CreateAccessKey(_ context.Context, c *iam.Caller, answerKey []byte) (string, []byte, error) {
	return "AKIA", append([]byte("for "), answerKey...), f.managed(c, "create")
}

func (f *fakeEngine) DeleteCredential(_ context.Context, c *iam.Caller, id string) error {
	return f.managed(c, "delete "+id)
}

func (f *fakeEngine) RevokeSessions(_ context.Context, c *iam.Caller) error {
	return f.managed(c, "revoke sessions")
}

func (f *fakeEngine) RecordReceipt(context.Context, *iam.Caller, *uint64, iam.RequestID) ([]byte, error) {
	panic("not used")
}

func (*fakeEngine) SearchAudit(context.Context, *iam.Caller, keyengine.AuditQuery, string, int) (*keyengine.AuditPage, error) {
	return nil, errors.New("not in this test")
}

func (*fakeEngine) AuditSinks(context.Context, *iam.Caller) ([]keyengine.AuditSink, error) {
	return []keyengine.AuditSink{
		{Name: "old", Confirmed: 7},
		{Name: "siem", Kind: "syslog", Confirmed: 5, Node: "n1", Lag: 2, Age: 1500 * time.Millisecond, Error: "gone", ErrorAt: time.Unix(2, 0)},
	}, nil
}

func (f *fakeEngine) ForgetAuditSink(_ context.Context, c *iam.Caller, name string) error {
	return f.managed(c, "forget "+name)
}

func (f *fakeEngine) ReadAudit(context.Context, *iam.Caller, uint64) (*keyengine.AuditReader, error) {
	return nil, errors.New("there is no log")
}

func (f *fakeEngine) Usage(context.Context, *iam.Caller, keyengine.UsageQuery) (*keyengine.UsagePage, error) {
	return nil, errors.New("nothing is counted")
}

func (f *fakeEngine) UsedKeys(context.Context, *iam.Caller, keyengine.UsageQuery) (*keyengine.UsagePage, error) {
	return nil, errors.New("nothing is counted")
}

// fakeCeremony notes who did what.
type fakeCeremony struct {
	params ceremony.InitParams // of the last Init
	mu     sync.Mutex
	done   []string
	err    error
}

func (f *fakeCeremony) note(op ceremony.Operator, what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, op.Name+" "+what)
	return f.err
}

func (f *fakeCeremony) Status(context.Context) (*kmspb.StatusResponse, error) {
	st := &kmspb.StatusResponse{
		NodeId: "n1", Version: "v1", LeaderId: "n2", HasLeader: true, Raft: &kmspb.RaftStatus{Term: 3},
		Seal:      &kmspb.SealState{Initialised: true, Sealed: true, Threshold: 3, Shares: 5, Progress: 2, ClusterId: "c", Account: "111122223333", Custodians: []uint32{1, 4}},
		Addresses: &kmspb.Addresses{Aws: "10.0.0.1:8443"}, Faults: []string{"disk"},
	}
	return st, f.err
}

func (f *fakeCeremony) Init(_ context.Context, op ceremony.Operator, p ceremony.InitParams) (*ceremony.InitResult, error) {
	if p.KeepUnsealed {
		return nil, errors.New("the wire cannot ask for this")
	}
	f.params = p
	return &ceremony.InitResult{ClusterID: "c", AccessKeyID: "AKIA", SealedSecrets: append([]byte("for "), p.AnswerKey...), RootARN: "arn", VerifierKey: "vk"}, f.note(op, "init")
}

func (f *fakeCeremony) Challenge(context.Context) (*ceremony.Challenge, error) {
	return &ceremony.Challenge{NodeID: "n1", PublicKey: []byte("key")}, f.err
}

func (f *fakeCeremony) SubmitShare(_ context.Context, op ceremony.Operator, nonce, sealed []byte) *kmspb.NodeStatus {
	return &kmspb.NodeStatus{NodeId: "n1", Error: Detail(f.note(op, "share"), op.RequestID)}
}

func (f *fakeCeremony) ResetShares(_ context.Context, op ceremony.Operator, force []byte) *kmspb.NodeStatus {
	return &kmspb.NodeStatus{NodeId: "n1", Error: Detail(f.note(op, "reset"), op.RequestID)}
}

func (f *fakeCeremony) Seal(_ context.Context, op ceremony.Operator) *kmspb.NodeStatus {
	return &kmspb.NodeStatus{NodeId: "n1", Error: Detail(f.note(op, "seal"), op.RequestID)}
}

func (f *fakeCeremony) ConfirmTime(_ context.Context, op ceremony.Operator) error {
	return f.note(op, "time")
}

func (f *fakeCeremony) InstallCRL(_ context.Context, op ceremony.Operator, _ []byte) *kmspb.NodeStatus {
	return &kmspb.NodeStatus{NodeId: "n1", Error: Detail(f.note(op, "crl"), op.RequestID)}
}

func (f *fakeCeremony) BeginBreakGlass(_ context.Context, op ceremony.Operator, _ ceremony.BreakGlassParams) (*ceremony.BreakGlass, error) {
	return &ceremony.BreakGlass{NodeID: "n1"}, f.note(op, "begin")
}

func (f *fakeCeremony) BreakGlass() (*ceremony.BreakGlass, error) {
	return &ceremony.BreakGlass{NodeID: "n1"}, f.err
}

func (f *fakeCeremony) SubmitBreakGlassShare(_ context.Context, op ceremony.Operator, nonce, sealed, answerKey []byte) (*ceremony.BreakGlass, *ceremony.BreakGlassKey, error) {
	return &ceremony.BreakGlass{NodeID: "n1"}, nil, f.note(op, "break-glass share")
}

func (f *fakeCeremony) CancelBreakGlass(_ context.Context, op ceremony.Operator, nonce []byte) error {
	return f.note(op, "cancel")
}

func (f *fakeCeremony) NameCustodians(_ context.Context, op ceremony.Operator, _ []ceremony.NamedCustodian) (bool, error) {
	return true, f.note(op, "names")
}

func (f *fakeCeremony) KeyChanges() KeyChanges { return fakeKeyChanges{f} }

type fakeKeyChanges struct{ f *fakeCeremony }

func (f fakeKeyChanges) Begin(_ context.Context, op ceremony.Operator, _ ceremony.KeyChangeParams) (*ceremony.KeyChangeStatus, error) {
	return &ceremony.KeyChangeStatus{NodeID: "n1"}, f.f.note(op, "begin key change")
}

func (f fakeKeyChanges) Status() (*ceremony.KeyChangeStatus, error) {
	return &ceremony.KeyChangeStatus{NodeID: "n1"}, f.f.err
}

func (f fakeKeyChanges) Submit(_ context.Context, op ceremony.Operator, nonce, sealed []byte) (*ceremony.KeyChangeStatus, bool, error) {
	return &ceremony.KeyChangeStatus{NodeID: "n1"}, false, f.f.note(op, "key change share")
}

func (f fakeKeyChanges) NewShares(_ context.Context, op ceremony.Operator, _, _ []byte) ([]byte, []ceremony.EncryptedShare, error) {
	return nil, nil, f.f.note(op, "new shares")
}

func (f fakeKeyChanges) Cancel(_ context.Context, op ceremony.Operator, _ []byte) error {
	return f.f.note(op, "cancel key change")
}

func (f fakeKeyChanges) ShareSet(context.Context) (*ceremony.ShareSet, error) {
	return &ceremony.ShareSet{}, f.f.err
}

func (f *fakeCeremony) SaveSnapshot(_ context.Context, op ceremony.Operator, withAudit bool, to io.Writer) (*kmspb.SavedSnapshot, error) {
	if _, err := io.WriteString(to, "backup"); err != nil {
		return nil, err
	}
	return &kmspb.SavedSnapshot{Id: fmt.Sprint(op.Name, " ", withAudit)}, nil
}

func (f *fakeCeremony) Members(context.Context) (*kmspb.MembersResponse, error) {
	return &kmspb.MembersResponse{Members: []*kmspb.Member{{NodeId: "n1", Suffrage: "voter"}}}, f.err
}

func (f *fakeCeremony) AddNode(_ context.Context, op ceremony.Operator, _, _ string) error {
	return f.note(op, "add")
}

func (f *fakeCeremony) PromoteNode(_ context.Context, op ceremony.Operator, _ string) error {
	return f.note(op, "promote")
}

func (f *fakeCeremony) RemoveNode(_ context.Context, op ceremony.Operator, _ string) error {
	return f.note(op, "remove")
}

func (f *fakeCeremony) TransferLeadership(_ context.Context, op ceremony.Operator, _ string) error {
	return f.note(op, "transfer")
}

func (f *fakeCeremony) CheckSnapshot(_ context.Context, op ceremony.Operator, from io.Reader) (*kmspb.CheckSnapshotResponse, error) {
	b, err := io.ReadAll(from)
	if err != nil {
		return nil, err
	}
	return &kmspb.CheckSnapshotResponse{Id: fmt.Sprint(op.Name, " ", len(b))}, f.note(op, "check snapshot")
}

func (f *fakeCeremony) UpgradeStatus(context.Context) (*kmspb.UpgradeStatusResponse, error) {
	return &kmspb.UpgradeStatusResponse{Level: 1, To: 2}, f.err
}

func (f *fakeCeremony) FinalizeUpgrade(_ context.Context, op ceremony.Operator) (*kmspb.FinalizeUpgradeResponse, error) {
	return &kmspb.FinalizeUpgradeResponse{Level: 2}, f.note(op, "finalize")
}

func (f *fakeCeremony) PeerUnseal() *kmspb.PeerUnsealState {
	return &kmspb.PeerUnsealState{Agreements: 2}
}

func (f *fakeCeremony) SetPeerUnseal(_ context.Context, op ceremony.Operator, agreements int) (*kmspb.PeerUnsealState, bool, error) {
	return &kmspb.PeerUnsealState{Agreements: uint32(agreements)}, true, f.note(op, "peer unseal")
}

func (f *fakeCeremony) ListSeals() []*kmspb.SealSlot { return []*kmspb.SealSlot{{Name: "file:0"}} }

func (f *fakeCeremony) RemoveSeal(_ context.Context, op ceremony.Operator, name string) error {
	return f.note(op, "remove seal "+name)
}

func (f *fakeCeremony) SetNodeAddress(_ context.Context, op ceremony.Operator, _, _ string) error {
	return f.note(op, "set address")
}

func (f *fakeCeremony) Joining() Joining { return fakeJoining{f} }

type fakeJoining struct{ *fakeCeremony }

func (f fakeJoining) Show() (*joining.Info, error) { return &joining.Info{NodeID: "node-1"}, f.err }

func (f fakeJoining) Import(_ context.Context, op ceremony.Operator, _, _ []byte) error {
	return f.note(op, "import CA")
}

func (f fakeJoining) Remove(_ context.Context, op ceremony.Operator) error {
	return f.note(op, "remove CA")
}

func (f fakeJoining) CreateToken(_ context.Context, op ceremony.Operator, _ joining.TokenParams) (string, time.Time, error) {
	return "token", time.Time{}, f.note(op, "create token")
}

func (f fakeJoining) Authority() ([]byte, error) { return []byte("ca"), nil }

func (f fakeJoining) Join(_ context.Context, in *joining.Request) (*kmspb.JoinClusterResponse, error) {
	if in.RequestID == [16]byte{} || in.SourceIP == "" {
		return nil, errors.New("the request has no id or no source")
	}
	return &kmspb.JoinClusterResponse{NodeId: in.Token + string(in.CSR)}, nil
}

// clock is the real clock with an offset.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// ca issues certificates for tests.
type ca struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t testing.TB, name string) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{t, key, cert}
}

func (c *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

func (c *ca) issue(change func(*x509.Certificate), uris ...string) *tls.Certificate {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			c.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// world is a server with everything that tests need.
type world struct {
	t        testing.TB
	engine   *fakeEngine
	ceremony *fakeCeremony
	clock    *clock
	server   *Server
	addr     string
	ca       *ca // nil in plaintext
	log      *lockedBuffer
	metrics  *prometheus.Registry
	serving  func(bool)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, withTLS bool, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, engine: &fakeEngine{}, ceremony: &fakeCeremony{}, clock: &clock{}, log: &lockedBuffer{}, metrics: prometheus.NewRegistry()}
	var mu sync.Mutex
	serving := true
	w.serving = func(b bool) { mu.Lock(); serving = b; mu.Unlock() }
	cfg := Config{
		Engine: w.engine, Operations: keyengine.Operations(), Ceremony: w.ceremony, Clock: w.clock, Metrics: w.metrics,
		Logger:  slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Serving: func() bool { mu.Lock(); defer mu.Unlock(); return serving },
	}
	if withTLS {
		w.ca = newCA(t, "ours")
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{*w.ca.issue(nil, "conclave://node/n1")}, ClientCAs: w.ca.pool()}
	} else {
		cfg.Plaintext = true
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	budget, err := admission.New(admission.Config{Metrics: w.metrics})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := budget.Listener(inner, admission.Share{Face: "grpc", Sixteenths: 4})
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		w.server.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return w
}

// dial connects, with TLS if the server has it, and with a certificate if one is
// given, which is sent whatever the server requests.
func (w *world) dial(cert *tls.Certificate) *grpc.ClientConn {
	w.t.Helper()
	creds := insecure.NewCredentials()
	if w.ca != nil {
		cfg := &tls.Config{RootCAs: w.ca.pool()}
		if cert != nil {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func timed(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func detailOf(err error) *kmspb.ErrorDetail {
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*kmspb.ErrorDetail); ok {
			return d
		}
	}
	return nil
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
