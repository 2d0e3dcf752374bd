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
	auditverify "github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func rootCaller(t testing.TB, e *Engine, res *ceremony.InitResult) *iam.Caller {
	t.Helper()
	id, err := e.AuthenticateSigV4(t.Context(), signed(res, "20300102", "text"))
	if err != nil {
		t.Fatal(err)
	}
	return &iam.Caller{Identity: id, RequestID: randomID(), SourceIP: "192.0.2.1", UserAgent: "test", Transport: "grpc"}
}

func TestReadAudit(t *testing.T) {
	c, e, res := openCluster(t)
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
			t.Errorf("record %d, want %d: %s: %v", index, want, line, err)
		}
		got = append(got, rec.EventName)
	}
	if len(got) != 4 || got[0] != "SubmitShare" || got[3] != "ReadAudit" {
		t.Errorf("read %v", got)
	}
	if _, _, err := r.Next(t.Context()); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if n := c.audit.Size(); n != 5 {
		t.Errorf("%d records; reading is recorded once", n)
	}
}

func TestReadAuditIsTheAccountsOnly(t *testing.T) {
	c, e, _ := openCluster(t)
	c.change(putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://client/ann", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Active: true, Principal: "arn:aws:iam::111122223333:user/ann",
	}), putSigned(t, e, &fsmpb.Credential{
		Account: uint64(testAccountNumber), Id: "conclave://client/other", Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Active: true, Principal: "arn:aws:iam::999999999999:root",
	}))
	for _, uri := range []string{"conclave://client/ann", "conclave://client/other"} {
		id, err := e.AuthenticateCertificate(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		before := c.audit.Size()
		_, err = e.ReadAudit(t.Context(), &iam.Caller{Identity: id}, 0)
		if code, _ := record.Outcome(err); code != string(kmsapi.ErrAccessDenied.Code) {
			t.Errorf("%s: %v", uri, err)
		}
		recs := records(t, c, e)
		if r := recs[len(recs)-1]; c.audit.Size() != before+1 || r.EventName != "ReadAudit" || r.ErrorCode != "AccessDeniedException" || r.Identity.Certificate != uri {
			t.Errorf("%s: record %v", uri, r)
		}
	}
}

func TestReadAuditFollows(t *testing.T) {
	c, e, res := openCluster(t)
	caller := rootCaller(t, e, res)
	r, err := e.ReadAudit(t.Context(), caller, c.audit.Size()+1)
	if err != nil {
		t.Fatal(err)
	}
	r.Follow = true
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := r.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("at the end: %v", err)
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
	want := c.audit.Size()
	if err := e.ConfirmTime(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if a := <-ch; a.err != nil || a.index != want {
		t.Errorf("index %d, want %d: %v", a.index, want, a.err)
	}
	c.edit(res.AccessKeyID, deactivate)
	if a := <-next(); !errors.Is(a.err, iam.ErrUnrecognized) {
		t.Errorf("after its credential was withdrawn: %+v", a)
	}
}

func TestReadAuditEndsWithTheSeal(t *testing.T) {
	_, e, res := openCluster(t)
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if _, line, err := r.Next(t.Context()); !errors.Is(err, vault.ErrSealed) || line != nil {
		t.Errorf("sealed: %s, %v", line, err)
	}

	// One who waits at the end is woken.
	_, e, res = openCluster(t)
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
		t.Errorf("sealed while waiting: %v", err)
	}
}

// TestUnopenableRecordHidesNothing: it has a line of its own with its place, and what
// is behind it is read.
func TestUnopenableRecordHidesNothing(t *testing.T) {
	c, e, res := openCluster(t)
	c.audit.entries[0].Body[40] ^= 1
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	index, line, err := r.Next(t.Context())
	if !errors.Is(err, ErrUnopenable) || index != 0 {
		t.Errorf("a changed record reads as %s: %v", line, err)
	}
	var shown struct {
		EventName, RequestID, EventID string
		Conclave                      struct{ Index *uint64 }
	}
	if err := json.Unmarshal(line, &shown); err != nil || shown.EventName != auditlog.UnopenableEvent || shown.RequestID == "" || shown.EventID == "" ||
		shown.Conclave.Index == nil || *shown.Conclave.Index != 0 {
		t.Errorf("its line is %s: %v", line, err)
	}
	if index, _, err := r.Next(t.Context()); err != nil || index != 1 {
		t.Errorf("behind it comes %d: %v", index, err)
	}
}

// gapped lacks the beginning of the log.
type gapped struct{ *fakeAudit }

