package keyengine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	auditverify "github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func rootCaller(t testing.TB, e *Engine, res *ceremony.InitResult) *iam.Caller {
	t.Helper()
	id, err := e.AuthenticateSigV4(t.Context(), enginetest.SigV4Proof(res, testRegion, "text"))
	if err != nil {
		t.Fatal(err)
	}
	return &iam.Caller{Identity: id, RequestID: randomID(), SourceIP: "192.0.2.1", UserAgent: "test", Transport: "grpc"}
}

func TestReadAudit(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 1)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for want := uint64(1); ; want++ {
		index, line, err := r.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var rec struct{ EventName string }
		if err := json.Unmarshal(line, &rec); err != nil || index != want || bytes.ContainsAny(line, "\r\n") {
			t.Errorf("got record %d, want %d, on one line: %s (%v)", index, want, line, err)
		}
		got = append(got, rec.EventName)
	}
	if len(got) != 4 || got[0] != "SubmitShare" || got[3] != "ReadAudit" {
		t.Errorf("read events %v, want 4, from SubmitShare to ReadAudit", got)
	}
	if _, _, err := r.Next(t.Context()); err != io.EOF {
		t.Errorf("Next after the end: got error %v, want io.EOF", err)
	}
	if n := c.Audit.Size(); n != 5 {
		t.Errorf("the log has %d records, want 5: reading is recorded once", n)
	}
}

// Only users of the cluster's account with permission read the audit log, and refusals are
// recorded.
func TestReadAuditNeedsPermission(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e := c.engine
	other := testAccountNumber + 1
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: &fsmpb.Account{Account: uint64(other), Name: "other", Created: 1}}})
	c.Change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://client/ann", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Active: true, Principal: "arn:aws:iam::111122223333:user/ann",
	}), putSigned(t, e, &fsmpb.Credential{
		Account: uint64(other), Id: "conclave://client/other", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Active: true, Principal: "arn:aws:iam::" + other.String() + ":root",
	}))
	for _, uri := range []string{"conclave://client/ann", "conclave://client/other"} {
		id, err := e.AuthenticateCertificate(t.Context(), iam.Certificate{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		before := c.Audit.Size()
		_, err = e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0)
		if code, _ := record.Outcome(err); code != string(kmsapi.ErrAccessDenied.Code) {
			t.Errorf("%s: got error %v, want AccessDeniedException", uri, err)
		}
		recs := nodeOf(e).Records()
		if r := recs[len(recs)-1]; c.Audit.Size() != before+1 || r.EventName != "ReadAudit" || r.ErrorCode != "AccessDeniedException" || r.Identity.Certificate != uri {
			t.Errorf("%s: unexpected record of the refusal: %v", uri, r)
		}
	}
}

// A credential for the principal of an account that it is not stored in is not accepted.
func TestCredentialOfAnotherAccount(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	const uri = "conclave://client/other"
	c.Change(putSigned(t, c.engine, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: uri, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Active: true, Principal: "arn:aws:iam::999999999999:root",
	}))
	if id, err := c.engine.AuthenticateCertificate(t.Context(), iam.Certificate{URI: uri}); err != iam.ErrUnrecognized {
		t.Errorf("got %v and error %v, want ErrUnrecognized", id.Principal(), err)
	}
}

func TestReadAuditFollows(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	caller := rootCaller(t, e, res)
	r, err := e.ReadAudit(t.Context(), caller, c.Audit.Size()+1)
	if err != nil {
		t.Fatal(err)
	}
	r.Follow = true
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := r.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Next at the end: got error %v, want context.DeadlineExceeded", err)
	}
	type answer struct {
		index uint64
		err   error
	}
	next := func() chan answer {
		ch := make(chan answer, 1)
		go func() {
			i, _, err := r.Next(t.Context())
			ch <- answer{i, err}
		}()
		return ch
	}
	ch := next()
	want := c.Audit.Size()
	if err := e.ConfirmTime(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if a := <-ch; a.err != nil || a.index != want {
		t.Errorf("got record %d, want %d (%v)", a.index, want, a.err)
	}
	c.EditCredential(res.AccessKeyID, deactivate)
	if a := <-next(); !errors.Is(a.err, iam.ErrUnrecognized) {
		t.Errorf("after the credential was deactivated: got %+v, want ErrUnrecognized", a)
	}
}

