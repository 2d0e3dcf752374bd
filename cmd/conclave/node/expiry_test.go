package node

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/pki"
)

// expiringNode returns a node whose certificates expire after the given times.
func expiringNode(t *testing.T, ca, leaf time.Duration) (*Node, *bytes.Buffer) {
	t.Helper()
	authority, err := pki.NewCA("test", ca)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: leaf})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(cert, key, authority.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	return &Node{identity: id, log: slog.New(slog.NewTextHandler(&log, nil)), registry: prometheus.NewRegistry()}, &log
}

func TestExpiryIsLogged(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name     string
		ca, leaf time.Duration
		want     []string
	}{
		{"long", 400 * day, 31 * day, nil},
		{"node", 400 * day, 29*day + time.Hour, []string{"level=WARN", "certificate=node", "days_left=29"}},
		{"ca", 20*day + time.Hour, 31 * day, []string{"level=WARN", "certificate=ca", "days_left=20"}},
		{"over", 400 * day, time.Nanosecond, []string{"level=ERROR", "certificate=node", "has expired"}},
	} {
		n, log := expiringNode(t, c.ca, c.leaf)
		n.warnOfExpiry(time.Now().Add(time.Second))
		if (len(c.want) == 0) != (log.Len() == 0) {
			t.Errorf("%s: logged %q", c.name, log)
		}
		for _, want := range c.want {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s: %q has no %q", c.name, log, want)
			}
		}
	}
}

// TestExpiryIsLoggedDaily: the log warns at the start, and once a day.
func TestExpiryIsLoggedDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, log := expiringNode(t, 400*24*time.Hour, 10*24*time.Hour)
		go n.watchExpiry(t.Context(), expiryInterval)
		time.Sleep(3*24*time.Hour + time.Minute)
		synctest.Wait()
		if got := strings.Count(log.String(), "expires soon"); got != 4 {
			t.Errorf("%d warnings in three days, want 4:\n%s", got, log)
		}
	})
}

func TestExpiryMetric(t *testing.T) {
	n, _ := expiringNode(t, 400*24*time.Hour, 31*24*time.Hour)
	n.registerExpiry()
	families, err := n.registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%v, %v", families, err)
	}
	got := make(map[string]float64)
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	for name, end := range map[string]time.Time{"node": n.identity.NotAfter(), "ca": n.identity.CANotAfter()} {
		if got[name] != float64(end.Unix()) || end.IsZero() {
			t.Errorf("%s: %v, want %v", name, got[name], end)
		}
	}
}
