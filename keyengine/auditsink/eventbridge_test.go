package auditsink

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

const (
	testKey    = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	testSource = "kms.amazonaws.com"
)

func itemOf(rec *auditpb.Record) *auditfeed.Item {
	rec.Region, rec.RecipientAccountId = "eu-west-1", "111122223333"
	rec.Resources = []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: "111122223333", Arn: testKey}}
	return &auditfeed.Item{Entry: auditlog.Entry{Index: 7, Time: 1_700_000_000_000_000_000}, Record: rec}
}

// eventsOf returns a record's events, decoded.
func eventsOf(t *testing.T, it *auditfeed.Item) (events []map[string]any) {
	t.Helper()
	line, err := it.Line()
	if err != nil {
		t.Fatal(err)
	}
	out, err := eventBridge(it, line)
	if err != nil {
		t.Fatal(err)
	}
	for text := range bytes.SplitSeq(out, []byte("\n")) {
		for _, c := range string(text) {
			if c < ' ' || c == '\u202e' {
				t.Errorf("the event has the character %U: %s", c, text)
			}
		}
		var ev map[string]any
		if err := json.Unmarshal(text, &ev); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		events = append(events, ev)
	}
	return events
}

// TestEventBridge: the envelopes and details are those of the KMS developer guide, "Monitor KMS
// keys with Amazon EventBridge", and of the EventBridge user guide for what CloudTrail delivers.
func TestEventBridge(t *testing.T) {
	t.Parallel()
	service := func(name string, details ...*auditpb.Field) *auditpb.Record {
		return &auditpb.Record{EventName: name, EventType: record.KindService, EventSource: testSource, ServiceEventDetails: details}
	}
	leaf := itemOf(service("RotateKey")).Entry.LeafHash()
	id := record.UUID(auditlog.EventID(leaf))
	index := map[string]any{"index": 7.0}
	want := func(kind, source string, resources []any, detail map[string]any) map[string]any {
		return map[string]any{
			"version": "0", "id": id, "detail-type": kind, "source": source, "account": "111122223333", "time": "2023-11-14T22:13:20Z",
			"region": "eu-west-1", "resources": resources, "detail": detail,
		}
	}
	keyID := "1234abcd-12ab-34cd-56ef-1234567890ab"
	key := []any{testKey}
	hostile := "a\nb\x1b[31m\u202e\"}"
	for name, tt := range map[string]struct {
		rec  *auditpb.Record
		want map[string]any
	}{
		"rotation": {
			service("RotateKey", auditfield.Text("rotationType", "AUTOMATIC"), auditfield.Text("keyMaterialId", "ab12")),
			want("KMS CMK Rotation", "aws.kms", key, map[string]any{
				"key-id": keyID, "key-origin": "AWS_KMS", "rotation-type": "AUTOMATIC", "current-key-material-id": "ab12", "conclave": index,
			}),
		},
		"expiry": {
			service("DeleteExpiredKeyMaterial", auditfield.TextList("keyMaterialId", []string{"ab12"})),
			want("KMS Imported Key Material Expiration", "aws.kms", key, map[string]any{"key-id": keyID, "conclave": index}),
		},
		"deletion": {
			service("DeleteKey"),
			want("KMS CMK Deletion", "aws.kms", key, map[string]any{"key-id": keyID, "conclave": index}),
		},
		"alert": {
			service("Alert", auditfield.Text("rule", "RootUse"), auditfield.Text("message", hostile)),
			want("Conclave Alert", "conclave", key, map[string]any{"rule": "RootUse", "message": hostile, "conclave": index}),
		},
		"alert without details": {service("Alert"), want("Conclave Alert", "conclave", key, map[string]any{"conclave": index})},
	} {
		if d := cmp.Diff([]map[string]any{tt.want}, eventsOf(t, itemOf(tt.rec))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	// What CloudTrail delivers has the whole record as its detail.
	for _, tt := range []struct{ name, kind, source, detailType, eventSource string }{
		{"Encrypt", record.KindCall, testSource, "AWS API Call via CloudTrail", "aws.kms"},
		{"CreateUser", record.KindCall, "iam.amazonaws.com", "AWS API Call via CloudTrail", "aws.iam"},
		{"SynchronizeMultiRegionKey", record.KindService, testSource, "AWS Service Event via CloudTrail", "aws.kms"},
		{"Unseal", record.KindOperator, "conclave", "Conclave Audit Record", "conclave"},
		{"ReadAudit", record.KindConclave, "conclave", "Conclave Audit Record", "conclave"},
	} {
		it := itemOf(&auditpb.Record{EventName: tt.name, EventType: tt.kind, EventSource: tt.source, UserAgent: hostile})
		line, err := it.Line()
		if err != nil {
			t.Fatal(err)
		}
		var detail map[string]any
		if err := json.Unmarshal(line, &detail); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]map[string]any{want(tt.detailType, tt.eventSource, []any{}, detail)}, eventsOf(t, it), cmp.FilterPath(func(p cmp.Path) bool {
			return strings.HasSuffix(p.GoString(), `["id"]`)
		}, cmp.Ignore())); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
	it := itemOf(service("Alert"))
	it.Record = nil
	if got := eventsOf(t, it); len(got) != 1 || got[0]["source"] != "conclave" || got[0]["detail"].(map[string]any)["eventName"] != auditlog.UnopenableEvent {
		t.Errorf("a record that cannot be decrypted is %v", got)
	}
}

// TestOnDemandRotation: the call and the change of the key are two events with ids of their own;
// a call that failed is one.
func TestOnDemandRotation(t *testing.T) {
	t.Parallel()
	rec := &auditpb.Record{EventName: "RotateKeyOnDemand", EventType: record.KindCall, EventSource: testSource}
	got := eventsOf(t, itemOf(rec))
	if len(got) != 2 || got[0]["detail-type"] != "AWS API Call via CloudTrail" || got[1]["detail-type"] != "KMS CMK Rotation" ||
		got[0]["id"] == got[1]["id"] || got[1]["detail"].(map[string]any)["rotation-type"] != "ON_DEMAND" {
		t.Errorf("the events of a rotation on demand are %v", got)
	}
	rec.ErrorCode = "AccessDeniedException"
	if got := eventsOf(t, itemOf(rec)); len(got) != 1 || got[0]["detail-type"] != "AWS API Call via CloudTrail" {
		t.Errorf("the events of a rotation that was denied are %v", got)
	}
}

// TestOnly: classes and names choose records, and what cannot be decrypted is chosen always.
func TestOnly(t *testing.T) {
	t.Parallel()
	records := map[string]*auditpb.Record{
		"alert":    {EventName: "Alert", EventType: record.KindService, EventSource: testSource},
		"no alert": {EventName: "Alert", EventType: record.KindCall, EventSource: testSource},
		"deletion": {EventName: "DeleteKey", EventType: record.KindService, EventSource: testSource},
		"denial":   {EventName: "Decrypt", EventType: record.KindCall, EventSource: testSource, ErrorCode: "AccessDeniedException"},
		"use":      {EventName: "Decrypt", EventType: record.KindCall, EventSource: testSource},
		"unknown":  nil,
	}
	for only, want := range map[string]string{
		"":                   "alert deletion denial no alert unknown use",
		"alerts":             "alert unknown",
		"key-events":         "deletion unknown",
		"failures":           "denial unknown",
		"Decrypt":            "denial unknown use",
		"alerts,key-events":  "alert deletion unknown",
		"CreateKey,failures": "denial unknown",
	} {
		s := &Sink{}
		if only != "" {
			s.Only = strings.Split(only, ",")
		}
		var got []string
		for _, name := range []string{"alert", "deletion", "denial", "no alert", "unknown", "use"} {
			if s.wants(&auditfeed.Item{Record: records[name]}) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("only %q chooses %q, want %q", only, got, want)
		}
	}
}
