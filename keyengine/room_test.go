package keyengine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	testAccount = "111122223333"

	testAccountNumber fsm.Account = 111122223333
	testRegion                    = "eu-west-1"
	rootURI                       = "spiffe://test/root"
)

// room is an initialised cluster whose nodes are all unsealed.
type room struct {
	t       testing.TB
	cluster *fakeCluster
	engines map[string]*Engine
	first   *Engine
	root    iam.Identity
	share   string // opens a sealed node
}

func newRoom(t testing.TB, nodes ...string) *room {
	t.Helper()
	return newRoomIn(t, nil, nodes...)
}

// newRoomIn is a room whose cluster serves several Regions; nil for testRegion.
func newRoomIn(t testing.TB, regions []string, nodes ...string) *room {
	t.Helper()
	if len(nodes) == 0 {
		nodes = []string{"n1"}
	}
	r := &room{t: t, cluster: newFakeCluster(t, nodes...), engines: make(map[string]*Engine)}
	for _, n := range nodes {
		r.engines[n] = r.cluster.newEngine(n)
	}
	r.first = r.engines[nodes[0]]
	ctx := context.Background()
	res, err := r.first.Init(ctx, ceremony.Operator{Name: "root"}, ceremony.InitParams{
		Shares: 1, Threshold: 1, Account: testAccount, Region: testRegion, Regions: regions, RootCertificate: rootURI, KeepUnsealed: true,
	})
	if err != nil {
		t.Fatalf("Init: %v", err)
	}
	r.cluster.watch(res.Shares)
	for _, e := range r.engines {
		if e == r.first {
			continue
		}
		if _, err := e.SubmitShare(ctx, ceremony.Operator{Name: "root"}, res.Shares[0]); err != nil {
			t.Fatalf("SubmitShare: %v", err)
		}
	}
	r.root, r.share = r.identity(rootURI), res.Shares[0]
	return r
}

func (r *room) identity(uri string) iam.Identity {
	r.t.Helper()
	id, err := r.first.AuthenticateCertificate(context.Background(), uri)
	if err != nil {
		r.t.Fatalf("authenticating %s: %v", uri, err)
	}
	return id
}

// putSigned is a change that writes a credential with its MAC.
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

// user makes a certificate credential for a principal.
func (r *room) user(arn string) iam.Identity {
	r.t.Helper()
	uri := "spiffe://test/" + arn
	r.cluster.change(putSigned(r.t, r.first, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: arn, Active: true, Created: 1,
	}))
	return r.identity(uri)
}

func (r *room) caller(id iam.Identity) *iam.Caller {
	c := &iam.Caller{Identity: id, Region: testRegion, SourceIP: "192.0.2.1", UserAgent: "test/1", Transport: "aws"}
	_, _ = rand.Read(c.RequestID[:])
	return c
}

// call is one request of the account's root user on the first node.
func call[Out any](r *room, name string, in any) (*Out, error) {
	return callAs[Out](r, r.first, r.root, name, in)
}

func callAs[Out any](r *room, e *Engine, id iam.Identity, name string, in any) (*Out, error) {
	out, err := e.Do(context.Background(), r.caller(id), OperationNamed(name), in)
	if err != nil {
		var told *kmsapi.Error
		if !errors.As(err, &told) {
			r.t.Errorf("%s failed with %T, which no caller may be told: %v", name, err, err)
		}
		if out != nil {
			r.t.Errorf("%s failed and gave %v", name, out)
		}
		return nil, err
	}
	return out.(*Out), nil
}

func must[Out any](r *room, name string, in any) *Out {
	r.t.Helper()
	out, err := call[Out](r, name, in)
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	return out
}

// newKey makes a key and returns its id and ARN.
func (r *room) newKey() (id, arn string) {
	r.t.Helper()
	m := must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata
	return *m.KeyId, *m.Arn
}

func (r *room) keyID(id string) fsm.KeyID {
	b, _, ok := request.ParseKeyID(id)
	if !ok {
		r.t.Fatalf("key id %q", id)
	}
	return fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: b}
}

// mangle changes a key behind the engine's back.
func (r *room) mangle(id string, f func(*fsmpb.Key)) {
	r.t.Helper()
	was, _ := r.cluster.state().Key(r.keyID(id))
	k := cloneOf(was)
	f(k)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
}

// inAWeek is the earliest date for which a deletion can be scheduled.
func (r *room) inAWeek() int64 { return r.cluster.clock.Now().Add(week).UnixNano() }

// doom has a key of a Region be deleted in a week.
func (r *room) doom(region, id string) {
	r.t.Helper()
	r.mangleIn(region, id, func(k *fsmpb.Key) {
		k.State, k.DeletionTime, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, r.inAWeek(), 0
	})
}

// deleteIn makes a key of a Region be gone, a week from now if it is not doomed yet.
func (r *room) deleteIn(region, id string) {
	r.t.Helper()
	if r.keyIn(region, id).State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		r.doom(region, id)
	}
	due := r.keyIn(region, id).DeletionTime
	r.cluster.advance(max(0, time.Duration(due-r.cluster.state().Time())))
	k := r.keyID(id)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(testAccountNumber), Key: k.ID[:], Region: region}}})
}

// lastRecord is the newest audit record, in the clear.
func (r *room) lastRecord() *auditpb.Record {
	r.t.Helper()
	r.cluster.audit.mu.Lock()
	e := r.cluster.audit.entries[len(r.cluster.audit.entries)-1]
	r.cluster.audit.mu.Unlock()
	return r.open(e)
}

func (r *room) open(e auditlog.Entry) *auditpb.Record {
	r.t.Helper()
	b, err := r.first.vault.OpenBody(e)
	if err != nil {
		r.t.Fatalf("opening a record: %v", err)
	}
	rec, err := auditlog.DecodeRecord(b)
	if err != nil {
		r.t.Fatalf("decoding a record: %v", err)
	}
	return rec
}

func (r *room) policyFor(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

const rootStatement = `{"Sid":"root","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + testAccount + `:root"},"Action":"kms:*","Resource":"*"}`

// allow is a statement for a principal that need not exist: it is for putting
// policies into the state directly.
func statement(effect, principal, action string) string {
	return fmt.Sprintf(`{"Effect":%q,"Principal":{"AWS":%q},"Action":%q,"Resource":"*"}`, effect, principal, action)
}

func (r *room) setPolicy(id string, doc string) {
	r.t.Helper()
	k := r.keyID(id)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region, Document: doc}}})
}

// wantError checks code and whole message; a message of "…" takes any.
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

// isAccessKeyID reports whether an id is one that a cluster could have made.
func isAccessKeyID(id string) bool {
	kind, _, ok := accesskey.Parse(id)
	return ok && kind == accesskey.LongTerm
}

// randomID is a request's.
func randomID() (id iam.RequestID) {
	_, _ = rand.Read(id[:])
	return id
}

// scheduleOf is a schedule of its own on an engine, which has looked at nothing yet.
func scheduleOf(e *Engine) *schedule.Schedule {
	return schedule.New(schedule.Config{Services: e.services, Replica: e.replica, Events: e.events})
}

// setClock has an engine read another clock.
func setClock(e *Engine, clock Clock) {
	e.clock, e.services.Clock = clock, clock
}
