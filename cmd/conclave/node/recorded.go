package node

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/auditsink"
)

// recorded returns the settings of the node that its record StartNode has: those which weaken
// it, which say whom it trusts, or which say where the audit log, backups and requests go. Settings
// that have their default are left out. None of them is a secret: of seals there is only the
// kind, of sinks the name, and of files the path.
func (c *Config) recorded(sinks []auditsink.Sink) map[string]string {
	settings := make(map[string]string)
	for name, on := range map[string]bool{
		"insecure": c.Insecure, "allowUnlockedMemory": c.AllowUnlockedMemory, "seeds": c.Seeds, "publishAuditLog": c.PublishAuditLog,
		"xksAllowPrivateEndpoints": c.XKSAllowPrivateEndpoints, "webIdentityAllowPrivate": c.WebIdentityAllowPrivate,
	} {
		if on {
			settings[name] = "true"
		}
	}
	for name, value := range map[string]string{
		"pprofAddress": c.PprofAddress, "attestationRoots": c.AttestationRoots, "xksCA": c.XKSCA, "webIdentityCA": c.WebIdentityCA, "crl": c.CRL,
		"pkcs11Module": c.PKCS11Module, "snapshotStore": withoutQuery(c.SnapshotStore),
		"auditArchive": withoutQuery(c.AuditArchive), "witnesses": c.Witnesses, "traceTo": withoutQuery(c.TraceTo.URL),
	} {
		if value != "" {
			settings[name] = value
		}
	}
	var names, seals []string
	for _, s := range sinks {
		names = append(names, s.Name)
	}
	for _, s := range c.Seals {
		kind, _, _ := strings.Cut(s, ":")
		seals = append(seals, kind)
	}
	for name, list := range map[string][]string{
		"corsOrigins": c.CORSOrigins, "trustedProxies": c.TrustedProxies, "alerts": c.Alerts, "auditSinks": names, "seals": seals,
		"pkcs11Tokens": slices.Sorted(maps.Keys(c.PKCS11Tokens)),
	} {
		if len(list) > 0 {
			settings[name] = strings.Join(list, ",")
		}
	}
	if c.RemoveDeadAfter != 0 {
		settings["removeDeadAfter"] = c.RemoveDeadAfter.String()
	}
	if c.AuditRetention != 0 {
		settings["auditRetention"] = c.AuditRetention.String()
	}
	if c.RefusalRate != 0 {
		settings["refusalRate"] = strconv.FormatFloat(c.RefusalRate, 'g', -1, 64)
	}
	if c.Quotas != (keyengine.Quotas{}) {
		settings["quotas"] = fmt.Sprintf("%+v", c.Quotas)
	}
	return settings
}

// withoutQuery returns a location without its options, which may name files with credentials.
func withoutQuery(location string) string {
	place, _, _ := strings.Cut(location, "?")
	return place
}
