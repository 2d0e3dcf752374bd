package keyengine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// TestRefusedRecordsAreNamed checks that a record that breaks a rule is reported by the other
// nodes, in log, metric and audit log, with the node that proposed it and the rule. The logs
// report a node at most once a minute.
func TestRefusedRecordsAreNamed(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(3))
	other, sealed := c.engines["n2"], c.engines["n3"]
	sealed.vault.Seal()
	reg, log := prometheus.NewRegistry(), new(bytes.Buffer)
	other.metrics = newMetrics(Config{Metrics: reg}, other)
	other.log = slog.New(slog.NewTextHandler(log, nil))
	id, _ := c.newKey()
	shred := func() {
		t.Helper()
		k := proto.CloneOf(c.storedKey(id))
		k.Materials = nil
		if v, _ := c.Verdict(putKeyChange(k)); v != fsm.Invalid {
			t.Fatalf("a key without its material got verdict %v, want Invalid", v)
		}
		for _, e := range c.engines {
			if !e.vault.Sealed() {
				e.events.RecordPending(t.Context())
			}
		}
	}
	recorded := func() (n int) {
		for _, rec := range nodeOf(c.engine).Records() {
			if rec.EventName != "RefuseRecord" {
				continue
			}
			n++
			d := rec.ServiceEventDetails
			if rec.EventType != record.KindService || d[0].GetText() != "n1" || d[1].GetText() != "it removes key material" || len(d[2].GetText()) != 36 {
				t.Errorf("unexpected record: %v", rec)
			}
		}
		return n
	}
	for range 20 {
		shred()
	}
	if n := recorded(); n != 2 { // by the two nodes that are unsealed
		t.Errorf("got %d audit records, want 2", n)
	}
	if n := strings.Count(log.String(), "it removes key material"); n != 1 || !strings.Contains(log.String(), "node=n1") {
		t.Errorf("got %d lines in the log, want 1:\n%s", n, log)
	}
	c.Advance(refusalPeriod)
	shred()
	if n := recorded(); n != 4 {
		t.Errorf("a minute later, got %d audit records, want 4", n)
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
		t.Errorf("the metric is %v, want 21", counted)
	}
	if k := c.storedKey(id); len(k.Materials) != 1 || k.State != fsmpb.KeyState_KEY_STATE_ENABLED {
		t.Error("the refused records changed the key")
	}
	for _, ev := range sealed.events.Pending.Events {
		if ev.Name == "RefuseRecord" {
			t.Error("the sealed node has a pending event of a refused record")
		}
	}
}
