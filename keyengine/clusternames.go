package keyengine

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// clusterID is the cluster's id as text.
func clusterID(c *fsmpb.Cluster) string { return hex.EncodeToString(c.GetId()) }

// auditOrigin names the audit log of the cluster's Raft group in checkpoints.
func auditOrigin(c *fsmpb.Cluster) string {
	return fmt.Sprintf("conclave/%s/%d", clusterID(c), wire.Group)
}

func verifierKey(c *fsmpb.Cluster) string {
	return auditlog.VerifierKey(auditOrigin(c), ed25519.PublicKey(c.AuditPublicKey))
}
