package keyengine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/attesttest"
	"github.com/conclavekms/conclave/keyengine/auditevents"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	testAccount       = enginetest.Account
	testAccountNumber = enginetest.AccountNumber
	testRegion        = enginetest.Region
	// rootURI is the URI in the root user's certificate.
	rootURI = "spiffe://test/root"
)

// A testCluster is a cluster whose nodes have engines, in one process. Its log is in memory
// (package enginetest), and the rest is real. This is the usual test:
//
//	func TestDisabledKey(t *testing.T) {
//		t.Parallel()
//		c := newTestCluster(t)
//		id, arn := c.newKey()
//		must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
//		_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
//		wantError(t, err, kmsapi.ErrDisabled, arn+" is disabled.")
//	}
//
// By default there is one node, n1, the cluster is initialised with one share, and all nodes
// are unsealed; see the options below. The functions call and must make a request of the root
// user on n1; callAs and callIn name another node, identity or Region. To change the state
// without a request, use c.Change or the methods in testkeys_test.go. To change it between the
// evaluation of a request and its commit, set BeforeCommit of c.Replica("n1"). A test sees the
// newest audit record with c.lastRecord.
type testCluster struct {
	*enginetest.Cluster
	t       testing.TB
	engines map[string]*Engine // by node
	engine  *Engine            // the engine of n1, which leads
	// initResult has the shares and the root user's access key. It is nil in a cluster that is
	// not initialised.
	initResult *ceremony.InitResult
	root       iam.Identity        // of the root user's certificate
	enclave    *attesttest.Enclave // nil without withEnclave
}

type clusterConfig struct {
	nodes         int
	init          ceremony.InitParams
	uninitialised bool
	enclave       bool
}

type clusterOption func(*clusterConfig)

// withNodes makes a cluster of several nodes: n1, which leads, n2 and so on.
func withNodes(n int) clusterOption { return func(c *clusterConfig) { c.nodes = n } }

// withRegions makes a cluster that serves several Regions. The first must be testRegion.
func withRegions(regions ...string) clusterOption {
	return func(c *clusterConfig) { c.init.Regions = regions }
}

// withShares initialises the cluster as operators do: the nodes are unsealed with threshold
// of the shares, and the root user has only an access key, no certificate: see rootCaller.
func withShares(shares, threshold int) clusterOption {
	return func(c *clusterConfig) { c.init = enginetest.InitParams(shares, threshold) }
}

// uninitialised makes a cluster that is not initialised.
func uninitialised() clusterOption { return func(c *clusterConfig) { c.uninitialised = true } }

// withEnclave has the nodes trust the attestation documents of an enclave.
func withEnclave() clusterOption { return func(c *clusterConfig) { c.enclave = true } }

// newTestCluster returns a cluster, which is closed when the test ends.
func newTestCluster(t testing.TB, options ...clusterOption) *testCluster {
	t.Helper()
	cfg := clusterConfig{nodes: 1, init: enginetest.InitParams(1, 1)}
	cfg.init.RootCertificate, cfg.init.KeepUnsealed = rootURI, true
	for _, o := range options {
		o(&cfg)
	}
	c := &testCluster{Cluster: enginetest.NewCluster(t, cfg.nodes), t: t, engines: make(map[string]*Engine)}
	for i := range cfg.nodes {
		c.startEngine(fmt.Sprintf("n%d", i+1))
	}
	c.engine = c.engines["n1"]
	if cfg.enclave {
		c.trustEnclave()
	}
	if cfg.uninitialised {
		return c
	}
	c.initResult = nodeOf(c.engine).Initialise(cfg.init)
	for _, e := range c.engines {
		if e.Sealed() {
			nodeOf(e).Unseal(c.initResult.Shares...)
		}
	}
	if cfg.init.RootCertificate != "" {
		c.root = c.identity(cfg.init.RootCertificate)
	}
	return c
}

