package keyengine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// TestRefusedRecordsAreNamed: a record that breaks a rule shows on the other nodes, in
// log, metric and audit log, with who proposed it and which rule it broke. However many
// there are, the logs name a node once a minute.
func TestRefusedRecordsAreNamed(t *testing.T) {
	r := newRoom(t, "n1", "n2", "n3")
	other, sealed := r.engines["n2"], r.engines["n3"]
	sealed.vault.Seal()
	reg, log := prometheus.NewRegistry(), new(bytes.Buffer)
	other.metrics = newMetrics(Config{Metrics: reg}, other)
	other.log = slog.New(slog.NewTextHandler(log, nil))
	id, _ := r.newKey()
	shred := func() {
		t.Helper()
		k := cloneOf(r.stored(id))
		k.Materials = nil
		if v, _ := r.cluster.verdict(putKeyChange(k)); v != fsm.Invalid {
			t.Fatalf("a key without its material is %v", v)
		}
		for _, e := range r.engines {
			if !e.vault.Sealed() {
				e.events.RecordPending(t.Context())
			}
		}
	}
	recorded := func() (n int) {
		for _, rec := range records(t, r.cluster, r.first) {
			if rec.EventName != "RefuseRecord" {
				continue
			}
			n++
			d := rec.ServiceEventDetails
			if rec.EventType != record.KindService || d[0].GetText() != "n1" || d[1].GetText() != "it removes key material" || len(d[2].GetText()) != 36 {
				t.Errorf("the record is %v", rec)
			}
		}
		return n
	}
	for range 20 {
		shred()
	}
	if n := recorded(); n != 2 { // by the two nodes that are unsealed
		t.Errorf("the audit log has %d records, want 2", n)
	}
	if n := strings.Count(log.String(), "it removes key material"); n != 1 || !strings.Contains(log.String(), "node=n1") {
		t.Errorf("%d lines in the log of the node:\n%s", n, log)
	}
	r.cluster.advance(refusalPeriod)
	shred()
	if n := recorded(); n != 4 {
		t.Errorf("a minute later the audit log has %d records, want 4", n)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var counted float64
	for _, f := range families {
		if f.GetName() == "conclave_records_refused_total" {
			counted = f.Metric[0].GetCounter().GetValue()
		}
	}
	if counted != 21 {
		t.Errorf("the metric counts %v, want 21", counted)
	}
	if k := r.stored(id); len(k.Materials) != 1 || k.State != fsmpb.KeyState_KEY_STATE_ENABLED {
		t.Error("the key changed")
	}
	for _, ev := range sealed.events.Pending.Events {
		if ev.Name == "RefuseRecord" {
			t.Error("the sealed node keeps an event of it")
		}
	}
}
