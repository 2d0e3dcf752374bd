package node

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/auditevents"
	"github.com/conclavekms/conclave/keyengine/auditsink"
)

// TestRecordedSettings: the record of a node's start has the settings that weaken it and says whom it
// trusts, but no secret, and nothing that is as by default.
func TestRecordedSettings(t *testing.T) {
	t.Parallel()
	if got := (&Config{NodeID: "a", Data: "/data", AWSListen: ":1"}).recorded(nil); len(got) != 0 || got == nil {
		t.Errorf("by default: %v, want an empty map", got)
	}
	c := &Config{
		Insecure: true, AllowUnlockedMemory: true, Seeds: true, PublishAuditLog: true, XKSAllowPrivateEndpoints: true, WebIdentityAllowPrivate: true,
		PprofAddress: "127.0.0.1:6060", AttestationRoots: "roots.pem", XKSCA: "xks.pem", WebIdentityCA: "web.pem", CRL: "crl.pem",
		PKCS11Module: "module.so", PKCS11Tokens: map[string]string{"cluster-1": "secret label"}, SnapshotStore: "s3://bucket/prefix?credentials=secret",
		CORSOrigins: []string{"https://a.example", "https://b.example"}, TrustedProxies: []string{"10.0.0.0/8"}, Alerts: []string{"root-use"},
		Seals: []string{"pkcs11:module?pin=secret"}, RemoveDeadAfter: time.Hour, RefusalRate: 2.5,
		AuditArchive: "s3://bucket/audit?credentials=secret", AuditRetention: time.Hour, Witnesses: "witnesses.json",
	}
	c.TraceTo.URL, c.TraceTo.HeadersFile = "https://collector.example/v1/traces", "secret"
	c.Quotas.Keys = 7
	got := c.recorded([]auditsink.Sink{{Name: "siem"}})
	listed := auditevents.Find("StartNode", auditevents.Service).Details
	want := map[string]bool{"node": true, "release": true}
	for name, value := range got {
		want[name] = true
		if strings.Contains(value, "secret") {
			t.Errorf("%s is %q", name, value)
		}
	}
	for _, name := range listed {
		if !want[name] {
			t.Errorf("%s is documented, and not recorded", name)
		}
		delete(want, name)
	}
	for name := range maps.Keys(want) {
		t.Errorf("%s is recorded, and not documented", name)
	}
	for name, value := range map[string]string{"insecure": "true", "corsOrigins": "https://a.example,https://b.example", "auditSinks": "siem", "seals": "pkcs11", "snapshotStore": "s3://bucket/prefix", "removeDeadAfter": "1h0m0s"} {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}