// startEngine starts a sealed engine on a node. It takes the place of the one that the node
// has already, as after a restart.
func (c *testCluster) startEngine(node string) *Engine {
	c.t.Helper()
	r := c.Replica(node)
	e, err := New(Config{NodeID: node, Replica: r, Audit: c.Audit, Clock: c.Clock, AllowUnlockedMemory: true})
	if err != nil {
		c.t.Fatalf("starting an engine: %v", err)
	}
	r.OnApply, r.Serve = e.OnApply, e.ServeForwarded
	c.engines[node] = e
	c.t.Cleanup(func() {
		c.listed(e)
		r.OnApply, r.Serve = nil, nil
		if err := e.Close(); err != nil {
			c.t.Errorf("closing the engine: %v", err)
		}
	})
	return e
}

// listed checks that the records of a log are as the list of package auditevents says, as far as
// an engine can open them.
func (c *testCluster) listed(e *Engine) {
	if e.Sealed() {
		return
	}
	for _, entry := range c.Audit.Entries() {
		b, err := e.vault.OpenBody(entry)
		if err != nil {
			continue // it is of the test itself
		}
		rec, err := auditlog.DecodeRecord(b)
		if err == nil {
			err = auditevents.Check(rec)
		}
		if err != nil {
			c.t.Errorf("record %d: %v", entry.Index, err)
		}
	}
}

// trustEnclave makes an enclave whose attestation documents all engines trust.
func (c *testCluster) trustEnclave() {
	c.t.Helper()
	var err error
	if c.enclave, err = attesttest.NewEnclave(c.Clock.Now()); err != nil {
		c.t.Fatal(err)
	}
	roots, err := ParseAttestationRoots(c.enclave.Root().PEM())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range c.engines {
		e.services.AttestationRoots = roots
	}
}

// nodeOf returns the parts of an engine as a Node, for its methods.
func nodeOf(e *Engine) *enginetest.Node {
	r := e.replica.(*enginetest.Replica)
	return &enginetest.Node{
		Ceremonies: e.Ceremonies, Authenticator: e.Authenticator, Cluster: r.Cluster(), Replica: r, Vault: e.vault, Events: e.events, Services: e.services,
	}
}

// newSchedule returns a new schedule for a node.
func newSchedule(e *Engine) *schedule.Schedule {
	return schedule.New(schedule.Config{Services: e.services, Replica: e.replica, Events: e.events})
}

// setClock gives an engine another clock than the others.
func setClock(e *Engine, clock Clock) {
	e.clock, e.services.Clock = clock, clock
}

// identity authenticates with a certificate.
func (c *testCluster) identity(uri string) iam.Identity {
	c.t.Helper()
	id, err := c.engine.AuthenticateCertificate(c.t.Context(), iam.Certificate{URI: uri})
	if err != nil {
		c.t.Fatalf("authenticating %s: %v", uri, err)
	}
	return id
}

// putSigned returns the change that writes a credential with its MAC.
func putSigned(t testing.TB, e *Engine, c *fsmpb.Credential) *fsmpb.Change {
	t.Helper()
	o, err := e.vault.Current()
	if err == nil {
		err = o.SignCredential(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}}
}

// newUser returns an identity of a principal, which it makes if it does not exist. Sessions of
// roles have temporary credentials, and all others, services among them, have a certificate.
func (c *testCluster) newUser(arn string) iam.Identity {
	c.t.Helper()
	uri, account, principal := "spiffe://test/"+arn, testAccountNumber, arn
	if p, err := policy.ParsePrincipal(arn); err == nil {
		account, _ = fsm.ParseAccount(p.Account)
		if !fsm.AccountExists(c.State(), account) {
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: &fsmpb.Account{Account: uint64(account), Name: account.String(), Created: 1}}})
		}
		switch p.Kind {
		case policy.KindUser:
			c.exist(arn)
			principal = c.idOf(p)
		case policy.KindAssumedRole:
			c.exist(arn)
			return c.newSession(p.Name, func(s *iampb.Session) { s.Account, s.Role, s.Name = uint64(account), c.idOf(p), p.SessionName() })
		}
	}
	c.Change(putSigned(c.t, c.engine, &fsmpb.Credential{
		Account: uint64(account), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: principal, Active: true, Created: 1,
	}))
	return c.identity(uri)
}

