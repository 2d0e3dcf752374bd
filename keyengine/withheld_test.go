package keyengine

import (
	"context"
	"testing"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// An answer that becomes too old before Do can return it, or before it is written to the
// caller, is withheld, and an audit record says so.
func TestAnswersThatAreWithheldAreRecorded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	key, _ := c.newKey()
	replica := c.Replica("n1")
	describe := OperationNamed(KMS, "DescribeKey")

	replica.LateAnswer = true
	before := c.caller(c.root)
	if out, err := c.engine.Do(context.Background(), before, describe, &kmsapi.DescribeKeyInput{KeyId: &key}); err != record.ErrHeldUp || out != nil {
		t.Errorf("with a late answer: got %v, error %v; want ErrHeldUp", out, err)
	}
	replica.LateAnswer = false

	between := c.caller(c.root)
	if _, err := c.engine.Do(context.Background(), between, describe, &kmsapi.DescribeKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
	if err := between.Overdue(); err != nil {
		t.Errorf("Overdue of an answer in time: %v", err)
	}
	replica.Outdated.Store(true)
	if err := between.Overdue(); err != record.ErrHeldUp {
		t.Errorf("Overdue of an answer that became too old: got error %v, want ErrHeldUp", err)
	}
	change := c.caller(c.root)
	if _, err := c.engine.Do(context.Background(), change, OperationNamed(KMS, "DisableKey"), &kmsapi.DisableKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
	if err := change.Overdue(); err != nil {
		t.Errorf("Overdue of an answer to a change: %v", err)
	}
	replica.Outdated.Store(false)

	c.engine.withheld.Record(c.engine.replica.State())
	c.engine.events.RecordPending(context.Background())
	rec := c.lastRecord()
	if rec.EventName != "AnswersWithheld" || rec.EventType != record.KindService {
		t.Fatalf("got record of %s, a %s; want AnswersWithheld", rec.EventName, rec.EventType)
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
		t.Errorf("the record has ids %v and count %v, want those of both requests", ids, count)
	}
	c.engine.withheld.Record(c.engine.replica.State())
	c.engine.events.RecordPending(context.Background())
	if again := c.lastRecord(); string(again.RequestId) != string(rec.RequestId) {
		t.Errorf("got another record, of %s, although nothing more was withheld", again.EventName)
	}
}
