package record

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// ClusterID is the cluster's id as text.
func ClusterID(c *fsmpb.Cluster) string { return hex.EncodeToString(c.GetId()) }

// AuditOrigin names the audit log of the cluster's Raft group in checkpoints.
func AuditOrigin(c *fsmpb.Cluster) string {
	return fmt.Sprintf("conclave/%s/%d", ClusterID(c), wire.Group)
}

func VerifierKey(c *fsmpb.Cluster) string {
	return auditlog.VerifierKey(AuditOrigin(c), ed25519.PublicKey(c.AuditPublicKey))
}