// caller returns the caller of a new request.
func (c *testCluster) caller(id iam.Identity) *iam.Caller {
	return &iam.Caller{Identity: id, Region: testRegion, SourceIP: "192.0.2.1", UserAgent: "test/1", Transport: "aws", RequestID: randomID()}
}

// randomID returns a new request id.
func randomID() (id iam.RequestID) {
	_, _ = rand.Read(id[:])
	return id
}

// call makes a request of the root user on n1.
func call[Out any](c *testCluster, name string, in any) (*Out, error) {
	return callAs[Out](c, c.engine, c.root, name, in)
}

// callAs makes a request of an identity on a node.
func callAs[Out any](c *testCluster, e *Engine, id iam.Identity, name string, in any) (*Out, error) {
	return callFor[Out](c, e, c.caller(id), name, in)
}

// callIn makes a request of the root user on n1 for a Region.
func callIn[Out any](c *testCluster, region, name string, in any) (*Out, error) {
	caller := c.caller(c.root)
	caller.Region = region
	return callFor[Out](c, c.engine, caller, name, in)
}

// operationNamed returns the operation with a name, which no two services have.
func operationNamed(name string) *Operation {
	return cmp.Or(OperationNamed(KMS, name), OperationNamed(IAM, name), OperationNamed(STS, name), OperationNamed(CloudTrail, name))
}

func callFor[Out any](c *testCluster, e *Engine, caller *iam.Caller, name string, in any) (*Out, error) {
	out, err := e.Do(context.Background(), caller, operationNamed(name), in)
	if err != nil {
		var answer *kmsapi.Error
		if !errors.As(err, &answer) {
			c.t.Errorf("%s failed with a %T, want an error that callers may see: %v", name, err, err)
		}
		if out != nil {
			c.t.Errorf("%s failed and returned %v", name, out)
		}
		return nil, err
	}
	return out.(*Out), nil
}

// must is call for a request that has to succeed.
func must[Out any](c *testCluster, name string, in any) *Out {
	c.t.Helper()
	out, err := call[Out](c, name, in)
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return out
}

// mustIn is callIn for a request that has to succeed.
func mustIn[Out any](c *testCluster, region, name string, in any) *Out {
	c.t.Helper()
	out, err := callIn[Out](c, region, name, in)
	if err != nil {
		c.t.Fatalf("%s in %s: %v", name, region, err)
	}
	return out
}

// wantError checks the code and the whole message of an error. The message "…" stands for
// any.
func wantError(t testing.TB, err error, kind *kmsapi.Error, message string) {
	t.Helper()
	var got *kmsapi.Error
	if !errors.As(err, &got) {
		t.Errorf("got error %v, want %s", err, kind.Code)
		return
	}
	if got.Code != kind.Code || message != "…" && got.Message != message {
		t.Errorf("got  %s: %s\nwant %s: %s", got.Code, got.Message, kind.Code, message)
	}
}

// lastRecord returns the newest audit record.
func (c *testCluster) lastRecord() *auditpb.Record {
	c.t.Helper()
	return enginetest.OpenRecord(c.t, c.engine.vault, c.Audit.Last())
}

// countRecords returns the number of audit records of an event that succeeded.
func (c *testCluster) countRecords(event string) (n int) {
	c.t.Helper()
	for _, name := range enginetest.EventNames(nodeOf(c.engine).Records()) {
		if name == event {
			n++
		}
	}
	return n
}

// allowManyRefusals lifts the limit on refusals that n1 makes for one principal.
func (c *testCluster) allowManyRefusals() {
	c.engine.limits = newLimits(Config{Clock: c.Clock, RefusalBurst: 1 << 20})
}

// acceptAnyRegion has the cluster accept requests for any Region.
func (c *testCluster) acceptAnyRegion() {
	c.t.Helper()
	cluster, _ := c.State().Cluster()
	cluster = proto.CloneOf(cluster)
	cluster.AnyRegion = true
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: cluster}})
}