func TestReadAuditEndsWithTheSeal(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if _, line, err := r.Next(t.Context()); !errors.Is(err, vault.ErrSealed) || line != nil {
		t.Errorf("after Seal: got line %s, error %v; want ErrSealed", line, err)
	}

	// A reader that waits for a record is woken.
	c = newTestCluster(t, withShares(3, 2))
	e, res = c.engine, c.initResult
	if r, err = e.ReadAudit(t.Context(), rootCaller(t, e, res), 1000); err != nil {
		t.Fatal(err)
	}
	r.Follow = true
	done := make(chan error)
	go func() {
		_, _, err := r.Next(t.Context())
		done <- err
	}()
	e.vault.Seal()
	if err := <-done; !errors.Is(err, vault.ErrSealed) {
		t.Errorf("sealed while waiting: got error %v, want ErrSealed", err)
	}
}

// A record that cannot be opened is reported with its index, and the records after it are read.
func TestUnopenableRecordHidesNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	c.Audit.Entries()[0].Body[40] ^= 1
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	index, line, err := r.Next(t.Context())
	if !errors.Is(err, ErrUnopenable) || index != 0 {
		t.Errorf("for an altered record, got line %s, error %v; want ErrUnopenable", line, err)
	}
	var shown struct {
		EventName, RequestID, EventID string
		Conclave                      struct{ Index *uint64 }
	}
	if err := json.Unmarshal(line, &shown); err != nil || shown.EventName != auditlog.UnopenableEvent || shown.RequestID == "" || shown.EventID == "" ||
		shown.Conclave.Index == nil || *shown.Conclave.Index != 0 {
		t.Errorf("got line %s for an altered record, want one with its index (%v)", line, err)
	}
	if index, _, err := r.Next(t.Context()); err != nil || index != 1 {
		t.Errorf("after an altered record, got record %d (%v), want 1", index, err)
	}
}

// gapped is an audit log whose beginning is missing.
type gapped struct{ *enginetest.AuditLog }

func (gapped) Read(uint64, int, int) ([]auditlog.Entry, error) { return nil, auditlog.ErrMissing }

func TestReadAuditOfMissingHistory(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	e.feed.Log = gapped{c.Audit}
	if _, _, err := r.Next(t.Context()); !enginetest.IsUnavailable(err) {
		t.Errorf("got error %v, want KMSUnavailable", err)
	}
}

func TestReadAuditUnderConflict(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	caller := rootCaller(t, e, res)
	n := 0
	// The same credential is rewritten between evaluation and commit.
	c.Replica("n1").BeforeCommit = func(r *fsmpb.Record) {
		if n++; n < record.MaxTries {
			cred, _ := c.State().Credential(testAccountNumber, res.AccessKeyID)
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
		}
	}
	if _, err := e.ReadAudit(t.Context(), caller, 0); err != nil || n != record.MaxTries {
		t.Errorf("after %d proposals: %v", n, err)
	}
	n = -100
	if _, err := e.ReadAudit(t.Context(), caller, 0); !enginetest.IsUnavailable(err) {
		t.Errorf("with endless conflicts: got error %v, want KMSUnavailable", err)
	}
}

