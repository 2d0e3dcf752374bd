package record

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// ClusterID returns the cluster's id in hexadecimal.
func ClusterID(c *fsmpb.Cluster) string { return hex.EncodeToString(c.GetId()) }

// AuditOrigin returns the name of the audit log of the cluster's Raft group, which
// checkpoints contain.
func AuditOrigin(c *fsmpb.Cluster) string {
	return fmt.Sprintf("conclave/%s/%d", ClusterID(c), wire.Group)
}

// VerifierKey returns the key that verifies the cluster's checkpoints.
func VerifierKey(c *fsmpb.Cluster) string {
	return checkpoint.VerifierKey(AuditOrigin(c), ed25519.PublicKey(c.AuditPublicKey))
}
