package keyengine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func TestAnswersNameTheirRecords(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	alice := c.newUser("arn:aws:iam::111122223333:user/alice")
	for _, who := range []iam.Identity{c.root, alice} { // alice is refused, which is recorded too
		caller := c.caller(who)
		_, err := c.engine.Do(t.Context(), caller, operationNamed("DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id})
		if (err != nil) != (who == alice) {
			t.Fatal(err)
		}
		last := c.Audit.Last()
		if caller.Record == nil || *caller.Record != last.Index || last.RequestID != caller.RequestID {
			t.Errorf("the answer names record %v; the record is %d", caller.Record, last.Index)
		}
	}
}

// TestRecordOfRequest: the record of a request is found by its id, whether it is indexed or
// not, and a node that cannot know whether there is one says so.
func TestRecordOfRequest(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	old := rootCaller(t, e, res)
	for _, caller := range []*iam.Caller{old, rootCaller(t, e, res), rootCaller(t, e, res)} {
		if _, err := e.Do(t.Context(), caller, operationNamed("GenerateRandom"), &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(4))}); err != nil {
			t.Fatal(err)
		}
	}
	size := c.Audit.Size()
	find := func(id iam.RequestID, lookBack, want uint64) {
		t.Helper()
		if entry, err := e.entryOf(t.Context(), id, lookBack); err != nil || entry.Index != want || entry.RequestID != id {
			t.Errorf("looking at %d records that are not indexed: got %+v (%v), want record %d", lookBack, entry, err, want)
		}
	}
	refuse := func(id iam.RequestID, lookBack uint64, want error) {
		t.Helper()
		if _, err := e.entryOf(t.Context(), id, lookBack); !errors.Is(err, want) {
			t.Errorf("looking at %d records that are not indexed: got %v, want %v", lookBack, err, want)
		}
	}
	// Without an index, all records have to be read.
	find(old.RequestID, size, *old.Record)
	find(c.Audit.Last().RequestID, 1, size-1)
	refuse(old.RequestID, 1, kmsapi.ErrUnavailable)
	refuse(iam.RequestID{1}, size, kmsapi.ErrNotFound)
	withIndex(t, e)
	if got := e.index.Wait(t.Context(), size, 30*time.Second); got != size {
		t.Fatalf("%d of %d records are indexed", got, size)
	}
	find(old.RequestID, 0, *old.Record)
	refuse(iam.RequestID{1}, 0, kmsapi.ErrNotFound)
}

func TestRecordReceipt(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, res := c.engine, c.initResult
	caller := rootCaller(t, e, res)
	if _, err := e.Do(t.Context(), caller, operationNamed("GenerateRandom"), &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(4))}); err != nil {
		t.Fatal(err)
	}
	l, _ := openLog(t, c)
	e.cfg.Audit = l
	if err := e.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys := res.VerifierKey + "\n" + e.MLDSAVerifierKey()
	for _, index := range []*uint64{caller.Record, nil} {
		text, err := e.RecordReceipt(t.Context(), rootCaller(t, e, res), index, caller.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		r, err := receipt.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		entry, cp, err := r.Verify(keys)
		if err != nil || entry.Index != *caller.Record || entry.RequestID != caller.RequestID || cp.Size <= entry.Index {
			t.Errorf("got %+v in %+v (%v)", entry, cp, err)
		}
		if rec := c.lastRecord(); rec.EventName != "GetRecordReceipt" || rec.ErrorCode != "" {
			t.Errorf("the last record is %s %s", rec.EventName, rec.ErrorCode)
		}
	}
	if _, err := e.RecordReceipt(t.Context(), rootCaller(t, e, res), new(uint64(1<<40)), iam.RequestID{}); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("of a record that is not there: %v", err)
	}
	if _, err := e.RecordReceipt(t.Context(), rootCaller(t, e, res), nil, iam.RequestID{1}); !errors.Is(err, kmsapi.ErrNotFound) {
		t.Errorf("of a request that was not made: %v", err)
	}
	mallory := c.newUser("arn:aws:iam::111122223333:user/mallory")
	if _, err := e.RecordReceipt(t.Context(), c.caller(mallory), caller.Record, iam.RequestID{}); !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "conclave:ReadAudit") {
		t.Errorf("for somebody without permission: %v", err)
	}
}