// openLog writes the cluster's records to a log on disk, as a node does.
func openLog(t testing.TB, c *testCluster) (*auditlog.Log, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := auditlog.Open(dir, auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.Restore(auditlog.Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	copyLog(t, c, l)
	return l, dir
}

func copyLog(t testing.TB, c *testCluster, l *auditlog.Log) {
	t.Helper()
	entries, err := c.Audit.Read(0, 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	leaves := make([]auditlog.Hash, len(entries))
	for i := range entries {
		leaves[i] = entries[i].LeafHash()
	}
	if err := l.Append(entries, leaves); err != nil {
		t.Fatal(err)
	}
}

func TestCheckpointVerifies(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	l, dir := openLog(t, c)
	e.cfg.Audit = l
	for range 2 { // the second has nothing to do
		if err := e.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first := l.Checkpoint()
	cp, err := checkpoint.Parse(first, res.VerifierKey)
	if err != nil || cp.Size != c.Audit.Size() {
		t.Fatalf("got checkpoint %+v (%v), want one of size %d", cp, err, c.Audit.Size())
	}
	report, err := auditverify.Dir(dir, res.VerifierKey, auditverify.Options{})
	if err != nil || len(report.Problems) != 0 || report.CheckpointSize != cp.Size {
		t.Errorf("verifying the log: report %+v, error %v", report, err)
	}
	both := res.VerifierKey + "\n" + e.MLDSAVerifierKey()
	if cp, err := checkpoint.Parse(first, both); err != nil || cp.Size != c.Audit.Size() {
		t.Errorf("with both keys: checkpoint %+v (%v)", cp, err)
	}
	// No checkpoint is signed while the log is behind the state.
	if err := e.ConfirmTime(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(t.Context()); err != nil || !bytes.Equal(l.Checkpoint(), first) {
		t.Errorf("a checkpoint was signed while the log was behind the state (%v)", err)
	}
	copyLog(t, c, l)
	if err := e.Checkpoint(t.Context()); err != nil || bytes.Equal(l.Checkpoint(), first) {
		t.Errorf("no checkpoint was signed for the new records (%v)", err)
	}
	// A restarted node, which knows of no checkpoint, signs the same bytes.
	again := c.startEngine("n1")
	again.cfg.Audit = l
	if key := again.MLDSAVerifierKey(); key != "" {
		t.Errorf("a sealed node names the key %q", key)
	}
	nodeOf(again).Unseal(res.Shares...)
	copyLog(t, c, l)
	if err := again.Checkpoint(t.Context()); err != nil {
		t.Error(err)
	}
	if report, err := auditverify.Dir(dir, res.VerifierKey, auditverify.Options{}); err != nil || len(report.Problems) != 0 {
		t.Errorf("verifying the log: report %+v, error %v", report, err)
	}
	if e.VerifierKey() != res.VerifierKey {
		t.Errorf("got verifier key %q, want that of Init, %q", e.VerifierKey(), res.VerifierKey)
	}
	other := newTestCluster(t).initResult
	if _, err := checkpoint.Parse(first, other.VerifierKey); err == nil {
		t.Error("the key of another cluster verifies the checkpoint")
	}
}

func TestRunSignsCheckpoints(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	e.checkpoint.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	size := func() uint64 {
		checkpoints, synced := c.Audit.Checkpoints()
		if len(checkpoints) == 0 {
			return 0
		}
		cp, err := checkpoint.Parse(checkpoints[len(checkpoints)-1], res.VerifierKey)
		if err != nil || int(cp.Size) > synced {
			t.Errorf("got checkpoint %+v (%v) when %d entries are durable", cp, err, synced)
		}
		return cp.Size
	}
	enginetest.WaitFor(t, "the log is signed", func() bool { return size() == c.Audit.Size() })
	if err := e.ConfirmTime(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	enginetest.WaitFor(t, "the new record is signed", func() bool { return size() == c.Audit.Size() })
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if checkpoints, _ := c.Audit.Checkpoints(); len(checkpoints) > 5 {
		t.Errorf("%d checkpoints were signed, want at most 5", len(checkpoints))
	}
	cancel()
	<-done
}
