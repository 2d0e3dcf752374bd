package keyengine

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/keyengine/alert"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// watch turns a node's alerts on.
func (c *testCluster) watch(e *Engine, path string) {
	c.t.Helper()
	all, err := alert.ParseRules("all")
	if err != nil {
		c.t.Fatal(err)
	}
	e.alerts = alert.New(alert.Config{
		Rules: all, Path: path, Feed: e.feed, State: e.replica.State, Events: e.events, Clock: e.clock, Recorded: e.metrics.alerts, Log: e.log,
	})
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.alerts.Run(ctx)
	}()
	c.t.Cleanup(func() {
		cancel()
		<-done
	})
}

// lead makes a node record alerts, until the returned function is called.
func (c *testCluster) lead(e *Engine) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.alerts.Lead(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// alertsOf returns the rules of the alerts in the log, sorted.
func (c *testCluster) alertsOf() (rules []string) {
	for _, rec := range nodeOf(c.engine).Records() {
		if rec.EventName == alert.EventName {
			rules = append(rules, rec.ServiceEventDetails[0].GetText())
		}
	}
	slices.Sort(rules)
	return rules
}

// wantAlerts waits for alerts in the log, and looks for a while whether there are more.
func (c *testCluster) wantAlerts(want ...string) {
	c.t.Helper()
	enough := func() bool { return len(c.alertsOf()) >= len(want) }
	for deadline := time.Now().Add(20 * time.Second); !enough() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	for range 150 {
		if got := c.alertsOf(); !slices.Equal(got, want) {
			c.t.Fatalf("the alerts are %q, want %q", got, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAlerts: the leader records what happens, once, whoever leads then.
func TestAlerts(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, arn := c.newKey()
	dir := t.TempDir()
	for name, e := range c.engines {
		c.watch(e, filepath.Join(dir, name))
	}
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	use := func() {
		t.Helper()
		_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		wantError(t, err, kmsapi.ErrDisabled, arn+" is disabled.")
	}
	use()
	stop := c.lead(c.engine)
	c.wantAlerts(alert.CeremonyBegun, alert.CeremonyBegun, alert.KeyNotUsable, alert.RootUse)
	var seen bool
	for _, rec := range nodeOf(c.engine).Records() {
		if rec.EventName == alert.EventName && rec.ServiceEventDetails[0].GetText() == alert.KeyNotUsable {
			seen = len(rec.Resources) == 1 && rec.Resources[0].Arn == arn && rec.RecipientAccountId == enginetest.Account
		}
	}
	if !seen {
		t.Error("the record of the alert does not have the key and its account")
	}
	if n := testutil.ToFloat64(c.engine.metrics.alerts.WithLabelValues(alert.RootUse)); n != 1 {
		t.Errorf("the leader has counted %v alerts about root, want 1", n)
	}
	// Another leader knows what was recorded. Nothing is said again within an hour.
	stop()
	use()
	stop = c.lead(c.engines["n2"])
	c.wantAlerts(alert.CeremonyBegun, alert.CeremonyBegun, alert.KeyNotUsable, alert.RootUse)
	// What no leader could record is recorded by the next one.
	stop()
	c.Clock.Advance(61 * time.Minute)
	use()
	stop = c.lead(c.engine)
	defer func() { stop() }()
	c.wantAlerts(alert.CeremonyBegun, alert.CeremonyBegun, alert.KeyNotUsable, alert.KeyNotUsable, alert.RootUse, alert.RootUse)
	// A node that has to read the log from its start says nothing about what is long over.
	stop()
	c.Clock.Advance(2 * time.Hour)
	must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
	c.watch(c.engines["n2"], filepath.Join(dir, "new"))
	stop = c.lead(c.engines["n2"])
	c.wantAlerts(alert.CeremonyBegun, alert.CeremonyBegun, alert.KeyNotUsable, alert.KeyNotUsable, alert.RootUse, alert.RootUse, alert.RootUse)
}