func (gapped) Read(uint64, int, int) ([]auditlog.Entry, error) { return nil, auditlog.ErrMissing }

func TestReadAuditOfMissingHistory(t *testing.T) {
	c, e, res := openCluster(t)
	r, err := e.ReadAudit(t.Context(), rootCaller(t, e, res), 0)
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.Audit = gapped{c.audit}
	if _, _, err := r.Next(t.Context()); !isUnavailable(err) {
		t.Error(err)
	}
}

func TestReadAuditUnderConflict(t *testing.T) {
	c, e, res := openCluster(t)
	caller := rootCaller(t, e, res)
	n := 0
	// Somebody else rewrites the same credential between decision and commit.
	c.replica("a").before = func(r *fsmpb.Record) {
		if n++; n < record.MaxTries {
			cred, _ := c.state().Credential(testAccountNumber, res.AccessKeyID)
			c.change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
		}
	}
	if _, err := e.ReadAudit(t.Context(), caller, 0); err != nil || n != record.MaxTries {
		t.Errorf("after %d tries: %v", n, err)
	}
	n = -100
	if _, err := e.ReadAudit(t.Context(), caller, 0); !isUnavailable(err) {
		t.Errorf("when it never ends: %v", err)
	}
}

// openLog puts the cluster's records into a log on disk, as a node has one.
func openLog(t testing.TB, c *fakeCluster) (*auditlog.Log, string) {
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

func copyLog(t testing.TB, c *fakeCluster, l *auditlog.Log) {
	t.Helper()
	entries, err := c.audit.Read(0, 1<<20, 1<<30)
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
	c, e, res := openCluster(t)
	l, dir := openLog(t, c)
	e.cfg.Audit = l
	for range 2 { // the second has nothing to do
		if err := e.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first := l.Checkpoint()
	cp, err := auditlog.ParseCheckpoint(first, res.VerifierKey)
	if err != nil || cp.Size != c.audit.Size() {
		t.Fatalf("checkpoint %+v: %v", cp, err)
	}
	report, err := auditverify.Dir(dir, res.VerifierKey, auditverify.Options{})
	if err != nil || len(report.Problems) != 0 || report.CheckpointSize != cp.Size {
		t.Errorf("report %+v, %v", report, err)
	}
	// A log that is behind the state signs nothing.
	if err := e.ConfirmTime(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	if err := e.Checkpoint(t.Context()); err != nil || !bytes.Equal(l.Checkpoint(), first) {
		t.Errorf("signed beyond the log: %v", err)
	}
	copyLog(t, c, l)
	if err := e.Checkpoint(t.Context()); err != nil || bytes.Equal(l.Checkpoint(), first) {
		t.Errorf("nothing new signed: %v", err)
	}
	// Another node, which knows of no checkpoint, signs the same bytes.
	again := c.newEngine("a")
	again.cfg.Audit = l
	unsealNode(t, again, res.Shares...)
	copyLog(t, c, l)
	if err := again.Checkpoint(t.Context()); err != nil {
		t.Error(err)
	}
	if report, err := auditverify.Dir(dir, res.VerifierKey, auditverify.Options{}); err != nil || len(report.Problems) != 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	_, _, other := openCluster(t)
	if _, err := auditlog.ParseCheckpoint(first, other.VerifierKey); err == nil {
		t.Error("another cluster's key verifies the checkpoint")
	}
}

func TestRunSignsCheckpoints(t *testing.T) {
	c, e, res := openCluster(t)
	e.checkpoint.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	size := func() uint64 {
		c.audit.mu.Lock()
		defer c.audit.mu.Unlock()
		if len(c.audit.checkpoints) == 0 {
			return 0
		}
		cp, err := auditlog.ParseCheckpoint(c.audit.checkpoints[len(c.audit.checkpoints)-1], res.VerifierKey)
		if err != nil || int(cp.Size) > c.audit.synced {
			t.Errorf("checkpoint %+v with %d entries durable: %v", cp, c.audit.synced, err)
		}
		return cp.Size
	}
	waitFor(t, "the log is signed", func() bool { return size() == c.audit.Size() })
	if err := e.ConfirmTime(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new record is signed", func() bool { return size() == c.audit.Size() })
	if err := e.Seal(t.Context(), testOperator); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	c.audit.mu.Lock()
	n := len(c.audit.checkpoints)
	c.audit.mu.Unlock()
	if n > 5 {
		t.Errorf("%d checkpoints for a few records", n)
	}
	cancel()
	<-done
}
