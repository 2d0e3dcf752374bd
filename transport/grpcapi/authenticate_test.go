package grpcapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestWhoMayCall is the matrix of credentials and calls, and whether they are
// accepted.
func TestWhoMayCall(t *testing.T) {
	w := start(t, true, nil)
	foreign := newCA(t, "ours") // of the same name, with another key
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	serverOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	alice := w.ca.issue(nil, "conclave://operator/alice")

	const ok = codes.OK
	const none = codes.Unavailable // the connection is refused
	for _, c := range []struct {
		name     string
		cert     *tls.Certificate
		token    string
		keys     codes.Code // calls on keys
		operates codes.Code // calls of operators
	}{
		{"nothing", nil, "", codes.Unauthenticated, codes.PermissionDenied},
		{"token", nil, "Bearer good", ok, codes.PermissionDenied},
		{"token, scheme in lower case", nil, "bearer good", ok, codes.PermissionDenied},
		{"wrong token", nil, "Bearer bad", codes.Unauthenticated, codes.PermissionDenied},
		{"expired token", nil, "Bearer expired", codes.Unauthenticated, codes.PermissionDenied},
		{"another scheme", nil, "Basic good", codes.Unauthenticated, codes.PermissionDenied},
		{"token without scheme", nil, "good", codes.Unauthenticated, codes.PermissionDenied},
		{"empty token", nil, "Bearer ", codes.Unauthenticated, codes.PermissionDenied},
		{"long token", nil, "Bearer " + strings.Repeat("g", maxAuthorization), codes.Unauthenticated, codes.PermissionDenied},
		{"operator who is a principal", alice, "", ok, ok},
		{"operator who is not", w.ca.issue(nil, "conclave://operator/bob"), "", codes.Unauthenticated, ok},
		{"operator with a wrong token", alice, "Bearer bad", codes.Unauthenticated, ok},
		{"node", w.ca.issue(nil, "conclave://node/n1"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"node with a token", w.ca.issue(nil, "conclave://node/n1"), "Bearer good", ok, codes.PermissionDenied},
		{"certificate without a name", w.ca.issue(nil), "", codes.Unauthenticated, codes.PermissionDenied},
		{"certificate of two names", w.ca.issue(nil, "conclave://operator/alice", "conclave://node/n1"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"name with a path", w.ca.issue(nil, "conclave://operator/alice/x"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"name with a query", w.ca.issue(nil, "conclave://operator/alice?x"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"escaped name", w.ca.issue(nil, "conclave://operator/%61lice"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"empty name", w.ca.issue(nil, "conclave://operator/"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"another case", w.ca.issue(nil, "conclave://OPERATOR/alice"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"another scheme of URI", w.ca.issue(nil, "spiffe://operator/alice"), "", codes.Unauthenticated, codes.PermissionDenied},
		{"name as DNS name only", w.ca.issue(func(c *x509.Certificate) { c.DNSNames = []string{"conclave://operator/alice"} }), "", codes.Unauthenticated, codes.PermissionDenied},
		{"foreign CA", foreign.issue(nil, "conclave://operator/alice"), "", none, none},
		{"expired certificate", w.ca.issue(expired, "conclave://operator/alice"), "", none, none},
		{"certificate for servers only", w.ca.issue(serverOnly, "conclave://operator/alice"), "", none, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := w.dial(c.cert)
			ctx := timed(t)
			if c.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", c.token)
			}
			before := w.engine.count()
			_, err := kmspb.NewKMSClient(conn).ListKeys(ctx, &kmspb.ListKeysRequest{})
			if got := status.Code(err); got != c.keys {
				t.Errorf("ListKeys: %v, want %v", err, c.keys)
			}
			if made := w.engine.count() > before; made != (c.keys == ok) {
				t.Errorf("the engine was called: %v", made)
			}
			ss, err := kmspb.NewAuditClient(conn).Read(ctx, &kmspb.ReadAuditRequest{})
			if err == nil {
				_, err = ss.Recv()
			}
			reads := c.keys
			if reads == ok {
				reads = codes.Internal // the fake engine's log cannot be opened
			}
			if got := status.Code(err); got != reads {
				t.Errorf("Read: %v, want %v", err, reads)
			}
			for name, call := range credentialCalls(conn) {
				before := w.engine.count()
				if err := call(ctx); status.Code(err) != c.keys {
					t.Errorf("%s: %v, want %v", name, err, c.keys)
				}
				if made := w.engine.count() > before; made != (c.keys == ok) {
					t.Errorf("%s: the engine was called: %v", name, made)
				}
			}
			for name, call := range operatorCalls(conn) {
				done := len(w.ceremony.done)
				err := call(ctx)
				if got := status.Code(err); got != c.operates {
					t.Errorf("%s: %v, want %v", name, err, c.operates)
				}
				if acted := len(w.ceremony.done) > done; acted && c.operates != ok {
					t.Errorf("%s was done for %s", name, c.name)
				}
			}
		})
	}
	for _, line := range w.ceremony.done {
		if !strings.HasPrefix(line, "conclave://operator/alice ") && !strings.HasPrefix(line, "conclave://operator/bob ") {
			t.Errorf("done: %s", line)
		}
	}
	if !slices.Contains(w.ceremony.done, "conclave://operator/alice init") {
		t.Errorf("done: %v", w.ceremony.done)
	}
	if log := w.log.String(); strings.Contains(log, "Bearer") || strings.Contains(log, "bad ") {
		t.Errorf("a token is in the log:\n%s", log)
	}
}

func credentialCalls(conn *grpc.ClientConn) map[string]func(context.Context) error {
	c := kmspb.NewCredentialsClient(conn)
	return map[string]func(context.Context) error{
		"List": func(ctx context.Context) error { _, err := c.List(ctx, &kmspb.ListCredentialsRequest{}); return err },
		"CreateAccessKey": func(ctx context.Context) error {
			_, err := c.CreateAccessKey(ctx, &kmspb.CreateAccessKeyRequest{})
			return err
		},
		"Delete": func(ctx context.Context) error { _, err := c.Delete(ctx, &kmspb.DeleteCredentialRequest{}); return err },
		"RevokeSessions": func(ctx context.Context) error {
			_, err := c.RevokeSessions(ctx, &kmspb.RevokeSessionsRequest{})
			return err
		},
	}
}

func operatorCalls(conn *grpc.ClientConn) map[string]func(context.Context) error {
	op, cl := kmspb.NewOperatorClient(conn), kmspb.NewClusterClient(conn)
	return map[string]func(context.Context) error{
		"Init": func(ctx context.Context) error {
			_, err := op.Init(ctx, &kmspb.InitRequest{AnswerKey: []byte("key")})
			return err
		},
		"Challenge": func(ctx context.Context) error {
			_, err := op.Challenge(ctx, &kmspb.ChallengeRequest{})
			return err
		},
		"SubmitShare": func(ctx context.Context) error {
			_, err := op.SubmitShare(ctx, &kmspb.SubmitShareRequest{})
			return err
		},
		"ResetShares": func(ctx context.Context) error {
			_, err := op.ResetShares(ctx, &kmspb.ResetSharesRequest{})
			return err
		},
		"Seal": func(ctx context.Context) error { _, err := op.Seal(ctx, &kmspb.SealRequest{}); return err },
		"ConfirmTime": func(ctx context.Context) error {
			_, err := op.ConfirmTime(ctx, &kmspb.ConfirmTimeRequest{})
			return err
		},
		"InstallCRL": func(ctx context.Context) error {
			_, err := op.InstallCRL(ctx, &kmspb.InstallCRLRequest{})
			return err
		},
		"BeginBreakGlass": func(ctx context.Context) error {
			_, err := op.BeginBreakGlass(ctx, &kmspb.BeginBreakGlassRequest{})
			return err
		},
		"GetBreakGlass": func(ctx context.Context) error {
			_, err := op.GetBreakGlass(ctx, &kmspb.GetBreakGlassRequest{})
			return err
		},
		"SubmitBreakGlassShare": func(ctx context.Context) error {
			_, err := op.SubmitBreakGlassShare(ctx, &kmspb.SubmitBreakGlassShareRequest{})
			return err
		},
		"CancelBreakGlass": func(ctx context.Context) error {
			_, err := op.CancelBreakGlass(ctx, &kmspb.CancelBreakGlassRequest{})
			return err
		},
		"NameCustodians": func(ctx context.Context) error {
			_, err := op.NameCustodians(ctx, &kmspb.NameCustodiansRequest{})
			return err
		},
		"BeginKeyChange": func(ctx context.Context) error {
			_, err := op.BeginKeyChange(ctx, &kmspb.BeginKeyChangeRequest{Kind: kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY})
			return err
		},
		"GetKeyChange": func(ctx context.Context) error {
			_, err := op.GetKeyChange(ctx, &kmspb.GetKeyChangeRequest{})
			return err
		},
		"SubmitKeyChangeShare": func(ctx context.Context) error {
			_, err := op.SubmitKeyChangeShare(ctx, &kmspb.SubmitKeyChangeShareRequest{})
			return err
		},
		"GetNewShares": func(ctx context.Context) error {
			_, err := op.GetNewShares(ctx, &kmspb.GetNewSharesRequest{})
			return err
		},
		"CancelKeyChange": func(ctx context.Context) error {
			_, err := op.CancelKeyChange(ctx, &kmspb.CancelKeyChangeRequest{})
			return err
		},
		"GetShareSet": func(ctx context.Context) error {
			_, err := op.GetShareSet(ctx, &kmspb.GetShareSetRequest{})
			return err
		},
		"UpgradeStatus": func(ctx context.Context) error {
			_, err := cl.UpgradeStatus(ctx, &kmspb.UpgradeStatusRequest{})
			return err
		},
		"FinalizeUpgrade": func(ctx context.Context) error {
			_, err := cl.FinalizeUpgrade(ctx, &kmspb.FinalizeUpgradeRequest{})
			return err
		},
		"ListSeals": func(ctx context.Context) error {
			_, err := cl.ListSeals(ctx, &kmspb.ListSealsRequest{})
			return err
		},
		"RemoveSeal": func(ctx context.Context) error {
			_, err := cl.RemoveSeal(ctx, &kmspb.RemoveSealRequest{Name: "file:0"})
			return err
		},
		"SetNodeAddress": func(ctx context.Context) error {
			_, err := cl.SetNodeAddress(ctx, &kmspb.SetNodeAddressRequest{})
			return err
		},
		"GetNodeCA": func(ctx context.Context) error {
			_, err := cl.GetNodeCA(ctx, &kmspb.GetNodeCARequest{})
			return err
		},
		"ImportNodeCA": func(ctx context.Context) error {
			_, err := cl.ImportNodeCA(ctx, &kmspb.ImportNodeCARequest{})
			return err
		},
		"RemoveNodeCA": func(ctx context.Context) error {
			_, err := cl.RemoveNodeCA(ctx, &kmspb.RemoveNodeCARequest{})
			return err
		},
		"CreateJoinToken": func(ctx context.Context) error {
			_, err := cl.CreateJoinToken(ctx, &kmspb.CreateJoinTokenRequest{})
			return err
		},
		"GetPeerUnseal": func(ctx context.Context) error {
			_, err := cl.GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
			return err
		},
		"SetPeerUnseal": func(ctx context.Context) error {
			_, err := cl.SetPeerUnseal(ctx, &kmspb.SetPeerUnsealRequest{Agreements: 1})
			return err
		},
		"SaveSnapshot": func(ctx context.Context) error {
			ss, err := op.SaveSnapshot(ctx, &kmspb.SaveSnapshotRequest{})
			if err != nil {
				return err
			}
			_, err = ss.Recv()
			return err
		},
		"AddNode": func(ctx context.Context) error {
			_, err := cl.AddNode(ctx, &kmspb.AddNodeRequest{})
			return err
		},
		"PromoteNode": func(ctx context.Context) error {
			_, err := cl.PromoteNode(ctx, &kmspb.PromoteNodeRequest{})
			return err
		},
		"RemoveNode": func(ctx context.Context) error {
			_, err := cl.RemoveNode(ctx, &kmspb.RemoveNodeRequest{})
			return err
		},
		"TransferLeadership": func(ctx context.Context) error {
			_, err := cl.TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{})
			return err
		},
		"CheckSnapshot": func(ctx context.Context) error {
			ss, err := op.CheckSnapshot(ctx)
			if err != nil {
				return err
			}
			for range 3 {
				if err := ss.Send(&kmspb.CheckSnapshotRequest{Data: []byte("backup")}); err != nil {
					break // the answer says why
				}
			}
			_, err = ss.CloseAndRecv()
			return err
		},
		"Members": func(ctx context.Context) error { _, err := cl.Members(ctx, &kmspb.MembersRequest{}); return err },
	}
}

// TestOperatorCallsAreAllTried: all calls of the API must be in the matrix.
func TestOperatorCallsAreAllTried(t *testing.T) {
	calls := operatorCalls(nil)
	maps.Copy(calls, credentialCalls(nil))
	for _, s := range []string{"Operator", "Cluster", "Credentials"} {
		ms := kmspb.File_transport_kmspb_operator_proto.Services().ByName(protoName(s)).Methods()
		for i := range ms.Len() {
			name := string(ms.Get(i).Name())
			if _, ok := calls[name]; !ok && name != "Status" {
				t.Errorf("%s.%s is not tried", s, name)
			}
		}
	}
}

// TestStrangersMayJoin: a machine that joins has no certificate yet. Its token is not looked at
// here.
func TestStrangersMayJoin(t *testing.T) {
	w := start(t, false, nil)
	c := kmspb.NewJoiningClient(w.dial(nil))
	ca, err := c.GetJoinAuthority(timed(t), &kmspb.GetJoinAuthorityRequest{})
	if err != nil || string(ca.GetCertificate()) != "ca" {
		t.Errorf("got %v, %v", ca, err)
	}
	res, err := c.JoinCluster(timed(t), &kmspb.JoinClusterRequest{Token: "token ", Csr: []byte("csr")})
	if err != nil || res.GetNodeId() != "token csr" {
		t.Errorf("got %v, %v", res, err)
	}
	if len(w.ceremony.done) > 0 {
		t.Errorf("done: %v", w.ceremony.done)
	}
}

func TestEveryOperationNeedsACaller(t *testing.T) {
	w := start(t, false, nil)
	conn := w.dial(nil)
	for _, m := range methods(t) {
		req := m.request.New().Interface()
		err := conn.Invoke(timed(t), m.path(), req, newResponse(m))
		if m.op.Unsigned {
			if err != nil || w.engine.caller.Identity != (iam.Identity{}) {
				t.Errorf("%s without proof: %v", m.op.Name, err)
			}
		} else if status.Code(err) != codes.Unauthenticated || detailOf(err).GetType() != "MissingAuthenticationTokenException" {
			t.Errorf("%s without proof: %v", m.op.Name, err)
		}
		if err := conn.Invoke(withToken(timed(t), "good"), m.path(), req, newResponse(m)); err != nil {
			t.Errorf("%s: %v", m.op.Name, err)
		}
		if w.engine.op != m.op.Name || w.engine.caller.Identity.Credential() != "AKIA" {
			t.Errorf("%s was carried out as %s of %+v", m.op.Name, w.engine.op, w.engine.caller)
		}
	}
}

// TestWebIdentity: a call whose input proves who calls needs no other proof. It keeps its place
// among strangers while it is worked on, so that it takes none from clients and can be evicted.
// A proof that is there must be valid.
func TestWebIdentity(t *testing.T) {
	w := start(t, true, nil)
	in := &iampb.AssumeRoleWithWebIdentityRequest{RoleArn: new("arn"), RoleSessionName: new("me"), WebIdentityToken: new("token")}
	var calls, strangers int64
	w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		calls, strangers = w.server.api.Calls.Inside(), w.server.api.Strangers.Used()
		return &iamapi.AssumeRoleWithWebIdentityOutput{Credentials: &iamapi.Credentials{SessionToken: new("session")}}, nil
	}
	out, err := iampb.NewSTSClient(w.dial(nil)).AssumeRoleWithWebIdentity(timed(t), in)
	if err != nil || out.GetCredentials().GetSessionToken() != "session" {
		t.Fatalf("got %v, %v", out, err)
	}
	got, _ := w.engine.in.(*iamapi.AssumeRoleWithWebIdentityInput)
	if got == nil || *got.WebIdentityToken != "token" || w.engine.caller.Identity != (iam.Identity{}) {
		t.Errorf("decoded %+v of %+v", got, w.engine.caller)
	}
	if calls != 0 || strangers != 1 {
		t.Errorf("it took %d places of clients and %d of strangers", calls, strangers)
	}
	eventually(t, "the place is given back", func() bool { return w.server.api.Strangers.Used() == 0 })
	before := w.engine.count()
	if _, err := iampb.NewSTSClient(w.dial(nil)).AssumeRoleWithWebIdentity(withToken(timed(t), "bad"), in); status.Code(err) != codes.Unauthenticated {
		t.Errorf("with a bad token: %v", err)
	}
	stranger := w.ca.issue(nil, "conclave://operator/mallory")
	if _, err := iampb.NewSTSClient(w.dial(stranger)).AssumeRoleWithWebIdentity(timed(t), in); status.Code(err) != codes.Unauthenticated {
		t.Errorf("with a certificate of nobody: %v", err)
	}
	if w.engine.count() != before {
		t.Error("a call with a bad proof reached the engine")
	}
}

// TestErrorsOfIAM: an error of IAM has a code of gRPC's and AWS's name.
func TestErrorsOfIAM(t *testing.T) {
	w := start(t, false, nil)
	client := iampb.NewIAMClient(w.dial(nil))
	for kind, code := range map[*kmsapi.Error]codes.Code{
		iamapi.ErrNoSuchEntity: codes.NotFound, iamapi.ErrEntityAlreadyExists: codes.AlreadyExists, iamapi.ErrLimitExceeded: codes.ResourceExhausted,
		iamapi.ErrDeleteConflict: codes.FailedPrecondition, iamapi.ErrMalformedPolicyDocument: codes.InvalidArgument, kmsapi.ErrAccessDenied: codes.PermissionDenied,
	} {
		w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
			return nil, kmsapi.Errorf(kind, "said why")
		}
		_, err := client.GetUser(withToken(timed(t), "good"), &iampb.GetUserRequest{})
		if status.Code(err) != code || detailOf(err).GetType() != string(kind.Code) || detailOf(err).GetMessage() != "said why" {
			t.Errorf("%s: got %v", kind.Code, err)
		}
	}
}

// TestUnverifiedCertificate: it is refused even if the TLS configuration should
// ever let one through.
func TestUnverifiedCertificate(t *testing.T) {
	c := newCA(t, "x").issue(nil, "conclave://operator/alice")
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	for _, verified := range []bool{false, true} {
		if verified {
			state.VerifiedChains = [][]*x509.Certificate{{leaf}}
		}
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, AuthInfo: authInfo{AuthInfo: credentials.TLSInfo{State: state}}})
		if got := connectionOf(ctx).leaf != nil; got != verified {
			t.Errorf("verified %v: believed %v", verified, got)
		}
	}
}

