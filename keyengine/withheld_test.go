package keyengine

import (
	"context"
	"testing"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestAnswersThatAreWithheldAreRecorded has one answer become too old before Do can
// give it, and one between Do and the moment in which a face writes it. Neither is
// given, and the log says of both requests that their callers were not told.
func TestAnswersThatAreWithheldAreRecorded(t *testing.T) {
	r := newRoom(t)
	key, _ := r.newKey()
	replica := r.cluster.replica("n1")
	describe := OperationNamed("DescribeKey")

	replica.late = true
	before := r.caller(r.root)
	if out, err := r.first.Do(context.Background(), before, describe, &kmsapi.DescribeKeyInput{KeyId: &key}); err != record.ErrHeldUp || out != nil {
		t.Errorf("an answer that came too late = %v, %v", out, err)
	}
	replica.late = false

	between := r.caller(r.root)
	if _, err := r.first.Do(context.Background(), between, describe, &kmsapi.DescribeKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
	if err := between.Overdue(); err != nil {
		t.Errorf("an answer in time = %v", err)
	}
	replica.stale.Store(true)
	if err := between.Overdue(); err != record.ErrHeldUp {
		t.Errorf("an answer that became too old = %v", err)
	}
	change := r.caller(r.root)
	if _, err := r.first.Do(context.Background(), change, OperationNamed("DisableKey"), &kmsapi.DisableKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
	if err := change.Overdue(); err != nil {
		t.Errorf("a change that happened = %v", err)
	}
	replica.stale.Store(false)

	r.first.withheld.Record(r.first.replica.State())
	r.first.events.RecordPending(context.Background())
	rec := r.lastRecord()
	if rec.EventName != "AnswersWithheld" || rec.EventType != record.KindService {
		t.Fatalf("the newest record is a %s, %s", rec.EventName, rec.EventType)
	}
	var ids []string
	var count float64
	for _, f := range rec.ServiceEventDetails {
		switch v := f.Value.(type) {
		case *auditpb.Field_List:
			ids = v.List.Items
		case *auditpb.Field_Number:
			count = float64(v.Number)
		}
	}
	if count != 2 || len(ids) != 2 || ids[0] != record.UUID(before.RequestID) || ids[1] != record.UUID(between.RequestID) {
		t.Errorf("the event names %v of %v requests", ids, count)
	}
	r.first.withheld.Record(r.first.replica.State())
	r.first.events.RecordPending(context.Background())
	if again := r.lastRecord(); string(again.RequestId) != string(rec.RequestId) {
		t.Errorf("a second event, %s, though nothing more was withheld", again.EventName)
	}
}