func TestTwoTokensAreNone(t *testing.T) {
	w := start(t, false, nil)
	_, err := kmspb.NewKMSClient(w.dial(nil)).ListKeys(withToken(withToken(timed(t), "good"), "good"), &kmspb.ListKeysRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

// TestCertificateExpiresWhileConnected: a certificate is refused once it has
// expired, even if the handshake was before.
func TestCertificateExpiresWhileConnected(t *testing.T) {
	w := start(t, true, nil)
	conn, workload := w.dial(w.ca.issue(nil, "conclave://operator/alice")), w.dial(w.ca.issue(nil, "spiffe://example.org/web"))
	call := func(conn *grpc.ClientConn) error {
		_, err := kmspb.NewKMSClient(conn).ListKeys(timed(t), &kmspb.ListKeysRequest{})
		return err
	}
	for _, c := range []*grpc.ClientConn{conn, workload} {
		if err := call(c); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.turn(2 * time.Hour)
	for _, c := range []*grpc.ClientConn{conn, workload} {
		if err := call(c); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v", err)
		}
	}
	if _, err := kmspb.NewOperatorClient(conn).Seal(timed(t), &kmspb.SealRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

func TestLoopbackOperators(t *testing.T) {
	w := start(t, false, func(c *Config) { c.LoopbackOperators = true })
	for name, call := range operatorCalls(w.dial(nil)) {
		if err := call(timed(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !slices.Contains(w.ceremony.done, "root seal") {
		t.Errorf("done: %v", w.ceremony.done)
	}
	// Not unless it is configured.
	w = start(t, false, nil)
	for name, call := range operatorCalls(w.dial(nil)) {
		if err := call(timed(t)); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{Engine: &fakeEngine{}, Operations: keyengine.Operations(), Ceremony: &fakeCeremony{}, Clock: &clock{}, Serving: func() bool { return true }, Plaintext: true}
	}
	for name, change := range map[string]func(*Config){
		"neither TLS nor Plaintext":  func(c *Config) { c.Plaintext = false },
		"both":                       func(c *Config) { c.TLS = &tls.Config{} },
		"loopback operators and TLS": func(c *Config) { c.TLS, c.Plaintext, c.LoopbackOperators = &tls.Config{}, false, true },
		"no engine":                  func(c *Config) { c.Engine = nil },
		"no operations":              func(c *Config) { c.Operations = nil },
		"no ceremony":                func(c *Config) { c.Ceremony = nil },
		"no word about serving":      func(c *Config) { c.Serving = nil },
		"no clock":                   func(c *Config) { c.Clock = nil },
	} {
		cfg := good()
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}

// TestTLSIsHardened: the settings hold for every configuration, even one that
// is chosen for each connection.
func TestTLSIsHardened(t *testing.T) {
	inner := &tls.Config{MinVersion: tls.VersionTLS10, ClientAuth: tls.RequestClientCert}
	cfg := hardened(&tls.Config{ClientAuth: tls.NoClientCert, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }})
	chosen, err := cfg.GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*tls.Config{cfg, chosen} {
		if c.MinVersion != tls.VersionTLS13 || c.ClientAuth != tls.VerifyClientCertIfGiven || c.ClientCAs == nil || !c.SessionTicketsDisabled || !slices.Contains(c.NextProtos, "h2") {
			t.Errorf("got %+v", c)
		}
	}
	if inner.MinVersion != tls.VersionTLS10 {
		t.Error("the configuration given was changed")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := start(t, true, nil)
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.ca.pool(), MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	if err == nil {
		conn.Close()
		t.Error("TLS 1.2 is taken")
	}
}

// Metadata says where a call comes from only if a trusted proxy sends it.
func TestForwardedCalls(t *testing.T) {
	for _, tt := range []struct{ trusted, want string }{{"127.0.0.0/8", "203.0.113.9"}, {"192.0.2.0/24", "127.0.0.1"}} {
		w := start(t, true, func(c *Config) {
			var err error
			if c.Proxies, err = transport.ParseProxies([]string{tt.trusted}); err != nil {
				t.Fatal(err)
			}
		})
		ctx := metadata.AppendToOutgoingContext(withToken(timed(t), "good"), "x-forwarded-for", "198.51.100.1", "x-forwarded-for", "203.0.113.9, 127.0.0.7")
		if _, err := kmspb.NewKMSClient(w.dial(nil)).EnableKey(ctx, &kmspb.EnableKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := w.engine.caller.SourceIP; got != tt.want {
			t.Errorf("with %s trusted: got source %s, want %s", tt.trusted, got, tt.want)
		}
	}
}

func TestWhatTheEngineIsTold(t *testing.T) {
	w := start(t, true, nil)
	ctx := metadata.AppendToOutgoingContext(withToken(timed(t), "good"), "x-conclave-region", "eu-west-1")
	var header metadata.MD
	if _, err := kmspb.NewKMSClient(w.dial(nil)).EnableKey(ctx, &kmspb.EnableKeyRequest{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	c := w.engine.caller
	if c.Region != "eu-west-1" || c.SourceIP != "127.0.0.1" || c.Transport != "grpc" || !strings.HasPrefix(c.UserAgent, "grpc-go/") ||
		c.TLS.Version != "TLSv1.3" || !strings.HasPrefix(c.TLS.Cipher, "TLS_") {
		t.Errorf("caller: %+v", c)
	}
	if got, want := header.Get("x-conclave-request-id"), formatID(c.RequestID); len(got) != 1 || got[0] != want {
		t.Errorf("request ids %q, want %q", got, want)
	}
	// The header with another Region is checked.
	for _, bad := range []string{"", "EU", "eu_west", "a/b", strings.Repeat("a", 65), "eu west"} {
		ctx := metadata.AppendToOutgoingContext(withToken(timed(t), "good"), "x-conclave-region", bad)
		if _, err := kmspb.NewKMSClient(w.dial(nil)).EnableKey(ctx, &kmspb.EnableKeyRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("region %q: %v", bad, err)
		}
	}
}

// TestStrangersLearnLittle calls Status without a certificate.
func TestStrangersLearnLittle(t *testing.T) {
	w := start(t, true, nil)
	got, err := kmspb.NewOperatorClient(w.dial(nil)).Status(timed(t), &kmspb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &kmspb.StatusResponse{HasLeader: true, Seal: &kmspb.SealState{Initialised: true, Sealed: true, Threshold: 3, Shares: 5, Progress: 2}}
	diffProto(t, want, got)
	got, err = kmspb.NewOperatorClient(w.dial(w.ca.issue(nil, "conclave://operator/bob"))).Status(timed(t), &kmspb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetNodeId() != "n1" || len(got.GetFaults()) != 1 {
		t.Errorf("an operator is told %v", got)
	}
}

// TestSourceAddress: the address of a connection is that of its text form.
func TestSourceAddress(t *testing.T) {
	w := start(t, false, nil)
	for _, a := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4567},
		&net.TCPAddr{IP: net.IP{10, 1, 2, 3}, Port: 4567},
		&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443},
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 443},
		&net.UnixAddr{Name: "@", Net: "unix"},
	} {
		ctx, err := w.server.gates.enter(peer.NewContext(t.Context(), &peer.Peer{Addr: a}), &tap.Info{})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := callOf(ctx).SourceIP, transport.SourceIP(a.String()); got != want {
			t.Errorf("%v: got %q, want %q", a, got, want)
		}
	}
}
